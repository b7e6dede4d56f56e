//! Moves bytes between the network and a ZeroMQ socket of this process.

use std::io;
use std::time::Duration;

use podmesh_protocol::limits::HANDSHAKE_MS_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::zmtp::{
    GREETING_BYTES, Inspector, Traffic, Violation, check_greeting, command_length, ready_frame,
    socket_type,
};

/// The buffer of a direction in which little goes on.
const BUFFER_BYTES: usize = 4 << 10;
/// And of one that is busy.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// How long the end of a connection may take to be told.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Why a relay ended before its connection did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The other end broke a rule.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The other end took too long over its handshake.
    #[error("the ZMTP handshake took longer than {HANDSHAKE_MS_MAX} ms (HANDSHAKE_MS_MAX)")]
    Slow,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is expected of the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The kind of its socket.
    pub(crate) socket: &'static str,
    /// When given, the identity that it has for our socket, whatever it says.
    pub(crate) identity: Option<[u8; 16]>,
    /// What may come.
    pub(crate) traffic: Traffic,
}

/// Relays until one end closes, or the other end of `net` breaks a rule.
pub(crate) async fn relay<N, I>(net: N, inner: I, expected: Expected) -> Result<(), RelayError>
where
    N: AsyncRead + AsyncWrite,
    I: AsyncRead + AsyncWrite,
{
    let (net_reader, mut net_writer) = tokio::io::split(net);
    let (inner_reader, mut inner_writer) = tokio::io::split(inner);
    let result = tokio::select! {
        result = guarded(net_reader, &mut inner_writer, expected) => result,
        // What our own socket writes needs no guard.
        result = copy(inner_reader, &mut net_writer) => result.map_err(Into::into),
    };
    // Tells the other end; where it does not listen, the connection is dropped.
    _ = timeout(CLOSE_LIMIT, net_writer.shutdown()).await;
    result
}

/// Relays what is no ZMTP, and short.
pub(crate) async fn relay_plain<N, I>(mut net: N, mut inner: I) -> io::Result<()>
where
    N: AsyncRead + AsyncWrite + Unpin,
    I: AsyncRead + AsyncWrite + Unpin,
{
    let limit = 256;
    tokio::io::copy_bidirectional_with_sizes(&mut net, &mut inner, limit, limit).await.map(drop)
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        grow(&mut buffer, count);
    }
}

/// A buffer that was filled may be too small.
fn grow(buffer: &mut Vec<u8>, filled: usize) {
    if filled == buffer.len() && filled < BUFFER_BYTES_MAX {
        buffer.resize(BUFFER_BYTES_MAX.min(4 * filled), 0);
    }
}

async fn guarded(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    expected: Expected,
) -> Result<(), RelayError> {
    let handshake = handshake(&mut from, to, expected);
    match timeout(Duration::from_millis(HANDSHAKE_MS_MAX), handshake).await {
        Ok(result) => result?,
        Err(_) => return Err(RelayError::Slow),
    }
    let mut inspector = Inspector::new(expected.traffic);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut held = 0;
    loop {
        let count = from.read(&mut buffer[held..]).await?;
        if count == 0 {
            return Ok(());
        }
        let filled = held + count;
        let passed = inspector.inspect(&buffer[..filled])?;
        to.write_all(&buffer[..passed]).await?;
        buffer.copy_within(passed..filled, 0);
        held = filled - passed;
        grow(&mut buffer, filled);
    }
}

/// Measures greeting and READY before anything is read on.
async fn handshake(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    expected: Expected,
) -> Result<(), RelayError> {
    let mut greeting = [0; GREETING_BYTES];
    from.read_exact(&mut greeting).await?;
    check_greeting(&greeting)?;
    to.write_all(&greeting).await?;
    let mut ready = Vec::new();
    let (header, body) = loop {
        ready.push(from.read_u8().await?);
        if let Some(lengths) = command_length(&ready)? {
            break lengths;
        }
    };
    ready.resize(header + body, 0);
    from.read_exact(&mut ready[header..]).await?;
    let socket = socket_type(&ready[header..])?;
    if socket != expected.socket {
        // Short: the whole command is.
        return Err(Violation::SocketType(socket.escape_debug().to_string()).into());
    }
    // Of our own making: an identity or other property of the peer's does not come through.
    let identity = expected.identity.as_ref().map_or(&[][..], |identity| &identity[..]);
    to.write_all(&ready_frame(socket, identity)).await?;
    Ok(())
}
