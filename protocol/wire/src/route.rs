//! The routes to a manager: over the network by TLS, or on its own machine by its unix sockets.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podmesh_protocol::access::{Admitted, JoinRequest, JoinToken, Joined, KeyDigest};
use podmesh_protocol::codec::{self, Message};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::MANAGER_KEYS_MAX;
use podmesh_protocol::version::VersionRange;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::address::ManagerAddress;
use crate::enrolment::{Enrolment, KEY_FILE};
use crate::error::WireError;
use crate::key::{KeyError, KeyPair};
use crate::socket_dir::SocketDir;
use crate::tls::{self, Service};

/// How long a connection with its handshake may take.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The maximum size of a message outside ZMTP in bytes.
const FRAMED_BYTES_MAX: usize = 16 << 10;

/// The names of the sockets in the manager's folder on its own machine.
pub const CONTROL_SOCKET: &str = "control.sock";
/// See [`CONTROL_SOCKET`].
pub const PUBLICATIONS_SOCKET: &str = "publications.sock";
/// See [`CONTROL_SOCKET`].
pub const HEARTBEATS_SOCKET: &str = "heartbeats.sock";
/// The socket of the HTTP API.
pub const HTTP_SOCKET: &str = "http.sock";

/// A route to a manager.
#[derive(Clone, Debug)]
pub enum Route {
    /// By the unix sockets in this folder of a manager on this machine. The system identifies the
    /// user.
    Local(PathBuf),
    /// Over the network.
    Remote {
        /// The addresses, in the order in which to try them.
        addresses: Vec<ManagerAddress>,
        /// The own key, and the keys that the manager may have.
        credentials: Arc<Credentials>,
    },
}

/// The own key, and the keys that the manager may have.
#[derive(Debug)]
pub struct Credentials {
    own: OwnKey,
    /// The digests of keys that the manager may have.
    manager: Mutex<Vec<KeyDigest>>,
}

#[derive(Debug)]
enum OwnKey {
    Given(Arc<KeyPair>),
    /// In the folder of an enrolment. It is read for each connection, because it may have been
    /// renewed.
    Kept(PathBuf),
}

impl Credentials {
    /// Creates credentials with a key and the digests of keys that the manager may have; nothing is
    /// saved.
    pub fn new(key: KeyPair, manager: Vec<KeyDigest>) -> Self {
        Self { own: OwnKey::Given(Arc::new(key)), manager: Mutex::new(manager) }
    }

    /// Creates the credentials of an enrolment's folder, where new keys of the manager are saved,
    /// too.
    pub(crate) fn kept_in(dir: &Path, manager: Vec<KeyDigest>) -> Self {
        Self { own: OwnKey::Kept(dir.into()), manager: Mutex::new(manager) }
    }

    fn key(&self) -> Result<Arc<KeyPair>, KeyError> {
        match &self.own {
            OwnKey::Given(key) => Ok(Arc::clone(key)),
            OwnKey::Kept(dir) => KeyPair::load(&dir.join(KEY_FILE)).map(Arc::new),
        }
    }

    fn manager(&self) -> Vec<KeyDigest> {
        // No code that can panic runs under this lock.
        self.manager.lock().clone()
    }

    /// Records the keys that the manager may have next. The manager itself, identified by a known
    /// key, announced them.
    fn learn(&self, digests: Vec<KeyDigest>) {
        let mut known = self.manager.lock();
        let usable = !digests.is_empty() && digests.len() <= MANAGER_KEYS_MAX;
        if !usable || *known == digests {
            return;
        }
        if let OwnKey::Kept(dir) = &self.own
            && let Err(error) = Enrolment::learn(dir, &digests)
        {
            tracing::warn!(%error, "cannot save the manager's next key");
        }
        *known = digests;
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(dir) => write!(f, "{}", dir.display()),
            Self::Remote { addresses, .. } => {
                for (n, address) in addresses.iter().enumerate() {
                    write!(f, "{}{address}", if n > 0 { " or " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// A bidirectional stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Returns the socket file of a service.
fn socket_of(service: Service) -> &'static str {
    match service {
        Service::Control | Service::Join => CONTROL_SOCKET,
        Service::Publications => PUBLICATIONS_SOCKET,
        Service::Heartbeats => HEARTBEATS_SOCKET,
    }
}

impl Route {
    /// Opens a stream of heartbeats, for [`crate::heartbeat`].
    ///
    /// # Errors
    /// If the manager is not there, or refuses.
    pub async fn heartbeats(&self) -> Result<Box<dyn Duplex>, WireError> {
        Ok(self.open(Service::Heartbeats).await?.0)
    }

    /// Opens a connection for a service. Over the network, also returns this machine's address of
    /// it.
    pub(crate) async fn open(
        &self,
        service: Service,
    ) -> Result<(Box<dyn Duplex>, Option<IpAddr>), WireError> {
        match self {
            Self::Local(dir) => {
                let sockets = open_local(dir)?;
                let stream = UnixStream::connect(sockets.path(socket_of(service))).await;
                Ok((Box::new(stream.map_err(|source| no_manager(dir, source))?), None))
            }
            Self::Remote { addresses, credentials } => {
                let stream = open(addresses, credentials, service).await?;
                let local = stream.get_ref().0.local_addr().map(|address| address.ip());
                Ok((Box::new(stream), local.ok()))
            }
        }
    }
}

fn open_local(dir: &Path) -> Result<SocketDir, WireError> {
    SocketDir::open(dir).map_err(|source| no_manager(dir, source))
}

fn no_manager(dir: &Path, source: io::Error) -> WireError {
    WireError::NoLocalManager { dir: dir.into(), source }
}

/// Connects to the first address at which the manager is found.
async fn open(
    addresses: &[ManagerAddress],
    credentials: &Credentials,
    service: Service,
) -> Result<TlsStream<TcpStream>, WireError> {
    let mut failed = Failed::default();
    for address in addresses {
        match open_at(address, credentials, service).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed.note(error)?,
        }
    }
    Err(failed.into())
}

async fn open_at(
    address: &ManagerAddress,
    credentials: &Credentials,
    service: Service,
) -> Result<TlsStream<TcpStream>, WireError> {
    let key = credentials.key()?;
    let mut stream = handshake(address, &key, &credentials.manager(), service).await?;
    let admission: Result<Admitted, ErrorReply> = within(address, read_framed(&mut stream)).await?;
    let admitted =
        admission.map_err(|error| WireError::Refused { address: address.clone(), error })?;
    credentials.learn(admitted.manager);
    Ok(stream)
}

/// The error of the addresses tried so far.
#[derive(Default)]
struct Failed(Option<WireError>);

impl Failed {
    /// Records an error; returns it if it is useless to try another address.
    fn note(&mut self, error: WireError) -> Result<(), WireError> {
        match (&self.0, error) {
            // It is the manager, and its decision is final.
            (_, error @ WireError::Refused { .. }) => Err(error),
            // A failed connection is less informative than an error at another address.
            (None | Some(WireError::Connect { .. }), error) => {
                self.0 = Some(error);
                Ok(())
            }
            (Some(_), _) => Ok(()),
        }
    }
}

impl From<Failed> for WireError {
    fn from(failed: Failed) -> Self {
        failed.0.unwrap_or(Self::NoAddress)
    }
}

/// Limits the time of a step of a connection.
async fn within<T>(
    address: &ManagerAddress,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, WireError> {
    let error = |source| WireError::Connect { address: address.clone(), source };
    match timeout(CONNECT_LIMIT, step).await {
        Ok(result) => result.map_err(error),
        Err(_) => Err(error(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_LIMIT.as_secs()),
        ))),
    }
}

async fn handshake(
    address: &ManagerAddress,
    key: &KeyPair,
    pins: &[KeyDigest],
    service: Service,
) -> Result<TlsStream<TcpStream>, WireError> {
    let config = tls::client_config(key, pins, service).map_err(WireError::Tls)?;
    let stream = within(address, TcpStream::connect((address.host.as_str(), address.port))).await?;
    // Otherwise a small message could wait for the acknowledgement of the previous one.
    stream.set_nodelay(true)?;
    let connect = TlsConnector::from(config).connect(tls::server_name(), stream);
    let stream = match within(address, connect).await {
        Err(WireError::Connect { address, source }) => return Err(tls_error(address, source)),
        other => other?,
    };
    if stream.get_ref().1.alpn_protocol() != Some(service.alpn().as_bytes()) {
        return Err(WireError::NotAManager { address: address.clone() });
    }
    Ok(stream)
}

fn tls_error(address: ManagerAddress, source: io::Error) -> WireError {
    use rustls::CertificateError::ApplicationVerificationFailure;
    use rustls::Error::InvalidCertificate;
    match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(InvalidCertificate(ApplicationVerificationFailure)) => WireError::WrongKey { address },
        Some(_) => WireError::NotAManager { address },
        None => WireError::Connect { address, source },
    }
}

/// Joins a cluster with a token: from then on the manager knows the key. Returns the addresses of
/// the token, beginning with the one at which the manager was found.
///
/// # Errors
/// If the manager cannot be reached, has another key than in the token, or refuses.
pub async fn join(
    token: &JoinToken,
    key: &KeyPair,
    name: &Name,
) -> Result<(Joined, Vec<ManagerAddress>), WireError> {
    let mut addresses = Vec::new();
    for address in &token.addresses {
        addresses.push(address.parse::<ManagerAddress>()?);
    }
    let request = JoinRequest {
        version: VersionRange::SPOKEN.newest,
        version_oldest: Some(VersionRange::SPOKEN.oldest),
        token: token.id,
        secret: token.secret.clone(),
        name: name.clone(),
    };
    let mut failed = Failed::default();
    for met in &addresses {
        match join_at(met, key, token.manager, &request).await {
            Ok(joined) => {
                let others = addresses.iter().filter(|address| *address != met);
                let addresses = std::iter::once(met).chain(others).cloned().collect();
                return Ok((joined, addresses));
            }
            Err(error) => failed.note(error)?,
        }
    }
    Err(failed.into())
}

async fn join_at(
    address: &ManagerAddress,
    key: &KeyPair,
    manager: KeyDigest,
    request: &JoinRequest,
) -> Result<Joined, WireError> {
    let mut stream = handshake(address, key, &[manager], Service::Join).await?;
    within(address, write_framed(&mut stream, request)).await?;
    let joined: Result<Joined, ErrorReply> = within(address, read_framed(&mut stream)).await?;
    joined.map_err(|error| WireError::Refused { address: address.clone(), error })
}

/// Writes a message outside ZMTP: a 32-bit big-endian length, then MessagePack.
pub(crate) async fn write_framed<T: Message>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let body = codec::encode(message).map_err(io::Error::other)?;
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(body);
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// Reads such a message.
pub(crate) async fn read_framed<T: Message>(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let length = reader.read_u32().await? as usize;
    if length > FRAMED_BYTES_MAX {
        let why = format!("a message of {length} bytes is over the limit of {FRAMED_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    codec::decode(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
