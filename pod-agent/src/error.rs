//! Errors of an agent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use podmesh_protocol::ids::ClusterId;

use crate::supervisor::SupervisorError;
use crate::user::ProcessUserError;

/// An error that ends an agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The data directory cannot be used.
    #[error("cannot {doing} {}: {source}", path.display())]
    DataDir {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file in the data directory is damaged.
    #[error("{} does not contain {expected}; if you do not need it, remove it and start again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should contain.
        expected: &'static str,
    },
    /// Another agent uses the data directory.
    #[error(
        "another agent uses {}; stop it, or give this agent its own data directory (--data-dir)",
        path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The manager belongs to another cluster.
    #[error(
        "the manager at {manager} belongs to another cluster than this agent{}; to join the manager's cluster, \
         remove {} and start again: containers of the old cluster are then left alone",
        theirs.map(|cluster| format!(" (its cluster is {cluster})")).unwrap_or_default(), path.display()
    )]
    WrongCluster {
        /// The manager's address.
        manager: String,
        /// The manager's cluster, if known.
        theirs: Option<ClusterId>,
        /// The file with the agent's cluster.
        path: PathBuf,
    },
    /// The manager speaks another version of the protocol.
    #[error("the manager at {manager} does not support this version of podmesh: {message}")]
    UnsupportedVersion {
        /// The manager's address.
        manager: String,
        /// The manager's message.
        message: String,
    },
    /// The configured address of the node is not one of this machine.
    #[error(
        "the address {address} is not one at which other nodes reach this machine: {why}; {}",
        advice(others)
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        why: String,
        /// The addresses of this machine that other machines can use.
        others: Vec<IpAddr>,
    },
    /// The address for metrics cannot be used.
    #[error(
        "the metrics cannot be served at {address}: {source}; choose another address (--metrics, PODMESH_METRICS or `metrics` in agent.toml)"
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
    /// The supervisor cannot be used.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// Commands cannot run as the user that the node's owner named.
    #[error(transparent)]
    ProcessUser(#[from] ProcessUserError),
    /// The operating system refused something that the agent needs.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Says which address to choose instead.
fn advice(others: &[IpAddr]) -> String {
    let others: Vec<_> = others.iter().map(IpAddr::to_string).collect();
    let change = "change --address, PODMESH_ADDRESS or `address` in agent.toml";
    if others.is_empty() { change.into() } else { format!("{change} to {}", others.join(" or ")) }
}
