//! What can go wrong on the wire.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use podmesh_protocol::codec::{DecodeError, EncodeError};
use zeromq::ZmqError;

use crate::address::ManagerAddress;

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
    /// Nobody answers at an address.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Which.
        address: ManagerAddress,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers at an address, but not as a manager would.
    #[error("{address} does not answer as a podmesh manager does: {source}")]
    Handshake {
        /// Which.
        address: ManagerAddress,
        /// What it did.
        source: ZmqError,
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

impl From<ZmqError> for WireError {
    fn from(error: ZmqError) -> Self {
        match error {
            ZmqError::Network(error) => Self::Io(error),
            ZmqError::NoMessage => Self::Disconnected,
            other => Self::Zmq(other),
        }
    }
}
