//! The agent's side: starts the supervisor, or finds the running one, and communicates with it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::time::Millis;
use podmesh_wire::backoff::reconnect_delays;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use uuid::Uuid;

use super::connect::{Connection, connect};
use super::error::SupervisorError;
use super::messages::{
    HeldAttempt, Hello, Terms, ToAgent, ToSupervisor, VERSION, VERSION_CAPTURES, VERSION_OLDEST,
    VERSION_REPLICAS, VERSION_USERS,
};
use crate::capture::{CaptureFact, CaptureRequest, Container, WaitingList};
use crate::companion::{CompanionCommand, Kind, RunDir, put};
use crate::health::Said;
use crate::log_notify::LogNotify;
use crate::process::{BaseEnv, has_records};
use crate::user::ProcessUser;

/// Maximum number of requests written together.
const REQUESTS_MAX: usize = 4096;
/// The message for an attempt that a supervisor had not started when it died.
const NEVER_TAKEN_UP: &str =
    "the supervisor of the node's processes died before it could start this";

/// The agent's settings for its supervisor.
#[derive(Clone, Debug)]
pub(crate) struct LinkSettings {
    /// The command that starts a supervisor.
    pub(crate) command: CompanionCommand,
    /// Whether all commands end with the agent.
    pub(crate) stop_with_agent: bool,
    /// The id of the agent's data directory.
    pub(crate) agent_id: Uuid,
    /// That directory, as an absolute path.
    pub(crate) data_dir: PathBuf,
    /// The node's name.
    pub(crate) node: Name,
    /// The folder for output, as an absolute path.
    pub(crate) logs_dir: PathBuf,
    /// How much output is kept.
    pub(crate) rotation: RotationPolicy,
    /// Wakes those who wait for output.
    pub(crate) log_notify: LogNotify,
    /// The user that commands run as; `None` if it is the agent's own.
    pub(crate) user: Option<ProcessUser>,
}

/// The message for a container if the supervisor is too old to capture it.
const NO_CAPTURES: &str = "the supervisor of this node's processes is of an older podmesh, which does not \
     capture containers: it ends when the processes that it holds have ended, and then this works";

/// The message for a command if the supervisor is too old to run it as another user.
const NO_USERS: &str = "the supervisor of this node's processes is of an older podmesh, which runs commands as \
     root: it ends when the processes that it holds have ended, and then this works";

/// The message for a replica, or an attempt with files, if the supervisor is too old for them.
const NO_REPLICAS: &str = "the supervisor of this node's processes is of an older podmesh, which starts no replicas \
     and writes no files of jobs: it ends when the processes that it holds have ended, and then this works";

impl LinkSettings {
    pub(super) fn hello(&self) -> Hello {
        let env = BaseEnv::of_this_process().0.into_iter();
        let bytes = |value| std::os::unix::ffi::OsStringExt::into_vec(value);
        Hello {
            version: VERSION,
            version_oldest: VERSION_OLDEST,
            agent: self.agent_id,
            stop_with_agent: self.stop_with_agent,
            terms: Terms {
                node: self.node.clone(),
                logs_dir: self.logs_dir.clone(),
                rotation: (&self.rotation).into(),
                env: env.map(|(name, value)| (name, bytes(value).into())).collect(),
                user: self.user.clone(),
            },
        }
    }
}

/// The processes of the node, as seen by the agent. A supervisor holds them. When this is dropped,
/// they keep running in the supervisor, or end if they must end with the agent.
#[derive(Debug)]
pub(crate) struct Processes {
    requests: UnboundedSender<Request>,
    /// Fails when the link has ended.
    link: oneshot::Receiver<Infallible>,
    trouble: watch::Receiver<Option<String>>,
    unenforced: watch::Receiver<BTreeMap<String, String>>,
}

#[derive(Debug)]
enum Request {
    Start(AttemptId, Arc<JobContext>, Option<Arc<Replica>>),
    Stop(AttemptId, u64),
    Remove(AttemptId),
    Lease(Millis),
    Check(AttemptId, Vec<String>, Duration, oneshot::Sender<Said>),
    Close,
}

/// Runs commands beside the process of an attempt.
#[derive(Debug)]
pub(crate) struct ProcessChecks {
    attempt: AttemptId,
    requests: UnboundedSender<Request>,
}

impl ProcessChecks {
    /// Creates access to no process, whose commands fail.
    #[cfg(test)]
    pub(crate) fn of_nothing(attempt: AttemptId) -> Self {
        Self { attempt, requests: unbounded_channel().0 }
    }

    /// Runs a command, and returns what it said last.
    pub(crate) async fn run(&self, command: Vec<String>, limit: Duration) -> Said {
        let (answer, said) = oneshot::channel();
        // If there is no receiver, the link has ended, and the agent ends too.
        _ = self.requests.send(Request::Check(self.attempt, command, limit, answer));
        said.await.unwrap_or_else(|_| Err("the supervisor of the node's processes died".into()))
    }
}

impl Processes {
    /// Finds the supervisor of the agent's previous run, or starts one, and returns what it holds.
    /// If `wanted` is false, nothing new will be started, so a supervisor is needed only if the
    /// previous run left something. Run the link concurrently with everything else.
    ///
    /// # Errors
    /// If the supervisor cannot be started, or refuses this agent.
    pub(crate) async fn open(
        settings: LinkSettings,
        wanted: bool,
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
        captures: UnboundedReceiver<CaptureRequest>,
    ) -> Result<Option<(Self, Link, Vec<FoundAttempt>)>, SupervisorError> {
        if !wanted {
            let run_dir = RunDir::open(&settings.data_dir, Kind::Supervisor)?;
            if run_dir.connect().is_err() && !has_records(&settings.data_dir) {
                return Ok(None);
            }
        }
        let (connection, held) = connect(&settings).await?;
        let (watch_sender, watches) = unbounded_channel();
        settings.log_notify.follow_elsewhere(watch_sender);
        let (requests, receiver) = unbounded_channel();
        let (unenforced_sender, unenforced) = watch::channel(connection.unenforced.clone());
        let (lives, ended) = oneshot::channel();
        let (trouble_sender, trouble) = watch::channel(None);
        let link = Link {
            held: held.iter().map(|held| (held.attempt, held.ended.is_none())).collect(),
            ports: held.iter().filter_map(unreported_ports).collect(),
            checking: HashMap::new(),
            last_check: 0,
            lease_until: None,
            last_context: None,
            settings: settings.clone(),
            facts,
            requests: receiver,
            captures,
            capturing: WaitingList::default(),
            version: connection.version,
            unenforced: unenforced_sender,
            watches,
            out: Vec::new(),
            waiting: Vec::new(),
            is_closing: false,
            trouble: trouble_sender,
            connection: Some(connection),
            _lives: lives,
        };
        let found = held.into_iter().map(|held| FoundAttempt {
            attempt: held.attempt,
            ended: held.ended,
            started: held.started,
            outlives_agent: !settings.stop_with_agent,
            on_lost: held.on_lost,
            ran_ms: held.ran_ms,
            replica: held.replica,
        });
        Ok(Some((Self { requests, link: ended, trouble, unenforced }, link, found.collect())))
    }

    fn ask(&self, request: Request) {
        // If there is no receiver, the link has ended, and the agent ends too.
        _ = self.requests.send(request);
    }

    /// Returns why nothing can be started now; `None` if it can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Returns which limits (`memory`, `cpus`) are not enforced for commands, with the reason.
    pub(crate) fn unenforced(&self) -> BTreeMap<String, String> {
        self.unenforced.borrow().clone()
    }

    /// Starts an attempt, with its ports if it is a replica. Its end is always reported, even if the
    /// start fails.
    pub(crate) fn start(
        &self,
        attempt: AttemptId,
        context: Arc<JobContext>,
        replica: Option<Arc<Replica>>,
    ) {
        self.ask(Request::Start(attempt, context, replica));
    }

    /// Stops an attempt: sends SIGTERM to its process group, and SIGKILL after the grace. With a
    /// grace of 0 it sends SIGKILL at once.
    pub(crate) fn stop(&self, attempt: AttemptId, grace_ms: u64) {
        self.ask(Request::Stop(attempt, grace_ms));
    }

    /// Removes everything of an attempt that has ended.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.ask(Request::Remove(attempt));
    }

    /// Returns access to the process of an attempt for health checks.
    pub(crate) fn checks(&self, attempt: AttemptId) -> ProcessChecks {
        ProcessChecks { attempt, requests: self.requests.clone() }
    }

    /// Sets when the lease ends, on the machine's clock. Attempts that the manager then retries on
    /// other nodes are killed, even if the agent is not running.
    pub(crate) fn lease(&self, until: Millis) {
        self.ask(Request::Lease(until));
    }

    /// Returns when all earlier requests were sent, or, if processes end with the agent, are done.
    pub(crate) async fn close(self) {
        self.ask(Request::Close);
        _ = self.link.await;
    }
}

/// Returns the ports of a replica that the previous run of the agent was about to start.
fn unreported_ports(held: &HeldAttempt) -> Option<(AttemptId, Vec<u16>)> {
    let replica = held.replica.as_ref().filter(|replica| !replica.ports.is_empty())?;
    (!held.started).then(|| (held.attempt, replica.ports.clone()))
}

/// Why a connection has ended.
enum Ending {
    /// The connection or the supervisor failed.
    Lost,
    /// The agent is ending.
    Closed,
}

/// Communicates with the supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    settings: LinkSettings,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    requests: UnboundedReceiver<Request>,
    captures: UnboundedReceiver<CaptureRequest>,
    capturing: WaitingList,
    /// The protocol version in use.
    version: u16,
    unenforced: watch::Sender<BTreeMap<String, String>>,
    watches: UnboundedReceiver<(AttemptId, bool)>,
    /// The attempts that were started or found and not removed, and whether they are still running.
    held: HashMap<AttemptId, bool>,
    /// The ports of replicas whose start is not reported yet.
    ports: HashMap<AttemptId, Vec<u16>>,
    /// The health checks in progress, by number.
    checking: HashMap<u64, oneshot::Sender<Said>>,
    last_check: u64,
    lease_until: Option<Millis>,
    /// The last lease sent on this connection. Each is sent once.
    last_context: Option<Arc<JobContext>>,
    out: Vec<u8>,
    /// Requests that arrived while there was no supervisor.
    waiting: Vec<Request>,
    /// Whether the agent is ending.
    is_closing: bool,
    trouble: watch::Sender<Option<String>>,
    /// The first connection.
    connection: Option<Connection>,
    _lives: oneshot::Sender<Infallible>,
}

impl Link {
    /// Runs until the agent is closed.
    pub(crate) async fn run(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        loop {
            match self.serve(&mut connection).await {
                Ok(Ending::Closed) => return,
                Ok(Ending::Lost) | Err(_) if self.is_closing => return,
                Ok(Ending::Lost) => tracing::error!("the supervisor of processes died"),
                Err(error) => {
                    tracing::error!("lost the connection to the supervisor of processes: {error}")
                }
            }
            drop(connection);
            connection = match self.connect_again().await {
                Some(connection) => connection,
                None => return,
            };
        }
    }

    /// Communicates until the connection ends.
    async fn serve(&mut self, connection: &mut Connection) -> io::Result<Ending> {
        let mut requests = mem::take(&mut self.waiting);
        let mut watches = Vec::new();
        loop {
            for request in requests.drain(..) {
                self.put(request);
            }
            for (attempt, on) in watches.drain(..) {
                self.say(&ToSupervisor::Watch { attempt, on });
            }
            if self.is_closing && self.settings.stop_with_agent {
                self.say(&ToSupervisor::End);
            }
            if !self.out.is_empty() {
                connection.write(&self.out).await?;
                self.out.clear();
            }
            if self.is_closing {
                // The supervisor closes the connection when everything is done.
                while self.settings.stop_with_agent
                    && let Some(message) = connection.frames.next().await?
                {
                    self.hear(message);
                }
                return Ok(Ending::Closed);
            }
            tokio::select! {
                message = connection.frames.next() => {
                    let Some(message) = message? else { return Ok(Ending::Lost) };
                    self.hear(message);
                    while let Some(message) = connection.frames.buffered()? {
                        self.hear(message);
                    }
                }
                count = self.requests.recv_many(&mut requests, REQUESTS_MAX) => {
                    if count == 0 {
                        // All senders are dropped, so nobody can close it later.
                        return Ok(Ending::Closed);
                    }
                }
                Some(watch) = self.watches.recv() => watches.push(watch),
                Some(request) = self.captures.recv() => self.capture(request),
            }
        }
    }

    fn say(&mut self, message: &ToSupervisor) {
        if let Err(error) = put(&mut self.out, message) {
            tracing::error!("cannot send a request to the supervisor of processes: {error}");
        }
    }

    fn put(&mut self, request: Request) {
        let message = match request {
            Request::Start(attempt, context, replica)
                if self.version < VERSION_REPLICAS
                    && (replica.is_some() || !context.run.files.is_empty()) =>
            {
                let outcome = Outcome::not_started(NO_REPLICAS);
                return self.tell(attempt, RuntimeFact::Ended(outcome));
            }
            Request::Start(attempt, ..)
                if self.settings.user.is_some() && self.version < VERSION_USERS =>
            {
                let outcome = Outcome::not_started(NO_USERS);
                return self.tell(attempt, RuntimeFact::Ended(outcome));
            }
            Request::Start(attempt, context, replica) => {
                if let Some(replica) = replica.as_deref().filter(|one| !one.ports.is_empty()) {
                    self.ports.insert(attempt, replica.ports.clone());
                }
                self.held.insert(attempt, true);
                let is_known =
                    self.last_context.as_ref().is_some_and(|last| Arc::ptr_eq(last, &context));
                let told = (!is_known).then(|| Box::new((&*context).into()));
                self.last_context = Some(context);
                ToSupervisor::Start { attempt, context: told, replica }
            }
            Request::Stop(attempt, grace_ms) => ToSupervisor::Stop { attempt, grace_ms },
            Request::Remove(attempt) => {
                self.held.remove(&attempt);
                self.ports.remove(&attempt);
                ToSupervisor::Remove { attempt }
            }
            Request::Lease(until_ms) => {
                self.lease_until = Some(until_ms);
                ToSupervisor::Lease { until_ms }
            }
            Request::Check(attempt, command, limit, answer) => {
                let number = self.last_check + 1;
                self.last_check = number;
                self.checking.insert(number, answer);
                let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                ToSupervisor::Check { attempt, number, command, timeout_ms }
            }
            Request::Close => {
                self.is_closing = true;
                return;
            }
        };
        self.say(&message);
    }

    fn capture(&mut self, request: CaptureRequest) {
        match request {
            CaptureRequest::Begin(container, waiting) => {
                let attempt = container.attempt;
                self.capturing.add(container.clone(), waiting);
                if self.version < VERSION_CAPTURES {
                    let refused = CaptureFact::Attached(Err(NO_CAPTURES.into()));
                    return self.capturing.tell(attempt, refused);
                }
                self.begin_capture(container);
            }
            CaptureRequest::Stopped(attempt) => self.say(&ToSupervisor::CaptureStopped { attempt }),
            CaptureRequest::Forget(attempt) => {
                self.capturing.forget(attempt);
                if self.version >= VERSION_CAPTURES {
                    self.say(&ToSupervisor::CaptureForget { attempt });
                }
            }
        }
    }

    fn begin_capture(&mut self, container: Container) {
        let Container { attempt, id: container, engine, standing, timeout_ms } = container;
        let capture = ToSupervisor::Capture { attempt, container, engine, standing, timeout_ms };
        self.say(&capture);
    }

    fn hear(&mut self, message: ToAgent) {
        match message {
            ToAgent::Started { attempt } => {
                self.tell(attempt, RuntimeFact::Started);
                if let Some(ports) = self.ports.remove(&attempt) {
                    self.tell(attempt, RuntimeFact::Listening(ports));
                }
            }
            ToAgent::Ended { attempt, outcome } => self.ended(attempt, *outcome),
            ToAgent::LogGap { attempt, text } => self.tell(attempt, RuntimeFact::LogGap(text)),
            ToAgent::Attached { attempt, error } => {
                let result = error.map_or(Ok(()), Err);
                self.capturing.tell(attempt, CaptureFact::Attached(result));
            }
            ToAgent::Captured { attempt, timed_out_ms } => {
                self.capturing.tell(attempt, CaptureFact::Complete { timed_out_ms });
            }
            ToAgent::Checked { number, passed, said } => {
                if let Some(answer) = self.checking.remove(&number) {
                    // The checks of the replica may have ended.
                    _ = answer.send(if passed { Ok(said) } else { Err(said) });
                }
            }
            ToAgent::Written { attempt } => self.settings.log_notify.written(attempt),
            ToAgent::LogBytes { written } => self.settings.log_notify.count_is(written),
            ToAgent::Trouble { why } => _ = self.trouble.send_replace(why),
            // These are only sent at the beginning of a connection.
            ToAgent::Welcome { .. }
            | ToAgent::Refused { .. }
            | ToAgent::Holds(_)
            | ToAgent::Ready => {}
        }
    }

    fn ended(&mut self, attempt: AttemptId, outcome: Outcome) {
        if let Some(goes_on) = self.held.get_mut(&attempt) {
            *goes_on = false;
        }
        self.tell(attempt, RuntimeFact::Ended(outcome));
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // If there is no receiver, the agent has ended.
        _ = self.facts.send((attempt, fact));
    }

    /// Connects to a new supervisor, and reports what happened to the attempts of the previous one.
    /// Returns `None` if the agent ends in the meantime.
    async fn connect_again(&mut self) -> Option<Connection> {
        let (connection, held) = self.retry().await?;
        tracing::warn!("connected to a new supervisor of processes");
        self.last_context = None;
        self.checking.clear();
        self.out.clear();
        self.version = connection.version;
        self.trouble.send_replace(None);
        self.unenforced.send_replace(connection.unenforced.clone());
        let containers: Vec<_> = self.capturing.incomplete().cloned().collect();
        for container in containers {
            self.begin_capture(container);
        }
        let mut missing: HashMap<_, _> = self.held.clone();
        for HeldAttempt { attempt, ended, .. } in held {
            match (missing.remove(&attempt), ended) {
                (Some(true), Some(outcome)) => self.ended(attempt, outcome),
                (Some(_), _) => {}
                // Its removal was requested.
                (None, _) => self.say(&ToSupervisor::Remove { attempt }),
            }
        }
        let outcome = || Outcome::new(OutcomeKind::Lost).with_message(NEVER_TAKEN_UP);
        for (attempt, _) in missing.into_iter().filter(|(_, goes_on)| *goes_on) {
            self.ended(attempt, outcome());
        }
        if let Some(until_ms) = self.lease_until {
            self.say(&ToSupervisor::Lease { until_ms });
        }
        Some(connection)
    }

    /// Retries until there is a supervisor. Returns `None` if the agent ends in the meantime.
    async fn retry(&mut self) -> Option<(Connection, Vec<HeldAttempt>)> {
        let settings = self.settings.clone();
        let mut connecting = std::pin::pin!(async {
            let mut pauses = reconnect_delays();
            loop {
                match connect(&settings).await {
                    Ok(connected) => return connected,
                    Err(error) => tracing::error!("{error}; retrying"),
                }
                // The channels never close.
                sleep(pauses.next().unwrap_or_default()).await;
            }
        });
        loop {
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                request = self.requests.recv() => match request {
                    None | Some(Request::Close) => return None,
                    Some(request) => self.waiting.push(request),
                },
            }
        }
    }
}
