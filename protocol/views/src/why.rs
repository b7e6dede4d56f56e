//! Why a job waits: a part of what [`JobOutput`](crate::json::JobOutput) shows.

use podmesh_protocol::client::JobDetail;
use podmesh_protocol::queue::DEFAULT_QUEUE;
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::JobState;

/// `podmesh job N --why`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobWhyOutput {
    /// Its number.
    pub job: u64,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: JobState,
    /// Whether tasks of it wait.
    pub waits: bool,
    /// How many of its tasks wait.
    pub queued: u32,
    /// How many tasks it has.
    pub total: u64,
    /// The queue that it is in.
    pub queue: String,
    /// Its priority among the jobs of the same caller in the queue.
    pub priority: i32,
    /// Why the tasks wait, and whose turn it is; empty if none waits.
    pub waits_for: Vec<String>,
}

impl From<&JobDetail> for JobWhyOutput {
    fn from(detail: &JobDetail) -> Self {
        let (view, spec) = (&detail.view, &detail.spec);
        let queue = spec.rules.queue.as_ref().map_or(DEFAULT_QUEUE, |queue| queue.as_str());
        Self {
            job: view.job.0,
            name: view.name.to_string(),
            state: (&view.state).into(),
            waits: view.counts.queued > 0 && !view.is_end(),
            queued: view.counts.queued,
            total: view.counts.total(),
            queue: queue.to_owned(),
            priority: spec.priority,
            waits_for: detail.waits_for.clone(),
        }
    }
}
