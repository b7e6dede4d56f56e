//! The HTTP API and the console on this machine, answered by the manager through the mesh.
//!
//! [`MeshDoor`] is the other door of `podmesh-http`, beside the manager's: it passes requests on with
//! the user's own key, so the manager checks the role. Only the browser that has exchanged the
//! one-time code is let in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use podmesh_http::{Asker, Door, Peer};
use podmesh_protocol::access::Caller;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::Revision;
use podmesh_wire::key::{KeyError, random, sha256};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::connect::{Connection, RequestError};
use crate::error::CliError;
use crate::hints::Hints;
use crate::output::screen::say;

/// How long the code can be used.
const CODE_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The pause before the manager is asked again after a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// The door of one user's console.
pub(crate) struct MeshDoor {
    shared: Arc<Shared>,
    code: Mutex<Code>,
    token: String,
    token_hash: [u8; 32],
    revisions: watch::Receiver<Revision>,
}

/// The code of the printed address.
enum Code {
    Fresh { hash: [u8; 32], since: Instant },
    Used,
}

struct Shared {
    connection: Connection,
    caller: Caller,
    /// Why the manager cannot be asked at present.
    away: watch::Sender<Option<ErrorReply>>,
}

impl Shared {
    /// Passes a request on. It does not wait for a manager that is away: the page asks again.
    async fn ask(&self, request: RequestBody) -> Result<ReplyBody, ErrorReply> {
        let mut away = self.away.subscribe();
        let gone = async {
            // The sender is in `self`.
            away.wait_for(Option::is_some).await.ok().and_then(|why| why.clone())
        };
        tokio::select! {
            biased;
            Some(why) = gone => Err(why),
            reply = self.connection.request(request) => reply.map_err(refusal),
        }
    }

    fn check(&self) -> Result<(), ErrorReply> {
        self.away.borrow().clone().map_or(Ok(()), Err)
    }

    fn set_away(&self, why: Option<ErrorReply>) {
        self.away.send_if_modified(|known| std::mem::replace(known, why.clone()) != why);
    }
}

/// Returns what the page is told.
fn refusal(error: RequestError) -> ErrorReply {
    match error {
        RequestError::Refused(reply) => reply,
        RequestError::Failed(error) => away(&error),
    }
}

/// The manager cannot be reached: the page asks again.
fn away(error: &CliError) -> ErrorReply {
    let message = match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    };
    ErrorReply::new(ErrorCode::Stopping, message)
}

fn no_entry(why: &str) -> ErrorReply {
    let message =
        format!("{why}: run `podmesh console` again, and open the address that it prints");
    ErrorReply::new(ErrorCode::InvalidToken, message)
}

fn secret() -> Result<String, KeyError> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl MeshDoor {
    /// Creates the door of a user, and the code that opens it once. `connection` is for requests;
    /// `caller` is how the manager knows the user. The other value follows the manager's events, as
    /// long as it is awaited, on a connection of its own.
    ///
    /// # Errors
    /// If the system provides no random bytes.
    pub(crate) fn new(
        connection: Connection,
        caller: Caller,
        watched: Connection,
        last: Revision,
    ) -> Result<(Self, String, impl Future<Output = ()> + Send), KeyError> {
        let (code, token) = (secret()?, secret()?);
        let shared = Arc::new(Shared { connection, caller, away: watch::Sender::new(None) });
        let (sender, revisions) = watch::channel(last);
        let watching = watch_events(Arc::clone(&shared), watched, sender);
        let door = Self {
            shared,
            code: Mutex::new(Code::Fresh { hash: sha256(code.as_bytes()), since: Instant::now() }),
            token_hash: sha256(token.as_bytes()),
            token,
            revisions,
        };
        Ok((door, code, watching))
    }
}

/// Keeps the last revision, and whether the manager can be asked.
async fn watch_events(shared: Arc<Shared>, watched: Connection, sender: watch::Sender<Revision>) {
    let following = async {
        let mut hints = Hints::default();
        loop {
            let from = *sender.borrow();
            let last = match hints.next(&watched, from).await {
                Some(chunk) => chunk.last(),
                None => match watched.info().await {
                    Ok(info) => info.revision,
                    Err(error) => {
                        shared.set_away(Some(refusal(error)));
                        sleep(REFUSED_PAUSE).await;
                        continue;
                    }
                },
            };
            shared.set_away(None);
            sender.send_if_modified(|known| std::mem::replace(known, last) != last);
        }
    };
    tokio::select! {
        () = following => {}
        () = report_gone(&shared, &watched) => {}
    }
}

/// While the manager is waited for, says so to those who ask.
async fn report_gone(shared: &Shared, watched: &Connection) {
    loop {
        sleep(Duration::from_millis(500)).await;
        if watched.is_gone() {
            let why = "the manager does not respond; the console asks again until it does";
            shared.set_away(Some(ErrorReply::new(ErrorCode::Stopping, why)));
        }
    }
}

impl Door for MeshDoor {
    fn admit(&self, _: &Peer, token: Option<&str>) -> Result<Arc<dyn Asker>, ErrorReply> {
        // A comparison of hashes of random bits reveals nothing.
        match token.map(|token| sha256(token.as_bytes())) {
            Some(hash) if hash == self.token_hash => {
                Ok(Arc::new(MeshAsker(Arc::clone(&self.shared))))
            }
            Some(_) => Err(no_entry("this page belongs to a console that has ended")),
            None => Err(no_entry("the console needs its one-time code")),
        }
    }

    fn sign_in(&self, code: &str) -> Result<String, ErrorReply> {
        let mut known = self.code.lock();
        match &*known {
            Code::Used => {
                say(
                    "somebody opened the printed address again, and was refused: the code works once",
                );
                Err(no_entry("the code was used already"))
            }
            Code::Fresh { since, .. } if since.elapsed() > CODE_LIMIT => {
                Err(no_entry("the code is too old"))
            }
            Code::Fresh { hash, .. } if *hash != sha256(code.as_bytes()) => {
                Err(no_entry("the code is not that of this console"))
            }
            Code::Fresh { .. } => {
                *known = Code::Used;
                Ok(self.token.clone())
            }
        }
    }

    fn events(
        &self,
        since: Revision,
    ) -> BoxFuture<'static, Result<(Vec<EventChunk>, Revision), ErrorReply>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.connection.events(since).await.map_err(refusal) }.boxed()
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.clone()
    }

    fn ready(&self) -> BoxFuture<'static, Result<(), ErrorReply>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.ask(RequestBody::Info).await.map(|_| ()) }.boxed()
    }
}

/// The user, in the browser that has signed in.
struct MeshAsker(Arc<Shared>);

impl Asker for MeshAsker {
    fn caller(&self) -> &Caller {
        &self.0.caller
    }

    fn ask(&self, request: RequestBody) -> BoxFuture<'static, Result<ReplyBody, ErrorReply>> {
        let shared = Arc::clone(&self.0);
        async move { shared.ask(request).await }.boxed()
    }

    fn check(&self) -> Result<(), ErrorReply> {
        self.0.check()
    }
}
