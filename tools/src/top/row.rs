//! The rows of the tables, as their columns show them.

use podmesh_protocol::client::{AttemptView, JobView, TaskView};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name, Revision, TaskId};
use podmesh_protocol::node::NodeView;
use podmesh_protocol::queue::QueueView;
use podmesh_protocol::schedule::{ScheduleRunView, ScheduleView};
use podmesh_protocol::service::{ReplicaView, ServiceView};
use podmesh_protocol::volume::VolumeView;
use podmesh_protocol::workflow::WorkflowView;

use crate::output::events::{describe, outcome_text};
use crate::output::json::{AttemptState, JobState, NodeState, TaskState, Word};
use crate::output::queue_table;
use crate::output::schedule::RunResult;
use crate::output::schedule_table::when;
use crate::output::service::{ReplicaState, Scheduling, ServiceState};
use crate::output::service_table::published;
use crate::output::table::{Mood, cores, mood, size};
use crate::output::text::escape;
use crate::output::time::{ago, coarse, local, local_clock};
use crate::output::workflow_table::JobLine;

/// A row of a table.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Node(Box<NodeView>),
    Job(Box<JobView>),
    Service(Box<ServiceView>),
    Event { revision: Revision, wall_ms: u64, fact: Box<EventFact> },
    Volume(Box<VolumeView>),
    Task(Box<TaskView>),
    Attempt(TaskId, Box<AttemptView>),
    Replica(Name, Box<ReplicaView>),
    Schedule(Box<ScheduleView>),
    Run(Box<ScheduleRunView>),
    Workflow(Box<WorkflowView>),
    WorkflowJob(Box<JobLine>),
    Queue(Box<QueueView>),
}

/// One column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) mood: Mood,
    /// How much of what is drawn as a bar before the text.
    pub(super) bar: Option<(u64, u64)>,
}

impl Cell {
    fn plain(text: impl ToString) -> Self {
        Self { text: text.to_string(), mood: Mood::Quiet, bar: None }
    }

    fn state(word: &impl Word) -> Self {
        Self::word(&word.word())
    }

    fn word(word: &str) -> Self {
        Self { mood: mood(word), text: word.to_owned(), bar: None }
    }

    fn bar(part: u64, of: u64, text: String) -> Self {
        Self { text, mood: Mood::Quiet, bar: Some((part, of)) }
    }

    /// A number that is shown only if it is not 0.
    fn some(number: u32) -> Self {
        if number == 0 { Self::plain("") } else { Self::plain(number) }
    }

    fn bad(number: impl Into<u64>) -> Self {
        match number.into() {
            0 => Self::plain(""),
            number => Self { text: number.to_string(), mood: Mood::Bad, bar: None },
        }
    }
}

/// How wide a column is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    /// As many characters.
    Fixed(u16),
    /// A share of what is left.
    Share(u16),
}

/// A column: its title, its width, and the least width of a terminal that shows it.
pub(super) type Column = (&'static str, Width, u16);

/// The kinds of table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nodes,
    Jobs,
    Services,
    Events,
    Volumes,
    Tasks,
    Attempts,
    Replicas,
    Schedules,
    Runs,
    Workflows,
    WorkflowJobs,
    Queues,
}

impl Kind {
    /// Returns the columns, in the order of [`Row::cells`].
    pub(super) fn columns(self) -> &'static [Column] {
        use Width::{Fixed, Share};
        match self {
            Self::Nodes => &[
                ("NODE", Share(3), 0),
                ("STATE", Fixed(7), 0),
                ("SCHEDULING", Fixed(10), 0),
                ("CPUS USED", Fixed(14), 0),
                ("MEMORY USED", Fixed(21), 0),
                ("RUN", Fixed(5), 0),
                ("RUNTIMES", Fixed(15), 110),
                ("ADDRESS", Fixed(15), 110),
                ("LABELS", Share(2), 0),
            ],
            Self::Jobs => &[
                ("JOB", Fixed(8), 0),
                ("NAME", Share(3), 0),
                ("STATE", Fixed(10), 0),
                ("DONE", Fixed(19), 0),
                ("FAILED", Fixed(6), 0),
                ("SUBMITTED", Fixed(9), 0),
                ("BY", Share(1), 0),
                ("TOOK", Fixed(6), 0),
            ],
            Self::Services => &[
                ("SERVICE", Share(2), 0),
                ("STATE", Fixed(12), 0),
                ("HEALTHY", Fixed(15), 0),
                ("REVISION", Fixed(8), 0),
                ("PROJECT", Share(1), 0),
                ("PUBLISHED", Share(2), 0),
                ("RUNS", Share(3), 110),
            ],
            Self::Events => {
                &[("REVISION", Fixed(9), 0), ("TIME", Fixed(12), 0), ("EVENT", Share(1), 0)]
            }
            Self::Volumes => &[
                ("VOLUME", Share(2), 0),
                ("NODE", Share(1), 0),
                ("CREATED", Fixed(19), 0),
                ("USED BY", Share(2), 0),
            ],
            Self::Tasks => &[
                ("TASK", Fixed(14), 0),
                ("STATE", Fixed(9), 0),
                ("ATTEMPTS", Fixed(8), 0),
                ("NODE", Share(1), 0),
                ("EXIT", Fixed(5), 0),
                ("LAST ATTEMPT", Share(3), 0),
            ],
            Self::Attempts => &[
                ("ATTEMPT", Fixed(7), 0),
                ("STATE", Fixed(9), 0),
                ("NODE", Share(1), 0),
                ("EXIT", Fixed(5), 0),
                ("ASSIGNED", Fixed(19), 0),
                ("HOW IT ENDED", Share(2), 0),
            ],
            Self::Replicas => &[
                ("REPLICA", Share(2), 0),
                ("REV", Fixed(4), 0),
                ("STATE", Fixed(11), 0),
                ("NODE", Share(2), 0),
                ("JOB", Fixed(7), 0),
                ("ENDPOINTS", Share(3), 110),
                ("FAILURES", Fixed(8), 0),
                ("MESSAGE", Share(4), 0),
            ],
            Self::Schedules => &[
                ("SCHEDULE", Share(2), 0),
                ("STATE", Fixed(7), 0),
                ("WHEN", Share(3), 0),
                ("NEXT", Fixed(19), 0),
                ("LAST", Fixed(19), 110),
                ("JOB", Fixed(7), 0),
                ("RAN", Fixed(6), 110),
                ("SKIPPED", Fixed(7), 110),
                ("MISSED", Fixed(6), 0),
            ],
            Self::Runs => &[
                ("FOR", Fixed(19), 0),
                ("RESULT", Fixed(8), 0),
                ("TIMES", Fixed(6), 0),
                ("JOB", Fixed(8), 0),
                ("WHY", Share(1), 0),
            ],
            Self::Workflows => &[
                ("WORKFLOW", Fixed(8), 0),
                ("NAME", Share(3), 0),
                ("DONE", Fixed(19), 0),
                ("QUEUED", Fixed(6), 0),
                ("RUNNING", Fixed(7), 0),
                ("FAILED", Fixed(6), 0),
                ("SUBMITTED", Fixed(9), 0),
                ("BY", Share(1), 0),
            ],
            Self::WorkflowJobs => &[
                ("JOB", Fixed(8), 0),
                ("NAME", Share(2), 0),
                ("STATE", Fixed(10), 0),
                ("AFTER", Share(3), 0),
                ("WAITS FOR", Share(3), 0),
            ],
            Self::Queues => &[
                ("QUEUE", Share(2), 0),
                ("STATE", Fixed(6), 0),
                ("WEIGHT", Fixed(6), 0),
                ("ACTIVE", Fixed(13), 0),
                ("CPUS", Fixed(8), 0),
                ("QUEUED", Fixed(9), 0),
                ("JOBS", Fixed(7), 0),
                ("PER CALLER", Fixed(10), 0),
                ("CHANGED BY", Share(1), 110),
            ],
        }
    }
}

impl Row {
    /// Returns what identifies the row in its table.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Node(view) => view.node.to_string(),
            Self::Job(view) => view.job.to_string(),
            Self::Service(view) => view.service.to_string(),
            Self::Event { revision, .. } => revision.0.to_string(),
            Self::Volume(view) => view.volume.to_string(),
            Self::Task(view) => view.task.index.to_string(),
            Self::Attempt(_, view) => view.number.to_string(),
            // During an update, replicas of two revisions have the same number.
            Self::Replica(_, view) => format!("{}@{}", view.number, view.revision),
            Self::Schedule(view) => view.schedule.to_string(),
            Self::Run(view) => view.number.to_string(),
            Self::Workflow(view) => view.workflow.to_string(),
            Self::WorkflowJob(line) => line.job.to_string(),
            Self::Queue(view) => view.queue.to_string(),
        }
    }

    /// Returns the position in a list that is asked for in parts.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::Job(view) => view.job.0,
            Self::Task(view) => u64::from(view.task.index),
            Self::Workflow(view) => view.workflow.0,
            _ => 0,
        }
    }

    /// Returns the job that the row is about.
    pub(super) fn job(&self) -> Option<JobId> {
        match self {
            Self::Job(view) => Some(view.job),
            Self::Event { fact, .. } => fact.job(),
            Self::Task(view) => Some(view.task.job),
            Self::Attempt(task, _) => Some(task.job),
            Self::Replica(_, view) => view.attempt.map(|attempt| attempt.task.job),
            Self::Run(view) => view.job,
            Self::WorkflowJob(line) => Some(line.job),
            Self::Node(_)
            | Self::Service(_)
            | Self::Volume(_)
            | Self::Schedule(_)
            | Self::Workflow(_)
            | Self::Queue(_) => None,
        }
    }

    /// Returns whether a column contains the filter, in any case of letters.
    pub(super) fn matches(&self, filter: &str) -> bool {
        let filter = filter.to_lowercase();
        filter.is_empty()
            || self.cells(0).iter().any(|cell| cell.text.to_lowercase().contains(&filter))
    }

    /// Returns the texts of the columns, safe for a terminal.
    pub(super) fn cells(&self, now: u64) -> Vec<Cell> {
        match self {
            Self::Node(view) => node(view),
            Self::Job(view) => job(view, now),
            Self::Service(view) => {
                let project = view.project.as_ref();
                let healthy = format!("{}/{}", view.healthy, view.replicas);
                vec![
                    Cell::plain(&view.service),
                    Cell::state(&ServiceState::from(&view.state)),
                    Cell::bar(view.healthy.into(), view.replicas.into(), healthy),
                    Cell::plain(view.revision),
                    Cell::plain(project.map(|project| &project.name).map_or("", Name::as_str)),
                    Cell::plain(published(&view.published)),
                    Cell::plain(escape(&view.runs)),
                ]
            }
            Self::Event { revision, wall_ms, fact } => vec![
                Cell::plain(revision.0),
                Cell::plain(local_clock(*wall_ms)),
                Cell::plain(describe(fact)),
            ],
            Self::Volume(view) => {
                let services = view.services.iter().map(ToString::to_string);
                let jobs = view.jobs.iter().map(|job| format!("job {job}"));
                let users: Vec<String> = services.chain(jobs).collect();
                let used = if view.removing { "is being removed".into() } else { users.join(", ") };
                vec![
                    Cell::plain(&view.volume),
                    Cell::plain(&view.node),
                    Cell::plain(local(view.created_wall_ms)),
                    Cell::plain(used),
                ]
            }
            Self::Task(view) => {
                let last = view.last.as_ref();
                vec![
                    Cell::plain(view.task),
                    Cell::state(&TaskState::from(&view.state)),
                    Cell::plain(view.attempts),
                    Cell::plain(last.map_or("", |last| last.node.as_str())),
                    Cell::plain(last.map(exit).unwrap_or_default()),
                    Cell::plain(last.map(progress).unwrap_or_default()),
                ]
            }
            Self::Attempt(_, view) => vec![
                Cell::plain(format!("#{}", view.number)),
                Cell::state(&AttemptState::from(&view.state)),
                Cell::plain(&view.node),
                Cell::plain(exit(view)),
                Cell::plain(local(view.assigned_wall_ms)),
                Cell::plain(view.outcome.as_ref().map(outcome_text).unwrap_or_default()),
            ],
            Self::Replica(service, view) => replica(service, view),
            Self::Schedule(view) => schedule(view),
            Self::Run(view) => {
                let times = if view.count > 1 { view.count.to_string() } else { String::new() };
                vec![
                    Cell::plain(local(view.instant_ms)),
                    Cell::state(&RunResult::from(&view.result)),
                    Cell::plain(times),
                    Cell::plain(view.job.map(|job| job.to_string()).unwrap_or_default()),
                    Cell::plain(view.message.as_deref().map(escape).unwrap_or_default()),
                ]
            }
            Self::Workflow(view) => workflow(view, now),
            Self::WorkflowJob(line) => vec![
                Cell::plain(line.job),
                Cell::plain(&line.name),
                Cell::word(&line.state),
                Cell::plain(&line.after),
                Cell::plain(&line.waits_for),
            ],
            Self::Queue(view) => queue(view),
        }
    }
}

/// Returns the exit code, or the signal as `-9`.
fn exit(view: &AttemptView) -> String {
    let Some(outcome) = &view.outcome else { return String::new() };
    match (outcome.exit_code, outcome.signal) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => format!("-{signal}"),
        (None, None) => String::new(),
    }
}

/// Returns what an attempt does, or how it ended.
fn progress(view: &AttemptView) -> String {
    match &view.outcome {
        Some(outcome) => outcome_text(outcome),
        None => AttemptState::from(&view.state).word().into_owned(),
    }
}

/// Returns the labels of a node: `disk=fast,zone=a`.
pub(super) fn labels(view: &NodeView) -> String {
    let labels: Vec<String> =
        view.labels.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    labels.join(",")
}

fn node(view: &NodeView) -> Vec<Cell> {
    let (free, capacity) = (&view.free, &view.capacity);
    let used_cpus = capacity.cpu_millis.saturating_sub(free.cpu_millis);
    let used_memory = capacity.memory_bytes.saturating_sub(free.memory_bytes);
    let cpus = format!("{}/{}", cores(used_cpus), cores(capacity.cpu_millis));
    let memory = format!("{}/{}", size(used_memory), size(capacity.memory_bytes));
    let runtimes: Vec<String> = view.runtimes.iter().map(ToString::to_string).collect();
    vec![
        Cell::plain(&view.node),
        Cell::state(&NodeState::from(&view.state)),
        Cell::state(&Scheduling::from(&view.scheduling)),
        Cell::bar(used_cpus.into(), capacity.cpu_millis.into(), cpus),
        Cell::bar(used_memory, capacity.memory_bytes, memory),
        Cell::plain(view.attempts),
        Cell::plain(runtimes.join(",")),
        Cell::plain(view.address.as_deref().map(escape).unwrap_or_default()),
        Cell::plain(labels(view)),
    ]
}

fn job(view: &JobView, now: u64) -> Vec<Cell> {
    let counts = &view.counts;
    let done = format!("{}/{}", counts.ended(), counts.total());
    let took = match (view.started_wall_ms, view.ended_wall_ms) {
        (Some(started), Some(ended)) => coarse(ended.saturating_sub(started)),
        (Some(started), None) => coarse(now.saturating_sub(started)),
        (None, _) => String::new(),
    };
    vec![
        Cell::plain(view.job),
        Cell::plain(&view.name),
        Cell::state(&JobState::from(&view.state)),
        Cell::bar(counts.ended(), counts.total(), done),
        Cell::bad(counts.failed),
        Cell::plain(ago(now, view.submitted_wall_ms)),
        Cell::plain(view.submitted_by.as_ref().map_or("", Name::as_str)),
        Cell::plain(took),
    ]
}

fn replica(service: &Name, view: &ReplicaView) -> Vec<Cell> {
    let endpoints: Vec<String> =
        view.endpoints.iter().map(|(port, at)| format!("{port}={}", escape(at))).collect();
    let mut message = view.message.as_deref().map(escape).unwrap_or_default();
    if let Some(ms) = view.restarts_in_ms {
        let gap = if message.is_empty() { "" } else { "; " };
        message = format!("restarts in {}{gap}{message}", coarse(ms));
    }
    let job = view.attempt.map(|attempt| attempt.task.job.to_string());
    vec![
        Cell::plain(format!("{service}.{}", view.number)),
        Cell::plain(view.revision),
        Cell::state(&ReplicaState::from(&view.state)),
        Cell::plain(view.node.as_ref().map_or("", Name::as_str)),
        Cell::plain(job.unwrap_or_default()),
        Cell::plain(endpoints.join(",")),
        Cell::bad(view.failures),
        Cell::plain(message),
    ]
}

fn schedule(view: &ScheduleView) -> Vec<Cell> {
    let state = match view {
        ScheduleView { paused: true, .. } => "paused",
        ScheduleView { active: 1.., .. } => "running",
        ScheduleView { waiting: true, .. } => "waiting",
        _ => "idle",
    };
    let time = |ms: Option<u64>| Cell::plain(ms.map(local).unwrap_or_default());
    vec![
        Cell::plain(&view.schedule),
        Cell::word(state),
        Cell::plain(when(view)),
        time(view.next_wall_ms),
        time(view.last_wall_ms),
        Cell::plain(view.last_job.map(|job| job.to_string()).unwrap_or_default()),
        Cell::plain(view.ran),
        Cell::plain(view.skipped),
        Cell::bad(view.missed),
    ]
}

fn workflow(view: &WorkflowView, now: u64) -> Vec<Cell> {
    let counts = &view.counts;
    let ended = counts.succeeded + counts.failed + counts.cancelled;
    vec![
        Cell::plain(view.workflow),
        Cell::plain(&view.name),
        Cell::bar(ended.into(), view.jobs.into(), format!("{ended}/{}", view.jobs)),
        Cell::some(counts.queued),
        Cell::some(counts.running),
        Cell::bad(counts.failed),
        Cell::plain(ago(now, view.submitted_wall_ms)),
        Cell::plain(&view.submitted_by),
    ]
}

fn queue(view: &QueueView) -> Vec<Cell> {
    let per_caller = view.max_active_per_caller.map(|max| max.to_string());
    vec![
        Cell::plain(&view.queue),
        Cell::word(if view.paused { "paused" } else { "open" }),
        Cell::plain(view.weight),
        Cell::plain(queue_table::of(view.active, view.max_active)),
        Cell::plain(queue_table::cpus(view.active_cpu_millis)),
        Cell::plain(view.queued),
        Cell::plain(view.jobs),
        Cell::plain(per_caller.unwrap_or_default()),
        Cell::plain(view.by.as_ref().map_or("", Name::as_str)),
    ]
}
