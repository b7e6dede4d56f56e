//! Paths that do not answer, such as those of NFS without its server: a command that accesses one
//! delays no other, and runs on another node. Needs root and `/dev/fuse`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::silent_fs::SilentFs;
use podmesh_tests::supervisor;
use podmesh_tests::wait::until_true;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
/// The number of hanging starts at which a node starts no more (`PROCESS_STARTS_HUNG_MAX`).
const HUNG_MAX: usize = podmesh_protocol::limits::PROCESS_STARTS_HUNG_MAX;

fn last_attempt(mesh: &Mesh, job: u64) -> Value {
    mesh.json(&["tasks", &job.to_string()])["tasks"][0]["last_attempt"].clone()
}

fn takes_commands(mesh: &Mesh, node: &str) -> bool {
    let nodes = mesh.nodes();
    let node = nodes.iter().find(|known| known["node"] == node).unwrap();
    node["runtimes"].as_array().unwrap().iter().any(|runtime| runtime == "process")
}

#[test]
fn a_start_that_hangs_delays_no_other_and_is_retried_on_another_node() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let Some(silent) = SilentFs::mount(&mesh.folder().join("silent")) else { return };
    // The first folder in which programs are searched.
    let path = std::env::var("PATH").unwrap();
    mesh = mesh.agent_variable("PATH", &format!("{}:{path}", silent.path().display()));
    mesh.start_agent("a", &["--cpus", "64", "--docker", "off", "--label", "disk=hangs"]);

    let gate = mesh.folder().join("gate");
    let script = format!("until test -e {}; do sleep 0.01; done; exit 3", gate.display());
    let script = format!("PATH={path}; {script}");
    let runs = mesh.submit(&["--", "/bin/sh", "-c", &script]);
    mesh.wait_for_job(runs, "running");
    // More tasks than threads.
    let hangs = mesh.submit(&["--array", "1-20", "--", "true"]);
    until_true("the attempts are on the node", || {
        mesh.json(&["job", &hangs.to_string()])["tasks"]["active"] == 20
    });
    // Running commands end, commands with other paths start, and stops are carried out.
    fs::write(&gate, "").unwrap();
    mesh.wait_for_job(runs, "failed");
    assert_eq!(last_attempt(&mesh, runs)["outcome"]["exit_code"], 3);
    assert_eq!(mesh.ok(&["run", "--", "/bin/echo", "there"]), "there\n");
    let cancelled = mesh.submit(&["--", "true"]);
    mesh.ok(&["cancel", &cancelled.to_string()]);
    mesh.wait_for_job(cancelled, "cancelled");

    // The reason names the path that hangs, and no retry is used.
    let says = |text: &str| mesh.ok(&["events"]).contains(text);
    let path = silent.path().display().to_string();
    until_true("the start is given up", || says(&format!("{path} has not answered for 10 s")));
    assert_eq!(mesh.json(&["job", &hangs.to_string()])["tasks"]["failed"], 0);
    let path = std::env::var("PATH").unwrap();
    mesh = mesh.agent_variable("PATH", &path);
    mesh.start_agent("b", &["--cpus", "64", "--docker", "off"]);
    mesh.wait_for_job(hangs, "succeeded");
    assert_eq!(last_attempt(&mesh, hangs)["node"], "b");
    drop(silent);
}

#[test]
fn a_node_with_too_many_hanging_starts_takes_no_commands_until_they_return() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let Some(mut silent) = SilentFs::mount(&mesh.folder().join("silent")) else { return };
    mesh.start_agent("a", &["--cpus", "64", "--docker", "off"]);
    // Each task has its own folder.
    let folder = |index: usize| silent.path().join(index.to_string()).display().to_string();
    let jobs: Vec<_> = (0..HUNG_MAX + 8)
        .map(|index| mesh.submit(&["--workdir", &folder(index), "--", "true"]))
        .collect();
    until_true("the node takes no commands", || !takes_commands(&mesh, "a"));
    let why = mesh.nodes()[0]["withdrawn"]["process"].as_str().unwrap().to_owned();
    let path = silent.path().display().to_string();
    assert!(why.contains(&path) && why.contains("PROCESS_STARTS_HUNG_MAX"), "{why}");
    assert!(mesh.ok(&["events"]).contains("node a takes no work for process"));
    // The next agent gets the same reason.
    mesh.kill_agent("a");
    mesh.start_agent("a", &["--cpus", "64", "--docker", "off"]);
    until_true("it takes none with another agent either", || !takes_commands(&mesh, "a"));

    silent.fail();
    until_true("it takes commands again", || takes_commands(&mesh, "a"));
    for job in jobs {
        mesh.wait_for_job(job, "failed");
        let outcome = &last_attempt(&mesh, job)["outcome"];
        assert_eq!((&outcome["kind"], &outcome["exit_code"]), (&"failed".into(), &125.into()));
    }
    assert_eq!(mesh.ok(&["run", "--", "echo", "again"]), "again\n");
}

#[test]
fn a_supervisor_with_starts_that_hang_can_be_stopped_and_killed() {
    for is_killed in [false, true] {
        let mut mesh = Mesh::new(PODMESH);
        mesh.start_manager();
        let Some(silent) = SilentFs::mount(&mesh.folder().join("silent")) else { return };
        mesh.start_agent("a", &["--cpus", "8", "--docker", "off"]);
        let folder = silent.path().join("x").display().to_string();
        let job = mesh.submit(&["--array", "1-4", "--workdir", &folder, "--", "true"]);
        until_true("the attempts are on the node", || {
            mesh.json(&["job", &job.to_string()])["tasks"]["active"] == 4
        });
        mesh.kill_agent("a");
        let dir = mesh.agent_dir("a");
        if is_killed {
            supervisor::kill_and_wait(&dir);
        } else {
            let pid = supervisor::pid(&dir).unwrap();
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            until_true("the supervisor ends", || !supervisor::lives(&dir));
        }
        drop(silent);
        mesh.start_agent("a", &["--cpus", "8", "--docker", "off"]);
        mesh.ok(&["run", "--", "true"]);
    }
}
