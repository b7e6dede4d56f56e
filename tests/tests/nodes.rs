//! Nodes as admins use them: drains with a deadline, maintenance, labels at run time, and named resources.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until;
use serde_json::{Value, json};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns the exit code and the error of a command that must fail.
fn refused(mesh: &Mesh, args: &[&str]) -> (i32, String) {
    let output = mesh.output(args);
    assert!(!output.status.success(), "{args:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn node(mesh: &Mesh, name: &str) -> Value {
    let nodes = mesh.json(&["nodes"]);
    let all = nodes["nodes"].as_array().unwrap();
    all.iter().find(|node| node["node"] == name).unwrap().clone()
}

/// Writes an agent's settings, and starts it.
fn start_agent_with(mesh: &mut Mesh, name: &str, settings: &str) {
    let dir = mesh.agent_dir(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("agent.toml"), settings).unwrap();
    mesh.start_agent(name, &[]);
}

#[test]
fn a_drained_node_gives_its_tasks_to_another_at_the_deadline() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let folder = mesh.shared_folder("out");
    // It runs for ever on `a`, and ends at once elsewhere. It has no retries.
    let script = format!(
        "echo $PODMESH_NODE >> {0}/ran; test $PODMESH_NODE != a || exec sleep 600",
        folder.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    until("it runs", || fs::read_to_string(folder.join("ran")).ok());
    let drain = ["nodes", "drain", "a", "--deadline", "1s", "--requeue", "--reason", "new disks"];
    let output = mesh.output(&drain);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("no other node takes new work"), "{said}");
    mesh.start_agent("b", &[]);
    let ended = mesh.wait_for_job(job, "succeeded");
    assert_eq!(ended["attempts"].as_u64().unwrap_or(2), 2, "{ended}");
    assert_eq!(fs::read_to_string(folder.join("ran")).unwrap(), "a\nb\n");
    mesh.ok(&["nodes", "drain", "a", "--wait", "--timeout", "60s"]);
    let drained = node(&mesh, "a");
    assert_eq!((&drained["scheduling"], &drained["attempts"]), (&json!("draining"), &json!(0)));
    assert_eq!(drained["drain"]["reason"], "new disks");
    let listed = mesh.output(&["nodes"]);
    let listed = String::from_utf8([listed.stdout, listed.stderr].concat()).unwrap();
    for part in ["drained", "new disks", "nothing runs there any more"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let events = mesh.ok(&["events", "--job", &job.to_string()]);
    assert!(events.contains("is stopped"), "{events}");
    mesh.ok(&["nodes", "uncordon", "a"]);
    assert_eq!(node(&mesh, "a")["drain"], Value::Null);
}

#[test]
fn without_requeue_the_deadline_fails_the_attempt() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let job = mesh.submit(&["--", "sleep", "600"]);
    until("it runs", || (node(&mesh, "a")["attempts"] == 1).then_some(()));
    mesh.ok(&["nodes", "drain", "a", "--deadline", "0s"]);
    mesh.wait_for_job(job, "failed");
    let tasks = mesh.ok(&["tasks", &job.to_string()]);
    assert!(tasks.contains("deadline is over") || tasks.contains("stopped"), "{tasks}");
    let (code, said) = refused(&mesh, &["nodes", "drain", "a", "--reason", " "]);
    assert!(code == 2 && said.contains("reason"), "{said}");
    assert_eq!(refused(&mesh, &["nodes", "drain", "none"]).0, 125);
}

#[test]
fn labels_change_at_run_time_and_placement_follows() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    mesh.start_agent("a", &["--label", "zone=a"]);
    let job = mesh.submit(&["--require", "zone=b", "--", "true"]);
    let all = mesh.ok(&["nodes", "label", "a", "zone=b", "rack=7"]);
    assert_eq!(all, "a: rack=7,zone=b\n");
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(node(&mesh, "a")["admin_labels"], json!(["rack", "zone"]));
    let shown = mesh.json(&["nodes", "label", "a", "zone-", "rack-"]);
    assert_eq!(shown["labels"], json!({ "zone": "a" }));
    let (_, said) = refused(&mesh, &["nodes", "label", "a", "zone-"]);
    assert!(said.contains("agent.toml"), "{said}");
    let (code, said) = refused(&mesh, &["nodes", "label", "a", "zone"]);
    assert!(code == 2 && said.contains("LABEL-"), "{said}");
    assert_eq!(refused(&mesh, &["nodes", "label", "a", "x=1", "x-"]).0, 2);
}

#[test]
fn tasks_get_ids_of_named_resources_and_do_not_share_them() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    start_agent_with(&mut mesh, "a", "resources = { license = 3, gpu = [\"GPU-x\", \"GPU-y\"] }\n");
    let folder = mesh.shared_folder("out");
    let script = format!(
        "f={}/$PODMESH_GPU_IDS; mkdir $f.lock || exit 9; \
         echo $PODMESH_GPU $CUDA_VISIBLE_DEVICES $PODMESH_LICENSE > $f; sleep 0.05; rmdir $f.lock",
        folder.display()
    );
    let needs = ["--cpus", "0.01", "--resource", "gpu=1", "--resource", "license=1"];
    let job = mesh.submit(&[&needs[..], &["--array", "12", "--", "sh", "-c", &script]].concat());
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(fs::read_to_string(folder.join("GPU-x")).unwrap(), "0 GPU-x 1\n");
    assert_eq!(fs::read_to_string(folder.join("GPU-y")).unwrap(), "1 GPU-y 1\n");
    assert_eq!(node(&mesh, "a")["resources"]["gpu"]["used_millis"], 0);

    let file = mesh.folder().join("job.toml");
    let text =
        "command = [\"sleep\", \"600\"]\narray = 2\ncpus = 0.01\nresources = { gpu = 0.5 }\n";
    fs::write(&file, text).unwrap();
    let halves = mesh.submit(&["-f", file.to_str().unwrap()]);
    until("both have a half", || {
        (node(&mesh, "a")["resources"]["gpu"]["used_millis"] == 1_000).then_some(())
    });
    let both = mesh.submit(&["--resource", "gpu=2", "--", "true"]);
    let why = mesh.ok(&["job", &both.to_string()]);
    assert!(why.contains("waits for 2 of `gpu`"), "{why}");
    assert!(mesh.ok(&["nodes"]).contains("gpu 1/2"), "{}", mesh.ok(&["nodes"]));
    mesh.ok(&["cancel", &halves.to_string()]);
    mesh.wait_for_job(both, "succeeded");
    for (wrong, says) in [("gpu=1.5", "whole"), ("gpu", "NAME=AMOUNT"), ("cpus=1", "--cpus")] {
        let (code, said) = refused(&mesh, &["submit", "--resource", wrong, "--", "true"]);
        assert!(code == 2 && said.contains(says), "{wrong}: {said}");
    }
}

/// Applies a service of commands that print what they have of `gpu`.
fn apply(mesh: &Mesh, settings: &str, flags: &[&str]) -> std::process::Output {
    let file = mesh.folder().join("service.toml");
    let script = "echo has $PODMESH_GPU $PODMESH_GPU_IDS $CUDA_VISIBLE_DEVICES; exec sleep 600";
    let text = format!(
        "name = \"infer\"\ncommand = [\"sh\", \"-c\", '{script}']\ncpus = 0.01\n{settings}\n"
    );
    fs::write(&file, text).unwrap();
    let apply = ["service", "apply", "-f", file.to_str().unwrap()];
    mesh.output(&[&apply[..], flags].concat())
}

fn used(mesh: &Mesh) -> Value {
    node(mesh, "a")["resources"]["gpu"]["used_millis"].clone()
}

#[test]
fn replicas_have_ids_of_named_resources_and_keep_them() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    start_agent_with(&mut mesh, "a", "resources = { gpu = [\"GPU-x\", \"GPU-y\"] }\n");
    let settings = "replicas = 3\nresources = { gpu = 1 }";
    let plan = apply(&mesh, settings, &["--dry-run"]);
    let said = String::from_utf8([plan.stdout, plan.stderr].concat()).unwrap();
    assert!(said.contains("a") && said.contains("waits for 1 of `gpu`"), "{said}");

    let settings = "replicas = 2\nresources = { gpu = 1 }";
    let output = apply(&mesh, settings, &["--wait", "--timeout", "50s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(used(&mesh), 2_000);
    let says = |what: &str| mesh.ok(&["logs", "infer"]).contains(what).then_some(());
    until("the first prints what it has", || says("has 0 GPU-x GPU-x"));
    until("the second prints what it has", || says("has 1 GPU-y GPU-y"));
    let shown = mesh.json(&["service", "infer"]);
    assert_eq!(shown["spec"]["resource_millis"]["gpu"], 1_000);
    let job = mesh.submit(&["--cpus", "0.01", "--resource", "gpu=0.5", "--", "true"]);
    mesh.kill_manager();
    mesh.kill_agent("a");
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    until("the node is back", || (node(&mesh, "a")["state"] == "alive").then_some(()));
    assert_eq!(used(&mesh), 2_000);
    let why = mesh.ok(&["job", &job.to_string()]);
    assert!(why.contains("waits for 0.5 of `gpu`"), "{why}");

    // There is no room for a new replica beside the old ones.
    let changed = "replicas = 2\nresources = { gpu = 1 }\nenv = { A = \"1\" }\n";
    assert!(apply(&mesh, changed, &[]).status.success());
    until("the update says why it waits", || {
        mesh.ok(&["service", "infer"]).contains("waits for 1 of `gpu`").then_some(())
    });
    let changed = format!("{changed}update = {{ max_surge = 0, min_healthy = 1 }}");
    let output = apply(&mesh, &changed, &["--wait", "--timeout", "50s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(mesh.json(&["service", "infer"])["existing"], 2);
    mesh.ok(&["service", "stop", "infer"]);
    mesh.wait_for_job(job, "succeeded");
    until("all is given back", || (used(&mesh) == 0).then_some(()));

    let wrong = apply(&mesh, "resources = { gpu = 1.5 }", &[]);
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(wrong.status.code() == Some(2) && said.contains("whole number"), "{said}");
}

#[test]
fn an_exclusive_task_is_alone_on_its_node() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let go = mesh.shared_folder("go").join("go");
    let wait = format!("until test -e {}; do sleep 0.05; done", go.display());
    let first = mesh.submit(&["--cpus", "0.01", "--", "sh", "-c", &wait]);
    until("it runs", || (node(&mesh, "a")["attempts"] == 1).then_some(()));
    let alone = mesh.submit(&["--exclusive", "--cpus", "0.01", "--", "true"]);
    let why = mesh.ok(&["job", &alone.to_string()]);
    assert!(why.contains("a node for itself"), "{why}");
    fs::write(&go, "").unwrap();
    mesh.wait_for_job(first, "succeeded");
    mesh.wait_for_job(alone, "succeeded");
}

/// Returns the time in so many seconds, in UTC.
fn at(seconds: i64) -> String {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    time.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[test]
fn a_planned_maintenance_drains_a_node_and_gives_it_back() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let plan = |mesh: &Mesh, from: i64, length: &str| {
        let args = ["nodes", "maintenance", "a", "--tz", "UTC", "--reason", "new disks"];
        mesh.ok(&[&args[..], &["--from", &at(from), "--for", length]].concat())
    };
    let is_planned = |mesh: &Mesh| !mesh.nodes()[0]["maintenance"].is_null();
    let said = plan(&mesh, 3_600, "2h");
    assert!(said.starts_with("a: maintenance from "), "{said}");
    let shown = &mesh.nodes()[0];
    assert_eq!(
        (&shown["scheduling"], &shown["maintenance"]["active"]),
        (&"open".into(), &false.into())
    );
    let shown = String::from_utf8(mesh.output(&["nodes"]).stderr).unwrap();
    assert!(shown.contains("a has maintenance from ") && shown.contains("(new disks)"), "{shown}");
    assert_eq!(mesh.ok(&["run", "--", "echo", "before"]), "before\n");

    // One that has begun. It survives the manager.
    plan(&mesh, -60, "1h");
    assert_eq!(mesh.nodes()[0]["scheduling"], "draining");
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    let shown = &mesh.nodes()[0];
    assert_eq!(
        (&shown["scheduling"], &shown["maintenance"]["active"]),
        (&"draining".into(), &true.into())
    );
    let job = mesh.submit(&["--", "true"]);
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "queued");
    assert_eq!(mesh.ok(&["nodes", "maintenance", "a", "--remove"]), "a: no maintenance any more\n");
    mesh.wait_for_job(job, "succeeded");

    // One that ends by itself, also while the manager is away.
    plan(&mesh, -60, "70s");
    let job = mesh.submit(&["--", "true"]);
    mesh.stop_manager();
    mesh.start_manager();
    assert!(is_planned(&mesh));
    mesh.wait_for_job(job, "succeeded");
    assert!(!is_planned(&mesh));
    assert_eq!(mesh.nodes()[0]["scheduling"], "open");
    let events = mesh.ok(&["events", "--node", "a"]);
    for says in ["planned from 20", ": begins", ": over"] {
        assert!(events.contains(says), "{says}: {events}");
    }
    for (args, says) in [
        (&["--from", "yesterday", "--for", "1h"][..], "time"),
        (&["--from", &at(-7_200), "--for", "1h", "--tz", "UTC"], "over already"),
        (&["--for", "1h"], "--from"),
        (&["--remove", "--for", "1h"], "--remove"),
    ] {
        let output = mesh.output(&[&["nodes", "maintenance", "a"], args].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn a_task_that_would_not_be_over_in_time_starts_after_the_maintenance() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let from = at(3_600);
    let plan = ["nodes", "maintenance", "a", "--from", &from, "--tz", "UTC", "--for", "2h"];
    mesh.ok(&plan);
    let long = mesh.submit(&["--timeout", "2h", "--", "true"]);
    let why = mesh.ok(&["job", &long.to_string(), "--why"]);
    let says = "when the maintenance of node `a` begins in 60 min; it can start there afterwards";
    assert!(why.contains(says), "{why}");
    assert_eq!(mesh.ok(&["run", "--timeout", "5m", "--", "echo", "short"]), "short\n");
    assert_eq!(mesh.ok(&["run", "--", "echo", "endless"]), "endless\n");
    assert_eq!(mesh.json(&["job", &long.to_string()])["state"], "queued");
    // What is stopped by the maintenance would run again.
    mesh.ok(&[&plan[..], &["--requeue"]].concat());
    mesh.wait_for_job(long, "succeeded");
}
