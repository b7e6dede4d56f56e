//! A supervisor in this process with real processes, and an agent controlled by the test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, Resources, RunSpec, RuntimeSpec};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::messages::{
    Context, HeldAttempt, Hello, ToAgent, ToSupervisor, VERSION, VERSION_REPLICAS,
};
use super::*;
use crate::capture::Captures;
use crate::clock::machine_ms;
use crate::companion::{CompanionCommand, Frames, Kind, RunDir, Turn, put};
use crate::log_notify::LogNotify;

/// Limit for every wait, far longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);
const ATTEMPT: AttemptId = AttemptId::new(JobId(1), 1, 1);
/// Waits until a file `go` exists.
const GATE: &str = "until test -e go; do sleep 0.01; done; exit 7";

struct Node {
    dir: TempDir,
    agent: Uuid,
}

impl Node {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), agent: Uuid::new_v4() };
        fs::write(this.dir.path().join("id"), this.agent.to_string()).unwrap();
        this
    }

    async fn supervise(&self) -> JoinHandle<Result<(), SupervisorError>> {
        let dir = self.dir.path().to_owned();
        let (ready, is_ready) = oneshot::channel();
        let ready = || _ = ready.send(());
        let task =
            tokio::spawn(async move { supervise(&dir, ready, std::future::pending()).await });
        is_ready.await.unwrap();
        task
    }

    fn settings(&self) -> LinkSettings {
        LinkSettings {
            command: CompanionCommand {
                program: "/nonexistent".into(),
                arg0: "podmesh".into(),
                args: Vec::new(),
            },
            stop_with_agent: false,
            agent_id: self.agent,
            data_dir: self.dir.path().to_owned(),
            node: "here".parse().unwrap(),
            logs_dir: self.dir.path().join("logs"),
            rotation: RotationPolicy::default(),
            log_notify: LogNotify::default(),
            user: None,
        }
    }

    fn connect(&self) -> Agent {
        let stream = RunDir::open(self.dir.path(), Kind::Supervisor).unwrap().connect().unwrap();
        let (reader, writer) = UnixStream::from_std(stream).unwrap().into_split();
        Agent { frames: Frames::new(reader), writer }
    }

    /// Connects an agent, and returns it with the attempts that it was sent.
    async fn agent(&self, change: impl FnOnce(&mut Hello)) -> (Agent, Vec<HeldAttempt>) {
        let mut agent = self.connect();
        let mut hello = self.settings().hello();
        change(&mut hello);
        agent.say(ToSupervisor::Hello(Box::new(hello))).await;
        let ToAgent::Welcome { .. } = agent.hear().await else { panic!("no welcome") };
        let mut found = Vec::new();
        loop {
            match agent.hear().await {
                ToAgent::Holds(one) => found.push(*one),
                ToAgent::Ready => return (agent, found),
                other => panic!("{other:?}"),
            }
        }
    }

    fn open_gate(&self) {
        fs::write(self.dir.path().join("work/0/folder/go"), "").unwrap();
    }
}

struct Agent {
    frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Agent {
    async fn say(&mut self, message: ToSupervisor) {
        let mut bytes = Vec::new();
        put(&mut bytes, &message).unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut self.writer, &bytes).await.unwrap();
    }

    async fn hear(&mut self) -> ToAgent {
        timeout(LIMIT, self.frames.next()).await.unwrap().unwrap().unwrap()
    }

    async fn start(&mut self, on_lost: OnLost, script: &str) {
        let context = Some(Box::new(Context::from(&*context(on_lost, script))));
        self.say(ToSupervisor::Start { attempt: ATTEMPT, context, replica: None }).await;
        let started = self.hear().await;
        assert!(matches!(started, ToAgent::Started { attempt: ATTEMPT }), "{started:?}");
    }

    async fn end(&mut self) -> Outcome {
        match self.hear().await {
            ToAgent::Ended { attempt: ATTEMPT, outcome } => *outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the supervisor has closed the connection.
    async fn closed(mut self) {
        let next = timeout(LIMIT, self.frames.next::<ToAgent>()).await.unwrap();
        assert!(matches!(next, Ok(None)), "{next:?}");
    }
}

fn context(on_lost: OnLost, script: &str) -> Arc<JobContext> {
    Arc::new(JobContext {
        claims: Default::default(),
        job: JobId(1),
        name: "job".parse().unwrap(),
        on_lost,
        resources: Resources::default(),
        run: RunSpec {
            runtime: RuntimeSpec::Process,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 10_000,
            replica: None,
            files: [].into(),
        },
    })
}

#[tokio::test]
async fn the_newest_common_version_is_used() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    for (version, oldest) in [(VERSION, 1), (VERSION + 7, 1)] {
        node.agent(|hello| (hello.version, hello.version_oldest) = (version, oldest)).await;
    }
}

#[tokio::test]
async fn an_incompatible_agent_is_refused_and_processes_keep_running() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    let (mut first, _) = node.agent(|_| {}).await;
    first.start(OnLost::Wait, GATE).await;
    for (change, says) in [
        (
            (|hello| (hello.version, hello.version_oldest) = (VERSION + 2, VERSION + 1))
                as fn(&mut Hello),
            "versions",
        ),
        (|hello| hello.version = 0, "versions"),
        (|hello| hello.agent = Uuid::nil(), "another agent"),
    ] {
        let mut agent = node.connect();
        let mut hello = node.settings().hello();
        change(&mut hello);
        agent.say(ToSupervisor::Hello(Box::new(hello))).await;
        let ToAgent::Refused { message } = agent.hear().await else { panic!("not refused") };
        assert!(message.contains(says), "{message}");
        agent.closed().await;
    }
    // The connection does not even begin with a hello.
    let mut agent = node.connect();
    agent.say(ToSupervisor::Stop { attempt: ATTEMPT, grace_ms: 0 }).await;
    tokio::io::AsyncWriteExt::write_all(&mut agent.writer, &[0xff; 64]).await.unwrap();
    agent.closed().await;
    node.open_gate();
    assert_eq!(first.end().await.exit_code, Some(7));
}

#[tokio::test]
async fn the_next_agent_is_told_everything_and_the_previous_one_is_ignored() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    let (mut first, found) = node.agent(|_| {}).await;
    assert_eq!(found, []);
    first.start(OnLost::Requeue, GATE).await;
    let (mut second, found) = node.agent(|_| {}).await;
    assert_eq!((found.len(), found[0].attempt, &found[0].ended), (1, ATTEMPT, &None));
    assert_eq!(found[0].on_lost, OnLost::Requeue);
    first.say(ToSupervisor::Stop { attempt: ATTEMPT, grace_ms: 0 }).await;
    first.closed().await;
    node.open_gate();
    assert_eq!(second.end().await.exit_code, Some(7));
    drop(second);

    let (mut third, found) = node.agent(|_| {}).await;
    assert_eq!(found[0].ended.as_ref().unwrap().exit_code, Some(7));
    third.say(ToSupervisor::Remove { attempt: ATTEMPT }).await;
    // The answer to another request shows that this one is done.
    third.say(ToSupervisor::Watch { attempt: ATTEMPT, on: true }).await;
    assert!(matches!(third.hear().await, ToAgent::Written { .. }));
    let (_, found) = node.agent(|_| {}).await;
    assert_eq!(found, []);
}

#[tokio::test]
async fn output_is_reported_to_an_agent_that_watches() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    let (mut agent, _) = node.agent(|_| {}).await;
    agent.start(OnLost::Wait, &format!("echo before; {GATE}")).await;
    agent.say(ToSupervisor::Watch { attempt: ATTEMPT, on: true }).await;
    let log = node.dir.path().join("logs/1/1/1/stdout.log");
    while fs::read(&log).unwrap_or_default() != b"before\n" {
        let news = agent.hear().await;
        assert!(matches!(news, ToAgent::Written { attempt: ATTEMPT }), "{news:?}");
    }
    agent.say(ToSupervisor::Watch { attempt: ATTEMPT, on: false }).await;
    node.open_gate();
    while let ToAgent::Written { .. } = agent.hear().await {}
}

#[tokio::test]
async fn requeued_attempts_are_killed_when_the_lease_ends() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    let (mut agent, _) = node.agent(|_| {}).await;
    agent.say(ToSupervisor::Lease { until_ms: machine_ms() + 3_600_000 }).await;
    agent.start(OnLost::Requeue, GATE).await;
    agent.say(ToSupervisor::Lease { until_ms: machine_ms() + 20 }).await;
    let outcome = agent.end().await;
    assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::Lost, Some(9)));
    assert!(outcome.message.unwrap().contains("lease"));
}

#[tokio::test]
async fn an_attempt_that_was_being_stopped_is_lost_for_the_next_agent() {
    let node = Node::new();
    let supervisor = node.supervise().await;
    let (mut agent, _) = node.agent(|_| {}).await;
    agent.start(OnLost::Wait, GATE).await;
    agent.say(ToSupervisor::Stop { attempt: ATTEMPT, grace_ms: 60_000 }).await;
    let outcome = agent.end().await;
    assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::Failed, Some(15)));
    let (mut agent, found) = node.agent(|_| {}).await;
    let lost = found[0].ended.clone().unwrap();
    assert_eq!((lost.kind, lost.signal), (OutcomeKind::Lost, Some(15)));
    // The next supervisor reports the same.
    agent.say(ToSupervisor::End).await;
    agent.closed().await;
    timeout(LIMIT, supervisor).await.unwrap().unwrap().unwrap();
    let _supervisor = node.supervise().await;
    let (_, found) = node.agent(|_| {}).await;
    assert_eq!(found[0].ended.as_ref(), Some(&lost));
}

#[tokio::test]
async fn processes_end_with_their_agent_if_requested() {
    let node = Node::new();
    let supervisor = node.supervise().await;
    let (mut agent, _) = node.agent(|hello| hello.stop_with_agent = true).await;
    agent.start(OnLost::Wait, GATE).await;
    drop(agent);
    timeout(LIMIT, supervisor).await.unwrap().unwrap().unwrap();
    let record = fs::read_to_string(node.dir.path().join("work/records")).unwrap();
    assert!(record.contains("was stopped"), "{record}");
    assert!(RunDir::open(node.dir.path(), Kind::Supervisor).unwrap().connect().is_err());
}

#[tokio::test]
async fn the_link_reports_all_attempts_after_its_supervisor_was_replaced() {
    let node = Node::new();
    let supervisor = node.supervise().await;
    let (sender, mut facts) = mpsc::unbounded_channel();
    let opened = Processes::open(node.settings(), true, sender, Captures::new().1).await.unwrap();
    let (processes, link, found) = opened.unwrap();
    tokio::spawn(link.run());
    assert_eq!(found, []);
    processes.start(ATTEMPT, context(OnLost::Wait, GATE), None);
    assert_eq!(facts.recv().await.unwrap(), (ATTEMPT, RuntimeFact::Started));
    supervisor.abort();
    assert!(supervisor.await.unwrap_err().is_cancelled());
    // The link retries until there is a supervisor. Only the test starts one here.
    let late = AttemptId { number: 2, ..ATTEMPT };
    processes.start(late, context(OnLost::Wait, "exit 3"), None);
    let _supervisor = node.supervise().await;
    let mut ends = BTreeMap::new();
    while ends.len() < 2 {
        if let (attempt, RuntimeFact::Ended(outcome)) = facts.recv().await.unwrap() {
            ends.insert(attempt, outcome);
        }
    }
    assert_eq!(ends[&ATTEMPT].kind, OutcomeKind::Lost, "{ends:?}");
    // Depending on the time, it is started or reported as lost.
    assert!(ends[&late].exit_code == Some(3) || ends[&late].kind == OutcomeKind::Lost, "{ends:?}");
    processes.close().await;
}

#[tokio::test]
async fn no_supervisor_is_started_if_no_process_is_wanted_and_none_was_left() {
    let node = Node::new();
    let (sender, _facts) = mpsc::unbounded_channel();
    let opened =
        Processes::open(node.settings(), false, sender.clone(), Captures::new().1).await.unwrap();
    assert!(opened.is_none());
    // If something is left, there must be a supervisor.
    fs::create_dir_all(node.dir.path().join("work")).unwrap();
    let record = "{\"attempt\":[1,1,1],\"on_lost\":\"wait\"}\n";
    fs::write(node.dir.path().join("work/records"), record).unwrap();
    let error = Processes::open(node.settings(), false, sender, Captures::new().1)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent"), "{error}");
}

#[tokio::test]
async fn an_idle_supervisor_of_another_version_is_replaced() {
    let node = Node::new();
    let run_dir = RunDir::open(node.dir.path(), Kind::Supervisor).unwrap();
    let listener = tokio::net::UnixListener::from_std(run_dir.bind().unwrap()).unwrap();
    let fake = tokio::spawn(async move {
        for program_version in ["0.0.0", env!("CARGO_PKG_VERSION")] {
            let (reader, writer) = listener.accept().await.unwrap().0.into_split();
            let mut other = (Frames::new(reader), writer);
            let hello = other.0.next().await.unwrap();
            assert!(matches!(hello, Some(ToSupervisor::Hello(_))), "{hello:?}");
            let mut out = Vec::new();
            let program_version = program_version.to_owned();
            put(
                &mut out,
                &ToAgent::Welcome {
                    version: VERSION,
                    program_version,
                    captures: 0,
                    unenforced: None,
                },
            )
            .unwrap();
            put(&mut out, &ToAgent::Ready).unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut other.1, &out).await.unwrap();
            // The first one is asked to end, and the second one is left running when the agent
            // ends.
            let last = other.0.next().await.unwrap();
            let is_end = matches!(last, Some(ToSupervisor::End));
            assert_eq!(is_end, last.is_some(), "{last:?}");
        }
    });
    let (sender, _facts) = mpsc::unbounded_channel();
    let opened = Processes::open(node.settings(), true, sender, Captures::new().1).await.unwrap();
    let (processes, link, _) = opened.unwrap();
    tokio::join!(processes.close(), link.run());
    timeout(LIMIT, fake).await.unwrap().unwrap();
}

#[test]
fn a_supervisor_waits_for_the_end_of_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path(), Kind::Supervisor).unwrap();
    let Turn::Ours(lock) = run_dir.take_turn().unwrap() else { panic!("nobody else is there") };
    let listener = run_dir.bind().unwrap();
    assert!(matches!(run_dir.take_turn().unwrap(), Turn::Served));
    drop(listener);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| run_dir.take_turn().unwrap());
        drop(lock);
        assert!(matches!(next.join().unwrap(), Turn::Ours(_)));
    });
}

/// Acts as a supervisor of this version that sends these messages after its welcome. Returns how many
/// starts it was asked for, once the agent has disconnected.
fn act(node: &Node, version: u16, says: Vec<ToAgent>) -> JoinHandle<usize> {
    let run_dir = RunDir::open(node.dir.path(), Kind::Supervisor).unwrap();
    let listener = tokio::net::UnixListener::from_std(run_dir.bind().unwrap()).unwrap();
    tokio::spawn(async move {
        let (reader, mut writer) = listener.accept().await.unwrap().0.into_split();
        let mut frames = Frames::new(reader);
        let mut out = Vec::new();
        let program_version = env!("CARGO_PKG_VERSION").to_owned();
        let welcome = ToAgent::Welcome { version, program_version, captures: 0, unenforced: None };
        for message in [welcome].into_iter().chain(says) {
            put(&mut out, &message).unwrap();
        }
        tokio::io::AsyncWriteExt::write_all(&mut writer, &out).await.unwrap();
        let mut started = 0;
        while let Some(message) = frames.next().await.unwrap() {
            started += usize::from(matches!(message, ToSupervisor::Start { .. }));
        }
        started
    })
}

fn replica() -> Arc<Replica> {
    let spec = crate::ports::tests::spec(&[("http", None)]);
    Arc::new(Replica { spec, address: [127, 0, 0, 1].into(), ports: vec![20_000] })
}

#[tokio::test]
async fn an_older_supervisor_gets_no_replicas() {
    let node = Node::new();
    let older = act(&node, VERSION_REPLICAS - 1, vec![ToAgent::Ready]);
    let (sender, mut facts) = mpsc::unbounded_channel();
    let opened = Processes::open(node.settings(), true, sender, Captures::new().1).await.unwrap();
    let (processes, link, _) = opened.unwrap();
    processes.start(ATTEMPT, context(OnLost::Wait, "true"), Some(replica()));
    processes.start(ATTEMPT, context(OnLost::Wait, "true"), None);
    tokio::join!(processes.close(), link.run());
    let Some((ATTEMPT, RuntimeFact::Ended(outcome))) = facts.recv().await else { panic!("no end") };
    assert_eq!(outcome.kind, OutcomeKind::NotStarted);
    assert!(outcome.message.unwrap().contains("of an older podmesh"));
    assert_eq!(timeout(LIMIT, older).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_replica_that_starts_while_the_agent_restarts_is_reported_with_its_ports() {
    let node = Node::new();
    let held = HeldAttempt {
        attempt: ATTEMPT,
        on_lost: OnLost::Requeue,
        ended: None,
        started: false,
        ran_ms: 0,
        replica: Some(replica()),
    };
    let says =
        vec![ToAgent::Holds(Box::new(held)), ToAgent::Ready, ToAgent::Started { attempt: ATTEMPT }];
    let _acting = act(&node, VERSION, says);
    let (sender, mut facts) = mpsc::unbounded_channel();
    let opened = Processes::open(node.settings(), true, sender, Captures::new().1).await.unwrap();
    let (_processes, link, found) = opened.unwrap();
    assert_eq!((found[0].started, &found[0].replica), (false, &Some(replica())));
    tokio::spawn(link.run());
    let mut next = async || timeout(LIMIT, facts.recv()).await.unwrap().unwrap();
    assert_eq!(next().await, (ATTEMPT, RuntimeFact::Started));
    assert_eq!(next().await, (ATTEMPT, RuntimeFact::Listening(vec![20_000])));
}

#[tokio::test]
async fn the_next_agent_is_told_where_a_replica_listens() {
    let node = Node::new();
    let _supervisor = node.supervise().await;
    let (mut first, _) = node.agent(|_| {}).await;
    let replica = Some(replica());
    let context = Some(Box::new(Context::from(&*context(OnLost::Wait, GATE))));
    let start = ToSupervisor::Start { attempt: ATTEMPT, context, replica: replica.clone() };
    first.say(start).await;
    assert!(matches!(first.hear().await, ToAgent::Started { .. }));
    drop(first);
    let (mut second, found) = node.agent(|_| {}).await;
    assert_eq!(found[0].replica, replica);
    node.open_gate();
    second.end().await;
    // Nobody listens there any more.
    drop(second);
    let (_, found) = node.agent(|_| {}).await;
    assert_eq!(found[0].replica, None);
}
