//! Network partitions in one or both directions, in a separate network namespace.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::namespace::{Cut, Namespace};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns a mesh with a node `far` behind a link that can be cut.
fn mesh(namespace: &Namespace) -> Mesh {
    let flags = ["--lease", "3s", "--heartbeat", "500ms"];
    let mut mesh = Mesh::new(PODMESH).listen_on(namespace.host()).manager_flags(&flags);
    mesh.start_manager();
    mesh.start_agent_in(namespace, "far", &["--docker", "off"]);
    mesh
}

#[test]
fn a_task_with_on_lost_wait_keeps_running_during_every_kind_of_cut() {
    let Some(namespace) = Namespace::make() else { return };
    let mesh = mesh(&namespace);
    let file = mesh.folder().join("go");
    let script = format!("until test -e {}; do sleep 0.05; done; echo done", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    for cut in Cut::ALL {
        namespace.cut(cut);
        mesh.wait_for_node("far", "lost");
        namespace.heal();
        mesh.wait_for_node("far", "alive");
    }
    // It ends during another cut, and its end is reported after that.
    namespace.cut(Cut::Both);
    fs::write(&file, "").unwrap();
    mesh.wait_for_node("far", "lost");
    namespace.heal();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.json(&["tasks", &job.to_string()])["tasks"][0]["attempts"], 1);
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "done\n");
}

#[test]
fn a_requeued_task_is_stopped_before_it_starts_elsewhere() {
    let Some(namespace) = Namespace::make() else { return };
    let mut mesh = mesh(&namespace);
    // A lock is released when its holder ends, in any way.
    let (lock, wrong) = (mesh.folder().join("lock"), mesh.folder().join("wrong"));
    let script = format!(
        "flock -n {} sh -c 'while [ $PODMESH_ATTEMPT = 1 ]; do sleep 0.05; done' || echo > {}",
        lock.display(),
        wrong.display()
    );
    let job = mesh.submit(&["--on-lost", "requeue", "--retries", "1", "--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    mesh.start_agent("near", &["--docker", "off"]);
    namespace.cut(Cut::Both);
    mesh.wait_for_job(job, "succeeded");
    namespace.heal();
    mesh.wait_for_node("far", "alive");
    let task = &mesh.json(&["tasks", &job.to_string()])["tasks"][0];
    assert_eq!(
        (&task["attempts"], &task["last_attempt"]["node"]),
        (&2.into(), &"near".into()),
        "{task}"
    );
    assert!(!wrong.exists(), "both ran at the same time");
}
