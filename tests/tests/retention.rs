//! Removal of ended jobs, lost nodes and output, automatically or on request.
#![expect(clippy::unwrap_used, reason = "tests")]

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn said(mesh: &Mesh, args: &[&str]) -> (i32, String) {
    let output = mesh.output(args);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn forget_removes_jobs_that_have_ended_and_no_others() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let ended: Vec<_> = (0..3).map(|_| mesh.submit(&["--wait", "--", "echo", "out"])).collect();
    let active = mesh.submit(&["--", "sleep", "1000"]);
    mesh.wait_for_job(active, "running");
    let log = mesh.logs("a", ended[0], 1, 1).join("stdout.log");
    assert!(log.exists());

    let (code, text) = said(&mesh, &["forget", &active.to_string()]);
    assert_eq!(code, 125);
    assert!(text.contains("not ended") && text.contains("podmesh cancel"), "{text}");
    let range = format!("{}-{active}", ended[0]);
    let (code, _) = said(&mesh, &["forget", &range]);
    assert_eq!(code, 125, "one of them has not ended");
    assert!(mesh.ok(&["events"]).contains("were removed by"));
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 1);
    for command in ["job", "tasks", "logs"] {
        let (code, text) = said(&mesh, &[command, &ended[0].to_string()]);
        assert!(code != 0 && text.contains("removed"), "{command}: {text}");
    }
    assert!(log.exists(), "output stays on its node");
    let again = mesh.json(&["forget", &ended[0].to_string()]);
    assert_eq!(again, serde_json::json!({ "removed": 0, "active": [] }));
    let (code, text) = said(&mesh, &["forget", "1000"]);
    assert!(code != 0 && text.contains("no job 1000"), "{text}");
    let (code, _) = said(&mesh, &["forget", "9-3"]);
    assert_eq!(code, 2);

    // This also holds after a restart, and no number is reused.
    mesh.ok(&["cancel", &active.to_string()]);
    mesh.wait_for_job(active, "cancelled");
    mesh.ok(&["forget", &active.to_string()]);
    mesh.stop_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 0);
    assert_eq!(mesh.submit(&["--wait", "--", "true"]), active + 1);
}

#[test]
fn the_manager_keeps_the_newest_attempts_up_to_its_limit() {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--keep-attempts", "5"]);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let jobs: Vec<_> =
        (0..4).map(|_| mesh.submit(&["--wait", "--array", "1-2", "--", "true"])).collect();
    let kept = |mesh: &Mesh| -> Vec<u64> {
        let listed = mesh.json(&["jobs"]);
        listed["jobs"].as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap()).collect()
    };
    until_true("the oldest jobs are removed", || kept(&mesh) == [jobs[3], jobs[2]]);
}

#[test]
fn the_output_of_a_node_stays_below_its_limit() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("a", &["--log-node-size", "1MiB"]);
    let print = ["--wait", "--", "head", "-c", "400000", "/dev/urandom"];
    let jobs: Vec<_> = (0..4).map(|_| mesh.submit(&print)).collect();
    let has_log = |job: &&u64| mesh.logs("a", **job, 1, 1).join("stdout.log").exists();
    until_true("two of four fit", || jobs.iter().filter(has_log).count() == 2);
    let removed = jobs.iter().find(|job| !has_log(job)).unwrap();
    let (_, text) = said(&mesh, &["logs", &removed.to_string()]);
    assert!(text.contains("removed"), "{text}");
}

#[test]
fn the_manager_keeps_ended_jobs_for_a_time() {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--keep", "1s"]);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let active = mesh.submit(&["--", "sleep", "1000"]);
    mesh.submit(&["--array", "1-200", "--wait", "--", "true"]);
    until_true("only the active job is kept", || {
        let jobs = mesh.json(&["jobs"]);
        let jobs: Vec<_> = jobs["jobs"].as_array().unwrap().iter().map(|job| &job["job"]).collect();
        jobs == [active]
    });
    mesh.stop_manager();
    mesh.ok(&["check"]);
}

#[test]
fn a_node_that_is_lost_for_long_is_removed_with_its_key() {
    let flags = ["--lease", "2s", "--heartbeat", "500ms", "--keep-nodes", "1s"];
    let mut mesh = Mesh::new(PODMESH).manager_flags(&flags);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    mesh.start_agent("b", &[]);
    mesh.stop_agent("a");
    until_true("the node is removed", || mesh.nodes().len() == 1);
    assert_eq!(mesh.nodes()[0]["node"], "b");
    let events = mesh.ok(&["events"]);
    assert!(events.contains("node a was forgotten by manager"), "{events}");
    assert!(events.contains("agent a revoked by manager"), "{events}");

    // The agent needs a new token, and reports that.
    mesh.spawn_agent("a", &[]);
    until_true("the agent reports that it is refused", || {
        mesh.agent("a").printed().contains("join with a new token")
    });
}
