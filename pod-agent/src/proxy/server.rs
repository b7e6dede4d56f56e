//! The proxy's main loop, which handles agents, the listeners, and time.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use uuid::Uuid;

use super::error::ProxyError;
use super::listeners::Listeners;
use super::messages::{
    Hello, Status, TROUBLES_MAX, ToAgent, ToProxy, Update, VERSION, VERSION_OLDEST,
};
use super::plane::Plane;
use super::sockets::limits;
use super::table::Limits;
use super::workers::Workers;
use crate::companion::{Frames, Kind, RunDir, Turn, is_own, put};
use crate::data_dir::read_agent_id;

/// How long a proxy without ports and connections exists.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How often the agent gets new counters.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The pause after an error of the socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of unprocessed messages of an agent. Further ones wait in the socket.
const EVENTS_MAX: usize = 16;

/// Is the proxy of the agent with this data directory, until `stop` completes, an agent ends it, or
/// there is nothing to do for some time. Returns at once if there already is a proxy. Calls `ready`
/// when agents can connect. Call it in a tokio runtime with time and I/O.
///
/// # Errors
/// If the folder is not a data directory, or cannot be used.
pub fn serve<'a>(
    agent_dir: &'a Path,
    ready: impl FnOnce() + Send + 'a,
    stop: impl Future<Output = ()> + Send + 'a,
) -> Serving<'a> {
    Box::pin(serve_until(agent_dir, limits(), Box::new(ready), Box::pin(stop)))
}

type Serving<'a> = Pin<Box<dyn Future<Output = Result<(), ProxyError>> + Send + 'a>>;
type Ready<'a> = Box<dyn FnOnce() + Send + 'a>;
type Stop<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Not generic, and boxed by the caller, for the same reason as [`run`](crate::run).
pub(super) async fn serve_until(
    agent_dir: &Path,
    limits: Limits,
    ready: Ready<'_>,
    stop: Stop<'_>,
) -> Result<(), ProxyError> {
    let data_dir = agent_dir.canonicalize();
    let data_dir = data_dir.map_err(ProxyError::io("find the data directory", agent_dir))?;
    let agent = read_agent_id(&data_dir).ok_or_else(|| {
        let missing = io::Error::other("it contains no agent id");
        ProxyError::io("use the data directory", &data_dir)(missing)
    })?;
    let run_dir = RunDir::open(&data_dir, Kind::Proxy)?;
    let turn = tokio::task::spawn_blocking(move || run_dir.take_turn().map(|turn| (turn, run_dir)));
    let turn = turn.await.map_err(|why| ProxyError::io("use", &data_dir)(why.into()))?;
    let (Turn::Ours(lock), run_dir) = turn? else {
        ready();
        return Ok(());
    };
    run_dir.write_number()?;
    let listener = UnixListener::from_std(run_dir.bind()?);
    let listener = listener.map_err(ProxyError::io("listen on", run_dir.socket_path()))?;
    let workers = Workers::start().map_err(ProxyError::io("start threads for", &data_dir))?;
    tracing::info!(connections_max = limits.total, "the proxy runs");
    ready();
    let plane = Plane::new(limits);
    let (statuses, _) = watch::channel(Status::default());
    let server = Server {
        agent,
        listeners: Listeners::new(Arc::clone(&plane), workers),
        plane,
        statuses,
        current: None,
    };
    server.run(listener, stop).await;
    run_dir.unbind();
    // Remove the process id, so that nobody kills another process with it.
    _ = lock.set_len(0);
    Ok(())
}

/// What happens on a connection of an agent.
enum Event {
    Hello(Hello, mpsc::Sender<ToAgent>),
    Endpoints(Update),
    End,
    Closed,
}

type Events = mpsc::Sender<(u64, Event)>;

/// The connected agent.
struct Current {
    number: u64,
    stop_with_agent: bool,
}

struct Server {
    agent: Uuid,
    plane: Arc<Plane>,
    listeners: Listeners,
    statuses: watch::Sender<Status>,
    current: Option<Current>,
}

impl Server {
    async fn run(mut self, listener: UnixListener, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let mut accepted = 0;
        let mut idle_since = None;
        let mut counts = interval(COUNT_EVERY);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let plane = Arc::clone(&self.plane);
        loop {
            let idle_until = self.idle_until(&mut idle_since);
            let retry_at = self.listeners.retry_at();
            tokio::select! {
                Some((number, event)) = events.recv() => {
                    if !self.event(number, event).await {
                        break;
                    }
                }
                () = plane.drained.notified() => self.publish(),
                stream = listener.accept() => match stream {
                    Ok((stream, _)) => {
                        accepted += 1;
                        let statuses = self.statuses.subscribe();
                        tokio::spawn(attend(stream, accepted, sender.clone(), statuses));
                    }
                    Err(error) => {
                        if let Some(more) = plane.troubles.due() {
                            tracing::error!(more, "the socket for the agent fails: {error}");
                        }
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = counts.tick() => self.publish(),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.listeners.retry().await;
                    self.publish();
                }
                () = sleep_until(idle_until.unwrap_or_else(Instant::now)), if idle_until.is_some() => {
                    if self.idle_until(&mut idle_since).is_some_and(|until| until <= Instant::now()) {
                        tracing::info!("ending: no service has a port");
                        break;
                    }
                }
                () = &mut stop => {
                    tracing::info!("asked to stop");
                    break;
                }
            }
        }
        self.listeners.close().await;
    }

    /// Returns when the proxy ends because it has nothing to do.
    fn idle_until(&self, since: &mut Option<Instant>) -> Option<Instant> {
        let table = self.plane.table.lock();
        let is_idle = table.open() == 0 && table.ports().next().is_none();
        *since = is_idle.then(|| since.unwrap_or_else(Instant::now));
        since.map(|since| since + IDLE_LIMIT)
    }

    /// Returns whether the proxy goes on.
    async fn event(&mut self, number: u64, event: Event) -> bool {
        let is_current = self.current.as_ref().is_some_and(|current| current.number == number);
        match event {
            Event::Hello(hello, answers) => {
                let answer = self.hello(number, hello).await;
                // The task that attends the connection waits for it.
                _ = answers.send(answer).await;
            }
            Event::Endpoints(update) if is_current => {
                self.plane.table.lock().apply(update);
                self.listeners.sync().await;
                self.publish();
            }
            Event::End if is_current => {
                tracing::info!("the agent asks to end");
                return false;
            }
            // The connection belongs to an agent that another one has replaced.
            Event::Endpoints(_) | Event::End => {}
            Event::Closed if is_current => {
                tracing::info!("the agent has disconnected");
                return !self.current.take().is_some_and(|current| current.stop_with_agent);
            }
            Event::Closed => {}
        }
        true
    }

    async fn hello(&mut self, number: u64, hello: Hello) -> ToAgent {
        let Hello { version, version_oldest, agent, stop_with_agent, listen } = hello;
        let common = version.min(VERSION);
        let refusal = if agent != self.agent {
            Some("it is the proxy of another agent".to_owned())
        } else if common < VERSION_OLDEST.max(version_oldest) {
            Some(format!(
                "it supports the versions {VERSION_OLDEST} to {VERSION} (podmesh {}), the agent \
                 {version_oldest} to {version}",
                env!("CARGO_PKG_VERSION")
            ))
        } else {
            None
        };
        if let Some(message) = refusal {
            tracing::warn!("refused an agent: {message}");
            return ToAgent::Refused { message };
        }
        tracing::info!("an agent has connected");
        self.current = Some(Current { number, stop_with_agent });
        self.listeners.set_addresses(listen).await;
        self.publish();
        ToAgent::Welcome { version: common, program_version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Lets the agent know what has changed.
    fn publish(&self) {
        let counters = self.plane.counters();
        let table = self.plane.table.lock();
        let applied = table.applied();
        let status = Status {
            generation: applied.map(|(generation, _)| generation),
            applied: applied.map_or(0, |(_, number)| number),
            drained: table.drained(),
            troubles: table
                .troubles()
                .chain(self.listeners.troubles())
                .take(TROUBLES_MAX)
                .collect(),
            counters,
        };
        drop(table);
        self.statuses.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}

/// Serves a connection of an agent until it ends.
async fn attend(
    stream: UnixStream,
    number: u64,
    events: Events,
    statuses: watch::Receiver<Status>,
) {
    if !is_own(&stream) {
        return;
    }
    let (reader, mut writer) = stream.into_split();
    let mut frames = Frames::new(reader);
    let Ok(Some(ToProxy::Hello(hello))) = frames.next().await else { return };
    let (answers, mut answer) = mpsc::channel(1);
    if events.send((number, Event::Hello(hello, answers))).await.is_err() {
        return;
    }
    let Some(answer) = answer.recv().await else { return };
    let welcome = matches!(answer, ToAgent::Welcome { .. });
    if say(&mut writer, &answer).await.is_err() || !welcome {
        _ = events.send((number, Event::Closed)).await;
        return;
    }
    let writing = tokio::spawn(write(writer, statuses));
    loop {
        let event = match frames.next().await {
            Ok(Some(ToProxy::Endpoints(update))) => Event::Endpoints(update),
            Ok(Some(ToProxy::End)) => Event::End,
            // Only the first one counts.
            Ok(Some(ToProxy::Hello(_))) => continue,
            Ok(None) => break,
            Err(error) => {
                tracing::error!("cannot decode a message of the agent: {error}");
                break;
            }
        };
        if events.send((number, event)).await.is_err() {
            break;
        }
    }
    writing.abort();
    _ = events.send((number, Event::Closed)).await;
}

/// Writes every status that the agent has not seen. A slow agent misses those that another one
/// replaced.
async fn write(mut writer: OwnedWriteHalf, mut statuses: watch::Receiver<Status>) {
    loop {
        let status = statuses.borrow_and_update().clone();
        // If this fails, the agent is gone, and the reading half notices it too.
        if say(&mut writer, &ToAgent::Status(status)).await.is_err() {
            return;
        }
        if statuses.changed().await.is_err() {
            return;
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, message: &ToAgent) -> io::Result<()> {
    let mut bytes = Vec::new();
    put(&mut bytes, message)?;
    writer.write_all(&bytes).await
}
