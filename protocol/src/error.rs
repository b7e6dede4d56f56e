//! Errors in messages.

use serde::{Deserialize, Serialize};

use crate::version::VersionRange;

/// The reason why a request failed: a code for programs, a message for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// What happened, why, and what to do if that is known.
    pub message: String,
    /// The versions that the manager speaks, with [`ErrorCode::UnsupportedVersion`]: the peer can
    /// try again with one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<VersionRange>,
    /// Milliseconds after which the request can succeed, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorReply {
    /// Creates an error.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), versions: None, retry_after_ms: None }
    }
}

/// The kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not a message of the protocol, or it breaks a limit.
    BadMessage,
    /// The manager does not support the peer's protocol version.
    UnsupportedVersion,
    /// The job breaks a rule or a limit.
    InvalidSpec,
    /// There is no such job, task or attempt.
    NotFound,
    /// The node that has the data has no session at present.
    NodeUnavailable,
    /// The node is not gone for good, or attempts wait for it.
    NodeInUse,
    /// A limit of the manager is reached; try again later.
    Overloaded,
    /// The events asked for are no longer kept.
    Compacted,
    /// It contradicts what is under way; try again later.
    Conflict,
    /// Another live agent has this name.
    NameTaken,
    /// The agent's data directory belongs to another cluster.
    WrongCluster,
    /// The role of the caller does not permit this.
    Forbidden,
    /// The join token cannot be used.
    InvalidToken,
    /// The key is not known, or was revoked.
    NotEnrolled,
    /// Reading from the disk failed.
    Storage,
    /// The manager is about to stop.
    Stopping,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}
