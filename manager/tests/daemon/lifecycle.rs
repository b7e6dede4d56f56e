//! Starts and stops of the manager, and the state after them.

use std::fs;
use std::net::TcpListener;

use podmesh_manager::{ENDPOINT_FILE, Endpoint, ManagerConfig, ManagerError};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::event::{EventFact, Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Revision};
use podmesh_protocol::report::{JobState, ReportFact};
use podmesh_wire::publish::Subscriber;

use crate::support::*;

async fn fails(config: ManagerConfig) -> ManagerError {
    podmesh_manager::run(config, |_| panic!("the manager started"), std::future::pending())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn a_second_manager_on_the_same_directory_is_refused_and_told_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    assert_eq!(Endpoint::read(dir.path()).unwrap(), manager.endpoint);
    let said = fails(config(dir.path())).await.to_string();
    let path = dir.path().display().to_string();
    let pid = std::process::id().to_string();
    assert!(said.contains(&path) && said.contains(&pid), "{said}");
    // The first manager still works.
    assert_eq!(submit(&manager.client().await, 1, 1).await, (JobId(1), false));
    manager.stop().await;
    assert!(!dir.path().join(ENDPOINT_FILE).exists());
    start(dir.path()).await.stop().await;
}

#[tokio::test]
async fn the_error_names_what_prevents_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let said = fails(ManagerConfig { listen, ..config(dir.path()) }).await.to_string();
    assert!(said.contains(&listen.to_string()) && said.contains("--listen"), "{said}");

    let heartbeat = config(dir.path()).lease;
    let said = fails(ManagerConfig { heartbeat, ..config(dir.path()) }).await.to_string();
    assert!(said.contains("lease"), "{said}");

    fs::write(dir.path().join("file"), "").unwrap();
    let said = fails(config(&dir.path().join("file"))).await.to_string();
    assert!(said.contains("file") && said.contains("--data-dir"), "{said}");

    assert!(!dir.path().join(ENDPOINT_FILE).exists());

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("podmesh.db"), "no database, a letter".repeat(1000)).unwrap();
    let said = fails(config(dir.path())).await.to_string();
    assert!(said.contains("podmesh.db") && said.contains("not a database"), "{said}");
}

/// Runs half of a job, ends the manager, and checks that the next manager continues it.
async fn job_continues(orderly: bool) {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let cluster = manager.endpoint.cluster;
    let client = manager.client().await;
    let mut agent = Agent::connect(&manager, hello("a", 2000, &[])).await;
    assert_eq!(agent.epoch(), Epoch(1));
    let (id, _) = submit(&client, 1, 3).await;
    let mut started = agent.starts().await;
    if started.len() < 2 {
        started.extend(agent.starts().await);
    }
    let [first, second] = started[..] else { panic!("{started:?}") };
    agent.report(second, ReportFact::Started).await;
    agent.end(first).await;
    let third = agent.starts().await;
    assert_eq!(third, [AttemptId::new(id, 3, 1)]);
    let before = events(&client).await;
    let detail = job(&client, id, None).await;
    if orderly {
        manager.stop().await;
    } else {
        manager.cut_off(dir.path()).await;
    }

    let manager = start(dir.path()).await;
    assert_eq!(manager.endpoint.cluster, cluster);
    let client = manager.client().await;
    let after = events(&client).await;
    assert_eq!(after[..before.len()], before, "every event is kept, with its revision");
    let kept = job(&client, id, None).await;
    assert_eq!((kept.view, kept.spec), (detail.view, detail.spec));

    let mut agent = Agent::connect(&manager, hello("a", 2000, &[second, third[0]])).await;
    assert!(agent.epoch() > Epoch(1));
    assert_eq!(agent.welcome.keep, [second, third[0]]);
    assert!(agent.welcome.stop.is_empty(), "{:?}", agent.welcome);
    agent.end(second).await;
    agent.end(third[0]).await;
    let ended = job(&client, id, Some(kept.revision)).await;
    let ended = match ended.view.is_end() {
        true => ended,
        false => job(&client, id, Some(ended.revision)).await,
    };
    assert_eq!(ended.view.state, JobState::Succeeded);
    assert_eq!(submit(&client, 1, 3).await, (id, true));
    assert_eq!(submit(&client, 2, 3).await, (JobId(id.0 + 1), false));
    let all = events(&client).await;
    let revisions: Vec<_> = all.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, (1..=all.len() as u64).collect::<Vec<_>>());
    let assigned = |fact: &EventFact| matches!(fact, EventFact::AttemptAssigned { attempt: a, .. } if a.task.job == id);
    assert_eq!(all.iter().filter(|(_, fact)| assigned(fact)).count(), 3, "nothing ran again");
    manager.stop().await;
}

#[tokio::test]
async fn a_job_continues_after_an_orderly_stop_of_the_manager() {
    job_continues(true).await;
}

#[tokio::test]
async fn a_job_continues_after_the_manager_was_killed() {
    job_continues(false).await;
}

#[tokio::test]
async fn requests_that_were_read_before_a_stop_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let submitting: Vec<_> = (0..200)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.request(submit_body(n, 1)).await })
        })
        .collect();
    // Some have been read by now, others have not.
    submit(&client, 1000, 1).await;
    manager.stop().await;
    let mut answered = Vec::new();
    for (n, submitting) in submitting.into_iter().enumerate() {
        if let Ok(ReplyBody::Submitted { job, .. }) = submitting.await.unwrap() {
            answered.push((n, job));
        }
    }
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let all = RequestBody::Jobs {
        before: None,
        active: false,
        by: None,
        service: None,
        replica: None,
        limit: 1000,
    };
    match client.request(all).await.unwrap() {
        ReplyBody::Jobs(jobs) => assert_eq!(jobs.len(), answered.len() + 1),
        other => panic!("{other:?}"),
    }
    for (n, job) in answered {
        assert_eq!(submit(&client, n as u128, 1).await, (job, true));
    }
    manager.stop().await;
}

#[tokio::test]
async fn subscribers_receive_every_commit_and_the_end_of_the_manager() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        ManagerConfig { heartbeat: std::time::Duration::from_millis(50), ..config(dir.path()) };
    let manager = start_with(config).await;
    let client = manager.client().await;
    let mut subscriber =
        Subscriber::connect(&manager.route(), &[TOPIC_EVENTS, TOPIC_MANAGER]).await.unwrap();
    // The first beacon shows that the subscription has arrived.
    match within(subscriber.recv()).await.unwrap() {
        Published::Manager { instance, revision: Revision(0), stopping: false } => {
            assert_eq!(instance, manager.endpoint.instance);
        }
        other => panic!("{other:?}"),
    }
    submit(&client, 1, 1).await;
    let chunk = loop {
        match within(subscriber.recv()).await.unwrap() {
            Published::Events { since: Revision(0), last, chunk: Some(chunk) } => {
                assert_eq!(last, chunk.last());
                break chunk;
            }
            Published::Manager { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(chunk.facts[..], [EventFact::JobSubmitted { job: JobId(1), .. }]));
    match client.request(RequestBody::Events { since: Revision(0) }).await.unwrap() {
        ReplyBody::Events { chunks, last } => {
            assert_eq!((chunks, last), (vec![chunk], Revision(1)))
        }
        other => panic!("{other:?}"),
    }
    match client.request(RequestBody::Info).await.unwrap() {
        ReplyBody::Info(info) => {
            assert_eq!(info.revision, Revision(1));
            assert_eq!(info.cluster, manager.endpoint.cluster);
        }
        other => panic!("{other:?}"),
    }
    manager.stop().await;
    loop {
        match within(subscriber.recv()).await.unwrap() {
            Published::Manager { stopping: true, revision: Revision(1), .. } => break,
            Published::Manager { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
