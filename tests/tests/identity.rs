//! Agents that use another agent's name, and nodes that never return.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// A mesh with short leases.
fn quick() -> Mesh {
    let mesh = Mesh::new(PODMESH).manager_flags(&["--lease", "1s", "--heartbeat", "100ms"]);
    started(mesh)
}

fn started(mut mesh: Mesh) -> Mesh {
    mesh.start_manager();
    mesh
}

/// A task that must not run twice at the same time, and records each run.
struct Task {
    job: u64,
    runs: PathBuf,
    go: PathBuf,
}

impl Task {
    fn submit(mesh: &Mesh) -> Self {
        let (runs, go) = (mesh.folder().join("runs"), mesh.folder().join("go"));
        let script = format!(
            "echo run >> {}; until test -e {}; do sleep 0.05; done",
            runs.display(),
            go.display()
        );
        let job = mesh.submit(&["--on-lost", "wait", "--retries", "3", "--", "sh", "-c", &script]);
        mesh.wait_for_job(job, "running");
        let this = Self { job, runs, go };
        until_true("it runs", || this.runs() == 1);
        this
    }

    fn runs(&self) -> usize {
        fs::read_to_string(&self.runs).unwrap_or_default().lines().count()
    }

    fn end(&self, mesh: &Mesh) {
        fs::write(&self.go, "").unwrap();
        mesh.wait_for_job(self.job, "succeeded");
    }
}

fn said(mesh: &mut Mesh, agent: &str, text: &str) {
    until_true(&format!("{agent} prints {text}"), || mesh.agent(agent).printed().contains(text));
}

#[test]
fn an_agent_with_the_name_of_another_does_not_get_its_attempts() {
    let mut mesh = quick();
    mesh.spawn_local_agent("a", &[]);
    mesh.wait_for_node("a", "alive");
    let task = Task::submit(&mesh);
    mesh.kill_agent("a");
    mesh.spawn_stranger("stranger", "a");
    said(&mut mesh, "stranger", "podmesh nodes forget a");
    mesh.wait_for_node("a", "lost");
    // Even if the manager loses everything except its database.
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "lost");
    assert_eq!(task.runs(), 1);
    mesh.spawn_local_agent("a", &[]);
    mesh.wait_for_node("a", "alive");
    task.end(&mesh);
    assert_eq!(task.runs(), 1);
    // The name is free when its agent holds nothing and is away.
    mesh.stop_agent("a");
    mesh.wait_for_node("a", "alive");
    assert_eq!(mesh.ok(&["run", "--", "echo", "from the stranger"]), "from the stranger\n");
}

#[test]
fn an_agent_with_a_new_key_is_the_same_and_with_a_new_folder_another() {
    let mut mesh = quick();
    mesh.start_agent("a", &[]);
    let task = Task::submit(&mesh);
    mesh.ok(&["nodes", "revoke", "a"]);
    mesh.kill_agent("a");
    let token = mesh.token("agent");
    mesh.join_stranger("stranger", "a", &token);
    said(&mut mesh, "stranger", "podmesh nodes forget a");
    mesh.kill_agent("stranger");
    // The same agent joins again with a new key, and still has its attempts.
    mesh.ok(&["nodes", "revoke", "a"]);
    let folder = mesh.agent_dir("a").join("agent");
    for file in ["key", "enrolment.json"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    mesh.start_agent("a", &[]);
    task.end(&mesh);
    assert_eq!(task.runs(), 1);
}

#[test]
fn a_node_that_never_returns_is_forgotten_with_its_attempts() {
    let mut mesh = quick();
    mesh.start_agent("a", &[]);
    let task = Task::submit(&mesh);
    mesh.kill_agent("a");
    let forget = |mesh: &Mesh, flags: &[&str]| {
        let output = mesh.output(&[&["nodes", "forget", "a"], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    until_true("the lease is over", || !forget(&mesh, &["--force"]).1.contains("its lease"));
    until_true("the margin after the lease is over", || {
        !forget(&mesh, &[]).1.contains("a moment ago")
    });
    mesh.start_agent("b", &[]);
    let (code, said) = forget(&mesh, &[]);
    assert!(
        code == Some(125) && said.contains("--force") && said.contains("may still run"),
        "{said}"
    );
    assert_eq!(task.runs(), 1);
    let (code, said) = forget(&mesh, &["--force"]);
    assert!(code == Some(0) && said.contains("keeps its key"), "{said}");
    assert!(mesh.nodes().iter().all(|node| node["node"] != "a"));
    until_true("the task runs elsewhere", || task.runs() == 2);
    mesh.kill_manager();
    mesh.start_manager();
    assert!(mesh.nodes().iter().all(|node| node["node"] != "a"), "after a restart, too");

    // The node returns after all: what it still runs is stopped, and changes nothing.
    mesh.start_agent("a", &[]);
    let tasks = mesh.json(&["tasks", &task.job.to_string()]);
    let last = &tasks["tasks"][0]["last_attempt"];
    assert_eq!(
        (&last["number"], &last["node"], &last["state"]),
        (&2.into(), &"b".into(), &"running".into())
    );
    let work = mesh.agent_dir("a").join("agent/work").join(format!("{}.1.1", task.job));
    until_true("the former attempt is gone", || !work.exists());
    task.end(&mesh);
    assert_eq!(task.runs(), 2);
}

#[test]
fn a_cancelled_job_ends_even_if_its_node_never_returns() {
    let mut mesh = quick();
    mesh.start_agent("a", &[]);
    let task = Task::submit(&mesh);
    mesh.kill_agent("a");
    mesh.ok(&["cancel", &task.job.to_string()]);
    let ended = mesh.wait_for_job(task.job, "cancelled");
    assert_eq!(ended["tasks"]["cancelled"], 1);
    let tasks = mesh.json(&["tasks", &task.job.to_string()]);
    let outcome = &tasks["tasks"][0]["last_attempt"]["outcome"];
    assert!(outcome["message"].as_str().unwrap().contains("was lost: no heartbeat"), "{outcome}");
    mesh.ok(&["nodes", "forget", "a"]);
    assert!(mesh.nodes().is_empty());
}
