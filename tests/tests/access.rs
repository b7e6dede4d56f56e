//! Joining, roles and revocation from several machines. Each machine has its own data folder, and
//! they share only the network.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::Daemon;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Another machine, with its own data folder.
struct Machine<'a> {
    mesh: &'a Mesh,
    data_dir: PathBuf,
}

impl<'a> Machine<'a> {
    fn new(mesh: &'a Mesh, name: &str) -> Self {
        Self { mesh, data_dir: mesh.folder().join(name) }
    }

    fn podmesh(&self, args: &[&str]) -> Command {
        let mut command = self.mesh.command(args);
        command.env("PODMESH_DATA_DIR", &self.data_dir);
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.podmesh(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str], says: &[&str]) {
        let output = self.output(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {said}");
        assert!(says.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }

    fn login(&self, role: &str) {
        let token = self.mesh.token(role);
        self.ok(&["login", &token, "--name", role]);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_command_that_a_new_manager_prints_lets_one_other_machine_join() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let mut token = None;
    until_true("the manager prints how to join", || {
        let printed = mesh.manager().printed();
        let line = printed.lines().find_map(|line| line.split_once("podmesh agent --join "));
        token = line.map(|(_, token)| token.to_owned());
        token.is_some()
    });
    let token = token.unwrap();

    let start = |name: &str, token: &str| {
        let dir = mesh.folder().join(name);
        let mut command = mesh.command(&["agent", "--name", name, "--join", token]);
        command.arg("--data-dir").arg(&dir);
        Daemon::start(command, &mesh.folder().join(format!("{name}.txt")))
    };
    let one = start("one", &token);
    mesh.wait_for_node("one", "alive");
    assert_eq!(mesh.nodes()[0]["enrolled"], true);
    assert_eq!(mesh.ok(&["run", "--", "echo", "there"]), "there\n");

    let mut two = start("two", &token);
    until_true("the token is used up", || !two.runs());
    let said = two.printed();
    assert!(said.contains("used up") && said.contains("podmesh token create"), "{said}");

    // From now on it needs only its data folder, with the same token or without one.
    one.end();
    mesh.wait_for_node("one", "suspect");
    let again = start("one", &token);
    mesh.wait_for_node("one", "alive");
    again.end();
    let mut command = mesh.command(&["agent"]);
    command.arg("--data-dir").arg(mesh.folder().join("one"));
    mesh.wait_for_node("one", "suspect");
    let again = Daemon::start(command, &mesh.folder().join("again.txt"));
    mesh.wait_for_node("one", "alive");
    again.end();
}

#[test]
fn users_on_other_machines_may_do_what_their_role_allows() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let viewer = Machine::new(&mesh, "viewer");
    viewer.refused(&["nodes"], &["no manager answers", "podmesh login"]);
    viewer.login("viewer");
    let operator = Machine::new(&mesh, "operator");
    operator.login("operator");

    assert_eq!(operator.ok(&["run", "--", "echo", "from afar"]), "from afar\n");
    assert!(viewer.ok(&["nodes"]).contains("alive"));
    assert_eq!(viewer.ok(&["logs", "1"]), "from afar\n");
    assert!(viewer.ok(&["events"]).contains("operator operator joined with token"));
    viewer.refused(&["submit", "--", "true"], &["role viewer", "needs operator"]);
    viewer.refused(&["cancel", "1"], &["role viewer"]);
    operator.refused(&["token", "create"], &["role operator", "needs admin"]);
    let high = ["submit", "--priority", "1", "--", "true"];
    operator.refused(&high, &["priority 1 is for admins", "up to 0", "priority_max"]);
    operator.refused(&["nodes", "revoke", "a"], &["needs admin"]);
    // The refused requests had no effect.
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    operator.ok(&["submit", "--priority", "-5", "--", "true"]);
    mesh.ok(&high);
    // Each job shows who submitted it.
    let by = |listed: serde_json::Value| -> Vec<String> {
        let jobs = listed["jobs"].as_array().unwrap().clone();
        jobs.iter().map(|job| job["submitted_by"].as_str().unwrap().to_owned()).collect()
    };
    let local = mesh.json(&["job", "3"])["submitted_by"].as_str().unwrap().to_owned();
    assert_eq!(by(mesh.json(&["jobs"])), [&*local, "operator", "operator"]);
    assert_eq!(by(mesh.json(&["jobs", "--mine"])), [&*local]);
    assert!(operator.ok(&["jobs", "--mine"]).contains("operator"));
    assert!(!operator.ok(&["jobs", "--mine"]).contains(&local));

    let users = mesh.json(&["users"]);
    let names: Vec<_> = users["users"].as_array().unwrap().iter().map(|row| &row["user"]).collect();
    assert_eq!(names, ["operator", "viewer"]);
    let states: Vec<_> = mesh.json(&["token", "list"])["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["state"].as_str().unwrap().to_owned())
        .collect();
    assert!(states.iter().filter(|state| *state == "used_up").count() >= 3, "{states:?}");
}

#[test]
fn revoked_users_and_nodes_are_disconnected_and_stay_refused() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a", "b"]);
    let viewer = Machine::new(&mesh, "viewer");
    viewer.login("viewer");
    let mut follow = viewer.podmesh(&["events", "-f", "--since", "0"]);
    let follow = follow.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    // It is connected when the first byte arrives.
    let mut first = [0; 1];
    follow.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    mesh.ok(&["users", "revoke", "viewer"]);
    let output = follow.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("revoked"), "{}", said(&output));
    viewer.refused(&["nodes"], &["revoked", "podmesh token create"]);

    mesh.ok(&["nodes", "revoke", "b"]);
    mesh.wait_for_node("b", "suspect");
    until_true("the agent is informed", || mesh.agent("b").printed().contains("revoked"));
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    Machine::new(&mesh, "viewer").refused(&["nodes"], &["revoked"]);
    assert!(mesh.nodes().iter().any(|node| node["node"] == "b" && node["state"] != "alive"));
    let events = mesh.ok(&["events"]);
    for part in ["viewer viewer revoked by", "agent b revoked by"] {
        assert!(events.contains(part), "{part}: {events}");
    }
}

#[test]
fn a_user_who_logs_out_loses_the_key_and_can_join_again() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let ann = Machine::new(&mesh, "ann");
    let joined = ann.output(&["login", &mesh.token("viewer"), "--name", "ann"]);
    assert!(joined.status.success(), "{}", said(&joined));
    assert!(ann.output(&["jobs"]).status.success());
    let left = ann.output(&["logout"]);
    assert!(left.status.success(), "{}", said(&left));
    assert!(said(&left).contains("podmesh users revoke ann"), "{}", said(&left));
    assert_eq!(fs::read_dir(ann.data_dir.join("user")).unwrap().count(), 0);
    assert!(!ann.output(&["jobs"]).status.success());
    let twice = ann.output(&["logout"]);
    assert_eq!(twice.status.code(), Some(125), "{}", said(&twice));
    assert!(said(&twice).contains("has not joined a cluster"), "{}", said(&twice));
    let again = ann.output(&["login", &mesh.token("viewer"), "--name", "ann-again"]);
    assert!(again.status.success(), "{}", said(&again));
    // Without a verb, tokens are listed.
    assert_eq!(mesh.json(&["token"])["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(mesh.json(&["token"]), mesh.json(&["token", "list"]));
}

#[test]
fn a_token_that_cannot_be_used_is_refused_with_the_reason() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let elsewhere = Machine::new(&mesh, "elsewhere");
    let login = |token: &str, says: &[&str], code: i32| {
        let output = elsewhere.output(&["login", token]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(says.iter().all(|part| said.contains(part)), "{said}");
    };
    let token = mesh.token("viewer");
    login(&token[..token.len() - 3], &["incomplete"], 2);
    login("hello", &["not a join token"], 2);
    let id =
        mesh.json(&["token", "list"])["tokens"].as_array().unwrap().last().unwrap()["id"].clone();
    mesh.ok(&["token", "revoke", &id.to_string()]);
    login(&token, &["was revoked", "podmesh token create"], 125);
    let short = mesh.ok(&["token", "create", "--role", "viewer", "--ttl", "1ms"]);
    thread::sleep(std::time::Duration::from_millis(2));
    login(short.trim(), &["has expired"], 125);
    // A token of another manager with the address of the first: the keys differ.
    let other = Mesh::with_agents(PODMESH, &[]);
    let token = other.token("viewer").parse::<podmesh_protocol::access::JoinToken>().unwrap();
    let wrong =
        podmesh_protocol::access::JoinToken { addresses: vec![mesh.address()], ..token.clone() };
    login(&wrong.to_string(), &["another key"], 125);
    let nobody =
        podmesh_protocol::access::JoinToken { addresses: vec!["127.0.0.1:1".into()], ..token };
    login(&nobody.to_string(), &["cannot connect to 127.0.0.1:1"], 125);
    assert!(!elsewhere.data_dir.join("user/enrolment.json").exists());
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let viewer = Machine::new(&mesh, "viewer");
    viewer.login("viewer");
    let key = viewer.data_dir.join("user/key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    viewer.refused(&["nodes"], &["mode 644", "chmod 600"]);
    let output = viewer.output(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && text.contains("WRONG  key"), "{text}");
}

#[test]
fn doctor_reports_what_works_and_what_does_not() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let doctor = |machine: &Machine| -> serde_json::Value {
        let output = machine.output(&["doctor", "--output", "json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let what = |report: &serde_json::Value, ok: bool| -> Vec<String> {
        let checks = report["checks"].as_array().unwrap().iter();
        let checks = checks.filter(|check| check["ok"] == ok);
        checks.map(|check| check["what"].as_str().unwrap().to_owned()).collect()
    };
    {
        let viewer = Machine::new(&mesh, "viewer");
        viewer.login("viewer");
        let report = doctor(&viewer);
        let all = ["disk", "key", "address", "version", "clock", "role", "docker"];
        assert_eq!(what(&report, true), all, "{report}");
    }
    mesh.ok(&["doctor"]);
    mesh.kill_manager();
    let report = doctor(&Machine::new(&mesh, "viewer"));
    assert_eq!(what(&report, false), ["address"], "{report}");
}

/// Starts a proxy that records all bytes. Returns its address and the record.
fn eavesdrop(manager: &str) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (ears, manager) = (Arc::clone(&heard), manager.to_owned());
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(&manager).unwrap());
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let ears = Arc::clone(&ears);
                thread::spawn(move || {
                    let mut buffer = [0; 65536];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        ears.lock().unwrap().extend(&buffer[..count]);
                        if to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (address, heard)
}

#[test]
fn an_eavesdropper_on_the_network_learns_nothing() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let (address, heard) = eavesdrop(&mesh.address());
    let through = |role: &str| {
        let token = mesh.token(role).parse::<podmesh_protocol::access::JoinToken>().unwrap();
        let token =
            podmesh_protocol::access::JoinToken { addresses: vec![address.clone()], ..token };
        token.to_string()
    };
    let operator = Machine::new(&mesh, "operator");
    operator.ok(&["login", &through("operator"), "--name", "secretive-ann"]);
    let dir = mesh.folder().join("secret-node");
    let mut command =
        mesh.command(&["agent", "--name", "secret-node", "--join", &through("agent")]);
    command.arg("--data-dir").arg(&dir);
    let agent = Daemon::start(command, &mesh.folder().join("agent.txt"));
    mesh.wait_for_node("secret-node", "alive");
    let run = ["run", "--name", "secret-job", "--", "echo", "secret-payload"];
    assert_eq!(operator.ok(&run), "secret-payload\n");
    assert!(operator.ok(&["events"]).contains("secret-job"));
    let heard = heard.lock().unwrap();
    assert!(heard.len() > 10_000, "{} bytes passed", heard.len());
    for word in ["secret-", "ive-ann", "manager", "events", "READY", "DEALER", "Socket-Type"] {
        let found = heard.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(!found, "{word} was readable");
    }
    drop(heard);
    agent.end();
}

#[test]
fn a_libzmq_client_written_from_the_documentation_lists_submits_and_watches() {
    let python = Path::new("/usr/bin/python3");
    let libraries = Command::new(python).args(["-c", "import zmq, msgpack"]).output();
    if !libraries.is_ok_and(|output| output.status.success()) {
        let required = std::env::var("PODMESH_TEST_PYZMQ").is_ok_and(|value| value == "required");
        assert!(!required, "PODMESH_TEST_PYZMQ=required, but pyzmq or msgpack is missing");
        eprintln!("SKIPPED: the example in Python: pyzmq or msgpack is missing");
        return;
    }
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/examples/client.py");
    let output = Command::new(python).arg(example).arg(mesh.data_dir()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", said(&output));
    for line in ["node a alive", "job 1", "ended succeeded"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert_eq!(mesh.ok(&["logs", "1"]).matches("hello").count(), 3);
}

/// The owner's primary group can have other members, so it has no access by default.
#[test]
fn only_the_owner_can_use_the_managers_sockets_unless_a_group_is_set() {
    let own_group = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    for (flags, mode) in [(vec![], 0o600), (vec!["--group", &own_group.name], 0o660)] {
        let mut mesh = Mesh::new(PODMESH).manager_flags(&flags);
        mesh.start_manager();
        for name in ["control.sock", "publications.sock", "heartbeats.sock", "http.sock"] {
            let socket = fs::metadata(mesh.data_dir().join("run").join(name)).unwrap();
            assert_eq!(socket.mode() & 0o777, mode, "{name} with {flags:?}");
            assert_eq!(socket.gid(), own_group.gid.as_raw());
        }
    }
}

#[test]
fn operators_submit_no_more_than_the_rate_of_the_manager() {
    let mut mesh = Mesh::new(PODMESH);
    std::fs::create_dir_all(mesh.data_dir()).unwrap();
    std::fs::write(mesh.data_dir().join("manager.toml"), "submissions_per_caller = '3/h'").unwrap();
    mesh.start_manager();
    let [ann, bob] = ["ann", "bob"].map(|name| Machine::new(&mesh, name));
    for (machine, name) in [(&ann, "ann"), (&bob, "bob")] {
        machine.ok(&["login", &mesh.token("operator"), "--name", name]);
    }
    let array = ["submit", "--array", "1000", "--", "true"];
    (0..3).for_each(|_| _ = ann.ok(&array));
    // It would have to wait for longer than the command line does.
    let says = ["ann has submitted 3 in an hour", "submissions_per_caller", "submit again in"];
    ann.refused(&array, &says);
    ann.ok(&["cancel", "1"]);
    (0..3).for_each(|_| _ = bob.ok(&array));
    (0..5).for_each(|_| _ = mesh.ok(&array));
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 11);
}

#[test]
fn the_command_line_waits_until_it_may_submit() {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--submissions-per-caller", "4/s"]);
    mesh.start_manager();
    let ann = Machine::new(&mesh, "ann");
    ann.login("operator");
    let started = std::time::Instant::now();
    (0..10).for_each(|_| _ = ann.ok(&["submit", "--", "true"]));
    // Four at once, and the others evenly: a bound that no slow machine breaks.
    assert!(started.elapsed() >= std::time::Duration::from_millis(1_500), "{started:?}");
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 10);
    let mut wrong = mesh.command(&["manager", "--submissions-per-caller", "4/d"]);
    let wrong = wrong.output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("100/s, 30/m or 500/h"), "{}", said(&wrong));
}
