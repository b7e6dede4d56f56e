//! What the manager is told at its start, and why it may not start.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use podmesh_protocol::limits::{HEARTBEAT_MS_DEFAULT, LEASE_MARGIN_MS, LEASE_MS_DEFAULT};
use podmesh_wire::WireError;

use crate::StoreError;

/// What the manager is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerConfig {
    /// The manager's own folder: the database, the lock, and [`Endpoint`](crate::Endpoint).
    /// Created, with access for its owner alone, where it is missing.
    pub data_dir: PathBuf,
    /// Where ROUTER listens. PUB listens on the next port, heartbeats on the one after; with
    /// port 0 each takes a free one.
    pub listen: SocketAddr,
    /// How long a node counts as alive after a heartbeat.
    pub lease: Duration,
    /// The time between two heartbeats; at most half a lease.
    pub heartbeat: Duration,
    /// How long after the end of a lease the tasks of a lost node are tried elsewhere, where
    /// their job allows it: the time that its agent has to kill what it runs.
    pub lease_margin: Duration,
}

impl ManagerConfig {
    /// The defaults with a folder and an address.
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            lease: Duration::from_millis(LEASE_MS_DEFAULT),
            heartbeat: Duration::from_millis(HEARTBEAT_MS_DEFAULT),
            lease_margin: Duration::from_millis(LEASE_MARGIN_MS),
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
        if self.listen.port() > u16::MAX - 2 {
            return wrong(format!(
                "port {} leaves no room: the manager listens on it and the two ports after it",
                self.listen.port()
            ));
        }
        Ok(())
    }

    /// The address of the `nth` port after the first.
    pub(crate) fn listen_nth(&self, nth: u16) -> SocketAddr {
        let mut address = self.listen;
        if address.port() != 0 {
            address.set_port(address.port() + nth);
        }
        address
    }
}

/// Whether only this machine can reach an address.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
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
    /// An address cannot be listened on.
    #[error("{source}; {what} are to listen there: choose another address (--listen)")]
    Listen {
        /// What was to listen.
        what: &'static str,
        /// Why it cannot.
        source: WireError,
    },
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
