//! ZMTP 3.0 (RFC 23) over a stream: the handshake, and messages that the guard checks on arrival.
//!
//! Both ends of every connection between processes use this module: the manager's front and its
//! peers. ZeroMQ's own sockets never see these connections (see [`crate::control`]).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use podmesh_protocol::limits::HANDSHAKE_MS_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::guard::zmtp::{
    GREETING, GREETING_BYTES, Inspector, Traffic, Violation, check_greeting, command_length,
    complete_frame, ready_frame, socket_type,
};

/// The free buffer space for a connection on which little arrives.
const READ_BYTES: usize = 512;
/// The same for a busy connection.
const READ_BYTES_MAX: usize = 64 << 10;

/// The reason why a connection ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The peer broke a rule.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The handshake took too long.
    #[error("the handshake took longer than {HANDSHAKE_MS_MAX} ms (HANDSHAKE_MS_MAX)")]
    Slow,
    /// The peer reads too slowly.
    #[error("{bytes} bytes were not read, over the limit of {limit} ({name})")]
    Unread {
        /// The number of waiting bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
        /// The name of the limit.
        name: &'static str,
    },
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Does the handshake as a socket of type `ours` with a socket of type `theirs`. `identity` is our
/// identity for ROUTER; if it is empty, ROUTER chooses one.
///
/// # Errors
/// If the peer breaks a rule, or takes longer than [`HANDSHAKE_MS_MAX`].
pub(crate) async fn handshake(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ours: &'static str,
    theirs: &'static str,
    identity: &[u8],
) -> Result<(), StreamError> {
    let exchange = async {
        // Sent at once: libzmq sends the second half of its greeting after it has received our
        // first half.
        stream.write_all(&GREETING).await?;
        stream.flush().await?;
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).await?;
        check_greeting(&greeting)?;
        stream.write_all(&ready_frame(ours, identity)).await?;
        stream.flush().await?;
        let mut ready = Vec::new();
        let (header, body) = loop {
            ready.push(stream.read_u8().await?);
            if let Some(lengths) = command_length(&ready)? {
                break lengths;
            }
        };
        ready.resize(header + body, 0);
        stream.read_exact(&mut ready[header..]).await?;
        let socket = socket_type(&ready[header..])?;
        if socket != theirs {
            // Short, because the whole command is.
            return Err(Violation::SocketType(socket.escape_debug().to_string()).into());
        }
        Ok(())
    };
    match timeout(Duration::from_millis(HANDSHAKE_MS_MAX), exchange).await {
        Ok(result) => result,
        Err(_) => Err(StreamError::Slow),
    }
}

/// Reads messages after the handshake.
pub(crate) struct MessageReader<R> {
    from: R,
    buffer: BytesMut,
    /// The number of bytes in the buffer that the guard has accepted.
    passed: usize,
    inspector: Inspector,
    /// The frames so far of the current message.
    frames: Vec<Bytes>,
    read_bytes: usize,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads the traffic that the guard accepts as `traffic`.
    pub(crate) fn new(from: R, traffic: Traffic) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            passed: 0,
            inspector: Inspector::new(traffic),
            frames: Vec::new(),
            read_bytes: READ_BYTES,
        }
    }

    /// Returns the frames of the next message; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// If the peer breaks a rule, or the stream fails or ends inside a message.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Bytes>>, StreamError> {
        loop {
            while let Some((more, body)) = complete_frame(&self.buffer[..self.passed]) {
                let mut frame = self.buffer.split_to(body.end);
                self.passed -= body.end;
                self.frames.push(frame.split_off(body.start).freeze());
                if !more {
                    return Ok(Some(std::mem::take(&mut self.frames)));
                }
            }
            if self.buffer.is_empty() {
                // An idle connection keeps no large buffer.
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(self.read_bytes);
            let room = self.buffer.capacity() - self.buffer.len();
            let count = self.from.read_buf(&mut self.buffer).await?;
            if count == 0 {
                let whole = self.buffer.is_empty() && self.frames.is_empty();
                return if whole {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
            self.read_bytes =
                if count < room { READ_BYTES } else { READ_BYTES_MAX.min(4 * self.read_bytes) };
            self.passed += self.inspector.inspect(&self.buffer[self.passed..])?;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::limits::FRAME_BYTES_MAX;
    use tokio::io::duplex;

    use super::*;
    use crate::guard::zmtp::frame_header;

    fn message(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (n, frame) in frames.iter().enumerate() {
            bytes.extend(frame_header(frame.len(), n + 1 < frames.len()).as_ref());
            bytes.extend(*frame);
        }
        bytes
    }

    #[tokio::test]
    async fn messages_arrive_complete_in_pieces_of_any_size() {
        let large = vec![7; 100_000];
        let sent: [&[&[u8]]; 4] = [&[b"a"], &[b"b", b"c"], &[b""], &[&large]];
        let bytes: Vec<u8> = sent.iter().flat_map(|frames| message(frames)).collect();
        for step in [1, 2, 7, 4096, bytes.len()] {
            let (mut writer, reader) = duplex(64);
            let bytes = bytes.clone();
            let write = tokio::spawn(async move {
                for part in bytes.chunks(step) {
                    writer.write_all(part).await.unwrap();
                }
            });
            let mut reader = MessageReader::new(reader, Traffic::Messages);
            for frames in sent {
                assert_eq!(reader.next().await.unwrap().unwrap(), frames);
            }
            assert!(reader.next().await.unwrap().is_none());
            write.await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_excessive_length_is_refused_before_memory_is_allocated() {
        let (mut writer, reader) = duplex(64);
        writer.write_all(&frame_header(FRAME_BYTES_MAX + 1, false).as_ref()[..9]).await.unwrap();
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        assert!(matches!(reader.next().await, Err(StreamError::Violation(_))));
        assert!(reader.buffer.capacity() <= READ_BYTES);
    }

    #[tokio::test]
    async fn an_end_inside_a_message_is_an_error() {
        let (mut writer, reader) = duplex(64);
        writer.write_all(&message(&[b"abc"])[..3]).await.unwrap();
        drop(writer);
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        assert!(matches!(reader.next().await, Err(StreamError::Io(_))));
    }
}
