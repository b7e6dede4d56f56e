//! `events -f --since`: no event is missed or repeated.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{PATIENCE, until_true};
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(mesh: &Mesh, since: u64) -> Self {
        let mut child = mesh
            .podmesh(&["events", "-f", "--since", &since.to_string(), "--output", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // A thread reads, so that a missing line is a failure and not a hang.
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
        Self { child, lines }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Reads events up to the end of a job, and returns the last revision. Revisions must have no
    /// gap.
    fn read_to_end_of(&mut self, job: u64, mut last: u64) -> u64 {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            let revision = event["revision"].as_u64().unwrap();
            assert_eq!(revision, last + 1, "{event}");
            last = revision;
            if event["event"] == "job_ended" && event["job"] == job {
                return last;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn no_event_is_missed_or_repeated_across_restarts_or_by_a_slow_subscriber() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a", "b"]);
    let mut quick = Follower::start(&mesh, 0);
    let mut slow = Follower::start(&mesh, 0);
    mesh.ok(&["submit", "--wait", "--array", "1-300", "--", "true"]);
    let seen = quick.read_to_end_of(1, 0);
    // The slow one is suspended during thousands of events and two restarts.
    slow.signal(Signal::SIGSTOP);
    for _ in 0..2 {
        mesh.kill_manager();
        mesh.start_manager();
        mesh.wait_for_node("a", "alive");
    }
    mesh.ok(&["submit", "--wait", "--array", "1-1000", "--", "true"]);
    slow.signal(Signal::SIGCONT);
    let end = quick.read_to_end_of(2, seen);
    assert_eq!(slow.read_to_end_of(2, 0), end);
    // A late subscriber starts from the middle.
    let mut late = Follower::start(&mesh, seen);
    assert_eq!(late.read_to_end_of(2, seen), end);
}

#[test]
fn events_are_followed_while_they_happen() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mut follower = Follower::start(&mesh, 0);
    let mut last = 0;
    for job in 1..=5 {
        mesh.ok(&["run", "--", "true"]);
        last = follower.read_to_end_of(job, last);
    }
    until_true("the count agrees", || {
        mesh.ok(&["events", "--output", "json"]).lines().count() as u64 >= last
    });
}
