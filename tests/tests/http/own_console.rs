//! `podmesh console`: the same API and page on a user's machine, through the mesh.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use podmesh_tests::api::{Api, Place};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::Daemon;
use podmesh_tests::wait::{until, until_true};
use serde_json::json;

use crate::{PODMESH, ended, problem, script, submit};

/// A console of a user, on a machine of their own.
struct OwnConsole {
    daemon: Daemon,
    api: Api,
    code: String,
}

impl OwnConsole {
    /// Joins as a user of this role, and starts the console.
    fn start(mesh: &Mesh, role: &str) -> Self {
        let home = mesh.folder().join(format!("home-{role}"));
        let mut login = mesh.command(&["login", &mesh.token(role), "--name", role]);
        let output = login.env("PODMESH_DATA_DIR", &home).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let file = |name: &str| -> PathBuf { home.join(name) };
        let mut command = mesh.command(&["console", "--no-open"]);
        command.env("PODMESH_DATA_DIR", &home);
        let daemon = Daemon::start_split(command, &file("stdout"), &file("stderr"));
        let url = until("the console prints its address", || {
            let printed = fs::read_to_string(file("stdout")).ok()?;
            printed.strip_suffix('\n').map(str::to_owned)
        });
        let (address, code) = url.split_once("/#code=").unwrap();
        let address = address.strip_prefix("http://").unwrap().parse().unwrap();
        Self { daemon, api: Api::new(Place::Address(address)), code: code.to_owned() }
    }

    /// Exchanges the code for a token, and returns a client that bears it.
    fn sign_in(&self) -> Api {
        let reply = self.try_code(&self.code);
        assert_eq!(reply.status, 200);
        self.api.bearing(reply.json()["token"].as_str().unwrap())
    }

    fn try_code(&self, code: &str) -> podmesh_tests::api::Reply {
        self.api.with("Podmesh-Code", code).send("POST", "/sign-in", None).unwrap()
    }

    /// Ends it as Ctrl-C does.
    fn stop(mut self) {
        self.daemon.signal(Signal::SIGINT);
        assert!(self.daemon.wait_for_end().success());
    }
}

#[test]
fn the_console_of_a_user_has_the_whole_api_through_the_mesh() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let console = OwnConsole::start(&mesh, "operator");
    let api = console.sign_in();
    let page = api.get("/").text();
    assert!(page.contains("/assets/app.js"), "{page}");
    let me = api.get("/api/v1/me").json();
    assert_eq!((&me["name"], &me["role"]), (&json!("operator"), &json!("operator")));

    let mut events = api.events("/api/v1/events").unwrap();
    let job = submit(&api, &script("echo through the mesh; sleep 0.2; echo to the end"));
    let log = format!("/api/v1/jobs/{job}/tasks/1/log?follow=true");
    let output = until("the task starts", || {
        let reply = api.get(&log);
        (reply.status == 200).then(|| reply.text())
    });
    assert_eq!(output, "through the mesh\nto the end\n");
    assert_eq!(ended(&api, job)["state"], "succeeded");
    let seen = |event: &podmesh_tests::api::Event| {
        event.data["event"] == "job_ended" && event.data["job"] == job
    };
    while !seen(&events.event().unwrap().unwrap()) {}
    let jobs = api.get("/api/v1/jobs").json();
    assert_eq!(jobs["jobs"][0]["job"], job);
    // They are at the manager, not here.
    problem(api.get("/metrics"), 404, "not_found");
    console.stop();
}

#[test]
fn the_code_of_a_console_works_once_and_only_for_its_own_page() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let console = OwnConsole::start(&mesh, "viewer");
    problem(console.try_code("00000000000000000000000000000000"), 401, "invalid_token");
    problem(console.try_code(""), 401, "invalid_token");
    let foreign = |name, value| {
        let request = console.api.with(name, value).with("Podmesh-Code", &console.code);
        request.send("POST", "/sign-in", None).unwrap()
    };
    problem(foreign("Host", "evil.example"), 421, "wrong_host");
    problem(foreign("Origin", "http://evil.example"), 403, "foreign_origin");
    // What was refused has not used it up.
    let api = console.sign_in();
    let why = problem(console.try_code(&console.code), 401, "invalid_token");
    assert!(why.contains("used already") && why.contains("podmesh console"), "{why}");
    until_true("the user is told", || console.daemon.printed().contains("again"));

    for stranger in [console.api.clone(), console.api.bearing("podmesh-api-unknown")] {
        let why = problem(stranger.get("/api/v1/jobs"), 401, "invalid_token");
        assert!(why.contains("podmesh console"), "{why}");
    }
    // The manager checks the role of the key.
    let job = mesh.submit(&["--cpus", "0.01", "--", "sleep", "600"]);
    let cancel = format!("/api/v1/jobs/{job}/cancel");
    problem(api.post(&cancel, &json!({})), 403, "forbidden");
    assert_eq!(api.get(&format!("/api/v1/jobs/{job}")).json()["job"], job);
    mesh.ok(&["users", "revoke", "viewer"]);
    until_true("a revoked key is refused", || api.get("/api/v1/jobs").status != 200);
    console.stop();
}

#[test]
fn a_console_says_that_the_manager_is_away_and_goes_on_when_it_is_back() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let console = OwnConsole::start(&mesh, "operator");
    let api = console.sign_in();
    mesh.kill_manager();
    let why = until("a request is refused", || {
        let reply = api.get("/api/v1/jobs");
        (reply.status == 503).then(|| reply.json()["detail"].as_str().unwrap().to_owned())
    });
    assert!(why.contains("manager does not respond"), "{why}");
    mesh.start_manager();
    until_true("the console goes on", || api.get("/api/v1/jobs").status == 200);
    let job = submit(&api, &script("true"));
    assert_eq!(ended(&api, job)["state"], "succeeded");
    console.stop();
}

#[test]
fn a_console_is_only_for_its_own_machine_and_a_free_address() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let refused = |listen: &str, code, says: &str| {
        let output = mesh.output(&["console", "--no-open", "--listen", listen]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    };
    refused("0.0.0.0:0", 2, "127.0.0.1:8080");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&address, 125, "leave --listen out");
}
