//! Requests of clients.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_protocol::client::{
    LogPosition, LogRead, LogSlice, LogStream, Reply, ReplyBody, Request, RequestBody,
};
use podmesh_protocol::codec;
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Revision, TaskId};
use podmesh_protocol::limits::{
    BATCH_ROWS_MAX, PROTOCOL_VERSION, REQUESTS_PER_CONNECTION_MAX, WAIT_MS_MAX,
};
use podmesh_protocol::report::{AttemptState, JobState, Report, ReportFact, TaskState};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_wire::client::ClientError;
use podmesh_wire::control::PeerSocket;

use crate::support::*;

#[tokio::test]
async fn a_repeated_submission_creates_only_one_job() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    assert_eq!(submit(&client, 1, 3).await, (JobId(1), false));
    assert_eq!(submit(&client, 1, 3).await, (JobId(1), true));
    assert_eq!(submit(&client, 2, 1).await, (JobId(2), false));
    // Many at once: submissions that are repeated before the first answer still create one job.
    let many = (0..50).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { submit(&client, 100 + n / 2, 1).await.0 })
    });
    let mut jobs = Vec::new();
    for job in many {
        jobs.push(job.await.unwrap());
    }
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs, (3..28).map(JobId).collect::<Vec<_>>());

    // After a restart the core no longer knows ended jobs, but the database does.
    let cancelled =
        client.request(RequestBody::Cancel { job: JobId(1), downstream: false }).await.unwrap();
    assert_eq!(
        cancelled,
        ReplyBody::Cancelled { state: JobState::Cancelled.into(), downstream: 0 }
    );
    manager.stop().await;
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    assert_eq!(submit(&client, 1, 3).await, (JobId(1), true));
    let cancelled =
        client.request(RequestBody::Cancel { job: JobId(1), downstream: false }).await.unwrap();
    assert_eq!(
        cancelled,
        ReplyBody::Cancelled { state: JobState::Cancelled.into(), downstream: 0 }
    );
    assert_eq!(submit(&client, 3, 3).await, (JobId(28), false));
    manager.stop().await;
}

#[tokio::test]
async fn an_invalid_request_is_answered_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let mut wrong = spec(1);
    wrong.run.command.clear();
    let body = RequestBody::Submit { submission: submission(1), spec: Box::new(wrong) };
    let error = refused(&client, body).await;
    assert_eq!(error.code, ErrorCode::InvalidSpec);
    assert!(error.message.contains("command"), "{error}");

    let error = refused(&client, RequestBody::Job { job: JobId(5), since: None, wait_ms: 0 }).await;
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.message, "there is no job 5; no job has been submitted yet");
    let error = refused(&client, RequestBody::Cancel { job: JobId(5), downstream: false }).await;
    assert_eq!(error.code, ErrorCode::NotFound);

    let (mut receiver, mut sender) = PeerSocket::connect(&manager.route()).await.unwrap().split();
    let version = PROTOCOL_VERSION + 1;
    let request = Request { version, id: 7, body: RequestBody::Info };
    sender.send(&ToManager::Request(request)).await.unwrap();
    match within(receiver.recv()).await.unwrap() {
        ToPeer::Reply(Reply { id: 7, result: Err(error) }) => {
            assert_eq!(error.code, ErrorCode::UnsupportedVersion);
            assert!(
                error.message.contains("upgrade podmesh on the machine of the manager"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    let reports = (0..=BATCH_ROWS_MAX as u64)
        .map(|n| Report(n, AttemptId::new(JobId(1), 1, 1), ReportFact::Started))
        .collect();
    sender.send(&ToManager::Reports(Epoch(1), reports)).await.unwrap();
    match within(receiver.recv()).await.unwrap() {
        ToPeer::Error(error) => assert!(error.message.contains("BATCH_ROWS_MAX"), "{error}"),
        other => panic!("{other:?}"),
    }
    manager.stop().await;
}

#[tokio::test]
async fn an_undecodable_frame_is_answered_with_an_error_and_has_no_other_effect() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let request = Request { version: 1, id: 1, body: RequestBody::Info };
    let mut truncated = codec::encode(&ToManager::Request(request)).unwrap();
    truncated.truncate(truncated.len() - 1);
    for frame in [&b"no message"[..], b"", b"\xc1", &truncated, &[0x91; 200]] {
        let mut peer = RawPeer::connect(&manager).await;
        peer.send(frame).await;
        match codec::decode(&peer.recv().await).unwrap() {
            ToPeer::Error(error) => assert_eq!(error.code, ErrorCode::BadMessage),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(submit(&client, 1, 1).await, (JobId(1), false));
    manager.stop().await;
}

#[tokio::test]
async fn waiting_requests_are_woken_by_commits() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let (id, _) = submit(&client, 1, 1).await;
    let queued = job(&client, id, None).await;
    assert_eq!(queued.view.state, JobState::Queued);
    assert!(!queued.waits_for.is_empty(), "it must say that there is no node");
    let task = TaskId { job: id, index: 1 };
    let attempt = AttemptId { task, number: 1 };
    let task_when = |unless| {
        let client = client.clone();
        let body = RequestBody::Task { task, unless, wait_ms: 30_000 };
        tokio::spawn(async move {
            match client.request(body).await.unwrap() {
                ReplyBody::Task(detail) => detail,
                other => panic!("{other:?}"),
            }
        })
    };
    let job_after = |revision| {
        let client = client.clone();
        tokio::spawn(async move { job(&client, id, Some(revision)).await })
    };

    let waiting = job_after(queued.revision);
    let mut agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    assert_eq!(agent.starts().await, [attempt]);
    let running = waiting.await.unwrap();
    assert_eq!(running.view.state, JobState::Running);
    assert_eq!(running.view.counts.active, 1);

    let waiting = task_when(Some((1, AttemptState::Assigned)));
    agent.report(attempt, ReportFact::Started).await;
    let detail = waiting.await.unwrap();
    assert_eq!(detail.attempts[0].state, AttemptState::Running);

    // Two requests wait for one job, and the first one gives up.
    let given_up = task_when(Some((1, AttemptState::Running)));
    given_up.abort();
    let waiting = task_when(Some((1, AttemptState::Running)));
    let job_waiting = job_after(running.revision);
    agent.end(attempt).await;
    let detail = waiting.await.unwrap();
    assert_eq!((detail.state, detail.attempts.len()), (TaskState::Succeeded.into(), 1));
    let ended = job_waiting.await.unwrap();
    assert_eq!(ended.view.state, JobState::Succeeded);
    assert!(ended.waits_for.is_empty());

    // If the job has already changed, or can no longer change, the answer comes at once.
    assert_eq!(job(&client, id, Some(queued.revision)).await.view.state, JobState::Succeeded);
    assert_eq!(job(&client, id, Some(ended.revision)).await.view.state, JobState::Succeeded);
    manager.stop().await;
}

#[tokio::test]
async fn a_wait_ends_after_its_time_or_with_the_manager() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let (id, _) = submit(&client, 1, 1).await;
    let revision = job(&client, id, None).await.revision;
    let body = move |wait_ms| RequestBody::Job { job: id, since: Some(revision), wait_ms };
    within(client.request(body(20))).await.unwrap();
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.request(body(30_000)).await })
    };
    // When this request is answered, the previous one has been read.
    client.request(RequestBody::Info).await.unwrap();
    manager.stop().await;
    assert!(matches!(waiting.await.unwrap(), Ok(ReplyBody::Job(_))));
}

#[tokio::test]
async fn requests_of_connections_that_have_ended_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let (job, _) = submit(&client, 1, 1).await;
    let wait = RequestBody::Job { job, since: Some(Revision(1000)), wait_ms: WAIT_MS_MAX };
    let overloaded = async || match client.request(RequestBody::Info).await {
        Ok(_) => false,
        Err(ClientError::Refused(error)) => error.code == ErrorCode::Overloaded,
        Err(error) => panic!("{error}"),
    };
    // A slow machine may need more than WAIT_MS_MAX to send them all; then it tries again.
    for _ in 0..5 {
        // It is sent first, so that it is the first whose time is up.
        let first = tokio::spawn({
            let (client, wait) = (client.clone(), wait.clone());
            async move { client.request(wait).await }
        });
        // Together with it, as many as the manager holds at a time.
        let mut connections = Vec::new();
        for _ in 0..128 {
            let socket = PeerSocket::connect(&manager.route()).await.unwrap();
            let (receiver, mut sender) = socket.split();
            for id in 0..REQUESTS_PER_CONNECTION_MAX as u64 {
                let request = Request { version: PROTOCOL_VERSION, id, body: wait.clone() };
                sender.send(&ToManager::Request(request)).await.unwrap();
            }
            connections.push((receiver, sender));
        }
        while !overloaded().await && !first.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let in_time = !first.is_finished();
        drop(connections);
        while overloaded().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if in_time {
            assert!(!first.is_finished(), "they were held until their time was up");
            return manager.stop().await;
        }
    }
    panic!("this machine is too slow for the test");
}

// More than one thread, as in the real manager.
#[tokio::test(flavor = "multi_thread")]
async fn submissions_of_a_connection_keep_their_order() {
    // Many more than wait for the core at a time.
    const SUBMISSIONS: u64 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let socket = PeerSocket::connect(&manager.route()).await.unwrap();
    let (mut receiver, mut sender) = socket.split();
    let receiving = tokio::spawn(async move {
        let mut jobs = BTreeMap::new();
        for _ in 0..SUBMISSIONS {
            match within(receiver.recv()).await.unwrap() {
                ToPeer::Reply(Reply { id, result: Ok(ReplyBody::Submitted { job, .. }) }) => {
                    jobs.insert(id, job.0);
                }
                other => panic!("{other:?}"),
            }
        }
        jobs
    });
    for id in 1..=SUBMISSIONS {
        let body = submit_body(id.into(), 1);
        let request = Request { version: PROTOCOL_VERSION, id, body };
        sender.send(&ToManager::Request(request)).await.unwrap();
    }
    let jobs = receiving.await.unwrap();
    assert!(jobs.iter().all(|(id, job)| id == job), "{jobs:?}");
    manager.stop().await;
}

#[tokio::test]
async fn a_submission_does_not_wait_behind_reads() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let client = manager.client().await;
    let mut large = spec(1);
    large.run.env = [("A".to_owned(), "x".repeat(100_000))].into();
    let body = RequestBody::Submit { submission: submission(1), spec: Box::new(large) };
    client.request(body).await.unwrap();
    let mut reads = Vec::new();
    for _ in 0..16 {
        let reader = manager.client().await;
        for _ in 0..REQUESTS_PER_CONNECTION_MAX {
            let reader = reader.clone();
            let body = RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 };
            reads.push(tokio::spawn(async move { reader.request(body).await.unwrap() }));
        }
    }
    // One has an answer: the others are on their way.
    reads.remove(0).await.unwrap();
    assert_eq!(submit(&client, 2, 1).await, (JobId(2), false));
    let left = reads.iter().filter(|read| !read.is_finished()).count();
    assert!(left > reads.len() / 2, "only {left} of {} were still to be answered", reads.len());
    for read in reads {
        read.await.unwrap();
    }
    manager.stop().await;
}

fn log_read(attempt: AttemptId) -> RequestBody {
    RequestBody::Log(LogRead {
        attempt,
        stream: LogStream::Stdout,
        from: LogPosition::Offset(3),
        bytes_max: 100,
        wait_ms: 30_000,
        find: None,
    })
}

#[tokio::test]
async fn the_agent_that_holds_a_log_reads_it_for_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let client = manager.client().await;
    let mut agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let mut other = Agent::connect(&manager, hello("b", 500, &[])).await;
    let (id, _) = submit(&client, 1, 1).await;
    let attempt = AttemptId::new(id, 1, 1);
    let error = refused(&client, log_read(AttemptId::new(id, 1, 2))).await;
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(agent.starts().await, [attempt]);

    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.request(log_read(attempt)).await })
    };
    let slice = |bytes: &[u8]| {
        Ok(LogSlice { offset: 3, bytes: bytes.to_vec(), end: false, removed: false })
    };
    let asked = ask();
    let (number, read) = agent.log_question().await;
    assert_eq!(RequestBody::Log(read), log_read(attempt));
    // Another agent cannot answer for this one.
    other.sender.send(&ToManager::LogSlice(number, slice(b"forged"))).await.unwrap();
    let error = refused(&client, RequestBody::Cancel { job: JobId(99), downstream: false }).await;
    assert_eq!(error.code, ErrorCode::NotFound);
    agent.sender.send(&ToManager::LogSlice(number, slice(b"\xffa\n"))).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), ReplyBody::Log(slice(b"\xffa\n").unwrap()));

    let asked = ask();
    let (number, _) = agent.log_question().await;
    agent.sender.send(&ToManager::LogSlice(number, slice(&[0; 101]))).await.unwrap();
    assert!(asked.await.unwrap().is_err(), "more bytes than requested");

    // The agent disconnects before it answers.
    let asked = ask();
    agent.log_question().await;
    drop(agent);
    let error = asked.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("not connected") && error.contains("1/1/1"), "{error}");
    manager.stop().await;
    drop(other);
}

#[tokio::test]
async fn the_error_for_a_log_on_a_disconnected_node_names_the_problem() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let client = manager.client().await;
    let mut agent = Agent::connect(&manager, hello("a", 1000, &[])).await;
    let (id, _) = submit(&client, 1, 1).await;
    let attempt = agent.starts().await[0];
    assert_eq!(attempt, AttemptId::new(id, 1, 1));
    agent.end(attempt).await;
    agent.sender.send(&ToManager::Goodbye(agent.welcome.epoch)).await.unwrap();
    event(&client, |fact| matches!(fact, EventFact::NodeSuspect { .. })).await;
    let error = refused(&client, log_read(attempt)).await;
    assert_eq!(error.code, ErrorCode::NodeUnavailable);
    assert!(error.message.contains("not connected"), "{error}");
    manager.stop().await;
}
