//! Errors of the transport.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_protocol::client::RequestHead;
use podmesh_protocol::codec::{DecodeError, EncodeError};
use podmesh_protocol::error::ErrorReply;
use zeromq::ZmqError;

use crate::address::{ManagerAddress, ParseAddressError};
use crate::key::KeyError;
use crate::route::Route;
use crate::stream::StreamError;

/// Formats an error with all its causes. The outermost alone say little ("client error").
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// An error of the transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// An address cannot be used for listening.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A folder cannot be used for sockets.
    #[error("cannot create sockets in {}: {source}", dir.display())]
    SocketDir {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No manager on this machine uses this folder.
    #[error("no manager answers in {}: {source}", dir.display())]
    NoLocalManager {
        /// The folder of its sockets.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no address of the manager.
    #[error("no address of the manager is known")]
    NoAddress,
    /// A text is not an address.
    #[error(transparent)]
    Address(#[from] ParseAddressError),
    /// The server has another key than the manager.
    #[error(
        "the server at {address} has another key than the manager that was joined: if the manager was reinstalled, join again with a new token; otherwise this is not your manager"
    )]
    WrongKey {
        /// The address.
        address: ManagerAddress,
    },
    /// The server does not behave like a manager.
    #[error("the server at {address} is not a podmesh manager, or has another version")]
    NotAManager {
        /// The address.
        address: ManagerAddress,
    },
    /// The manager refuses this key.
    #[error("the manager at {address} refused the connection: {error}")]
    Refused {
        /// The address.
        address: ManagerAddress,
        /// The reason.
        error: ErrorReply,
    },
    /// The own key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    /// The connection to an address failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: ManagerAddress,
        /// The cause.
        source: io::Error,
    },
    /// There is a server, but its handshake is not that of a manager.
    #[error("the handshake with the manager at {route} failed: {why}")]
    Handshake {
        /// The route.
        route: String,
        /// What went wrong.
        why: String,
    },
    /// A reply did not arrive in time.
    #[error("{what} took longer than {} s", limit.as_secs_f32())]
    Timeout {
        /// What took too long.
        what: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The connection ended.
    #[error("the connection has ended")]
    Disconnected,
    /// The peer's connection has ended.
    #[error("the peer's connection has ended")]
    PeerGone,
    /// A message has the wrong number of frames.
    #[error("a message has {frames} frames instead of {expected}")]
    Frames {
        /// The actual number.
        frames: usize,
        /// The expected number.
        expected: usize,
    },
    /// Bytes that are not a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A request with a body that cannot be decoded; it may be of a later version.
    #[error("the request of version {} cannot be read: {source}", head.version)]
    RequestBody {
        /// Which request it is.
        head: RequestHead,
        /// The cause.
        source: DecodeError,
    },
    /// A message that cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A frame on the heartbeat stream that is not a heartbeat.
    #[error("not a heartbeat: it begins with {found:?}")]
    NotAHeartbeat {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// ZeroMQ failed.
    #[error("{0}")]
    Zmq(ZmqError),
}

impl WireError {
    pub(crate) fn handshake(route: &Route, error: StreamError) -> Self {
        Self::Handshake { route: route.to_string(), why: error.to_string() }
    }

    /// Converts an error of reading from a connection.
    pub(crate) fn broken(error: StreamError) -> Self {
        match error {
            StreamError::Io(_) => Self::Disconnected,
            other => Self::Io(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }
}

impl From<ZmqError> for WireError {
    fn from(error: ZmqError) -> Self {
        match error {
            ZmqError::Network(error) => Self::Io(error),
            ZmqError::NoMessage => Self::Disconnected,
            other => Self::Zmq(other),
        }
    }
}
