//! What can go wrong on the wire.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_protocol::codec::{DecodeError, EncodeError};
use podmesh_protocol::error::ErrorReply;
use zeromq::ZmqError;

use crate::address::{ManagerAddress, ParseAddressError};
use crate::key::KeyError;
use crate::route::Route;
use crate::stream::StreamError;

/// What went wrong on the wire.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A folder cannot hold sockets.
    #[error("cannot make sockets in {}: {source}", dir.display())]
    SocketDir {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No manager on this machine uses a folder.
    #[error("no manager answers in {}: {source}", dir.display())]
    NoLocalManager {
        /// The folder of its sockets.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no address to try.
    #[error("no address of the manager is known")]
    NoAddress,
    /// A text is no address.
    #[error(transparent)]
    Address(#[from] ParseAddressError),
    /// The other end has another key than the manager.
    #[error(
        "who answers at {address} has another key than the manager that was joined: if the manager was set up anew, join again with a new token; if not, somebody else answers there"
    )]
    WrongKey {
        /// Where.
        address: ManagerAddress,
    },
    /// The other end does not speak as a manager does.
    #[error("what answers at {address} is no podmesh manager, or one of another version")]
    NotAManager {
        /// Where.
        address: ManagerAddress,
    },
    /// The manager lets nobody with this key in.
    #[error("the manager at {address} refuses: {error}")]
    Refused {
        /// Where.
        address: ManagerAddress,
        /// Why.
        error: ErrorReply,
    },
    /// One's own key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    /// Nobody answers at an address.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Which.
        address: ManagerAddress,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers, but not as a manager would.
    #[error("{route} does not answer as a podmesh manager does: {why}")]
    Handshake {
        /// How it was tried.
        route: String,
        /// What it did.
        why: String,
    },
    /// An answer did not come in time.
    #[error("{what} took longer than {} s", limit.as_secs_f32())]
    Timeout {
        /// Of what.
        what: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// The connection ended.
    #[error("the connection has ended")]
    Disconnected,
    /// The peer's connection has ended.
    #[error("the peer's connection has ended")]
    PeerGone,
    /// A message of more or fewer frames than one has.
    #[error("a message of {frames} frames, where {expected} are expected")]
    Frames {
        /// How many came.
        frames: usize,
        /// How many there should be.
        expected: usize,
    },
    /// Bytes that are no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message that cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A frame on the heartbeat stream that is none.
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

    /// Why a connection cannot be read.
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
