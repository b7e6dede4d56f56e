//! A real Prometheus, with the example of its configuration, scrapes a manager and an agent.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use podmesh_tests::api::{Api, Place};
use podmesh_tests::ports::free_port;
use podmesh_tests::process::Daemon;
use podmesh_tests::wait::until_true;
use serde_json::Value;

use crate::monitoring::{panels, read};
use crate::{agent_address, mesh_with_metrics};

/// Series of a service with a published port that somebody connects to: not of every mesh.
const OF_PROXIES: &str = "podmesh_proxy_";

/// Starts Prometheus; `None` if there is none, which is said.
fn start(folder: &Path, address: SocketAddr) -> Option<Daemon> {
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        let required = std::env::var("PODMESH_TEST_PROMTOOL").is_ok_and(|it| it == "required");
        assert!(!required, "prometheus cannot be run: {error}; install the package `prometheus`");
        eprintln!("SKIPPED: prometheus cannot be run ({error}); install the package `prometheus`");
        return None;
    }
    let mut command = Command::new("prometheus");
    command.current_dir(folder).args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        &format!("--web.listen-address={address}"),
    ]);
    Some(Daemon::start(command, &folder.join("prometheus.txt")))
}

fn query(prometheus: &Api, expression: &str) -> Value {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    prometheus.get(&format!("/api/v1/query?query={encoded}")).json()
}

#[test]
fn prometheus_scrapes_both_daemons_and_answers_every_query_of_the_dashboard() {
    let mesh = mesh_with_metrics("a", 7);
    let folder = mesh.folder().join("prometheus");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("rules.yml"), read("rules.yml")).unwrap();
    let token = mesh.ok(&["token", "create", "--api", "--role", "viewer"]);
    fs::write(folder.join("podmesh.token"), token.trim()).unwrap();
    let config = read("prometheus.yml")
        .replace("15s", "1s")
        .replace("/etc/prometheus/podmesh.token", "podmesh.token")
        .replace("127.0.0.1:7771", &mesh.http_address().to_string())
        .replace("\"10.0.0.5:9100\", \"10.0.0.6:9100\"", &format!("\"{}\"", agent_address(7)));
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let Some(mut daemon) = start(&folder, address) else { return };
    let prometheus = Api::new(Place::Address(address));
    until_true("prometheus is ready", || {
        assert!(daemon.runs(), "{}", daemon.printed());
        prometheus.send("GET", "/-/ready", None).is_ok_and(|reply| reply.status == 200)
    });
    until_true("both daemons are scraped", || {
        let targets = prometheus.get("/api/v1/targets").json();
        let targets = targets["data"]["activeTargets"].as_array().unwrap();
        targets.len() == 2 && targets.iter().all(|target| target["health"] == "up")
    });

    let file = mesh.folder().join("service.toml");
    fs::write(&file, "name = \"web\"\ncommand = [\"sleep\", \"600\"]\ncpus = 0.01\n").unwrap();
    mesh.ok(&["service", "apply", "-f", file.to_str().unwrap()]);
    mesh.submit(&["--array", "1-2000", "--cpus", "0.2", "--", "sleep", "0.2"]);
    for expression in panels() {
        let expression = expression.replace("$__rate_interval", "10s");
        until_true(&format!("there is an answer to {expression}"), || {
            let answer = query(&prometheus, &expression);
            assert_eq!(answer["status"], "success", "{expression}: {answer}");
            let empty = answer["data"]["result"].as_array().unwrap().is_empty();
            !empty || expression.contains(OF_PROXIES)
        });
    }
    // The rules are loaded, and none of them fails.
    let groups = prometheus.get("/api/v1/rules").json()["data"]["groups"].clone();
    let rules =
        groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let health: Vec<_> = rules.map(|rule| rule["health"].clone()).collect();
    assert!(!health.is_empty() && !health.contains(&"err".into()), "{groups:#}");
    assert!(daemon.stop().success());
}
