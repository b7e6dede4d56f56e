//! ROUTER: passes each message to the part that handles it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podmesh_manager_core::ids::ConnectionId;
use podmesh_manager_core::input::Input;
use podmesh_protocol::access::Role;
use podmesh_protocol::client::{Request, RequestBody, RequestHead};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, REQUESTS_PER_CONNECTION_MAX};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::version::{NoCommonVersion, VersionRange};
use podmesh_wire::WireError;
use podmesh_wire::control::{ManagerReceiver, Received};
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::api::{Api, is_command};
use crate::callers::{Callers, Client, forbidden};
use crate::core::{CoreHandle, Room};
use crate::log_reads::LogReads;
use crate::messages::Messages;

/// The most requests to read that are answered, or wait, at a time.
const REQUESTS_MAX: usize = 8192;
/// The most messages that wait for room in the core while reads are still answered, and their bytes.
/// When one is reached, no more are read from the socket.
const WAITING_MAX: usize = 4096;
const WAITING_BYTES_MAX: usize = 16 << 20;

/// The parts that messages are passed to.
pub(crate) struct RouterParts {
    pub(crate) api: Api,
    pub(crate) core: CoreHandle,
    pub(crate) callers: Callers,
    pub(crate) log_reads: Arc<LogReads>,
    pub(crate) messages: Messages,
    /// The protocol versions that requests may have.
    pub(crate) versions: VersionRange,
    /// True once the manager is about to stop.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Passes on messages until the manager stops. Returns the requests that still wait, and the
/// socket, which must stay open until the front has ended.
///
/// # Errors
/// If the socket itself fails.
pub(crate) async fn run(
    parts: RouterParts,
    mut receiver: ManagerReceiver,
    pulse: Pulse,
) -> Result<(JoinSet<()>, ManagerReceiver), WireError> {
    let mut stopping = parts.stopping.clone();
    let core = parts.core.clone();
    let mut router = Router {
        parts,
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        connections: HashMap::new(),
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        tasks: JoinSet::new(),
        bad: BadMessages { count: 0, logged: None },
    };
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        pulse.beat();
        let received = tokio::select! {
            biased;
            _ = beats.tick() => continue,
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(_) = router.tasks.join_next() => continue,
            room = core.room(), if !router.waiting.is_empty() => {
                router.pass_on_waiting(room);
                continue;
            }
            received = receiver.recv(), if router.has_room() => received?,
        };
        router.take(received).await;
    }
    while !router.waiting.is_empty() {
        router.pass_on_waiting(core.room().await);
    }
    Ok((router.tasks, receiver))
}

struct Router {
    parts: RouterParts,
    /// Permits for requests to read.
    requests: Arc<Semaphore>,
    /// The connections that have asked something.
    connections: HashMap<ConnectionId, Connection>,
    /// What waits for room in the core, in the order of arrival.
    waiting: VecDeque<(ForCore, usize)>,
    /// The bytes of `waiting`.
    waiting_bytes: usize,
    tasks: JoinSet<()>,
    bad: BadMessages,
}

/// The requests to read of one connection.
struct Connection {
    requests: Arc<Semaphore>,
    /// True once the connection has ended. Then its requests are given up.
    ended: watch::Sender<bool>,
}

/// A message that the core decides on.
enum ForCore {
    Input(Input),
    Command(ConnectionId, Client, u64, RequestBody),
}

impl Router {
    fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX && self.waiting_bytes < WAITING_BYTES_MAX
    }

    async fn take(&mut self, Received { peer, message, bytes }: Received) {
        let Some(connection) = self.parts.callers.connection_of(&peer) else { return };
        if matches!(message, Err(WireError::PeerGone)) {
            return self.gone(connection);
        }
        // Messages of a connection that was cut are ignored.
        let Some(client) = self.parts.callers.client_of(connection) else { return };
        match message {
            Ok(ToManager::Request(request)) => {
                self.request(connection, client, request, bytes).await
            }
            Ok(message) if !client.caller.role.includes(Role::Agent) => {
                tracing::debug!(?message, "only an agent may send this");
                let error = forbidden(&client.caller, Role::Agent);
                self.send(connection, ToPeer::Error(error)).await;
            }
            Ok(ToManager::Hello(hello)) => {
                let (caller, hello) = (client.caller, Box::new(hello));
                self.decide(Input::AgentConnected { connection, caller, hello }, bytes);
            }
            Ok(ToManager::Reports(_, reports)) if reports.len() > BATCH_ROWS_MAX => {
                let why = format!(
                    "{} reports in one message are over the limit of {BATCH_ROWS_MAX} (BATCH_ROWS_MAX)",
                    reports.len()
                );
                self.refuse(connection, why).await;
            }
            Ok(ToManager::Reports(epoch, reports)) => {
                self.decide(Input::AttemptsReported { connection, epoch, reports }, bytes);
            }
            Ok(ToManager::Goodbye(epoch)) => {
                self.decide(Input::AgentLeft { connection, epoch }, bytes);
            }
            Ok(ToManager::EndpointsApplied { epoch, applied, drained }) => {
                let input = Input::EndpointsApplied { connection, epoch, applied, drained };
                self.decide(input, bytes);
            }
            Ok(ToManager::VolumesRemoved { epoch, removed, failed }) => {
                let input = Input::VolumesRemoved { connection, epoch, removed, failed };
                self.decide(input, bytes);
            }
            Ok(ToManager::PortsClosed { epoch, closed }) => {
                self.decide(Input::PortsClosed { connection, epoch, closed }, bytes);
            }
            Ok(ToManager::LogSlice(number, result)) => {
                if !self.parts.log_reads.answered(connection, number, result) {
                    tracing::debug!(number, "a part of a log came that nobody waits for");
                }
            }
            Err(WireError::RequestBody { head: RequestHead { version, id }, source }) => {
                let error = self.check_version(version).err().unwrap_or_else(|| {
                    self.bad.count(&source.to_string());
                    ErrorReply::new(ErrorCode::BadMessage, source.to_string())
                });
                self.parts.messages.reply(connection, id, Err(error)).await;
            }
            Err(error) => self.refuse(connection, error.to_string()).await,
        }
    }

    fn check_version(&self, version: u16) -> Result<(), ErrorReply> {
        let manager = self.parts.versions;
        if manager.contains(version) {
            return Ok(());
        }
        let theirs = VersionRange::sent(version, None);
        Err(NoCommonVersion { peer: "the client", theirs, manager }.into())
    }

    /// Handles the end of a connection, which comes after all its messages.
    fn gone(&mut self, connection: ConnectionId) {
        let client = self.parts.callers.client_of(connection);
        self.parts.callers.forget(connection);
        if let Some(connection) = self.connections.remove(&connection) {
            connection.ended.send_replace(true);
        }
        self.parts.log_reads.connection_gone(connection);
        // The core knows whether it had a session.
        if client.is_none_or(|client| client.caller.role.includes(Role::Agent)) {
            self.decide(Input::ConnectionGone { connection }, 0);
        }
    }

    fn decide(&mut self, input: Input, bytes: usize) {
        self.pass_on(ForCore::Input(input), bytes);
    }

    /// Passes a message to the core, now or when there is room.
    fn pass_on(&mut self, message: ForCore, bytes: usize) {
        let room = if self.waiting.is_empty() { self.parts.core.try_room() } else { None };
        self.waiting.push_back((message, bytes));
        self.waiting_bytes += bytes;
        if room.is_some() {
            self.pass_on_waiting(room);
        }
    }

    fn pass_on_waiting(&mut self, room: Option<Room>) {
        let Some((message, bytes)) = self.waiting.pop_front() else { return };
        self.waiting_bytes -= bytes;
        match message {
            ForCore::Input(input) => self.parts.core.send(input, room),
            ForCore::Command(connection, client, id, request) => {
                let answer = self.parts.api.call(client, request, room);
                let mut messages = self.parts.messages.clone();
                self.tasks.spawn(async move { messages.reply(connection, id, answer.await).await });
            }
        }
    }

    async fn request(
        &mut self,
        connection: ConnectionId,
        client: Client,
        request: Request,
        bytes: usize,
    ) {
        let Request { version, id, body } = request;
        if let Err(error) = self.check_version(version) {
            return self.parts.messages.reply(connection, id, Err(error)).await;
        }
        if is_command(&body) {
            return self.pass_on(ForCore::Command(connection, client, id, body), bytes);
        }
        let of_connection = self.connections.entry(connection).or_insert_with(|| Connection {
            requests: Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX)),
            ended: watch::Sender::new(false),
        });
        let own = Arc::clone(&of_connection.requests).try_acquire_owned();
        let permits =
            own.and_then(|own| Ok((own, Arc::clone(&self.requests).try_acquire_owned()?)));
        let Ok(permits) = permits else {
            let message = format!(
                "{REQUESTS_MAX} requests are being answered (REQUESTS_MAX), or {REQUESTS_PER_CONNECTION_MAX} of this connection (REQUESTS_PER_CONNECTION_MAX): try again later"
            );
            let error = ErrorReply::new(ErrorCode::Overloaded, message);
            return self.parts.messages.reply(connection, id, Err(error)).await;
        };
        let mut ended = of_connection.ended.subscribe();
        let mut messages = self.parts.messages.clone();
        let answer = self.parts.api.call(client, body, None);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                // If the router has ended, the request is still answered.
                Ok(_) = ended.wait_for(|ended| *ended) => {}
                () = async { messages.reply(connection, id, answer.await).await } => {}
            }
            drop(permits);
        });
    }

    /// Answers bytes that cannot be read as a message.
    async fn refuse(&mut self, connection: ConnectionId, why: String) {
        self.bad.count(&why);
        let error = ErrorReply::new(ErrorCode::BadMessage, why);
        self.send(connection, ToPeer::Error(error)).await;
    }

    /// Sends a message. Does not wait for the other end to read it.
    async fn send(&mut self, connection: ConnectionId, message: ToPeer) {
        self.parts.messages.send(connection, &message).await;
    }
}

/// Counts messages that cannot be read. Logs them at most once a second, so that a flood does not
/// fill the log.
struct BadMessages {
    count: u64,
    logged: Option<Instant>,
}

impl BadMessages {
    fn count(&mut self, why: &str) {
        self.count += 1;
        if self.logged.is_none_or(|logged| logged.elapsed() > Duration::from_secs(1)) {
            self.logged = Some(Instant::now());
            tracing::debug!(why, so_far = self.count, "a message cannot be read");
        }
    }
}
