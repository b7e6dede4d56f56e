//! What programs send as JSON over HTTP. A spec has the same keys as in the views: what a reply
//! shows as `spec` can be sent back. Keys that are missing have the defaults of the command line.

mod service;
mod workflow;

use std::collections::BTreeMap;

use jiff::Timestamp;
use podmesh_protocol::access::Role as WireRole;
use podmesh_protocol::again::EndedAs;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::schedule::{self, ScheduleSpec, When};
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobRules, JobSpec, OnLost as WireOnLost, Resources, RetryPolicy,
    RunSpec, RuntimeKind as WireRuntimeKind, RuntimeSpec,
};
use podmesh_protocol::workflow::{Condition as WireCondition, Dependency};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

pub use self::service::*;
pub use self::workflow::*;
use crate::access::Role;
use crate::json::{ContainerOutput, OnLost, RuntimeKind};
use crate::schedule::Overlap;
use crate::workflow::Condition;

/// Why an input is not a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The runtime needs other fields.
    #[error("runtime: docker needs `container`, with the image")]
    NoContainer,
    /// The fields are for another runtime.
    #[error("container: only the runtime docker has one; leave `runtime` or `container` out")]
    ContainerOfCommand,
    /// A time is not written as it must be.
    #[error("not_before: not a time in RFC 3339 from 1970 on, such as 2026-12-01T08:00:00Z")]
    Time,
    /// A time is not written as it must be.
    #[error("from: not a time in RFC 3339 from 1970 on, such as 2026-12-01T22:00:00Z")]
    From,
    /// The fields do not say when a schedule is due.
    #[error("a schedule needs either `cron` (with `zone`) or `every_ms`")]
    When,
    /// A check needs other fields.
    #[error("health: a check of the kind {kind} needs `{field}`")]
    Check {
        /// The kind.
        kind: &'static str,
        /// What is missing.
        field: &'static str,
    },
}

/// Which tasks of a job to run again.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RequeueInput {
    /// Only tasks that ended like this. Default: with `tasks` all that ended without success,
    /// otherwise all that failed.
    #[schemars(with = "Option<EndedAsInput>")]
    pub state: Option<EndedAs>,
    /// Only tasks with these indexes, such as `3,7,10-20`.
    #[schemars(with = "Option<String>")]
    pub tasks: Option<Ranges>,
    /// Whether to requeue as well all that ended without success of the jobs that depend on it, or on
    /// a job that does.
    pub downstream: bool,
}

/// A job that another one waits for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AfterInput {
    /// The number of the upstream job.
    pub job: u64,
    /// How it must end; default `succeeded`.
    #[serde(default = "succeeded")]
    #[schemars(with = "Condition")]
    pub when: WireCondition,
}

fn succeeded() -> WireCondition {
    WireCondition::Succeeded
}

impl From<AfterInput> for Dependency {
    fn from(after: AfterInput) -> Self {
        Self { job: JobId(after.job), when: after.when }
    }
}

/// How a task ended without success.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only for the schema")]
enum EndedAsInput {
    /// Failed: every kind of failure, also lost and timed out.
    Failed,
    /// Cancelled or expired.
    Cancelled,
    /// Failed, and the last attempt was lost.
    Lost,
    /// Failed, and the last attempt timed out.
    TimedOut,
}

/// A new job.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct JobInput {
    /// A name for people; need not be unique.
    #[schemars(with = "String")]
    pub name: Name,
    /// Its priority; higher ones start first.
    #[serde(default)]
    pub priority: i32,
    /// What it runs.
    pub spec: JobSpecInput,
}

/// What a job runs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JobSpecInput {
    /// The lowest index of a task; default 1.
    pub first_index: Option<u32>,
    /// The highest index of a task; default 1.
    pub last_index: Option<u32>,
    /// What runs its attempts; default: `docker` with a container, otherwise `process`.
    #[schemars(with = "Option<RuntimeKind>")]
    pub runtime: Option<WireRuntimeKind>,
    /// Program and arguments; empty for an image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub workdir: Option<String>,
    /// The files that each task gets, by path.
    pub files: BTreeMap<String, String>,
    /// Thousandths of a core for each task; default 1000.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory for each task; default 0: not limited and not reserved.
    pub memory_bytes: u64,
    /// Labels that a node must have.
    #[schemars(with = "BTreeMap<String, String>")]
    pub require: BTreeMap<Name, String>,
    /// What each task needs of named resources, in thousandths: 2000 for two, 500 for a half of one.
    #[schemars(with = "BTreeMap<String, u32>")]
    pub resource_millis: BTreeMap<Name, u32>,
    /// Labels of the nodes that are tried first.
    #[schemars(with = "BTreeMap<String, String>")]
    pub prefer: BTreeMap<Name, String>,
    /// The label over whose values the tasks are spread; default: none.
    #[schemars(with = "Option<String>")]
    pub spread: Option<Name>,
    /// Whether each task has its node for itself.
    pub exclusive: bool,
    /// The maximum run time of an attempt; default: none.
    pub timeout_ms: Option<u64>,
    /// The time between TERM and KILL; default 10 s.
    pub stop_grace_ms: Option<u64>,
    /// How many times a failed task is retried.
    pub retries: u32,
    /// The pause before the first retry, doubled for each further one; default 1 s.
    pub retry_backoff_ms: Option<u64>,
    /// The maximum pause before a retry; default 5 min.
    pub retry_backoff_max_ms: Option<u64>,
    /// Retry only after these exit codes, such as `1,75` or `1-10`: 128 + N after signal N, 124 after
    /// the timeout; default: all.
    #[schemars(with = "Option<String>")]
    pub retry_on: Option<Ranges>,
    /// Do not retry after these exit codes. Not together with `retry_on`.
    #[schemars(with = "Option<String>")]
    pub no_retry_on: Option<Ranges>,
    /// When so many tasks have failed for good, the rest is cancelled.
    pub max_failures: Option<u32>,
    /// At most so many tasks are active at a time.
    pub max_active: Option<u32>,
    /// Tasks that have had no attempt after this time are cancelled.
    pub expires_ms: Option<u64>,
    /// The queue that it waits in; default: `default`.
    #[schemars(with = "Option<String>")]
    pub queue: Option<Name>,
    /// Its attempts may be stopped to make room for jobs that are not preemptible. The tasks run
    /// again later.
    pub preemptible: bool,
    /// What happens when the node of a running attempt is lost.
    #[schemars(with = "OnLost")]
    pub on_lost: WireOnLost,
    /// No task starts before this time: RFC 3339; default: none.
    pub not_before: Option<String>,
    /// The jobs that it waits for.
    pub after: Vec<AfterInput>,
    /// The options of a container.
    #[schemars(schema_with = "container")]
    pub container: Option<DockerSpec>,
}

/// The schema of a container's options, of which only the image is required.
fn container(generator: &mut SchemaGenerator) -> Schema {
    optional::<ContainerOutput>(generator, &["image"])
}

/// The schema of a view in which only some keys are required.
fn optional<T: JsonSchema>(generator: &mut SchemaGenerator, required: &[&str]) -> Schema {
    let mut schema = T::json_schema(generator);
    schema.remove("required");
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    schema
}

fn runtime(
    kind: Option<WireRuntimeKind>,
    container: Option<DockerSpec>,
) -> Result<RuntimeSpec, InputError> {
    match (kind, container) {
        (None | Some(WireRuntimeKind::Docker), Some(docker)) => Ok(docker.into()),
        (Some(WireRuntimeKind::Docker), None) => Err(InputError::NoContainer),
        (Some(_), Some(_)) => Err(InputError::ContainerOfCommand),
        (None | Some(WireRuntimeKind::Process), None) => Ok(RuntimeSpec::Process),
        (Some(WireRuntimeKind::Noop), None) => Ok(RuntimeSpec::Noop),
    }
}

fn run(
    runtime: RuntimeSpec,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    files: BTreeMap<String, String>,
    stop_grace_ms: Option<u64>,
) -> RunSpec {
    let stop_grace_ms = stop_grace_ms.unwrap_or(RunSpec::STOP_GRACE_MS_DEFAULT);
    RunSpec {
        runtime,
        command,
        env,
        workdir,
        files,
        timeout_ms: None,
        stop_grace_ms,
        replica: None,
    }
}

fn resources(cpu_millis: Option<u32>, memory_bytes: u64) -> Resources {
    Resources { cpu_millis: cpu_millis.unwrap_or(Resources::default().cpu_millis), memory_bytes }
}

impl TryFrom<JobInput> for JobSpec {
    type Error = InputError;

    fn try_from(job: JobInput) -> Result<Self, InputError> {
        let JobInput { name, priority, spec } = job;
        let (array, retry) = (ArrayRange::default(), RetryPolicy::default());
        let mut run = run(
            runtime(spec.runtime, spec.container)?,
            spec.command,
            spec.env,
            spec.workdir,
            spec.files,
            spec.stop_grace_ms,
        );
        run.timeout_ms = spec.timeout_ms;
        Ok(Self {
            name,
            array: ArrayRange {
                first: spec.first_index.unwrap_or(array.first),
                last: spec.last_index.unwrap_or(array.last),
            },
            priority,
            require: spec.require,
            resources: resources(spec.cpu_millis, spec.memory_bytes),
            retry: RetryPolicy {
                retries: spec.retries,
                backoff_ms: spec.retry_backoff_ms.unwrap_or(retry.backoff_ms),
                backoff_ms_max: spec.retry_backoff_max_ms.unwrap_or(retry.backoff_ms_max),
                on: spec.retry_on,
                not_on: spec.no_retry_on,
            },
            on_lost: spec.on_lost,
            rules: JobRules {
                max_failures: spec.max_failures,
                max_active: spec.max_active,
                expires_ms: spec.expires_ms,
                queue: spec.queue,
                preemptible: spec.preemptible,
            }
            .into(),
            place: PlaceRules {
                resources: spec.resource_millis,
                prefer: spec.prefer,
                spread: spec.spread,
                exclusive: spec.exclusive,
            }
            .into(),
            not_before_ms: spec.not_before.as_deref().map(moment).transpose()?,
            after: spec.after.into_iter().map(Dependency::from).collect(),
            scheduled: None,
            dead_letter: None,
            workflow: None,
            run,
        })
    }
}

pub(crate) fn moment(text: &str) -> Result<u64, InputError> {
    let time: Timestamp = text.parse().map_err(|_| InputError::Time)?;
    u64::try_from(time.as_millisecond()).map_err(|_| InputError::Time)
}

/// A schedule.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct ScheduleInput {
    /// The cron pattern: five fields, or six with seconds first.
    pub cron: Option<String>,
    /// The time zone of the pattern; default UTC.
    pub zone: Option<String>,
    /// The interval, at least 1000; instead of `cron`.
    pub every_ms: Option<u64>,
    /// What happens if the last run has not ended; default `skip`.
    #[serde(default)]
    #[schemars(with = "Overlap")]
    pub overlap: schedule::Overlap,
    /// How many milliseconds late a run may start; default 60000.
    pub catch_up_ms: Option<u64>,
    /// The name of its jobs; default: that of the schedule.
    #[schemars(with = "Option<String>")]
    pub name: Option<Name>,
    /// The priority of its jobs.
    #[serde(default)]
    pub priority: i32,
    /// What its jobs run.
    pub spec: JobSpecInput,
}

impl ScheduleInput {
    /// Returns the schedule with this name.
    ///
    /// # Errors
    /// If the fields contradict each other.
    pub fn into_spec(self, name: Name) -> Result<ScheduleSpec, InputError> {
        let when = match (self.cron, self.every_ms, self.zone) {
            (Some(pattern), None, zone) => {
                When::Cron { pattern, zone: zone.unwrap_or_else(|| "UTC".into()) }
            }
            (None, Some(every_ms), None) => When::Every { every_ms },
            _ => return Err(InputError::When),
        };
        let job = JobInput {
            name: self.name.unwrap_or_else(|| name.clone()),
            priority: self.priority,
            spec: self.spec,
        };
        Ok(ScheduleSpec {
            name,
            when,
            overlap: self.overlap,
            catch_up_ms: self.catch_up_ms.unwrap_or(ScheduleSpec::CATCH_UP_MS_DEFAULT),
            job: Box::new(job.try_into()?),
        })
    }
}

/// A number of replicas.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct ScaleInput {
    /// How many replicas should run.
    pub replicas: u32,
}

/// A revision to go back to.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub struct RollbackInput {
    /// The revision; default: the one before the current one.
    pub to: Option<u32>,
}

/// A range of jobs.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct ForgetInput {
    /// The lowest job number.
    pub first: u64,
    /// The highest job number.
    pub last: u64,
}

/// A new token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct TokenInput {
    /// The role of those who join with it, or of the bearer of an API token.
    #[schemars(with = "Role")]
    pub role: WireRole,
    /// How long it can be used; default: one hour, or 90 days for an API token.
    pub ttl_ms: Option<u64>,
    /// How many machines or users can join with it; default 1.
    pub uses: Option<u32>,
    /// Whether it is an API token; otherwise it is a join token.
    #[serde(default)]
    pub api: bool,
}

/// Which key of the manager to replace.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct KeyRotateInput {
    /// The digest of the key, in hexadecimal. If the manager has another key by now, nothing
    /// happens.
    pub key: String,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
