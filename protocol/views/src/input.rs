//! What programs send as JSON over HTTP. A spec has the same keys as in the views: what a reply
//! shows as `spec` can be sent back. Keys that are missing have the defaults of the command line.

use std::collections::BTreeMap;

use jiff::Timestamp;
use podmesh_protocol::access::Role as WireRole;
use podmesh_protocol::again::EndedAs;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::schedule::{self, ScheduleSpec, When};
use podmesh_protocol::service::{self, ServiceSpec};
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobRules, JobSpec, OnLost as WireOnLost, Resources, RetryPolicy,
    RunSpec, RuntimeKind as WireRuntimeKind, RuntimeSpec,
};
use podmesh_protocol::workflow::{
    Condition as WireCondition, Dependency, WorkflowJob, WorkflowSpec,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use crate::access::Role;
use crate::json::{ContainerOutput, OnLost, RuntimeKind};
use crate::schedule::Overlap;
use crate::service::ProjectOutput;
use crate::service_spec::{DependsOn, PortOutput, RestartWhen};
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

/// The schema of a port, of which nothing is required.
fn ports(generator: &mut SchemaGenerator) -> Schema {
    let port = optional::<PortOutput>(generator, &[]);
    schemars::json_schema!({ "type": "object", "additionalProperties": port })
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
            },
            place: PlaceRules {
                resources: spec.resource_millis,
                prefer: spec.prefer,
                spread: spec.spread,
                exclusive: spec.exclusive,
            },
            not_before_ms: spec.not_before.as_deref().map(moment).transpose()?,
            after: spec.after.into_iter().map(Dependency::from).collect(),
            scheduled: None,
            workflow: None,
            run,
        })
    }
}

fn moment(text: &str) -> Result<u64, InputError> {
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

/// What a service runs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceSpecInput {
    /// How many replicas should run; default 1.
    pub replicas: Option<u32>,
    /// What runs the replicas; default: `docker` with a container, otherwise `process`.
    #[schemars(with = "Option<RuntimeKind>")]
    pub runtime: Option<WireRuntimeKind>,
    /// Program and arguments; empty for an image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub workdir: Option<String>,
    /// The files that each replica gets, by path.
    pub files: BTreeMap<String, String>,
    /// The options of a container.
    #[schemars(schema_with = "container")]
    pub container: Option<DockerSpec>,
    /// Thousandths of a core for each replica; default 1000.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory for each replica; default 0: not limited and not reserved.
    pub memory_bytes: u64,
    /// Labels that a node must have.
    #[schemars(with = "BTreeMap<String, String>")]
    pub require: BTreeMap<Name, String>,
    /// The label over whose values replicas are spread.
    #[schemars(with = "Option<String>")]
    pub spread: Option<Name>,
    /// The project that it is a part of.
    #[schemars(with = "Option<ProjectOutput>")]
    pub project: Option<service::Project>,
    /// The services that its first replica waits for, and how far they must have come.
    #[schemars(with = "BTreeMap<String, DependsOn>")]
    pub depends_on: BTreeMap<Name, service::DependsOn>,
    /// The time between TERM and KILL; default 10 s.
    pub stop_grace_ms: Option<u64>,
    /// The time that the connections of a replica get to end before it is stopped; default 10 s.
    pub drain_ms: Option<u64>,
    /// The ports that a replica listens on, by name.
    #[schemars(schema_with = "ports")]
    pub ports: BTreeMap<Name, service::PortSpec>,
    /// How a replica shows that it works. Default: the image's own check, or a connection to the
    /// first port.
    pub health: Option<HealthInput>,
    /// When a replica that has ended is started again.
    pub restart: RestartInput,
    /// How replicas of an older revision are replaced.
    pub update: UpdateInput,
}

/// The kinds of health check.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A connection to a port is accepted.
    Tcp,
    /// An HTTP request is answered.
    Http,
    /// A command exits with 0.
    Command,
    /// A replica works as soon as it has started.
    None,
}

/// How a replica shows that it works.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct HealthInput {
    /// The kind of check.
    pub kind: CheckKind,
    /// `tcp` and `http`: the name of the port.
    #[schemars(with = "Option<String>")]
    pub port: Option<Name>,
    /// `http`: the path; default `/`.
    pub path: Option<String>,
    /// `http`: the status that the answer must have; default: 200 to 399.
    pub status: Option<u16>,
    /// `http`: further headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// `command`: program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// The time between two checks; default 10 s.
    pub interval_ms: Option<u64>,
    /// The time that a check may take; default 5 s.
    pub timeout_ms: Option<u64>,
    /// The time after the start in which failed checks do not count; default 30 s.
    pub start_period_ms: Option<u64>,
    /// How many checks in a row must fail before the replica is unhealthy; default 3.
    pub failures: Option<u32>,
}

/// When a replica that has ended is started again.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestartInput {
    /// After which ends; default: always.
    #[schemars(with = "RestartWhen")]
    pub when: service::RestartWhen,
    /// The pause before the second restart in a row, doubled for each further one; default 1 s.
    pub backoff_ms: Option<u64>,
    /// The maximum pause; default 1 min.
    pub backoff_max_ms: Option<u64>,
}

/// How replicas of an older revision are replaced.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateInput {
    /// How many replicas more than wanted may exist meanwhile; default 1.
    pub max_surge: Option<u32>,
    /// How many replicas stay healthy meanwhile; default: all.
    pub min_healthy: Option<u32>,
    /// The time within which each further replica must become healthy; default 5 min.
    pub healthy_within_ms: Option<u64>,
    /// Whether to go back to the older revision otherwise; default true.
    pub rollback: Option<bool>,
}

impl TryFrom<HealthInput> for service::HealthSpec {
    type Error = InputError;

    fn try_from(health: HealthInput) -> Result<Self, InputError> {
        let missing = |kind, field| InputError::Check { kind, field };
        let check = match health.kind {
            CheckKind::Tcp => {
                service::HealthCheck::Tcp { port: health.port.ok_or(missing("tcp", "port"))? }
            }
            CheckKind::Http => service::HealthCheck::Http {
                port: health.port.ok_or(missing("http", "port"))?,
                path: health.path.unwrap_or_else(|| "/".into()),
                status: health.status,
                headers: health.headers,
            },
            CheckKind::Command if health.command.is_empty() => {
                return Err(missing("command", "command"));
            }
            CheckKind::Command => service::HealthCheck::Command(health.command),
            CheckKind::None => service::HealthCheck::None,
        };
        let mut spec = Self::new(check);
        spec.interval_ms = health.interval_ms.unwrap_or(spec.interval_ms);
        spec.timeout_ms = health.timeout_ms.unwrap_or(spec.timeout_ms);
        spec.start_period_ms = health.start_period_ms.unwrap_or(spec.start_period_ms);
        spec.failures = health.failures.unwrap_or(spec.failures);
        Ok(spec)
    }
}

impl ServiceSpecInput {
    /// Returns the spec of a service with this name.
    ///
    /// # Errors
    /// If fields contradict each other.
    pub fn into_spec(self, name: Name) -> Result<ServiceSpec, InputError> {
        let (restart, update) =
            (service::RestartPolicy::default(), service::UpdatePolicy::default());
        Ok(ServiceSpec {
            name,
            replicas: self.replicas.unwrap_or(1),
            require: self.require,
            spread: self.spread,
            project: self.project,
            depends_on: self.depends_on,
            resources: resources(self.cpu_millis, self.memory_bytes),
            ports: self.ports.into(),
            health: self.health.map(TryInto::try_into).transpose()?,
            restart: service::RestartPolicy {
                when: self.restart.when,
                backoff_ms: self.restart.backoff_ms.unwrap_or(restart.backoff_ms),
                backoff_ms_max: self.restart.backoff_max_ms.unwrap_or(restart.backoff_ms_max),
            },
            update: service::UpdatePolicy {
                max_surge: self.update.max_surge.unwrap_or(update.max_surge),
                min_healthy: self.update.min_healthy,
                healthy_within_ms: self
                    .update
                    .healthy_within_ms
                    .unwrap_or(update.healthy_within_ms),
                rollback: self.update.rollback.unwrap_or(update.rollback),
            },
            drain_ms: self.drain_ms.unwrap_or(ServiceSpec::DRAIN_MS_DEFAULT),
            run: run(
                runtime(self.runtime, self.container)?,
                self.command,
                self.env,
                self.workdir,
                self.files,
                self.stop_grace_ms,
            ),
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
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::json::SpecOutput;
    use crate::service_spec::ServiceSpecOutput;

    /// A container with all its options.
    fn docker() -> DockerSpec {
        let docker = serde_json::json!({
            "image": "a", "entrypoint": ["b"], "user": "c",
            "mounts": [{"source": "/a", "target": "/b", "read_only": true}],
            "volumes": [{"volume": "v", "target": "/c", "read_only": false}],
            "tmpfs": {"/t": "size=1m"}, "read_only": true, "network": "host", "hostname": "h",
            "extra_hosts": ["a:1.2.3.4"], "pull": "never", "cap_add": ["CHOWN"],
            "cap_drop": ["ALL"], "security_opt": ["x"], "devices": ["/dev/x"], "pids": 5,
            "ulimits": {"nofile": {"soft": 1, "hard": 2}}, "shm_size": 9, "init": true,
            "tty": true, "stop_signal": "SIGINT", "labels": {"a": "b"}, "platform": "linux/arm64"
        });
        serde_json::from_value(docker).unwrap()
    }

    /// A run spec in which every option has another value than by default.
    fn run_spec(runtime: RuntimeSpec, timeout_ms: Option<u64>) -> RunSpec {
        RunSpec {
            runtime,
            command: vec!["echo".into()],
            env: [("A".into(), "b".into())].into(),
            workdir: Some("/w".into()),
            files: [("/f".into(), "text".into())].into(),
            timeout_ms,
            stop_grace_ms: 7,
            replica: None,
        }
    }

    #[test]
    fn a_job_that_a_reply_shows_can_be_sent_back() {
        for runtime in [RuntimeSpec::from(docker()), RuntimeSpec::Process, RuntimeSpec::Noop] {
            let spec = JobSpec {
                name: "a".parse().unwrap(),
                array: ArrayRange { first: 3, last: 9 },
                priority: 5,
                require: [("gpu".parse().unwrap(), "x".into())].into(),
                resources: Resources { cpu_millis: 5, memory_bytes: 6 },
                retry: RetryPolicy {
                    retries: 1,
                    backoff_ms: 2,
                    backoff_ms_max: 3,
                    on: None,
                    not_on: None,
                },
                on_lost: WireOnLost::Requeue,
                rules: Default::default(),
                place: PlaceRules {
                    resources: [("gpu".parse().unwrap(), 500)].into(),
                    prefer: [("disk".parse().unwrap(), "fast".into())].into(),
                    spread: Some("zone".parse().unwrap()),
                    exclusive: true,
                },
                not_before_ms: Some(1_700_000_000_123),
                after: vec![Dependency { job: JobId(4), when: WireCondition::Each }],
                scheduled: None,
                workflow: None,
                run: run_spec(runtime, Some(8)),
            };
            let shown = serde_json::to_value(SpecOutput::from(&spec)).unwrap();
            let sent = serde_json::json!({ "name": "a", "priority": 5, "spec": shown });
            let input: JobInput = serde_json::from_value(sent).unwrap();
            assert_eq!(JobSpec::try_from(input), Ok(spec));
        }
    }

    #[test]
    fn a_service_that_a_reply_shows_can_be_sent_back() {
        let port: Name = "http".parse().unwrap();
        for check in [
            service::HealthCheck::Tcp { port: port.clone() },
            service::HealthCheck::Http {
                port: port.clone(),
                path: "/x".into(),
                status: Some(204),
                headers: [("A".into(), "b".into())].into(),
            },
            service::HealthCheck::Command(vec!["true".into()]),
            service::HealthCheck::None,
        ] {
            let spec = ServiceSpec {
                name: "web".parse().unwrap(),
                replicas: 3,
                require: [("gpu".parse().unwrap(), "x".into())].into(),
                spread: Some("zone".parse().unwrap()),
                project: Some(service::Project {
                    name: "shop".parse().unwrap(),
                    member: "web".parse().unwrap(),
                    together: true,
                }),
                depends_on: [("db".parse().unwrap(), service::DependsOn::Healthy)].into(),
                resources: Resources { cpu_millis: 5, memory_bytes: 6 },
                ports: Arc::new(
                    [(
                        port.clone(),
                        service::PortSpec {
                            container: Some(80),
                            publish: Some(81),
                            proxy_protocol: true,
                        },
                    )]
                    .into(),
                ),
                health: Some(service::HealthSpec {
                    check,
                    interval_ms: 1,
                    timeout_ms: 2,
                    start_period_ms: 3,
                    failures: 4,
                }),
                restart: service::RestartPolicy {
                    when: service::RestartWhen::OnFailure,
                    backoff_ms: 1,
                    backoff_ms_max: 2,
                },
                update: service::UpdatePolicy {
                    max_surge: 2,
                    min_healthy: Some(1),
                    healthy_within_ms: 3,
                    rollback: false,
                },
                drain_ms: 9,
                run: run_spec(RuntimeSpec::from(docker()), None),
            };
            let shown = serde_json::to_value(ServiceSpecOutput::from(&spec)).unwrap();
            let input: ServiceSpecInput = serde_json::from_value(shown).unwrap();
            assert_eq!(input.into_spec(spec.name.clone()), Ok(spec));
        }
    }

    #[test]
    fn a_schedule_needs_one_rule() {
        let input = r#"{"every_ms": 5000, "overlap": "queue", "spec": {"command": ["true"]}}"#;
        let input: ScheduleInput = serde_json::from_str(input).unwrap();
        let spec = input.into_spec("a".parse().unwrap()).unwrap();
        assert_eq!((spec.catch_up_ms, spec.job.name.as_str()), (60_000, "a"));
        for wrong in [
            r#"{"spec": {}}"#,
            r#"{"every_ms": 1000, "cron": "* * * * *", "spec": {"command": ["true"]}}"#,
            r#"{"every_ms": 1000, "zone": "UTC", "spec": {"command": ["true"]}}"#,
        ] {
            let input: ScheduleInput = serde_json::from_str(wrong).unwrap();
            assert_eq!(input.into_spec("a".parse().unwrap()), Err(InputError::When), "{wrong}");
        }
    }

    #[test]
    fn little_is_enough() {
        let job: JobInput =
            serde_json::from_str(r#"{"name": "a", "spec": {"command": ["true"]}}"#).unwrap();
        let wire = r#"{"name": "a", "run": {"runtime": "process", "command": ["true"]}}"#;
        assert_eq!(JobSpec::try_from(job), Ok(serde_json::from_str::<JobSpec>(wire).unwrap()));
        let service: ServiceSpecInput = serde_json::from_str(r#"{"command": ["true"]}"#).unwrap();
        assert_eq!(
            service.into_spec("a".parse().unwrap()),
            Ok(serde_json::from_str::<ServiceSpec>(wire).unwrap())
        );
        let wrong = r#"{"name": "a", "spec": {"runtime": "docker"}}"#;
        let job: JobInput = serde_json::from_str(wrong).unwrap();
        assert_eq!(JobSpec::try_from(job), Err(InputError::NoContainer));
    }
}
