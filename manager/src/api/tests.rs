//! Requests without a socket.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crossbeam_channel::bounded;
use podmesh_manager_core::CoreConfig;
use podmesh_protocol::access::{Caller, KeyDigest, PublicKey, Role, TokenId};
use podmesh_protocol::again::RequeueRequest;
use podmesh_protocol::client::{LogPosition, LogRead, LogStream, PrincipalKind};
use podmesh_protocol::ids::{AttemptId, JobId, Name, SubmissionId, TaskId};
use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::queue::{QueueChange, QueueRequest};
use podmesh_protocol::schedule::{ScheduleReply, ScheduleRequest, ScheduleSpec};
use podmesh_protocol::service::{ServiceReply, ServiceRequest, ServiceSpec, ServiceState};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::volume::VolumeRequest;
use podmesh_protocol::workflow::{
    Condition, Dependency, PackedWorkflow, WorkflowJob, WorkflowReply, WorkflowRequest,
    WorkflowSpec,
};
use podmesh_wire::control::ManagerSocket;
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::watchdog::{Pulse, Watchdog};
use tempfile::TempDir;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::api_tokens::ApiTokens;
use crate::callers::{Ours, RunId};
use crate::config::ManagerConfig;
use crate::core::CoreThread;
use crate::endpoint::Endpoint;
use crate::heartbeat::Heartbeats;
use crate::metrics::EventCounts;
use crate::publisher::Hints;
use crate::sender::Sender;
use crate::store::{self, Store};
use crate::submission_rate::{SubmissionLimit, SubmissionRate};
use crate::threads::{ManagerThread, run_reads};
use crate::turns::CallerLine;

/// Far longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A manager to which nobody can connect.
struct World {
    _dir: TempDir,
    api: Api,
    _stopping: watch::Sender<bool>,
    /// What the store receives, if nothing writes it.
    _steps: Option<crossbeam_channel::Receiver<store::TimedStep>>,
}

impl World {
    /// Starts a manager. If not `writes`, its disk never takes a commit.
    async fn start(writes: bool) -> Self {
        Self::with_rate(writes, None).await
    }

    /// The same, with a limit for the submissions of each caller.
    async fn with_rate(writes: bool, rate: Option<SubmissionRate>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
        let config = ManagerConfig::new(dir.path(), listen);
        let Store { writer, history, lookups: lookups_history, state, age_ms } =
            store::open(dir.path()).unwrap();
        let keys = ManagerKeys::load_or_create(dir.path()).unwrap();
        let shown = ShownKeys::new(&keys).unwrap();
        let clock = Clock::start(age_ms);
        let (core, core_receiver) = CoreHandle::new();
        let heartbeats = Heartbeats::new(clock, core.clone(), 1_000, 15_000);
        let run = RunId([1; 8]);
        let ours = Ours { cluster: state.cluster, run, versions: config.versions };
        let callers = Callers::new(ours, [], core.clone(), heartbeats.clone());
        let listener = UnixListener::bind(dir.path().join("control")).unwrap();
        let (_, socket) = ManagerSocket::bind(listener).await.unwrap().split();
        let messages = Messages::new(socket, run);
        let (reads, reads_receiver) = Reads::new();
        let (lookups, lookups_receiver) = Reads::new();
        let (stop, stopping) = watch::channel(false);
        let (waiters, turns) = (Arc::new(Waiters::default()), Arc::new(Turns::new()));
        let counts = Arc::new(EventCounts::default());
        let log_reads = Arc::new(LogReads::default());
        let endpoint = Endpoint {
            address: listen,
            sockets: dir.path().into(),
            key: String::new(),
            pid: 1,
            instance: InstanceId(Uuid::nil()),
            cluster: state.cluster,
            version: "0.1.0".into(),
            http: None,
        };
        let api = Api::new(Parts {
            identity: Identity {
                version: 1,
                cluster: state.cluster,
                instance: endpoint.instance,
                program_version: endpoint.version.clone(),
                last_revision: writer.last_revision(),
                clock,
            },
            data_dir: dir.path().into(),
            priority_max: 0,
            submissions: Arc::new(SubmissionLimit::new(rate)),
            tokens: Tokens::new(&config, listen),
            own_key: OwnKey::new(dir.path().into(), shown, endpoint),
            callers: callers.clone(),
            core: core.clone(),
            reads,
            lookups,
            messages: messages.clone(),
            log_reads: Arc::clone(&log_reads),
            waiters: Arc::clone(&waiters),
            turns: Arc::clone(&turns),
            measured: Measured {
                events: Arc::clone(&counts),
                store: writer.measures(),
                heartbeats: heartbeats.clone(),
                spans: Default::default(),
            },
            ended_jobs: Default::default(),
            stopping: stopping.clone(),
        });
        // The threads end with their channels.
        ManagerThread::start("reads", move || run_reads(history, &reads_receiver)).unwrap();
        ManagerThread::start("lookups", move || run_reads(lookups_history, &lookups_receiver))
            .unwrap();
        let (store, steps) = bounded(1);
        let pulse = pulse();
        ManagerThread::start("core", move || {
            let config = CoreConfig {
                lease_ms: 15_000,
                heartbeat_ms: 1_000,
                margin_ms: 5_000,
                versions: config.versions,
            };
            let core = Core::new(clock.now(), config, state);
            CoreThread { core, clock, receiver: core_receiver, store, pulse }.run();
        })
        .unwrap();
        let hints = Arc::new(Hints::default());
        let api_tokens = ApiTokens::new(clock, core.clone());
        let sender = Sender {
            messages,
            core,
            callers,
            api_tokens,
            heartbeats,
            log_reads,
            hints,
            counts,
            revisions: watch::Sender::new(Revision(0)),
            waiters,
            turns,
        };
        let (committed, commits) = mpsc::channel(1);
        tokio::spawn(sender.run(commits, self::pulse()));
        let steps = if writes {
            let pulse = self::pulse();
            ManagerThread::start("store", move || {
                writer.run(&steps, &committed, &stopping, &pulse)
            })
            .unwrap();
            None
        } else {
            Some(steps)
        };
        Self { _dir: dir, api, _stopping: stop, _steps: steps }
    }

    async fn ask(&self, role: Role, request: RequestBody) -> Result<ReplyBody, ErrorReply> {
        let caller = Caller { role, name: name("ann"), key: None };
        let reads = CallerLine::default().connection();
        let client = Client { caller, connection: None, reads };
        let answer = self.api.call(client, request, None);
        tokio::time::timeout(PATIENCE, answer).await.expect("an answer")
    }
}

fn pulse() -> Pulse {
    Watchdog::default().pulse("test")
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn submit(number: u128) -> RequestBody {
    let spec = r#"{"name": "work", "run": {"runtime": "process", "command": ["true"]}}"#;
    let spec: JobSpec = serde_json::from_str(spec).unwrap();
    RequestBody::Submit { submission: SubmissionId(Uuid::from_u128(number)), spec: Box::new(spec) }
}

/// Returns one request of each kind, with the name of the kind.
fn requests() -> Vec<(&'static str, RequestBody)> {
    let (job, task) = (JobId(1), TaskId { job: JobId(1), index: 0 });
    let log = LogRead {
        attempt: AttemptId::new(JobId(1), 0, 1),
        stream: LogStream::Stdout,
        from: LogPosition::Offset(0),
        bytes_max: 1,
        wait_ms: 0,
        find: None,
    };
    let all = vec![
        RequestBody::Info,
        RequestBody::WhoAmI,
        RequestBody::KeyRenew { key: PublicKey([9; 32]) },
        RequestBody::Jobs {
            before: None,
            active: false,
            by: None,
            service: None,
            replica: None,
            limit: 1,
        },
        RequestBody::Job { job, since: None, wait_ms: 0 },
        RequestBody::Tasks { job, from: 0, state: None, limit: 1 },
        RequestBody::Task { task, unless: None, wait_ms: 0 },
        RequestBody::Nodes { after: None, limit: 1 },
        RequestBody::Events { since: Revision(0) },
        RequestBody::Log(log),
        submit(77),
        RequestBody::Cancel { job, downstream: false },
        RequestBody::Requeue(RequeueRequest { job, state: None, tasks: None, downstream: false }),
        RequestBody::Failed { since_ms: None },
        RequestBody::Forget { first: job, last: job },
        RequestBody::TokenCreate { role: Role::Agent, ttl_ms: 1000, uses: 1 },
        RequestBody::ApiTokenCreate { role: Role::Viewer, ttl_ms: 1000 },
        RequestBody::Tokens,
        RequestBody::TokenRevoke { id: TokenId(999) },
        RequestBody::Users { after: None, limit: 1 },
        RequestBody::NodeForget { node: name("nobody"), force: false },
        RequestBody::Revoke { kind: PrincipalKind::User, name: name("nobody") },
        RequestBody::KeyRotate { key: KeyDigest([9; 32]) },
        RequestBody::NodeLabels {
            node: name("nobody"),
            set: [(name("zone"), "b".into())].into(),
            remove: [].into(),
        },
        RequestBody::NodeMaintenance { node: name("nobody"), maintenance: None },
        RequestBody::NodeScheduling {
            node: name("nobody"),
            scheduling: Scheduling::Cordoned,
            drain: DrainSpec::default(),
        },
        RequestBody::Volume(VolumeRequest::List { after: None, limit: 1 }),
        RequestBody::Volume(VolumeRequest::Remove { volume: name("none"), force: false }),
    ];
    let service = || name("web");
    let spec = || Box::new(service_spec());
    let services = [
        ServiceRequest::Plan { spec: spec() },
        ServiceRequest::List { after: None, limit: 1 },
        ServiceRequest::Show { service: service(), since: None, wait_ms: 0 },
        ServiceRequest::History { service: service() },
        ServiceRequest::Apply { spec: spec() },
        ServiceRequest::Scale { service: service(), replicas: 2 },
        ServiceRequest::Restart { service: service() },
        ServiceRequest::Rollback { service: service(), to: None },
        ServiceRequest::Stop { service: service() },
        ServiceRequest::Start { service: service() },
        ServiceRequest::Remove { service: service() },
    ];
    let schedule = || name("tick");
    let submission = SubmissionId(Uuid::from_u128(78));
    let schedules = [
        ScheduleRequest::List { after: None, limit: 1 },
        ScheduleRequest::Show { schedule: schedule() },
        ScheduleRequest::History { schedule: schedule(), before: None, limit: 1 },
        ScheduleRequest::Save { spec: Box::new(schedule_spec()) },
        ScheduleRequest::Pause { schedule: schedule() },
        ScheduleRequest::Resume { schedule: schedule() },
        ScheduleRequest::Run { schedule: schedule(), submission },
        ScheduleRequest::Remove { schedule: schedule() },
    ];
    let queue = || name("night");
    let queues = [
        QueueRequest::List { after: None, limit: 1 },
        QueueRequest::Show { queue: name("default") },
        QueueRequest::Set { queue: queue(), change: QueueChange::default() },
        QueueRequest::Pause { queue: queue() },
        QueueRequest::Resume { queue: queue() },
        QueueRequest::Remove { queue: queue() },
    ];
    let flow = WorkflowSpec {
        name: name("flow"),
        jobs: vec![WorkflowJob { spec: *schedule_spec().job, after: Vec::new() }],
    };
    let workflows = [
        WorkflowRequest::List { before: None, name: None, limit: 1 },
        WorkflowRequest::Show { workflow: job, after: None, limit: 1 },
        WorkflowRequest::Submit {
            submission: SubmissionId(Uuid::from_u128(79)),
            workflow: PackedWorkflow::pack(&flow).unwrap(),
        },
        WorkflowRequest::Cancel { workflow: job },
    ];
    // A new kind of request must also be added above.
    let kind = |body: &RequestBody| match body {
        RequestBody::Info => "info",
        RequestBody::WhoAmI => "who_am_i",
        RequestBody::Jobs { .. } => "jobs",
        RequestBody::Job { .. } => "job",
        RequestBody::Tasks { .. } => "tasks",
        RequestBody::Task { .. } => "task",
        RequestBody::Nodes { .. } => "nodes",
        RequestBody::Events { .. } => "events",
        RequestBody::Log(_) => "log",
        RequestBody::Submit { .. } => "submit",
        RequestBody::Cancel { .. } => "cancel",
        RequestBody::Requeue(_) => "requeue",
        RequestBody::Failed { .. } => "failed",
        RequestBody::Forget { .. } => "forget",
        RequestBody::TokenCreate { .. } => "token_create",
        RequestBody::ApiTokenCreate { .. } => "api_token_create",
        RequestBody::Tokens => "tokens",
        RequestBody::TokenRevoke { .. } => "token_revoke",
        RequestBody::Users { .. } => "users",
        RequestBody::Revoke { .. } => "revoke",
        RequestBody::NodeForget { .. } => "node_forget",
        RequestBody::KeyRenew { .. } => "key_renew",
        RequestBody::KeyRotate { .. } => "key_rotate",
        RequestBody::Service(request) => match request {
            ServiceRequest::Apply { .. } => "service apply",
            ServiceRequest::Plan { .. } => "service plan",
            ServiceRequest::Scale { .. } => "service scale",
            ServiceRequest::Restart { .. } => "service restart",
            ServiceRequest::Rollback { .. } => "service rollback",
            ServiceRequest::Stop { .. } => "service stop",
            ServiceRequest::Start { .. } => "service start",
            ServiceRequest::Remove { .. } => "service remove",
            ServiceRequest::List { .. } => "service list",
            ServiceRequest::Show { .. } => "service show",
            ServiceRequest::History { .. } => "service history",
        },
        RequestBody::Workflow(request) => match request {
            WorkflowRequest::Submit { .. } => "workflow submit",
            WorkflowRequest::List { .. } => "workflow list",
            WorkflowRequest::Show { .. } => "workflow show",
            WorkflowRequest::Cancel { .. } => "workflow cancel",
        },
        RequestBody::Schedule(request) => match request {
            ScheduleRequest::Save { .. } => "schedule save",
            ScheduleRequest::List { .. } => "schedule list",
            ScheduleRequest::Show { .. } => "schedule show",
            ScheduleRequest::History { .. } => "schedule history",
            ScheduleRequest::Pause { .. } => "schedule pause",
            ScheduleRequest::Resume { .. } => "schedule resume",
            ScheduleRequest::Run { .. } => "schedule run",
            ScheduleRequest::Remove { .. } => "schedule remove",
        },
        RequestBody::Queue(request) => match request {
            QueueRequest::List { .. } => "queue list",
            QueueRequest::Show { .. } => "queue show",
            QueueRequest::Set { .. } => "queue set",
            QueueRequest::Pause { .. } => "queue pause",
            QueueRequest::Resume { .. } => "queue resume",
            QueueRequest::Remove { .. } => "queue remove",
        },
        RequestBody::NodeScheduling { .. } => "node_scheduling",
        RequestBody::NodeLabels { .. } => "node_labels",
        RequestBody::NodeMaintenance { .. } => "node_maintenance",
        RequestBody::Volume(VolumeRequest::List { .. }) => "volume list",
        RequestBody::Volume(VolumeRequest::Remove { .. }) => "volume remove",
    };
    let services = services.into_iter().map(RequestBody::Service);
    let schedules = schedules.into_iter().map(RequestBody::Schedule);
    let workflows = workflows.into_iter().map(RequestBody::Workflow);
    let queues = queues.into_iter().map(RequestBody::Queue);
    let all = all.into_iter().chain(services).chain(schedules).chain(workflows).chain(queues);
    all.map(|body| (kind(&body), body)).collect()
}

/// A schedule of one command.
fn schedule_spec() -> ScheduleSpec {
    let spec = r#"{"name": "tick", "when": {"every": {"every_ms": 3600000}}, "job":
        {"name": "tick", "run": {"runtime": "process", "command": ["true"]}}}"#;
    serde_json::from_str(spec).unwrap()
}

/// A service of one command.
fn service_spec() -> ServiceSpec {
    let run = r#"{"name": "web", "run": {"runtime": "process", "command": ["true"]}}"#;
    serde_json::from_str(run).unwrap()
}

#[tokio::test]
async fn every_role_may_ask_exactly_its_requests() {
    let world = World::start(true).await;
    let mut table =
        format!("{:19}{}\n", "request", Role::ALL.map(|role| format!("{role:10}")).concat());
    for (kind, request) in requests() {
        table += &format!("{kind:19}");
        for role in Role::ALL {
            let answer = world.ask(role, request.clone()).await;
            let forbidden = answer.is_err_and(|error| error.code == ErrorCode::Forbidden);
            table += &format!("{:10}", if forbidden { "-" } else { "yes" });
        }
        table += "\n";
    }
    let table: Vec<&str> = table.lines().map(str::trim_end).collect();
    println!("{}", table.join("\n"));
    let expected = "\
request            agent     viewer    operator  admin
info               yes       yes       yes       yes
who_am_i           yes       yes       yes       yes
key_renew          yes       yes       yes       yes
jobs               -         yes       yes       yes
job                -         yes       yes       yes
tasks              -         yes       yes       yes
task               -         yes       yes       yes
nodes              -         yes       yes       yes
events             -         yes       yes       yes
log                -         yes       yes       yes
submit             -         -         yes       yes
cancel             -         -         yes       yes
requeue            -         -         yes       yes
failed             -         yes       yes       yes
forget             -         -         -         yes
token_create       -         -         -         yes
api_token_create   -         -         -         yes
tokens             -         -         -         yes
token_revoke       -         -         -         yes
users              -         -         -         yes
node_forget        -         -         -         yes
revoke             -         -         -         yes
key_rotate         -         -         -         yes
node_labels        -         -         -         yes
node_maintenance   -         -         -         yes
node_scheduling    -         -         -         yes
volume list        -         yes       yes       yes
volume remove      -         -         yes       yes
service plan       -         yes       yes       yes
service list       -         yes       yes       yes
service show       -         yes       yes       yes
service history    -         yes       yes       yes
service apply      -         -         yes       yes
service scale      -         -         yes       yes
service restart    -         -         yes       yes
service rollback   -         -         yes       yes
service stop       -         -         yes       yes
service start      -         -         yes       yes
service remove     -         -         yes       yes
schedule list      -         yes       yes       yes
schedule show      -         yes       yes       yes
schedule history   -         yes       yes       yes
schedule save      -         -         yes       yes
schedule pause     -         -         yes       yes
schedule resume    -         -         yes       yes
schedule run       -         -         yes       yes
schedule remove    -         -         yes       yes
workflow list      -         yes       yes       yes
workflow show      -         yes       yes       yes
workflow submit    -         -         yes       yes
workflow cancel    -         -         yes       yes
queue list         -         yes       yes       yes
queue show         -         yes       yes       yes
queue set          -         -         -         yes
queue pause        -         -         -         yes
queue resume       -         -         -         yes
queue remove       -         -         -         yes";
    assert_eq!(table, expected.lines().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_of_a_service_waits_for_its_next_change() {
    let world = World::start(true).await;
    let ask = |request| world.ask(Role::Operator, RequestBody::Service(request));
    let service = || name("web");
    let show = |since, wait_ms| ServiceRequest::Show { service: service(), since, wait_ms };
    let missing = ask(show(None, 0)).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    ask(ServiceRequest::Apply { spec: Box::new(service_spec()) }).await.unwrap();
    let detail = |reply| match reply {
        Ok(ReplyBody::Service(ServiceReply::Service(detail))) => detail,
        other => panic!("{other:?}"),
    };
    let first = detail(ask(show(None, 0)).await);
    assert_eq!(first.view.state, ServiceState::Updating);
    assert!(first.waits_for[0].contains("no node"), "{:?}", first.waits_for);
    let same = detail(ask(show(Some(first.changed), 1)).await);
    assert_eq!(same.changed, first.changed);
    let stop = async { ask(ServiceRequest::Stop { service: service() }).await.unwrap() };
    let (second, _) = tokio::join!(ask(show(Some(first.changed), 30_000)), stop);
    let second = detail(second);
    assert!(second.changed > first.changed);
    assert_eq!(second.view.state, ServiceState::Stopped);
    let rollback = ServiceRequest::Rollback { service: service(), to: Some(7) };
    let error = ask(rollback).await.unwrap_err();
    assert!(error.message.contains("no revision 7"), "{error}");
}

#[tokio::test]
async fn a_command_is_answered_once_it_is_on_disk() {
    let world = World::start(true).await;
    let submitted = |again| Ok(ReplyBody::Submitted { job: JobId(1), again });
    assert_eq!(world.ask(Role::Operator, submit(1)).await, submitted(false));
    assert_eq!(world.ask(Role::Operator, submit(1)).await, submitted(true));
    let job = world.ask(Role::Viewer, RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 });
    let Ok(ReplyBody::Job(job)) = job.await else { unreachable!("no job") };
    assert_eq!(job.waits_for, ["no node has joined yet"]);
    // The core has forgotten a job that has ended; its state comes from the database.
    for _ in 0..2 {
        let cancelled = world
            .ask(Role::Operator, RequestBody::Cancel { job: JobId(1), downstream: false })
            .await;
        let state = podmesh_protocol::report::JobState::Cancelled.into();
        assert_eq!(cancelled, Ok(ReplyBody::Cancelled { state, downstream: 0 }));
    }
}

#[tokio::test]
async fn a_repeated_submission_does_not_count_for_the_rate_again() {
    let world = World::with_rate(true, Some("4/h".parse().unwrap())).await;
    let save = ScheduleRequest::Save { spec: Box::new(schedule_spec()) };
    world.ask(Role::Operator, RequestBody::Schedule(save)).await.unwrap();
    let submission = |number| SubmissionId(Uuid::from_u128(number));
    let one_of_each = || {
        let RequestBody::Submit { submission: second, mut spec } = submit(2) else {
            unreachable!("it is a submission")
        };
        spec.after = vec![Dependency { job: JobId(1), when: Condition::Ended }];
        let flow = WorkflowSpec {
            name: name("flow"),
            jobs: vec![WorkflowJob { spec: *schedule_spec().job, after: Vec::new() }],
        };
        let workflow = PackedWorkflow::pack(&flow).unwrap();
        [
            submit(1),
            RequestBody::Submit { submission: second, spec },
            RequestBody::Workflow(WorkflowRequest::Submit { submission: submission(3), workflow }),
            RequestBody::Schedule(ScheduleRequest::Run {
                schedule: name("tick"),
                submission: submission(4),
            }),
        ]
    };
    for _ in 0..3 {
        for (number, request) in (1..).zip(one_of_each()) {
            let job = match world.ask(Role::Operator, request).await.unwrap() {
                ReplyBody::Submitted { job, .. } => job,
                ReplyBody::Workflow(WorkflowReply::Submitted { workflow, .. }) => workflow,
                ReplyBody::Schedule(ScheduleReply::Ran { job: Some(job) }) => job,
                other => panic!("{other:?}"),
            };
            assert_eq!(job, JobId(number));
        }
    }
    let refused = world.ask(Role::Operator, submit(5)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
}

#[tokio::test]
async fn reads_do_not_wait_for_a_disk_that_takes_no_commit() {
    let world = World::start(false).await;
    for number in 0..4 {
        // It waits for ever.
        let submitted = world.ask(Role::Operator, submit(number)).now_or_never();
        assert_eq!(submitted, None);
    }
    // After this, the core has the submissions.
    world.api.0.lookups.run(|_| Ok(())).await.unwrap();
    let nodes = world.ask(Role::Viewer, RequestBody::Nodes { after: None, limit: 1 }).await;
    assert_eq!(nodes, Ok(ReplyBody::Nodes(vec![])));
    let job = RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 };
    assert_eq!(world.ask(Role::Viewer, job).await.unwrap_err().code, ErrorCode::NotFound);
}
