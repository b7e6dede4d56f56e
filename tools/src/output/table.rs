//! Tables that fit the terminal.

use bytesize::ByteSize;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Row, Table, presets};
use podmesh_protocol::client::{JobView, TaskView, TokenView, UserView};
use podmesh_protocol::ids::Name;
use podmesh_protocol::node::NodeView;
use podmesh_protocol::node::ResourceView;
use podmesh_protocol::report::JobState as WireJobState;

use super::access::TokenState;
use super::events::outcome_text;
use super::json::{AttemptState, JobState, NodeState, TaskState, Word};
use super::screen::Screen;
use super::service::Scheduling;
use super::text::{count, escape};
use super::time::{ago, coarse, local, now_ms};

/// The meaning of a state, shown by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Bad,
    Busy,
    Quiet,
}

pub(crate) fn mood(word: &str) -> Mood {
    match word {
        "succeeded" | "alive" | "usable" | "healthy" | "reached" | "ran" => Mood::Good,
        "failed" | "expired" | "lost" | "unhealthy" | "degraded" | "blocked" | "missed" => {
            Mood::Bad
        }
        "running" | "active" | "cancelling" | "suspect" | "updating" | "rolling_back"
        | "starting" | "restarting" | "unreachable" | "draining" | "stopping" | "begun"
        | "removing" | "cordoned" | "paused" | "skipped" => Mood::Busy,
        _ => Mood::Quiet,
    }
}

pub(crate) fn state(word: &impl Word) -> Cell {
    state_cell(&word.word())
}

/// Returns the cell of a word for a state.
pub(crate) fn state_cell(word: &str) -> Cell {
    let cell = Cell::new(word);
    match mood(word) {
        Mood::Good => cell.fg(Color::Green),
        Mood::Bad => cell.fg(Color::Red),
        Mood::Busy => cell.fg(Color::Yellow),
        Mood::Quiet => cell,
    }
}

/// Returns the state of a job; of one that waits for other jobs, that it does.
fn job_state(view: &JobView) -> Cell {
    match (view.blocked, view.unmet) {
        (0, 0) => state(&JobState::from(&view.state)),
        _ if view.state != WireJobState::Queued => state(&JobState::from(&view.state)),
        (0, _) => Cell::new("waiting"),
        _ => state_cell("blocked"),
    }
}

/// Renders rows below a header, without borders. On a terminal each row is one line that fits its
/// width; otherwise nothing is cut.
pub(crate) fn render(screen: Screen, header: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if screen.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    match screen.width {
        Some(width) => {
            table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    for cells in rows {
        let mut row = Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `podmesh jobs`.
pub(crate) fn jobs(screen: Screen, jobs: &[JobView]) -> String {
    let now = now_ms();
    let row = |view: &JobView| {
        let counts = &view.counts;
        let done = format!("{}/{}", counts.ended(), counts.total());
        let failed = if counts.failed == 0 { String::new() } else { counts.failed.to_string() };
        let took = match (view.started_wall_ms, view.ended_wall_ms) {
            (Some(started), Some(ended)) => coarse(ended.saturating_sub(started)),
            (Some(started), None) => coarse(now.saturating_sub(started)),
            (None, _) => String::new(),
        };
        vec![
            Cell::new(view.job),
            Cell::new(&view.name),
            job_state(view),
            Cell::new(done),
            Cell::new(failed),
            Cell::new(ago(now, view.submitted_wall_ms)),
            Cell::new(view.submitted_by.as_ref().map_or("", Name::as_str)),
            Cell::new(took),
        ]
    };
    let header = ["JOB", "NAME", "STATE", "DONE", "FAILED", "SUBMITTED", "SUBMITTED BY", "TOOK"];
    render(screen, &header, jobs.iter().map(row).collect())
}

/// `podmesh tasks`.
pub(crate) fn tasks(screen: Screen, tasks: &[TaskView]) -> String {
    let row = |view: &TaskView| {
        let last = view.last.as_ref();
        let how = last.map_or(String::new(), |last| match &last.outcome {
            Some(outcome) => outcome_text(outcome),
            None => AttemptState::from(&last.state).word().into_owned(),
        });
        vec![
            Cell::new(view.task),
            state(&TaskState::from(&view.state)),
            Cell::new(view.attempts),
            Cell::new(last.map_or("", |last| last.node.as_str())),
            Cell::new(how),
        ]
    };
    let header = ["TASK", "STATE", "ATTEMPTS", "NODE", "LAST ATTEMPT"];
    render(screen, &header, tasks.iter().map(row).collect())
}

/// How much of each named resource is free: `gpu 1.5/2`.
pub(crate) fn resources(view: &NodeView) -> String {
    let free = |(name, of): (&Name, &ResourceView)| {
        let gone = of.gone.len() as u64 * 1_000;
        let free = of.offer.millis().saturating_sub(of.used.saturating_sub(gone));
        format!("{name} {}/{}", free as f64 / 1_000.0, of.offer.millis() / 1_000)
    };
    view.resources.iter().map(free).collect::<Vec<_>>().join(",")
}

/// What a node may get; `drained` for one that is drained and empty.
fn scheduling(view: &NodeView) -> Cell {
    match (view.scheduling == podmesh_protocol::node::Scheduling::Draining, view.attempts) {
        (true, 0) => Cell::new("drained"),
        _ => state(&Scheduling::from(&view.scheduling)),
    }
}

/// `podmesh nodes`.
pub(crate) fn nodes(screen: Screen, nodes: &[NodeView]) -> String {
    let row = |view: &NodeView| {
        let seen = match view.seen_ms_ago {
            // A heartbeat comes every second: a shorter time says nothing.
            Some(0..3_000) => "now".to_owned(),
            Some(ms) => format!("{} ago", coarse(ms)),
            None => "not yet".to_owned(),
        };
        let runtimes: Vec<String> = view.runtimes.iter().map(ToString::to_string).collect();
        let labels: Vec<String> =
            view.labels.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        vec![
            Cell::new(&view.node),
            state(&NodeState::from(&view.state)),
            scheduling(view),
            Cell::new(format!(
                "{}/{}",
                cores(view.free.cpu_millis),
                cores(view.capacity.cpu_millis)
            )),
            Cell::new(format!(
                "{}/{}",
                size(view.free.memory_bytes),
                size(view.capacity.memory_bytes)
            )),
            Cell::new(resources(view)),
            Cell::new(view.attempts),
            Cell::new(runtimes.join(",")),
            Cell::new(seen),
            Cell::new(view.address.as_deref().map(escape).unwrap_or_default()),
            Cell::new(labels.join(",")),
        ]
    };
    let header = [
        "NODE",
        "STATE",
        "SCHEDULING",
        "CPUS FREE",
        "MEMORY FREE",
        "RESOURCES FREE",
        "ATTEMPTS",
        "RUNTIMES",
        "SEEN",
        "ADDRESS",
        "LABELS",
    ];
    render(screen, &header, nodes.iter().map(row).collect())
}

/// `podmesh token`.
pub(crate) fn tokens(screen: Screen, tokens: &[TokenView]) -> String {
    let row = |view: &TokenView| {
        vec![
            Cell::new(view.id),
            state(&TokenState::from(&view.state)),
            Cell::new(if view.api { "api" } else { "join" }),
            Cell::new(&view.role),
            Cell::new(if view.api { String::new() } else { view.uses_left.to_string() }),
            Cell::new(local(view.expires_wall_ms)),
            Cell::new(&view.created_by),
            Cell::new(view.used_wall_ms.map(local).unwrap_or_default()),
        ]
    };
    let header =
        ["TOKEN", "STATE", "FOR", "ROLE", "USES LEFT", "EXPIRES", "CREATED BY", "LAST USED"];
    render(screen, &header, tokens.iter().map(row).collect())
}

/// `podmesh users`.
pub(crate) fn users(screen: Screen, users: &[UserView]) -> String {
    let row = |view: &UserView| {
        vec![
            Cell::new(&view.name),
            Cell::new(&view.role),
            Cell::new(view.token),
            Cell::new(local(view.enrolled_wall_ms)),
        ]
    };
    let header = ["USER", "ROLE", "TOKEN", "JOINED"];
    render(screen, &header, users.iter().map(row).collect())
}

/// Formats cores with as many digits as necessary.
pub(crate) fn cores(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats bytes, short.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string().replace(' ', "")
}

/// Returns the note on standard error about a list that was cut.
pub(crate) fn more(shown: usize, noun: &str) -> String {
    format!("showing only {}; use --all to show all", count(shown as u64, noun))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::json::TaskRow;
    use super::*;
    use podmesh_protocol::access::{Role, TokenId};
    use podmesh_protocol::client::AttemptView;
    use podmesh_protocol::ids::{JobId, TaskId};
    use podmesh_protocol::node::NodeState;
    use podmesh_protocol::report::{self, Outcome, ShownOutcome};
    use podmesh_protocol::spec::{Resources, RuntimeKind};
    use podmesh_protocol::word::MaybeKnown;

    fn task(message: &str) -> TaskView {
        TaskView {
            task: TaskId { job: JobId(42), index: 7 },
            state: report::TaskState::Failed.into(),
            attempts: 1,
            last: Some(AttemptView {
                number: 1,
                node: "node-1".parse().unwrap(),
                state: report::AttemptState::Ended.into(),
                outcome: Some(Outcome::exited(3).with_message(message).into()),
                assigned_wall_ms: 0,
                started_wall_ms: None,
                ended_wall_ms: None,
            }),
        }
    }

    #[test]
    fn on_a_terminal_each_row_is_one_line_that_fits() {
        let screen = Screen { width: Some(60), color: false };
        let text = tasks(screen, &[task(&"long ".repeat(50))]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn output_to_a_pipe_is_complete_and_without_escapes() {
        let screen = Screen { width: None, color: false };
        let text = tasks(screen, &[task(&("\u{1b}[31m".to_owned() + &"long ".repeat(50)))]);
        assert_eq!(text.matches("long").count(), 50, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(
            text.starts_with("TASK  STATE   ATTEMPTS  NODE    LAST ATTEMPT\n42.7  failed  1 "),
            "{text}"
        );
    }

    #[test]
    fn colour_can_be_forced() {
        let text = tasks(Screen { width: None, color: true }, &[task("")]);
        assert!(text.contains("\u{1b}["), "{text:?}");
    }

    #[test]
    fn tokens_show_whether_they_can_be_used() {
        let view = |id, state| TokenView {
            id: TokenId(id),
            state: MaybeKnown::Known(state),
            role: Role::Agent.into(),
            uses_left: 1,
            expires_wall_ms: 0,
            created_by: "root".parse().unwrap(),
            api: id == 2,
            used_wall_ms: None,
        };
        use podmesh_protocol::client::TokenState as Wire;
        let rows = [view(1, Wire::UsedUp), view(2, Wire::Usable)];
        let text = tokens(Screen { width: None, color: false }, &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("1      used_up  join  agent  1 "), "{text}");
        assert!(lines[2].starts_with("2      usable   api   agent   "), "{text}");
        assert!(lines[2].contains("  root"), "{text}");
    }

    #[test]
    fn words_of_a_later_version_are_shown_as_they_are() {
        let mut view = task("");
        view.state = MaybeKnown::Unknown("blocked\u{1b}".into());
        if let Some(last) = &mut view.last {
            last.state = MaybeKnown::Unknown("frozen".into());
            let ended = Outcome::exited(3).into();
            last.outcome =
                Some(ShownOutcome { kind: MaybeKnown::Unknown("preempted".into()), ..ended });
        }
        let json = serde_json::to_value(TaskRow::from(&view)).unwrap();
        assert_eq!(json["state"], "blocked\u{1b}");
        assert_eq!(json["last_attempt"]["outcome"]["kind"], "preempted");
        let screen = Screen { width: None, color: false };
        let text = tasks(screen, std::slice::from_ref(&view));
        assert!(text.contains("blocked\\u{1b}  1 "), "{text}");
        assert!(text.contains("ended (preempted), exit code 3"), "{text}");
        if let Some(last) = &mut view.last {
            last.outcome = None;
        }
        assert!(tasks(screen, &[view]).contains("frozen"));
    }

    #[test]
    fn nodes_show_free_resources() {
        let view = NodeView {
            admin_labels: [].into(),
            resources: [].into(),
            drain: None,
            maintenance: None,
            node: "node-1".parse().unwrap(),
            state: NodeState::Alive.into(),
            epoch: None,
            program_version: String::new(),
            capacity: Resources { cpu_millis: 4000, memory_bytes: 8 << 30 },
            free: Resources { cpu_millis: 2500, memory_bytes: 6 << 30 },
            labels: [("gpu".parse().unwrap(), "a100".to_owned())].into(),
            runtimes: vec![RuntimeKind::Process.into(), RuntimeKind::Docker.into()],
            withdrawn: [].into(),
            unenforced: [].into(),
            low_disks: [].into(),
            attempts: 3,
            seen_ms_ago: Some(70_000),
            enrolled: false,
            scheduling: podmesh_protocol::node::Scheduling::Draining.into(),
            address: Some("10.0.0.1".into()),
        };
        let text = nodes(Screen { width: None, color: false }, &[view]);
        for part in [
            "alive  draining  ",
            "2.5/4",
            "6.0GiB/8.0GiB",
            "process,docker",
            "70s ago",
            "10.0.0.1  gpu=a100",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
