//! The manager's configuration, and the errors that end it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_http::HttpError;
use podmesh_protocol::limits::{
    HEARTBEAT_MS_DEFAULT, KEEP_ATTEMPTS_DEFAULT, KEEP_MS_DEFAULT, LEASE_MARGIN_MS, LEASE_MS_DEFAULT,
};
use podmesh_protocol::version::VersionRange;
use podmesh_wire::WireError;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::key::KeyError;

use crate::StoreError;
use crate::submission_rate::SubmissionRate;
use crate::traces::{Collector, CollectorError};

/// The configuration of a manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerConfig {
    /// The manager's data directory, with the database, the lock, and [`Endpoint`](crate::Endpoint).
    /// If it is missing, it is created with access only for its owner.
    pub data_dir: PathBuf,
    /// The network address to listen on. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// The addresses under which other machines reach the manager, each as `host:port`. Join tokens
    /// contain them. If empty, the manager detects them.
    pub advertise: Vec<ManagerAddress>,
    /// The folder for the local sockets. It is created if it is missing.
    pub sockets_dir: PathBuf,
    /// The group whose members may use the local sockets as operators. `None` leaves the sockets to
    /// their owner and the default group of new files.
    pub sockets_group: Option<u32>,
    /// How long a node is considered alive after a heartbeat.
    pub lease: Duration,
    /// The time between two heartbeats; at most half a lease.
    pub heartbeat: Duration,
    /// How long after the end of a lease the tasks of a lost node are retried on other nodes, if
    /// their job allows it. Within this time the agent kills what it runs.
    pub lease_margin: Duration,
    /// The highest priority that operators may give a job. Admins have no such limit.
    pub priority_max: i32,
    /// How many submissions each caller has in a time. Admins, schedules and dead-letter jobs have no
    /// such limit.
    pub submissions_per_caller: Option<SubmissionRate>,
    /// How long the manager keeps what is no longer in use.
    pub retention: Retention,
    /// Where the HTTP API listens, besides its unix socket.
    pub http: HttpListen,
    /// The collector that gets traces, if any.
    pub otlp: Option<Collector>,
    /// The protocol versions that it speaks: [`VersionRange::SPOKEN`] except in tests.
    pub versions: VersionRange,
}

/// Where the HTTP API listens, besides its unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpListen {
    /// The network address; `None` for only the unix socket. Port 0 selects a free port.
    pub address: Option<SocketAddr>,
    /// Whether the manager starts without the address if another program has it.
    pub optional: bool,
    /// The files with a certificate chain and its private key, both PEM. Required for an address that
    /// is not loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// How long the manager keeps what is no longer in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long ended jobs are kept after their end.
    pub age_max: Duration,
    /// Maximum number of attempts of ended jobs that are kept; beyond it, the jobs that ended first
    /// are removed. A job without attempts counts as one.
    pub attempts_max: u64,
    /// How long lost nodes and revoked keys are kept. The key of a lost node is revoked when the
    /// node is removed.
    pub nodes_age_max: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age_max: Duration::from_millis(KEEP_MS_DEFAULT),
            attempts_max: KEEP_ATTEMPTS_DEFAULT,
            nodes_age_max: Duration::from_millis(KEEP_MS_DEFAULT),
        }
    }
}

impl ManagerConfig {
    /// Returns the default configuration with a data directory and an address.
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
            submissions_per_caller: None,
            retention: Retention::default(),
            http: HttpListen::default(),
            otlp: None,
            versions: VersionRange::SPOKEN,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ManagerError> {
        let wrong = |why: String| Err(ManagerError::Config { why });
        if self.heartbeat < Duration::from_millis(1) || self.heartbeat > self.lease / 2 {
            return wrong(format!(
                "the heartbeat interval is {} ms, but must be between 1 ms and half the lease of {} ms",
                self.heartbeat.as_millis(),
                self.lease.as_millis()
            ));
        }
        Ok(())
    }
}

/// Why the manager did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The configuration contradicts itself.
    #[error("{why}")]
    Config {
        /// The contradiction.
        why: String,
    },
    /// The data directory cannot be used.
    #[error(
        "the data directory {} cannot be used: {doing}: {source}; make it writable, or choose another one (--data-dir)",
        path.display()
    )]
    DataDir {
        /// The data directory.
        path: PathBuf,
        /// The operation that failed.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Another manager uses the data directory.
    #[error(
        "another manager{} uses the data directory {}: stop that one, or choose another directory (--data-dir)",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        path.display()
    )]
    AlreadyRunning {
        /// The data directory.
        path: PathBuf,
        /// The process ID of the other manager, if known.
        pid: Option<u32>,
    },
    /// The database cannot be used, or can no longer be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manager cannot listen on an address or in a folder.
    #[error("{source}; choose another address (--listen) or data directory (--data-dir)")]
    Listen {
        /// Why.
        source: WireError,
    },
    /// The HTTP API cannot be served.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The collector of traces cannot be reached at all.
    #[error(transparent)]
    Collector(#[from] Box<CollectorError>),
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
    /// A part of the manager ended unexpectedly. This is a bug of podmesh.
    #[error(
        "the part `{part}` of the manager ended unexpectedly; this is a bug of podmesh, see the log"
    )]
    Ended {
        /// The name of the part.
        part: &'static str,
    },
}
