//! The daemon of a node: sessions with the manager, runtimes, capture of logs.
//!
//! [`run`] puts it together. Decisions are `podmesh-agent-core`'s; what comes in is a fact for it,
//! what comes out is a command for a runtime or a message for the manager (`agent.rs`). Beside
//! that loop run the sessions (`session.rs`), the heartbeats on a thread of their own
//! (`heartbeat.rs`), and the reads of logs (`log_reads.rs`), which never wait for the core.

mod agent;
mod capacity;
mod clock;
mod config;
mod data_dir;
// REPLACE this whole block by `pub mod docker;` as soon as src/docker/mod.rs is there.
#[expect(missing_docs, clippy::unused_async, reason = "stands in until src/docker/ is there")]
pub mod docker {
    use podmesh_agent_core::{
        input::{FoundAttempt, RuntimeFact},
        step::JobContext,
    };
    use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
    use std::{path::PathBuf, sync::Arc};
    #[derive(Debug, thiserror::Error)]
    #[error("there is no Docker yet")]
    pub struct DockerError;
    #[derive(Clone, Debug)]
    pub struct DockerSettings {
        pub node: Name,
        pub agent_id: uuid::Uuid,
        pub logs_dir: PathBuf,
        pub rotation: podmesh_logrotate::RotationPolicy,
        pub policy: crate::policy::NodePolicy,
        pub log_notify: crate::log_notify::LogNotify,
    }
    #[derive(Debug)]
    pub struct DockerRuntime;
    impl DockerRuntime {
        pub async fn connect(
            _: DockerSettings,
            _: tokio::sync::mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
        ) -> Result<Self, DockerError> {
            Err(DockerError)
        }
        pub async fn adopt(&self) -> Result<Vec<FoundAttempt>, DockerError> {
            Err(DockerError)
        }
        pub fn start(&self, _: AttemptId, _: Arc<JobContext>) {}
        pub fn stop(&self, _: AttemptId, _: u64) {}
        pub fn remove(&self, _: AttemptId) {}
        pub fn set_cluster(&self, _: ClusterId) {}
    }
}
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
mod task_env;

pub use agent::run;
pub use capacity::detect_capacity;
pub use config::{AgentConfig, DockerSwitch, ManagerLocator, RuntimeSwitches};
pub use error::AgentError;
