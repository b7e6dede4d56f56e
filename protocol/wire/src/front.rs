//! The manager's front: the one port on the network, and the sockets on its own machine. Peers must
//! identify themselves first. Then the guard checks their messages, and the front passes them on,
//! through one shared connection to each of the manager's ZeroMQ sockets.

mod slots;
mod trunk;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_protocol::access::{Admitted, Caller, JoinRequest, Joined, PublicKey, Role};
use podmesh_protocol::codec::Message;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::TOPIC_MANAGER;
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::limits::{
    AGENT_UNREAD_BYTES_MAX, CLIENT_UNREAD_BYTES_MAX, HANDSHAKE_MS_MAX, PAUSE_UNREAD_BYTES,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
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
use slots::{Connections, Slot, Slots};
pub(crate) use trunk::FRONT_IDENTITY;
use trunk::{Registration, Subscriber, Trunk};

/// The pause after a connection could not be accepted, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The mode of the folder with the sockets for this machine. The sockets' own modes decide.
const LOCAL_DIR_MODE: u32 = 0o755;
/// How long a connection may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long a refused peer may take to read the reason.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// The proven identity of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The owner of a key, on the network.
    Key(PublicKey),
    /// A user of this machine who may use our sockets.
    User(u32),
}

/// The admission of a peer.
pub struct Admission {
    /// The caller.
    pub caller: Caller,
    /// The peer's identity on ROUTER, which was never used before.
    pub identity: [u8; 16],
    /// Called once, when the connection has ended.
    pub ended: OnEnd,
}

/// Called when a connection has ended, for any reason. True: it has sent messages to ROUTER, which
/// is informed of its end, too, after all its messages. False: ROUTER never hears of the
/// connection.
pub type OnEnd = Box<dyn FnOnce(bool) + Send + Sync>;

/// Decides who is admitted, and answers their heartbeats.
pub trait Gate: Send + Sync + 'static {
    /// Decides whether a peer may use a service. `cut` ends its connection at any time.
    ///
    /// # Errors
    /// The reply to a refused peer.
    fn admit(&self, who: Who, service: Service, cut: AbortHandle) -> Result<Admission, ErrorReply>;

    /// Decides whether the owner of a key may join. Returns its cluster, role and name.
    fn join(
        &self,
        key: PublicKey,
        request: JoinRequest,
    ) -> impl Future<Output = Result<(ClusterId, Role, Name), ErrorReply>> + Send;

    /// Answers the heartbeats of an admitted peer. The connection ends when this returns; `cut` ends
    /// both.
    fn heartbeats(
        &self,
        caller: Caller,
        stream: Box<dyn Duplex>,
        cut: AbortHandle,
    ) -> impl Future<Output = ()> + Send;

    /// Called when a connection was refused or cut off.
    fn refused(&self, from: Option<IpAddr>, why: &str);
}

/// The configuration of the front.
pub struct FrontConfig {
    /// The address on the network; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The manager's keys.
    pub keys: ShownKeys,
    /// The folder for the sockets of this machine.
    pub local_dir: PathBuf,
    /// The group whose members may use these sockets besides the owner.
    pub group: Option<u32>,
    /// The private folder for the sockets between the front and ZeroMQ.
    pub private_dir: PathBuf,
}

/// The listeners.
pub struct Front {
    address: SocketAddr,
    network: std::net::TcpListener,
    local: [(Service, StdUnixListener); 3],
    _local_dir: SocketDir,
    keys: ShownKeys,
    private: SocketDir,
    trunk: Arc<Trunk>,
}

/// The listeners for ZeroMQ: ROUTER and PUB.
pub struct InnerListeners {
    /// For ROUTER.
    pub control: StdUnixListener,
    /// For PUB.
    pub publications: StdUnixListener,
}

impl Front {
    /// Listens. Nobody is admitted before [`Front::run`].
    ///
    /// # Errors
    /// If an address or a folder cannot be used for listening.
    pub fn bind(config: FrontConfig) -> Result<(Self, InnerListeners), WireError> {
        let FrontConfig { listen: address, keys, local_dir, group, private_dir } = config;
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
        let bind = |name| local_sockets.bind_for(name, group).map_err(folder(&local_dir));
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
            private,
            trunk: Arc::new(Trunk::new()),
        };
        Ok((front, inner))
    }

    /// Returns the address on the network.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Admits peers until this is dropped.
    ///
    /// # Errors
    /// If a listener cannot be used, or ROUTER or PUB is gone.
    pub async fn run(self, gate: Arc<impl Gate>) -> io::Result<()> {
        self.network.set_nonblocking(true)?;
        let network = TcpListener::from_std(self.network)?;
        let open_files = machine::open_files();
        let mut listeners = JoinSet::new();
        let connections = Arc::new(Connections::new(open_files));
        let door = Door { gate, connections, trunk: Arc::clone(&self.trunk) };
        listeners.spawn(accept_network(network, self.keys, open_files, door.clone()));
        for (service, listener) in self.local {
            listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(listener)?;
            listeners.spawn(accept_local(listener, service, door.clone()));
        }
        let trunk = &self.trunk;
        let _closing = Closing(trunk);
        let (control, publications) =
            (self.private.path(CONTROL_SOCKET), self.private.path(PUBLICATIONS_SOCKET));
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

/// What each connection needs: the gate that decides about it, and the way to the manager.
struct Door<G> {
    gate: Arc<G>,
    connections: Arc<Connections>,
    trunk: Arc<Trunk>,
}

impl<G> Clone for Door<G> {
    fn clone(&self) -> Self {
        Self {
            gate: Arc::clone(&self.gate),
            connections: Arc::clone(&self.connections),
            trunk: Arc::clone(&self.trunk),
        }
    }
}

/// Starts the task of a connection, and gives it a handle to end itself.
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
    open_files: u64,
    door: Door<impl Gate>,
) {
    let slots = Arc::new(Slots::new(open_files));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                cannot_accept(&*door.gate, error).await;
                continue;
            }
        };
        let taken = door.connections.take_network();
        let (connection, slot) =
            match taken.and_then(|connection| Ok((connection, Slots::take(&slots, from)?))) {
                Ok(taken) => taken,
                Err(why) => {
                    door.gate.refused(Some(from), why);
                    continue; // Closed.
                }
            };
        let (keys, door) = (keys.clone(), door.clone());
        start(async move |own| {
            // Boxed, so that the memory of the handshake is freed after it.
            let result = match Box::pin(come_in(stream, &keys, own, slot, &door)).await {
                Ok(Some((stream, service, visitor))) => {
                    drop(keys);
                    visitor.serve(stream, service, &*door.gate).await
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            say(result, &*door.gate, Some(from));
            drop(connection);
        });
    }
}

/// Reports that a connection could not be accepted, and pauses.
async fn cannot_accept(gate: &impl Gate, error: io::Error) {
    gate.refused(None, &format!("cannot accept a connection: {error}"));
    sleep(ACCEPT_PAUSE).await;
}

/// Does the handshake of a connection from the network, and has the peer admitted. Returns `None` if
/// the peer joined, which ends the connection.
async fn come_in(
    stream: TcpStream,
    keys: &ShownKeys,
    own: AbortHandle,
    _slot: Slot,
    door: &Door<impl Gate>,
) -> Result<Option<(Box<dyn Duplex>, Service, Visitor)>, StreamError> {
    let limit = Duration::from_millis(HANDSHAKE_MS_MAX);
    let handshake = shake_hands(stream, TlsAcceptor::from(keys.tls()));
    let (mut stream, key, service) =
        timeout(limit, handshake).await.map_err(|_| StreamError::Slow)??;
    if service == Service::Join {
        join(stream, key, keys, &*door.gate, limit).await?;
        return Ok(None);
    }
    match door.gate.admit(Who::Key(key), service, own.clone()) {
        Ok(admission) => {
            let visitor = Visitor::new(admission, own, &door.trunk);
            let admitted = Ok::<_, ErrorReply>(Admitted { manager: keys.digests().into() });
            let said = write_framed(&mut stream, &admitted);
            timeout(limit, said).await.map_err(|_| StreamError::Slow)??;
            Ok(Some((Box::new(stream), service, visitor)))
        }
        Err(error) => {
            let why = error.to_string();
            tell(&mut stream, &Err::<Admitted, _>(error)).await;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why).into())
        }
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
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no key, or an unknown service")),
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

/// Sends a last message.
async fn tell<T: Message>(stream: &mut TlsStream<TcpStream>, message: &T) {
    // A peer that does not listen does not get it.
    _ = timeout(REFUSAL_LIMIT, async {
        write_framed(stream, message).await?;
        stream.shutdown().await
    })
    .await;
}

async fn accept_local(listener: UnixListener, service: Service, door: Door<impl Gate>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                cannot_accept(&*door.gate, error).await;
                continue;
            }
        };
        let connection = match door.connections.take_local() {
            Ok(connection) => connection,
            Err(why) => {
                door.gate.refused(None, why);
                continue; // Closed.
            }
        };
        let door = door.clone();
        start(async move |own| {
            let result = async {
                let user = stream.peer_cred()?.uid();
                match door.gate.admit(Who::User(user), service, own.clone()) {
                    Ok(admission) => {
                        let visitor = Visitor::new(admission, own, &door.trunk);
                        visitor.serve(Box::new(stream), service, &*door.gate).await
                    }
                    Err(error) => {
                        let kind = io::ErrorKind::PermissionDenied;
                        Err(io::Error::new(kind, error.to_string()).into())
                    }
                }
            };
            say(result.await, &*door.gate, None);
            drop(connection);
        });
    }
}

/// Reports a connection that was cut off. A peer that leaves by itself was not, however abruptly.
fn say(result: Result<(), StreamError>, gate: &impl Gate, from: Option<IpAddr>) {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match result {
        Ok(()) => {}
        Err(StreamError::Io(error))
            if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        Err(error) => gate.refused(from, &error.to_string()),
    }
}

/// An admitted peer.
struct Visitor {
    caller: Caller,
    registration: Registration,
    own: AbortHandle,
}

impl Visitor {
    fn new(admission: Admission, own: AbortHandle, trunk: &Arc<Trunk>) -> Self {
        let Admission { caller, identity, ended } = admission;
        let registration = Registration::new(Arc::clone(trunk), identity, ended);
        Self { caller, registration, own }
    }

    /// Serves the connection until it ends.
    async fn serve(
        self,
        stream: Box<dyn Duplex>,
        service: Service,
        gate: &impl Gate,
    ) -> Result<(), StreamError> {
        match service {
            Service::Control => self.serve_control(stream).await,
            Service::Publications => self.serve_publications(stream).await,
            Service::Heartbeats => {
                let Self { caller, registration: _registration, own, .. } = self;
                gate.heartbeats(caller, stream, own).await;
                Ok(())
            }
            Service::Join => Ok(()),
        }
    }

    /// Acts as ROUTER at the other end of the connection.
    async fn serve_control(self, mut stream: Box<dyn Duplex>) -> Result<(), StreamError> {
        handshake(&mut stream, "ROUTER", "DEALER", b"").await?;
        let (limit, name) = if self.caller.role.includes(Role::Agent) {
            (AGENT_UNREAD_BYTES_MAX, "AGENT_UNREAD_BYTES_MAX")
        } else {
            (CLIENT_UNREAD_BYTES_MAX, "CLIENT_UNREAD_BYTES_MAX")
        };
        let outbox = Arc::new(Outbox::new(limit));
        self.registration.add_control(Arc::clone(&outbox));
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        let read = async {
            loop {
                // Nothing is read from a peer that does not read.
                outbox.has_drained_to(PAUSE_UNREAD_BYTES).await;
                let Some(message) = reader.next().await? else { return Ok(()) };
                self.registration.send(message).await;
            }
        };
        let result = tokio::select! {
            result = read => result,
            result = outbox.write_to(&mut writer) => result.map_err(StreamError::from),
            bytes = outbox.has_overflown() => {
                Err(StreamError::Unread { bytes, limit: limit as usize, name })
            }
        };
        // Closes the stream properly; if the peer does not listen, the connection is dropped.
        _ = timeout(CLOSE_LIMIT, writer.shutdown()).await;
        result
    }

    /// Acts as PUB at the other end of the connection.
    async fn serve_publications(self, mut stream: Box<dyn Duplex>) -> Result<(), StreamError> {
        handshake(&mut stream, "PUB", "SUB", b"").await?;
        // Agents must not see what other nodes do.
        let only = (self.caller.role == Role::Agent).then_some(TOPIC_MANAGER);
        let subscriber = Arc::new(Subscriber::new());
        self.registration.add_subscriber(Arc::clone(&subscriber));
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
}
