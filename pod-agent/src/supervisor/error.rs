//! Errors between an agent and its supervisor.

use std::io;
use std::path::PathBuf;

use crate::companion::RunDirError;

/// Why there is no supervisor to hold the processes of a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
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
    /// The supervisor cannot be started.
    #[error("cannot start the supervisor with {}: {why}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What it printed, or why it could not be executed.
        why: String,
    },
    /// The supervisor has no protocol version in common with this program, or holds another agent's
    /// processes.
    #[error(
        "the running supervisor refused this agent: {message}; its processes keep running: start the previous \
         version of the agent, wait until they have ended, or end them with `kill $(cat {})`", pid_file.display()
    )]
    Refused {
        /// The supervisor's message.
        message: String,
        /// The file with its process id.
        pid_file: PathBuf,
    },
    /// The supervisor does not respond.
    #[error(
        "the supervisor at {} does not respond; check what keeps it busy (its process id is in {}), or end it \
         and all its processes with `kill -9`", socket.display(), pid_file.display()
    )]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// The file with its process id.
        pid_file: PathBuf,
    },
    /// The previous supervisor does not end.
    #[error(
        "the previous supervisor still holds {}: it ends when its processes have ended; wait, or end them",
        path.display()
    )]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

impl From<RunDirError> for SupervisorError {
    fn from(error: RunDirError) -> Self {
        match error {
            RunDirError::Io { doing, path, source } => Self::Io { doing, path, source },
            RunDirError::Locked { path } => Self::Locked { path },
        }
    }
}

impl SupervisorError {
    /// Wraps an error of the operating system.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
