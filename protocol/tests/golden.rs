//! Messages that version 1 of the protocol has sent can be read for ever.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::{
    JobDetail, JobView, LogPosition, LogRead, LogSlice, LogStream, PrincipalKind, Reply, ReplyBody,
    Request, RequestBody,
};
use podmesh_protocol::codec::{decode, encode};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{EventChunk, EventFact, Published};
use podmesh_protocol::ids::{
    AgentId, AttemptId, ClusterId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::node::{NodeState, NodeView, Scheduling};
use podmesh_protocol::report::{
    AttemptState, JobState, Outcome, OutcomeKind, Report, ReportFact, TaskCounts,
};
use podmesh_protocol::session::{Hello, StopReason, ToManager, ToPeer, Welcome};
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobSpec, Mount, NetworkMode, OnLost, PullPolicy, Resources,
    RetryPolicy, RunSpec, RuntimeKind,
};
use serde_json::json;
use uuid::Uuid;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn outcome() -> Outcome {
    Outcome {
        kind: OutcomeKind::Failed,
        exit_code: Some(3),
        signal: None,
        oom_killed: true,
        message: Some("why".into()),
        ran_ms: 1_234,
    }
}

fn spec() -> JobSpec {
    let docker = DockerSpec {
        image: "busybox:1".into(),
        pull: PullPolicy::Always,
        network: NetworkMode::Host,
        mounts: vec![Mount { source: "/a".into(), target: "/b".into(), read_only: true }],
        ..DockerSpec::default()
    };
    JobSpec {
        name: name("work"),
        array: ArrayRange { first: 1, last: 9 },
        priority: -2,
        require: BTreeMap::from([(name("gpu"), "a100".into())]),
        resources: Resources { cpu_millis: 500, memory_bytes: 1 << 30 },
        retry: RetryPolicy {
            retries: 2,
            backoff_ms: 1_000,
            backoff_ms_max: 60_000,
            on: None,
            not_on: None,
        },
        on_lost: OnLost::Requeue,
        rules: Default::default(),
        place: Default::default(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: RunSpec {
            runtime: docker.into(),
            command: vec!["echo".into(), "x".into()],
            env: BTreeMap::from([("A".into(), "b".into())]),
            workdir: Some("/".into()),
            timeout_ms: Some(5_000),
            stop_grace_ms: 10_000,
            replica: None,
            files: [].into(),
        },
    }
}

/// One event of each kind of version 1.
fn facts() -> Vec<EventFact> {
    let (attempt, text) = (AttemptId::new(JobId(42), 7, 2), "why".to_owned());
    let (node, by, token) = (name("a"), name("root"), TokenId(3));
    vec![
        EventFact::JobSubmitted { job: JobId(42), name: name("work"), tasks: 9 },
        EventFact::JobCancelRequested { job: JobId(42) },
        EventFact::JobEnded { job: JobId(42), state: JobState::Cancelled.into() },
        EventFact::AttemptAssigned { attempt, node: node.clone() },
        EventFact::AttemptPreparing { attempt, message: text.clone() },
        EventFact::AttemptStarted { attempt },
        EventFact::AttemptEnded { attempt, outcome: outcome().into(), retry_after_ms: Some(2_000) },
        EventFact::AttemptEnded { attempt, outcome: outcome().into(), retry_after_ms: None },
        EventFact::LogGap { attempt, message: text.clone() },
        EventFact::NodeConnected { node: node.clone(), instance: InstanceId(Uuid::from_u128(5)) },
        EventFact::NodeSuspect { node: node.clone(), message: text.clone() },
        EventFact::NodeRecovered { node: node.clone() },
        EventFact::NodeLost { node: node.clone() },
        EventFact::TokenCreated { token, role: Role::Viewer.into(), by: by.clone() },
        EventFact::TokenRevoked { token, by: by.clone() },
        EventFact::Enrolled { role: Role::Agent.into(), name: node.clone(), token },
        EventFact::KeyRevoked { role: Role::Admin.into(), name: node.clone(), by: by.clone() },
        EventFact::KeyRenewed { role: Role::Operator.into(), name: node.clone() },
        EventFact::ManagerKeyRotated { key: text.clone(), by: by.clone() },
        EventFact::JoinsRefused { message: text.clone(), count: 2 },
        EventFact::ConnectionsRefused { message: text.clone(), count: 2 },
        EventFact::RuntimeWithdrawn {
            node: node.clone(),
            runtime: RuntimeKind::Docker.into(),
            message: text,
        },
        EventFact::RuntimeOffered { node: node.clone(), runtime: RuntimeKind::Process.into() },
        EventFact::NodeForgotten { node, by: by.clone() },
        EventFact::JobsForgotten { first: JobId(1), last: JobId(9), count: 7, by },
    ]
}

fn to_manager() -> Vec<(&'static str, ToManager)> {
    let attempt = AttemptId::new(JobId(42), 7, 2);
    let hello = Hello {
        version: 1,
        version_oldest: None,
        node: name("a"),
        boot_id: "boot".into(),
        agent_instance: InstanceId(Uuid::from_u128(5)),
        agent_id: Some(AgentId(Uuid::from_u128(6))),
        cluster: Some(ClusterId(Uuid::from_u128(7))),
        program_version: "0.1.0".into(),
        capacity: Resources { cpu_millis: 4_000, memory_bytes: 8 << 30 },
        labels: BTreeMap::from([(name("gpu"), "a100".into())]),
        runtimes: vec![RuntimeKind::Process.into()],
        withdrawn: BTreeMap::from([(RuntimeKind::Docker.into(), "no engine".into())]),
        unenforced: BTreeMap::from([("memory".into(), "no cgroups".into())]),
        low_disks: BTreeMap::new(),
        address: None,
        resources: Default::default(),
        attempts: vec![attempt],
    };
    let reports = vec![
        Report(1, attempt, ReportFact::Preparing("pulling".into())),
        Report(2, attempt, ReportFact::Started),
        Report(3, attempt, ReportFact::LogGap("lost".into())),
        Report(4, attempt, ReportFact::Ended(outcome())),
    ];
    let slice = LogSlice { offset: 9, bytes: vec![0, 255], end: true, removed: true };
    let (job, task) = (JobId(42), TaskId { job: JobId(42), index: 7 });
    let request = |body| ToManager::Request(Request { version: 1, id: 8, body });
    let log = LogRead {
        attempt,
        stream: LogStream::Stderr,
        from: LogPosition::TailLines(4),
        bytes_max: 100,
        wait_ms: 5,
        find: None,
    };
    let submission = SubmissionId(Uuid::from_u128(8));
    let user = PrincipalKind::User;
    let jobs = RequestBody::Jobs {
        before: Some(job),
        active: true,
        by: None,
        service: None,
        replica: None,
        limit: 5,
    };
    vec![
        ("hello", ToManager::Hello(hello)),
        ("reports", ToManager::Reports(Epoch(4), reports)),
        ("goodbye", ToManager::Goodbye(Epoch(4))),
        ("log_slice", ToManager::LogSlice(3, Ok(slice))),
        ("info", request(RequestBody::Info)),
        ("who_am_i", request(RequestBody::WhoAmI)),
        ("submit", request(RequestBody::Submit { submission, spec: Box::new(spec()) })),
        ("cancel", request(RequestBody::Cancel { job, downstream: false })),
        ("forget", request(RequestBody::Forget { first: job, last: job })),
        ("jobs", request(jobs)),
        ("job", request(RequestBody::Job { job, since: Some(Revision(3)), wait_ms: 9 })),
        ("tasks", request(RequestBody::Tasks { job, from: 2, state: None, limit: 5 })),
        (
            "task",
            request(RequestBody::Task {
                task,
                unless: Some((2, AttemptState::Running)),
                wait_ms: 9,
            }),
        ),
        ("nodes", request(RequestBody::Nodes { after: Some(name("a")), limit: 5 })),
        ("events", request(RequestBody::Events { since: Revision(3) })),
        ("log", request(RequestBody::Log(log))),
        ("tokens", request(RequestBody::Tokens)),
        (
            "token_create",
            request(RequestBody::TokenCreate { role: Role::Agent, ttl_ms: 60, uses: 2 }),
        ),
        ("token_revoke", request(RequestBody::TokenRevoke { id: TokenId(3) })),
        ("users", request(RequestBody::Users { after: None, limit: 5 })),
        ("revoke", request(RequestBody::Revoke { kind: user, name: name("ann") })),
        ("node_forget", request(RequestBody::NodeForget { node: name("a"), force: true })),
        ("key_renew", request(RequestBody::KeyRenew { key: PublicKey([9; 32]) })),
    ]
}

fn to_peer() -> Vec<(&'static str, ToPeer)> {
    let attempt = AttemptId::new(JobId(42), 7, 2);
    let epoch = Epoch(4);
    let welcome = Welcome {
        version: 1,
        epoch,
        cluster: ClusterId(Uuid::from_u128(7)),
        lease_ms: 15_000,
        heartbeat_ms: 1_000,
        acked: 3,
        stop: vec![attempt],
        keep: vec![attempt],
    };
    let job_spec = ToPeer::JobSpec {
        epoch,
        job: JobId(42),
        on_lost: OnLost::Wait,
        resources: spec().resources,
        run: spec().run,
        name: name("work"),
    };
    let error = ErrorReply::new(ErrorCode::NameTaken, "why");
    let view = JobView {
        job: JobId(42),
        name: name("work"),
        state: JobState::Running.into(),
        priority: -2,
        counts: TaskCounts { queued: 1, active: 2, succeeded: 3, failed: 4, cancelled: 5 },
        submitted_by: None,
        submitted_wall_ms: 6,
        started_wall_ms: Some(7),
        ended_wall_ms: None,
        unmet: 0,
        blocked: 0,
    };
    let detail = JobDetail {
        view: view.clone(),
        spec: spec(),
        revision: Revision(9),
        waits_for: vec!["why".into()],
        ended_early: None,
    };
    let node = NodeView {
        admin_labels: [].into(),
        resources: [].into(),
        drain: None,
        maintenance: None,
        node: name("a"),
        state: NodeState::Suspect.into(),
        epoch: Some(epoch),
        program_version: "0.1.0".into(),
        capacity: spec().resources,
        free: Resources::default(),
        labels: BTreeMap::new(),
        runtimes: vec![RuntimeKind::Noop.into()],
        withdrawn: BTreeMap::new(),
        unenforced: BTreeMap::new(),
        low_disks: BTreeMap::new(),
        attempts: 3,
        seen_ms_ago: Some(9),
        enrolled: true,
        scheduling: Scheduling::Open.into(),
        address: None,
    };
    let caller = Caller { role: Role::Operator, name: name("ann"), key: None };
    let reply = |result| ToPeer::Reply(Reply { id: 8, result });
    let log_read = LogRead {
        attempt,
        stream: LogStream::Stdout,
        from: LogPosition::Offset(4),
        bytes_max: 100,
        wait_ms: 5,
        find: None,
    };
    let chunk = EventChunk { first: Revision(3), wall_ms: 5, facts: facts() };
    let events = ReplyBody::Events { chunks: vec![chunk], last: Revision(27) };
    vec![
        ("welcome", ToPeer::Welcome(welcome)),
        ("refused", ToPeer::Refused(error.clone())),
        ("job_spec", job_spec),
        ("starts", ToPeer::Starts(epoch, vec![attempt])),
        ("stops", ToPeer::Stops(epoch, vec![(attempt, StopReason::Fenced)])),
        ("acked", ToPeer::Acked(epoch, 3)),
        ("forget_jobs", ToPeer::ForgetJobs(epoch, vec![JobId(42)])),
        ("hello_again", ToPeer::HelloAgain(epoch)),
        ("log_read", ToPeer::LogRead(3, log_read)),
        ("error", ToPeer::Error(error.clone())),
        ("error_reply", reply(Err(error))),
        ("submitted", reply(Ok(ReplyBody::Submitted { job: JobId(42), again: true }))),
        (
            "cancelled",
            reply(Ok(ReplyBody::Cancelled { state: JobState::Cancelling.into(), downstream: 0 })),
        ),
        ("jobs", reply(Ok(ReplyBody::Jobs(vec![view])))),
        ("job", reply(Ok(ReplyBody::Job(Box::new(detail))))),
        ("nodes", reply(Ok(ReplyBody::Nodes(vec![node])))),
        ("who_am_i", reply(Ok(ReplyBody::WhoAmI(caller)))),
        ("token_revoked", reply(Ok(ReplyBody::TokenRevoked))),
        ("events", reply(Ok(events))),
    ]
}

fn published() -> Published {
    let chunk = EventChunk { first: Revision(2), wall_ms: 5, facts: facts() };
    Published::Events { since: Revision(1), last: Revision(2), chunk: Some(chunk) }
}

/// The messages as hexadecimal, one a line: direction, name, bytes. They were written by the first
/// program that spoke this version, and are never changed.
const VERSION_1: &str = include_str!("golden/v1.txt");

/// An exchange of a manager, an agent and a command line that spoke version 1, one message a line:
/// peer, direction, name, bytes. It is never changed either.
const EXCHANGE_1: &str = include_str!("golden/exchange_v1.txt");

/// Returns the bytes of a recorded message.
fn recorded(direction: &str, name: &str) -> Vec<u8> {
    let prefix = format!("{direction} {name} ");
    let hex = VERSION_1.lines().find_map(|line| line.strip_prefix(&prefix));
    bytes(hex.unwrap_or_else(|| panic!("{prefix} was not recorded")))
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte =
        |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(byte).collect()
}

#[test]
fn messages_of_version_1_are_read() {
    for (name, message) in to_manager() {
        assert_eq!(decode::<ToManager>(&recorded("to_manager", name)).unwrap(), message, "{name}");
    }
    for (name, message) in to_peer() {
        assert_eq!(decode::<ToPeer>(&recorded("to_peer", name)).unwrap(), message, "{name}");
    }
    assert_eq!(decode::<Published>(&recorded("published", "events")).unwrap(), published());
    let read = to_manager().len() + to_peer().len() + 1;
    assert_eq!(VERSION_1.lines().count(), read, "every recorded message was read");
}

#[test]
fn the_messages_of_an_exchange_of_version_1_are_read_and_written_as_then() {
    for line in EXCHANGE_1.lines() {
        let [_peer, direction, name, hex] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let then = bytes(hex);
        let now = match direction {
            "to_manager" => encode(&decode::<ToManager>(&then).unwrap()),
            _ => encode(&decode::<ToPeer>(&then).unwrap()),
        };
        assert_eq!(now.unwrap(), then, "{name}");
    }
}

#[test]
fn events_are_written_as_version_1_wrote_them() {
    // They are stored, too.
    assert_eq!(encode(&published()).unwrap(), recorded("published", "events"));
}

#[test]
fn what_a_later_version_adds_is_ignored_or_kept() {
    let read = |value: serde_json::Value| {
        let bytes = rmp_serde::to_vec(&value).unwrap();
        (rmp_serde::from_slice::<EventFact>(&bytes), bytes)
    };
    let fact = EventFact::JobEnded { job: JobId(4), state: JobState::Failed.into() };
    // A further field, and fields with names.
    let (longer, _) = read(json!({"job_ended": [4, "failed", {"why": [1, null]}]}));
    assert_eq!(longer.unwrap(), fact);
    let (named, _) = read(json!({"job_ended": {"new": 1, "state": "failed", "job": 4}}));
    assert_eq!(named.unwrap(), fact);
    let (short, _) = read(json!({"job_ended": [4]}));
    assert!(short.unwrap_err().to_string().contains("state"));
    // An unknown kind survives a round trip.
    let (unknown, bytes) = read(json!({"service_moved": ["web", {"from": "a"}, -7]}));
    let unknown = unknown.unwrap();
    let EventFact::Unknown { kind, .. } = &unknown else { panic!("{unknown:?}") };
    assert_eq!(kind, "service_moved");
    assert_eq!(rmp_serde::to_vec_named(&unknown).unwrap(), bytes);
}
