//! The manager's daemon: the sockets, store and heartbeats around the core.
//!
//! Every message arrives in `router`. Those of agents go to the core's thread (`core`). Requests of
//! clients go to `api`, the one door, which passes commands to the core and answers reads from the
//! core's memory, from the database (`threads`) or from an agent (`log_reads`), after a wait if the
//! request asks for one (`waiters`). The core's steps go to the store's thread (`store`), and once
//! they are committed, their effects go to `sender`. Heartbeats have their own thread (`heartbeat`).
//! `retention` finds the jobs that have been kept long enough. `callers` knows who is connected and
//! which keys are valid. `metrics` counts what happens. `traces` exports spans. `daemon` starts and stops everything.
//!
//! Invariant: no message is sent before the changes that it depends on are on disk.

mod api;
mod api_tokens;
mod callers;
mod clock;
mod config;
mod core;
mod daemon;
mod data_dir;
mod endpoint;
mod heartbeat;
mod http;
mod log_reads;
mod messages;
mod metrics;
mod own_key;
mod publisher;
mod retention;
mod router;
mod sender;
mod store;
mod submission_rate;
mod threads;
mod tokens;
mod traces;
mod turns;
mod waiters;

pub use config::{HttpListen, ManagerConfig, ManagerError, Retention};
pub use daemon::run;
pub use endpoint::{ENDPOINT_FILE, Endpoint, EndpointError};
pub use store::{BackupError, BackupSummary, CheckReport, StoreError, backup, check};
pub use submission_rate::{SubmissionRate, SubmissionRateError};
pub use traces::{Collector, CollectorError, ParseCollectorError};
