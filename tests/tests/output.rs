//! Output of the CLI: JSON that matches its schema, tables that fit, helpful errors.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Stdio;

use podmesh_protocol::ids::InstanceId;
use podmesh_protocol::limits::{LABELS_MAX, PROTOCOL_VERSION};
use podmesh_protocol::session::{Hello, ToManager, ToPeer};
use podmesh_protocol::spec::Resources;
use podmesh_tests::mesh::Mesh;
use podmesh_wire::control::PeerSocket;
use serde_json::Value;
use uuid::Uuid;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn check(verb: &str, printed: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tools/schema/{verb}.json"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let schema: Value = serde_json::from_str(&text).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(printed).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{verb}: {errors:?} in {printed}");
}

#[test]
fn lists_match_their_schemas() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let submitted =
        mesh.json(&["submit", "--name", "x", "--array", "1-3", "--timeout", "1m", "--", "true"]);
    check("submit", &submitted);
    mesh.wait_for_job(1, "succeeded");
    mesh.submit(&["--require", "no=where", "--image", "busybox", "-v", "/a:/b:ro", "--", "true"]);
    check("jobs", &mesh.json(&["jobs"]));
    for job in ["1", "2"] {
        check("job", &mesh.json(&["job", job]));
        check("job_why", &mesh.json(&["job", job, "--why"]));
        check("tasks", &mesh.json(&["tasks", job]));
    }
    let why = mesh.json(&["job", "2", "--why"]);
    assert_eq!(
        (&why["waits"], &why["queued"], &why["queue"]),
        (&true.into(), &1.into(), &"default".into())
    );
    assert_eq!(why["waits_for"], mesh.json(&["job", "2"])["waits_for"]);
    let text = mesh.ok(&["job", "2", "--why"]);
    assert!(text.contains("no=where") && !text.contains("busybox"), "{text}");
    assert_eq!(mesh.ok(&["job", "1", "--why"]), "job 1 (x) does not wait: it has succeeded\n");
    check("nodes", &mesh.json(&["nodes"]));
    check("cancel", &mesh.json(&["cancel", "2"]));
    let events = mesh.ok(&["events", "--output", "json"]);
    assert!(events.lines().count() > 10);
    for (at, line) in events.lines().enumerate() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["revision"], at + 1);
        check("event", &event);
    }
}

#[test]
fn a_reader_that_closes_the_pipe_is_not_an_error() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["submit", "--wait", "--array", "1-500", "--", "true"]);
    let mut child =
        mesh.podmesh(&["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panic") && !said.contains("roken pipe"), "{said}");
}

#[test]
fn the_error_for_an_unknown_object_names_it() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["run", "--", "true"]);
    for args in [
        ["job", "99"],
        ["tasks", "99"],
        ["logs", "99"],
        ["logs", "1.2"],
        ["logs", "1.1#2"],
        ["cancel", "99"],
    ] {
        let output = mesh.output(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{args:?}: {said}");
        assert!(said.contains(args[1]), "{args:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    let output = mesh.output(&["events", "--since", "1000000"]);
    assert!(output.stdout.is_empty());
}

#[test]
fn invalid_utf8_in_arguments_is_refused_and_in_output_is_passed_on() {
    use std::os::unix::ffi::OsStrExt;
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mut command = mesh.podmesh(&["run", "--", "echo"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("UTF-8"), "{said}");
    let output = mesh.output(&["run", "--", "printf", r"\377\376\200"]);
    assert_eq!(output.stdout, b"\xff\xfe\x80");
}

#[test]
fn a_job_over_a_limit_is_refused_with_the_limit() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let variables = mesh.folder().join("env");
    fs::write(&variables, format!("BIG={}\n", "x".repeat(10 << 20))).unwrap();
    let file = mesh.folder().join("huge.toml");
    fs::File::create(&file).unwrap().set_len(100 << 20).unwrap();
    for (args, text) in [
        (["submit", "--array", "0", "--", "true"].as_slice(), "array"),
        (&["submit", "--array", "1-99999999", "--", "true"], "10000000"),
        (&["submit", "--env-file", variables.to_str().unwrap(), "--", "true"], "env"),
        (&["submit", "-f", file.to_str().unwrap()], "JOB_FILE_BYTES_MAX"),
        (&["submit", "--cpus", "NaN", "--", "true"], "NaN"),
        (&["submit", "--memory", "12 parsecs", "--", "true"], "12 parsecs"),
        (&["submit", "--name", "a/b", "--", "true"], "name"),
        (&["submit", "-e", "=x", "--", "true"], "="),
        (&["submit", "--image", "x", "--platform", "an atari"], "linux/arm64"),
        (&["submit", "--platform", "linux", "--", "true"], "--image"),
    ] {
        let output = mesh.output(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(2 | 125)), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 0);
}

/// A page of nodes reaches its limit of bytes before its limit of rows.
#[test]
fn nodes_with_large_labels_are_all_listed() {
    const NODES: usize = 40;
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let hello = |number: usize| {
        let label = |n: usize| (format!("label-{n}").parse().unwrap(), "v".repeat(250));
        ToManager::Hello(Hello {
            version: PROTOCOL_VERSION,
            version_oldest: None,
            node: format!("node-{number}").parse().unwrap(),
            boot_id: "boot".into(),
            agent_instance: InstanceId(Uuid::from_u128(number as u128)),
            agent_id: None,
            cluster: None,
            program_version: "test".into(),
            capacity: Resources { cpu_millis: 1000, memory_bytes: 0 },
            labels: (0..LABELS_MAX).map(label).collect(),
            runtimes: vec![],
            withdrawn: [].into(),
            unenforced: [].into(),
            low_disks: [].into(),
            address: None,
            resources: Default::default(),
            attempts: vec![],
        })
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agents: Vec<_> = (0..NODES)
        .map(|number| {
            runtime.block_on(async {
                let (mut receiver, mut sender) =
                    PeerSocket::connect(&mesh.local()).await.unwrap().split();
                sender.send(&hello(number)).await.unwrap();
                assert!(matches!(receiver.recv().await.unwrap(), ToPeer::Welcome(_)));
                (receiver, sender)
            })
        })
        .collect();
    assert_eq!(mesh.nodes().len(), NODES);
    drop(agents);
}

#[test]
fn a_job_is_shown_with_all_options_of_its_container() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let platform = ["--platform", "linux/s390x"];
    let asked = ["--image", "x", "--cap-add", "NET_RAW", "--pids", "77"];
    mesh.submit(&[&asked[..], &platform, &["--", "true"]].concat());
    let job = mesh.json(&["job", "1"]);
    check("job", &job);
    assert_eq!(job["spec"]["container"]["cap_add"], serde_json::json!(["NET_RAW"]));
    assert_eq!(job["spec"]["container"]["pids"], 77);
    assert_eq!(job["spec"]["container"]["platform"], "linux/s390x");
    let text = mesh.ok(&["job", "1"]);
    assert!(["NET_RAW", "77", "s390x"].iter().all(|part| text.contains(part)), "{text}");
}
