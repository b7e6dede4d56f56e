//! Queues.

use podmesh_protocol::queue::{QueueCaller, QueueChange, QueueDetail, QueueView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `podmesh queue list`
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueuesOutput {
    /// The queues, by name.
    pub queues: Vec<QueueRow>,
}

/// A queue.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueRow {
    /// The queue.
    pub queue: String,
    /// What it gets of the cluster, compared with other queues that have jobs to run.
    pub weight: u32,
    /// How many of its tasks may be active at a time; null: no limit.
    pub max_active: Option<u32>,
    /// How many tasks of each caller may be active in it at a time; null: no limit.
    pub max_active_per_caller: Option<u32>,
    /// Whether it is paused: none of its tasks starts.
    pub paused: bool,
    /// Who changed it last; null for the default queue until somebody does.
    pub changed_by: Option<String>,
    /// How many of its jobs have not ended.
    pub jobs: u32,
    /// How many of their tasks wait.
    pub queued: u64,
    /// How many of their tasks are active.
    pub active: u64,
    /// The cores of these, in thousandths.
    pub active_cpu_millis: u64,
}

/// `podmesh queue show`
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueOutput {
    /// Its row.
    #[serde(flatten)]
    pub row: QueueRow,
    /// Those who have jobs in it, by name.
    pub callers: Vec<QueueCallerRow>,
    /// How many more there are.
    pub more_callers: u32,
}

/// What one caller has in a queue.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueCallerRow {
    /// The caller; null for jobs that an older version of podmesh accepted.
    pub caller: Option<String>,
    /// How many of their jobs have not ended.
    pub jobs: u32,
    /// How many of their tasks wait.
    pub queued: u64,
    /// How many of their tasks are active.
    pub active: u64,
    /// The cores of these, in thousandths.
    pub active_cpu_millis: u64,
}

/// `podmesh queue set`
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueSavedOutput {
    /// The queue.
    pub queue: String,
    /// Whether there was none with the name.
    pub added: bool,
    /// Whether anything has changed.
    pub changed: bool,
}

/// `podmesh queue pause`, and `resume` and `remove`
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueChangedOutput {
    /// The queue.
    pub queue: String,
    /// Whether anything has changed.
    pub changed: bool,
}

/// The settings of a queue. What is not given stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueInput {
    /// What it gets of the cluster, compared with other queues that have jobs to run: 1 to 1000;
    /// default 1.
    pub weight: Option<u32>,
    /// How many of its tasks may be active at a time; 0 lifts the limit.
    pub max_active: Option<u32>,
    /// How many tasks of each caller may be active in it at a time; 0 lifts the limit.
    pub max_active_per_caller: Option<u32>,
}

impl From<QueueInput> for QueueChange {
    fn from(input: QueueInput) -> Self {
        let QueueInput { weight, max_active, max_active_per_caller } = input;
        Self { weight, max_active, max_active_per_caller }
    }
}

impl From<&QueueView> for QueueRow {
    fn from(view: &QueueView) -> Self {
        Self {
            queue: view.queue.to_string(),
            weight: view.weight,
            max_active: view.max_active,
            max_active_per_caller: view.max_active_per_caller,
            paused: view.paused,
            changed_by: view.by.as_ref().map(ToString::to_string),
            jobs: view.jobs,
            queued: view.queued,
            active: view.active,
            active_cpu_millis: view.active_cpu_millis,
        }
    }
}

impl From<&QueueCaller> for QueueCallerRow {
    fn from(row: &QueueCaller) -> Self {
        Self {
            caller: row.caller.as_ref().map(ToString::to_string),
            jobs: row.jobs,
            queued: row.queued,
            active: row.active,
            active_cpu_millis: row.active_cpu_millis,
        }
    }
}

impl From<&QueueDetail> for QueueOutput {
    fn from(detail: &QueueDetail) -> Self {
        Self {
            row: QueueRow::from(&detail.view),
            callers: detail.callers.iter().map(QueueCallerRow::from).collect(),
            more_callers: detail.more_callers,
        }
    }
}
