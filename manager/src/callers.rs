//! Who is connected, and who may: the gate of the front.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podmesh_manager_core::input::{AccessInput, Input, Peer};
use podmesh_protocol::access::{Caller, JoinRequest, PublicKey, Role};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::limits::{CONNECTIONS_PER_KEY_MAX, PROTOCOL_VERSION};
use podmesh_wire::Service;
use podmesh_wire::front::{Admission, Gate, Who};
use podmesh_wire::key::sha256;
use podmesh_wire::route::Duplex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::heartbeat::Heartbeats;
use crate::threads::{Inputs, stopping};
use crate::turns::{CallerLine, ConnectionReads};

/// Connections of one user of this machine at a time: as many as a large `xargs -P` makes.
const CONNECTIONS_PER_USER_MAX: usize = 4096;
/// How often somebody who was cut off is spoken of.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Everybody. Shared with the connections.
#[derive(Clone)]
pub(crate) struct Callers {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: ClusterId,
    inputs: Inputs,
    heartbeats: Heartbeats,
    /// The first half of every identity: that of a life of the manager before is none of now.
    life: [u8; 8],
    last_number: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The keys that count.
    keys: HashMap<PublicKey, KnownKey>,
    /// The connections, by identity, and those that have ended while ROUTER still holds what they
    /// sent.
    connections: HashMap<[u8; 16], Connection>,
    /// The callers that have connections.
    present: HashMap<Who, Presence>,
    last_question: u64,
    /// Those who wait to join.
    joining: HashMap<u64, oneshot::Sender<JoinResult>>,
    refused: u64,
    said: Option<Instant>,
}

#[derive(PartialEq, Eq)]
struct KnownKey {
    role: Role,
    name: Name,
    /// Whether its first use is to be told: it takes the place of another one then.
    renews: bool,
}

/// What became of a wish to join.
type JoinResult = Result<(Role, Name), ErrorReply>;

/// What all connections of a caller share.
#[derive(Default)]
struct Presence {
    connections: usize,
    line: CallerLine,
}

struct Connection {
    who: Who,
    caller: Caller,
    reads: ConnectionReads,
    cut: AbortHandle,
    /// What was under way no longer counts, either.
    revoked: bool,
}

impl Callers {
    /// With the keys that count, and whether their first use is to be told.
    pub(crate) fn new(
        cluster: ClusterId,
        life: [u8; 8],
        keys: impl IntoIterator<Item = (PublicKey, Role, Name, bool)>,
        inputs: Inputs,
        heartbeats: Heartbeats,
    ) -> Self {
        let known = |(key, role, name, renews)| (key, KnownKey { role, name, renews });
        let keys = keys.into_iter().map(known).collect();
        let table = Mutex::new(Table { keys, ..Table::default() });
        let last_number = AtomicU64::new(0);
        Self { shared: Arc::new(Shared { cluster, inputs, heartbeats, life, last_number, table }) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.shared.lock()
    }

    /// Returns the caller with this identity, and the reads of its connection. `None` if it was cut
    /// off.
    pub(crate) fn of(&self, peer: &Peer) -> Option<(Caller, ConnectionReads)> {
        let identity = <[u8; 16]>::try_from(&*peer.0).ok()?;
        let table = self.lock();
        let connection = table.connections.get(&identity)?;
        (!connection.revoked).then(|| (connection.caller.clone(), connection.reads.clone()))
    }

    /// A connection has ended, and all that it sent was taken.
    pub(crate) fn forget(&self, peer: &Peer) {
        if let Ok(identity) = <[u8; 16]>::try_from(&*peer.0) {
            self.lock().connections.remove(&identity);
        }
    }

    /// A key counts from now on. What its owner was before ends: their connections are made anew.
    pub(crate) fn enrolled(&self, key: PublicKey, role: Role, name: Name, renews: bool) {
        let mut table = self.lock();
        let known = || KnownKey { role, name: name.clone(), renews };
        if table.keys.insert(key, known()) != Some(known()) {
            table.cut(&key);
        }
    }

    /// A key counts no more: its connections end now.
    pub(crate) fn revoked(&self, key: &PublicKey) {
        let mut table = self.lock();
        table.keys.remove(key);
        table.cut(key);
    }

    /// Has everybody who came with a key connect anew, but one.
    pub(crate) fn reconnect_all(&self, but: &Peer) {
        for (identity, connection) in &self.lock().connections {
            if matches!(connection.who, Who::Key(_)) && identity[..] != *but.0 {
                connection.cut.abort();
            }
        }
    }

    /// The answer to [`AccessInput::JoinRequested`].
    pub(crate) fn join_answered(&self, question: u64, result: JoinResult) {
        let waiting = self.lock().joining.remove(&question);
        if let Some(waiting) = waiting {
            // Whoever asked may have left.
            _ = waiting.send(result);
        }
    }
}

impl Table {
    fn cut(&mut self, key: &PublicKey) {
        for connection in self.connections.values_mut() {
            if connection.who == Who::Key(*key) {
                connection.revoked = true;
                connection.cut.abort();
            }
        }
    }

    fn who_is(&self, who: Who) -> Result<Caller, ErrorReply> {
        match who {
            Who::Key(key) => match self.keys.get(&key) {
                Some(KnownKey { role, name, .. }) => {
                    Ok(Caller { role: *role, name: name.clone(), key: Some(key) })
                }
                None => Err(ErrorReply::new(
                    ErrorCode::NotEnrolled,
                    "this manager does not know the key, or it was revoked: join with a new token (on the manager's machine: `podmesh token create`)",
                )),
            },
            // The kernel lets others than these connect only where the sockets' group allows it.
            Who::User(uid) => {
                let ours = uid == nix::unistd::geteuid().as_raw() || uid == 0;
                let role = if ours { Role::Admin } else { Role::Operator };
                Ok(Caller { role, name: user_name(uid), key: None })
            }
        }
    }
}

/// The login name of a user, or their number where that is no name of ours.
fn user_name(uid: u32) -> Name {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| user.name.parse().ok());
    #[expect(clippy::expect_used, reason = "letters, a dash and digits are a name")]
    name.unwrap_or_else(|| format!("uid-{uid}").parse().expect("a name"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// A connection has ended. When it spoke, ROUTER may still hold what it sent.
    fn ended(&mut self, identity: [u8; 16], who: Who, spoke: bool) {
        if let Some(presence) = self.present.get_mut(&who) {
            presence.connections -= 1;
            if presence.connections == 0 {
                self.present.remove(&who);
            }
        }
        if !spoke {
            self.connections.remove(&identity);
        }
    }
}

impl Gate for Callers {
    fn admit(&self, who: Who, service: Service, cut: AbortHandle) -> Result<Admission, ErrorReply> {
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&self.shared.life);
        let number = self.shared.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        identity[8..].copy_from_slice(&number.to_be_bytes());

        let mut table = self.lock();
        let caller = table.who_is(who)?;
        if service == Service::Heartbeats && !caller.role.includes(Role::Agent) {
            return Err(forbidden(&caller, Role::Agent));
        }
        let limit = match who {
            Who::Key(_) => CONNECTIONS_PER_KEY_MAX,
            Who::User(_) => CONNECTIONS_PER_USER_MAX,
        };
        let presence = table.present.entry(who).or_default();
        if presence.connections >= limit {
            let message =
                format!("{} has {limit} connections, which is the limit: end some", caller.name);
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        presence.connections += 1;
        let reads = presence.line.connection();
        if let Who::Key(key) = who
            && let Some(known) = table.keys.get_mut(&key)
            && std::mem::take(&mut known.renews)
        {
            self.shared.inputs.tell(Input::Access(AccessInput::RenewedKeyUsed { key }));
        }
        let connection = Connection { who, caller: caller.clone(), reads, cut, revoked: false };
        table.connections.insert(identity, connection);
        drop(table);
        let shared = Arc::clone(&self.shared);
        let ended = Box::new(move |spoke| shared.lock().ended(identity, who, spoke));
        Ok(Admission { caller, identity, ended })
    }

    async fn join(
        &self,
        key: PublicKey,
        request: JoinRequest,
    ) -> Result<(ClusterId, Role, Name), ErrorReply> {
        let JoinRequest { version, token, secret, name } = request;
        if version != PROTOCOL_VERSION {
            let message = format!(
                "the token is used with version {version} of the protocol, and this manager speaks {PROTOCOL_VERSION}: install the same release of podmesh on both"
            );
            return Err(ErrorReply::new(ErrorCode::UnsupportedVersion, message));
        }
        let (sender, answer) = oneshot::channel();
        let question = {
            let mut table = self.lock();
            table.last_question += 1;
            let question = table.last_question;
            table.joining.insert(question, sender);
            question
        };
        // Strangers are as many as the front lets in, and so are these.
        let secret_hash = sha256(&secret.0);
        self.shared.inputs.tell(Input::Access(AccessInput::JoinRequested {
            question,
            key,
            token,
            secret_hash,
            name,
        }));
        let (role, name) = answer.await.map_err(|_| stopping())??;
        Ok((self.shared.cluster, role, name))
    }

    async fn heartbeats(&self, caller: Caller, stream: Box<dyn Duplex>, cut: AbortHandle) {
        self.shared.heartbeats.serve(&caller, stream, cut).await;
    }

    fn refused(&self, from: Option<IpAddr>, why: &str) {
        let mut table = self.lock();
        table.refused += 1;
        // A flood must fill neither the log nor the events.
        if table.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            table.said = Some(Instant::now());
            let count = std::mem::take(&mut table.refused);
            drop(table);
            let from = from.map_or_else(|| "this machine".to_owned(), |from| from.to_string());
            tracing::warn!(%from, why, count, "a connection was not let in, or cut off");
            let why = format!("from {from}: {why}");
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.shared.inputs.tell(Input::Access(AccessInput::ConnectionsRefused { why, count }));
        }
    }
}

/// What somebody is told who may not do a thing.
pub(crate) fn forbidden(caller: &Caller, needed: Role) -> ErrorReply {
    let message = format!(
        "{} has the role {}, and this needs {needed}: an admin can give a token for it (`podmesh token create --role {needed}`)",
        caller.name, caller.role
    );
    ErrorReply::new(ErrorCode::Forbidden, message)
}
