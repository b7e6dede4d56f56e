//! Sessions and heartbeats.

use std::time::Duration;

use podmesh_manager::ManagerConfig;
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{Epoch, InstanceId, JobId};
use podmesh_protocol::report::{JobState, Outcome, Report, ReportFact};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_wire::control::PeerSocket;
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use uuid::Uuid;

use crate::support::*;

async fn beat(stream: &mut UnixStream, epoch: Epoch, sequence: u64) {
    let beat = Beat { epoch, sequence };
    write_beat(stream, &beat).await.unwrap();
    assert_eq!(within(read_beat(stream)).await.unwrap(), beat);
}

async fn heartbeats(manager: &Running) -> UnixStream {
    UnixStream::connect(manager.endpoint.sockets.join("heartbeats.sock")).await.unwrap()
}

/// Waits until the other side closes.
async fn closed(mut stream: UnixStream) {
    // A reset and an orderly close are both an end.
    if let Ok(bytes) = within(stream.read(&mut [0; 64])).await {
        assert_eq!(bytes, 0);
    }
}

#[tokio::test]
async fn a_closed_heartbeat_stream_and_its_return_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let client = manager.client().await;
    let agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let epoch = agent.epoch();
    let mut first = heartbeats(&manager).await;
    beat(&mut first, epoch, 1).await;
    beat(&mut first, epoch, 2).await;

    // A second stream replaces the first, whose end is not an event.
    let mut second = heartbeats(&manager).await;
    beat(&mut second, epoch, 1).await;
    closed(first).await;
    beat(&mut second, epoch, 2).await;
    let suspect = |fact: &EventFact| matches!(fact, EventFact::NodeSuspect { .. });
    assert!(!events(&client).await.iter().any(|(_, fact)| suspect(fact)));

    drop(second);
    let suspected = event(&client, suspect).await;
    let mut third = heartbeats(&manager).await;
    beat(&mut third, epoch, 1).await;
    let recovered = event(&client, |fact| matches!(fact, EventFact::NodeRecovered { .. })).await;
    assert!(recovered > suspected);

    // The stream ends with its session.
    let _agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    closed(third).await;
    manager.stop().await;
}

#[tokio::test]
async fn heartbeat_streams_without_a_valid_session_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let mut stranger = heartbeats(&manager).await;
    let beat_of = |epoch| Beat { epoch, sequence: 1 };
    write_beat(&mut stranger, &beat_of(Epoch(agent.epoch().0 + 1))).await.unwrap();
    closed(stranger).await;
    let mut stranger = heartbeats(&manager).await;
    tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    closed(stranger).await;
    // A stream that changes its session is closed.
    let mut stranger = heartbeats(&manager).await;
    beat(&mut stranger, agent.epoch(), 1).await;
    write_beat(&mut stranger, &beat_of(Epoch(0))).await.unwrap();
    closed(stranger).await;
    manager.stop().await;
}

#[tokio::test]
async fn silence_ends_the_lease() {
    let dir = tempfile::tempdir().unwrap();
    let config = ManagerConfig {
        lease: Duration::from_millis(400),
        heartbeat: Duration::from_millis(100),
        ..config(dir.path())
    };
    let manager = start_with(config).await;
    let client = manager.client().await;
    // The agent never sends a beat.
    let _agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let suspect = event(&client, |fact| matches!(fact, EventFact::NodeSuspect { .. })).await;
    let lost = event(&client, |fact| matches!(fact, EventFact::NodeLost { .. })).await;
    assert!(suspect < lost);
    manager.stop().await;
}

#[tokio::test]
async fn two_agents_cannot_have_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let _first = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let (mut receiver, mut sender) = PeerSocket::connect(&manager.route()).await.unwrap().split();
    let mut second = hello("a", 1000, &[]);
    second.agent_instance = InstanceId(Uuid::from_u128(10));
    sender.send(&ToManager::Hello(second)).await.unwrap();
    match within(receiver.recv()).await.unwrap() {
        ToPeer::Refused(error) => assert_eq!(error.code, ErrorCode::NameTaken),
        other => panic!("{other:?}"),
    }
    manager.stop().await;
}

#[tokio::test]
async fn an_agent_whose_connection_is_gone_becomes_suspect() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let client = manager.client().await;
    let agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    drop(agent);
    event(&client, |fact| matches!(fact, EventFact::NodeSuspect { .. })).await;
    manager.stop().await;
}

#[tokio::test]
async fn a_large_array_runs_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let mut agent = Agent::connect(&manager, hello("a", 1_000_000, &[])).await;
    let tasks = 5_000;
    let (id, _) = submit(&client, 1, tasks).await;
    assert_eq!(id, JobId(1));
    let mut started = 0;
    while started < tasks {
        let mut batch = Vec::new();
        for attempt in agent.starts().await {
            started += 1;
            batch.push(Report(started.into(), attempt, ReportFact::Ended(Outcome::exited(0))));
        }
        agent.sender.send(&ToManager::Reports(agent.welcome.epoch, batch)).await.unwrap();
    }
    let mut detail = job(&client, id, None).await;
    while !detail.view.is_end() {
        detail = job(&client, id, Some(detail.revision)).await;
    }
    assert_eq!(
        (detail.view.state, detail.view.counts.succeeded),
        (JobState::Succeeded.into(), tasks)
    );
    let revisions: Vec<_> = events(&client).await.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>());
    manager.stop().await;
}
