//! The metrics of an agent.

use podmesh_tests::api::{Api, Place};
use podmesh_tests::wait::until_true;

use crate::scrape::Scrape;
use crate::{agent_address, mesh_with_metrics};

#[test]
fn the_metrics_of_an_agent_follow_its_work() {
    let mut mesh = mesh_with_metrics("a", 2);
    let api = Api::new(Place::Address(agent_address(2)));
    let seen = |what: &str| Scrape::of(&api).value(what);
    until_true("there is a session", || seen("podmesh_agent_session") == 1.0);
    let long = mesh.submit(&["--cpus", "0.1", "--", "sleep", "600"]);
    until_true("it runs", || {
        seen(r#"podmesh_agent_attempts_started_total{runtime="process"}"#) == 1.0
    });
    let job = mesh.submit(&["--array", "1-5", "--cpus", "0.1", "--", "sh", "-c", "exit 3"]);
    mesh.wait_for_job(job, "failed");
    until_true("all ends are counted", || {
        seen(r#"podmesh_agent_attempts_ended_total{outcome="failed"}"#) == 5.0
            && seen(r#"podmesh_agent_attempts{runtime="process"}"#) == 1.0
    });
    let prints = mesh.submit(&["--cpus", "0.1", "--", "sh", "-c", "head -c 123456 /dev/zero"]);
    mesh.wait_for_job(prints, "succeeded");
    until_true("written bytes are counted", || {
        seen("podmesh_agent_log_written_bytes_total") == 123_456.0
    });
    assert_eq!(seen("podmesh_agent_log_gaps_total"), 0.0);
    mesh.ok(&["cancel", &long.to_string()]);
    until_true("nothing runs", || seen(r#"podmesh_agent_attempts{runtime="process"}"#) == 0.0);

    let file = mesh.folder().join("web.toml");
    let spec = "name = \"web\"\ncommand = [\"sleep\", \"600\"]\nreplicas = 2\ncpus = 0.01\n";
    std::fs::write(&file, spec).unwrap();
    mesh.ok(&["service", "apply", "-f", file.to_str().unwrap(), "--wait"]);
    let healthy = r#"podmesh_agent_replicas{service="web",health="healthy"}"#;
    assert_eq!(seen(healthy), 2.0);
    until_true("heartbeats are answered", || {
        seen("podmesh_agent_heartbeat_round_trip_seconds_count") > 0.0
    });
    assert!(seen("process_open_fds") > 5.0);

    // Without the manager, an agent still says how it is.
    mesh.kill_manager();
    until_true("the session has ended", || seen("podmesh_agent_session") == 0.0);
    assert_eq!(seen(healthy), 2.0);
    mesh.start_manager();
    until_true("there is a new session", || seen("podmesh_agent_session") == 1.0);
    assert_eq!(seen("podmesh_agent_sessions_total"), 2.0);
}

#[test]
fn an_agent_serves_its_metrics_and_nothing_else() {
    let mut mesh = mesh_with_metrics("a", 3);
    let api = Api::new(Place::Address(agent_address(3)));
    assert_eq!(api.get("/").status, 404);
    let reply = api.post("/metrics", &serde_json::json!({}));
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    // The address is in use: the second agent says so, and what to do.
    mesh.spawn_agent("b", &["--metrics", &agent_address(3).to_string()]);
    let ended = mesh.agent("b").wait_for_end();
    assert!(!ended.success());
    let said = mesh.agent("b").printed();
    assert!(said.contains("cannot be served") && said.contains("--metrics"), "{said}");
}
