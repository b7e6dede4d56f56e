//! The manager's daemon: sockets, store and heartbeats around the decisions of its core.
//!
//! Every message comes through `router`. What needs a decision goes to the core's thread
//! (`threads`), whose steps go to the store's thread (`store`), and only what that has committed
//! goes on to `sender`. What only asks is answered by `requests` from the reader's thread or from
//! an agent (`log_reads`), after a wait where it is asked for (`waiters`). Heartbeats have a
//! thread of their own (`heartbeat`). Who is connected, and may be, `callers` knows. `daemon` starts and stops it all.
//!
//! Invariant: nothing leaves before what it follows from is on disk.

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
mod router;
mod sender;
mod store;
mod threads;
mod tokens;
mod waiters;

pub use config::{ManagerConfig, ManagerError};
pub use daemon::run;
pub use endpoint::{ENDPOINT_FILE, Endpoint, EndpointError};
pub use store::{BackupError, Checked, MadeBackup, StoreError, backup, check};
