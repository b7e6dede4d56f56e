//! What an agent and its supervisor say to each other: MessagePack maps in frames with a length.
//!
//! The rule of versions: a supervisor lives as long as its processes, and so an agent meets those
//! of older programs. [`VERSION`] grows when what is said changes its meaning, or when something
//! is added that the other side must understand; a further field that may be missing changes
//! nothing. The agent's hello names the versions that it speaks, the welcome the one that is
//! spoken from then on: the newest that both know. Where there is none the supervisor refuses, its
//! processes go on, and the agent ends with an error that says what to do.

use std::path::PathBuf;
use std::time::Duration;

use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::capture::Standing;

/// The newest version that this program speaks.
pub(super) const VERSION: u16 = 2;
/// The first version in which containers are captured.
pub(super) const VERSION_CAPTURES: u16 = 2;
/// The oldest version that it speaks.
pub(super) const VERSION_OLDEST: u16 = 1;

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToSupervisor {
    /// First.
    Hello(Box<Hello>),
    /// Start an attempt. Its end is told in any case.
    Start {
        /// Which.
        attempt: AttemptId,
        /// How; none: as the one before.
        context: Option<Box<Context>>,
    },
    /// TERM, and after the grace KILL; a grace of 0 kills at once.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Its end is known: remove what is left of it.
    Remove {
        /// Which.
        attempt: AttemptId,
    },
    /// When attempts that are tried again elsewhere are to be killed, unless it is put off.
    Lease {
        /// By the machine's monotonic clock.
        until_ms: u64,
    },
    /// Tell of new output, or no longer.
    Watch {
        /// Whose.
        attempt: AttemptId,
        /// Whether to.
        on: bool,
    },
    /// Capture the output of a container, unless it is captured already. Answered by
    /// [`ToAgent::Attached`] and [`ToAgent::Captured`].
    Capture {
        /// Whose.
        attempt: AttemptId,
        /// The container's id.
        container: String,
        /// The address of its engine.
        engine: String,
        /// Where it stands.
        standing: Standing,
    },
    /// The attempt was told to stop: its output does not wait for a full disk for long.
    CaptureStopped {
        /// Whose.
        attempt: AttemptId,
    },
    /// End a capture, and forget it.
    CaptureForget {
        /// Whose.
        attempt: AttemptId,
    },
    /// Stop all that runs, and end; then the connection is closed.
    End,
}

/// What the supervisor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// The answer to a hello. What the supervisor holds follows, and then [`ToAgent::Ready`].
    Welcome {
        /// What is spoken from now on.
        version: u16,
        /// The version of its program, for people.
        program_version: String,
        /// How many containers it captures.
        #[serde(default)]
        captures: usize,
    },
    /// The other answer; then the connection is closed.
    Refused {
        /// Why.
        message: String,
    },
    /// An attempt that it holds.
    Found(Box<Found>),
    /// All that it holds was told.
    Ready,
    /// It runs.
    Started {
        /// Which.
        attempt: AttemptId,
    },
    /// It is over, and the last byte of its output is in the file.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        outcome: Box<Outcome>,
    },
    /// Output of it was lost.
    LogGap {
        /// Which.
        attempt: AttemptId,
        /// How much, and why.
        text: String,
    },
    /// A container is attached, and can be started.
    Attached {
        /// Whose.
        attempt: AttemptId,
        /// Why it is not.
        error: Option<String>,
    },
    /// All output of a container is in the files.
    Captured {
        /// Whose.
        attempt: AttemptId,
    },
    /// There is new output.
    Written {
        /// Whose.
        attempt: AttemptId,
    },
}

/// The first words of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The newest version that it speaks.
    pub(super) version: u16,
    /// The oldest one.
    pub(super) version_oldest: u16,
    /// The id of its data directory.
    pub(super) agent: Uuid,
    /// Whether all that runs is to be stopped when the agent goes, however it does.
    pub(super) stop_with_agent: bool,
    /// What holds for the attempts that it starts.
    pub(super) terms: Terms,
}

/// What an agent says of all attempts that it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Terms {
    /// The node's name.
    pub(super) node: Name,
    /// Where output is written; absolute.
    pub(super) logs_dir: PathBuf,
    /// How much of it is kept.
    pub(super) rotation: Rotation,
    /// What programs inherit of the agent's environment.
    pub(super) env: Vec<(String, serde_bytes::ByteBuf)>,
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
        let JobContext { job, name, on_lost, resources, run } = context.clone();
        Self { job, name, on_lost, resources, run }
    }
}

impl From<Context> for JobContext {
    fn from(context: Context) -> Self {
        let Context { job, name, on_lost, resources, run } = context;
        Self { job, name, on_lost, resources, run }
    }
}

/// An attempt that a supervisor holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// Which.
    pub(super) attempt: AttemptId,
    /// What to do when the lease ends.
    pub(super) on_lost: OnLost,
    /// How it ended; none: it goes on.
    pub(super) ended: Option<Outcome>,
    /// Whether it runs, or has run.
    pub(super) started: bool,
    /// For how long it has run.
    pub(super) ran_ms: u64,
}
