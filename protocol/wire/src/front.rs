//! The manager's front: the one port on the network, and the sockets on its own machine. Whoever
//! comes shows who they are, and only then, measured by the guard, their bytes reach a socket.

mod slots;

use std::any::Any;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_protocol::access::{Admitted, Caller, JoinRequest, Joined, PublicKey, Role};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::TOPIC_MANAGER;
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::limits::HANDSHAKE_MS_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::WireError;
use crate::guard::relay::{Expected, RelayError, relay, relay_plain};
use crate::guard::zmtp::Traffic;
use crate::machine;
use crate::manager_keys::ShownKeys;
use crate::route::{
    CONTROL_SOCKET, Duplex, HEARTBEATS_SOCKET, PUBLICATIONS_SOCKET, read_framed, write_framed,
};
use crate::socket_dir::SocketDir;
use crate::tls::{self, Service};
use slots::Slots;

/// The wait after a connection could not be accepted: out of file descriptors, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The mode of the folder with the sockets for this machine: the sockets' own modes count.
const LOCAL_DIR_MODE: u32 = 0o755;
/// Only the owner and root can connect, unless a group is given: the owner's primary group can have
/// other members.
const LOCAL_SOCKET_MODE: u32 = 0o600;
/// The same, where members of a group are let in.
const GROUP_SOCKET_MODE: u32 = 0o660;
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
    /// Dropped when the connection ends.
    pub registration: Box<dyn Any + Send>,
}

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
pub type HeartbeatStream = (Caller, StdUnixStream);

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
            inner: Inner { private, heartbeats },
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
    /// When a listener cannot be used.
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
        // None ends by itself.
        while listeners.join_next().await.is_some() {}
        Ok(())
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
    let slots = Arc::new(Slots::new(machine::open_files()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                gate.refused(None, &format!("a connection could not be accepted: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
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
                    match admit(stream, key, service, own, &keys, &*gate, limit).await {
                        Ok((stream, admission)) => {
                            drop(slot);
                            serve(stream, service, admission, &inner).await
                        }
                        Err(error) => Err(error),
                    }
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(RelayError::Slow),
            };
            say(result, &*gate, Some(from));
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
) -> Result<(), RelayError> {
    let Ok(request) = timeout(limit, read_framed(&mut stream)).await else {
        return Err(RelayError::Slow);
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

async fn admit(
    mut stream: TlsStream<TcpStream>,
    key: PublicKey,
    service: Service,
    own: AbortHandle,
    keys: &ShownKeys,
    gate: &impl Gate,
    limit: Duration,
) -> Result<(TlsStream<TcpStream>, Admission), RelayError> {
    match gate.admit(Who::Key(key), service, own) {
        Ok(admission) => {
            let admitted = Ok::<_, ErrorReply>(Admitted { manager: keys.digests().into() });
            let said = write_framed(&mut stream, &admitted);
            timeout(limit, said).await.map_err(|_| RelayError::Slow)??;
            Ok((stream, admission))
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
                    Ok(admission) => serve(stream, service, admission, &inner).await,
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
fn say(result: Result<(), RelayError>, gate: &impl Gate, from: Option<IpAddr>) {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match result {
        Ok(()) => {}
        Err(RelayError::Io(error))
            if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        Err(error) => gate.refused(from, &error.to_string()),
    }
}

/// The life of a connection that was let in.
async fn serve(
    stream: impl Duplex,
    service: Service,
    admission: Admission,
    inner: &Inner,
) -> Result<(), RelayError> {
    let Admission { caller, identity, registration: _registration } = admission;
    let connect = async |name| UnixStream::connect(inner.private.path(name)).await;
    match service {
        Service::Control => {
            let expected =
                Expected { socket: "DEALER", identity: Some(identity), traffic: Traffic::Messages };
            relay(stream, connect(CONTROL_SOCKET).await?, expected).await
        }
        Service::Publications => {
            // What other nodes do is not an agent's business.
            let only = (caller.role == Role::Agent).then_some(TOPIC_MANAGER);
            let traffic = Traffic::Subscriptions { only };
            let expected = Expected { socket: "SUB", identity: Some(identity), traffic };
            relay(stream, connect(PUBLICATIONS_SOCKET).await?, expected).await
        }
        Service::Heartbeats => {
            let (ours, theirs) = StdUnixStream::pair()?;
            if inner.heartbeats.send((caller, theirs)).is_err() {
                return Ok(()); // The manager stops.
            }
            ours.set_nonblocking(true)?;
            Ok(relay_plain(stream, UnixStream::from_std(ours)?).await?)
        }
        Service::Join => Ok(()),
    }
}
