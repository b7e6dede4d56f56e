//! The ways to a manager: over the network by TLS, or on its own machine by its unix sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podmesh_protocol::access::{Admitted, JoinRequest, JoinToken, Joined, KeyDigest};
use podmesh_protocol::codec;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{MANAGER_KEYS_MAX, PROTOCOL_VERSION};
use serde::Serialize;
use serde::de::DeserializeOwned;
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
/// Bytes of a message outside of ZMTP at the most.
const FRAMED_BYTES_MAX: usize = 16 << 10;

/// Where on its own machine a manager is reached: the sockets' names in its folder.
pub const CONTROL_SOCKET: &str = "control.sock";
/// See [`CONTROL_SOCKET`].
pub const PUBLICATIONS_SOCKET: &str = "publications.sock";
/// See [`CONTROL_SOCKET`].
pub const HEARTBEATS_SOCKET: &str = "heartbeats.sock";

/// A way to a manager.
#[derive(Clone, Debug)]
pub enum Route {
    /// By the unix sockets in this folder of a manager on this machine. Who one is, the system
    /// says.
    Local(PathBuf),
    /// Over the network.
    Remote {
        /// Where it may be; tried in this order.
        addresses: Vec<ManagerAddress>,
        /// Who one is, and whose manager it must be.
        credentials: Arc<Credentials>,
    },
}

/// Who one is, and which manager is meant.
#[derive(Debug)]
pub struct Credentials {
    own: OwnKey,
    /// The digests of keys that the manager may have.
    manager: Mutex<Vec<KeyDigest>>,
}

#[derive(Debug)]
enum OwnKey {
    Given(Arc<KeyPair>),
    /// In the folder of an enrolment. It is read for each connection: it may have been renewed.
    Kept(PathBuf),
}

impl Credentials {
    /// With a key and the digests of keys that the manager may have; nothing is kept.
    pub fn new(key: KeyPair, manager: Vec<KeyDigest>) -> Self {
        Self { own: OwnKey::Given(Arc::new(key)), manager: Mutex::new(manager) }
    }

    /// Those of an enrolment's folder, where the manager's further keys are kept, too.
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
        // No code that can panic runs while it is held.
        self.manager.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manager, which has shown one of the keys that were known, says which it may have.
    fn learn(&self, digests: Vec<KeyDigest>) {
        let mut known = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = !digests.is_empty() && digests.len() <= MANAGER_KEYS_MAX;
        if !usable || *known == digests {
            return;
        }
        if let OwnKey::Kept(dir) = &self.own
            && let Err(error) = Enrolment::learn(dir, &digests)
        {
            tracing::warn!(%error, "the manager's next key could not be kept");
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

/// A stream both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The socket file of a service.
fn socket_of(service: Service) -> &'static str {
    match service {
        Service::Control | Service::Join => CONTROL_SOCKET,
        Service::Publications => PUBLICATIONS_SOCKET,
        Service::Heartbeats => HEARTBEATS_SOCKET,
    }
}

impl Route {
    /// A stream of heartbeats, for [`crate::heartbeat`].
    ///
    /// # Errors
    /// When the manager is not there, or refuses.
    pub async fn heartbeats(&self) -> Result<Box<dyn Duplex>, WireError> {
        self.open(Service::Heartbeats).await
    }

    /// A connection for a service.
    pub(crate) async fn open(&self, service: Service) -> Result<Box<dyn Duplex>, WireError> {
        match self {
            Self::Local(dir) => {
                let sockets = open_local(dir)?;
                let stream = UnixStream::connect(sockets.path(socket_of(service))).await;
                Ok(Box::new(stream.map_err(|source| no_manager(dir, source))?))
            }
            Self::Remote { addresses, credentials } => {
                Ok(Box::new(open(addresses, credentials, service).await?))
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

/// Connects to the first address at which the manager is.
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

/// What went wrong at the addresses that were tried.
#[derive(Default)]
struct Failed(Option<WireError>);

impl Failed {
    /// Notes an error; gives it back when no other address is worth a try.
    fn note(&mut self, error: WireError) -> Result<(), WireError> {
        match (&self.0, error) {
            // It is the manager, and its word counts.
            (_, error @ WireError::Refused { .. }) => Err(error),
            // That nobody is at one address says less than what went wrong at another.
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

/// Bounds a step of a connection.
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
    // Without it a small message could wait for the acknowledgement of the one before.
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

/// Joins a cluster with a token: from then on the manager knows the key. Gives the addresses of
/// the token, that at which the manager was met first.
///
/// # Errors
/// When the manager cannot be met, has another key than the token says, or refuses.
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
        version: PROTOCOL_VERSION,
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

/// Writes a message that stands outside of ZMTP: a 32-bit big-endian length, MessagePack.
pub(crate) async fn write_framed<T: Serialize>(
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
pub(crate) async fn read_framed<T: DeserializeOwned>(
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
