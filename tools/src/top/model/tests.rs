use podmesh_protocol::ids::JobId;
use podmesh_protocol::report::{JobState, TaskCounts, TaskState};

use super::*;
use crate::top::example::{self, NOW};
use crate::top::subject::{About, At, Part};
use crate::verbs::service::example as service;

fn model() -> Model {
    Model::new((80, 24))
}

/// Presses keys; nothing must be done for any of them.
fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        let key = match key {
            '\n' => Key::Enter,
            '\u{1b}' => Key::Escape,
            '\u{8}' => Key::Backspace,
            c => Key::Char(c),
        };
        assert_eq!(model.update(Input::Key(key)), None, "{key:?}");
    }
}

fn answer(model: &mut Model, answer: Answer) {
    let query = model.page().query().unwrap();
    model.update(Input::Answer(query, Ok(answer)));
}

fn jobs(model: &mut Model, rows: Vec<Row>) {
    answer(model, Answer::Part(Part { rows, at: At::Start, next: None }));
}

/// A model with a running job 3, an array 2 and a running job 1, on the page of the jobs.
fn with_jobs() -> Model {
    let mut model = model();
    press(&mut model, "2");
    let array = Row::Job(Box::new(example::array(2)));
    jobs(&mut model, vec![example::job(3), array, example::job(1)]);
    model
}

fn with_service() -> Model {
    let mut model = model();
    press(&mut model, "3");
    answer(&mut model, Answer::Rows(vec![Row::Service(Box::new(service::detail().view))]));
    model
}

#[test]
fn each_page_asks_for_what_it_shows() {
    let mut model = model();
    assert_eq!(model.wanted(), [Some(Query::Nodes), None]);
    let jobs = |active| Some(Query::Jobs { at: At::Start, active, filter: String::new() });
    press(&mut model, "2");
    assert_eq!(model.wanted(), [jobs(false), None]);
    press(&mut model, "a");
    assert_eq!(model.wanted(), [jobs(true), None]);
    model.update(Input::Key(Key::Tab));
    assert_eq!(model.wanted()[0], Some(Query::Services));
    press(&mut model, "4");
    assert_eq!(model.wanted(), [None, None]);
    for _ in 0..5 {
        model.update(Input::Key(Key::Tab));
    }
    assert_eq!(model.tab, 0);
    model.update(Input::Key(Key::BackTab));
    assert_eq!(model.wanted()[0], Some(Query::Queues));
    model.update(Input::Key(Key::BackTab));
    let workflows = Query::Workflows { at: At::Start, filter: String::new() };
    assert_eq!(model.wanted()[0], Some(workflows));
    press(&mut model, "6");
    assert_eq!(model.wanted()[0], Some(Query::Schedules));
    press(&mut model, "9");
    assert_eq!(model.wanted()[0], Some(Query::Schedules));
}

#[test]
fn enter_opens_and_escape_goes_back() {
    let mut model = with_jobs();
    // Only of a job with queued tasks it is asked why they wait.
    assert_eq!(model.wanted()[1], None);
    press(&mut model, "j");
    assert_eq!(model.wanted()[1], Some(Query::Job(JobId(2))));
    press(&mut model, "\n");
    assert_eq!(model.path(), ["Jobs", "Job 2"]);
    let tasks = vec![example::task(2, 1, Some(3)), example::task(2, 2, None)];
    answer(&mut model, Answer::Part(Part { rows: tasks, ..Part::default() }));
    press(&mut model, "\n");
    let task = podmesh_protocol::ids::TaskId { job: JobId(2), index: 1 };
    assert_eq!(model.wanted()[0], Some(Query::Attempts(task)));
    let attempt = Row::Attempt(task, Box::new(example::attempt(1, None)));
    answer(&mut model, Answer::Rows(vec![attempt]));
    press(&mut model, "\n");
    assert_eq!(model.source().map(Source::argument).as_deref(), Some("'2.1#1'"));
    assert_eq!(model.wanted(), [None, None]);
    press(&mut model, "\u{1b}\u{1b}\u{1b}");
    // The selection is still where it was.
    assert_eq!(model.page().selected().unwrap().job(), Some(JobId(2)));
    press(&mut model, "\u{1b}");
    assert_eq!(model.path(), ["Jobs"]);
}

#[test]
fn an_answer_to_another_question_is_ignored() {
    let mut model = with_jobs();
    let before = model.page().query().unwrap();
    press(&mut model, "a");
    let rows = vec![example::job(9)];
    model.update(Input::Answer(before, Ok(Answer::Part(Part { rows, ..Part::default() }))));
    assert_eq!(model.page().selected().unwrap().job(), Some(JobId(3)));
    model.update(Input::Answer(Query::Nodes, Err("no".into())));
    assert_eq!(model.page().error, None);
    // An error stays until there is an answer.
    let query = model.page().query().unwrap();
    model.update(Input::Answer(query, Err("the role is too low".into())));
    press(&mut model, "j");
    assert_eq!(model.page().error.as_deref(), Some("the role is too low"));
    jobs(&mut model, vec![example::job(9)]);
    assert_eq!(model.page().error, None);
}

#[test]
fn nothing_is_changed_before_the_user_says_yes() {
    let mut model = with_jobs();
    press(&mut model, "x");
    let cancel = Action::Cancel(JobId(3));
    assert_eq!(model.prompt, Some(Prompt::Confirm(cancel.clone())));
    // Other keys are no answer, and do nothing else meanwhile.
    press(&mut model, "\nj2x");
    assert_eq!(model.prompt, Some(Prompt::Confirm(cancel.clone())));
    press(&mut model, "n");
    assert_eq!(model.prompt, None);
    press(&mut model, "x");
    assert_eq!(model.update(Input::Key(Key::Char('y'))), Some(Command::Do(cancel)));
    model.update(Input::Done(Err("this needs the role operator".into())));
    let refused = Status { text: "this needs the role operator".into(), bad: true };
    assert_eq!(model.status, Some(refused));
    // The keys of other things say why nothing happens.
    for key in ["s", "r", "R", "c", "u", "D", "p"] {
        press(&mut model, key);
        assert_eq!(model.prompt, None);
        assert!(model.status.as_ref().unwrap().text.contains("is selected here"));
    }
}

#[test]
fn services_are_scaled_restarted_and_rolled_back() {
    let mut model = with_service();
    let web: Name = "web".parse().unwrap();
    press(&mut model, "s\u{8}x12345");
    let digits = "1234".to_owned();
    assert_eq!(model.prompt, Some(Prompt::Scale { service: web.clone(), digits }));
    press(&mut model, "\n");
    assert!(model.status.as_ref().unwrap().bad);
    press(&mut model, "s\u{8}7");
    let scaled = model.update(Input::Key(Key::Enter));
    assert_eq!(scaled, Some(Command::Do(Action::Scale(web.clone(), 7))));
    // On the page of the replicas, too.
    press(&mut model, "\n");
    answer(&mut model, Answer::Service(Box::new(service::detail())));
    for (key, action) in [("r", Action::Restart(web.clone())), ("R", Action::Rollback(web))] {
        press(&mut model, key);
        assert_eq!(model.update(Input::Key(Key::Char('y'))), Some(Command::Do(action)));
    }
    press(&mut model, "l");
    assert_eq!(model.source().map(Source::argument).as_deref(), Some("web.1"));
}

#[test]
fn nodes_are_cordoned_drained_and_opened() {
    let mut model = model();
    answer(&mut model, Answer::Rows(vec![Row::Node(Box::new(example::node("node-1", 1)))]));
    for (key, command) in [
        ("c", "podmesh nodes cordon node-1"),
        ("D", "podmesh nodes drain node-1"),
        ("u", "podmesh nodes uncordon node-1"),
    ] {
        press(&mut model, key);
        match model.update(Input::Key(Key::Char('y'))) {
            Some(Command::Do(action)) => assert_eq!(action.command(), command),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_filter_is_typed_and_ends_with_escape() {
    let mut model = with_service();
    press(&mut model, "/q");
    let length = |model: &Model| match &model.page().body {
        Body::Table(table) => table.len(),
        Body::Pager(_) => panic!("a table"),
    };
    assert_eq!(length(&model), 0);
    press(&mut model, "\u{8}WE\n");
    assert_eq!((length(&model), &model.prompt), (1, &None));
    // Escape ends the filter first.
    press(&mut model, "\u{1b}");
    assert_eq!((model.filter(), model.path().len()), ("", 1));
    // A long list is filtered where it is read.
    press(&mut model, "2/x");
    assert!(matches!(&model.wanted()[0], Some(Query::Jobs { filter, .. }) if filter == "x"));
}

#[test]
fn the_tasks_of_one_state_are_chosen_from_those_that_there_are() {
    let mut model = with_jobs();
    press(&mut model, "j\n");
    let detail = example::job_detail(example::array(2), "no node has room");
    model.update(Input::Answer(Query::Job(JobId(2)), Ok(Answer::Job(Box::new(detail)))));
    let states = [
        Some(TaskState::Failed),
        Some(TaskState::Active),
        Some(TaskState::Queued),
        Some(TaskState::Succeeded),
        None,
    ];
    for expected in states {
        press(&mut model, "o");
        let Some(Query::Tasks { state, .. }) = &model.wanted()[0] else { panic!("tasks") };
        assert_eq!(*state, expected);
    }
}

#[test]
fn an_array_has_no_single_log_and_a_node_has_none() {
    let mut model = with_jobs();
    press(&mut model, "l");
    assert_eq!(model.source(), Some(&Source::Job(JobId(3))));
    model.update(Input::Output(LogStream::Stdout, b"one\ntwo\n".to_vec()));
    model.update(Input::OutputEnd(String::new()));
    let Body::Pager(pager) = &model.page().body else { panic!("a text") };
    assert_eq!((pager.len(), &pager.ended), (2, &Some(String::new())));
    press(&mut model, "\u{1b}jl");
    assert_eq!((model.source(), model.path().len()), (None, 2));
    press(&mut model, "1");
    answer(&mut model, Answer::Rows(vec![Row::Node(Box::new(example::node("a", 1)))]));
    press(&mut model, "l");
    assert_eq!(model.source(), None);
}

#[test]
fn control_c_quits_even_while_something_is_asked() {
    let mut model = with_jobs();
    press(&mut model, "x");
    assert_eq!(model.update(Input::Key(Key::Interrupt)), Some(Command::Quit));
    press(&mut model, "n?");
    // Any key closes the help, also q.
    press(&mut model, "q");
    assert_eq!(model.update(Input::Key(Key::Char('q'))), Some(Command::Quit));
}

#[test]
fn a_job_that_waits_shows_why() {
    let mut model = model();
    press(&mut model, "2");
    let counts = TaskCounts { queued: 1, ..TaskCounts::default() };
    let view = example::job_view(1, JobState::Queued, counts);
    jobs(&mut model, vec![Row::Job(Box::new(view.clone()))]);
    let detail = example::job_detail(view, "no node has room\u{1b}");
    model.update(Input::Answer(Query::Job(JobId(1)), Ok(Answer::Job(Box::new(detail)))));
    assert_eq!(model.page().remarks(), ["waits: no node has room\\u{1b}"]);
    assert_eq!(model.page().selected().unwrap().cells(NOW)[5].text, "3min ago");
}

/// Presses a key and says yes. Returns what is to be done.
fn confirmed(model: &mut Model, key: &str) -> String {
    press(model, key);
    match model.update(Input::Key(Key::Char('y'))) {
        Some(Command::Do(action)) => action.command(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn schedules_and_queues_are_paused_and_resumed() {
    let mut model = model();
    press(&mut model, "6");
    let rows = [example::schedule("backup", false), example::schedule("poll", true)];
    answer(&mut model, Answer::Rows(rows.map(|view| Row::Schedule(Box::new(view))).into()));
    assert_eq!(confirmed(&mut model, "p"), "podmesh schedule pause backup");
    press(&mut model, "j");
    assert_eq!(confirmed(&mut model, "p"), "podmesh schedule resume poll");
    press(&mut model, "d");
    assert_eq!(model.wanted()[0], Some(Query::About(About::Schedule("poll".parse().unwrap()))));
    // On the page of its runs, too, as soon as its state is known.
    press(&mut model, "\u{1b}\n");
    assert_eq!(model.wanted()[0], Some(Query::Runs("poll".parse().unwrap())));
    press(&mut model, "p");
    assert_eq!(model.prompt, None);
    let detail = example::schedule_detail(example::schedule("poll", true));
    answer(&mut model, Answer::Runs(Box::new(detail), example::runs()));
    assert_eq!(confirmed(&mut model, "p"), "podmesh schedule resume poll");
    // A run opens its job; one that did not run has none.
    press(&mut model, "\n");
    assert_eq!(model.path(), ["Schedules", "Schedule poll", "Job 7"]);
    press(&mut model, "\u{1b}j\n");
    assert_eq!(model.path(), ["Schedules", "Schedule poll"]);

    press(&mut model, "8");
    let rows = [example::queue("default", false), example::queue("night", true)];
    answer(&mut model, Answer::Rows(rows.map(|view| Row::Queue(Box::new(view))).into()));
    assert_eq!(confirmed(&mut model, "p"), "podmesh queue pause default");
    press(&mut model, "j");
    assert_eq!(confirmed(&mut model, "p"), "podmesh queue resume night");
    press(&mut model, "\n");
    assert_eq!(model.wanted()[0], Some(Query::About(About::Queue("night".parse().unwrap()))));
}

#[test]
fn a_question_stays_about_the_row_that_was_selected_when_it_was_asked() {
    let mut model = model();
    press(&mut model, "8");
    let queues = |names: &[&str]| {
        let row = |name: &&str| Row::Queue(Box::new(example::queue(name, false)));
        Answer::Rows(names.iter().map(row).collect())
    };
    answer(&mut model, queues(&["day", "night"]));
    press(&mut model, "p");
    assert!(matches!(&model.prompt, Some(Prompt::Confirm(Action::PauseQueue(..)))));
    // The row goes while the user reads the question.
    answer(&mut model, queues(&["night"]));
    let Some(Command::Do(action)) = model.update(Input::Key(Key::Char('y'))) else { panic!("no") };
    assert_eq!(action.command(), "podmesh queue pause day");
    assert_eq!(confirmed(&mut model, "p"), "podmesh queue pause night");
    answer(&mut model, queues(&[]));
    press(&mut model, "p");
    assert_eq!(model.prompt, None);
}

#[test]
fn a_node_with_a_disk_that_is_nearly_full_says_so() {
    let mut model = model();
    let mut view = example::node("node-1", 1);
    view.low_disks.insert("logs".into(), "less than 5 % is free\u{1b}".into());
    answer(&mut model, Answer::Rows(vec![Row::Node(Box::new(view))]));
    assert_eq!(model.page().remarks(), ["a disk is nearly full: less than 5 % is free\\u{1b}"]);
}

#[test]
fn a_workflow_opens_its_jobs_and_is_cancelled() {
    let mut model = model();
    press(&mut model, "7");
    let rows = vec![Row::Workflow(Box::new(example::workflow(40)))];
    answer(&mut model, Answer::Part(Part { rows, at: At::Start, next: None }));
    assert_eq!(confirmed(&mut model, "x"), "podmesh workflow cancel 40");
    press(&mut model, "d");
    assert_eq!(model.wanted()[0], Some(Query::About(About::Workflow(JobId(40)))));
    assert_eq!(confirmed(&mut model, "x"), "podmesh workflow cancel 40");
    press(&mut model, "\u{1b}\n");
    answer(&mut model, Answer::Rows(example::workflow_jobs()));
    // Only of a job that waits it is asked why.
    assert_eq!(model.wanted(), [Some(Query::WorkflowJobs(JobId(40))), None]);
    press(&mut model, "jj");
    assert_eq!(model.wanted()[1], Some(Query::Job(JobId(42))));
    assert_eq!(confirmed(&mut model, "x"), "podmesh cancel 42");
    press(&mut model, "l");
    assert_eq!(model.source(), Some(&Source::Job(JobId(42))));
    press(&mut model, "\u{1b}\n");
    assert_eq!(model.wanted()[0].as_ref().unwrap().clone(), {
        let filter = String::new();
        Query::Tasks { job: JobId(42), at: At::Start, state: None, filter }
    });
}
