//! ZMTP 3.x (RFC 23, RFC 37) as far as a guard must understand it: where frames begin and end,
//! and how long they are. Pure: bytes in, a verdict out.

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

/// How a peer broke the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not the greeting of ZMTP 3 or later with mechanism NULL.
    #[error("not a ZMTP 3 greeting")]
    Greeting,
    /// A first frame that is no READY, or not of the form.
    #[error("not a ZMTP READY command")]
    Ready,
    /// READY of a socket of another kind than belongs here.
    #[error("a socket of the wrong kind: {0}")]
    SocketType(String),
    /// Flags that no frame has.
    #[error("a frame with the flags {0:#04x}")]
    Flags(u8),
    /// A command after the handshake.
    #[error("a command after the handshake")]
    Command,
    /// A frame over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    Frame {
        /// What it says.
        bytes: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A message of too many frames.
    #[error("a message of more than {PARTS_MAX} frames (PARTS_MAX)")]
    Parts,
    /// On PUB, something else than a subscription, or one that the peer may not have.
    #[error("not a subscription that is allowed here")]
    Subscription,
    /// On PUB, too many of them.
    #[error("more than {SUBSCRIPTIONS_MAX} subscriptions (SUBSCRIPTIONS_MAX)")]
    Subscriptions,
}

/// Looks at a greeting.
///
/// # Errors
/// When it is none of ZMTP 3 or later with mechanism NULL.
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

/// The length of a command frame of the handshake: bytes of its header, and of its body. `None`
/// when more of the header is needed.
///
/// # Errors
/// When it is no command, or longer than [`COMMAND_FRAME_BYTES_MAX`].
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

/// Reads the body of a READY command: the kind of the socket that sent it.
///
/// # Errors
/// When it is not of the form.
pub fn socket_type(ready: &[u8]) -> Result<&str, Violation> {
    let mut rest = ready.strip_prefix(b"\x05READY").ok_or(Violation::Ready)?;
    let mut found = None;
    while !rest.is_empty() {
        let (name, after) = property_name(rest).ok_or(Violation::Ready)?;
        let (value, after) = property_value(after).ok_or(Violation::Ready)?;
        // The RFC: names are not case-sensitive.
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

/// A READY command of our own making, as a whole frame. `identity` is at most 32 bytes.
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

/// The header of a message's frame.
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

/// The header of a frame with a body of so many bytes; `more`: the message goes on after it.
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

/// The first frame of bytes that an [`Inspector`] has let pass, if it is complete: whether the
/// message goes on after it, and where its body is.
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
    /// `None` when it is not all there.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&flags, rest) = bytes.split_first()?;
        if flags & LONG == 0 {
            return Some(Self { flags, bytes: 2, body: u64::from(*rest.first()?) });
        }
        Some(Self { flags, bytes: 9, body: u64::from_be_bytes(*rest.first_chunk()?) })
    }
}

/// What may come after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Messages, as between DEALER and ROUTER, and from PUB.
    Messages,
    /// Subscriptions, from SUB to PUB.
    Subscriptions {
        /// When given, the only topic that may be subscribed to.
        only: Option<&'static str>,
    },
}

/// Measures everything that comes after the handshake.
#[derive(Clone, Debug)]
pub struct Inspector {
    traffic: Traffic,
    /// Bytes of the current frame that have not passed.
    body_left: usize,
    /// Frames of the current message so far.
    parts: usize,
    subscriptions: u32,
}

impl Inspector {
    /// For a connection that has just finished its handshake.
    pub fn new(traffic: Traffic) -> Self {
        Self { traffic, body_left: 0, parts: 0, subscriptions: 0 }
    }

    /// How many of the bytes, from the first on, may pass. The others are to be shown again, with
    /// those that follow; they are fewer than [`Inspector::NEEDED`].
    ///
    /// # Errors
    /// When the peer broke a rule: nothing of its is to pass any more.
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
                // Short, and so looked at as a whole.
                let start = passed + header.bytes;
                let Some(body) = bytes.get(start..start + length) else { return Ok(passed) };
                self.check_subscription(body, only)?;
            }
            self.parts = if header.flags & MORE == 0 { 0 } else { self.parts + 1 };
            passed += header.bytes;
            self.body_left = length;
        }
    }

    /// The most bytes that are needed to let any pass.
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
        // A shorter topic would match more.
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
