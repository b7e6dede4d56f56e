//! What can go wrong between an agent and its supervisor.

use std::io;
use std::path::PathBuf;

/// Why there is no supervisor to hold the processes of a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// Something of the operating system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not be started.
    #[error("the supervisor of processes cannot be started with {}: {why}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What it said, or why it could not be executed.
        why: String,
    },
    /// It speaks no version that this program speaks, or holds another agent's processes.
    #[error(
        "the supervisor of processes refuses this agent: {message}; its processes go on: start the agent of the \
         version before, or wait until they have ended, or end them with `kill $(cat {})`", pid_file.display()
    )]
    Refused {
        /// What it said.
        message: String,
        /// The file with its number.
        pid_file: PathBuf,
    },
    /// It does not answer.
    #[error(
        "the supervisor of processes behind {} does not answer; see what keeps the process busy whose number is in \
         {}, or end it, and all that it holds, with `kill -9`", socket.display(), pid_file.display()
    )]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// The file with its number.
        pid_file: PathBuf,
    },
    /// The one before it does not come to its end.
    #[error(
        "the supervisor of processes before this one still holds {}: it ends when its processes have; wait, or end \
         them", path.display()
    )]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

impl SupervisorError {
    /// Makes an error of the operating system one of these.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
