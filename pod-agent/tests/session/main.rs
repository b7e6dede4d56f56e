//! Tests the agent with a manager that the test controls.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod replicas;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use podmesh_agent::companion::CompanionCommand;
use podmesh_agent::policy::NodePolicy;
use podmesh_agent::supervisor::supervise;
use podmesh_agent::{AgentConfig, AgentError, DockerSwitch, IngressConfig, RuntimeSwitches, run};
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::access::{Caller, JoinRequest, PublicKey, Role};
use podmesh_protocol::client::{LogPosition, LogRead, LogSlice, LogStream};
use podmesh_protocol::codec::decode;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{Published, TOPIC_MANAGER};
use podmesh_protocol::ids::{AttemptId, ClusterId, Epoch, InstanceId, JobId, Name, Revision};
use podmesh_protocol::report::{Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::service::ReplicaSpec;
use podmesh_protocol::session::{Hello, StopReason, ToManager, ToPeer, Welcome};
use podmesh_protocol::spec::{OnLost, Resources, RunSpec, RuntimeKind, RuntimeSpec};
use podmesh_protocol::version::VersionRange;
use podmesh_wire::control::{ManagerReceiver, ManagerSender, ManagerSocket};
use podmesh_wire::front::{Admission, Front, FrontConfig, Gate, Who};
use podmesh_wire::heartbeat::{read_beat, write_beat};
use podmesh_wire::key::KeyPair;
use podmesh_wire::locate::{Locator, ManagerPlace, SOCKETS_DIR};
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::publish::Publisher;
use podmesh_wire::route::Duplex;
use podmesh_wire::{Service, WireError};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};

/// Limit for every wait, far longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);
const ATTEMPT: AttemptId = AttemptId::new(JobId(1), 1, 1);

struct Manager {
    /// Its data folder.
    address: Arc<TempDir>,
    _front: FrontTask,
    receiver: ManagerReceiver,
    sender: ManagerSender,
    publisher: Publisher,
    /// Whether it ignores heartbeats.
    deaf: Arc<AtomicBool>,
    peer: Arc<[u8]>,
    epoch: Epoch,
    cluster: ClusterId,
    lease_ms: u64,
    /// The version of its sessions.
    version: u16,
}

/// The task of a manager's front. Aborted when dropped.
struct FrontTask(JoinHandle<std::io::Result<()>>);

impl Drop for FrontTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A gate that admits everybody on this machine. It answers heartbeats unless it is deaf.
#[derive(Default)]
struct OpenGate {
    last: AtomicU64,
    deaf: Arc<AtomicBool>,
}

impl Gate for OpenGate {
    fn admit(&self, _: Who, _: Service, _: AbortHandle) -> Result<Admission, ErrorReply> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Admission {
            caller: Caller { role: Role::Admin, name: "me".parse().unwrap(), key: None },
            identity: u128::from(number).to_be_bytes(),
            ended: Box::new(|_| ()),
        })
    }

    async fn join(
        &self,
        _: PublicKey,
        _: JoinRequest,
    ) -> Result<(ClusterId, Role, Name), ErrorReply> {
        Err(ErrorReply::new(ErrorCode::InvalidToken, "nobody joins here"))
    }

    async fn heartbeats(&self, _: Caller, mut stream: Box<dyn Duplex>, _: AbortHandle) {
        while let Ok(beat) = read_beat(&mut stream).await {
            if !self.deaf.load(Ordering::SeqCst) {
                // If there is no reader, the agent is gone.
                _ = write_beat(&mut stream, &beat).await;
            }
        }
    }

    fn refused(&self, _: Option<IpAddr>, why: &str) {
        panic!("{why}");
    }
}

impl Manager {
    async fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn at(dir: Arc<TempDir>) -> Self {
        let keys = ManagerKeys {
            current: KeyPair::generate().unwrap(),
            next: KeyPair::generate().unwrap(),
        };
        let (front, inner) = Front::bind(FrontConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            keys: ShownKeys::new(&keys).unwrap(),
            local_dir: dir.path().join(SOCKETS_DIR),
            group: None,
            private_dir: dir.path().join("private"),
        })
        .unwrap();
        let socket = ManagerSocket::bind(inner.control).await.unwrap();
        let publisher = Publisher::bind(inner.publications).await.unwrap();
        let (receiver, sender) = socket.split();
        let deaf = Arc::new(AtomicBool::new(false));
        let gate = OpenGate { deaf: Arc::clone(&deaf), ..OpenGate::default() };
        let front = tokio::spawn(front.run(Arc::new(gate)));
        Self {
            address: dir,
            _front: FrontTask(front),
            receiver,
            sender,
            publisher,
            deaf,
            peer: Arc::from([]),
            epoch: Epoch(0),
            cluster: ClusterId(uuid::Uuid::from_u128(1)),
            lease_ms: 60_000,
            version: 1,
        }
    }

    async fn receive(&mut self) -> ToManager {
        loop {
            let received = self.receiver.recv();
            let received = tokio::time::timeout(LIMIT, received).await.unwrap().unwrap();
            match received.message {
                Ok(ToManager::Hello(hello)) => {
                    self.peer = received.peer;
                    return ToManager::Hello(hello);
                }
                Ok(message) if received.peer == self.peer => return message,
                Ok(_) | Err(WireError::PeerGone) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        loop {
            if let ToManager::Hello(hello) = self.receive().await {
                return hello;
            }
        }
    }

    async fn send(&mut self, message: ToPeer) {
        self.sender.send(&self.peer.clone(), &message).await.unwrap();
    }

    async fn welcome(&mut self, acked: u64) {
        self.epoch.0 += 1;
        let welcome = Welcome {
            version: self.version,
            epoch: self.epoch,
            cluster: self.cluster,
            lease_ms: self.lease_ms,
            heartbeat_ms: 20,
            acked,
            stop: Vec::new(),
            keep: Vec::new(),
        };
        self.send(ToPeer::Welcome(welcome)).await;
    }

    async fn session(&mut self) -> Hello {
        let hello = self.hello().await;
        self.welcome(0).await;
        hello
    }

    async fn start(&mut self, attempt: AttemptId, runtime: RuntimeSpec, script: &str) {
        self.start_with(attempt, runtime, script, None).await;
    }

    async fn start_with(
        &mut self,
        attempt: AttemptId,
        runtime: RuntimeSpec,
        script: &str,
        replica: Option<Box<ReplicaSpec>>,
    ) {
        let run = RunSpec {
            runtime,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 30_000,
            replica,
            files: [].into(),
        };
        self.send(ToPeer::JobSpec {
            epoch: self.epoch,
            job: attempt.task.job,
            on_lost: OnLost::Wait,
            resources: Resources::default(),
            run,
            name: "job".parse().unwrap(),
        })
        .await;
        self.send(ToPeer::Starts(self.epoch, vec![attempt])).await;
    }

    /// Returns the next reports, ignoring other messages.
    async fn reports(&mut self) -> Vec<Report> {
        loop {
            match self.receive().await {
                ToManager::Reports(epoch, reports) if epoch == self.epoch => return reports,
                ToManager::Hello(hello) => panic!("a new session: {hello:?}"),
                _ => {}
            }
        }
    }

    /// Waits for the end of the attempt, and returns it with the number of its report.
    async fn end(&mut self) -> (u64, Outcome) {
        loop {
            for Report(number, attempt, fact) in self.reports().await {
                if let ReportFact::Ended(outcome) = fact {
                    assert_eq!(attempt, ATTEMPT);
                    return (number, outcome);
                }
            }
        }
    }

    async fn started(&mut self) {
        let reports = self.reports().await;
        assert_eq!(reports, [Report(1, ATTEMPT, ReportFact::Started)]);
    }

    async fn read_log(&mut self, from: u64, wait_ms: u32) -> LogSlice {
        let read = LogRead {
            attempt: ATTEMPT,
            stream: LogStream::Stdout,
            from: LogPosition::Offset(from),
            bytes_max: 1000,
            wait_ms,
            find: None,
        };
        self.send(ToPeer::LogRead(77, read)).await;
        loop {
            if let ToManager::LogSlice(number, slice) = self.receive().await {
                assert_eq!(number, 77);
                return slice.unwrap();
            }
        }
    }
}

struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), AgentError>>,
}

/// Runs the supervisor for the agents of a folder, unless it already runs. In production it is a
/// separate process. It is ready when the receiver completes.
fn supervise_once(dir: &Path) -> oneshot::Receiver<()> {
    let (ready, is_ready) = oneshot::channel();
    let agent_dir = dir.join("agent");
    let ready = move || _ = ready.send(());
    if agent_dir.exists() {
        ready();
        return is_ready;
    }
    std::fs::DirBuilder::new().mode(0o700).create(&agent_dir).unwrap();
    std::fs::write(agent_dir.join("id"), uuid::Uuid::new_v4().to_string()).unwrap();
    tokio::spawn(async move {
        supervise(&agent_dir, ready, std::future::pending()).await.unwrap();
    });
    is_ready
}

/// Waits until the spawned tasks of an agent have ended as well: only then is its data directory free.
async fn wait_until_free(dir: &Path) {
    let lock = std::fs::File::open(dir.join("agent/lock")).unwrap();
    let free = async {
        while lock.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, free).await.unwrap();
}

impl Agent {
    fn start(dir: &Path, manager: &TempDir) -> Self {
        Self::start_with(dir, manager, |_| ())
    }

    fn start_with(dir: &Path, manager: &TempDir, change: impl FnOnce(&mut AgentConfig)) -> Self {
        let supervised = supervise_once(dir);
        let manager = Locator {
            place: Some(ManagerPlace::DataDir(manager.path().into())),
            data_dir: dir.into(),
            enrolment_dir: dir.join("agent"),
        };
        let mut config = AgentConfig {
            resources: Default::default(),
            data_dir: dir.join("agent"),
            logs_dir: dir.join("logs"),
            name: "here".parse().unwrap(),
            manager,
            capacity: Resources { cpu_millis: 2000, memory_bytes: 1 << 30 },
            labels: BTreeMap::from([("disk".parse().unwrap(), "fast".to_owned())]),
            runtimes: RuntimeSwitches { process: true, docker: DockerSwitch::Off, noop: true },
            process_user: None,
            address: None,
            logs_bytes_max: None,
            policy: NodePolicy::default(),
            rotation: RotationPolicy::default(),
            // Never started, because a supervisor already runs.
            supervisor: CompanionCommand {
                program: "/nonexistent".into(),
                arg0: "podmesh".into(),
                args: Vec::new(),
            },
            proxy: CompanionCommand {
                program: "/nonexistent".into(),
                arg0: "podmesh".into(),
                args: Vec::new(),
            },
            ingress: IngressConfig::default(),
            metrics: None,
            stop_processes: false,
            versions: VersionRange::SPOKEN,
        };
        change(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async {
            supervised.await.unwrap();
            run(config, async {
                _ = stopped.await;
            })
            .await
        });
        Self { stop, task }
    }

    async fn result(self) -> Result<(), AgentError> {
        // Kept until the end, because dropping it stops the agent.
        let _stop = self.stop;
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap()
    }

    async fn abort(self, dir: &Path) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        wait_until_free(dir).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_started_and_reported_and_its_output_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start(dir.path(), &manager.address);
    let hello = manager.session().await;
    assert_eq!(hello.node.as_str(), "here");
    assert_eq!((hello.cluster, hello.attempts.len()), (None, 0));
    assert_eq!(hello.runtimes, [RuntimeKind::Process, RuntimeKind::Noop]);
    assert_eq!((hello.capacity.cpu_millis, hello.labels.len()), (2000, 1));

    manager
        .start(
            ATTEMPT,
            RuntimeSpec::Process,
            "printf 'a\\377b'; until test -e go; do sleep 0.01; done; exit 3",
        )
        .await;
    manager.started().await;
    let slice = manager.read_log(0, 30_000).await;
    assert_eq!((slice.offset, slice.bytes.as_slice(), slice.end), (0, &b"a\xffb"[..], false));
    std::fs::write(dir.path().join("agent/work/0/folder/go"), "").unwrap();
    let (number, outcome) = manager.end().await;
    assert_eq!((number, outcome.exit_code), (2, Some(3)));
    assert!(outcome.ran_ms > 0);
    let slice = manager.read_log(3, 0).await;
    assert_eq!((slice.offset, slice.bytes.len(), slice.end), (3, 0, true));

    assert!(dir.path().join("agent/work/0/folder").exists());
    manager.send(ToPeer::Acked(manager.epoch, 2)).await;
    manager.send(ToPeer::HelloAgain(manager.epoch)).await;
    let hello = manager.session().await;
    assert_eq!(hello.attempts, []);
    assert_eq!(hello.cluster, Some(manager.cluster));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacknowledged_reports_are_sent_again_to_a_restarted_manager() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let address = Arc::clone(&manager.address);
    let _agent = Agent::start(dir.path(), &address);
    let first = manager.session().await;
    manager.start(ATTEMPT, RuntimeSpec::Noop, "").await;
    let (number, outcome) = manager.end().await;
    assert_eq!((number, outcome.kind), (1, OutcomeKind::Succeeded));
    drop(manager);

    let mut manager = Manager::at(address).await;
    manager.epoch = Epoch(10);
    let second = manager.session().await;
    assert_eq!(second.attempts, [ATTEMPT]);
    assert_eq!(second.agent_instance, first.agent_instance);
    assert_eq!(manager.end().await, (1, outcome));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_opens_a_new_session_when_the_manager_asks_or_was_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    // An unknown job.
    manager.send(ToPeer::Starts(manager.epoch, vec![ATTEMPT])).await;
    manager.session().await;
    // A message of another session is ignored.
    manager.send(ToPeer::HelloAgain(Epoch(1))).await;
    manager.send(ToPeer::HelloAgain(manager.epoch)).await;
    manager.session().await;

    for stopping in [false, true] {
        let mut life = 0;
        // Published until received, because the agent subscribes some time after the welcome.
        loop {
            // The same instance twice and then another one, or the manager's end.
            life += u128::from(!stopping);
            let instance = InstanceId(uuid::Uuid::from_u128(life / 2));
            let beacon = Published::Manager { instance, revision: Revision(0), stopping };
            manager.publisher.publish(TOPIC_MANAGER, &beacon).await.unwrap();
            if tokio::time::timeout(Duration::from_millis(50), manager.hello()).await.is_ok() {
                manager.welcome(0).await;
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_reconnects_when_heartbeats_are_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    manager.deaf.store(true, Ordering::SeqCst);
    manager.lease_ms = 200;
    let _agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    // The beats are received but not answered, so the agent opens another session.
    manager.hello().await;
    manager.deaf.store(false, Ordering::SeqCst);
    manager.lease_ms = 60_000;
    manager.welcome(0).await;
    manager.start(ATTEMPT, RuntimeSpec::Noop, "").await;
    assert_eq!(manager.end().await.1.kind, OutcomeKind::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_command_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    manager.start(ATTEMPT, RuntimeSpec::Process, "sleep 1000").await;
    manager.started().await;
    manager.send(ToPeer::Stops(manager.epoch, vec![(ATTEMPT, StopReason::Cancelled)])).await;
    let (_, outcome) = manager.end().await;
    assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::Cancelled, Some(15)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_stops_reports_its_stopped_attempts_and_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent =
        Agent::start_with(dir.path(), &manager.address, |config| config.stop_processes = true);
    manager.session().await;
    manager.start(ATTEMPT, RuntimeSpec::Process, "sleep 1000").await;
    manager.started().await;
    agent.stop.send(()).unwrap();
    let (number, outcome) = manager.end().await;
    assert_eq!((number, outcome.kind), (2, OutcomeKind::Lost));
    assert_eq!(outcome.message.as_deref(), Some("the agent was stopped"));
    manager.send(ToPeer::Acked(manager.epoch, 2)).await;
    assert_eq!(manager.receive().await, ToManager::Goodbye(manager.epoch));
    tokio::time::timeout(LIMIT, agent.task).await.unwrap().unwrap().unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("agent/work")).unwrap().count(), 1, "the records");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_outlive_an_agent_that_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    let script = "until test -e go; do sleep 0.01; done; exit 7";
    manager.start(ATTEMPT, RuntimeSpec::Process, script).await;
    manager.started().await;
    manager.send(ToPeer::Acked(manager.epoch, 1)).await;
    agent.stop.send(()).unwrap();
    assert_eq!(manager.receive().await, ToManager::Goodbye(manager.epoch));
    tokio::time::timeout(LIMIT, agent.task).await.unwrap().unwrap().unwrap();
    wait_until_free(dir.path()).await;

    let _agent = Agent::start(dir.path(), &manager.address);
    let second = manager.session().await;
    assert_eq!(second.attempts, [ATTEMPT]);
    std::fs::write(dir.path().join("agent/work/0/folder/go"), "").unwrap();
    assert_eq!(manager.end().await.1.exit_code, Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_adopts_running_attempts_after_a_kill_and_reports_ended_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start(dir.path(), &manager.address);
    let first = manager.session().await;
    let script = "until test -e go; do sleep 0.01; done; exit 7";
    manager.start(ATTEMPT, RuntimeSpec::Process, script).await;
    manager.started().await;
    agent.abort(dir.path()).await;

    let agent = Agent::start(dir.path(), &manager.address);
    let second = manager.session().await;
    assert_eq!(second.attempts, [ATTEMPT]);
    assert_ne!(second.agent_instance, first.agent_instance);
    manager.started().await;
    agent.abort(dir.path()).await;

    // It ends while no agent runs.
    let work = dir.path().join("agent/work");
    std::fs::write(work.join("0/folder/go"), "").unwrap();
    let written = || std::fs::read_to_string(work.join("records")).unwrap();
    let ended = async {
        while !written().contains("ended") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, ended).await.unwrap();
    let _agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    let (number, outcome) = manager.end().await;
    assert_eq!((number, outcome.exit_code), (1, Some(7)));
    assert!(outcome.ran_ms > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manager_of_another_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    manager.cluster = ClusterId(uuid::Uuid::from_u128(2));
    manager.send(ToPeer::HelloAgain(manager.epoch)).await;
    manager.session().await;
    let error = agent.result().await.unwrap_err().to_string();
    assert!(error.contains("agent/cluster"), "{error}");

    // The manager may notice it first.
    let agent = Agent::start(dir.path(), &manager.address);
    manager.hello().await;
    let refusal = ErrorReply::new(ErrorCode::WrongCluster, "not mine");
    manager.send(ToPeer::Refused(refusal)).await;
    let error = agent.result().await.unwrap_err();
    assert!(matches!(error, AgentError::WrongCluster { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_retried_or_ends_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start(dir.path(), &manager.address);
    for code in [ErrorCode::NameTaken, ErrorCode::Stopping] {
        manager.hello().await;
        manager.send(ToPeer::Refused(ErrorReply::new(code, "no"))).await;
    }
    manager.hello().await;
    let refusal = ErrorReply::new(ErrorCode::UnsupportedVersion, "this manager speaks 2");
    manager.send(ToPeer::Refused(refusal)).await;
    let error = agent.result().await.unwrap_err().to_string();
    assert!(error.contains("this manager speaks 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_in_a_version_that_the_agent_does_not_speak_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start(dir.path(), &manager.address);
    let spoken = manager.hello().await.versions();
    assert_eq!(spoken, VersionRange::SPOKEN);
    manager.version = spoken.newest + 1;
    manager.welcome(0).await;
    let error = agent.result().await.unwrap_err();
    assert!(matches!(error, AgentError::UnsupportedVersion { .. }), "{error}");
    let (used, speaks) = (format!("with version {} ", manager.version), format!("speaks {spoken}"));
    let said = error.to_string();
    assert!(said.contains(&used) && said.contains(&speaks), "{said}");
}

/// Returns the messages that a manager of version 1 sent to an agent, as they were recorded.
fn recorded() -> impl Iterator<Item = ToPeer> {
    let lines = include_str!("../../../protocol/tests/golden/exchange_v1.txt").lines();
    lines.filter_map(|line| line.strip_prefix("agent to_peer ")).map(|line| {
        let (_name, hex) = line.split_once(' ').unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        decode(&bytes).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_works_for_a_manager_of_version_1() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let spoken = VersionRange { oldest: 1, newest: 2 };
    let _agent = Agent::start_with(dir.path(), &manager.address, |config| config.versions = spoken);
    assert_eq!(manager.hello().await.versions(), spoken);
    let mut messages = recorded();
    // The welcome, the spec of the first job and the starts of its two attempts.
    for message in messages.by_ref().take(3) {
        if let ToPeer::Welcome(welcome) = &message {
            manager.epoch = welcome.epoch;
        }
        manager.send(message).await;
    }
    let mut ended = BTreeMap::new();
    while ended.len() < 2 {
        for Report(number, attempt, fact) in manager.reports().await {
            manager.send(ToPeer::Acked(manager.epoch, number)).await;
            if let ReportFact::Ended(outcome) = fact {
                assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
                ended.insert(attempt, outcome.kind);
            }
        }
    }
    let attempt = |index| AttemptId::new(JobId(1), index, 1);
    let succeeded = OutcomeKind::Succeeded;
    assert_eq!(ended, BTreeMap::from([(attempt(1), succeeded), (attempt(2), succeeded)]));
    let output = dir.path().join("logs/1/1/1/stdout.log");
    assert_eq!(std::fs::read_to_string(output).unwrap(), "x\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_one_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    let error = Agent::start(dir.path(), &manager.address).result().await.unwrap_err();
    assert!(matches!(error, AgentError::InUse { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_can_start_before_its_manager() {
    let dir = tempfile::tempdir().unwrap();
    let address = Manager::new().await.address;
    let _agent = Agent::start(dir.path(), &address);
    let mut manager = Manager::at(address).await;
    manager.session().await;
}

#[tokio::test]
async fn endpoints_are_acknowledged_in_their_session_only() {
    let mut manager = Manager::new().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), &manager.address);
    manager.session().await;
    let endpoints =
        |epoch, update| ToPeer::Endpoints { epoch, update, all: true, services: Vec::new() };
    manager.send(endpoints(Epoch(77), 5)).await;
    manager.send(endpoints(manager.epoch, 3)).await;
    let acked = loop {
        if let ToManager::EndpointsApplied { epoch, applied, drained } = manager.receive().await {
            break (epoch, applied, drained);
        }
    };
    assert_eq!(acked, (manager.epoch, 3, 3));
    agent.abort(dir.path()).await;
}
