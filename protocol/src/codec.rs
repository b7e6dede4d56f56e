//! MessagePack: structures as maps with named keys, of which unknown ones are ignored; ids and the
//! rows of batches as arrays.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::access::{Admitted, JoinRequest, JoinToken, Joined};
use crate::client::RequestHead;
use crate::error::ErrorReply;
use crate::event::{EventChunk, Published};
use crate::limits::FRAME_BYTES_MAX;
use crate::session::{ToManager, ToPeer};

/// The reason why a message could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It does not fit into a frame.
    #[error("a message of {bytes} bytes is over the limit of {FRAME_BYTES_MAX} (FRAME_BYTES_MAX)")]
    TooLarge {
        /// The size of the message.
        bytes: usize,
    },
    /// The value has no MessagePack form.
    #[error("the message cannot be written as MessagePack: {0}")]
    Format(#[from] rmp_serde::encode::Error),
}

/// The reason why bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They are longer than a frame may be.
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX} (FRAME_BYTES_MAX)")]
    TooLarge {
        /// The length.
        bytes: usize,
    },
    /// Not MessagePack, or not a message of this protocol.
    #[error("not a message of this protocol: {0}")]
    Format(#[from] rmp_serde::decode::Error),
    /// More bytes follow the message.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// The number of these bytes.
        bytes: usize,
    },
}

/// A type that is sent as one MessagePack value.
///
/// The implementations are compiled once, in this crate. Otherwise each crate that reads a message
/// would compile the whole decoder again, which takes about a minute of a first build.
pub trait Message: Sized + sealed::Sealed {
    /// See [`encode`].
    ///
    /// # Errors
    /// See [`encode`].
    fn to_bytes(&self) -> Result<Vec<u8>, EncodeError>;

    /// See [`decode`].
    ///
    /// # Errors
    /// See [`decode`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! messages {
    ($($message:ty),* $(,)?) => {$(
        impl sealed::Sealed for $message {}
        impl Message for $message {
            fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
                write(self)
            }

            fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
                read(bytes)
            }
        }
    )*};
}

messages!(
    ToManager,
    ToPeer,
    Published,
    EventChunk,
    JoinToken,
    JoinRequest,
    Result<Joined, ErrorReply>,
    Result<Admitted, ErrorReply>,
);

/// Encodes a message.
///
/// # Errors
/// If the message is larger than [`FRAME_BYTES_MAX`].
pub fn encode(message: &impl Message) -> Result<Vec<u8>, EncodeError> {
    message.to_bytes()
}

/// Decodes a message. Safe for any bytes: memory is bounded by their length, nesting by the
/// decoder.
///
/// # Errors
/// If there are too many bytes, they are not such a message, or more bytes follow it.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::from_bytes(bytes)
}

/// Decodes the head of a request, whatever its body is. Returns `None` if the bytes are not a
/// request.
pub fn decode_request_head(bytes: &[u8]) -> Option<RequestHead> {
    #[derive(Deserialize)]
    struct Headed {
        request: RequestHead,
    }
    read::<Headed>(bytes).ok().map(|headed| headed.request)
}

fn write<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let bytes = rmp_serde::to_vec_named(message)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes: bytes.len() });
    }
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    // Messages nest less than ten levels deep, but ignored unknown values may nest too, and
    // recurse.
    reader.set_max_depth(64);
    let message = T::deserialize(&mut reader)?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { bytes: rest.len() });
    }
    Ok(message)
}
