use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::report::{JobState, TaskCounts};
use podmesh_protocol::spec::RuntimeKind;
use podmesh_protocol::word::MaybeKnown;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::output::time::local;
use crate::top::example::{self, NOW};
use crate::top::keys::Key;
use crate::top::model::Input;
use crate::top::row::Row;
use crate::top::subject::{Answer, At, Part, Query};
use crate::verbs::service::example as service;

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (120, 40);
const TABS_SHOWN: &str =
    "1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues";

fn terminal(model: &Model, (width, height): (u16, u16), color: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, Theme { color }, NOW)).unwrap();
    terminal
}

/// Returns the lines of the screen, without the blanks at their ends.
fn screen(model: &Model, size: (u16, u16)) -> Vec<String> {
    let terminal = terminal(model, size, false);
    let buffer = terminal.backend().buffer();
    let line = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..size.1).map(|y| line(y).trim_end().to_owned()).collect()
}

/// Checks the lines of the screen that are not empty.
fn assert_screen(model: &Model, size: (u16, u16), expected: &str) {
    let mut shown = screen(model, size);
    shown.retain(|line| !line.is_empty());
    let shown = shown.join("\n");
    assert!(shown == expected.trim(), "\n{shown}\n");
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        let key = if key == '\n' { Key::Enter } else { Key::Char(key) };
        model.update(Input::Key(key));
    }
}

fn answer(model: &mut Model, answer: Answer) {
    let query = model.page().query().unwrap();
    model.update(Input::Answer(query, Ok(answer)));
}

fn nodes(size: (u16, u16)) -> Model {
    let mut model = Model::new(size);
    let mut drained = example::node("node-2", 4);
    drained.scheduling = Scheduling::Draining.into();
    drained.withdrawn =
        [(MaybeKnown::Known(RuntimeKind::Docker), "no engine\u{1b}[31m".to_owned())].into();
    let rows = [example::node("node-1", 1), drained];
    answer(&mut model, Answer::Rows(rows.map(|view| Row::Node(Box::new(view))).into()));
    model
}

fn jobs(size: (u16, u16)) -> Model {
    let mut model = Model::new(size);
    press(&mut model, "2");
    let rows = vec![example::job(3), Row::Job(Box::new(example::array(2)))];
    answer(&mut model, Answer::Part(Part { rows, at: At::Start, next: None }));
    press(&mut model, "j");
    let detail = example::job_detail(example::array(2), "no node has 4 free cpus");
    model.update(Input::Answer(Query::Job(JobId(2)), Ok(Answer::Job(Box::new(detail)))));
    model
}

#[test]
fn nodes_show_their_room_and_why_they_take_no_work() {
    let mut model = nodes(SMALL);
    press(&mut model, "j");
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Nodes  2 of 2 alive · free: 3/8 cpus, 12.0GiB/16.0GiB · 5 attempts
NODE       STATE   SCHEDULING CPUS USED      MEMORY USED           RUN   LABELS
node-1     alive   open       [|    ] 1/4    [|    ] 2.0GiB/8.0GiB 1     zone=a
node-2     alive   draining   [|||||] 4/4    [|    ] 2.0GiB/8.0GiB 4     zone=a
takes no work for docker: no engine\u{1b}[31m
Enter details  c cordon  u uncordon  D drain  / filter  ? help  q quit
",
    );
    assert_screen(
        &nodes(LARGE),
        LARGE,
        r"
podmesh  1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Nodes  2 of 2 alive · free: 3/8 cpus, 12.0GiB/16.0GiB · 5 attempts
NODE            STATE   SCHEDULING CPUS USED      MEMORY USED           RUN   RUNTIMES        ADDRESS         LABELS
node-1          alive   open       [|    ] 1/4    [|    ] 2.0GiB/8.0GiB 1     process,docker  10.0.0.1        zone=a
node-2          alive   draining   [|||||] 4/4    [|    ] 2.0GiB/8.0GiB 4     process,docker  10.0.0.1        zone=a
Enter details  c cordon  u uncordon  D drain  / filter  ? help  q quit
",
    );
}

#[test]
fn jobs_show_their_progress_and_why_they_wait() {
    assert_screen(
        &jobs(SMALL),
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Jobs
JOB      NAME        STATE      DONE                FAILED SUBMITTED BY   TOOK
3        job-3       running    [     ] 0/1                3min ago  anna 100s
2        job-2       running    [||   ] 56/100      2      3min ago  anna 100s
waits: no node has 4 free cpus
Enter tasks  l logs  d describe  x cancel  a active  / filter  ? help  q quit
",
    );
    let mut model = jobs(LARGE);
    press(&mut model, "\n");
    let tasks = vec![example::task(2, 1, Some(3)), example::task(2, 2, None)];
    answer(&mut model, Answer::Part(Part { rows: tasks, ..Part::default() }));
    let detail = example::job_detail(example::array(2), "no node has 4 free cpus");
    model.update(Input::Answer(Query::Job(JobId(2)), Ok(Answer::Job(Box::new(detail)))));
    assert_screen(
        &model,
        LARGE,
        r"
podmesh  1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Jobs > Job 2 (job-2)  2 failed, 4 active, 40 queued, 54 succeeded
TASK           STATE     ATTEMPTS NODE                 EXIT  LAST ATTEMPT
2.1            failed    1        node-1               3     failed, exit code 3
2.2            active    1        node-1                     running
waits: no node has 4 free cpus
Enter attempts  l logs  o by state  x cancel job  Esc back  / filter  ? help  q quit
",
    );
}

#[test]
fn services_show_their_replicas_and_what_went_wrong() {
    let mut model = Model::new(SMALL);
    press(&mut model, "3");
    let mut detail = service::detail();
    answer(&mut model, Answer::Rows(vec![Row::Service(Box::new(detail.view.clone()))]));
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Services
SERVICE          STATE        HEALTHY         REVISION PROJECT  PUBLISHED
web              degraded     [||   ] 1/2     4                 http=8080
Enter replicas  l logs  d describe  s scale  r restart  R rollback  / filter  ?
",
    );
    press(&mut model, "\n");
    detail.failed_update = Some("revision 5 was not healthy in 60s".into());
    detail.replicas[1].message = Some("exit code 3\u{1b}]0;x\u{7}".into());
    detail.replicas[1].failures = 4;
    detail.replicas[1].restarts_in_ms = Some(3_000);
    answer(&mut model, Answer::Service(Box::new(detail)));
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Services > Service web  1 of 2 healthy
REPLICA     REV  STATE       NODE        JOB     FAILURES MESSAGE
web.1       4    healthy     node-1      7
web.2       4    restarting  node-1      8       4        restarts in 3.0s; exit
the update failed: revision 5 was not healthy in 60s
l logs  d describe  s scale  r restart  R rollback  Esc back  / filter  ? help
",
    );
    press(&mut model, "s");
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Services > Service web  1 of 2 healthy
REPLICA     REV  STATE       NODE        JOB     FAILURES MESSAGE
web.1       4    healthy     node-1      7
web.2       4    restarting  node-1      8       4        restarts in 3.0s; exit
  ┌ Scale ───────────────────────────────────────────────────────────────────┐
  │How many replicas of web? 2_                                              │
  │                                                                          │
  │The same as: podmesh service scale web 2                                  │
  │                                                                          │
  │Enter set  Esc do not                                                     │
  └──────────────────────────────────────────────────────────────────────────┘
the update failed: revision 5 was not healthy in 60s
l logs  d describe  s scale  r restart  R rollback  Esc back  / filter  ? help
",
    );
}

#[test]
fn volumes_and_events_are_lists() {
    let mut model = Model::new(SMALL);
    press(&mut model, "5");
    answer(&mut model, Answer::Rows(vec![Row::Volume(Box::new(example::volume("data")))]));
    let lines = screen(&model, SMALL);
    assert!(lines[3].starts_with("data "), "{}", lines[3]);
    assert!(lines[3].ends_with("db, job 7"), "{}", lines[3]);
    press(&mut model, "4");
    model.update(Input::Events((1..=50).map(example::event).collect()));
    let lines = screen(&model, SMALL);
    assert!(lines[20].ends_with("job 50 is being cancelled"), "{}", lines[20]);
}

#[test]
fn schedules_show_when_they_run_and_what_became_of_it() {
    let mut model = Model::new(SMALL);
    press(&mut model, "6");
    let rows = [example::schedule("backup", false), example::schedule("poll", true)];
    answer(&mut model, Answer::Rows(rows.map(|view| Row::Schedule(Box::new(view))).into()));
    let next = local(NOW + 60_000);
    assert_screen(
        &model,
        SMALL,
        &format!(
            r"
{TABS_SHOWN}
Schedules
SCHEDULE       STATE   WHEN                   NEXT                JOB     MISSED
backup         idle    0 3 * * * UTC          {next} 7       2
poll           paused  0 3 * * * UTC                              7       2
Enter runs  d describe  p pause, resume  / filter  ? help  q quit
"
        ),
    );
    press(&mut model, "p");
    let lines = screen(&model, SMALL).join("\n");
    assert!(lines.contains("The same as: podmesh schedule pause backup"), "{lines}");
    press(&mut model, "n\n");
    let detail = example::schedule_detail(example::schedule("backup", false));
    answer(&mut model, Answer::Runs(Box::new(detail), example::runs()));
    let (first, second) = (local(NOW), local(NOW - 60_000));
    assert_screen(
        &model,
        SMALL,
        &format!(
            r"
{TABS_SHOWN}
Schedules > Schedule backup  next at {next}
FOR                 RESULT   TIMES  JOB      WHY
{first} ran             7
{second} missed   2               the manager was away
Enter job  l logs  p pause, resume  Esc back  / filter  ? help  q quit
"
        ),
    );
}

#[test]
fn workflows_show_their_jobs_and_which_can_never_run() {
    let mut model = Model::new(SMALL);
    press(&mut model, "7");
    let rows = vec![Row::Workflow(Box::new(example::workflow(40)))];
    answer(&mut model, Answer::Part(Part { rows, ..Part::default() }));
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Workflows
WORKFLOW NAME           DONE                QUEUED RUNNING FAILED SUBMITTED BY
40       nightly        [|||  ] 2/3         1              1      3min ago  anna
Enter jobs  d describe  x cancel  / filter  ? help  q quit
",
    );
    press(&mut model, "\n");
    answer(&mut model, Answer::Rows(example::workflow_jobs()));
    press(&mut model, "jj");
    let counts = TaskCounts { queued: 1, ..TaskCounts::default() };
    let waits =
        example::job_detail(example::job_view(42, JobState::Queued, counts), "upstream 41 failed");
    model.update(Input::Answer(Query::Job(JobId(42)), Ok(Answer::Job(Box::new(waits)))));
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Workflows > Workflow 40
JOB      NAME            STATE      AFTER                 WAITS FOR
40       build           succeeded
41       test            failed     build
42       ship            blocked    build, test           test
waits: upstream 41 failed
Enter tasks  l logs  d describe  x cancel job  Esc back  / filter  ? help  q qui
",
    );
}

#[test]
fn queues_show_their_limits_and_what_a_pause_holds_back() {
    let mut model = Model::new(SMALL);
    press(&mut model, "8");
    let rows = [example::queue("default", false), example::queue("night", true)];
    answer(&mut model, Answer::Rows(rows.map(|view| Row::Queue(Box::new(view))).into()));
    press(&mut model, "j");
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Queues
QUEUE          STATE  WEIGHT ACTIVE        CPUS     QUEUED    JOBS    PER CALLER
default        open   3      2 of 100      1.5      12        4       20
night          paused 3      2 of 100      1.5      12        4       20
12 tasks wait until the queue is resumed
Enter details  p pause, resume  / filter  ? help  q quit
",
    );
    press(&mut model, "p");
    let lines = screen(&model, SMALL).join("\n");
    assert!(lines.contains("The same as: podmesh queue resume night"), "{lines}");
}

#[test]
fn a_question_shows_the_command_that_does_the_same() {
    let mut model = jobs(SMALL);
    press(&mut model, "x");
    assert_screen(
        &model,
        SMALL,
        r"
1 Nodes 2 Jobs 3 Services 4 Events 5 Volumes 6 Schedules 7 Workflows 8 Queues
Jobs
JOB      NAME        STATE      DONE                FAILED SUBMITTED BY   TOOK
3        job-3       running    [     ] 0/1                3min ago  anna 100s
2        job-2       running    [||   ] 56/100      2      3min ago  anna 100s
  ┌ Sure? ───────────────────────────────────────────────────────────────────┐
  │Cancel job 2? Queued tasks never start, running tasks are stopped.        │
  │                                                                          │
  │The same as: podmesh cancel 2                                             │
  │                                                                          │
  │y yes  n no                                                               │
  └──────────────────────────────────────────────────────────────────────────┘
waits: no node has 4 free cpus
Enter tasks  l logs  d describe  x cancel  a active  / filter  ? help  q quit
",
    );
    press(&mut model, "n?");
    let lines = screen(&model, SMALL);
    for (key, what) in crate::top::keys::HELP {
        let line = format!("{key:<11} {what}");
        assert!(lines.iter().any(|shown| shown.contains(&line)), "{line}: {}", lines.join("\n"));
    }
}

#[test]
fn a_log_shows_what_a_search_found() {
    let mut model = jobs(SMALL);
    press(&mut model, "kl");
    for n in 1..=50 {
        model.update(Input::Output(LogStream::Stdout, format!("line {n}\n").into_bytes()));
    }
    model.update(Input::Output(LogStream::Stderr, b"bad \x1b[2J\xff\n".to_vec()));
    let lines = screen(&model, SMALL);
    let title = "Jobs > Logs of job 3  line 51 of 51; following · podmesh logs 3";
    assert_eq!((lines[1].as_str(), lines[22].as_str()), (title, "bad \\u{1b}[2J\u{fffd}"));
    press(&mut model, "/LINE 7\n");
    let lines = screen(&model, SMALL);
    assert_eq!(lines[2], "line 7");
    let shown = terminal(&model, SMALL, false);
    let first = &shown.backend().buffer()[(0, 2)];
    assert!(first.modifier.contains(Modifier::REVERSED));
}

#[test]
fn an_error_and_an_absent_manager_are_shown() {
    let mut model = nodes(SMALL);
    let query = model.page().query().unwrap();
    model.update(Input::Answer(query, Err("this needs the role viewer".into())));
    model.update(Input::Gone(true));
    let lines = screen(&model, SMALL);
    assert!(lines[0].ends_with("  manager away"), "{}", lines[0]);
    assert_eq!(lines[23], "this needs the role viewer");
    // What was known stays.
    assert!(lines[3].starts_with("node-1"), "{}", lines[3]);
}

#[test]
fn colour_is_used_only_if_it_is_wanted() {
    let model = jobs(SMALL);
    let colors = |color| {
        let terminal = terminal(&model, SMALL, color);
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colors(false), 0);
    assert!(colors(true) > 0);
}

#[test]
fn no_terminal_is_too_small() {
    for size in [(1, 1), (3, 2), (10, 5), (20, 7), (500, 3)] {
        let mut model = jobs(size);
        for keys in ["", "x", "n", "?", "q", "/a", "\n", "l", "G", "d"] {
            press(&mut model, keys);
            screen(&model, size);
        }
    }
}
