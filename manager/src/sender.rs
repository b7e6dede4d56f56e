//! What was committed goes out: messages in order, sessions to whoever watches them, hints to
//! PUB, news to the requests that wait.

use std::collections::HashSet;
use std::sync::Arc;

use podmesh_manager_core::input::{Input, Peer};
use podmesh_manager_core::step::Effect;
use podmesh_protocol::client::{Reply, ReplyBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::session::ToPeer;
use podmesh_wire::WireError;
use podmesh_wire::control::ManagerSender;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::requests::Manager;
use crate::store::Committed;

/// Peers that are gone and for which more may still come.
const GONE_MAX: usize = 1024;

/// Carries out what each commit allows, until the store has ended.
pub(crate) async fn run(
    manager: Arc<Manager>,
    mut sender: ManagerSender,
    mut committed: mpsc::Receiver<Committed>,
) {
    // A peer that does not read makes each send wait: once is enough.
    let mut gone = HashSet::new();
    while let Some(Committed { effects, chunks, touched }) = committed.recv().await {
        manager.hints.add(chunks);
        for effect in effects {
            match effect {
                Effect::Send { peer, message } => {
                    if let ToPeer::Reply(Reply { id, result: Err(_) }) = &message {
                        manager.tokens.refused(&peer, *id);
                    }
                    if !gone.contains(&peer) && !send(&manager, &mut sender, &peer, &message).await
                    {
                        if gone.len() >= GONE_MAX {
                            gone.clear();
                        }
                        gone.insert(peer);
                    }
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
                    manager.questions.answered(question, waits_for);
                }
                Effect::TokenCreated { peer, request, id, expires_wall_ms } => {
                    let key = manager.own_key.digest();
                    let token = manager.tokens.created(&peer, request, id, key);
                    let Some(token) = token else { continue };
                    let body = ReplyBody::TokenCreated { id, token, expires_wall_ms };
                    let message = ToPeer::Reply(Reply { id: request, result: Ok(body) });
                    send(&manager, &mut sender, &peer, &message).await;
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
        manager.waiters.wake(&touched);
    }
}

/// Sends a message that the core decided on. False when the peer is gone.
async fn send(
    manager: &Manager,
    sender: &mut ManagerSender,
    peer: &Peer,
    message: &ToPeer,
) -> bool {
    match sender.send(&peer.0, message).await {
        Ok(()) => true,
        Err(WireError::Encode(error)) => {
            tracing::error!(%error, "a message does not fit the wire");
            if let ToPeer::Reply(Reply { id, .. }) = message {
                let error = ErrorReply::new(ErrorCode::Overloaded, error.to_string());
                let message = ToPeer::Reply(Reply { id: *id, result: Err(error) });
                _ = sender.send(&peer.0, &message).await;
            }
            true
        }
        Err(_) => {
            // The core knows whether it was an agent's.
            manager.log_reads.peer_gone(peer);
            manager.inputs.tell(Input::PeerGone { peer: peer.clone() });
            false
        }
    }
}

/// Answers a client; where it is gone, nobody minds.
pub(crate) async fn reply(
    mut sender: ManagerSender,
    peer: Peer,
    id: u64,
    result: Result<ReplyBody, ErrorReply>,
) {
    let message = ToPeer::Reply(Reply { id, result });
    if let Err(WireError::Encode(error)) = sender.send(&peer.0, &message).await {
        tracing::error!(%error, "a reply does not fit the wire");
        let error = ErrorReply::new(ErrorCode::Overloaded, error.to_string());
        _ = sender.send(&peer.0, &ToPeer::Reply(Reply { id, result: Err(error) })).await;
    }
}
