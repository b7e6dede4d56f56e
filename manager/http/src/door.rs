//! What serves the API: the manager itself, or a program that asks the manager through the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_protocol::access::Caller;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::Revision;
use tokio::sync::watch;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A user of this machine, by number, at the unix socket.
    User(u32),
    /// A peer on the network or on loopback.
    Address(SocketAddr),
}

/// Where requests are answered.
pub trait Door: Send + Sync + 'static {
    /// Returns somebody who may ask.
    ///
    /// # Errors
    /// What the peer is told: without a token it cannot be identified, or the token is not valid.
    fn admit(&self, peer: &Peer, token: Option<&str>) -> Result<Arc<dyn Asker>, ErrorReply>;

    /// Exchanges a one-time code for a token that [`Self::admit`] accepts.
    ///
    /// # Errors
    /// Why not. A server whose clients bring API tokens has no codes.
    fn sign_in(&self, _code: &str) -> Result<String, ErrorReply> {
        let message = "this server has no one-time codes: sign in with an API token, or run `podmesh console`";
        Err(ErrorReply::new(ErrorCode::NotFound, message))
    }

    /// Returns the events after a revision that fit into one reply, and the last revision. For all
    /// readers together, each of whom has been admitted.
    ///
    /// # Errors
    /// If they cannot be read.
    fn events(
        &self,
        since: Revision,
    ) -> BoxFuture<'static, Result<(Vec<EventChunk>, Revision), ErrorReply>>;

    /// Returns the last committed revision, as it changes.
    fn revisions(&self) -> watch::Receiver<Revision>;

    /// Checks that requests can be answered and jobs accepted.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> BoxFuture<'static, Result<(), ErrorReply>>;
}

/// Somebody who was admitted.
pub trait Asker: Send + Sync + 'static {
    /// Returns who it is.
    fn caller(&self) -> &Caller;

    /// Answers a request.
    ///
    /// # Errors
    /// What the caller is told. In particular if [`Asker::check`] fails, or the role does not permit
    /// the request.
    fn ask(&self, request: RequestBody) -> BoxFuture<'static, Result<ReplyBody, ErrorReply>>;

    /// Returns the metrics of what serves the API, as Prometheus reads them.
    ///
    /// # Errors
    /// What the caller is told. If this is not the manager, there are none.
    fn metrics(&self) -> BoxFuture<'static, Result<String, ErrorReply>> {
        let message = "there are no metrics here: ask the manager itself";
        std::future::ready(Err(ErrorReply::new(ErrorCode::NotFound, message))).boxed()
    }

    /// Checks that the caller is still admitted.
    ///
    /// # Errors
    /// If the token was revoked or has expired.
    fn check(&self) -> Result<(), ErrorReply>;
}
