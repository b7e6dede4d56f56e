//! Queues.

use podmesh_protocol::queue::{QueueCaller, QueueChange, QueueDetail, QueueView};
use podmesh_protocol::spec::JobSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::{InputError, JobInput};
use crate::json::SpecOutput;

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
    /// The name of the job that is submitted when a task of the queue has failed for good; null: there
    /// is none.
    pub dead_letter: Option<String>,
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
    /// The job that is submitted when a task of the queue has failed for good; null: there is none.
    pub dead_letter_job: Option<DeadLetterJob>,
    /// Those who have jobs in it, by name.
    pub callers: Vec<QueueCallerRow>,
    /// How many more there are.
    pub more_callers: u32,
}

/// The dead-letter job of a queue.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeadLetterJob {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// What it runs.
    pub spec: SpecOutput,
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
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueInput {
    /// What it gets of the cluster, compared with other queues that have jobs to run: 1 to 1000;
    /// default 1.
    pub weight: Option<u32>,
    /// How many of its tasks may be active at a time; 0 lifts the limit.
    pub max_active: Option<u32>,
    /// How many tasks of each caller may be active in it at a time; 0 lifts the limit.
    pub max_active_per_caller: Option<u32>,
    /// The job that is submitted when a task of the queue has failed for good.
    pub dead_letter_job: Option<JobInput>,
    /// Whether the queue no longer has such a job.
    #[serde(default)]
    pub no_dead_letter: bool,
}

impl TryFrom<QueueInput> for QueueChange {
    type Error = InputError;

    fn try_from(input: QueueInput) -> Result<Self, InputError> {
        let job = input.dead_letter_job.map(JobSpec::try_from).transpose()?;
        Ok(Self {
            weight: input.weight,
            max_active: input.max_active,
            max_active_per_caller: input.max_active_per_caller,
            dead_letter: job.map(Box::new),
            no_dead_letter: input.no_dead_letter,
        })
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
            dead_letter: view.dead_letter.as_ref().map(ToString::to_string),
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
            dead_letter_job: detail.dead_letter.as_deref().map(|job| DeadLetterJob {
                name: job.name.to_string(),
                priority: job.priority,
                spec: job.into(),
            }),
            callers: detail.callers.iter().map(QueueCallerRow::from).collect(),
            more_callers: detail.more_callers,
        }
    }
}
