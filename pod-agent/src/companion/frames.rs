//! Messages on a stream: a length of four bytes (big-endian), then MessagePack.

use std::io;

use bytes::{Buf, BytesMut};
use podmesh_protocol::limits::SUPERVISOR_FRAME_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of the length prefix.
const LENGTH_BYTES: usize = 4;
/// Bytes to read at once.
const BLOCK: usize = 16 << 10;

/// Appends a message to an output buffer.
///
/// # Errors
/// If it is longer than a frame may be, or cannot be encoded.
pub(crate) fn put(out: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    // Field names are written, because the other side may be older or newer.
    let mut serializer = rmp_serde::Serializer::new(&mut *out).with_struct_map();
    let written = message.serialize(&mut serializer).map_err(io::Error::other);
    let length = out.len() - start - LENGTH_BYTES;
    let checked = written.and_then(|()| check(length));
    match checked {
        Ok(length) => out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes()),
        Err(_) => out.truncate(start),
    }
    checked.map(|_| ())
}

fn check(length: usize) -> io::Result<u32> {
    let fits = u32::try_from(length).ok().filter(|_| length <= SUPERVISOR_FRAME_BYTES_MAX);
    fits.ok_or_else(|| {
        io::Error::other(format!(
            "a message of {length} bytes is longer than {SUPERVISOR_FRAME_BYTES_MAX} \
             (SUPERVISOR_FRAME_BYTES_MAX)"
        ))
    })
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Creates a reader. Nothing must have been read from the stream before.
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads the next message; `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            self.buffer.reserve(BLOCK);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                // If the stream ends within a message, the other side was killed.
                return Ok(None);
            }
        }
    }

    /// Returns the next message if it has arrived completely.
    pub(crate) fn buffered<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = check(u32::from_be_bytes(*length) as usize)? as usize;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = rmp_serde::from_slice(body).map_err(io::Error::other)?;
        self.buffer.advance(LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Message {
        Say { text: String, number: u64 },
        End,
    }

    #[tokio::test]
    async fn messages_are_read_back_however_they_are_split() {
        let mut bytes = Vec::new();
        put(&mut bytes, &Message::Say { text: "a".into(), number: 7 }).unwrap();
        put(&mut bytes, &Message::End).unwrap();
        for piece in [1, 3, bytes.len()] {
            let (mut writer, reader) = tokio::io::duplex(piece);
            let sent = bytes.clone();
            tokio::spawn(async move {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &sent).await.unwrap();
            });
            let mut frames = Frames::new(reader);
            let first = frames.next().await.unwrap();
            assert_eq!(first, Some(Message::Say { text: "a".into(), number: 7 }));
            let second = frames.next().await.unwrap();
            assert_eq!(second, Some(Message::End));
            assert!(frames.next::<Message>().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn an_invalid_message_is_an_error() {
        for bytes in [&[0xff; 8][..], &[0, 0, 0, 1, 0xc1]] {
            let error = Frames::new(bytes).next::<Message>().await.unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        let text = "x".repeat(SUPERVISOR_FRAME_BYTES_MAX);
        let mut out = vec![1];
        let error = put(&mut out, &Message::Say { text, number: 0 }).unwrap_err();
        assert!(error.to_string().contains("SUPERVISOR_FRAME_BYTES_MAX"), "{error}");
        assert_eq!(out, [1], "nothing is left of it");
    }
}
