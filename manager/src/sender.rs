//! Carries out the effects of commits: sends messages in order, opens and closes sessions, passes
//! hints to PUB, and wakes waiting requests.

use std::sync::Arc;

use podmesh_manager_core::input::Peer;
use podmesh_manager_core::step::Effect;
use podmesh_protocol::client::{Reply, ReplyBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::session::ToPeer;
use podmesh_wire::WireError;
use podmesh_wire::control::ManagerSender;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::requests::Manager;
use crate::store::Commit;

/// Carries out the effects of each commit, until the store has ended. Returns the socket, as the
/// router does.
pub(crate) async fn run(
    manager: Arc<Manager>,
    mut sender: ManagerSender,
    mut committed: mpsc::Receiver<Commit>,
    pulse: Pulse,
) -> ManagerSender {
    loop {
        pulse.beat();
        let Ok(next) = timeout(BEAT_EVERY, committed.recv()).await else { continue };
        let Some(Commit { effects, chunks, touched }) = next else { return sender };
        manager.hints.add(chunks);
        for effect in effects {
            match effect {
                Effect::Send { peer, message } => {
                    if let ToPeer::Reply(Reply { id, result: Err(_) }) = &message {
                        manager.tokens.refused(&peer, *id);
                    }
                    send(&mut sender, &peer, &message).await;
                }
                Effect::SessionOpened { epoch, node, peer } => {
                    manager.heartbeats.open(epoch, node.clone());
                    manager.log_reads.session_opened(epoch, node, peer);
                }
                Effect::SessionClosed { epoch } => {
                    manager.heartbeats.close(epoch);
                    manager.log_reads.session_closed(epoch);
                }
                Effect::Explained { question, waits_for } => {
                    manager.explanations.answered(question, waits_for);
                }
                Effect::JobsRemoved { question, jobs } => {
                    manager.removals.answered(question, jobs);
                }
                Effect::TokenCreated { peer, request, id, expires_wall_ms } => {
                    let key = manager.own_key.digest();
                    let token = manager.tokens.created(&peer, request, id, key);
                    let Some(token) = token else { continue };
                    let body = ReplyBody::TokenCreated { id, token, expires_wall_ms };
                    let message = ToPeer::Reply(Reply { id: request, result: Ok(body) });
                    send(&mut sender, &peer, &message).await;
                }
                Effect::JoinAnswered { question, result } => {
                    manager.callers.join_answered(question, result);
                }
                Effect::KeyEnrolled { key, role, name, renews } => {
                    manager.callers.enrolled(key, role, name, renews);
                }
                Effect::KeyRevoked { key } => manager.callers.revoked(&key),
                Effect::CancelOfEndedJob { peer, request, job } => {
                    let (sender, runtime) = (sender.clone(), Handle::current());
                    manager.reads.post(move |history| {
                        let result = history
                            .note(history.job_state(job))
                            .map(|(state, _)| ReplyBody::Cancelled { state })
                            .map_err(ErrorReply::from);
                        runtime.spawn(reply(sender, peer, request, result));
                    });
                }
            }
        }
        if !touched.is_empty() {
            manager.turns.worked();
        }
        manager.waiters.wake(&touched);
    }
}

/// Sends a message. A missing peer is not an error: ROUTER reports it to the core.
pub(crate) async fn send(sender: &mut ManagerSender, peer: &Peer, message: &ToPeer) {
    let error = match sender.send(&peer.0, message).await {
        Ok(()) => return,
        Err(error) => error,
    };
    tracing::error!(%error, "a message cannot be sent");
    if let (WireError::Encode(error), ToPeer::Reply(Reply { id, .. })) = (error, message) {
        let error = ErrorReply::new(ErrorCode::Overloaded, error.to_string());
        let message = ToPeer::Reply(Reply { id: *id, result: Err(error) });
        if let Err(error) = sender.send(&peer.0, &message).await {
            tracing::error!(%error, "a message cannot be sent");
        }
    }
}

/// Sends a reply to a client.
pub(crate) async fn reply(
    mut sender: ManagerSender,
    peer: Peer,
    id: u64,
    result: Result<ReplyBody, ErrorReply>,
) {
    send(&mut sender, &peer, &ToPeer::Reply(Reply { id, result })).await;
}
