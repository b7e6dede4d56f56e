//! What the manager is told at its start, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_protocol::limits::{HEARTBEAT_MS_DEFAULT, LEASE_MARGIN_MS, LEASE_MS_DEFAULT};
use podmesh_wire::WireError;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::key::KeyError;

use crate::StoreError;

/// What the manager is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerConfig {
    /// The manager's own folder: the database, the lock, and [`Endpoint`](crate::Endpoint).
    /// Created, with access for its owner alone, where it is missing.
    pub data_dir: PathBuf,
    /// Where to listen on the network; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where other machines reach it, `host:port` each, as join tokens say; found out where none
    /// is given.
    pub advertise: Vec<ManagerAddress>,
    /// The folder for the sockets of this machine. Created where it is missing.
    pub sockets_dir: PathBuf,
    /// The group whose members may use these sockets as operators. None: the owner alone, and
    /// whoever has the group that new files get.
    pub sockets_group: Option<u32>,
    /// How long a node counts as alive after a heartbeat.
    pub lease: Duration,
    /// The time between two heartbeats; at most half a lease.
    pub heartbeat: Duration,
    /// How long after the end of a lease the tasks of a lost node are tried elsewhere, where
    /// their job allows it: the time that its agent has to kill what it runs.
    pub lease_margin: Duration,
    /// The highest priority that a job of an operator may have; admins have no such limit.
    pub priority_max: i32,
}

impl ManagerConfig {
    /// The defaults with a folder and an address.
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        let data_dir = data_dir.into();
        Self {
            sockets_dir: data_dir.join("sockets"),
            data_dir,
            listen,
            advertise: vec![],
            sockets_group: None,
            lease: Duration::from_millis(LEASE_MS_DEFAULT),
            heartbeat: Duration::from_millis(HEARTBEAT_MS_DEFAULT),
            lease_margin: Duration::from_millis(LEASE_MARGIN_MS),
            priority_max: 0,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ManagerError> {
        let wrong = |why: String| Err(ManagerError::Config { why });
        if self.heartbeat < Duration::from_millis(1) || self.heartbeat > self.lease / 2 {
            return wrong(format!(
                "the heartbeat interval of {} ms does not lie between 1 ms and half the lease of {} ms",
                self.heartbeat.as_millis(),
                self.lease.as_millis()
            ));
        }
        Ok(())
    }
}

/// Why the manager does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The configuration contradicts itself.
    #[error("{why}")]
    Config {
        /// How.
        why: String,
    },
    /// The data directory cannot be used.
    #[error(
        "the data directory {} cannot be used: {doing}: {source}; make it writable, or choose another one (--data-dir)",
        path.display()
    )]
    DataDir {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Another manager has it.
    #[error(
        "another manager{} uses the data directory {}: stop that one, or choose another directory (--data-dir)",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        path.display()
    )]
    AlreadyRunning {
        /// The data directory.
        path: PathBuf,
        /// The other manager's process, where it is known.
        pid: Option<u32>,
    },
    /// The database cannot be used, or can no longer be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address or a folder cannot be listened on.
    #[error("{source}; choose another address (--listen) or data directory (--data-dir)")]
    Listen {
        /// Why it cannot.
        source: WireError,
    },
    /// The manager's key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The socket failed while the manager ran.
    #[error("the manager's socket failed: {0}")]
    Wire(#[from] WireError),
    /// A thread could not be started.
    #[error("the thread `{name}` could not be started: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A part of the manager ended on its own; a bug of podmesh.
    #[error(
        "the part `{part}` of the manager ended by itself, which is a bug of podmesh: see the log"
    )]
    Ended {
        /// Which part.
        part: &'static str,
    },
}
