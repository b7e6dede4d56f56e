//! What JSON output and HTTP show of workflows, and of what jobs wait for.

use podmesh_protocol::workflow as wire;
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::{JobState, Word, words};
use crate::time::rfc3339;

words! {
    /// How an upstream job must end.
    Condition = wire::Condition {
        /// All its tasks have succeeded.
        Succeeded "succeeded",
        /// It has ended otherwise: failed, cancelled or expired.
        Failed "failed",
        /// It has ended.
        Ended "ended",
        /// Index by index: a task may start when the upstream task with the same index has succeeded.
        Each "each",
    }
    /// How far a dependency has come.
    DependencyState = wire::DependencyState {
        /// The upstream job has not ended.
        Waiting "waiting",
        /// The condition was met.
        Met "met",
        /// The upstream job has ended in another way: only a requeue of it can help.
        Blocked "blocked",
    }
}

/// A job that another one waits for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AfterOutput {
    /// The number of the upstream job.
    pub job: u64,
    /// How it must end.
    pub when: Condition,
}

impl From<&wire::Dependency> for AfterOutput {
    fn from(dependency: &wire::Dependency) -> Self {
        Self { job: dependency.job.0, when: dependency.when.into() }
    }
}

/// `podmesh workflow submit --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowSubmitOutput {
    /// The number of the workflow, which is that of its first job. The numbers of the others follow.
    pub workflow: u64,
    /// Its name.
    pub name: String,
    /// How many jobs it has.
    pub jobs: u32,
}

/// `podmesh workflow cancel NAME --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowCancelOutput {
    /// The number of the workflow.
    pub workflow: u64,
    /// How many of its jobs were cancelled: those that had not ended.
    pub jobs: u32,
}

/// `podmesh workflow list --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowsOutput {
    /// The workflows, newest first.
    pub workflows: Vec<WorkflowRow>,
    /// Whether there are more workflows than asked for.
    pub more: bool,
}

/// A workflow.
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowRow {
    /// Its number, which is that of its first job.
    pub workflow: u64,
    /// Its name.
    pub name: String,
    /// How many of its jobs are in each state.
    pub jobs: WorkflowCounts,
    /// Who submitted it.
    pub submitted_by: String,
    /// When it was submitted, by the manager's clock: RFC 3339.
    pub submitted_at: String,
}

/// How many jobs of a workflow are in each state. Jobs that were removed are only in `total`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowCounts {
    /// All jobs.
    pub total: u32,
    /// Wait for other jobs, or for room on a node.
    pub queued: u32,
    /// Tasks have started, and some have not ended.
    pub running: u32,
    /// All tasks have succeeded.
    pub succeeded: u32,
    /// Failed, or expired.
    pub failed: u32,
    /// Cancelled, or being cancelled.
    pub cancelled: u32,
}

impl From<&wire::WorkflowView> for WorkflowRow {
    fn from(view: &wire::WorkflowView) -> Self {
        let wire::WorkflowCounts { queued, running, succeeded, failed, cancelled } = view.counts;
        let total = view.jobs;
        Self {
            workflow: view.workflow.0,
            name: view.name.to_string(),
            jobs: WorkflowCounts { total, queued, running, succeeded, failed, cancelled },
            submitted_by: view.submitted_by.to_string(),
            submitted_at: rfc3339(view.submitted_wall_ms),
        }
    }
}

/// `podmesh workflow show NAME --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowOutput {
    /// The workflow as in the list.
    #[serde(flatten)]
    pub row: WorkflowRow,
    /// Its jobs, in the order of their numbers.
    pub graph: Vec<WorkflowJobRow>,
    /// Whether there are more jobs than asked for.
    pub more: bool,
}

/// A job of a workflow.
#[derive(Debug, Serialize, JsonSchema)]
pub struct WorkflowJobRow {
    /// Its number.
    pub job: u64,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: JobState,
    /// What it waits for or has waited for; at most 100.
    pub after: Vec<DependencyRow>,
    /// How many more jobs it waits for or has waited for.
    pub more: u32,
}

/// A dependency of a job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DependencyRow {
    /// The number of the upstream job.
    pub job: u64,
    /// How it must end.
    pub when: Condition,
    /// How far that has come.
    pub state: DependencyState,
}

impl From<&wire::WorkflowJobView> for WorkflowJobRow {
    fn from(view: &wire::WorkflowJobView) -> Self {
        let after = view.after.iter().map(|dependency| DependencyRow {
            job: dependency.job.0,
            when: (&dependency.when).into(),
            state: (&dependency.state).into(),
        });
        Self {
            job: view.job.0,
            name: view.name.to_string(),
            state: (&view.state).into(),
            after: after.collect(),
            more: view.more,
        }
    }
}
