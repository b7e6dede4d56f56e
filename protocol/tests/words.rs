//! Words of a later version: what is only shown is read and kept, and what is decided on is refused.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::client::{
    AttemptView, JobView, Reply, ReplyBody, TaskDetail, TokenView, UserView,
};
use podmesh_protocol::codec::{decode, encode};
use podmesh_protocol::event::{EventChunk, EventFact};
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision, TaskId};
use podmesh_protocol::node::NodeView;
use podmesh_protocol::report::{Outcome, ShownOutcome, TaskCounts};
use podmesh_protocol::service::{
    ReplicaView, ServiceDetail, ServiceReply, ServiceRevision, ServiceSpec, ServiceView,
};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::spec::{Resources, RuntimeKind};
use podmesh_protocol::word::MaybeKnown;
use serde_json::json;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn new<T>(word: &str) -> MaybeKnown<T> {
    MaybeKnown::Unknown(word.into())
}

fn outcome() -> ShownOutcome {
    let known = ShownOutcome::from(Outcome::exited(3));
    ShownOutcome { kind: new("preempted"), ..known }
}

fn events() -> ReplyBody {
    let (job, node, by, token) = (JobId(1), name("a"), name("root"), TokenId(3));
    let (attempt, message) = (AttemptId::new(job, 1, 1), "why".to_owned());
    let facts = vec![
        EventFact::JobEnded { job, state: new("paused") },
        EventFact::AttemptEnded { attempt, outcome: outcome(), retry_after_ms: None },
        EventFact::TokenCreated { token, role: new("auditor"), by: by.clone() },
        EventFact::Enrolled { role: new("auditor"), name: node.clone(), token },
        EventFact::KeyRevoked { role: new("auditor"), name: node.clone(), by },
        EventFact::KeyRenewed { role: new("auditor"), name: node.clone() },
        EventFact::RuntimeWithdrawn { node: node.clone(), runtime: new("wasm"), message },
        EventFact::RuntimeOffered { node: node.clone(), runtime: new("wasm") },
        EventFact::NodeScheduled { node, scheduling: new("parked"), by: name("root") },
        EventFact::ReplicaHealth {
            replica: "web.1".to_owned(),
            attempt,
            health: new("drowsy"),
            message: "why".to_owned(),
        },
    ];
    let last = Revision(facts.len() as u64);
    ReplyBody::Events { chunks: vec![EventChunk { first: Revision(1), wall_ms: 5, facts }], last }
}

fn services() -> Vec<ReplyBody> {
    let spec = json!({"name": "web", "run": {"runtime": "process", "command": ["x"]}});
    let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
    let view = ServiceView {
        service: name("web"),
        state: new("asleep"),
        revision: 1,
        replicas: 1,
        healthy: 0,
        existing: 1,
        runs: "x".into(),
        published: BTreeMap::new(),
        project: None,
    };
    let replica = ReplicaView {
        number: 1,
        revision: 1,
        state: new("moving"),
        attempt: None,
        node: None,
        endpoints: BTreeMap::new(),
        message: None,
        failures: 0,
        restarts_in_ms: None,
    };
    let revision = ServiceRevision {
        revision: 1,
        spec: spec.clone(),
        by: name("root"),
        applied_wall_ms: 6,
        state: new("halved"),
        message: None,
    };
    let detail = ServiceDetail {
        view: view.clone(),
        spec,
        changed: Revision(1),
        replicas: vec![replica],
        waits_for: Vec::new(),
        failed_update: None,
        closed_ports: Vec::new(),
    };
    let replies = [
        ServiceReply::List(vec![view]),
        ServiceReply::Service(Box::new(detail)),
        ServiceReply::History(vec![revision]),
    ];
    replies.map(ReplyBody::Service).into()
}

/// Replies of a later version, each with new words wherever a client only shows them.
fn replies() -> Vec<ReplyBody> {
    let job = JobView {
        job: JobId(1),
        name: name("work"),
        state: new("paused"),
        priority: 0,
        counts: TaskCounts::default(),
        submitted_by: None,
        submitted_wall_ms: 6,
        started_wall_ms: None,
        ended_wall_ms: None,
        unmet: 0,
        blocked: 0,
    };
    let attempt = AttemptView {
        number: 1,
        node: name("a"),
        state: new("frozen"),
        outcome: Some(outcome()),
        assigned_wall_ms: 6,
        started_wall_ms: None,
        ended_wall_ms: None,
    };
    let task = TaskId { job: JobId(1), index: 1 };
    let node = NodeView {
        admin_labels: [].into(),
        resources: [].into(),
        drain: None,
        maintenance: None,
        node: name("a"),
        state: new("draining"),
        epoch: None,
        program_version: "9".into(),
        capacity: Resources::default(),
        free: Resources::default(),
        labels: BTreeMap::new(),
        runtimes: vec![RuntimeKind::Docker.into(), new("wasm")],
        withdrawn: BTreeMap::from([(new("vm"), "why".into())]),
        unenforced: BTreeMap::new(),
        low_disks: BTreeMap::new(),
        attempts: 0,
        seen_ms_ago: None,
        enrolled: true,
        scheduling: new("parked"),
        address: None,
    };
    let token = TokenView {
        id: TokenId(3),
        state: new("suspended"),
        role: new("auditor"),
        uses_left: 1,
        expires_wall_ms: 6,
        created_by: name("root"),
        api: true,
        used_wall_ms: None,
    };
    let user = UserView {
        name: name("ann"),
        role: new("auditor"),
        key: PublicKey([1; 32]),
        token: TokenId(3),
        enrolled_wall_ms: 6,
    };
    let mut replies = vec![
        ReplyBody::Jobs(vec![job]),
        ReplyBody::Cancelled { state: new("paused"), downstream: 0 },
        ReplyBody::Task(TaskDetail { task, state: new("blocked"), attempts: vec![attempt] }),
        ReplyBody::Nodes(vec![node]),
        ReplyBody::Tokens(vec![token]),
        ReplyBody::Users(vec![user]),
        events(),
    ];
    replies.extend(services());
    replies
}

#[test]
fn replies_with_words_of_a_later_version_are_read_and_kept() {
    for body in replies() {
        let message = ToPeer::Reply(Reply { id: 1, result: Ok(body) });
        let bytes = encode(&message).unwrap();
        let read: ToPeer = decode(&bytes).unwrap();
        assert_eq!(read, message);
        assert_eq!(encode(&read).unwrap(), bytes);
    }
}

#[test]
fn a_word_is_written_in_the_same_way_whether_it_is_known_or_not() {
    let reply = |state| {
        let result = Ok(ReplyBody::Cancelled { state, downstream: 0 });
        encode(&ToPeer::Reply(Reply { id: 1, result })).unwrap()
    };
    let known = podmesh_protocol::report::JobState::Cancelling;
    assert_eq!(reply(new("cancelling")), reply(known.into()));
    let ToPeer::Reply(Reply { result: Ok(ReplyBody::Cancelled { state, .. }), .. }) =
        decode(&reply(new("cancelling"))).unwrap()
    else {
        panic!("another reply")
    };
    assert_eq!(state, known);
    // It may go to a terminal.
    assert_eq!(new::<RuntimeKind>("a\u{1b}[0m").to_string(), "a\\u{1b}[0m");
}

#[test]
fn an_end_of_a_later_version_is_an_end() {
    let ReplyBody::Jobs(mut jobs) = replies().remove(0) else { panic!("another reply") };
    assert!(!jobs[0].is_end());
    jobs[0].ended_wall_ms = Some(7);
    assert!(jobs[0].is_end());
}

#[test]
fn only_words_that_are_shown_may_be_unknown() {
    let read = |message: serde_json::Value| {
        decode::<ToManager>(&rmp_serde::to_vec_named(&message).unwrap())
    };
    let report = |kind| json!({"reports": [1, [[1, [1, 1, 1], {"ended": {"kind": kind}}]]]});
    read(report("lost")).unwrap();
    read(report("preempted")).unwrap_err();
    let tasks = |state| {
        let body = json!({"tasks": {"job": 1, "limit": 1, "state": state}});
        json!({"request": {"version": 1, "id": 1, "body": body}})
    };
    read(tasks("failed")).unwrap();
    read(tasks("blocked")).unwrap_err();
}
