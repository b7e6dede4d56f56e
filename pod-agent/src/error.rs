//! Why an agent ends.

use std::io;
use std::path::PathBuf;

use podmesh_protocol::ids::ClusterId;

use crate::supervisor::SupervisorError;

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The data directory cannot be used.
    #[error("cannot {doing} {}: {source}", path.display())]
    DataDir {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the data directory does not hold what the agent wrote there.
    #[error("{} does not hold {expected}; if it is of no use, remove it and start again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// Another agent uses the data directory.
    #[error(
        "another agent uses {}; stop it, or give this one a data directory of its own (--data-dir)",
        path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The manager belongs to another cluster.
    #[error(
        "the manager at {manager} is not the one that this agent belongs to{}; to have the agent join it, \
         remove {} and start again: containers of the other cluster are then left alone",
        theirs.map(|cluster| format!(" (its cluster is {cluster})")).unwrap_or_default(), path.display()
    )]
    WrongCluster {
        /// Where the manager is.
        manager: String,
        /// The manager's cluster, where it said so.
        theirs: Option<ClusterId>,
        /// The file that says to which cluster the agent belongs.
        path: PathBuf,
    },
    /// The manager speaks another version of the protocol.
    #[error("the manager at {manager} refuses this version of podmesh: {message}")]
    UnsupportedVersion {
        /// Where the manager is.
        manager: String,
        /// What it said.
        message: String,
    },
    /// There is no supervisor to hold processes.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// The operating system refused something that the agent needs.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}
