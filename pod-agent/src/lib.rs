//! The daemon of a node: sessions with the manager, runtimes, capture of logs.
//!
//! [`run`] connects the parts. `podmesh-agent-core` makes the decisions: its inputs are facts, and
//! its outputs are commands for a runtime or messages for the manager (`agent.rs`). Sessions
//! (`session.rs`), heartbeats on their own thread (`heartbeat.rs`) and log reads (`log_reads.rs`)
//! run separately and never wait for the core. `metrics/` shows Prometheus what the agent counts. A
//! separate process, the supervisor (`supervisor/`), holds the node's processes, and another one, the
//! proxy (`proxy/`), passes connections to replicas.

mod address;
mod age_clock;
mod agent;
mod capacity;
pub mod capture;
mod clock;
pub mod companion;
mod config;
mod data_dir;
mod disks;
pub mod docker;
mod docker_start;
mod error;
pub mod health;
mod heartbeat;
mod log_find;
pub mod log_notify;
mod log_reads;
mod log_sweep;
mod metrics;
mod nvidia;
mod paths;
pub mod policy;
pub mod ports;
mod process;
pub mod proxy;
mod runtimes;
pub mod service_names;
mod session;
pub mod supervisor;
mod task_env;
mod user;

pub use agent::run;
pub use capacity::detect_capacity;
pub use config::{AgentConfig, DockerSwitch, IngressConfig, RuntimeSwitches};
pub use error::AgentError;
pub use nvidia::{NVIDIA_GPUS, detect_gpus};
pub use process::unenforced_limits;
pub use user::{PROCESS_USER, ProcessUserError};
