//! Heartbeats: a separate TCP stream with frames of 20 bytes.
//!
//! `"PMHB"`, then the epoch and a sequence number, both as 64-bit big-endian numbers. The agent
//! sends one every interval; the manager answers each with the same bytes.

use podmesh_protocol::ids::Epoch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::WireError;

/// Bytes of one frame.
pub const BEAT_BYTES: usize = 20;
const MAGIC: [u8; 4] = *b"PMHB";

/// One heartbeat, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The session.
    pub epoch: Epoch,
    /// 1, 2, 3 … within one stream.
    pub sequence: u64,
}

impl Beat {
    fn to_bytes(self) -> [u8; BEAT_BYTES] {
        let mut bytes = [0; BEAT_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; BEAT_BYTES]) -> Result<Self, WireError> {
        let mut magic = [0; 4];
        let mut epoch = [0; 8];
        let mut sequence = [0; 8];
        magic.copy_from_slice(&bytes[..4]);
        epoch.copy_from_slice(&bytes[4..12]);
        sequence.copy_from_slice(&bytes[12..]);
        if magic != MAGIC {
            return Err(WireError::NotAHeartbeat { found: magic });
        }
        Ok(Self { epoch: Epoch(u64::from_be_bytes(epoch)), sequence: u64::from_be_bytes(sequence) })
    }
}

/// Reads one heartbeat. Not cancel-safe: a part of a frame would be lost.
///
/// # Errors
/// If the stream ends or fails, or contains something else.
pub async fn read_beat<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Beat, WireError> {
    let mut bytes = [0; BEAT_BYTES];
    reader.read_exact(&mut bytes).await?;
    Beat::from_bytes(bytes)
}

/// Writes one heartbeat.
///
/// # Errors
/// If the stream fails.
pub async fn write_beat<W: AsyncWrite + Unpin>(
    writer: &mut W,
    beat: &Beat,
) -> Result<(), WireError> {
    writer.write_all(&beat.to_bytes()).await?;
    writer.flush().await?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_beat_is_20_bytes_and_can_be_read_back() {
        let beat = Beat { epoch: Epoch(7), sequence: 258 };
        let mut bytes = Vec::new();
        write_beat(&mut bytes, &beat).await.unwrap();
        assert_eq!(bytes, b"PMHB\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x01\x02");
        assert_eq!(read_beat(&mut bytes.as_slice()).await.unwrap(), beat);
    }

    #[tokio::test]
    async fn other_bytes_are_an_error() {
        let mut other: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n";
        assert!(matches!(read_beat(&mut other).await, Err(WireError::NotAHeartbeat { .. })));
        assert!(matches!(read_beat(&mut b"PMHB".as_slice()).await, Err(WireError::Io(_))));
    }
}
