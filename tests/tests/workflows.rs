//! Jobs that wait for other jobs: flags, workflow files, and what becomes of what can never run.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::fs;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns the exit code and the error of a command that must fail.
fn refused(mesh: &Mesh, args: &[&str]) -> (i32, String) {
    let output = mesh.output(args);
    assert!(!output.status.success(), "{args:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Submits a workflow, and returns its number.
fn submit(mesh: &Mesh, text: &str) -> u64 {
    let file = mesh.shared_folder("flows").join("flow.toml");
    fs::write(&file, text).unwrap();
    let said = mesh.json(&["workflow", "submit", "-f", file.to_str().unwrap()]);
    said["workflow"].as_u64().unwrap()
}

fn waits_for(mesh: &Mesh, job: u64) -> String {
    mesh.json(&["job", &job.to_string()])["waits_for"].to_string()
}

/// Returns the state of a job in the list, for people.
fn listed(mesh: &Mesh, job: u64) -> String {
    let jobs = mesh.ok(&["jobs"]);
    let line = jobs.lines().find(|line| line.starts_with(&format!("{job} "))).unwrap().to_owned();
    line.split_whitespace().nth(2).unwrap().to_owned()
}

#[test]
fn jobs_run_in_the_order_of_their_dependencies_across_restarts() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let folder = mesh.shared_folder("order");
    let (order, go) = (folder.join("order"), folder.join("go"));
    let note = |text: &str| format!("echo {text} >> {}", order.display());
    let script =
        format!("while ! test -e {}; do sleep 0.05; done; {}", go.display(), note("first"));
    let first = mesh.submit(&["--", "sh", "-c", &script]);
    let after = |flag: &str, jobs: &[u64], script: &str| {
        let jobs: Vec<String> = jobs.iter().map(u64::to_string).collect();
        mesh.submit(&[flag, &jobs.join(","), "--", "sh", "-c", script])
    };
    let second = after("--after", &[first], &format!("{}; exit 3", note("second")));
    let third = after("--after-failed", &[second], &note("third"));
    let fourth = after("--after-any", &[third, first], &note("fourth"));
    let never = after("--after", &[second], &note("never"));
    assert!(waits_for(&mesh, fourth).contains(&format!("waits for jobs {first}, {third} to end")));
    assert_eq!(listed(&mesh, fourth), "waiting");
    mesh.kill_manager();
    mesh.start_manager();
    fs::write(&go, "").unwrap();
    mesh.wait_for_job(fourth, "succeeded");
    assert_eq!(fs::read_to_string(&order).unwrap(), "first\nsecond\nthird\nfourth\n");

    let said = waits_for(&mesh, never);
    assert!(said.contains(&format!("upstream {second} failed")), "{said}");
    assert_eq!(listed(&mesh, never), "blocked");
    let row = mesh.json(&["job", &never.to_string()]);
    assert_eq!(
        (&row["unmet"], &row["blocked"], &row["spec"]["after"][0]["when"]),
        (&1.into(), &1.into(), &"succeeded".into())
    );
    // What is waited for is kept.
    let (_, said) = refused(&mesh, &["forget", &second.to_string()]);
    assert!(said.contains("another job waits for it"), "{said}");
    mesh.ok(&["cancel", &never.to_string()]);
    mesh.ok(&["forget", &second.to_string()]);
    let (_, said) = refused(&mesh, &["submit", "--after", &second.to_string(), "--", "true"]);
    assert!(said.contains("was removed"), "{said}");
    let (_, said) = refused(&mesh, &["submit", "--after", "9999", "--", "true"]);
    assert!(said.contains("there is no job 9999"), "{said}");
    let (_, said) = refused(&mesh, &["submit", "--after", "1", "--after-any", "1", "--", "true"]);
    assert!(said.contains("job 1 is named twice"), "{said}");
    assert_eq!(refused(&mesh, &["submit", "--after", "one", "--", "true"]).0, 2);
}

#[test]
fn tasks_follow_index_by_index_and_a_requeue_lets_the_rest_go_on() {
    let mesh = Mesh::with_agents(PODMESH, &["a", "b"]);
    let mended = mesh.shared_folder("each").join("mended");
    let script = format!("test $PODMESH_TASK_INDEX != 2 || test -e {}", mended.display());
    let first = mesh.submit(&["--array", "4", "--", "sh", "-c", &script]).to_string();
    let each = mesh.submit(&["--after-each", &first, "--array", "4", "--", "true"]);
    let rest = mesh.submit(&["--after", &first, "--", "true"]);
    mesh.wait_for_job(first.parse().unwrap(), "failed");
    let done = |tasks: Value| {
        let tasks = tasks["tasks"].as_array().unwrap().clone();
        let done = tasks.iter().filter(|task| task["state"] == "succeeded");
        done.map(|task| task["task"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until_true("three tasks follow", || done(mesh.json(&["tasks", &each.to_string()])).len() == 3);
    let tasks = mesh.json(&["tasks", &each.to_string()]);
    assert_eq!(tasks["tasks"][1]["state"], "queued", "{tasks}");
    assert_eq!(
        mesh.json(&["tasks", &each.to_string(), "--state", "queued"])["tasks"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // A later one knows what has succeeded.
    let late = mesh.submit(&["--after-each", &first, "--array", "4", "--", "true"]);
    until_true("three tasks follow", || done(mesh.json(&["tasks", &late.to_string()])).len() == 3);
    let (_, said) =
        refused(&mesh, &["submit", "--after-each", &first, "--array", "5", "--", "true"]);
    assert!(said.contains("1 to 4") && said.contains("1 to 5"), "{said}");

    fs::write(&mended, "").unwrap();
    mesh.ok(&["requeue", &first]);
    for job in [each, rest, late] {
        mesh.wait_for_job(job, "succeeded");
    }
}

#[test]
fn a_workflow_is_shown_cancelled_and_requeued() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mended = mesh.shared_folder("flow").join("mended");
    let text = format!(
        "name = \"nightly\"\n\
         [[job]]\nname = \"build\"\ncommand = [\"sh\", \"-c\", \"test -e {}\"]\n\
         [[job]]\nname = \"test\"\narray = 3\ncommand = [\"true\"]\nafter = \"build\"\n\
         [[job]]\nname = \"ship\"\ncommand = [\"true\"]\nafter = [\"build\", \"test\"]\n\
         [[job]]\nname = \"mail\"\ncommand = [\"true\"]\nafter_failed = \"build\"\n",
        mended.display()
    );
    let workflow = submit(&mesh, &text);
    mesh.wait_for_job(workflow, "failed");
    mesh.wait_for_job(workflow + 3, "succeeded");
    let shown = mesh.ok(&["workflow", "show", "nightly"]);
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let number = |at: u64| (workflow + at).to_string();
    assert_eq!(lines[1], [&*number(0), "build", "failed"]);
    assert_eq!(lines[2], [&*number(1), "test", "blocked", "build", "build"]);
    assert_eq!(lines[3], [&*number(2), "ship", "blocked", "build,", "test", "build,", "test"]);
    assert_eq!(lines[4], [&*number(3), "mail", "succeeded", "build", "(failed)"]);
    let graph = mesh.json(&["workflow", "show", &number(2)]);
    assert_eq!((&graph["name"], &graph["jobs"]["queued"]), (&"nightly".into(), &2.into()));
    assert_eq!(graph["graph"][1]["after"][0]["state"], "blocked");
    assert_eq!(mesh.json(&["workflow", "list"])["workflows"][0]["workflow"], workflow);
    assert!(mesh.ok(&["events"]).contains(&format!("workflow {workflow} (nightly) submitted")));

    let said = mesh.ok(&["cancel", &number(0), "--downstream"]);
    assert!(said.contains("already ended: failed; 2 jobs downstream cancelled"), "{said}");
    mesh.wait_for_job(workflow + 2, "cancelled");
    fs::write(&mended, "").unwrap();
    let said = mesh.ok(&["requeue", &number(0), "--downstream"]);
    assert!(said.contains("5 tasks requeued, also of 2 jobs downstream"), "{said}");
    mesh.wait_for_job(workflow + 2, "succeeded");
    let (_, said) = refused(&mesh, &["workflow", "show", "none"]);
    assert!(said.contains("there is no workflow `none`"), "{said}");
    let single = mesh.submit(&["--", "true"]).to_string();
    assert!(refused(&mesh, &["workflow", "show", &single]).1.contains("not part of a workflow"));
}

#[test]
fn a_workflow_with_a_mistake_submits_nothing() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.shared_folder("wrong").join("f.toml");
    for (after, says) in [
        ("[\"c\"]", "line 4 (after = [\"c\"]): job `a`: waits for `c`, and no job has that name"),
        (
            "[\"b\"]",
            "line 4 (after = [\"b\"]): job `a`: waits in a circle: for `b`, which waits for itself",
        ),
        ("[1]", "line 4"),
    ] {
        let text = format!(
            "[[job]]\nname = \"a\"\ncommand = [\"true\"]\nafter = {after}\n\
             [[job]]\nname = \"b\"\ncommand = [\"true\"]\nafter = \"a\"\n"
        );
        fs::write(&file, text).unwrap();
        let (code, said) = refused(&mesh, &["workflow", "submit", "-f", file.to_str().unwrap()]);
        assert!(code == 2 && said.contains(says), "{said}");
    }
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 0);
}

#[test]
fn ten_thousand_jobs_are_one_workflow() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    // All wait for one that no node can run.
    let mut text = String::from(
        "[[job]]\nname = \"gate\"\ncommand = [\"true\"]\nrequire = { none = \"such\" }\n",
    );
    for at in 0..9_999 {
        let before = if at == 0 { "gate".to_owned() } else { format!("j{}", at - 1) };
        _ = writeln!(
            text,
            "[[job]]\nname = \"j{at}\"\ncommand = [\"echo\", \"{at}\"]\nafter = \"{before}\""
        );
    }
    let workflow = submit(&mesh, &text);
    let shown = mesh.json(&["workflow", "show", &workflow.to_string()]);
    assert_eq!(shown["graph"].as_array().unwrap().len(), 10_000);
    assert_eq!(shown["jobs"]["queued"], 10_000);
    let said = mesh.ok(&["cancel", &workflow.to_string(), "--downstream"]);
    assert!(said.contains("9999 jobs downstream cancelled"), "{said}");
    let shown = mesh.json(&["workflow", "list"]);
    assert_eq!(shown["workflows"][0]["jobs"]["cancelled"], 10_000);
}

#[test]
fn a_workflow_is_waited_for_and_cancelled_as_a_whole() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.shared_folder("waited").join("flow.toml");
    let wait = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = mesh.output(&["workflow", "submit", "--wait", "-f", file.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), said)
    };
    let job = |name: &str, script: &str, after: &str| {
        format!("[[job]]\nname = \"{name}\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\n{after}\n")
    };
    let (a, b) = (job("a", "sleep 0.2", ""), job("b", "true", "after = \"a\""));
    let undo = job("undo", "true", "after_failed = \"b\"");
    let (code, number, said) = wait(&format!("{a}{b}{undo}"));
    assert_eq!((code, number.as_str()), (0, "1\n"), "{said}");
    assert!(said.contains("1 job can never run"), "{said}");

    let fails = job("b", "exit 7", "after = \"a\"");
    let last = job("c", "true", "after = \"b\"");
    let (code, _, said) = wait(&format!("{a}{fails}{last}"));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("(b) has not succeeded") && said.contains("workflow show 4"), "{said}");

    let long = job("long", "sleep 600", "");
    let flow =
        submit(&mesh, &format!("name = \"long\"\n{long}{}", job("d", "true", "after = \"long\"")));
    let said = mesh.ok(&["workflow", "cancel", "long"]);
    assert_eq!(said, format!("workflow {flow}: 2 jobs cancelled\n"));
    mesh.wait_for_job(flow, "cancelled");
    mesh.wait_for_job(flow + 1, "cancelled");
    // By the number of one of its jobs.
    let again = mesh.json(&["workflow", "cancel", &(flow + 1).to_string()]);
    assert_eq!((again["workflow"].as_u64(), again["jobs"].as_u64()), (Some(flow), Some(0)));
    assert!(refused(&mesh, &["workflow", "cancel", "999"]).1.contains("999"));
}
