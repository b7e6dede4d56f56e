//! Why the server cannot start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An address beyond loopback without TLS.
    #[error(
        "HTTP on {address} would send tokens in the clear over the network: give a certificate (--http-cert, --http-key), or a loopback address such as 127.0.0.1:{}", address.port()
    )]
    Insecure {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be used.
    #[error("HTTP cannot listen on {address}: {source}; choose another address (--http)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the file {} cannot be used for HTTPS: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The unix socket cannot be used.
    #[error("the unix socket for HTTP cannot be used: {0}")]
    Unix(io::Error),
}
