//! The agent's side: starts the supervisor, or finds the one there is, and talks to it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::time::Millis;
use podmesh_wire::backoff::reconnect_delays;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::sleep;
use uuid::Uuid;

use super::SupervisorCommand;
use super::connect::{Connection, connect};
use super::error::SupervisorError;
use super::messages::{
    Found, Hello, Terms, ToAgent, ToSupervisor, VERSION, VERSION_CAPTURES, VERSION_OLDEST,
};
use super::place::Place;
use crate::capture::{CaptureFact, CaptureRequest, Container, WaitingList};
use crate::log_notify::LogNotify;
use crate::process::{BaseEnv, has_records};

/// Requests that are written together.
const REQUESTS_MAX: usize = 4096;
/// What is said of an attempt that the supervisor which died had not taken up.
const NEVER_TAKEN_UP: &str =
    "the supervisor of the node's processes died before it could start this";

/// What the agent needs to know to have a supervisor.
#[derive(Clone, Debug)]
pub(crate) struct LinkSettings {
    /// How one is started.
    pub(crate) command: SupervisorCommand,
    /// Whether all that runs ends with the agent.
    pub(crate) stop_with_agent: bool,
    /// The id of the agent's data directory.
    pub(crate) agent_id: Uuid,
    /// That directory; absolute.
    pub(crate) data_dir: PathBuf,
    /// The node's name.
    pub(crate) node: Name,
    /// Absolute; output is written there.
    pub(crate) logs_dir: PathBuf,
    /// How much output is kept.
    pub(crate) rotation: RotationPolicy,
    /// Who waits for output.
    pub(crate) log_notify: LogNotify,
}

/// What is said of a container where the supervisor is too old to capture it.
const NO_CAPTURES: &str = "the supervisor of this node's processes is of an older podmesh, which does not \
     capture containers: it ends when the processes that it holds have ended, and then this works";

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
            },
        }
    }
}

/// The processes of the node, as the agent has them: held by a supervisor. Dropped, it leaves them
/// to that, or ends them where they are to end with the agent.
#[derive(Debug)]
pub(crate) struct Processes {
    requests: UnboundedSender<Request>,
    /// Fails when the link has ended.
    link: oneshot::Receiver<Infallible>,
}

#[derive(Debug)]
enum Request {
    Start(AttemptId, Arc<JobContext>),
    Stop(AttemptId, u64),
    Remove(AttemptId),
    Lease(Millis),
    Close,
}

impl Processes {
    /// Finds the supervisor of an earlier life of the agent, or starts one, and tells what it
    /// holds. With `wanted` false nothing new will be started: there is one only where an
    /// earlier life left something. The link is to be run beside all else.
    ///
    /// # Errors
    /// When it cannot be started, or refuses this agent.
    pub(crate) async fn open(
        settings: LinkSettings,
        wanted: bool,
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
        captures: UnboundedReceiver<CaptureRequest>,
    ) -> Result<Option<(Self, Link, Vec<FoundAttempt>)>, SupervisorError> {
        if !wanted {
            let place = Place::open(&settings.data_dir)?;
            if place.connect().is_err() && !has_records(&settings.data_dir) {
                return Ok(None);
            }
        }
        let (connection, found) = connect(&settings).await?;
        let (watch_sender, watches) = unbounded_channel();
        settings.log_notify.follow_elsewhere(watch_sender);
        let (requests, receiver) = unbounded_channel();
        let (lives, ended) = oneshot::channel();
        let standing = |found: &Found| match found.ended {
            Some(_) => Standing::Over,
            None => Standing::Live,
        };
        let link = Link {
            held: found.iter().map(|found| (found.attempt, standing(found))).collect(),
            lease_until: None,
            last_context: None,
            settings: settings.clone(),
            facts,
            requests: receiver,
            captures,
            capturing: WaitingList::default(),
            version: connection.version,
            watches,
            out: Vec::new(),
            waiting: Vec::new(),
            is_closing: false,
            connection: Some(connection),
            _lives: lives,
        };
        let found = found.into_iter().map(|found| FoundAttempt {
            attempt: found.attempt,
            ended: found.ended,
            started: found.started,
            outlives_agent: !settings.stop_with_agent,
            on_lost: found.on_lost,
            ran_ms: found.ran_ms,
        });
        Ok(Some((Self { requests, link: ended }, link, found.collect())))
    }

    fn ask(&self, request: Request) {
        // Without a receiver the link has ended: the agent does, too.
        _ = self.requests.send(request);
    }

    /// Starts an attempt. Its end is told in any case.
    pub(crate) fn start(&self, attempt: AttemptId, context: Arc<JobContext>) {
        self.ask(Request::Start(attempt, context));
    }

    /// Stops an attempt: TERM to its process group, and after the grace KILL. With a grace of 0
    /// KILL at once.
    pub(crate) fn stop(&self, attempt: AttemptId, grace_ms: u64) {
        self.ask(Request::Stop(attempt, grace_ms));
    }

    /// Removes what there is of an attempt that is over.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.ask(Request::Remove(attempt));
    }

    /// Until when the manager counts on this node, by the machine's clock: attempts that it tries
    /// elsewhere then are killed, whether the agent lives or not.
    pub(crate) fn lease(&self, until: Millis) {
        self.ask(Request::Lease(until));
    }

    /// Returns when all that was asked for before has been said, or, where processes end with the
    /// agent, is done.
    pub(crate) async fn close(self) {
        self.ask(Request::Close);
        _ = self.link.await;
    }
}

/// Whether an attempt that is held goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Live,
    Over,
}

/// Why a connection is over.
enum Over {
    /// It failed, or the supervisor did.
    Lost,
    /// The agent ends.
    Closed,
}

/// Talks to the supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    settings: LinkSettings,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    requests: UnboundedReceiver<Request>,
    captures: UnboundedReceiver<CaptureRequest>,
    capturing: WaitingList,
    /// The version that is spoken with the supervisor.
    version: u16,
    watches: UnboundedReceiver<(AttemptId, bool)>,
    /// What was started or found, and not removed.
    held: HashMap<AttemptId, Standing>,
    lease_until: Option<Millis>,
    /// What this connection was told last; each is told once.
    last_context: Option<Arc<JobContext>>,
    out: Vec<u8>,
    /// Requests that came while there was no supervisor.
    waiting: Vec<Request>,
    /// Whether the agent ends.
    is_closing: bool,
    /// The first one.
    connection: Option<Connection>,
    _lives: oneshot::Sender<Infallible>,
}

impl Link {
    /// Talks until the agent has nothing more to ask.
    pub(crate) async fn run(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        loop {
            match self.serve(&mut connection).await {
                Ok(Over::Closed) => return,
                Ok(Over::Lost) | Err(_) if self.is_closing => return,
                Ok(Over::Lost) => tracing::error!("the supervisor of processes has died"),
                Err(error) => tracing::error!("the supervisor of processes is lost: {error}"),
            }
            drop(connection);
            connection = match self.connect_again().await {
                Some(connection) => connection,
                None => return,
            };
        }
    }

    /// Talks until the connection is over.
    async fn serve(&mut self, connection: &mut Connection) -> io::Result<Over> {
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
                // It closes the connection when all is done.
                while self.settings.stop_with_agent
                    && let Some(message) = connection.frames.next().await?
                {
                    self.hear(message);
                }
                return Ok(Over::Closed);
            }
            tokio::select! {
                message = connection.frames.next() => {
                    let Some(message) = message? else { return Ok(Over::Lost) };
                    self.hear(message);
                    while let Some(message) = connection.frames.buffered()? {
                        self.hear(message);
                    }
                }
                count = self.requests.recv_many(&mut requests, REQUESTS_MAX) => {
                    if count == 0 {
                        // Nobody is left who could close it.
                        return Ok(Over::Closed);
                    }
                }
                Some(watch) = self.watches.recv() => watches.push(watch),
                Some(request) = self.captures.recv() => self.capture(request),
            }
        }
    }

    fn say(&mut self, message: &ToSupervisor) {
        if let Err(error) = super::frames::put(&mut self.out, message) {
            tracing::error!("cannot ask the supervisor of processes something: {error}");
        }
    }

    fn put(&mut self, request: Request) {
        let message = match request {
            Request::Start(attempt, context) => {
                self.held.insert(attempt, Standing::Live);
                let is_known =
                    self.last_context.as_ref().is_some_and(|last| Arc::ptr_eq(last, &context));
                let told = (!is_known).then(|| Box::new((&*context).into()));
                self.last_context = Some(context);
                ToSupervisor::Start { attempt, context: told }
            }
            Request::Stop(attempt, grace_ms) => ToSupervisor::Stop { attempt, grace_ms },
            Request::Remove(attempt) => {
                self.held.remove(&attempt);
                ToSupervisor::Remove { attempt }
            }
            Request::Lease(until_ms) => {
                self.lease_until = Some(until_ms);
                ToSupervisor::Lease { until_ms }
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
        let Container { attempt, id, engine, standing } = container;
        self.say(&ToSupervisor::Capture { attempt, container: id, engine, standing });
    }

    fn hear(&mut self, message: ToAgent) {
        match message {
            ToAgent::Started { attempt } => self.tell(attempt, RuntimeFact::Started),
            ToAgent::Ended { attempt, outcome } => self.ended(attempt, *outcome),
            ToAgent::LogGap { attempt, text } => self.tell(attempt, RuntimeFact::LogGap(text)),
            ToAgent::Attached { attempt, error } => {
                let result = error.map_or(Ok(()), Err);
                self.capturing.tell(attempt, CaptureFact::Attached(result));
            }
            ToAgent::Captured { attempt } => self.capturing.tell(attempt, CaptureFact::Complete),
            ToAgent::Written { attempt } => self.settings.log_notify.written(attempt),
            // Of the beginning of a connection.
            ToAgent::Welcome { .. }
            | ToAgent::Refused { .. }
            | ToAgent::Found(_)
            | ToAgent::Ready => {}
        }
    }

    fn ended(&mut self, attempt: AttemptId, outcome: Outcome) {
        if let Some(standing) = self.held.get_mut(&attempt) {
            *standing = Standing::Over;
        }
        self.tell(attempt, RuntimeFact::Ended(outcome));
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // Without a receiver the agent has ended.
        _ = self.facts.send((attempt, fact));
    }

    /// Has a supervisor again, and tells what became of the attempts of the one before. None: the
    /// agent ends meanwhile.
    async fn connect_again(&mut self) -> Option<Connection> {
        let (connection, found) = self.retry().await?;
        tracing::warn!("there is a supervisor of processes again");
        self.last_context = None;
        self.out.clear();
        self.version = connection.version;
        let containers: Vec<_> = self.capturing.incomplete().cloned().collect();
        for container in containers {
            self.begin_capture(container);
        }
        let mut missing: HashMap<_, _> = self.held.clone();
        for Found { attempt, ended, .. } in found {
            match (missing.remove(&attempt), ended) {
                (Some(Standing::Live), Some(outcome)) => self.ended(attempt, outcome),
                (Some(_), _) => {}
                // It was asked to be removed.
                (None, _) => self.say(&ToSupervisor::Remove { attempt }),
            }
        }
        let outcome = || Outcome::new(OutcomeKind::Lost).with_message(NEVER_TAKEN_UP);
        for (attempt, standing) in missing {
            if standing == Standing::Live {
                self.ended(attempt, outcome());
            }
        }
        if let Some(until_ms) = self.lease_until {
            self.say(&ToSupervisor::Lease { until_ms });
        }
        Some(connection)
    }

    /// Tries until there is a supervisor. None: the agent ends meanwhile.
    async fn retry(&mut self) -> Option<(Connection, Vec<Found>)> {
        let settings = self.settings.clone();
        let mut connecting = std::pin::pin!(async {
            let mut pauses = reconnect_delays();
            loop {
                match connect(&settings).await {
                    Ok(connected) => return connected,
                    Err(error) => tracing::error!("{error}; trying again"),
                }
                // They never end.
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
