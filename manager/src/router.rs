//! ROUTER: every message that comes, to whom it concerns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podmesh_manager_core::input::{AccessInput, ForgetRequest, Input, Peer};
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::client::{Reply, ReplyBody, Request, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::{
    BATCH_ROWS_MAX, PAGE_ROWS_MAX, PROTOCOL_VERSION, REQUESTS_PER_CONNECTION_MAX,
};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_wire::WireError;
use podmesh_wire::control::{ManagerReceiver, ManagerSender, Received};
use podmesh_wire::machine::unwritable;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::callers::forbidden;
use crate::requests::{Manager, Submit};
use crate::sender::{reply, send};
use crate::turns::ConnectionReads;

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
        connections: HashMap::new(),
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
    /// The connections that have asked something.
    connections: HashMap<Peer, Connection>,
    tasks: JoinSet<()>,
    bad: BadMessages,
}

/// The requests of one connection.
struct Connection {
    requests: Arc<Semaphore>,
    /// True once the connection has ended: then its requests are given up.
    ended: watch::Sender<bool>,
}

impl Router {
    /// Waits only for room in the core: that is how a slow disk makes peers wait.
    async fn take(&mut self, Received { peer, message }: Received) {
        let peer = Peer(peer);
        if matches!(message, Err(WireError::PeerGone)) {
            return self.gone(peer).await;
        }
        // What was sent by somebody who was cut off since is of no use.
        let Some((caller, reads)) = self.manager.callers.of(&peer) else { return };
        match message {
            Ok(ToManager::Request(request)) => self.request(peer, caller, reads, request).await,
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
        if let Some(connection) = self.connections.remove(&peer) {
            connection.ended.send_replace(true);
        }
        self.manager.log_reads.peer_gone(&peer);
        // Whether it had a session, the core knows.
        if caller.is_none_or(|(caller, _)| caller.role.includes(Role::Agent)) {
            self.decide(Input::PeerGone { peer }).await;
        }
    }

    async fn decide(&self, input: Input) {
        let room = self.manager.inputs.room().await;
        self.manager.inputs.send(input, room);
    }

    async fn request(
        &mut self,
        peer: Peer,
        caller: Caller,
        reads: ConnectionReads,
        request: Request,
    ) {
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
                if let Some(why) = unwritable(&self.manager.data_dir) {
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
            RequestBody::NodeForget { node, force } => {
                let asked = ForgetRequest { peer, request: id, by, node, force };
                self.decide(Input::ForgetRequested(asked)).await;
            }
            body => self.read(peer, caller, reads, id, body).await,
        }
    }

    /// Answers a request to read in its turn.
    async fn read(
        &mut self,
        peer: Peer,
        caller: Caller,
        reads: ConnectionReads,
        id: u64,
        body: RequestBody,
    ) {
        let connection = self.connections.entry(peer.clone()).or_insert_with(|| Connection {
            requests: Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX)),
            ended: watch::Sender::new(false),
        });
        let own = Arc::clone(&connection.requests).try_acquire_owned();
        let permits =
            own.and_then(|own| Ok((own, Arc::clone(&self.requests).try_acquire_owned()?)));
        let Ok(permits) = permits else {
            let message = format!(
                "{REQUESTS_MAX} requests are being answered (REQUESTS_MAX), or {REQUESTS_PER_CONNECTION_MAX} of this connection (REQUESTS_PER_CONNECTION_MAX): try again later"
            );
            let error = ErrorReply::new(ErrorCode::Overloaded, message);
            return self.error(peer, ToPeer::Reply(Reply { id, result: Err(error) })).await;
        };
        let mut ended = connection.ended.subscribe();
        let (manager, sender) = (Arc::clone(&self.manager), self.sender.clone());
        self.tasks.spawn(async move {
            let answer = async {
                manager.turns.take(&reads).await;
                let result = match body {
                    RequestBody::WhoAmI => Ok(ReplyBody::WhoAmI(caller)),
                    body => match asks_core(&peer, id, body) {
                        // The core answers it.
                        Ok(input) => {
                            return manager.inputs.send(input, manager.inputs.room().await);
                        }
                        Err(body) => {
                            manager.answer(caller.name, body, &reads, sender.clone()).await
                        }
                    },
                };
                reply(sender, peer.clone(), id, result).await;
            };
            tokio::select! {
                biased;
                // Not when the router ends: the connection still gets its answer.
                Ok(_) = ended.wait_for(|ended| *ended) => {}
                () = answer => {}
            }
            drop(permits);
        });
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

/// The question to the core for a request that the core answers; gives back any other.
fn asks_core(peer: &Peer, request: u64, body: RequestBody) -> Result<Input, RequestBody> {
    let peer = peer.clone();
    Ok(match body {
        RequestBody::Nodes { after, limit } => {
            Input::NodesRequested { peer, request, after, limit: limit.min(PAGE_ROWS_MAX) }
        }
        RequestBody::Tokens => Input::Access(AccessInput::TokensRequested { peer, request }),
        RequestBody::Users { after, limit } => {
            Input::Access(AccessInput::UsersRequested { peer, request, after, limit })
        }
        other => return Err(other),
    })
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
