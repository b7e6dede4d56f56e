//! Tasks that fail: where they run again, when a job gives up, and running ended tasks again.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use podmesh_tests::mesh::Mesh;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns the exit code and the error of a command that must fail.
fn refused(mesh: &Mesh, args: &[&str]) -> (i32, String) {
    let output = mesh.output(args);
    assert!(!output.status.success(), "{args:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| unreachable!("{key} of {value}"))
}

#[test]
fn a_command_that_fails_on_one_node_succeeds_on_another() {
    let mesh = Mesh::with_agents(PODMESH, &["a", "b"]);
    // It fails wherever it runs first, and only there.
    let place = mesh.shared_folder("place").join("first");
    let script = format!(
        "test -e {0} || echo $PODMESH_NODE > {0}; test $(cat {0}) != $PODMESH_NODE",
        place.display()
    );
    let job = mesh.submit(&["--retries", "1", "--retry-backoff", "1ms", "--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "succeeded");
    let tasks = mesh.json(&["tasks", &job.to_string()]);
    assert_eq!(tasks["tasks"][0]["attempts"], 2, "{tasks}");
}

#[test]
fn exit_codes_decide_about_retries() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    for (rule, code, attempts) in [
        (["--retry-on", "1,75"], "75", 3),
        (["--retry-on", "1,75"], "2", 1),
        (["--no-retry-on", "2-5"], "4", 1),
        (["--no-retry-on", "2-5"], "1", 3),
    ] {
        let retries = ["--retries", "2", "--retry-backoff", "1ms"];
        let command = ["--", "sh", "-c", &format!("exit {code}")];
        let job = mesh.submit(&[&rule[..], &retries, &command].concat());
        mesh.wait_for_job(job, "failed");
        let tasks = mesh.json(&["tasks", &job.to_string()]);
        assert_eq!(tasks["tasks"][0]["attempts"], attempts, "{rule:?} {code}");
    }
    let both = ["submit", "--retry-on", "1", "--no-retry-on", "2", "--", "true"];
    assert_eq!(refused(&mesh, &both).0, 2);
}

#[test]
fn an_array_ends_early_and_says_why() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let job = mesh.submit(&["--array", "1000", "--max-failures", "3", "--", "false"]);
    let ended = mesh.wait_for_job(job, "failed");
    let (failed, cancelled) = (&ended["tasks"]["failed"], &ended["tasks"]["cancelled"]);
    assert!(failed.as_u64().unwrap() >= 3 && cancelled.as_u64().unwrap() > 900, "{ended}");
    assert!(text(&ended, "ended_early").contains("--max-failures"), "{ended}");
    assert!(mesh.ok(&["job", &job.to_string()]).contains("the limit is 3 (--max-failures)"));
    assert!(mesh.ok(&["events", "--job", &job.to_string()]).contains("(--max-failures)"));

    // Nothing has room for the second one in time.
    let held = mesh.submit(&["--cpus", "1000", "--expires", "300ms", "--array", "2", "--", "true"]);
    let expired = mesh.wait_for_job(held, "expired");
    assert_eq!(expired["tasks"]["cancelled"], 2, "{expired}");
    assert!(mesh.ok(&["job", &held.to_string()]).contains("expired"));
}

#[test]
fn a_job_says_that_it_waits_for_its_own_tasks() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let go = mesh.shared_folder("go").join("go");
    let script = format!("until test -e {}; do sleep 0.05; done", go.display());
    let limit = ["--array", "3", "--cpus", "0.1", "--max-active", "1"];
    let job = mesh.submit(&[&limit[..], &["--", "sh", "-c", &script]].concat());
    let shown = mesh.wait_for_job(job, "running");
    assert_eq!(shown["tasks"]["active"], 1, "{shown}");
    assert_eq!(shown["waits_for"][0], "1 of 1 tasks are active (--max-active)");
    fs::write(go, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
}

#[test]
fn failed_tasks_run_again_after_the_end_and_after_a_restart_of_the_manager() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let good = mesh.shared_folder("good");
    let script = format!("test $PODMESH_TASK_INDEX -le 2 || test -e {}/all", good.display());
    let job = mesh.submit(&["--array", "5", "--name", "flaky", "--", "sh", "-c", &script]);
    let number = job.to_string();
    mesh.wait_for_job(job, "failed");

    let failed = mesh.json(&["failed", "--since", "1h"]);
    let group = &failed["groups"][0];
    assert_eq!((&group["tasks"], &group["outcome"]["exit_code"]), (&3.into(), &1.into()));
    let shown = mesh.ok(&["failed"]);
    for part in ["(flaky): 3 tasks on a", "exit code 1", "podmesh logs 1.", "podmesh requeue 1"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    // Only one, and one that has succeeded.
    assert_eq!(
        mesh.ok(&["requeue", &number, "1,4"]),
        "job 1: 1 task requeued; 1 task succeeded, and not requeued\n"
    );
    mesh.wait_for_job(job, "failed");
    let tasks = mesh.json(&["tasks", &number]);
    let attempts: Vec<u64> = tasks["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["attempts"].as_u64().unwrap())
        .collect();
    assert_eq!(attempts, [1, 1, 1, 2, 1]);

    mesh.stop_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    fs::write(good.join("all"), "").unwrap();
    let done = mesh.json(&["requeue", &number]);
    assert_eq!(done["tasks"], 3, "{done}");
    let ended = mesh.wait_for_job(job, "succeeded");
    assert_eq!(ended["tasks"]["succeeded"], 5, "{ended}");
    assert!(mesh.ok(&["failed"]).is_empty());
    assert!(mesh.ok(&["events", "--job", &number]).contains("3 tasks requeued by"));
    assert_eq!(mesh.json(&["requeue", &number])["tasks"], 0);
    mesh.stop_manager();
    mesh.ok(&["check"]);
}

#[test]
fn requeues_that_cannot_be_done_say_why() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let said = refused(&mesh, &["requeue", "7"]).1;
    assert!(said.contains("no job"), "{said}");
    let job = mesh.submit(&["--cpus", "1000", "--array", "9", "--", "true"]).to_string();
    let said = refused(&mesh, &["requeue", &job, "10"]).1;
    assert!(said.contains("there is no task 1.10"), "{said}");
    assert_eq!(refused(&mesh, &["requeue", &job, "nine"]).0, 2);
    assert!(mesh.ok(&["requeue", &job, "1-3"]).contains("3 tasks not requeued"));
    mesh.ok(&["cancel", &job]);
    let said = mesh.ok(&["requeue", &job, "1-3"]);
    assert!(said.contains("0 tasks requeued") && said.contains("only together"), "{said}");
    assert!(mesh.ok(&["requeue", &job, "--state", "cancelled"]).contains("9 tasks requeued"));
    mesh.ok(&["cancel", &job]);
    mesh.ok(&["forget", &job]);
    let said = refused(&mesh, &["requeue", &job]).1;
    assert!(said.contains("was removed"), "{said}");
}
