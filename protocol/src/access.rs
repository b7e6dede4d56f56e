//! Access: keys, roles, join tokens.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Name};
use crate::limits::{TOKEN_ADDRESSES_MAX, TOKEN_TEXT_BYTES_MAX};

/// The role of a key: what its owner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Have a session as a node, and nothing else.
    Agent,
    /// Read: jobs, tasks, nodes, events, logs.
    Viewer,
    /// Read, submit and cancel.
    Operator,
    /// Everything, including tokens and revocation.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Viewer, Self::Operator, Self::Admin];

    /// Returns whether this role includes the rights of `needed`. An agent is not a user: it has
    /// only its own rights, which nobody else has except an admin.
    pub fn includes(self, needed: Self) -> bool {
        self == needed || self == Self::Admin || (self == Self::Operator && needed == Self::Viewer)
    }

    /// Returns the role as in flags, texts and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An error for a text that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role; use agent, viewer, operator or admin")]
pub struct ParseRoleError(String);

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| ParseRoleError(text.to_owned()))
    }
}

/// An Ed25519 public key (RFC 8032), 32 bytes; it identifies a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "serde_bytes::ByteArray<32>", into = "serde_bytes::ByteArray<32>")]
pub struct PublicKey(pub [u8; 32]);

/// The SHA-256 of a public key's 32 bytes; a peer identifies its manager by it before the first
/// contact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "serde_bytes::ByteArray<32>", into = "serde_bytes::ByteArray<32>")]
pub struct KeyDigest(pub [u8; 32]);

macro_rules! bytes_as_hex {
    ($name:ident) => {
        impl From<serde_bytes::ByteArray<32>> for $name {
            fn from(bytes: serde_bytes::ByteArray<32>) -> Self {
                Self(bytes.into_array())
            }
        }

        impl From<$name> for serde_bytes::ByteArray<32> {
            fn from(value: $name) -> Self {
                Self::new(value.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseKeyError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ParseKeyError)?;
                Ok(Self(bytes.try_into().map_err(|_| ParseKeyError)?))
            }
        }
    };
}

bytes_as_hex!(PublicKey);
bytes_as_hex!(KeyDigest);

/// An error for a text that is not a key or digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("64 hexadecimal digits in lower case are expected")]
pub struct ParseKeyError;

/// The number of a join token; not secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u64);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The secret of a join token, 16 random bytes: proves that the manager issued the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "serde_bytes::ByteArray<16>", into = "serde_bytes::ByteArray<16>")]
pub struct TokenSecret(pub [u8; 16]);

impl From<serde_bytes::ByteArray<16>> for TokenSecret {
    fn from(bytes: serde_bytes::ByteArray<16>) -> Self {
        Self(bytes.into_array())
    }
}

impl From<TokenSecret> for serde_bytes::ByteArray<16> {
    fn from(secret: TokenSecret) -> Self {
        Self::new(secret.0)
    }
}

impl fmt::Debug for TokenSecret {
    /// Prints no secret, because debug output goes to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

/// Everything that a machine needs to join, as one word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The addresses at which the manager may be reached, `host:port`, in the order in which to try
    /// them.
    pub addresses: Vec<String>,
    /// The digest of the manager's key.
    pub manager: KeyDigest,
    /// The token's number.
    pub id: TokenId,
    /// The token's secret.
    pub secret: TokenSecret,
}

/// The prefix of every token; the digit is the version of the format.
const TOKEN_PREFIX: &str = "podmesh1-";

/// The reason why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// It is not a token.
    #[error("this is not a join token: join tokens begin with {TOKEN_PREFIX}")]
    Other,
    /// A part is missing, or a character is wrong.
    #[error("this join token is incomplete or has a wrong character: copy it again in full")]
    Damaged,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = rmp_serde::to_vec(self).map_err(|_| fmt::Error)?;
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        write!(f, "{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let code = text.strip_prefix(TOKEN_PREFIX).ok_or(ParseTokenError::Other)?;
        if text.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(ParseTokenError::Damaged);
        }
        let bytes =
            BASE64URL_NOPAD.decode(code.as_bytes()).map_err(|_| ParseTokenError::Damaged)?;
        let (bytes, check) = bytes.split_last_chunk::<4>().ok_or(ParseTokenError::Damaged)?;
        if crc32fast::hash(bytes).to_be_bytes() != *check {
            return Err(ParseTokenError::Damaged);
        }
        let token: Self = crate::codec::decode(bytes).map_err(|_| ParseTokenError::Damaged)?;
        if token.addresses.is_empty() || token.addresses.len() > TOKEN_ADDRESSES_MAX {
            return Err(ParseTokenError::Damaged);
        }
        Ok(token)
    }
}

/// An API token: whoever bears it may ask over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken(pub TokenSecret);

/// The prefix of every API token.
const API_TOKEN_PREFIX: &str = "podmesh-api1-";

impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{API_TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&self.0.0))
    }
}

/// An error for a text that is not an API token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not an API token: API tokens begin with {API_TOKEN_PREFIX} and have 35 letters")]
pub struct ParseApiTokenError;

impl FromStr for ApiToken {
    type Err = ParseApiTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let code = text.strip_prefix(API_TOKEN_PREFIX).ok_or(ParseApiTokenError)?;
        let bytes = BASE64URL_NOPAD.decode(code.as_bytes()).map_err(|_| ParseApiTokenError)?;
        Ok(Self(TokenSecret(bytes.try_into().map_err(|_| ParseApiTokenError)?)))
    }
}

/// The first and only message of a peer that joins, on a connection of its own: a 32-bit big-endian
/// number of bytes, then this message. The peer's key is that of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The newest protocol version that the peer speaks.
    pub version: u16,
    /// The oldest protocol version that the peer speaks; `None` if it speaks only the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_oldest: Option<u16>,
    /// The token's number.
    pub token: TokenId,
    /// The token's secret.
    pub secret: TokenSecret,
    /// The requested name of the node or user.
    pub name: Name,
}

/// The manager's first message to an admitted peer, unless it has just joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The keys that the manager may have at the next connection: the current one, and the next one
    /// after a rotation. At most [`MANAGER_KEYS_MAX`](crate::limits::MANAGER_KEYS_MAX).
    pub manager: Vec<KeyDigest>,
}

/// The manager's reply to a successful join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The manager's cluster.
    pub cluster: ClusterId,
    /// The peer's role.
    pub role: Role,
    /// The peer's name.
    pub name: Name,
    /// See [`Admitted`].
    pub manager: Vec<KeyDigest>,
}

/// The peer of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The peer's role.
    pub role: Role,
    /// The name of the node or user; on the manager's machine the login name.
    pub name: Name,
    /// The peer's key; `None` on the manager's machine, where peers are identified by their user
    /// id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            addresses: vec!["10.0.0.1:7770".into(), "[::1]:7770".into()],
            manager: KeyDigest([7; 32]),
            id: TokenId(3),
            secret: TokenSecret([9; 16]),
        }
    }

    #[test]
    fn a_token_is_one_word_and_reads_back() {
        let text = token().to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert!(text.len() < 160, "{} letters", text.len());
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains('9'), "the secret is not printed");
    }

    #[test]
    fn a_damaged_token_has_another_error_than_a_different_word() {
        let text = token().to_string();
        for end in TOKEN_PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<JoinToken>(), Err(ParseTokenError::Damaged), "{end}");
        }
        for at in TOKEN_PREFIX.len()..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).unwrap();
            assert_eq!(other.parse::<JoinToken>(), Err(ParseTokenError::Damaged), "{at}");
        }
        for other in ["", "podmesh", "SWMTKN-1-abc", "podmesh2-abc"] {
            assert_eq!(other.parse::<JoinToken>(), Err(ParseTokenError::Other), "{other}");
        }
        let long = format!("{TOKEN_PREFIX}{}", "A".repeat(1 << 20));
        assert_eq!(long.parse::<JoinToken>(), Err(ParseTokenError::Damaged));
    }

    #[test]
    fn an_api_token_is_one_word_and_reads_back() {
        let token = ApiToken(TokenSecret([9; 16]));
        let text = token.to_string();
        assert_eq!((text.len(), text.parse()), (35, Ok(token)));
        for other in ["", "podmesh-api1-", &text[..34], &format!("{text}A")] {
            assert_eq!(other.parse::<ApiToken>(), Err(ParseApiTokenError), "{other}");
        }
    }

    #[test]
    fn roles_include_the_right_roles() {
        use Role::{Admin, Agent, Operator, Viewer};
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert!(role.includes(role) && Admin.includes(role));
            assert_eq!(role.includes(Admin), role == Admin);
            assert_eq!(role.includes(Agent), matches!(role, Admin | Agent));
        }
        assert!(Operator.includes(Viewer) && !Viewer.includes(Operator));
        assert!("root".parse::<Role>().is_err());
    }
}
