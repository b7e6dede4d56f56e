//! Errors that cross the wire.

use serde::{Deserialize, Serialize};

/// Why something was not done: a code for programs, a message for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// What happened and why, and what to do where that is known.
    pub message: String,
}

impl ErrorReply {
    /// An error with its message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What kind of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The message is not one of the protocol, or breaks a limit.
    BadMessage,
    /// The peer speaks a version that the manager does not.
    UnsupportedVersion,
    /// The job breaks a rule or a limit.
    InvalidSpec,
    /// There is no such job, task or attempt.
    NotFound,
    /// The node that would have to answer has no session now.
    NodeUnavailable,
    /// A limit of the manager is reached; try again later.
    Overloaded,
    /// The events asked for are no longer kept.
    Compacted,
    /// Another live agent has the name.
    NameTaken,
    /// The agent's data directory belongs to another cluster.
    WrongCluster,
    /// Whoever asks has no role for it.
    Forbidden,
    /// The join token is of no use.
    InvalidToken,
    /// The key is not known, or was revoked.
    NotEnrolled,
    /// Reading from disk failed.
    Storage,
    /// The manager is about to stop.
    Stopping,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}
