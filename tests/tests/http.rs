//! The HTTP API of the real manager: every route against the document, streams over restarts, who
//! may ask, and hostile clients.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod http {
    mod access;
    mod client;
    mod hostile;
    mod jobs;
    mod merged;
    mod own_console;
    mod routes;
    mod streams;
}

use podmesh_tests::api::{Api, Place, Reply};
use podmesh_tests::mesh::Mesh;
use serde_json::{Value, json};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// A mesh whose manager also listens on a network address.
fn mesh(agents: &[&str]) -> Mesh {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--http", "127.0.0.1:0"]);
    mesh.start_manager();
    agents.iter().for_each(|name| mesh.start_agent(name, &[]));
    mesh
}

/// A client at the unix socket: an admin.
fn local(mesh: &Mesh) -> Api {
    Api::new(Place::Socket(mesh.http_socket()))
}

/// A client at the network address, without a token.
fn remote(mesh: &Mesh) -> Api {
    Api::new(Place::Address(mesh.http_address()))
}

/// Creates an API token.
fn token(mesh: &Mesh, role: &str) -> String {
    mesh.ok(&["token", "create", "--api", "--role", role]).trim().to_owned()
}

/// A job that runs a shell script.
fn script(text: &str) -> Value {
    json!({ "name": "script", "spec": { "command": ["sh", "-c", text], "cpu_millis": 10 } })
}

/// Submits a job, and returns its number.
fn submit(api: &Api, job: &Value) -> u64 {
    let reply = api.post("/api/v1/jobs", job);
    let (status, view) = (reply.status, reply.json());
    assert_eq!(status, 201, "{view}");
    view["job"].as_u64().unwrap()
}

/// Waits until a job has ended, and returns it.
fn ended(api: &Api, job: u64) -> Value {
    let mut since = 0;
    loop {
        let view = api.get(&format!("/api/v1/jobs/{job}?since={since}&wait_ms=30000")).json();
        if !view["ended_at"].is_null() {
            return view;
        }
        since = view["revision"].as_u64().unwrap();
    }
}

/// Checks that a reply is a problem with this status and code, and returns its text.
#[track_caller]
fn problem(reply: Reply, status: u16, code: &str) -> String {
    let kind = reply.header("content-type").unwrap_or_default().to_owned();
    let (found, text) = (reply.status, reply.text());
    assert_eq!(found, status, "{text}");
    assert_eq!(kind, "application/problem+json", "{text}");
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["code"], code, "{text}");
    assert_eq!(problem["status"], status, "{text}");
    problem["detail"].as_str().unwrap().to_owned()
}
