//! Sends messages to connections.

use podmesh_manager_core::ids::ConnectionId;
use podmesh_protocol::client::{Reply, ReplyBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::session::ToPeer;
use podmesh_wire::WireError;
use podmesh_wire::control::ManagerSender;

use crate::callers::RunId;

/// ROUTER, as a sender. Clones share the socket.
#[derive(Clone)]
pub(crate) struct Messages {
    socket: ManagerSender,
    run: RunId,
}

impl Messages {
    pub(crate) fn new(socket: ManagerSender, run: RunId) -> Self {
        Self { socket, run }
    }

    /// Sends a message. Returns false if it could not be sent. A missing connection is not an
    /// error: ROUTER reports its end.
    pub(crate) async fn send(&mut self, to: ConnectionId, message: &ToPeer) -> bool {
        let identity = self.run.identity_of(to);
        let error = match self.socket.send(&identity, message).await {
            Ok(()) => return true,
            Err(error) => error,
        };
        tracing::error!(%error, "a message cannot be sent");
        if let (WireError::Encode(error), ToPeer::Reply(Reply { id, .. })) = (error, message) {
            let error = ErrorReply::new(ErrorCode::Overloaded, error.to_string());
            let message = ToPeer::Reply(Reply { id: *id, result: Err(error) });
            if let Err(error) = self.socket.send(&identity, &message).await {
                tracing::error!(%error, "a message cannot be sent");
            }
        }
        false
    }

    /// Sends the reply to a request.
    pub(crate) async fn reply(
        &mut self,
        to: ConnectionId,
        id: u64,
        result: Result<ReplyBody, ErrorReply>,
    ) {
        self.send(to, &ToPeer::Reply(Reply { id, result })).await;
    }
}
