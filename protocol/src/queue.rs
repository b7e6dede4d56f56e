//! Queues: named shares of the cluster that jobs wait in.

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{AttemptId, Name};
use crate::limits::QUEUE_WEIGHT_MAX;
use crate::spec::{JobSpec, SpecError, within};

/// The queue of jobs that name none. It always exists.
pub const DEFAULT_QUEUE: &str = "default";

/// What a queue has unless it is set.
pub const QUEUE_WEIGHT_DEFAULT: u32 = 1;

/// A change of the settings of a queue. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueChange {
    /// What it gets of the cluster, compared with other queues that have jobs to run: 1 to
    /// [`QUEUE_WEIGHT_MAX`](crate::limits::QUEUE_WEIGHT_MAX).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// At most so many of its tasks are active at a time; 0 lifts the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
    /// At most so many tasks of each caller are active in it at a time; 0 lifts the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active_per_caller: Option<u32>,
    /// The job that is submitted when a task of the queue has failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Box<JobSpec>>,
    /// Whether the queue no longer has such a job. Not together with `dead_letter`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_dead_letter: bool,
}

impl QueueChange {
    /// Checks its limits.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(weight) = self.weight {
            let weights = 1..=i128::from(QUEUE_WEIGHT_MAX);
            within("weight", weight, weights, Some("QUEUE_WEIGHT_MAX"))?;
        }
        let Some(job) = &self.dead_letter else { return Ok(()) };
        let refuse = |why: &str| Err(SpecError::Text { field: "dead_letter", why: why.into() });
        if self.no_dead_letter {
            return refuse("is given and removed in one request: send only one of them");
        }
        if job.not_before_ms.is_some() {
            return refuse("has a time to start at: it starts when a task has failed");
        }
        if !job.after.is_empty() {
            return refuse("waits for other jobs: it starts when a task has failed");
        }
        job.validate()
    }
}

/// The failed task for which a dead-letter job was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The queue of the failed task.
    pub queue: Name,
    /// Its last attempt.
    pub attempt: AttemptId,
}

/// A request of a client about queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueRequest {
    /// The queues, by name. → [`QueueReply::List`]
    List {
        /// Only queues whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// One queue, with its callers. → [`QueueReply::Queue`]
    Show {
        /// The queue.
        queue: Name,
    },
    /// Adds a queue, or changes the settings of the one with the name. → [`QueueReply::Saved`]
    Set {
        /// The queue.
        queue: Name,
        /// The settings.
        change: QueueChange,
    },
    /// Lets no more tasks of a queue start. Those that run go on. → [`QueueReply::Changed`]
    Pause {
        /// The queue.
        queue: Name,
    },
    /// Ends a pause. → [`QueueReply::Changed`]
    Resume {
        /// The queue.
        queue: Name,
    },
    /// Removes a queue without jobs that have not ended. → [`QueueReply::Changed`]
    Remove {
        /// The queue.
        queue: Name,
    },
}

impl QueueRequest {
    /// Returns the required role.
    pub fn needs(&self) -> Role {
        match self {
            Self::List { .. } | Self::Show { .. } => Role::Viewer,
            Self::Set { .. } | Self::Pause { .. } | Self::Resume { .. } | Self::Remove { .. } => {
                Role::Admin
            }
        }
    }
}

/// The reply to a [`QueueRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueReply {
    /// To [`QueueRequest::List`].
    List(Vec<QueueView>),
    /// To [`QueueRequest::Show`].
    Queue(Box<QueueDetail>),
    /// To [`QueueRequest::Set`].
    Saved {
        /// Whether there was no queue with the name.
        added: bool,
        /// Whether anything has changed.
        changed: bool,
    },
    /// To [`QueueRequest::Pause`], [`QueueRequest::Resume`] and [`QueueRequest::Remove`].
    Changed {
        /// Whether anything has changed.
        changed: bool,
    },
}

/// A row of the list of queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// The queue.
    pub queue: Name,
    /// What it gets of the cluster, compared with other queues.
    pub weight: u32,
    /// At most so many of its tasks are active at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
    /// At most so many tasks of each caller are active in it at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active_per_caller: Option<u32>,
    /// Whether it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Who changed it last; `None` for the default queue until somebody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Name>,
    /// The name of its dead-letter job, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Name>,
    /// How many of its jobs have not ended.
    pub jobs: u32,
    /// How many of their tasks wait.
    pub queued: u64,
    /// How many of their tasks are active.
    pub active: u64,
    /// The cores of these, in thousandths.
    pub active_cpu_millis: u64,
}

/// Everything about a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDetail {
    /// Its row.
    pub view: QueueView,
    /// Its dead-letter job, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Box<JobSpec>>,
    /// Those who have jobs in it, by name; at most
    /// [`QUEUE_CALLERS_SHOWN`](crate::limits::QUEUE_CALLERS_SHOWN).
    pub callers: Vec<QueueCaller>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_callers: u32,
}

/// What one caller has in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCaller {
    /// The caller; `None` for jobs that an older version of podmesh accepted.
    pub caller: Option<Name>,
    /// How many of their jobs have not ended.
    pub jobs: u32,
    /// How many of their tasks wait.
    pub queued: u64,
    /// How many of their tasks are active.
    pub active: u64,
    /// The cores of these, in thousandths.
    pub active_cpu_millis: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
