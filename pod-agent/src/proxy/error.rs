//! Errors between an agent and its proxy.

use std::io;
use std::path::PathBuf;

use crate::companion::RunDirError;

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// A call to the operating system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What failed.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The proxy cannot be started.
    #[error("cannot start the node's proxy with {}: {why}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What it printed, or why it could not be executed.
        why: String,
    },
    /// The proxy has no protocol version in common with this program, or belongs to another agent.
    #[error(
        "the running proxy refused this agent: {message}; it keeps the endpoints that it knows: end it and its \
         connections with `kill $(cat {})`, and the agent starts another one", pid_file.display()
    )]
    Refused {
        /// The proxy's message.
        message: String,
        /// The file with its process id.
        pid_file: PathBuf,
    },
    /// The proxy does not respond.
    #[error(
        "the node's proxy at {} does not respond; check what keeps it busy (its process id is in {}), or end it and \
         its connections with `kill -9`", socket.display(), pid_file.display()
    )]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// The file with its process id.
        pid_file: PathBuf,
    },
    /// The previous proxy does not end.
    #[error("the previous proxy still holds {}: end it with `kill $(cat {})`", path.display(), path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

impl From<RunDirError> for ProxyError {
    fn from(error: RunDirError) -> Self {
        match error {
            RunDirError::Io { doing, path, source } => Self::Io { doing, path, source },
            RunDirError::Locked { path } => Self::Locked { path },
        }
    }
}

impl ProxyError {
    /// Wraps an error of the operating system.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
