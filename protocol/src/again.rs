//! Requests about tasks that failed: which they are, and to run them again.

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, Name, TaskId};
use crate::ranges::Ranges;
use crate::report::{OutcomeKind, ShownOutcome, TaskState};

/// Asks to run tasks of a job again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequeueRequest {
    /// The job.
    pub job: JobId,
    /// Only tasks that ended like this. `None`: with `tasks`, all that ended without success;
    /// otherwise all that failed, were lost or timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<EndedAs>,
    /// Only tasks with these indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Ranges>,
    /// Whether to requeue as well all that ended without success of the jobs that depend on it, or on
    /// a job that does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
}

/// How a task ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedAs {
    /// It failed: every kind of failure, also lost and timed out.
    Failed,
    /// It was cancelled, or expired.
    Cancelled,
    /// It failed, and its last attempt was lost.
    Lost,
    /// It failed, and its last attempt timed out.
    TimedOut,
}

impl EndedAs {
    /// Returns whether a task in this state, whose last attempt had this outcome, ended like this.
    pub fn matches(self, state: TaskState, kind: OutcomeKind) -> bool {
        match self {
            Self::Failed => state == TaskState::Failed,
            Self::Cancelled => state == TaskState::Cancelled,
            Self::Lost => state == TaskState::Failed && kind == OutcomeKind::Lost,
            Self::TimedOut => state == TaskState::Failed && kind == OutcomeKind::TimedOut,
        }
    }
}

/// What a [`RequeueRequest`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// How many tasks are queued again.
    pub tasks: u64,
    /// How many of the named tasks were left as they are because they succeeded.
    pub succeeded: u64,
    /// How many of the named tasks were left as they are because they wait or run.
    pub active: u64,
    /// How many other jobs tasks were requeued of, with `downstream`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub downstream: u32,
    /// The tasks that have had no attempt and stay cancelled: they can be requeued only together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untried: Option<(u32, u32)>,
}

/// Failed tasks of one job with the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedGroup {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: Name,
    /// How the last attempts ended; its run time is that of the example.
    pub outcome: ShownOutcome,
    /// How many tasks there are.
    pub tasks: u64,
    /// The nodes where they failed, in order; at most
    /// [`FAILED_NODES_SHOWN`](crate::limits::FAILED_NODES_SHOWN).
    pub nodes: Vec<Name>,
    /// How many more nodes there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_nodes: u32,
    /// The task that failed last.
    pub example: TaskId,
    /// The number of its last attempt.
    pub attempt: u32,
    /// When it failed: milliseconds since 1970 by the manager's clock.
    pub last_wall_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// The failed tasks of all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTasks {
    /// The groups; the one whose last failure is the newest comes first. At most
    /// [`FAILED_GROUPS_MAX`](crate::limits::FAILED_GROUPS_MAX).
    pub groups: Vec<FailedGroup>,
    /// Whether there are more failed tasks than one reply can count.
    pub more: bool,
}
