//! The metrics of the real daemons: scraped under load, by those who may, and as documented.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod metrics {
    mod agent;
    pub(crate) mod monitoring;
    mod prometheus;
    pub(crate) mod scrape;
}

use std::net::{Ipv4Addr, SocketAddr};

use podmesh_tests::api::{Api, Place};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

use self::metrics::monitoring;
use self::metrics::scrape::{self, Scrape};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn mesh(agents: &[&str]) -> Mesh {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--http", "127.0.0.1:0"]);
    mesh.start_manager();
    agents.iter().for_each(|name| mesh.start_agent(name, &["--cpus", "4"]));
    mesh
}

/// An address for the metrics of an agent that nothing else uses: its host is of this test run.
fn agent_address(number: u8) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 100 + number, high, low.clamp(1, 254)), 9100).into()
}

/// A mesh of a manager and an agent with metrics at [`agent_address`].
fn mesh_with_metrics(agent: &str, number: u8) -> Mesh {
    let mut mesh = mesh(&[]);
    mesh.start_agent(agent, &["--metrics", &agent_address(number).to_string()]);
    mesh
}

/// Scrapes the manager at its unix socket.
fn manager(mesh: &Mesh) -> Scrape {
    Scrape::of(&Api::new(Place::Socket(mesh.http_socket())))
}

#[test]
fn the_metrics_of_the_manager_follow_the_work() {
    let mesh = mesh(&["a", "b"]);
    let seen = |what: &str| manager(&mesh).value(what);
    let job = mesh.submit(&["--array", "1-60", "--cpus", "0.5", "--", "sleep", "0.2"]);
    let failing = mesh.submit(&["--retries", "1", "--retry-backoff", "10ms", "--", "false"]);
    // Under load.
    until_true("tasks wait and run", || {
        let scrape = manager(&mesh);
        let queued = scrape.value(r#"podmesh_tasks{state="queued"}"#);
        let active = scrape.value(r#"podmesh_tasks{state="active"}"#);
        let free: f64 = ["a", "b"]
            .map(|node| scrape.value(&format!(r#"podmesh_node_free_cpus{{node="{node}"}}"#)))
            .iter()
            .sum();
        queued > 0.0 && active > 0.0 && free < 8.0 && scrape.value("podmesh_queue_jobs") > 0.0
    });
    mesh.wait_for_job(job, "succeeded");
    mesh.wait_for_job(failing, "failed");
    until_true("all ends are counted", || {
        seen(r#"podmesh_jobs_ended_total{state="failed"}"#) == 1.0
            && seen(r#"podmesh_jobs_ended_total{state="succeeded"}"#) == 1.0
    });
    let end = manager(&mesh);
    for (what, value) in [
        ("podmesh_jobs_submitted_total", 2.0),
        ("podmesh_attempts_assigned_total", 62.0),
        (r#"podmesh_attempts_ended_total{outcome="succeeded"}"#, 60.0),
        (r#"podmesh_attempts_ended_total{outcome="failed"}"#, 2.0),
        (r#"podmesh_attempts_ended_total{outcome="lost"}"#, 0.0),
        (r#"podmesh_tasks_ended_total{state="succeeded"}"#, 60.0),
        (r#"podmesh_tasks_ended_total{state="failed"}"#, 1.0),
        (r#"podmesh_tasks{state="queued"}"#, 0.0),
        (r#"podmesh_tasks{state="active"}"#, 0.0),
        (r#"podmesh_jobs{state="running"}"#, 0.0),
        ("podmesh_queue_jobs", 0.0),
        ("podmesh_queue_wait_seconds_count", 62.0),
        (r#"podmesh_queue_wait_seconds_bucket{le="+Inf"}"#, 62.0),
        (r#"podmesh_nodes{state="alive"}"#, 2.0),
        (r#"podmesh_node_alive{node="a"}"#, 1.0),
        (r#"podmesh_node_cpus{node="a"}"#, 4.0),
        (r#"podmesh_node_free_cpus{node="b"}"#, 4.0),
        ("podmesh_database_waits_for_room", 0.0),
    ] {
        assert_eq!(end.value(what), value, "{what}");
    }
    // 60 tasks of 0.2 s on 8 cores, two to a core, need at least 0.75 s: some wait long.
    assert!(end.value("podmesh_queue_wait_seconds_sum") > 5.0);
    assert!(end.value("podmesh_dispatch_seconds_count") >= 60.0);
    assert!(end.value("podmesh_commit_seconds_count") > 2.0);
    assert!(end.value("podmesh_event_revision") > 180.0);
    assert!(end.value("podmesh_disk_free_bytes") > 0.0);
    assert!(end.value("process_resident_memory_bytes") > f64::from(1 << 20));
    assert!(end.value("process_open_fds") > 10.0);
}

#[test]
fn services_and_lost_nodes_are_in_the_metrics() {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&[
        "--http",
        "127.0.0.1:0",
        "--lease",
        "2s",
        "--heartbeat",
        "100ms",
    ]);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    mesh.start_agent("b", &[]);
    let file = mesh.folder().join("web.toml");
    let spec = "name = \"web\"\ncommand = [\"sleep\", \"600\"]\nreplicas = 2\ncpus = 0.01\n";
    std::fs::write(&file, spec).unwrap();
    mesh.ok(&["service", "apply", "-f", file.to_str().unwrap(), "--wait"]);
    let now = manager(&mesh);
    assert_eq!(now.value(r#"podmesh_services{state="healthy"}"#), 1.0);
    assert_eq!(now.value(r#"podmesh_service_replicas_healthy{service="web"}"#), 2.0);
    assert_eq!(now.value(r#"podmesh_service_replicas_wanted{service="web"}"#), 2.0);
    mesh.ok(&["service", "stop", "web", "--wait"]);
    let now = manager(&mesh);
    assert_eq!(now.value(r#"podmesh_service_replicas_wanted{service="web"}"#), 0.0);
    until_true("heartbeats came", || {
        manager(&mesh).value("podmesh_heartbeat_delay_seconds_count") > 1.0
    });
    mesh.kill_agent("b");
    mesh.wait_for_node("b", "lost");
    until_true("the loss is counted", || manager(&mesh).value("podmesh_nodes_lost_total") == 1.0);
    let now = manager(&mesh);
    assert_eq!(now.value(r#"podmesh_nodes{state="lost"}"#), 1.0);
    assert_eq!(now.value(r#"podmesh_node_alive{node="b"}"#), 0.0);
}

#[test]
fn metrics_are_for_those_who_may_read() {
    let mesh = mesh(&[]);
    let remote = Api::new(Place::Address(mesh.http_address()));
    assert_eq!(remote.get("/metrics").status, 401);
    let viewer = mesh.ok(&["token", "create", "--api", "--role", "viewer"]);
    let reply = remote.bearing(&viewer).get("/metrics");
    assert_eq!(reply.status, 200);
    let kind = reply.header("content-type").unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(reply.text().ends_with("\n# EOF\n"));
    assert_eq!(remote.bearing(&viewer).post("/metrics", &serde_json::json!({})).status, 405);
}
