//! The manager's daemon: the sockets, store and heartbeats around the core.
//!
//! Every message arrives in `router`. Messages that need a decision go to the core's thread
//! (`threads`). Its steps go to the store's thread (`store`), and once they are committed, their
//! effects go to `sender`. Requests that only read are answered by `requests` with data from the
//! reader's thread or from an agent (`log_reads`), after a wait if the request asks for one
//! (`waiters`). Heartbeats have their own thread (`heartbeat`). `retention` finds the jobs that have
//! been kept long enough. `callers` knows who is connected and which keys are valid. `daemon`
//! starts and stops everything.
//!
//! Invariant: no message is sent before the changes that it depends on are on disk.

mod callers;
mod clock;
mod config;
mod daemon;
mod data_dir;
mod endpoint;
mod heartbeat;
mod log_reads;
mod own_key;
mod publisher;
mod requests;
mod retention;
mod router;
mod sender;
mod store;
mod threads;
mod tokens;
mod turns;
mod waiters;

pub use config::{ManagerConfig, ManagerError, Retention};
pub use daemon::run;
pub use endpoint::{ENDPOINT_FILE, Endpoint, EndpointError};
pub use store::{BackupError, BackupSummary, CheckReport, StoreError, backup, check};
