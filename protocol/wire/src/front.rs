//! The manager's front: the one port on the network, and the sockets on its own machine. Whoever
//! comes shows who they are, and only then, measured by the guard, their messages go on: by one
//! connection to each of the manager's ZeroMQ sockets, which all share.

mod slots;
mod trunk;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_protocol::access::{Admitted, Caller, JoinRequest, Joined, PublicKey, Role};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::TOPIC_MANAGER;
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::limits::{
    AGENT_UNREAD_BYTES_MAX, CLIENT_UNREAD_BYTES_MAX, HANDSHAKE_MS_MAX, PAUSE_UNREAD_BYTES,
};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::WireError;
use crate::guard::zmtp::Traffic;
use crate::machine;
use crate::manager_keys::ShownKeys;
use crate::outbox::Outbox;
use crate::route::{
    CONTROL_SOCKET, Duplex, HEARTBEATS_SOCKET, PUBLICATIONS_SOCKET, read_framed, write_framed,
};
use crate::socket_dir::SocketDir;
use crate::stream::{MessageReader, StreamError, handshake};
use crate::tls::{self, Service};
use slots::Slots;
pub(crate) use trunk::FRONT_IDENTITY;
use trunk::{Place, Subscriber, Trunk};

/// The wait after a connection could not be accepted: out of file descriptors, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The mode of the folder with the sockets for this machine: the sockets' own modes count.
const LOCAL_DIR_MODE: u32 = 0o755;
/// Only the owner and root can connect, unless a group is given: the owner's primary group can have
/// other members.
const LOCAL_SOCKET_MODE: u32 = 0o600;
/// The same, where members of a group are let in.
const GROUP_SOCKET_MODE: u32 = 0o660;
/// Bytes on the way between a heartbeat's connection and who answers it.
const HEARTBEAT_BYTES: usize = 256;
/// How long a connection may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long whoever may not come in may take to read why.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection, as far as it has been proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The owner of a key, somewhere on the network.
    Key(PublicKey),
    /// A user of this machine, who may use our sockets.
    User(u32),
}

/// Somebody was let in.
pub struct Admission {
    /// Who they are.
    pub caller: Caller,
    /// Their identity on ROUTER: one that was never used.
    pub identity: [u8; 16],
    /// Called once, when the connection has ended.
    pub ended: OnEnd,
}

/// Called when a connection has ended, however it did. True: it has sent messages to ROUTER, which
/// hears of its end, too, and after all of them. False: ROUTER never hears of it.
pub type OnEnd = Box<dyn FnOnce(bool) + Send + Sync>;

/// Decides who comes in.
pub trait Gate: Send + Sync + 'static {
    /// Whether somebody may use a service. `cut` ends their connection at any time.
    ///
    /// # Errors
    /// What they are told when they may not.
    fn admit(&self, who: Who, service: Service, cut: AbortHandle) -> Result<Admission, ErrorReply>;

    /// Whether the owner of a key joins: which cluster, as what, and by what name.
    fn join(
        &self,
        key: PublicKey,
        request: JoinRequest,
    ) -> impl Future<Output = Result<(ClusterId, Role, Name), ErrorReply>> + Send;

    /// A connection was cut off, or not let in.
    fn refused(&self, from: Option<IpAddr>, why: &str);
}

/// A stream of heartbeats, and who sends them.
pub type HeartbeatStream = (Caller, DuplexStream);

/// What the front needs.
pub struct FrontConfig {
    /// Where to listen on the network; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The manager's keys.
    pub keys: ShownKeys,
    /// The folder for the sockets of this machine.
    pub local_dir: PathBuf,
    /// The group whose members may use them besides the owner.
    pub group: Option<u32>,
    /// The folder for the sockets between the front and ZeroMQ; nobody else's.
    pub private_dir: PathBuf,
    /// Where streams of heartbeats go.
    pub heartbeats: mpsc::UnboundedSender<HeartbeatStream>,
}

/// The listeners.
pub struct Front {
    address: SocketAddr,
    network: std::net::TcpListener,
    local: [(Service, StdUnixListener); 3],
    _local_dir: SocketDir,
    keys: ShownKeys,
    inner: Inner,
}

/// The way on.
struct Inner {
    private: SocketDir,
    trunk: Arc<Trunk>,
    heartbeats: mpsc::UnboundedSender<HeartbeatStream>,
}

/// What ZeroMQ is to listen on: ROUTER and PUB.
pub struct InnerListeners {
    /// For ROUTER.
    pub control: StdUnixListener,
    /// For PUB.
    pub publications: StdUnixListener,
}

impl Front {
    /// Listens. Nobody comes in before [`Front::run`].
    ///
    /// # Errors
    /// When an address or a folder cannot be listened on.
    pub fn bind(config: FrontConfig) -> Result<(Self, InnerListeners), WireError> {
        let FrontConfig { listen: address, keys, local_dir, group, private_dir, heartbeats } =
            config;
        let network = std::net::TcpListener::bind(address)
            .map_err(|source| WireError::Bind { address, source })?;
        let address = network.local_addr()?;
        let folder = |path: &PathBuf| {
            let dir = path.clone();
            move |source| WireError::SocketDir { dir, source }
        };
        let private = SocketDir::create(&private_dir, 0o700).map_err(folder(&private_dir))?;
        let bind = |name| private.bind(name, 0o600).map_err(folder(&private_dir));
        let inner = InnerListeners {
            control: bind(CONTROL_SOCKET)?,
            publications: bind(PUBLICATIONS_SOCKET)?,
        };
        let local_sockets =
            SocketDir::create(&local_dir, LOCAL_DIR_MODE).map_err(folder(&local_dir))?;
        let bind = |name| {
            let listener =
                local_sockets.bind(name, LOCAL_SOCKET_MODE).map_err(folder(&local_dir))?;
            if let Some(group) = group {
                let path = local_sockets.path(name);
                // The group first: the other way round, the wrong one could connect for a moment.
                std::os::unix::fs::chown(&path, None, Some(group)).map_err(folder(&local_dir))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(GROUP_SOCKET_MODE))
                    .map_err(folder(&local_dir))?;
            }
            Ok::<_, WireError>(listener)
        };
        let local = [
            (Service::Control, bind(CONTROL_SOCKET)?),
            (Service::Publications, bind(PUBLICATIONS_SOCKET)?),
            (Service::Heartbeats, bind(HEARTBEATS_SOCKET)?),
        ];
        let front = Self {
            address,
            network,
            local,
            _local_dir: local_sockets,
            keys,
            inner: Inner { private, trunk: Arc::new(Trunk::new()), heartbeats },
        };
        Ok((front, inner))
    }

    /// Where it listens on the network.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets people in until this is dropped.
    ///
    /// # Errors
    /// When a listener cannot be used, or ROUTER or PUB is gone.
    pub async fn run(self, gate: Arc<impl Gate>) -> io::Result<()> {
        self.network.set_nonblocking(true)?;
        let network = TcpListener::from_std(self.network)?;
        let inner = Arc::new(self.inner);
        let mut listeners = JoinSet::new();
        let (the_gate, way) = (Arc::clone(&gate), Arc::clone(&inner));
        listeners.spawn(accept_network(network, self.keys, the_gate, way));
        for (service, listener) in self.local {
            listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(listener)?;
            listeners.spawn(accept_local(listener, service, Arc::clone(&gate), Arc::clone(&inner)));
        }
        let trunk = &inner.trunk;
        let _closing = Closing(trunk);
        let (control, publications) =
            (inner.private.path(CONTROL_SOCKET), inner.private.path(PUBLICATIONS_SOCKET));
        // The listeners end when this does.
        let result = tokio::select! {
            result = trunk.run_control(&control) => result,
            result = trunk.run_publications(&publications) => result,
        };
        result.map_err(io::Error::other)
    }
}

/// Ends all connections when the front ends.
struct Closing<'a>(&'a Trunk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Starts the life of a connection, which knows how it is ended by others.
fn start<F: Future<Output = ()> + Send + 'static>(
    life: impl FnOnce(AbortHandle) -> F + Send + 'static,
) {
    let (sender, own) = oneshot::channel();
    let task = tokio::spawn(async move {
        // Sent right below.
        if let Ok(own) = own.await {
            life(own).await;
        }
    });
    _ = sender.send(task.abort_handle());
}

async fn accept_network(
    listener: TcpListener,
    keys: ShownKeys,
    gate: Arc<impl Gate>,
    inner: Arc<Inner>,
) {
    let open_files = machine::open_files();
    let slots = Arc::new(Slots::new(open_files));
    let connections = Arc::new(Semaphore::new(slots::connections_max(open_files)));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                gate.refused(None, &format!("a connection could not be accepted: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(connection) = Arc::clone(&connections).try_acquire_owned() else {
            gate.refused(
                Some(from),
                "all connections that the limit of open files allows are in use: raise it (ulimit -n, or LimitNOFILE= in the unit)",
            );
            continue; // Closed.
        };
        let slot = match Slots::take(&slots, from) {
            Ok(slot) => slot,
            Err(why) => {
                gate.refused(Some(from), why);
                continue; // Closed.
            }
        };
        let (keys, gate, inner) = (keys.clone(), Arc::clone(&gate), Arc::clone(&inner));
        start(async move |own| {
            let handshake = shake_hands(stream, TlsAcceptor::from(keys.tls()));
            let limit = Duration::from_millis(HANDSHAKE_MS_MAX);
            let result = match timeout(limit, handshake).await {
                Ok(Ok((stream, key, Service::Join))) => {
                    join(stream, key, &keys, &*gate, limit).await
                }
                Ok(Ok((stream, key, service))) => {
                    match admit(stream, key, own, service, &keys, &*gate, &inner, limit).await {
                        Ok((stream, visitor)) => {
                            drop(slot);
                            serve(stream, service, visitor, &inner).await
                        }
                        Err(error) => Err(error),
                    }
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(StreamError::Slow),
            };
            say(result, &*gate, Some(from));
            drop(connection);
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    acceptor: TlsAcceptor,
) -> io::Result<(TlsStream<TcpStream>, PublicKey, Service)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let session = stream.get_ref().1;
    let shown = session.peer_certificates().and_then(|shown| shown.first());
    let key = shown.and_then(tls::public_key);
    let service = session.alpn_protocol().and_then(Service::of);
    match (key, service) {
        (Some(key), Some(service)) => Ok((stream, key, service)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no key, or no service of ours")),
    }
}

async fn join(
    mut stream: TlsStream<TcpStream>,
    key: PublicKey,
    keys: &ShownKeys,
    gate: &impl Gate,
    limit: Duration,
) -> Result<(), StreamError> {
    let Ok(request) = timeout(limit, read_framed(&mut stream)).await else {
        return Err(StreamError::Slow);
    };
    let manager = keys.digests().into();
    let joined = |(cluster, role, name)| Joined { cluster, role, name, manager };
    let result = gate.join(key, request?).await.map(joined);
    tell(&mut stream, &result).await;
    Ok(())
}

/// Says something, and then no more.
async fn tell<T: serde::Serialize>(stream: &mut TlsStream<TcpStream>, message: &T) {
    // Where they do not listen, they do not hear it.
    _ = timeout(REFUSAL_LIMIT, async {
        write_framed(stream, message).await?;
        stream.shutdown().await
    })
    .await;
}

/// Somebody who was let in, and their place.
struct Visitor {
    caller: Caller,
    identity: [u8; 16],
    place: Place,
}

impl Visitor {
    fn new(admission: Admission, inner: &Inner) -> Self {
        let Admission { caller, identity, ended } = admission;
        Self { caller, identity, place: Place::new(Arc::clone(&inner.trunk), identity, ended) }
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of a connection's life, cut out of it")]
async fn admit(
    mut stream: TlsStream<TcpStream>,
    key: PublicKey,
    own: AbortHandle,
    service: Service,
    keys: &ShownKeys,
    gate: &impl Gate,
    inner: &Inner,
    limit: Duration,
) -> Result<(TlsStream<TcpStream>, Visitor), StreamError> {
    match gate.admit(Who::Key(key), service, own) {
        Ok(admission) => {
            let visitor = Visitor::new(admission, inner);
            let admitted = Ok::<_, ErrorReply>(Admitted { manager: keys.digests().into() });
            let said = write_framed(&mut stream, &admitted);
            timeout(limit, said).await.map_err(|_| StreamError::Slow)??;
            Ok((stream, visitor))
        }
        Err(error) => {
            let why = error.to_string();
            tell(&mut stream, &Err::<Admitted, _>(error)).await;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why).into())
        }
    }
}

async fn accept_local(
    listener: UnixListener,
    service: Service,
    gate: Arc<impl Gate>,
    inner: Arc<Inner>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                gate.refused(None, &format!("a connection could not be accepted: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (gate, inner) = (Arc::clone(&gate), Arc::clone(&inner));
        start(async move |own| {
            let result = async {
                let user = stream.peer_cred()?.uid();
                match gate.admit(Who::User(user), service, own) {
                    Ok(admission) => {
                        serve(stream, service, Visitor::new(admission, &inner), &inner).await
                    }
                    Err(error) => {
                        let kind = io::ErrorKind::PermissionDenied;
                        Err(io::Error::new(kind, error.to_string()).into())
                    }
                }
            };
            say(result.await, &*gate, None);
        });
    }
}

/// Says when somebody was cut off. Whoever leaves by themselves was not, however abruptly.
fn say(result: Result<(), StreamError>, gate: &impl Gate, from: Option<IpAddr>) {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match result {
        Ok(()) => {}
        Err(StreamError::Io(error))
            if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        Err(error) => gate.refused(from, &error.to_string()),
    }
}

/// The life of a connection that was let in.
async fn serve(
    stream: impl Duplex,
    service: Service,
    visitor: Visitor,
    inner: &Inner,
) -> Result<(), StreamError> {
    match service {
        Service::Control => serve_control(stream, visitor, &inner.trunk).await,
        Service::Publications => serve_publications(stream, visitor, &inner.trunk).await,
        Service::Heartbeats => {
            let (mut ours, theirs) = tokio::io::duplex(HEARTBEAT_BYTES);
            if inner.heartbeats.send((visitor.caller, theirs)).is_err() {
                return Ok(()); // The manager stops.
            }
            let (mut stream, limit) = (stream, HEARTBEAT_BYTES);
            tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut ours, limit, limit).await?;
            Ok(())
        }
        Service::Join => Ok(()),
    }
}

/// The place of ROUTER at the other end of a connection.
async fn serve_control(
    mut stream: impl Duplex,
    visitor: Visitor,
    trunk: &Trunk,
) -> Result<(), StreamError> {
    let Visitor { caller, identity, place } = visitor;
    handshake(&mut stream, "ROUTER", "DEALER", b"").await?;
    let (limit, name) = if caller.role.includes(Role::Agent) {
        (AGENT_UNREAD_BYTES_MAX, "AGENT_UNREAD_BYTES_MAX")
    } else {
        (CLIENT_UNREAD_BYTES_MAX, "CLIENT_UNREAD_BYTES_MAX")
    };
    let outbox = Arc::new(Outbox::new(limit));
    trunk.add_control(identity, Arc::clone(&outbox));
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = MessageReader::new(reader, Traffic::Messages);
    let read = async {
        loop {
            // Who does not read is not heard.
            outbox.has_drained_to(PAUSE_UNREAD_BYTES).await;
            let Some(message) = reader.next().await? else { return Ok(()) };
            place.send(message).await;
        }
    };
    let result = tokio::select! {
        result = read => result,
        result = outbox.write_to(&mut writer) => result.map_err(StreamError::from),
        bytes = outbox.has_overflown() => {
            Err(StreamError::Unread { bytes, limit: limit as usize, name })
        }
    };
    // Tells the other end; where it does not listen, the connection is dropped.
    _ = timeout(CLOSE_LIMIT, writer.shutdown()).await;
    result
}

/// The place of PUB at the other end of a connection.
async fn serve_publications(
    mut stream: impl Duplex,
    visitor: Visitor,
    trunk: &Trunk,
) -> Result<(), StreamError> {
    let Visitor { caller, identity, place: _place } = visitor;
    handshake(&mut stream, "PUB", "SUB", b"").await?;
    // What other nodes do is not an agent's business.
    let only = (caller.role == Role::Agent).then_some(TOPIC_MANAGER);
    let subscriber = Arc::new(Subscriber::new());
    trunk.add_subscriber(identity, Arc::clone(&subscriber));
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = MessageReader::new(reader, Traffic::Subscriptions { only });
    let read = async {
        while let Some(message) = reader.next().await? {
            message.iter().for_each(|frame| subscriber.subscribe(frame));
        }
        Ok(())
    };
    tokio::select! {
        result = read => result,
        result = subscriber.outbox.write_to(&mut writer) => result.map_err(Into::into),
    }
}
