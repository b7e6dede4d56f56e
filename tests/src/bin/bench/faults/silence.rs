//! How fast the loss of an agent is noticed and its work moves to other nodes; and that no live agent
//! is considered lost.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Revision;
use podmesh_protocol::node::NodeState;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::{OnLost, RuntimeSpec};
use podmesh_tests::mesh::Mesh;

use crate::rig::{Rig, job};
use crate::table::{Table, percentile};

const DEATHS: usize = 50;
const MOVES: usize = 10;
const OUTAGES_S: [u64; 3] = [1, 10, 120];
const STANDSTILL: Duration = Duration::from_secs(30);
const FLAGS: [&str; 2] = ["--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    deaths(table);
    moves(table);
    outages(table);
    standstill(table);
}

pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

fn state(rig: &Rig, node: &str) -> NodeState {
    let ReplyBody::Nodes(nodes) = rig.ask(RequestBody::Nodes { after: None, limit: 100 }) else {
        panic!("no nodes")
    };
    *nodes.iter().find(|view| view.node.as_str() == node).unwrap().state.known().unwrap()
}

pub(super) fn time_until(rig: &Rig, node: &str, wanted: NodeState) -> Duration {
    let began = Instant::now();
    while state(rig, node) != wanted {
        assert!(began.elapsed() < Duration::from_secs(60), "node {node} did not become {wanted:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

/// Returns all events, with the time of their commit in milliseconds.
fn events(rig: &Rig) -> Vec<(u64, EventFact)> {
    let mut all = Vec::new();
    let mut since = Revision(0);
    loop {
        let ReplyBody::Events { chunks, last } = rig.ask(RequestBody::Events { since }) else {
            panic!("no events")
        };
        for chunk in chunks {
            since = Revision(chunk.first.0 + chunk.facts.len() as u64 - 1);
            all.extend(chunk.facts.into_iter().map(|fact| (chunk.wall_ms, fact)));
        }
        if since == last {
            return all;
        }
    }
}

fn lost(rig: &Rig) -> usize {
    events(rig).iter().filter(|(_, fact)| matches!(fact, EventFact::NodeLost { .. })).count()
}

/// Measures how fast killed agents are noticed.
fn deaths(table: &mut Table) {
    let mut rig = Rig::new(&["a"], &FLAGS);
    let mut known: Vec<_> = (0..DEATHS)
        .map(|_| {
            rig.mesh.kill_agent("a");
            let known = time_until(&rig, "a", NodeState::Suspect);
            rig.mesh.start_agent("a", &FLAGS);
            known
        })
        .collect();
    let p99 = milliseconds(percentile(&mut known, 0.99));
    table.figure("agent killed to node suspect, p99 of 50", p99, "100 ms");
}

/// Measures the time from when an attempt counts as lost, after lease and margin, to the start of
/// the next one.
fn moves(table: &mut Table) {
    let mut mesh = Mesh::new(std::env::current_exe().unwrap()).manager_flags(&[
        "--lease",
        "3s",
        "--heartbeat",
        "500ms",
    ]);
    mesh.start_manager();
    for agent in ["a", "b"] {
        mesh.start_agent(agent, &FLAGS);
    }
    let mut rig = Rig::of(mesh);
    for _ in 0..MOVES {
        let mut spec = job(RuntimeSpec::Process, &["sleep", "5"], 1);
        spec.on_lost = OnLost::Requeue;
        let id = rig.submit(spec);
        let placed = loop {
            let placed = events(&rig).into_iter().rev().find_map(|(_, fact)| match fact {
                EventFact::AttemptAssigned { attempt, node } if attempt.task.job == id => {
                    Some(node)
                }
                _ => None,
            });
            if let Some(node) = placed {
                break node;
            }
        };
        rig.mesh.kill_agent(placed.as_str());
        rig.wait(id);
        rig.mesh.start_agent(placed.as_str(), &FLAGS);
    }
    let mut lost_at = 0;
    let mut times = Vec::new();
    for (at, fact) in events(&rig) {
        match fact {
            EventFact::AttemptEnded { outcome, .. } if outcome.kind == OutcomeKind::Lost => {
                lost_at = at;
            }
            EventFact::AttemptStarted { attempt } if attempt.number == 2 => {
                times.push(Duration::from_millis(at.saturating_sub(lost_at)));
            }
            _ => {}
        }
    }
    assert_eq!(times.len(), MOVES);
    let longest = milliseconds(percentile(&mut times, 1.0));
    let name = "attempt lost (requeue, after lease and margin) to next one started, longest of 10";
    table.figure(name, longest, "500 ms");
}

/// Measures managers that are away while processes run.
fn outages(table: &mut Table) {
    for seconds in OUTAGES_S {
        let mut rig = Rig::new(&["a", "b"], &FLAGS);
        let length = (seconds + 5).to_string();
        let id = rig.submit(job(RuntimeSpec::Process, &["sleep", &length], 2));
        while rig.mesh.json(&["job", &id.to_string()])["state"] != "running" {}
        rig.mesh.kill_manager();
        std::thread::sleep(Duration::from_secs(seconds));
        let began = Instant::now();
        rig.mesh.start_manager();
        rig.reconnect();
        for node in ["a", "b"] {
            time_until(&rig, node, NodeState::Alive);
        }
        let back = milliseconds(began.elapsed());
        let attempts: u64 = rig.wait(id).view.counts.succeeded.into();
        let name = format!("manager away for {seconds} s: running processes that survive");
        table.figure(&name, format!("{attempts} of 2"), "2 of 2");
        table.figure("all agents back, including the manager's start", back, "5000 ms");
    }
}

/// Checks that a suspended manager does not give up nodes when it resumes.
fn standstill(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    rig.mesh.manager().signal(Signal::SIGSTOP);
    std::thread::sleep(STANDSTILL);
    rig.mesh.manager().signal(Signal::SIGCONT);
    rig.reconnect();
    for node in ["a", "b"] {
        time_until(&rig, node, NodeState::Alive);
    }
    // Long enough for a lease from before the pause to expire.
    std::thread::sleep(STANDSTILL / 2);
    let name = "nodes lost after the manager was suspended for 30 s";
    table.figure(name, lost(&rig).to_string(), "0");
}
