//! Jobs that are submitted together.

use podmesh_protocol::ids::Name;
use podmesh_protocol::workflow::{
    Condition as WireCondition, Dependency, WorkflowJob, WorkflowSpec,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{InputError, JobInput, succeeded};
use crate::workflow::Condition;

/// Jobs to submit together.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkflowInput {
    /// A name for people; need not be unique.
    #[schemars(with = "String")]
    pub name: Name,
    /// The jobs, in the order of their numbers. Their names differ.
    pub jobs: Vec<WorkflowJobInput>,
}

/// A job of a workflow.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct WorkflowJobInput {
    /// Its name and what it runs.
    #[serde(flatten)]
    pub job: JobInput,
    /// The jobs of the workflow that it waits for.
    #[serde(default)]
    pub after: Vec<NamedAfterInput>,
}

/// A job of a workflow that another one waits for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedAfterInput {
    /// The name of the upstream job.
    #[schemars(with = "String")]
    pub job: Name,
    /// How it must end; default `succeeded`.
    #[serde(default = "succeeded")]
    #[schemars(with = "Condition")]
    pub when: WireCondition,
}

impl TryFrom<WorkflowInput> for WorkflowSpec {
    type Error = InputError;

    fn try_from(input: WorkflowInput) -> Result<Self, InputError> {
        let job = |job: WorkflowJobInput| {
            let after = job.after.into_iter();
            let after = after.map(|after| Dependency { job: after.job, when: after.when });
            Ok(WorkflowJob { spec: job.job.try_into()?, after: after.collect() })
        };
        let jobs = input.jobs.into_iter().map(job).collect::<Result<_, _>>()?;
        Ok(Self { name: input.name, jobs })
    }
}
