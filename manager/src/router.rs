//! ROUTER: every message that comes, to whom it concerns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podmesh_manager_core::input::{AccessInput, Input, Peer};
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::client::{Reply, ReplyBody, Request, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::{
    BATCH_ROWS_MAX, PAGE_ROWS_MAX, PROTOCOL_VERSION, REQUESTS_PER_CONNECTION_MAX,
};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_wire::WireError;
use podmesh_wire::control::{ManagerReceiver, ManagerSender, Received};
use podmesh_wire::machine::no_room;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::callers::forbidden;
use crate::requests::{Manager, Submit};
use crate::sender::{reply, send};

/// Requests that are being answered, or held, at a time.
const REQUESTS_MAX: usize = 8192;

/// Takes what comes until the manager stops. The requests that are still held go on. The socket is
/// given back: it is to stay open until the front has ended.
///
/// # Errors
/// When the socket itself fails.
pub(crate) async fn run(
    manager: Arc<Manager>,
    mut receiver: ManagerReceiver,
    sender: ManagerSender,
    pulse: Pulse,
) -> Result<(JoinSet<()>, ManagerReceiver), WireError> {
    let mut stopping = manager.stopping.clone();
    let mut router = Router {
        manager,
        sender,
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        of_connections: HashMap::new(),
        tasks: JoinSet::new(),
        bad: BadMessages { count: 0, said: None },
    };
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        pulse.beat();
        let received = tokio::select! {
            biased;
            _ = beats.tick() => continue,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok((router.tasks, receiver)),
            Some(_) = router.tasks.join_next() => continue,
            received = receiver.recv() => received?,
        };
        router.take(received).await;
    }
}

struct Router {
    manager: Arc<Manager>,
    sender: ManagerSender,
    requests: Arc<Semaphore>,
    /// The same of each connection that has any.
    of_connections: HashMap<Peer, Arc<Semaphore>>,
    tasks: JoinSet<()>,
    bad: BadMessages,
}

impl Router {
    /// Waits only for room in the core: that is how a slow disk makes peers wait.
    async fn take(&mut self, Received { peer, message }: Received) {
        let peer = Peer(peer);
        if matches!(message, Err(WireError::PeerGone)) {
            return self.gone(peer).await;
        }
        // What was sent by somebody who was cut off since is of no use.
        let Some(caller) = self.manager.callers.of(&peer) else { return };
        match message {
            Ok(ToManager::Request(request)) => self.request(peer, caller, request).await,
            Ok(message) if !caller.role.includes(Role::Agent) => {
                tracing::debug!(?message, "only an agent may send this");
                let error = forbidden(&caller, Role::Agent);
                self.error(peer, ToPeer::Error(error)).await;
            }
            Ok(ToManager::Hello(hello)) => {
                let hello = Box::new(hello);
                self.decide(Input::AgentConnected { peer, caller, hello }).await;
            }
            Ok(ToManager::Reports(_, reports)) if reports.len() > BATCH_ROWS_MAX => {
                let why = format!(
                    "{} reports in one message are over the limit of {BATCH_ROWS_MAX} (BATCH_ROWS_MAX)",
                    reports.len()
                );
                self.refuse(peer, why).await;
            }
            Ok(ToManager::Reports(epoch, reports)) => {
                self.decide(Input::AttemptsReported { peer, epoch, reports }).await;
            }
            Ok(ToManager::Goodbye(epoch)) => self.decide(Input::AgentLeft { peer, epoch }).await,
            Ok(ToManager::LogSlice(number, result)) => {
                if !self.manager.log_reads.answered(&peer, number, result) {
                    tracing::debug!(number, "a part of a log came that nobody waits for");
                }
            }
            Err(error) => self.refuse(peer, error.to_string()).await,
        }
    }

    /// A connection has ended, and this comes behind all that it sent.
    async fn gone(&mut self, peer: Peer) {
        let caller = self.manager.callers.of(&peer);
        self.manager.callers.forget(&peer);
        self.of_connections.remove(&peer);
        self.manager.log_reads.peer_gone(&peer);
        // Whether it had a session, the core knows.
        if caller.is_none_or(|caller| caller.role.includes(Role::Agent)) {
            self.decide(Input::PeerGone { peer }).await;
        }
    }

    async fn decide(&self, input: Input) {
        let room = self.manager.inputs.room().await;
        self.manager.inputs.send(input, room);
    }

    async fn request(&mut self, peer: Peer, caller: Caller, request: Request) {
        let Request { version, id, body } = request;
        if version != PROTOCOL_VERSION {
            let message = format!(
                "the request speaks version {version} of the protocol, and this manager speaks {PROTOCOL_VERSION}: install the same release of podmesh on both"
            );
            let error = ErrorReply::new(ErrorCode::UnsupportedVersion, message);
            return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
        }
        if let Some(needed) = body.needs()
            && !caller.role.includes(needed)
        {
            let error = forbidden(&caller, needed);
            return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
        }
        let by = caller.name.clone();
        match body {
            RequestBody::WhoAmI => {
                let body = ReplyBody::WhoAmI(caller);
                self.error(peer, ToPeer::Reply(Reply { id, result: Ok(body) })).await;
            }
            RequestBody::TokenCreate { role, ttl_ms, uses } => {
                let (request, tokens) = (id, &self.manager.tokens);
                match tokens.begin(&peer, request) {
                    Ok(secret_hash) => {
                        let asked = AccessInput::TokenRequested {
                            peer,
                            request,
                            by,
                            secret_hash,
                            role,
                            ttl_ms,
                            uses,
                        };
                        self.decide(Input::Access(asked)).await;
                    }
                    Err(error) => {
                        self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                    }
                }
            }
            RequestBody::Tokens => {
                let asked = AccessInput::TokensRequested { peer, request: id };
                self.decide(Input::Access(asked)).await;
            }
            RequestBody::TokenRevoke { id: token } => {
                let asked = AccessInput::TokenRevokeRequested { peer, request: id, by, id: token };
                self.decide(Input::Access(asked)).await;
            }
            RequestBody::KeyRenew { key } => match caller.key {
                Some(old) => {
                    let asked = AccessInput::RenewRequested { peer, request: id, old, new: key };
                    self.decide(Input::Access(asked)).await;
                }
                None => {
                    let message =
                        "who is on the manager's own machine has no key that could be renewed";
                    let error = ErrorReply::new(ErrorCode::InvalidSpec, message);
                    self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                }
            },
            RequestBody::KeyRotate { key } => {
                let (manager, sender) = (Arc::clone(&self.manager), self.sender.clone());
                self.tasks.spawn(async move {
                    let result = manager.own_key.rotate(key, by, &manager.inputs).await;
                    let rotated = result.is_ok();
                    reply(sender, peer.clone(), id, result).await;
                    if rotated {
                        manager.callers.reconnect_all(&peer);
                    }
                });
            }
            RequestBody::Users { after, limit } => {
                let asked = AccessInput::UsersRequested { peer, request: id, after, limit };
                self.decide(Input::Access(asked)).await;
            }
            RequestBody::Revoke { kind, name } => {
                let asked = AccessInput::RevokeRequested { peer, request: id, by, kind, name };
                self.decide(Input::Access(asked)).await;
            }
            RequestBody::Submit { submission, spec } => {
                if let Err(error) = spec.validate() {
                    let error = ErrorReply::new(ErrorCode::InvalidSpec, error.to_string());
                    return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                }
                let max = self.manager.priority_max;
                if spec.priority > max && !caller.role.includes(Role::Admin) {
                    let message = format!(
                        "the priority {} is for admins: {} has the role {}, and may submit with a priority of up to {max} (an admin can raise that: `priority_max` in manager.toml)",
                        spec.priority, caller.name, caller.role
                    );
                    let error = ErrorReply::new(ErrorCode::Forbidden, message);
                    return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                }
                if let Some(why) = no_room(&self.manager.data_dir) {
                    let error = ErrorReply::new(ErrorCode::Storage, why);
                    return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                }
                // The room is the core's, and is taken before the reader is asked.
                let Some(room) = self.manager.inputs.room().await else { return };
                let submit = Submit { peer, request: id, submission, spec };
                self.manager.submit(submit, room, self.sender.clone());
            }
            RequestBody::Cancel { job } => {
                self.decide(Input::CancelRequested { peer, request: id, job }).await;
            }
            RequestBody::Nodes { after, limit } => {
                let limit = limit.min(PAGE_ROWS_MAX);
                self.decide(Input::NodesRequested { peer, request: id, after, limit }).await;
            }
            body => {
                let own = self
                    .of_connections
                    .entry(peer.clone())
                    .or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX)));
                let permits = Arc::clone(own)
                    .try_acquire_owned()
                    .and_then(|own| Ok((own, Arc::clone(&self.requests).try_acquire_owned()?)));
                let Ok(permits) = permits else {
                    let message = format!(
                        "{REQUESTS_MAX} requests are being answered (REQUESTS_MAX), or {REQUESTS_PER_CONNECTION_MAX} of this connection (REQUESTS_PER_CONNECTION_MAX): try again later"
                    );
                    let error = ErrorReply::new(ErrorCode::Overloaded, message);
                    return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
                };
                let (manager, sender) = (Arc::clone(&self.manager), self.sender.clone());
                self.tasks.spawn(async move {
                    let result = manager.answer(body, sender.clone()).await;
                    reply(sender, peer, id, result).await;
                    drop(permits);
                });
            }
        }
    }

    /// Answers bytes that cannot be read as a message.
    async fn refuse(&mut self, peer: Peer, why: String) {
        self.bad.count(&why);
        let error = ErrorReply::new(ErrorCode::BadMessage, why);
        self.error(peer, ToPeer::Error(error)).await;
    }

    /// Answers what was not taken. Does not wait for the peer to read it.
    async fn error(&mut self, peer: Peer, message: ToPeer) {
        send(&mut self.sender, &peer, &message).await;
    }
}

/// Messages that could not be read, and when that was last said: a flood of them must not fill the log.
struct BadMessages {
    count: u64,
    said: Option<Instant>,
}

impl BadMessages {
    fn count(&mut self, why: &str) {
        self.count += 1;
        if self.said.is_none_or(|said| said.elapsed() > Duration::from_secs(1)) {
            self.said = Some(Instant::now());
            tracing::debug!(why, so_far = self.count, "a message could not be taken");
        }
    }
}
