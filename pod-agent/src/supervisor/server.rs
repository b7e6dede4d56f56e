//! The supervisor's main loop, which handles agents, the runtime, and time.

use std::collections::HashMap;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::error::SupervisorError;
use super::messages::{
    self, Hello, ToAgent, ToSupervisor, VERSION, VERSION_LOG_BYTES, VERSION_OLDEST, VERSION_TROUBLE,
};
use super::table::{End, StopReason, Table};
use crate::capture::{CaptureFact, Container, Holder, LogPlace};
use crate::clock::machine_ms;
use crate::companion::{Frames, Kind, RunDir, is_own, put};
use crate::data_dir::read_agent_id;
use crate::log_notify::LogNotify;
use crate::process::{BaseEnv, ProcessRuntime, ProcessSettings, Terms};

/// How long a supervisor that holds nothing waits for an agent.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How long the last messages to an agent may take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// The pause after an error of the socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the agent is told how much output was written.
const LOG_BYTES_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of unprocessed messages of an agent. Further ones wait in the socket.
const EVENTS_MAX: usize = 1024;
/// Maximum number of facts of the runtime processed together.
const FACTS_MAX: usize = 4096;
/// With more active attempts than this, facts are collected for a moment, so that one message and
/// one report to the manager cover many. With fewer, each fact is sent at once.
const GATHER_FROM: usize = 8;
/// How long facts are collected.
const GATHER: Duration = Duration::from_millis(2);
/// How long facts are collected while starts are queued, because the node is busy anyway.
const GATHER_BUSY: Duration = Duration::from_millis(10);
/// Maximum number of queued notifications of output for a slow agent.
const NEWS_MAX: usize = 64;

/// Holds the processes of the agent with this data directory, until `stop` completes or there is
/// nothing to do for some time. Calls `ready` when agents can connect. Call it in a tokio runtime
/// with time and I/O.
///
/// # Errors
/// If the folder is not a data directory, or cannot be used.
pub fn supervise<'a>(
    agent_dir: &'a Path,
    ready: impl FnOnce() + Send + 'a,
    stop: impl Future<Output = ()> + Send + 'a,
) -> Supervising<'a> {
    supervise_until(agent_dir, Box::new(ready), Box::pin(stop))
}

type Supervising<'a> = Pin<Box<dyn Future<Output = Result<(), SupervisorError>> + Send + 'a>>;
type Ready<'a> = Box<dyn FnOnce() + Send + 'a>;
type Stop<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Not generic, and boxed, for the same reason as [`run`](crate::run).
fn supervise_until<'a>(agent_dir: &'a Path, ready: Ready<'a>, stop: Stop<'a>) -> Supervising<'a> {
    Box::pin(supervise_all(agent_dir, ready, stop))
}

async fn supervise_all(
    agent_dir: &Path,
    ready: Ready<'_>,
    stop: Stop<'_>,
) -> Result<(), SupervisorError> {
    let data_dir = agent_dir.canonicalize();
    let data_dir = data_dir.map_err(SupervisorError::io("find the data directory", agent_dir))?;
    let agent = read_agent_id(&data_dir).ok_or_else(|| {
        let missing = io::Error::other("it contains no agent id");
        SupervisorError::io("use the data directory", &data_dir)(missing)
    })?;
    let run_dir = RunDir::open(&data_dir, Kind::Supervisor)?;
    let (facts_sender, facts) = mpsc::unbounded_channel();
    let capture_facts = facts_sender.clone();
    let notify = LogNotify::default();
    let settings =
        ProcessSettings { agent_id: agent, data_dir: data_dir.clone(), log_notify: notify.clone() };
    let failed = |error| SupervisorError::io("hold processes in", &data_dir)(error);
    let runtime = ProcessRuntime::new(settings, facts_sender).map_err(failed)?;
    let abandoned = spawn_blocking(move || (runtime.abandoned(), runtime));
    let (abandoned, runtime) = abandoned.await.map_err(|why| failed(why.into()))?;
    let mut table = Table::default();
    for one in abandoned {
        table.abandoned(one.attempt, one.on_lost, one.ended);
    }
    run_dir.write_number()?;
    let listener = UnixListener::from_std(run_dir.bind()?).map_err(failed)?;
    ready();
    let (events_sender, events) = mpsc::channel(EVENTS_MAX);
    let (told, captured) = mpsc::unbounded_channel();
    let server = Server {
        agent,
        runtime,
        table,
        captures: Holder::new(notify.clone(), capture_facts, told),
        notify,
        greeting: HashMap::new(),
        connection: None,
        log_bytes_told: 0,
        is_ending: false,
    };
    server.run(listener, (events_sender, events), facts, captured, stop).await;
    run_dir.unbind();
    Ok(())
}

/// What happens on a connection.
enum Event {
    Opened(Out),
    Received(ToSupervisor),
    Closed,
}

type Events = mpsc::Sender<(u64, Event)>;

/// The outgoing messages of a connection, until dropped.
struct Out {
    messages: mpsc::UnboundedSender<ToAgent>,
    /// Notifications of output, which wait if the agent is slow.
    news: mpsc::Sender<AttemptId>,
    writer: JoinHandle<()>,
}

/// The connected agent.
struct Connection {
    number: u64,
    /// The protocol version in use.
    version: u16,
    out: Out,
    stop_with_agent: bool,
    terms: Arc<Terms>,
    context: Option<Arc<JobContext>>,
    /// These tasks end when dropped.
    watches: HashMap<AttemptId, oneshot::Sender<()>>,
}

struct Server {
    agent: Uuid,
    runtime: ProcessRuntime,
    table: Table,
    captures: Holder,
    notify: LogNotify,
    /// Connections that have not sent a hello yet.
    greeting: HashMap<u64, Out>,
    connection: Option<Connection>,
    /// The count of written bytes that the agent was told last.
    log_bytes_told: u64,
    /// Whether the supervisor is ending.
    is_ending: bool,
}

impl Server {
    async fn run(
        mut self,
        listener: UnixListener,
        (sender, mut events): (Events, mpsc::Receiver<(u64, Event)>),
        mut facts: mpsc::UnboundedReceiver<(AttemptId, RuntimeFact)>,
        mut captured: mpsc::UnboundedReceiver<(AttemptId, CaptureFact)>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut accepted = 0;
        let mut idle_since = None;
        let mut facts_from = Instant::now();
        let mut trouble = self.runtime.trouble();
        let mut counts = interval(LOG_BYTES_EVERY);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.is_ending && self.table.live() == 0) {
            let is_idle = self.connection.is_none()
                && self.greeting.is_empty()
                && self.table.live() == 0
                && self.captures.len() == 0;
            idle_since = is_idle.then(|| idle_since.unwrap_or_else(Instant::now));
            let idle_until = idle_since.map(|since| since + IDLE_LIMIT);
            let wakes_in = self.table.wakes_at().map(until);
            let (mut batch, mut words) = (Vec::new(), Vec::new());
            let gathers = Instant::now() < facts_from;
            tokio::select! {
                _ = facts.recv_many(&mut batch, FACTS_MAX), if !gathers => {
                    self.facts(batch);
                    facts_from = Instant::now() + self.gather_for();
                }
                () = sleep_until(facts_from), if gathers => {}
                Some((attempt, fact)) = captured.recv() => self.captured(attempt, fact),
                _ = events.recv_many(&mut words, EVENTS_MAX) => {
                    for (number, event) in words {
                        self.event(number, event);
                    }
                }
                stream = listener.accept(), if !self.is_ending => match stream {
                    Ok((stream, _)) => {
                        accepted += 1;
                        tokio::spawn(attend(stream, accepted, sender.clone()));
                    }
                    Err(error) => {
                        tracing::error!("the socket for the agent fails: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = sleep(wakes_in.unwrap_or_default()), if wakes_in.is_some() => {}
                _ = counts.tick(), if self.connection.is_some() => self.tell_log_bytes(),
                Ok(()) = trouble.changed() => self.trouble_changed(&mut trouble),
                () = sleep_until(idle_until.unwrap_or_else(Instant::now)), if is_idle => {
                    if idle_until.is_some_and(|until| until <= Instant::now()) {
                        tracing::info!("ending: nothing to hold, and no agent is connected");
                        break;
                    }
                }
                () = &mut stop, if !self.is_ending => {
                    tracing::info!("asked to stop");
                    self.end_all();
                }
            }
            self.look_at_time();
        }
        self.runtime.close().await;
        // The agent takes this as the last message.
        if let Some(Connection { out: Out { messages, news, writer }, watches, .. }) =
            self.connection
        {
            drop((messages, news, watches));
            _ = timeout(GOODBYE_LIMIT, writer).await;
        }
    }

    fn gather_for(&self) -> Duration {
        if self.table.live() <= GATHER_FROM {
            Duration::ZERO
        } else if self.runtime.waiting() == 0 {
            GATHER
        } else {
            GATHER_BUSY
        }
    }

    /// Stops attempts that have run for too long.
    fn look_at_time(&mut self) {
        let now = machine_ms();
        for (attempt, grace_ms) in self.table.timed_out(now) {
            tracing::info!(%attempt, "stopping an attempt whose timeout has expired");
            self.runtime.stop(attempt, grace_ms);
        }
        let endangered = self.table.lease_ended(now);
        if !endangered.is_empty() {
            tracing::warn!(attempts = endangered.len(), "the lease ended: killing attempts");
        }
        for attempt in endangered {
            self.runtime.stop(attempt, 0);
        }
    }

    /// Stops all attempts. When they have ended, the supervisor ends.
    fn end_all(&mut self) {
        self.is_ending = true;
        for (attempt, grace_ms) in self.table.all_live() {
            self.table.stop(attempt, StopReason::Ending);
            self.runtime.stop(attempt, grace_ms);
        }
    }

    fn trouble_changed(&mut self, trouble: &mut watch::Receiver<Option<String>>) {
        let why = trouble.borrow_and_update().clone();
        if self.connection.as_ref().is_some_and(|there| there.version >= VERSION_TROUBLE) {
            self.tell(ToAgent::Trouble { why });
        }
    }

    /// Tells how much output was written, if that has changed.
    fn tell_log_bytes(&mut self) {
        let written = self.notify.bytes();
        let knows = |there: &Connection| there.version >= VERSION_LOG_BYTES;
        if written != self.log_bytes_told && self.connection.as_ref().is_some_and(knows) {
            self.log_bytes_told = written;
            self.tell(ToAgent::LogBytes { written });
        }
    }

    fn tell(&self, message: ToAgent) {
        if let Some(connection) = &self.connection {
            // If there is no receiver, the agent is gone, and the next one asks.
            _ = connection.out.messages.send(message);
        }
    }

    fn facts(&mut self, facts: Vec<(AttemptId, RuntimeFact)>) {
        for (attempt, fact) in facts {
            match fact {
                RuntimeFact::Started => {
                    self.table.started(attempt, machine_ms());
                    self.tell(ToAgent::Started { attempt });
                }
                RuntimeFact::Ended(outcome) => self.ended(attempt, outcome),
                RuntimeFact::LogGap(text) => self.tell(ToAgent::LogGap { attempt, text }),
                // This is always the first fact of a process. The agent knows the ports, and
                // checks the health.
                RuntimeFact::Preparing(_) | RuntimeFact::Listening(_) | RuntimeFact::Health(..) => {
                }
            }
        }
    }

    fn captured(&mut self, attempt: AttemptId, fact: CaptureFact) {
        self.captures.note(attempt, &fact);
        self.tell(match fact {
            CaptureFact::Attached(result) => ToAgent::Attached { attempt, error: result.err() },
            CaptureFact::Complete { timed_out_ms } => ToAgent::Captured { attempt, timed_out_ms },
        });
    }

    fn ended(&mut self, attempt: AttemptId, outcome: Outcome) {
        let Some(End { told, kept }) = self.table.ended(attempt, outcome) else { return };
        let agent = self.connection.as_ref().map(|connection| connection.out.messages.clone());
        self.runtime.keep_end(attempt, kept, move || {
            if let Some(agent) = agent {
                // If there is no receiver, the agent is gone, and the next one asks.
                _ = agent.send(ToAgent::Ended { attempt, outcome: Box::new(told) });
            }
        });
    }

    fn event(&mut self, number: u64, event: Event) {
        let is_current = self.connection.as_ref().is_some_and(|known| known.number == number);
        match event {
            Event::Opened(out) => _ = self.greeting.insert(number, out),
            Event::Received(ToSupervisor::Hello(hello)) => {
                if let Some(out) = self.greeting.remove(&number) {
                    self.hello(number, *hello, out);
                }
            }
            Event::Received(message) if is_current => self.message(message),
            // The connection belongs to an agent that another one has replaced.
            Event::Received(_) => {}
            Event::Closed if is_current => {
                tracing::info!("the agent has disconnected");
                let left = self.connection.take();
                if left.is_some_and(|connection| connection.stop_with_agent) {
                    self.end_all();
                }
            }
            Event::Closed => _ = self.greeting.remove(&number),
        }
    }

    fn hello(&mut self, number: u64, hello: Hello, out: Out) {
        let Hello { version, version_oldest, agent, stop_with_agent, terms } = hello;
        let common = version.min(VERSION);
        let refusal = if agent != self.agent {
            Some("it holds the processes of another agent".to_owned())
        } else if common < VERSION_OLDEST.max(version_oldest) {
            Some(format!(
                "it supports the versions {VERSION_OLDEST} to {VERSION} (podmesh {}), the agent \
                 {version_oldest} to {version}",
                env!("CARGO_PKG_VERSION")
            ))
        } else if self.is_ending {
            // Closing the connection tells the agent that another supervisor will follow.
            return;
        } else {
            None
        };
        if let Some(message) = refusal {
            tracing::warn!("refused an agent: {message}");
            _ = out.messages.send(ToAgent::Refused { message });
            return;
        }
        tracing::info!("an agent has connected");
        self.table.agent_changed();
        let program_version = env!("CARGO_PKG_VERSION").to_owned();
        let captures = self.captures.live();
        let unenforced = Some(self.runtime.unenforced().clone());
        let welcome = ToAgent::Welcome { version: common, program_version, captures, unenforced };
        let held = self.table.list(machine_ms()).map(|held| ToAgent::Holds(Box::new(held)));
        let why = self.runtime.trouble().borrow().clone();
        let trouble = why.filter(|_| common >= VERSION_TROUBLE);
        let trouble = trouble.map(|why| ToAgent::Trouble { why: Some(why) });
        for message in [welcome].into_iter().chain(held).chain([ToAgent::Ready]).chain(trouble) {
            _ = out.messages.send(message);
        }
        // A new agent knows nothing yet.
        self.log_bytes_told = 0;
        self.connection = Some(Connection {
            number,
            version: common,
            out,
            stop_with_agent,
            terms: Arc::new(terms.into()),
            context: None,
            watches: HashMap::new(),
        });
    }

    fn message(&mut self, message: ToSupervisor) {
        match message {
            ToSupervisor::Start { attempt, context, replica } => {
                self.start(attempt, context, replica);
            }
            ToSupervisor::Stop { attempt, grace_ms } => {
                self.table.stop(attempt, StopReason::Asked);
                self.runtime.stop(attempt, grace_ms);
            }
            ToSupervisor::Remove { attempt } => {
                if self.table.remove(attempt) {
                    self.runtime.remove(attempt);
                }
            }
            ToSupervisor::Lease { until_ms } => self.table.set_lease(until_ms),
            ToSupervisor::Watch { attempt, on } => self.watch(attempt, on),
            ToSupervisor::Capture { attempt, container, engine, standing, timeout_ms } => {
                let Some(connection) = &self.connection else { return };
                let Terms { logs_dir, rotation, .. } = &*connection.terms;
                let place = LogPlace { logs_dir: logs_dir.clone(), rotation: rotation.clone() };
                let container = Container { attempt, id: container, engine, standing, timeout_ms };
                self.captures.begin(container, place);
            }
            ToSupervisor::CaptureStopped { attempt } => self.captures.stopped(attempt),
            ToSupervisor::CaptureForget { attempt } => self.captures.forget(attempt),
            ToSupervisor::Check { attempt, number, command, timeout_ms } => {
                let Some(connection) = &self.connection else { return };
                let agent = connection.out.messages.clone();
                let limit = Duration::from_millis(timeout_ms);
                let check = self.runtime.check(attempt, command, limit);
                tokio::spawn(async move {
                    let result = check.await;
                    let passed = result.is_ok();
                    let (Ok(said) | Err(said)) = result;
                    // If there is no receiver, the agent is gone.
                    _ = agent.send(ToAgent::Checked { number, passed, said });
                });
            }
            ToSupervisor::End => {
                tracing::info!("the agent asks to end");
                self.end_all();
            }
            // This was already handled.
            ToSupervisor::Hello(_) => {}
        }
    }

    fn start(
        &mut self,
        attempt: AttemptId,
        context: Option<Box<messages::Context>>,
        replica: Option<Arc<Replica>>,
    ) {
        let Some(connection) = &mut self.connection else { return };
        if let Some(context) = context {
            connection.context = Some(Arc::new((*context).into()));
        }
        let Some(context) = connection.context.clone() else {
            tracing::error!(%attempt, "the agent did not send how to start it");
            return;
        };
        let terms = Arc::clone(&connection.terms);
        if !self.table.take_up(attempt, context.on_lost, &context.run, replica.clone()) {
            tracing::warn!(%attempt, "the agent starts it a second time");
        } else if self.is_ending {
            self.ended(attempt, Outcome::new(OutcomeKind::Lost).with_message("never started"));
        } else {
            self.runtime.start(attempt, context, terms, replica);
        }
    }

    fn watch(&mut self, attempt: AttemptId, on: bool) {
        let Some(connection) = &mut self.connection else { return };
        if !on {
            connection.watches.remove(&attempt);
            return;
        }
        let (watch, mut ended) = oneshot::channel();
        connection.watches.insert(attempt, watch);
        let waiter = self.notify.listen(attempt);
        let news = connection.out.news.clone();
        tokio::spawn(async move {
            // Notify once at the beginning, because output written in the meantime was not
            // reported.
            while news.send(attempt).await.is_ok() {
                tokio::select! {
                    () = waiter.news() => {}
                    _ = &mut ended => return,
                }
            }
        });
    }
}

impl From<messages::Terms> for Terms {
    fn from(terms: messages::Terms) -> Self {
        let messages::Terms { node, logs_dir, rotation, env, user } = terms;
        let env = env.into_iter();
        let base_env = BaseEnv(
            env.map(|(name, value)| (name, OsString::from_vec(value.into_vec()))).collect(),
        );
        Self { node, logs_dir, rotation: rotation.into(), base_env, user }
    }
}

/// Returns how long it is until a time on the machine's clock, at most an hour.
fn until(at_ms: u64) -> Duration {
    const FAR: Duration = Duration::from_secs(3600);
    // Rounded up, so that a timer that fires is due.
    Duration::from_millis(at_ms.saturating_sub(machine_ms()).saturating_add(1)).min(FAR)
}

/// Passes on the messages of a connection until it ends.
async fn attend(stream: UnixStream, number: u64, events: Events) {
    if !is_own(&stream) {
        return;
    }
    let (reader, writer) = stream.into_split();
    let (messages, outgoing) = mpsc::unbounded_channel();
    let (news, written) = mpsc::channel(NEWS_MAX);
    let writer = tokio::spawn(write(writer, outgoing, written));
    let mut frames = Frames::new(reader);
    let mut event = Event::Opened(Out { messages, news, writer });
    // The receiver lives as long as it is needed.
    while events.send((number, event)).await.is_ok() {
        event = match frames.next().await {
            Ok(Some(message)) => Event::Received(message),
            Ok(None) => break,
            Err(error) => {
                tracing::error!("cannot decode a message of the agent: {error}");
                break;
            }
        };
    }
    _ = events.send((number, Event::Closed)).await;
}

/// Writes messages until there are no more senders.
async fn write(
    mut stream: OwnedWriteHalf,
    mut outgoing: mpsc::UnboundedReceiver<ToAgent>,
    mut written: mpsc::Receiver<AttemptId>,
) {
    let mut bytes = Vec::new();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            count = outgoing.recv_many(&mut batch, FACTS_MAX) => if count == 0 { return },
            Some(attempt) = written.recv() => batch.push(ToAgent::Written { attempt }),
        }
        bytes.clear();
        for message in batch.drain(..) {
            if let Err(error) = put(&mut bytes, &message) {
                tracing::error!("cannot send a message to the agent: {error}");
            }
        }
        // If this fails, the agent is gone, and the reading half notices it too.
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
