//! The gate of the front: who is connected, and which keys are valid.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use podmesh_manager_core::ids::ConnectionId;
use podmesh_manager_core::input::{Command, Input};
use podmesh_manager_core::step::Answer;
use podmesh_protocol::access::{Caller, JoinRequest, PublicKey, Role};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::limits::CONNECTIONS_PER_KEY_MAX;
use podmesh_protocol::version::{NoCommonVersion, VersionRange};
use podmesh_wire::Service;
use podmesh_wire::front::{Admission, Gate, Who};
use podmesh_wire::key::sha256;
use podmesh_wire::route::Duplex;
use tokio::task::AbortHandle;

use crate::core::CoreHandle;
use crate::heartbeat::Heartbeats;
use crate::threads::stopping;
use crate::turns::{CallerLine, ConnectionReads};

/// Connections of one user of this machine at a time: as many as a large `xargs -P` makes.
const CONNECTIONS_PER_USER_MAX: usize = 4096;
/// The least time between two reports of connections that were refused or cut.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Somebody who asks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) caller: Caller,
    /// Their connection to ROUTER, if the request came by it.
    pub(crate) connection: Option<ConnectionId>,
    /// The reads of the connection, which take turns with those of others.
    pub(crate) reads: ConnectionReads,
}

/// Identifies this run of the manager: the first half of the identity of every connection to
/// ROUTER, so that no identity of an earlier run is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunId(pub(crate) [u8; 8]);

impl RunId {
    pub(crate) fn identity_of(self, connection: ConnectionId) -> [u8; 16] {
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&self.0);
        identity[8..].copy_from_slice(&connection.0.to_be_bytes());
        identity
    }

    fn connection_of(self, identity: &[u8]) -> Option<ConnectionId> {
        let (run, number) = identity.split_first_chunk()?;
        (*run == self.0).then_some(())?;
        Some(ConnectionId(u64::from_be_bytes(number.try_into().ok()?)))
    }
}

/// What the gate tells peers about the manager.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours {
    pub(crate) cluster: ClusterId,
    pub(crate) run: RunId,
    /// The protocol versions that it speaks.
    pub(crate) versions: VersionRange,
}

/// All callers. Clones share them.
#[derive(Clone)]
pub(crate) struct Callers {
    shared: Arc<Shared>,
}

struct Shared {
    ours: Ours,
    core: CoreHandle,
    heartbeats: Heartbeats,
    last_number: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The valid keys.
    keys: HashMap<PublicKey, KnownKey>,
    /// The connections, also those that have ended while ROUTER still holds messages of them.
    connections: HashMap<ConnectionId, Connection>,
    /// The callers that have connections.
    present: HashMap<Who, Presence>,
    /// How many connections were refused or cut since the last report.
    refused: u64,
    reported: Option<Instant>,
}

#[derive(PartialEq, Eq)]
struct KnownKey {
    role: Role,
    name: Name,
    /// Whether the core must learn of its first use, with which it replaces another key.
    renews: bool,
}

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
    /// Whether its key was revoked. Then messages that are under way are ignored.
    revoked: bool,
}

impl Callers {
    /// Creates the table with the valid keys. The `bool` is [`KnownKey::renews`].
    pub(crate) fn new(
        ours: Ours,
        keys: impl IntoIterator<Item = (PublicKey, Role, Name, bool)>,
        core: CoreHandle,
        heartbeats: Heartbeats,
    ) -> Self {
        let known = |(key, role, name, renews)| (key, KnownKey { role, name, renews });
        let keys = keys.into_iter().map(known).collect();
        let table = Mutex::new(Table { keys, ..Table::default() });
        let last_number = AtomicU64::new(0);
        Self { shared: Arc::new(Shared { ours, core, heartbeats, last_number, table }) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.shared.lock()
    }

    /// Returns the connection with an identity at ROUTER; `None` if it is not one of this run.
    pub(crate) fn connection_of(&self, identity: &[u8]) -> Option<ConnectionId> {
        self.shared.ours.run.connection_of(identity)
    }

    /// Returns who is at the other end of a connection; `None` if their key was revoked.
    pub(crate) fn client_of(&self, id: ConnectionId) -> Option<Client> {
        let table = self.lock();
        let connection = table.connections.get(&id).filter(|connection| !connection.revoked)?;
        let (caller, reads) = (connection.caller.clone(), connection.reads.clone());
        Some(Client { caller, connection: Some(id), reads })
    }

    /// Returns a user of this machine, who asks without a connection to ROUTER.
    ///
    /// # Errors
    /// If the user may not ask.
    pub(crate) fn user(&self, uid: u32) -> Result<Client, ErrorReply> {
        let table = self.lock();
        let caller = table.who_is(Who::User(uid))?;
        let line = table.present.get(&Who::User(uid)).map(|present| present.line.clone());
        let reads = line.unwrap_or_default().connection();
        Ok(Client { caller, connection: None, reads })
    }

    /// Forgets a connection that has ended, after all its messages.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        self.lock().connections.remove(&connection);
    }

    /// Makes a key valid. If it had another role or name before, its connections are cut.
    pub(crate) fn enrolled(&self, key: PublicKey, role: Role, name: Name, renews: bool) {
        let mut table = self.lock();
        let known = || KnownKey { role, name: name.clone(), renews };
        if table.keys.insert(key, known()) != Some(known()) {
            table.cut(&key);
        }
    }

    /// Makes a key invalid, and cuts its connections.
    pub(crate) fn revoked(&self, key: &PublicKey) {
        let mut table = self.lock();
        table.keys.remove(key);
        table.cut(key);
    }

    /// Cuts all connections of keys except one, so that their owners connect again.
    pub(crate) fn reconnect_all(&self, except: Option<ConnectionId>) {
        for (id, connection) in &self.lock().connections {
            if matches!(connection.who, Who::Key(_)) && Some(*id) != except {
                connection.cut.abort();
            }
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
            // The kernel lets other users connect only if the group of the sockets allows it.
            Who::User(uid) => {
                let ours = uid == nix::unistd::geteuid().as_raw() || uid == 0;
                let role = if ours { Role::Admin } else { Role::Operator };
                Ok(Caller { role, name: user_name(uid), key: None })
            }
        }
    }
}

/// Returns the login name of a user, or their number if that is not a valid [`Name`].
fn user_name(uid: u32) -> Name {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| user.name.parse().ok());
    #[expect(clippy::expect_used, reason = "letters, a dash and digits are a name")]
    name.unwrap_or_else(|| format!("uid-{uid}").parse().expect("a name"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while it is held.
        self.table.lock()
    }
}

impl Table {
    /// Notes that a connection has ended. If it sent messages, ROUTER may still hold some.
    fn ended(&mut self, connection: ConnectionId, who: Who, has_sent: bool) {
        if let Some(presence) = self.present.get_mut(&who) {
            presence.connections -= 1;
            if presence.connections == 0 {
                self.present.remove(&who);
            }
        }
        if !has_sent {
            self.connections.remove(&connection);
        }
    }
}

impl Gate for Callers {
    fn admit(&self, who: Who, service: Service, cut: AbortHandle) -> Result<Admission, ErrorReply> {
        let id = ConnectionId(self.shared.last_number.fetch_add(1, Ordering::Relaxed) + 1);
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
            self.shared.core.tell(Input::RenewedKeyUsed { key });
        }
        let connection = Connection { who, caller: caller.clone(), reads, cut, revoked: false };
        table.connections.insert(id, connection);
        drop(table);
        let shared = Arc::clone(&self.shared);
        let ended = Box::new(move |has_sent| shared.lock().ended(id, who, has_sent));
        Ok(Admission { caller, identity: self.shared.ours.run.identity_of(id), ended })
    }

    async fn join(
        &self,
        key: PublicKey,
        request: JoinRequest,
    ) -> Result<(ClusterId, Role, Name), ErrorReply> {
        let JoinRequest { version, version_oldest, token, secret, name } = request;
        let theirs = VersionRange::sent(version, version_oldest);
        let manager = self.shared.ours.versions;
        if manager.common(theirs).is_none() {
            return Err(NoCommonVersion { peer: "the peer that joins", theirs, manager }.into());
        }
        // The front limits the number of strangers, and so of these commands.
        let secret_hash = sha256(&secret.0);
        let command = Command::Join { key, token, secret_hash, name };
        match self.shared.core.command(command, None).answer().await? {
            Answer::Joined { role, name } => Ok((self.shared.ours.cluster, role, name)),
            answer => {
                tracing::error!(?answer, "not the answer to a join; this is a bug");
                Err(stopping())
            }
        }
    }

    async fn heartbeats(&self, caller: Caller, stream: Box<dyn Duplex>, cut: AbortHandle) {
        self.shared.heartbeats.serve(&caller, stream, cut).await;
    }

    fn refused(&self, from: Option<IpAddr>, why: &str) {
        let mut table = self.lock();
        table.refused += 1;
        // A flood must not fill the log or the events.
        if table.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            table.reported = Some(Instant::now());
            let count = std::mem::take(&mut table.refused);
            drop(table);
            let from = from.map_or_else(|| "this machine".to_owned(), |from| from.to_string());
            tracing::warn!(%from, why, count, "a connection was refused or cut");
            let why = format!("from {from}: {why}");
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.shared.core.tell(Input::ConnectionsRefused { why, count });
        }
    }
}

/// Returns the error for a caller whose role does not include the one that a request needs.
pub(crate) fn forbidden(caller: &Caller, needed: Role) -> ErrorReply {
    let message = format!(
        "{} has the role {}, and this needs {needed}: an admin can give a token for it (`podmesh token create --role {needed}`)",
        caller.name, caller.role
    );
    ErrorReply::new(ErrorCode::Forbidden, message)
}
