//! The messages between an agent and its supervisor: MessagePack maps in frames with a length.
//!
//! Versions: a supervisor lives as long as its processes, so an agent may meet one of an older
//! program. [`VERSION`] grows when a message changes its meaning, or when something is added that
//! the other side must understand. An additional optional field does not change it. The agent's
//! hello contains the versions that it supports, and the welcome the one to use: the newest that
//! both support. If there is none, the supervisor refuses, its processes keep running, and the
//! agent ends with an error that says what to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::capture::Standing;
use crate::user::ProcessUser;

/// The newest version that this program supports.
pub(super) const VERSION: u16 = 6;
/// The first version that captures containers.
pub(super) const VERSION_CAPTURES: u16 = 2;
/// The first version in which a supervisor reports that it cannot start anything, and enforces the
/// timeouts of containers.
pub(super) const VERSION_TROUBLE: u16 = 3;
/// The first version that runs commands as another user.
pub(super) const VERSION_USERS: u16 = 4;
/// The first version that starts replicas, which get ports and health checks, and that writes the
/// files of a job.
pub(super) const VERSION_REPLICAS: u16 = 5;
/// The first version in which a supervisor reports how much output it has written.
pub(super) const VERSION_LOG_BYTES: u16 = 6;
/// The oldest version that this program supports.
pub(super) const VERSION_OLDEST: u16 = 1;

/// The messages of the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToSupervisor {
    /// The first message.
    Hello(Box<Hello>),
    /// Starts an attempt. Its end is always reported, even if the start fails.
    Start {
        /// The attempt.
        attempt: AttemptId,
        /// How to start it; `None` if it is the same as for the previous one.
        context: Option<Box<Context>>,
        /// Where it listens, if it is a replica.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replica: Option<Arc<Replica>>,
    },
    /// Stops an attempt: SIGTERM, and SIGKILL after the grace. A grace of 0 kills at once.
    Stop {
        /// The attempt.
        attempt: AttemptId,
        /// The grace in milliseconds.
        grace_ms: u64,
    },
    /// The attempt's end is known, so its files can be removed.
    Remove {
        /// The attempt.
        attempt: AttemptId,
    },
    /// When to kill attempts that are retried on other nodes, unless it is postponed.
    Lease {
        /// The time on the machine's monotonic clock.
        until_ms: u64,
    },
    /// Starts or stops notifications of new output.
    Watch {
        /// The attempt.
        attempt: AttemptId,
        /// Whether to notify.
        on: bool,
    },
    /// Captures the output of a container, unless it is already captured. Answered by
    /// [`ToAgent::Attached`] and [`ToAgent::Captured`].
    Capture {
        /// The attempt.
        attempt: AttemptId,
        /// The container's id.
        container: String,
        /// The address of its engine.
        engine: String,
        /// The container's state.
        standing: Standing,
        /// The timeout of the container, in milliseconds.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// The attempt was told to stop, so its output no longer waits for a full disk.
    CaptureStopped {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Ends a capture and forgets it.
    CaptureForget {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Runs a command beside the process of an attempt, as its health check. Answered by
    /// [`ToAgent::Checked`].
    Check {
        /// The attempt.
        attempt: AttemptId,
        /// The number of the check.
        number: u64,
        /// The command.
        command: Vec<String>,
        /// For how many milliseconds it may run.
        timeout_ms: u64,
    },
    /// Stops all commands and ends. Then the connection is closed.
    End,
}

/// The messages of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// Accepts a hello. The attempts that the supervisor holds follow, and then [`ToAgent::Ready`].
    Welcome {
        /// The version to use from now on.
        version: u16,
        /// The version of the supervisor's program, for people.
        program_version: String,
        /// How many containers it captures.
        #[serde(default)]
        captures: usize,
        /// Which limits (`memory`, `cpus`) are not enforced for commands, with the reason. `None`
        /// if the supervisor's version does not support limits.
        #[serde(default)]
        unenforced: Option<BTreeMap<String, String>>,
    },
    /// Refuses a hello. Then the connection is closed.
    Refused {
        /// The reason.
        message: String,
    },
    /// An attempt that the supervisor holds.
    #[serde(rename = "found")]
    Holds(Box<HeldAttempt>),
    /// All held attempts were sent.
    Ready,
    /// An attempt is running.
    Started {
        /// The attempt.
        attempt: AttemptId,
    },
    /// An attempt has ended, and the last byte of its output is in the file.
    Ended {
        /// The attempt.
        attempt: AttemptId,
        /// The outcome.
        outcome: Box<Outcome>,
    },
    /// Output of an attempt was lost.
    LogGap {
        /// The attempt.
        attempt: AttemptId,
        /// How much, and why.
        text: String,
    },
    /// A container is attached and can be started, or cannot be attached.
    Attached {
        /// The attempt.
        attempt: AttemptId,
        /// The reason why it cannot be attached.
        error: Option<String>,
    },
    /// All output of a container is in the files.
    Captured {
        /// The attempt.
        attempt: AttemptId,
        /// The timeout in milliseconds, if it was stopped because of that.
        #[serde(default)]
        timed_out_ms: Option<u64>,
    },
    /// The result of a health check.
    Checked {
        /// The number of the check.
        number: u64,
        /// Whether the command exited with 0.
        passed: bool,
        /// What it said last, or why it did not pass.
        said: String,
    },
    /// There is new output.
    Written {
        /// The attempt.
        attempt: AttemptId,
    },
    /// How many bytes of output the supervisor has written since its start. Sent now and then.
    LogBytes {
        /// The bytes.
        written: u64,
    },
    /// Whether the supervisor can start commands. Sent when that changes, and to a new agent if it
    /// cannot.
    Trouble {
        /// The reason why not.
        why: Option<String>,
    },
}

/// The first message of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The newest version that the agent supports.
    pub(super) version: u16,
    /// The oldest version that it supports.
    pub(super) version_oldest: u16,
    /// The id of its data directory.
    pub(super) agent: Uuid,
    /// Whether all commands must be stopped when the agent ends for any reason.
    pub(super) stop_with_agent: bool,
    /// The settings for the attempts that it starts.
    pub(super) terms: Terms,
}

/// An agent's settings for all attempts that it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Terms {
    /// The node's name.
    pub(super) node: Name,
    /// The folder for output, as an absolute path.
    pub(super) logs_dir: PathBuf,
    /// How much output is kept.
    pub(super) rotation: Rotation,
    /// The part of the agent's environment that programs inherit.
    pub(super) env: Vec<(String, serde_bytes::ByteBuf)>,
    /// The user that programs run as; `None` if it is the agent's own.
    #[serde(default)]
    pub(super) user: Option<ProcessUser>,
}

/// A [`RotationPolicy`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Rotation {
    file_bytes_max: u64,
    files_max: u32,
    total_bytes_max: u64,
    age_max_s: u64,
}

impl From<&RotationPolicy> for Rotation {
    fn from(policy: &RotationPolicy) -> Self {
        let RotationPolicy { file_bytes_max, files_max, total_bytes_max, age_max } = *policy;
        Self { file_bytes_max, files_max, total_bytes_max, age_max_s: age_max.as_secs() }
    }
}

impl From<Rotation> for RotationPolicy {
    fn from(rotation: Rotation) -> Self {
        let Rotation { file_bytes_max, files_max, total_bytes_max, age_max_s } = rotation;
        let age_max = Duration::from_secs(age_max_s);
        Self { file_bytes_max, files_max, total_bytes_max, age_max }
    }
}

/// A [`JobContext`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Context {
    job: JobId,
    name: Name,
    on_lost: OnLost,
    resources: Resources,
    run: RunSpec,
}

impl From<&JobContext> for Context {
    fn from(context: &JobContext) -> Self {
        // What it has of named resources is in the variables of `run`.
        let JobContext { job, name, on_lost, resources, run, claims: _ } = context.clone();
        Self { job, name, on_lost, resources, run }
    }
}

impl From<Context> for JobContext {
    fn from(context: Context) -> Self {
        let Context { job, name, on_lost, resources, run } = context;
        Self { job, name, on_lost, resources, run, claims: Default::default() }
    }
}

/// An attempt that a supervisor holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeldAttempt {
    /// The attempt.
    pub(super) attempt: AttemptId,
    /// What to do when the lease ends.
    pub(super) on_lost: OnLost,
    /// How it ended; `None` while it is active.
    pub(super) ended: Option<Outcome>,
    /// Whether it was started.
    pub(super) started: bool,
    /// How long it has run, in milliseconds.
    pub(super) ran_ms: u64,
    /// Where it listens, if it is a replica and active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replica: Option<Arc<Replica>>,
}
