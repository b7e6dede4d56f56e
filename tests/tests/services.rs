//! Services with real processes behind real proxies.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::{SocketAddr, TcpListener};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_tests::http::{Load, get};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{until, until_true};
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// The port of the service. Each test's proxies have addresses of their own.
const PORT: u16 = 8080;

/// A mesh of two nodes, with short leases.
fn mesh() -> Mesh {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--lease", "2s", "--heartbeat", "200ms"]);
    mesh.start_manager();
    for name in ["a", "b"] {
        mesh.start_agent(name, &["--docker", "off"]);
    }
    mesh
}

/// Returns whether there is a web server for tests. Says so if there is none.
fn has_web_server() -> bool {
    let there = std::path::Path::new("/bin/busybox").exists();
    if !there {
        eprintln!("SKIPPED: services of web servers need /bin/busybox (package busybox-static)");
        let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
        assert!(!required, "PODMESH_TEST_DOCKER=required");
    }
    there
}

/// A service of web servers that print their process id and `text`.
struct Web<'a> {
    mesh: &'a Mesh,
    replicas: u32,
}

impl Web<'_> {
    fn file(&self, text: &str) -> String {
        let script = format!(
            "echo \"$$ {text}\" > index.html; exec /bin/busybox httpd -f -p $PODMESH_PORT_HTTP -h ."
        );
        format!(
            "name = \"web\"\ncommand = [\"sh\", \"-c\", '{script}']\nreplicas = {}\ncpus = 0.1\n\
             drain = \"5s\"\n[ports]\nhttp = {{ publish = {} }}\n[update]\nhealthy_within = \"20s\"\n",
            self.replicas, PORT
        )
    }

    fn apply(&self, text: &str) -> std::process::Output {
        let path = self.mesh.folder().join("service.toml");
        fs::write(&path, self.file(text)).unwrap();
        let path = path.to_str().unwrap();
        self.mesh.output(&["service", "apply", "-f", path, "--wait", "--timeout", "50s"])
    }

    fn applied(&self, text: &str) {
        let output = self.apply(text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Returns the replicas of the service that are in a state.
fn replicas(mesh: &Mesh, state: &str) -> Vec<Value> {
    let shown = mesh.json(&["service", "web"]);
    let all = shown["replica_list"].as_array().unwrap().iter();
    all.filter(|replica| replica["state"] == state).cloned().collect()
}

#[test]
fn updates_fail_no_request_while_the_manager_and_agents_are_killed() {
    if !has_web_server() {
        return;
    }
    let mut mesh = mesh();
    let ports = ["a", "b"].map(|node| SocketAddr::new(mesh.ingress(node).into(), PORT));
    Web { mesh: &mesh, replicas: 3 }.applied("one");
    for address in ports {
        until_true("the proxy answers", || get(address).is_ok());
    }
    let load = Load::start(ports);
    for round in 0..4 {
        Web { mesh: &mesh, replicas: 3 }.applied(&format!("revision {round}"));
        match round {
            0 => {
                mesh.kill_manager();
                mesh.start_manager();
            }
            1 | 2 => {
                let node = ["b", "a"][round % 2];
                mesh.kill_agent(node);
                mesh.start_agent(node, &["--docker", "off"]);
            }
            _ => {}
        }
    }
    let (answers, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {answers}: {:?}", failures.len(), failures.first());
    assert!(answers > 100, "{answers} answers");
    assert!(get(ports[0]).unwrap().contains("revision 3"));
    // Nothing of the earlier revisions is left.
    assert_eq!(replicas(&mesh, "healthy").len(), 3);
    assert_eq!(mesh.json(&["service", "web"])["existing"], 3);
}

#[test]
fn a_killed_replica_and_a_lost_node_are_replaced() {
    if !has_web_server() {
        return;
    }
    let mut mesh = mesh();
    let first = mesh.ingress("a");
    let at = |ip: std::net::Ipv4Addr| SocketAddr::new(ip.into(), PORT);
    Web { mesh: &mesh, replicas: 2 }.applied("here");
    let pid = until("it answers", || get(at(first)).ok());
    let pid: i32 = pid.split(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until_true("another one has taken its place", || {
        let all = replicas(&mesh, "healthy");
        all.len() == 2 && all.iter().any(|replica| replica["failures"] == 1)
    });

    let load = Load::start([at(first)]);
    // The whole machine of `b` goes: agent, proxy, and what runs there.
    mesh.kill_agent("b");
    mesh.kill_supervisor("b");
    until_true("all replicas are on the other node", || {
        let all = replicas(&mesh, "healthy");
        all.len() == 2 && all.iter().all(|replica| replica["node"] == "a")
    });
    let (answers, failures) = load.stop();
    // The client asks one request at a time. The replica may have been killed while it answered one.
    assert!(failures.len() <= 1, "{} of {answers}: {failures:?}", failures.len());
}

#[test]
fn a_bad_revision_is_rolled_back_and_told() {
    if !has_web_server() {
        return;
    }
    let mesh = mesh();
    let web = Web { mesh: &mesh, replicas: 2 };
    web.applied("good");
    let before = replicas(&mesh, "healthy");
    let bad = web
        .file("bad")
        .replace("exec /bin/busybox httpd", "sleep 0.1; exit 7 #")
        .replace("20s", "2s");
    let path = mesh.folder().join("bad.toml");
    fs::write(&path, bad).unwrap();
    let apply = ["service", "apply", "-f", path.to_str().unwrap(), "--wait", "--timeout", "50s"];
    let output = mesh.output(&apply);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("exit code 7"), "{said}");
    let jobs = |replicas: &[Value]| -> Vec<Value> {
        replicas.iter().map(|replica| replica["job"].clone()).collect()
    };
    assert_eq!(jobs(&replicas(&mesh, "healthy")), jobs(&before), "the old ones were not touched");
    let history = mesh.json(&["service", "history", "web"]);
    assert_eq!(history["revisions"][0]["state"], "failed", "{history}");
}

#[test]
fn a_port_that_another_program_has_is_opened_when_it_is_free() {
    if !has_web_server() {
        return;
    }
    let mut mesh = mesh();
    let (first, second) = (mesh.ingress("a"), mesh.ingress("b"));
    let taken = TcpListener::bind((first, PORT)).unwrap();
    Web { mesh: &mesh, replicas: 1 }.applied("here");
    let at = |ip: std::net::Ipv4Addr| SocketAddr::new(ip.into(), PORT);
    until_true("the other node serves", || get(at(second)).is_ok());
    let closed = || mesh.json(&["service", "web"])["closed_ports"].clone();
    until_true("it is said", || {
        closed()[0].as_str().is_some_and(|said| said.contains("8080 is not open on node `a`"))
    });
    drop(taken);
    until_true("the port is opened", || get(at(first)).is_ok());
    until_true("nothing more is said", || closed().as_array().is_some_and(Vec::is_empty));
}

#[test]
fn what_a_service_printed_is_found_by_its_name() {
    let mesh = mesh();
    let script = "echo \"replica $PODMESH_REPLICA of $PODMESH_SERVICE\"; sleep 1000";
    let file = format!(
        "name = \"talker\"\ncommand = [\"sh\", \"-c\", '{script}']\nreplicas = 3\ncpus = 0.1\n"
    );
    let path = mesh.folder().join("talker.toml");
    fs::write(&path, file).unwrap();
    mesh.ok(&["service", "apply", "-f", path.to_str().unwrap(), "--wait"]);
    let expected = "talker.1 | replica 1 of talker\ntalker.2 | replica 2 of talker\n\
                    talker.3 | replica 3 of talker\n";
    let printed = until("all have printed", || {
        let mut lines: Vec<String> =
            mesh.ok(&["logs", "talker"]).lines().map(|line| format!("{line}\n")).collect();
        lines.sort();
        (lines.len() == 3).then(|| lines.concat())
    });
    assert_eq!(printed, expected);
    assert_eq!(mesh.ok(&["logs", "talker.2"]), "replica 2 of talker\n");
    mesh.ok(&["service", "remove", "talker", "--wait"]);
    assert_eq!(mesh.json(&["services"])["services"], Value::Array(Vec::new()));
}
