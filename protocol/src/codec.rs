//! MessagePack: structures as maps with named keys, unknown keys ignored; ids and the rows of
//! batches as arrays.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES_MAX;

/// Why a message could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It would not fit a frame.
    #[error("a message of {bytes} bytes is over the limit of {FRAME_BYTES_MAX} (FRAME_BYTES_MAX)")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// The value has no MessagePack form.
    #[error("the message cannot be written as MessagePack: {0}")]
    Format(#[from] rmp_serde::encode::Error),
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than a frame may be.
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX} (FRAME_BYTES_MAX)")]
    TooLarge {
        /// How long it is.
        bytes: usize,
    },
    /// Not MessagePack, or not of the message's form.
    #[error("not a message of this protocol: {0}")]
    Format(#[from] rmp_serde::decode::Error),
    /// A message, and then more bytes.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// Writes a message.
///
/// # Errors
/// When it is larger than [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let bytes = rmp_serde::to_vec_named(message)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Reads a message. Any bytes are safe: memory is bounded by their length, nesting by the reader.
///
/// # Errors
/// When the bytes are too many, not of the form, or more than one message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes: bytes.len() });
    }
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    // Messages nest less than ten deep; ignored unknown values may nest, too, and recurse.
    reader.set_max_depth(64);
    let message = T::deserialize(&mut reader)?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { bytes: rest.len() });
    }
    Ok(message)
}
