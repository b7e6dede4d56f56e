//! Jobs and tasks, as JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

use podmesh_protocol::client as wire;
use podmesh_protocol::ids::{AttemptId, JobId, TaskId};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::report;
use podmesh_protocol::spec;
use schemars::JsonSchema;
use serde::Serialize;

use crate::time::rfc3339;
use crate::workflow::AfterOutput;

/// Defines output enums that correspond to enums of the protocol, with the same words. A word that
/// only a later version knows is passed on as it is.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $from:ty { $($(#[$vdoc:meta])* $variant:ident $word:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
        pub enum $name {
            $($(#[$vdoc])* #[schemars(rename = $word)] $variant,)*
            // The schemas have the words of this version; their readers skip others.
            #[schemars(skip)]
            #[doc = "A word that only a later version knows."]
            Unknown(String),
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self {
                    $(Self::$variant => $word,)*
                    Self::Unknown(word) => word,
                })
            }
        }

        impl From<$from> for $name {
            fn from(value: $from) -> Self {
                match value { $(<$from>::$variant => Self::$variant),* }
            }
        }

        impl From<&podmesh_protocol::word::MaybeKnown<$from>> for $name {
            fn from(word: &podmesh_protocol::word::MaybeKnown<$from>) -> Self {
                use podmesh_protocol::word::MaybeKnown;
                match word {
                    MaybeKnown::Known(value) => (*value).into(),
                    MaybeKnown::Unknown(word) => Self::Unknown(word.clone()),
                }
            }
        }

        impl Word for $name {
            fn word(&self) -> std::borrow::Cow<'static, str> {
                match self {
                    $(Self::$variant => $word.into(),)*
                    Self::Unknown(word) => $crate::text::escape(word).into(),
                }
            }
        }
    )*};
}

/// An enum of which each variant is one word.
pub trait Word {
    /// Returns the word used in JSON, safe for a terminal.
    fn word(&self) -> Cow<'static, str>;
}

pub(crate) use words;

words! {
    /// The state of a job.
    JobState = report::JobState {
        /// No task has started.
        Queued "queued",
        /// Tasks have started, and some have not ended.
        Running "running",
        /// It was cancelled, or too many of its tasks failed; some attempts have not ended yet.
        Cancelling "cancelling",
        /// Every task succeeded.
        Succeeded "succeeded",
        /// Every task has ended, and some failed.
        Failed "failed",
        /// A user cancelled it, and none of its tasks runs.
        Cancelled "cancelled",
        /// Tasks that had no attempt in time were cancelled, and the others have ended.
        Expired "expired",
    }
    /// The state of a task.
    TaskState = report::TaskState {
        /// Waits for room on a node, or for its next attempt.
        Queued "queued",
        /// A node has an attempt of it.
        Active "active",
        /// Its last attempt succeeded.
        Succeeded "succeeded",
        /// Its last attempt failed, and no more will follow.
        Failed "failed",
        /// A user cancelled it.
        Cancelled "cancelled",
    }
    /// The state of an attempt.
    AttemptState = report::AttemptState {
        /// Assigned to a node that has not reported on it yet.
        Assigned "assigned",
        /// The node prepares its start.
        Preparing "preparing",
        /// It is running.
        Running "running",
        /// It has ended.
        Ended "ended",
    }
    /// How an attempt ended.
    OutcomeKind = report::OutcomeKind {
        /// Exit code 0.
        Succeeded "succeeded",
        /// Another exit code, a signal, or it could not be started.
        Failed "failed",
        /// Stopped at a user's request.
        Cancelled "cancelled",
        /// Stopped by its timeout.
        TimedOut "timed_out",
        /// Its node, or the process or container that ran it, is gone; its result is unknown.
        Lost "lost",
        /// Its node could not start it, for a reason on the node's side.
        NotStarted "not_started",
    }
    /// Whether a node is available.
    NodeState = podmesh_protocol::node::NodeState {
        /// It has a session, and its heartbeats arrive.
        Alive "alive",
        /// Its session ended or its heartbeat is late; it gets no new work.
        Suspect "suspect",
        /// Its lease ended.
        Lost "lost",
    }
    /// What runs an attempt.
    RuntimeKind = spec::RuntimeKind {
        /// A process of the node.
        Process "process",
        /// A Docker container.
        Docker "docker",
        /// Runs nothing; for benchmarks.
        Noop "noop",
    }
    /// What happens when the node of a running attempt is lost.
    OnLost = spec::OnLost {
        /// Wait until the node is back.
        Wait "wait",
        /// Run it on another node when the lease has ended.
        Requeue "requeue",
    }
    /// The network of a container.
    NetworkMode = spec::NetworkMode {
        /// Docker's default bridge.
        Bridge "bridge",
        /// Loopback only.
        None "none",
        /// The network of the node.
        Host "host",
    }
    /// When an image is pulled.
    PullPolicy = spec::PullPolicy {
        /// If the node does not have it.
        Missing "missing",
        /// Before every start.
        Always "always",
        /// Never.
        Never "never",
    }
}

/// `podmesh submit --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct SubmitOutput {
    /// The job's number.
    pub job: u64,
    /// Its name.
    pub name: String,
    /// The number of its tasks.
    pub tasks: u64,
}

/// `podmesh cancel --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct CancelOutput {
    /// The jobs, in the order of the arguments.
    pub jobs: Vec<CancelledJob>,
}

/// A job that was cancelled, or had already ended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CancelledJob {
    /// The job's number.
    pub job: u64,
    /// Its state now: `cancelling`, or the state in which it ended before.
    pub state: JobState,
    /// How many jobs downstream of it were cancelled as well, if that was asked for.
    pub downstream: u32,
}

/// `podmesh forget --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ForgetOutput {
    /// How many jobs were removed.
    pub removed: u64,
    /// The jobs that have not ended and were not removed.
    pub active: Vec<u64>,
}

/// `podmesh jobs --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobsOutput {
    /// The jobs, newest first.
    pub jobs: Vec<JobRow>,
    /// Whether there are more jobs than `--limit`.
    pub more: bool,
}

/// A job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobRow {
    /// The job's number.
    pub job: u64,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: JobState,
    /// Its priority; higher ones start first.
    pub priority: i32,
    /// How many of its tasks are in each state.
    pub tasks: Counts,
    /// When it was submitted, by the manager's clock: RFC 3339.
    pub submitted_at: String,
    /// Who submitted it; null if an older version of podmesh accepted it.
    pub submitted_by: Option<String>,
    /// When its first attempt was assigned.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// How many of the jobs that it waits for have not ended as asked yet.
    pub unmet: u32,
    /// How many of these have ended in another way: only a requeue of them can help.
    pub blocked: u32,
}

/// How many tasks are in each state.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counts {
    /// All tasks.
    pub total: u64,
    /// Wait for room on a node, or for their next attempt.
    pub queued: u32,
    /// A node has an attempt.
    pub active: u32,
    /// The last attempt succeeded.
    pub succeeded: u32,
    /// The last attempt failed, and no more will follow.
    pub failed: u32,
    /// Cancelled.
    pub cancelled: u32,
}

impl From<&report::TaskCounts> for Counts {
    fn from(counts: &report::TaskCounts) -> Self {
        Self {
            total: counts.total(),
            queued: counts.queued,
            active: counts.active,
            succeeded: counts.succeeded,
            failed: counts.failed,
            cancelled: counts.cancelled,
        }
    }
}

impl From<&wire::JobView> for JobRow {
    fn from(view: &wire::JobView) -> Self {
        Self {
            job: view.job.0,
            name: view.name.to_string(),
            state: (&view.state).into(),
            priority: view.priority,
            tasks: (&view.counts).into(),
            submitted_at: rfc3339(view.submitted_wall_ms),
            submitted_by: view.submitted_by.as_ref().map(ToString::to_string),
            started_at: view.started_wall_ms.map(rfc3339),
            ended_at: view.ended_wall_ms.map(rfc3339),
            unmet: view.unmet,
            blocked: view.blocked,
        }
    }
}

/// `podmesh job N --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobOutput {
    /// The job as in `jobs`.
    #[serde(flatten)]
    pub row: JobRow,
    /// The revision of this state.
    pub revision: u64,
    /// Why its queued tasks wait; empty if none is queued.
    pub waits_for: Vec<String>,
    /// Why the rest of it was cancelled, if one of its rules did that.
    pub ended_early: Option<String>,
    /// The schedule that it is a run of.
    pub schedule: Option<String>,
    /// The instant of that run: RFC 3339.
    pub schedule_instant: Option<String>,
    /// The failed task that it is the dead-letter job of.
    pub dead_letter_of: Option<String>,
    /// The number of the workflow that it is part of.
    pub workflow: Option<u64>,
    /// The name of that workflow.
    pub workflow_name: Option<String>,
    /// The submitted spec.
    pub spec: SpecOutput,
}

/// The spec of a job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SpecOutput {
    /// The lowest index of a task.
    pub first_index: u32,
    /// The highest index of a task.
    pub last_index: u32,
    /// What runs its attempts.
    pub runtime: RuntimeKind,
    /// Program and arguments; empty for an image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working folder, if given.
    pub workdir: Option<String>,
    /// The files that each task gets, by path.
    pub files: BTreeMap<String, String>,
    /// Thousandths of a core for each task.
    pub cpu_millis: u32,
    /// Bytes of memory for each task; 0 if not limited and not reserved.
    pub memory_bytes: u64,
    /// Labels that a node must have.
    pub require: BTreeMap<String, String>,
    /// What each task needs of named resources, in thousandths.
    pub resource_millis: BTreeMap<String, u32>,
    /// Labels of the nodes that are tried first.
    pub prefer: BTreeMap<String, String>,
    /// The label over whose values the tasks are spread.
    pub spread: Option<String>,
    /// Whether each task has its node for itself.
    pub exclusive: bool,
    /// The maximum run time of an attempt.
    pub timeout_ms: Option<u64>,
    /// The time between TERM and KILL.
    pub stop_grace_ms: u64,
    /// How many times a failed task is retried.
    pub retries: u32,
    /// The pause before the first retry; doubled for each further one.
    pub retry_backoff_ms: u64,
    /// The maximum pause before a retry.
    pub retry_backoff_max_ms: u64,
    /// The exit codes after which a task is retried, such as `1,75`; null: all.
    pub retry_on: Option<String>,
    /// The exit codes after which a task is not retried.
    pub no_retry_on: Option<String>,
    /// How many tasks may fail before the rest is cancelled.
    pub max_failures: Option<u32>,
    /// How many tasks may be active at a time.
    pub max_active: Option<u32>,
    /// The time in which a task must have its first attempt.
    pub expires_ms: Option<u64>,
    /// The queue that it waits in; null: `default`.
    pub queue: Option<String>,
    /// Whether its attempts may be stopped to make room for jobs that are not preemptible.
    pub preemptible: bool,
    /// What happens when the node of a running attempt is lost.
    pub on_lost: OnLost,
    /// No task starts before this time: RFC 3339.
    pub not_before: Option<String>,
    /// The jobs that it waits for.
    pub after: Vec<AfterOutput>,
    /// The options of a container.
    pub container: Option<ContainerOutput>,
}

/// The options of a container.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ContainerOutput {
    /// The image.
    pub image: String,
    /// The replacement of the image's entrypoint; an empty list removes it.
    pub entrypoint: Option<Vec<String>>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// The folders and files of the node in the container.
    pub mounts: Vec<MountOutput>,
    /// The named volumes in the container.
    pub volumes: Vec<VolumeMountOutput>,
    /// The folders in memory: mount options by path.
    pub tmpfs: BTreeMap<String, String>,
    /// Whether its own file system is read-only.
    pub read_only: bool,
    /// The network.
    pub network: NetworkMode,
    /// The networks that it joins, each with its further names there.
    pub networks: BTreeMap<String, Vec<String>>,
    /// The host name; null for one that Docker makes.
    pub hostname: Option<String>,
    /// The further lines of `/etc/hosts`: `NAME:IP`.
    pub extra_hosts: Vec<String>,
    /// When the image is pulled.
    pub pull: PullPolicy,
    /// The capabilities in addition to the node's default ones.
    pub cap_add: Vec<String>,
    /// The default capabilities that it does not get.
    pub cap_drop: Vec<String>,
    /// The security options.
    pub security_opt: Vec<String>,
    /// The devices of the node: `SOURCE[:TARGET[:rwm]]`.
    pub devices: Vec<String>,
    /// The limit of processes and threads; null for the node's default.
    pub pids: Option<u32>,
    /// Further limits, by name.
    pub ulimits: BTreeMap<String, UlimitOutput>,
    /// Bytes of `/dev/shm`; null for Docker's default.
    pub shm_size: Option<u64>,
    /// Whether process 1 is a small init.
    pub init: bool,
    /// Whether the program has a terminal.
    pub tty: bool,
    /// The signal that asks the program to end; null for the image's.
    pub stop_signal: Option<String>,
    /// The labels of the container.
    pub labels: BTreeMap<String, String>,
    /// The platform of the image; null for that of the node's engine.
    pub platform: Option<String>,
}

/// A named volume inside a container.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VolumeMountOutput {
    /// The volume.
    pub volume: String,
    /// Path in the container.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// A limit; -1 means unlimited.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UlimitOutput {
    /// The limit that applies.
    pub soft: i64,
    /// The maximum of `soft`.
    pub hard: i64,
}

/// A folder or file of the node inside a container.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MountOutput {
    /// Path on the node.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

impl From<&wire::JobDetail> for JobOutput {
    fn from(detail: &wire::JobDetail) -> Self {
        Self {
            row: (&detail.view).into(),
            revision: detail.revision.0,
            waits_for: detail.waits_for.clone(),
            ended_early: detail.ended_early.clone(),
            schedule: detail.spec.scheduled.as_ref().map(|run| run.schedule.to_string()),
            schedule_instant: detail.spec.scheduled.as_ref().map(|run| rfc3339(run.instant_ms)),
            dead_letter_of: detail.spec.dead_letter.as_ref().map(|of| of.attempt.task.to_string()),
            workflow: detail.spec.workflow.as_ref().map(|part| part.workflow.0),
            workflow_name: detail.spec.workflow.as_ref().map(|part| part.name.to_string()),
            spec: (&detail.spec).into(),
        }
    }
}

impl From<&spec::JobSpec> for SpecOutput {
    fn from(spec: &spec::JobSpec) -> Self {
        Self {
            first_index: spec.array.first,
            last_index: spec.array.last,
            runtime: spec.run.runtime.kind().into(),
            command: spec.run.command.clone(),
            env: spec.run.env.clone(),
            workdir: spec.run.workdir.clone(),
            files: spec.run.files.clone(),
            cpu_millis: spec.resources.cpu_millis,
            memory_bytes: spec.resources.memory_bytes,
            require: labels(&spec.require),
            resource_millis: resource_millis(&spec.place),
            prefer: labels(&spec.place.prefer),
            spread: spec.place.spread.as_ref().map(ToString::to_string),
            exclusive: spec.place.exclusive,
            timeout_ms: spec.run.timeout_ms,
            stop_grace_ms: spec.run.stop_grace_ms,
            retries: spec.retry.retries,
            retry_backoff_ms: spec.retry.backoff_ms,
            retry_backoff_max_ms: spec.retry.backoff_ms_max,
            retry_on: spec.retry.on.as_ref().map(ToString::to_string),
            no_retry_on: spec.retry.not_on.as_ref().map(ToString::to_string),
            max_failures: spec.rules.max_failures,
            max_active: spec.rules.max_active,
            expires_ms: spec.rules.expires_ms,
            queue: spec.rules.queue.as_ref().map(ToString::to_string),
            preemptible: spec.rules.preemptible,
            on_lost: spec.on_lost.into(),
            not_before: spec.not_before_ms.map(rfc3339),
            after: spec.after.iter().map(AfterOutput::from).collect(),
            container: match &spec.run.runtime {
                spec::RuntimeSpec::Docker(docker) => Some(docker.as_ref().into()),
                spec::RuntimeSpec::Process | spec::RuntimeSpec::Noop => None,
            },
        }
    }
}

impl From<&spec::DockerSpec> for ContainerOutput {
    fn from(docker: &spec::DockerSpec) -> Self {
        let mount = |mount: &spec::Mount| MountOutput {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        };
        let volume = |volume: &spec::VolumeMount| VolumeMountOutput {
            volume: volume.volume.to_string(),
            target: volume.target.clone(),
            read_only: volume.read_only,
        };
        let ulimit = |(name, limit): (&String, &spec::Ulimit)| {
            (name.clone(), UlimitOutput { soft: limit.soft, hard: limit.hard })
        };
        Self {
            image: docker.image.clone(),
            entrypoint: docker.entrypoint.clone(),
            user: docker.user.clone(),
            mounts: docker.mounts.iter().map(mount).collect(),
            volumes: docker.volumes.iter().map(volume).collect(),
            tmpfs: docker.tmpfs.clone(),
            read_only: docker.read_only,
            network: docker.network.into(),
            networks: docker
                .networks
                .iter()
                .map(|(network, aliases)| (network.to_string(), aliases.clone()))
                .collect(),
            hostname: docker.hostname.clone(),
            extra_hosts: docker.extra_hosts.clone(),
            pull: docker.pull.into(),
            cap_add: docker.cap_add.clone(),
            cap_drop: docker.cap_drop.clone(),
            security_opt: docker.security_opt.clone(),
            devices: docker.devices.clone(),
            pids: docker.pids,
            ulimits: docker.ulimits.iter().map(ulimit).collect(),
            shm_size: docker.shm_size,
            init: docker.init,
            tty: docker.tty,
            stop_signal: docker.stop_signal.clone(),
            labels: docker.labels.clone(),
            platform: docker.platform.clone(),
        }
    }
}

pub(crate) fn labels(
    labels: &BTreeMap<podmesh_protocol::ids::Name, String>,
) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}

/// Returns what is needed of named resources, in thousandths.
pub(crate) fn resource_millis(place: &PlaceRules) -> BTreeMap<String, u32> {
    place.resources.iter().map(|(name, millis)| (name.to_string(), *millis)).collect()
}

/// `podmesh tasks N --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct TasksOutput {
    /// The job's number.
    pub job: u64,
    /// Its tasks in order of index.
    pub tasks: Vec<TaskRow>,
    /// Whether there are more tasks than `--limit`.
    pub more: bool,
}

/// A task.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TaskRow {
    /// The task, such as `42.7`.
    pub task: String,
    /// Its index in the job's array.
    pub index: u32,
    /// Its state.
    pub state: TaskState,
    /// The number of its attempts.
    pub attempts: u32,
    /// The last attempt.
    pub last_attempt: Option<AttemptRow>,
}

/// An attempt.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AttemptRow {
    /// The attempt, such as `42.7#2`.
    pub attempt: String,
    /// The attempt's number.
    pub number: u32,
    /// The node that runs or ran it.
    pub node: String,
    /// Its state.
    pub state: AttemptState,
    /// How it ended, if it has ended.
    pub outcome: Option<OutcomeRow>,
    /// When it was assigned to the node, by the manager's clock: RFC 3339.
    pub assigned_at: String,
    /// When its start was reported to the manager.
    pub started_at: Option<String>,
    /// When its end was reported to the manager.
    pub ended_at: Option<String>,
}

/// How an attempt ended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OutcomeRow {
    /// The kind of outcome.
    pub kind: OutcomeKind,
    /// The exit code of the program; 127 not found, 126 not executable, 125 not started for another
    /// reason.
    pub exit_code: Option<i32>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer killed one of its processes.
    pub oom_killed: bool,
    /// Details, if any.
    pub message: Option<String>,
    /// How long it ran.
    pub ran_ms: u64,
}

impl From<&report::ShownOutcome> for OutcomeRow {
    fn from(outcome: &report::ShownOutcome) -> Self {
        Self {
            kind: (&outcome.kind).into(),
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            oom_killed: outcome.oom_killed,
            message: outcome.message.clone(),
            ran_ms: outcome.ran_ms,
        }
    }
}

impl AttemptRow {
    /// Returns the view of an attempt of a task.
    pub fn new(task: TaskId, view: &wire::AttemptView) -> Self {
        Self {
            attempt: AttemptId { task, number: view.number }.to_string(),
            number: view.number,
            node: view.node.to_string(),
            state: (&view.state).into(),
            outcome: view.outcome.as_ref().map(Into::into),
            assigned_at: rfc3339(view.assigned_wall_ms),
            started_at: view.started_wall_ms.map(rfc3339),
            ended_at: view.ended_wall_ms.map(rfc3339),
        }
    }
}

impl From<&wire::TaskView> for TaskRow {
    fn from(view: &wire::TaskView) -> Self {
        Self {
            task: view.task.to_string(),
            index: view.task.index,
            state: (&view.state).into(),
            attempts: view.attempts,
            last_attempt: view.last.as_ref().map(|last| AttemptRow::new(view.task, last)),
        }
    }
}

impl TasksOutput {
    /// Returns the view of a page of tasks.
    pub fn new(job: JobId, tasks: &[wire::TaskView], more: bool) -> Self {
        Self { job: job.0, tasks: tasks.iter().map(Into::into).collect(), more }
    }
}
