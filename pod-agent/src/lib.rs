//! The daemon of a node: sessions with the manager, runtimes, capture of logs.
//!
//! [`run`] puts it together. Decisions are `podmesh-agent-core`'s; what comes in is a fact for it,
//! what comes out is a command for a runtime or a message for the manager (`agent.rs`). Beside
//! that loop run the sessions (`session.rs`), the heartbeats on a thread of their own
//! (`heartbeat.rs`), and the reads of logs (`log_reads.rs`), which never wait for the core.
//! Processes are held by a process of their own, the supervisor (`supervisor/`).

mod age_clock;
mod agent;
mod capacity;
pub mod capture;
mod clock;
mod config;
mod data_dir;
pub mod docker;
mod docker_start;
mod error;
mod heartbeat;
pub mod log_notify;
mod log_reads;
mod paths;
pub mod policy;
mod process;
mod runtimes;
mod session;
pub mod supervisor;
mod task_env;

pub use agent::run;
pub use capacity::detect_capacity;
pub use config::{AgentConfig, DockerSwitch, RuntimeSwitches};
pub use error::AgentError;
