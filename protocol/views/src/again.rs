//! What JSON output and HTTP show of tasks that failed, and of those that run again.

use podmesh_protocol::again as wire;
use podmesh_protocol::ids::JobId;
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::OutcomeRow;
use crate::time::rfc3339;

/// `podmesh requeue --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct RequeueOutput {
    /// The job's number.
    pub job: u64,
    /// How many tasks are queued again.
    pub tasks: u64,
    /// How many of the named tasks were left as they are because they succeeded.
    pub succeeded: u64,
    /// How many of the named tasks were left as they are because they wait or run.
    pub active: u64,
    /// The first and the last of the tasks that have had no attempt and stay cancelled: they can be
    /// requeued only together.
    pub untried: Option<(u32, u32)>,
    /// How many jobs downstream of it tasks were requeued of; they are counted in `tasks`.
    pub downstream: u32,
}

impl RequeueOutput {
    /// Returns the view of a reply about a job.
    pub fn new(job: JobId, done: &wire::Requeued) -> Self {
        let wire::Requeued { tasks, succeeded, active, downstream, untried } = *done;
        Self { job: job.0, tasks, succeeded, active, untried, downstream }
    }
}

/// `podmesh failed --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedOutput {
    /// The failed tasks by job and reason; the group with the newest failure comes first.
    pub groups: Vec<FailedRow>,
    /// Whether there are more failed tasks than were counted.
    pub more: bool,
}

/// Failed tasks of one job with the same reason.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedRow {
    /// The job's number.
    pub job: u64,
    /// Its name.
    pub name: String,
    /// How their last attempts ended; the run time is that of the example.
    pub outcome: OutcomeRow,
    /// How many tasks there are.
    pub tasks: u64,
    /// Nodes where they failed.
    pub nodes: Vec<String>,
    /// How many more nodes there are.
    pub more_nodes: u32,
    /// The index of the task that failed last.
    pub example: u32,
    /// The number of its last attempt.
    pub attempt: u32,
    /// When it failed, by the manager's clock: RFC 3339.
    pub last_at: String,
}

impl From<&wire::FailedTasks> for FailedOutput {
    fn from(failed: &wire::FailedTasks) -> Self {
        let row = |group: &wire::FailedGroup| FailedRow {
            job: group.job.0,
            name: group.name.to_string(),
            outcome: (&group.outcome).into(),
            tasks: group.tasks,
            nodes: group.nodes.iter().map(ToString::to_string).collect(),
            more_nodes: group.more_nodes,
            example: group.example.index,
            attempt: group.attempt,
            last_at: rfc3339(group.last_wall_ms),
        };
        Self { groups: failed.groups.iter().map(row).collect(), more: failed.more }
    }
}
