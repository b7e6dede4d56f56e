//! The part of ZMTP 3.x (RFC 23, RFC 37) that a guard needs: where frames begin and end, and how
//! long they are. Pure: bytes in, a verdict out.

use podmesh_protocol::limits::{
    COMMAND_FRAME_BYTES_MAX, FRAME_BYTES_MAX, PARTS_MAX, SUBSCRIPTION_BYTES_MAX, SUBSCRIPTIONS_MAX,
};

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 64;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// Our greeting: ZMTP 3.0, mechanism NULL. With 3.0, subscriptions are messages and not commands.
pub const GREETING: [u8; GREETING_BYTES] = {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    let mechanism = *b"NULL";
    let mut n = 0;
    while n < mechanism.len() {
        greeting[12 + n] = mechanism[n];
        n += 1;
    }
    greeting
};

/// A violation of the rules by a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not the greeting of ZMTP 3 or later with mechanism NULL.
    #[error("not a ZMTP 3 greeting")]
    Greeting,
    /// The first frame is not a READY command, or not a valid one.
    #[error("not a ZMTP READY command")]
    Ready,
    /// READY from a socket of the wrong type.
    #[error("a socket of the wrong type: {0}")]
    SocketType(String),
    /// Flags that are not defined.
    #[error("a frame with the invalid flags {0:#04x}")]
    Flags(u8),
    /// A command after the handshake.
    #[error("a command after the handshake")]
    Command,
    /// A frame over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    Frame {
        /// The stated length.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// A message with too many frames.
    #[error("a message of more than {PARTS_MAX} frames (PARTS_MAX)")]
    Parts,
    /// On PUB, not a subscription, or one that the peer may not have.
    #[error("not an allowed subscription")]
    Subscription,
    /// On PUB, too many subscriptions.
    #[error("more than {SUBSCRIPTIONS_MAX} subscriptions (SUBSCRIPTIONS_MAX)")]
    Subscriptions,
}

/// Checks a greeting.
///
/// # Errors
/// If it is not a greeting of ZMTP 3 or later with mechanism NULL.
pub fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), Violation> {
    let mut null = [0; 20];
    null[..4].copy_from_slice(b"NULL");
    // Signature, version, mechanism, as-server.
    let ours = greeting[0] == 0xff
        && greeting[9] == 0x7f
        && greeting[10] >= 3
        && greeting[12..32] == null
        && greeting[32] == 0;
    if ours { Ok(()) } else { Err(Violation::Greeting) }
}

/// Returns the length of a command frame of the handshake: bytes of its header, and of its body.
/// `None` if more of the header is needed.
///
/// # Errors
/// If it is not a command, or longer than [`COMMAND_FRAME_BYTES_MAX`].
pub fn command_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
    let Some(header) = Header::read(bytes) else { return Ok(None) };
    if header.flags & !LONG != COMMAND {
        return Err(Violation::Ready);
    }
    if header.body > COMMAND_FRAME_BYTES_MAX as u64 {
        return Err(Violation::Frame { bytes: header.body, limit: COMMAND_FRAME_BYTES_MAX });
    }
    Ok(Some((header.bytes, header.body as usize)))
}

/// Reads the body of a READY command. Returns the type of the socket that sent it.
///
/// # Errors
/// If it is not valid.
pub fn socket_type(ready: &[u8]) -> Result<&str, Violation> {
    let mut rest = ready.strip_prefix(b"\x05READY").ok_or(Violation::Ready)?;
    let mut found = None;
    while !rest.is_empty() {
        let (name, after) = property_name(rest).ok_or(Violation::Ready)?;
        let (value, after) = property_value(after).ok_or(Violation::Ready)?;
        // According to the RFC, names are not case-sensitive.
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        rest = after;
    }
    let found = found.ok_or(Violation::Ready)?;
    std::str::from_utf8(found).map_err(|_| Violation::Ready)
}

fn property_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

fn property_value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Returns our own READY command as a whole frame. `identity` has at most 32 bytes.
pub fn ready_frame(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value);
    }
    let mut frame = vec![COMMAND, body.len() as u8];
    frame.append(&mut body);
    frame
}

/// The header of a message frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    bytes: [u8; 9],
    length: usize,
}

impl AsRef<[u8]> for FrameHeader {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Returns the header of a frame with a body of this number of bytes. `more`: the message continues
/// after it.
pub fn frame_header(body: usize, more: bool) -> FrameHeader {
    let flags = if more { MORE } else { 0 };
    let mut bytes = [0; 9];
    if let Ok(short) = u8::try_from(body) {
        bytes[..2].copy_from_slice(&[flags, short]);
        return FrameHeader { bytes, length: 2 };
    }
    bytes[0] = flags | LONG;
    bytes[1..].copy_from_slice(&(body as u64).to_be_bytes());
    FrameHeader { bytes, length: 9 }
}

/// Returns the first frame of bytes that an [`Inspector`] has accepted, if it is complete: whether
/// the message continues after it, and where its body is.
pub fn complete_frame(bytes: &[u8]) -> Option<(bool, std::ops::Range<usize>)> {
    let header = Header::read(bytes)?;
    // The inspector has compared it with the limit.
    let end = header.bytes + usize::try_from(header.body).ok()?;
    (end <= bytes.len()).then_some((header.flags & MORE != 0, header.bytes..end))
}

struct Header {
    flags: u8,
    bytes: usize,
    body: u64,
}

impl Header {
    /// Reads a header; `None` if it is incomplete.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&flags, rest) = bytes.split_first()?;
        if flags & LONG == 0 {
            return Some(Self { flags, bytes: 2, body: u64::from(*rest.first()?) });
        }
        Some(Self { flags, bytes: 9, body: u64::from_be_bytes(*rest.first_chunk()?) })
    }
}

/// The traffic that is allowed after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Messages, as between DEALER and ROUTER, and from PUB.
    Messages,
    /// Subscriptions, from SUB to PUB.
    Subscriptions {
        /// The only topic that may be subscribed to, if given.
        only: Option<&'static str>,
    },
}

/// Checks everything after the handshake.
#[derive(Clone, Debug)]
pub struct Inspector {
    traffic: Traffic,
    /// The bytes of the current frame that are still missing.
    body_left: usize,
    /// The number of frames of the current message so far.
    parts: usize,
    subscriptions: u32,
}

impl Inspector {
    /// Creates an inspector for a connection that has just finished its handshake.
    pub fn new(traffic: Traffic) -> Self {
        Self { traffic, body_left: 0, parts: 0, subscriptions: 0 }
    }

    /// Returns how many of the bytes, from the first one on, are accepted. The others must be
    /// passed again together with the following ones; there are fewer than [`Inspector::NEEDED`].
    ///
    /// # Errors
    /// If the peer broke a rule: accept nothing more from it.
    pub fn inspect(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut passed = 0;
        loop {
            let step = self.body_left.min(bytes.len() - passed);
            passed += step;
            self.body_left -= step;
            if self.body_left > 0 {
                return Ok(passed);
            }
            let Some(header) = Header::read(&bytes[passed..]) else { return Ok(passed) };
            let length = self.check(&header)?;
            if let Traffic::Subscriptions { only } = self.traffic {
                // Short, so it is checked as a whole.
                let start = passed + header.bytes;
                let Some(body) = bytes.get(start..start + length) else { return Ok(passed) };
                self.check_subscription(body, only)?;
            }
            self.parts = if header.flags & MORE == 0 { 0 } else { self.parts + 1 };
            passed += header.bytes;
            self.body_left = length;
        }
    }

    /// The maximum number of bytes needed to accept any.
    pub const NEEDED: usize = 9 + SUBSCRIPTION_BYTES_MAX;

    fn check(&self, header: &Header) -> Result<usize, Violation> {
        let Header { flags, body, .. } = *header;
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(Violation::Flags(flags));
        }
        if flags & COMMAND != 0 {
            return Err(Violation::Command);
        }
        let (limit, parts) = match self.traffic {
            Traffic::Messages => (FRAME_BYTES_MAX, PARTS_MAX),
            Traffic::Subscriptions { .. } => (SUBSCRIPTION_BYTES_MAX, 1),
        };
        if self.parts + 1 + usize::from(flags & MORE != 0) > parts {
            return Err(Violation::Parts);
        }
        match usize::try_from(body) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(Violation::Frame { bytes: body, limit }),
        }
    }

    fn check_subscription(
        &mut self,
        body: &[u8],
        only: Option<&'static str>,
    ) -> Result<(), Violation> {
        let topic = match body.split_first() {
            Some((0 | 1, topic)) => topic,
            _ => return Err(Violation::Subscription),
        };
        // A shorter topic would match more messages.
        if only.is_some_and(|only| only.as_bytes() != topic) {
            return Err(Violation::Subscription);
        }
        self.subscriptions += 1;
        if self.subscriptions > SUBSCRIPTIONS_MAX {
            return Err(Violation::Subscriptions);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
