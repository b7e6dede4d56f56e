//! The spec of a job, and the rules for it.

mod docker;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::ids::{Name, NameError};
use crate::limits::{self, *};
use crate::place::PlaceRules;
use crate::queue::DeadLetter;
use crate::ranges::Ranges;
use crate::rare::{Rare, Usual};
use crate::report::{Outcome, OutcomeKind};
use crate::schedule::ScheduledRun;
use crate::service::ReplicaSpec;
use crate::workflow::{Dependency, WorkflowPart, check_after};

pub use self::docker::{
    DeviceMapping, DockerSpec, HOST_GATEWAY, Mount, NetworkMode, PullPolicy, Ulimit, VolumeMount,
};

/// What a user submits once: what to run, how many times, and where it may run.
///
/// A `JobSpec` from the wire must not be trusted before [`JobSpec::validate`] has succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// A name for people; need not be unique.
    pub name: Name,
    /// The tasks of the job.
    #[serde(default)]
    pub array: ArrayRange,
    /// Higher ones start first; equal ones in order of arrival. Default 0.
    #[serde(default)]
    pub priority: i32,
    /// Labels that a node must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<Name, String>,
    /// The resources of one task.
    #[serde(default)]
    pub resources: Resources,
    /// What happens after a task has failed.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// What happens when the node of a running task is lost.
    #[serde(default)]
    pub on_lost: OnLost,
    /// When the job ends early, how many of its tasks run at a time, and where it waits.
    #[serde(default, skip_serializing_if = "JobRules::is_default")]
    pub rules: Rare<JobRules>,
    /// Where its tasks may go, beyond `require` and `resources`.
    #[serde(default, skip_serializing_if = "PlaceRules::is_default")]
    pub place: Rare<PlaceRules>,
    /// No task starts before this time: milliseconds since 1970 by the manager's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// The jobs that it waits for, each once: no task starts before they have ended as asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// Set by the manager if the job is a run of a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Box<ScheduledRun>>,
    /// Set by the manager if the job is the dead-letter job of a failed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Box<DeadLetter>>,
    /// Set by the manager if the job is part of a workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<Box<WorkflowPart>>,
    /// How each task is run.
    pub run: RunSpec,
}

/// How the tasks of a job are run: all that an agent needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The runtime, with its options.
    pub runtime: RuntimeSpec,
    /// Program and arguments. With `docker` it may be empty: the image's own command then runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment variables, in addition to those of podmesh itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working folder: in the container, or for `process` on the node (default: an empty folder
    /// for each attempt). Absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Small files that each attempt gets, by path: in a container, mounted read-only at an absolute
    /// path; for `process`, written into the work folder of the attempt, at a relative path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// The maximum run time of an attempt in milliseconds; then it is stopped and ends as timed
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds between TERM and KILL when an attempt is stopped. Default 10 s, as in Docker.
    #[serde(default = "grace_default")]
    pub stop_grace_ms: u64,
    /// Set by the manager if the task is a replica of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Box<ReplicaSpec>>,
}

impl RunSpec {
    /// The default of [`RunSpec::stop_grace_ms`].
    pub const STOP_GRACE_MS_DEFAULT: u64 = 10_000;
}

fn grace_default() -> u64 {
    RunSpec::STOP_GRACE_MS_DEFAULT
}

/// The runtime of a job, with its own options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeSpec {
    /// A command on the node itself.
    Process,
    /// A container. It has many options: other work should not need memory for them.
    Docker(Box<DockerSpec>),
    /// Succeeds at once and runs nothing: for benchmarks. Off unless an agent enables it.
    Noop,
}

impl From<DockerSpec> for RuntimeSpec {
    fn from(spec: DockerSpec) -> Self {
        Self::Docker(Box::new(spec))
    }
}

impl RuntimeSpec {
    /// Returns the kind of runtime that it needs.
    pub fn kind(&self) -> RuntimeKind {
        match self {
            Self::Process => RuntimeKind::Process,
            Self::Docker(_) => RuntimeKind::Docker,
            Self::Noop => RuntimeKind::Noop,
        }
    }
}

/// What runs an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// A process of the node.
    Process,
    /// A Docker container.
    Docker,
    /// Runs nothing; for benchmarks.
    Noop,
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Noop => "noop",
        })
    }
}

/// The indexes of a job's tasks: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayRange {
    /// The lowest index.
    pub first: u32,
    /// The highest index.
    pub last: u32,
}

impl Default for ArrayRange {
    fn default() -> Self {
        Self { first: 1, last: 1 }
    }
}

impl ArrayRange {
    /// Returns the number of tasks. A reversed range has none.
    pub fn tasks(self) -> u64 {
        (u64::from(self.last) + 1).saturating_sub(u64::from(self.first))
    }

    /// Returns whether the job has a task with this index.
    pub fn contains(self, index: u32) -> bool {
        (self.first..=self.last).contains(&index)
    }
}

/// The resources that a task needs, or that a node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes of memory; 0 reserves none and sets no limit.
    #[serde(default)]
    pub memory_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1000, memory_bytes: 0 }
    }
}

/// How many times a failed task is retried, and how long it waits before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Further attempts after the first one failed. Default 0.
    pub retries: u32,
    /// Milliseconds before the first retry; doubled for each further one. Default 1 s.
    pub backoff_ms: u64,
    /// The maximum pause in milliseconds. Default 5 min.
    pub backoff_ms_max: u64,
    /// Retry only attempts that ended with one of these exit codes: 128 + N after signal N, 124
    /// after the timeout. Attempts that were lost or could not be started are retried in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Ranges>,
    /// Do not retry attempts that ended with one of these exit codes. Not together with `on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_on: Option<Ranges>,
}

impl RetryPolicy {
    /// Returns whether an attempt with this outcome may be retried.
    pub fn allows(&self, outcome: &Outcome) -> bool {
        let code = match outcome.kind {
            OutcomeKind::TimedOut => Some(124),
            OutcomeKind::Failed => {
                outcome.exit_code.or_else(|| outcome.signal.map(|signal| 128 + signal))
            }
            OutcomeKind::Succeeded
            | OutcomeKind::Cancelled
            | OutcomeKind::Lost
            | OutcomeKind::NotStarted => return true,
        };
        let code = code.and_then(|code| u32::try_from(code).ok());
        let has = |codes: &Ranges| code.is_some_and(|code| codes.contains(code));
        self.on.as_ref().is_none_or(has) && !self.not_on.as_ref().is_some_and(has)
    }

    fn validate(&self) -> Result<(), SpecError> {
        within("retries", self.retries, 0..=i128::from(RETRIES_MAX), Some("RETRIES_MAX"))?;
        for (field, value) in
            [("backoff (ms)", self.backoff_ms), ("longest backoff (ms)", self.backoff_ms_max)]
        {
            within(field, value, 0..=i128::from(DURATION_MS_MAX), Some("DURATION_MS_MAX"))?;
        }
        if self.on.is_some() && self.not_on.is_some() {
            let why = "is given together with no_retry_on; give one of the two".into();
            return Err(SpecError::Text { field: "retry_on", why });
        }
        for (field, codes) in [("retry_on", &self.on), ("no_retry_on", &self.not_on)] {
            let Some(codes) = codes else { continue };
            within(field, codes.first(), 1..=EXIT_CODE_MAX, None)?;
            within(field, codes.last(), 1..=EXIT_CODE_MAX, None)?;
        }
        Ok(())
    }
}

/// The highest exit code of a program.
const EXIT_CODE_MAX: i128 = 255;

/// When a job ends early, how many of its tasks run at a time, where it waits, and for whom it makes
/// room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRules {
    /// When so many tasks have failed for good, the rest is cancelled, and the job has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// At most so many tasks are active at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
    /// Tasks that have had no attempt so many milliseconds after they were queued are cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// The queue that it waits in; `None`: the [default one](crate::queue::DEFAULT_QUEUE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// Whether its attempts may be stopped to make room for tasks of jobs that are not preemptible.
    /// Its tasks wait until those have been placed, and a stopped one runs again later.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub preemptible: bool,
}

impl Usual for JobRules {
    fn usual() -> &'static Self {
        static USUAL: LazyLock<JobRules> = LazyLock::new(JobRules::default);
        &USUAL
    }
}

impl JobRules {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn validate(&self) -> Result<(), SpecError> {
        let tasks = 1..=i128::from(ARRAY_TASKS_MAX);
        for (field, value) in [("max_failures", self.max_failures), ("max_active", self.max_active)]
        {
            if let Some(value) = value {
                within(field, value, tasks.clone(), Some("ARRAY_TASKS_MAX"))?;
            }
        }
        if let Some(expires_ms) = self.expires_ms {
            let times = 1..=i128::from(DURATION_MS_MAX);
            within("expires (ms)", expires_ms, times, Some("DURATION_MS_MAX"))?;
        }
        Ok(())
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries: 0, backoff_ms: 1_000, backoff_ms_max: 300_000, on: None, not_on: None }
    }
}

/// What happens when the node of a running attempt is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// Wait until the node is back: two copies never run at a time.
    #[default]
    Wait,
    /// Run it on another node when the lease has ended: at least once.
    Requeue,
}

/// A violated rule of a spec, with the field and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An invalid name.
    #[error("{field}: {source}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: NameError,
    },
    /// A required field is empty.
    #[error("{field}: must not be empty")]
    Empty {
        /// The field.
        field: &'static str,
    },
    /// A number outside its range.
    #[error("{field}: {value} is not between {min} and {max}{}", limit.map(|l| format!(" ({l})")).unwrap_or_default())]
    Range {
        /// The field.
        field: &'static str,
        /// The given value.
        value: i128,
        /// The minimum.
        min: i128,
        /// The maximum.
        max: i128,
        /// The name of the limit, if it has one.
        limit: Option<&'static str>,
    },
    /// More of something than its limit.
    #[error("{field}: {found} {unit} is over the limit of {max} ({limit})")]
    TooMuch {
        /// The field.
        field: &'static str,
        /// The given amount.
        found: usize,
        /// The unit.
        unit: &'static str,
        /// The maximum amount.
        max: usize,
        /// The name of the limit.
        limit: &'static str,
    },
    /// A text with a character that is not allowed.
    #[error("{field}: {why}")]
    Text {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

pub(crate) fn within(
    field: &'static str,
    value: impl Into<i128>,
    range: std::ops::RangeInclusive<i128>,
    limit: Option<&'static str>,
) -> Result<(), SpecError> {
    let value = value.into();
    if range.contains(&value) {
        return Ok(());
    }
    Err(SpecError::Range { field, value, min: *range.start(), max: *range.end(), limit })
}

pub(crate) fn at_most(
    field: &'static str,
    found: usize,
    unit: &'static str,
    max: usize,
    limit: &'static str,
) -> Result<(), SpecError> {
    if found <= max { Ok(()) } else { Err(SpecError::TooMuch { field, found, unit, max, limit }) }
}

pub(crate) fn no_nul(field: &'static str, text: &str) -> Result<(), SpecError> {
    match text.bytes().position(|b| b == 0) {
        None => Ok(()),
        Some(at) => {
            Err(SpecError::Text { field, why: format!("contains a NUL byte at byte {at}") })
        }
    }
}

fn absolute_path(field: &'static str, path: &str) -> Result<(), SpecError> {
    no_nul(field, path)?;
    at_most(field, path.len(), "bytes", PATH_BYTES_MAX, "PATH_BYTES_MAX")?;
    if !path.starts_with('/') {
        return Err(SpecError::Text { field, why: format!("`{path}` is not an absolute path") });
    }
    if path.split('/').any(|part| part == "..") {
        return Err(SpecError::Text { field, why: format!("`{path}` contains `..`") });
    }
    Ok(())
}

impl JobSpec {
    /// Checks every rule and limit.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.array.tasks() == 0 {
            let ArrayRange { first, last } = self.array;
            let why = format!("{first}-{last} contains no task");
            return Err(SpecError::Text { field: "array", why });
        }
        within(
            "array",
            i128::from(self.array.tasks()),
            1..=i128::from(ARRAY_TASKS_MAX),
            Some("ARRAY_TASKS_MAX"),
        )?;
        let priority = i128::from(PRIORITY_MAX);
        within("priority", self.priority, -priority..=priority, Some("PRIORITY_MAX"))?;
        at_most("require", self.require.len(), "labels", LABELS_MAX, "LABELS_MAX")?;
        for value in self.require.values() {
            validate_label_value("require", value)?;
        }
        if self.run.replica.is_some() {
            let why = "contains a replica, which only the manager sets".into();
            return Err(SpecError::Text { field: "run", why });
        }
        if self.scheduled.is_some() {
            let why = "is the run of a schedule, which only the manager sets".into();
            return Err(SpecError::Text { field: "scheduled", why });
        }
        if self.dead_letter.is_some() {
            let why = "is a dead-letter job, which only the manager submits".into();
            return Err(SpecError::Text { field: "dead_letter", why });
        }
        if self.workflow.is_some() {
            let why = "is part of a workflow, which only the manager sets".into();
            return Err(SpecError::Text { field: "workflow", why });
        }
        check_after(&self.after).map_err(|why| SpecError::Text { field: "after", why })?;
        self.resources.validate()?;
        self.retry.validate()?;
        self.rules.validate()?;
        self.place.validate()?;
        self.run.validate()
    }
}

/// Checks the value of a label.
///
/// # Errors
/// If it is longer than [`limits::LABEL_VALUE_BYTES_MAX`] or contains a control character.
pub fn validate_label_value(field: &'static str, value: &str) -> Result<(), SpecError> {
    at_most(field, value.len(), "bytes", limits::LABEL_VALUE_BYTES_MAX, "LABEL_VALUE_BYTES_MAX")?;
    if value.chars().any(char::is_control) {
        let why = format!("the value {value:?} contains a control character");
        return Err(SpecError::Text { field, why });
    }
    Ok(())
}

impl Resources {
    /// Checks the limits.
    ///
    /// # Errors
    /// If the cpus are 0 or over [`limits::CPU_MILLIS_MAX`], or the memory is over
    /// [`limits::MEMORY_BYTES_MAX`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let cpus = 1..=i128::from(CPU_MILLIS_MAX);
        within("cpus (thousandths)", self.cpu_millis, cpus, Some("CPU_MILLIS_MAX"))?;
        let memory = 0..=i128::from(MEMORY_BYTES_MAX);
        within("memory (bytes)", self.memory_bytes, memory, Some("MEMORY_BYTES_MAX"))
    }

    /// Returns whether `room` has enough of each resource.
    pub fn fits(&self, room: &Self) -> bool {
        self.cpu_millis <= room.cpu_millis && self.memory_bytes <= room.memory_bytes
    }
}

impl RunSpec {
    /// Returns the named volumes of a container; none for other runtimes.
    pub fn volumes(&self) -> &[VolumeMount] {
        match &self.runtime {
            RuntimeSpec::Docker(docker) => &docker.volumes,
            RuntimeSpec::Process | RuntimeSpec::Noop => &[],
        }
    }

    /// Checks every rule and limit of a task's run spec.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        at_most("command", self.command.len(), "arguments", COMMAND_ARGS_MAX, "COMMAND_ARGS_MAX")?;
        let bytes = self.command.iter().map(|arg| arg.len() + 1).sum();
        at_most("command", bytes, "bytes", COMMAND_BYTES_MAX, "COMMAND_BYTES_MAX")?;
        for arg in &self.command {
            no_nul("command", arg)?;
        }
        let program_missing = self.command.first().is_none_or(String::is_empty);
        match &self.runtime {
            RuntimeSpec::Process if program_missing => {
                return Err(SpecError::Empty { field: "command" });
            }
            RuntimeSpec::Docker(docker) => docker.validate()?,
            RuntimeSpec::Process | RuntimeSpec::Noop => {}
        }
        self.validate_env()?;
        if let Some(workdir) = &self.workdir {
            absolute_path("workdir", workdir)?;
        }
        self.validate_files()?;
        let limit = Some("DURATION_MS_MAX");
        if let Some(timeout_ms) = self.timeout_ms {
            within("timeout (ms)", timeout_ms, 1..=i128::from(DURATION_MS_MAX), limit)?;
        }
        within("stop grace (ms)", self.stop_grace_ms, 0..=i128::from(DURATION_MS_MAX), limit)
    }

    fn validate_files(&self) -> Result<(), SpecError> {
        let wrong = |why: String| Err(SpecError::Text { field: "files", why });
        at_most("files", self.files.len(), "files", FILES_MAX, "FILES_MAX")?;
        let bytes = self.files.iter().map(|(path, text)| path.len() + text.len()).sum();
        at_most("files", bytes, "bytes", FILES_BYTES_MAX, "FILES_BYTES_MAX")?;
        let is_container = matches!(self.runtime, RuntimeSpec::Docker(_));
        if !is_container && self.workdir.is_some() && !self.files.is_empty() {
            return wrong(
                "a command gets them in its own work folder, and `workdir` is another folder; \
                 remove one of the two"
                    .into(),
            );
        }
        for path in self.files.keys() {
            if is_container {
                absolute_path("files", path)?;
            } else {
                no_nul("files", path)?;
                at_most("files", path.len(), "bytes", PATH_BYTES_MAX, "PATH_BYTES_MAX")?;
            }
            if !is_container && path.starts_with('/') {
                return wrong(format!(
                    "`{path}` is an absolute path; a command gets files in its work folder, so \
                     write a relative path"
                ));
            }
            let below = path.strip_prefix('/').unwrap_or(path);
            if below.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return wrong(format!(
                    "`{}` is not the path of a file; write it without `.`, `..` and empty parts",
                    path.escape_debug()
                ));
            }
        }
        Ok(())
    }

    fn validate_env(&self) -> Result<(), SpecError> {
        at_most("env", self.env.len(), "variables", ENV_VARS_MAX, "ENV_VARS_MAX")?;
        let bytes = self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        at_most("env", bytes, "bytes", ENV_BYTES_MAX, "ENV_BYTES_MAX")?;
        for (name, value) in &self.env {
            if name.is_empty() {
                return Err(SpecError::Empty { field: "env: a variable's name" });
            }
            if name.contains('=') {
                let why = format!("the name `{name}` contains `=`");
                return Err(SpecError::Text { field: "env", why });
            }
            no_nul("env", name)?;
            no_nul("env", value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        JobSpec {
            name: "a".parse().unwrap(),
            array: ArrayRange::default(),
            priority: 0,
            require: BTreeMap::new(),
            resources: Resources::default(),
            retry: RetryPolicy::default(),
            on_lost: OnLost::Wait,
            rules: Default::default(),
            place: Default::default(),
            not_before_ms: None,
            after: Vec::new(),
            scheduled: None,
            dead_letter: None,
            workflow: None,
            run: RunSpec {
                runtime: RuntimeSpec::Process,
                command: vec!["true".into()],
                env: BTreeMap::new(),
                workdir: None,
                timeout_ms: None,
                stop_grace_ms: 10_000,
                replica: None,
                files: BTreeMap::new(),
            },
        }
    }

    fn refused(change: impl FnOnce(&mut JobSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_plain_spec_passes() {
        assert_eq!(spec().validate(), Ok(()));
    }

    #[test]
    fn an_error_names_the_field_and_the_limit() {
        for (said, text) in [
            (refused(|s| s.array = ArrayRange { first: 2, last: 1 }), "array"),
            (refused(|s| s.array.last = u32::MAX), "ARRAY_TASKS_MAX"),
            (refused(|s| s.array = ArrayRange { first: 0, last: u32::MAX }), "ARRAY_TASKS_MAX"),
            (refused(|s| s.priority = 1001), "PRIORITY_MAX"),
            (refused(|s| s.resources.cpu_millis = 0), "CPU_MILLIS_MAX"),
            (refused(|s| s.resources.memory_bytes = u64::MAX), "MEMORY_BYTES_MAX"),
            (refused(|s| s.retry.retries = 1001), "RETRIES_MAX"),
            (refused(|s| s.run.command.clear()), "command: must not be empty"),
            (refused(|s| s.run.command[0].clear()), "command: must not be empty"),
            (refused(|s| s.run.command.push("a\0b".into())), "NUL byte at byte 1"),
            (refused(|s| s.run.command.push("x".repeat(1 << 20))), "COMMAND_BYTES_MAX"),
            (refused(|s| _ = s.run.env.insert("A".into(), "x".repeat(10 << 20))), "ENV_BYTES_MAX"),
            (refused(|s| _ = s.run.env.insert("A=B".into(), String::new())), "contains `=`"),
            (refused(|s| s.run.workdir = Some("a".into())), "absolute"),
            (refused(|s| s.run.timeout_ms = Some(0)), "timeout"),
            (refused(|s| s.run.runtime = RuntimeSpec::from(DockerSpec::default())), "image"),
        ] {
            assert!(said.contains(text), "{said:?} does not say {text:?}");
        }
    }

    #[test]
    fn files_have_paths_that_fit_the_runtime_and_limits() {
        let with = |path: &str, container: bool| {
            let mut spec = spec();
            if container {
                let image = "busybox".into();
                spec.run.runtime = RuntimeSpec::from(DockerSpec { image, ..DockerSpec::default() });
            }
            spec.run.files.insert(path.into(), "text".into());
            spec.validate().map_err(|error| error.to_string())
        };
        assert_eq!((with("/etc/app.conf", true), with("conf/a", false)), (Ok(()), Ok(())));
        for (path, container, says) in [
            ("/etc/app.conf", false, "relative"),
            ("app.conf", true, "absolute"),
            ("/etc/", true, "not the path of a file"),
            ("/etc/../x", true, ".."),
            ("../x", false, "not the path of a file"),
            ("a//b", false, "not the path of a file"),
            ("", false, "not the path of a file"),
            ("a\0b", false, "NUL"),
        ] {
            let said = with(path, container).unwrap_err();
            assert!(said.starts_with("files") && said.contains(says), "{path}: {said}");
        }
        let many = (0..=FILES_MAX).map(|n| (n.to_string(), String::new()));
        assert!(refused(|s| s.run.files = many.collect()).contains("FILES_MAX"));
        let long = "x".repeat(FILES_BYTES_MAX);
        assert!(refused(|s| s.run.files = [("a".into(), long)].into()).contains("FILES_BYTES_MAX"));
        let said = refused(|s| {
            s.run.files.insert("a".into(), "b".into());
            s.run.workdir = Some("/srv".into());
        });
        assert!(said.contains("workdir"), "{said}");
    }

    #[test]
    fn the_largest_spec_fits_into_one_frame() {
        let mut spec = spec();
        spec.run.command = vec!["x".repeat(COMMAND_BYTES_MAX - 1)];
        spec.run.env.insert("A".into(), "y".repeat(ENV_BYTES_MAX - 3));
        spec.run.files.insert("/f".into(), "f".repeat(FILES_BYTES_MAX - 2));
        let labels = (0..LABELS_MAX).map(|n| {
            let bytes = CONTAINER_OPTIONS_BYTES_MAX / LABELS_MAX - 2;
            (format!("{n:02}"), "l".repeat(bytes))
        });
        let entrypoint = Some(vec!["z".repeat(COMMAND_BYTES_MAX - 1)]);
        spec.run.runtime = RuntimeSpec::from(DockerSpec {
            image: "i".repeat(IMAGE_BYTES_MAX),
            labels: labels.collect(),
            entrypoint,
            ..DockerSpec::default()
        });
        assert_eq!(spec.validate(), Ok(()));
        assert!(rmp_serde::to_vec_named(&spec).unwrap().len() < FRAME_BYTES_MAX - 1024);
    }
}
