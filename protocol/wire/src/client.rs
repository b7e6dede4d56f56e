//! Requests and replies over one connection to the manager.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use podmesh_protocol::client::{Reply, ReplyBody, Request, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::service::ServiceRequest;
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::version::{NoCommonVersion, VersionRange};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::control::{PeerReceiver, PeerSender, PeerSocket};
use crate::error::WireError;
use crate::route::Route;

/// How long a reply may take, in addition to the waiting time in the request.
pub const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The manager replied with an error.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// The manager speaks no version of the protocol that the client speaks.
    #[error(transparent)]
    NoCommonVersion(#[from] NoCommonVersion),
    /// The manager sent a reply of another type.
    #[error(
        "the manager sent a reply of the wrong type; check that both sides run the same version"
    )]
    UnexpectedReply,
    /// The connection failed; a new [`Client`] may succeed.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A connection for requests. Many requests can be in progress at a time. It does not reconnect.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    /// The versions that the client speaks.
    versions: VersionRange,
    /// The one that it uses: the newest, until the manager says which ones it speaks.
    version: AtomicU16,
    sender: AsyncMutex<PeerSender>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    receiver: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

/// The waiting requests; `None` once the connection has ended.
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

type Answer = Result<ReplyBody, ErrorReply>;

impl Waiting {
    fn with<R>(
        &self,
        f: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Answer>>>) -> R,
    ) -> R {
        // Nothing panics under this lock, and the map is consistent at every moment.
        f(&mut self.0.lock())
    }

    fn answer(&self, id: u64, result: Answer) {
        let waiter = self.with(|waiting| waiting.as_mut()?.remove(&id));
        if let Some(waiter) = waiter {
            // The caller may have given up.
            _ = waiter.send(result);
        }
    }

    fn answer_all(&self, error: &ErrorReply) {
        let waiters = self.with(|waiting| waiting.as_mut().map(std::mem::take));
        for (_, waiter) in waiters.into_iter().flatten() {
            _ = waiter.send(Err(error.clone()));
        }
    }
}

/// Removes a request for which nobody waits any longer.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.with(|waiting| waiting.as_mut().map(|waiting| waiting.remove(&self.id)));
    }
}

impl Client {
    /// Connects to a manager.
    ///
    /// # Errors
    /// See [`PeerSocket::connect`].
    pub async fn connect(route: &Route) -> Result<Self, WireError> {
        Self::connect_speaking(route, VersionRange::SPOKEN).await
    }

    /// Connects as a client that speaks these versions of the protocol.
    ///
    /// # Errors
    /// See [`PeerSocket::connect`].
    pub async fn connect_speaking(
        route: &Route,
        versions: VersionRange,
    ) -> Result<Self, WireError> {
        let (receiver, sender) = PeerSocket::connect(route).await?.split();
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let shared = Shared {
            versions,
            version: AtomicU16::new(versions.newest),
            sender: AsyncMutex::new(sender),
            receiver: tokio::spawn(receive(receiver, Arc::clone(&waiting))),
            waiting,
            next_id: AtomicU64::new(1),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Sends a request and waits for the reply. If the manager does not speak the version of the
    /// request, sends it once more with the highest common one, which later requests use too.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the manager refuses; [`ClientError::NoCommonVersion`];
    /// [`ClientError::Wire`] if the connection ends first, or no reply arrives within
    /// [`REPLY_LIMIT`] plus the requested waiting time.
    pub async fn request(&self, body: RequestBody) -> Result<ReplyBody, ClientError> {
        let version = self.shared.version.load(Ordering::Relaxed);
        let refusal = match self.send(version, body.clone()).await {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::UnsupportedVersion => {
                error
            }
            other => return other,
        };
        // A manager of the first release speaks one version, and does not send a range.
        let Some(manager) = refusal.versions else { return Err(refusal.into()) };
        let theirs = self.shared.versions;
        let common = theirs.common(manager);
        let version = common.ok_or(NoCommonVersion { peer: "this client", theirs, manager })?;
        self.shared.version.store(version, Ordering::Relaxed);
        self.send(version, body).await
    }

    /// Sends a request once, and waits for the reply.
    async fn send(&self, version: u16, body: RequestBody) -> Result<ReplyBody, ClientError> {
        let limit = REPLY_LIMIT + wait_of(&body);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        let open = self.shared.waiting.with(|waiting| match waiting {
            Some(waiting) => {
                waiting.insert(id, waiter);
                true
            }
            None => false,
        });
        if !open {
            return Err(WireError::Disconnected.into());
        }
        let _forget = Forget { waiting: &self.shared.waiting, id };
        let request = Request { version, id, body };
        self.shared.sender.lock().await.send(&ToManager::Request(request)).await?;
        match timeout(limit, answer).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) => Err(WireError::Disconnected.into()),
            Err(_) => Err(WireError::Timeout { what: "the manager's reply", limit }.into()),
        }
    }
}

fn wait_of(body: &RequestBody) -> Duration {
    let wait_ms = match body {
        RequestBody::Job { wait_ms, .. }
        | RequestBody::Task { wait_ms, .. }
        | RequestBody::Service(ServiceRequest::Show { wait_ms, .. }) => *wait_ms,
        RequestBody::Log(read) => read.wait_ms,
        _ => 0,
    };
    Duration::from_millis(u64::from(wait_ms))
}

async fn receive(mut receiver: PeerReceiver, waiting: Arc<Waiting>) {
    loop {
        match receiver.recv().await {
            Ok(ToPeer::Reply(Reply { id, result })) => waiting.answer(id, result),
            // The manager could not decode a message, so it cannot tell which request it was.
            Ok(ToPeer::Error(error)) => waiting.answer_all(&error),
            Ok(other) => tracing::debug!(?other, "unexpected message for a client"),
            Err(error) => {
                tracing::debug!(%error, "the connection to the manager ended");
                // Dropping the waiters notifies them.
                waiting.with(Option::take);
                return;
            }
        }
    }
}
