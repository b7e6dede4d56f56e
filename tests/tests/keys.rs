//! Keys that are replaced during work, with the CLI.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Runs a verb with another data folder, as on another machine.
fn elsewhere(mesh: &Mesh, name: &str, args: &[&str]) -> Output {
    let mut command = mesh.command(args);
    command.env("PODMESH_DATA_DIR", mesh.folder().join(name)).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the digest of the manager's key, from its own file.
fn manager_key(mesh: &Mesh) -> Value {
    json(&mesh.data_dir().join("manager/endpoint.json"))["key"].take()
}

fn rotate(mesh: &Mesh) {
    let before = manager_key(mesh);
    mesh.ok(&["key", "rotate"]);
    assert_ne!(manager_key(mesh), before);
    until_true("the agent knows the current keys", || {
        let enrolment = mesh.agent_dir("a").join("agent/enrolment.json");
        json(&enrolment)["manager"][0] == manager_key(mesh)
    });
    mesh.wait_for_node("a", "alive");
}

/// Starts a job that runs until a file exists, and returns the job and the file's path.
fn job_that_waits(mesh: &Mesh) -> (u64, std::path::PathBuf) {
    let file = mesh.folder().join("go");
    let script = format!("until test -e {}; do sleep 0.05; done", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    (job, file)
}

#[test]
fn joined_nodes_and_users_follow_rotations_of_the_managers_key() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    for user in ["ann", "ben"] {
        let token = mesh.token("viewer");
        let joined = elsewhere(&mesh, user, &["login", &token, "--name", user]);
        assert!(joined.status.success(), "{}", said(&joined));
    }
    let (job, go) = job_that_waits(&mesh);
    let old_token = mesh.token("viewer");
    for _ in 0..3 {
        rotate(&mesh);
        let nodes = elsewhere(&mesh, "ann", &["nodes"]);
        assert!(nodes.status.success(), "{}", said(&nodes));
    }
    let late = elsewhere(&mesh, "carl", &["login", &old_token]);
    assert!(said(&late).contains("has another key"), "{}", said(&late));
    let away = elsewhere(&mesh, "ben", &["nodes"]);
    assert!(said(&away).contains("join again with a new token"), "{}", said(&away));

    // The rotated key is on disk.
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    let token = mesh.token("viewer");
    let joined = elsewhere(&mesh, "carl", &["login", &token, "--name", "carl"]);
    assert!(joined.status.success(), "{}", said(&joined));

    fs::write(go, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.json(&["tasks", &job.to_string()])["tasks"][0]["attempts"], 1);
    let rotated = mesh.ok(&["events"]).matches("the manager's key was rotated").count();
    assert_eq!(rotated, 3);
}

#[test]
fn nodes_and_users_renew_their_keys_and_the_old_keys_are_refused() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let token = mesh.token("operator");
    let joined = elsewhere(&mesh, "ann", &["login", &token, "--name", "ann"]);
    assert!(joined.status.success(), "{}", said(&joined));
    let (job, go) = job_that_waits(&mesh);

    // Somebody has copied the user's key.
    let thief = mesh.folder().join("thief");
    fs::create_dir_all(thief.join("user")).unwrap();
    for file in ["key", "enrolment.json"] {
        fs::copy(mesh.folder().join("ann/user").join(file), thief.join("user").join(file)).unwrap();
    }
    assert!(elsewhere(&mesh, "thief", &["nodes"]).status.success());
    let key = |path: &str| fs::read(mesh.folder().join(path)).unwrap();
    let agent_key = mesh.agent_dir("a").join("agent/key");
    let before = (key("ann/user/key"), fs::read(&agent_key).unwrap());

    let renewed = elsewhere(&mesh, "ann", &["key", "renew"]);
    assert!(renewed.status.success(), "{}", said(&renewed));
    let mut command = mesh.command(&["key", "renew", "--agent"]);
    let renewed = command.env("PODMESH_DATA_DIR", mesh.agent_dir("a")).output().unwrap();
    assert!(renewed.status.success(), "{}", said(&renewed));
    assert_ne!((key("ann/user/key"), fs::read(&agent_key).unwrap()), before);

    assert!(elsewhere(&mesh, "ann", &["nodes"]).status.success());
    let refused = elsewhere(&mesh, "thief", &["nodes"]);
    assert!(said(&refused).contains("does not know the key"), "{}", said(&refused));
    let refused = elsewhere(&mesh, "thief", &["key", "renew"]);
    assert!(said(&refused).contains("does not know the key"), "{}", said(&refused));
    until_true("the agent has reconnected with its new key", || {
        mesh.ok(&["events"]).matches("node a connected").count() == 2
    });
    mesh.wait_for_node("a", "alive");

    fs::write(go, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.json(&["tasks", &job.to_string()])["tasks"][0]["attempts"], 1);
    let events = mesh.ok(&["events"]);
    assert!(events.contains("agent a has a new key"), "{events}");
    assert!(events.contains("operator ann has a new key"), "{events}");
}

/// A test cannot cut the power, but it can check the system calls that protect against it.
#[test]
fn the_managers_first_key_and_its_directory_entry_are_on_disk_before_use() {
    let mesh = Mesh::new(PODMESH);
    let trace = mesh.folder().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", "trace=link,linkat,fsync,bind"]).arg("-o").arg(&trace);
    command.arg(PODMESH).args(["manager", "--listen", "127.0.0.1:0", "--stop-at-eof"]);
    command.arg("--data-dir").arg(mesh.data_dir()).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let trace = fs::read_to_string(trace).unwrap();
    let folder = mesh.data_dir().join("manager").canonicalize().unwrap();
    let synced = format!("<{}>)", folder.display());
    let lines: Vec<_> = trace.lines().collect();
    for name in ["/key\"", "/key.next\""] {
        let linked = lines.iter().position(|line| line.contains("link") && line.contains(name));
        let next = linked.map(|at| &lines[at + 1..]).unwrap_or_else(|| panic!("{name}: {trace}"));
        let sync = next.iter().position(|line| line.contains("fsync(") && line.contains(&synced));
        let used = next.iter().position(|line| line.contains("link") || line.contains("bind("));
        assert!(sync.is_some() && used.is_none_or(|used| sync < Some(used)), "{name}: {trace}");
    }
}
