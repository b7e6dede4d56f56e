//! The states and outcomes of attempts, and the agents' reports about them.

use serde::{Deserialize, Serialize};

use crate::ids::AttemptId;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::service::Health;
use crate::word::MaybeKnown;

/// How an attempt ended. `K` is [`OutcomeKind`] where something is decided on it, as in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome<K = OutcomeKind> {
    /// The kind of outcome.
    pub kind: K,
    /// The exit code of the program, if it exited. A program that could not be started has the exit
    /// code that a shell uses: 127 not found, 126 not executable, 125 for other reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the program, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer killed one of its processes. That may have been a
    /// child: the exit code can still be 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Details for people, if any; at most [`MESSAGE_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds from start to end by the agent's monotonic clock; 0 if it never ran.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ran_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An outcome as it is shown: it may have a kind of a later version.
pub type ShownOutcome = Outcome<MaybeKnown<OutcomeKind>>;

impl From<Outcome> for ShownOutcome {
    fn from(outcome: Outcome) -> Self {
        let Outcome { kind, exit_code, signal, oom_killed, message, ran_ms } = outcome;
        Self { kind: kind.into(), exit_code, signal, oom_killed, message, ran_ms }
    }
}

/// The kind of outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal, or a program that cannot be started on any node.
    Failed,
    /// Stopped at a user's request.
    Cancelled,
    /// Stopped by its timeout.
    TimedOut,
    /// Its node, or the process or container that ran it, is gone; its result is unknown.
    Lost,
    /// Its node could not start it, for a reason on the node's side: no room, or an unresponsive
    /// Docker engine. It did nothing; the task is retried without using one of its retries.
    NotStarted,
}

impl Outcome {
    /// Creates an outcome without code, signal or message.
    pub fn new(kind: OutcomeKind) -> Self {
        Self { kind, exit_code: None, signal: None, oom_killed: false, message: None, ran_ms: 0 }
    }

    /// Creates the outcome of a program that exited with `code`.
    pub fn exited(code: i32) -> Self {
        let kind = if code == 0 { OutcomeKind::Succeeded } else { OutcomeKind::Failed };
        Self { exit_code: Some(code), ..Self::new(kind) }
    }

    /// Creates the outcome for a node that cannot start anything at present.
    pub fn not_started(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::NotStarted).with_message(message)
    }

    /// Creates the outcome of a program that cannot be started: `code` is 125, 126 or 127.
    pub fn start_failed(code: i32, message: impl Into<String>) -> Self {
        Self { exit_code: Some(code), ..Self::new(OutcomeKind::Failed) }.with_message(message)
    }

    /// Turns it into the outcome of an attempt that was stopped at its timeout.
    #[must_use]
    pub fn timed_out(self, timeout_ms: u64) -> Self {
        let (seconds, rest_ms) = (timeout_ms / 1000, timeout_ms % 1000);
        let fraction = if rest_ms == 0 { String::new() } else { format!(".{rest_ms:03}") };
        let message = format!("stopped because its timeout of {seconds}{fraction} s expired");
        Self { kind: OutcomeKind::TimedOut, ..self }.with_message(message)
    }

    /// Adds a message for people, cut at [`MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        self.message = Some(message);
        self
    }

    /// Marks it as the outcome of a program of which the kernel killed a process for lack of memory.
    #[must_use]
    pub fn out_of_memory(self) -> Self {
        let told = self.with_message(
            "out of memory: the kernel killed one of its processes; request more memory (--memory)",
        );
        Self { oom_killed: true, ..told }
    }
}

impl ShownOutcome {
    /// Describes it for people, without its message and run time: `failed, exit code 3`.
    pub fn summary(&self) -> String {
        let mut text = match &self.kind {
            MaybeKnown::Known(kind) => match kind {
                OutcomeKind::Succeeded => "succeeded",
                OutcomeKind::Failed => "failed",
                OutcomeKind::Cancelled => "was cancelled",
                OutcomeKind::TimedOut => "timed out",
                OutcomeKind::Lost => "was lost",
                OutcomeKind::NotStarted => "was not started",
            }
            .to_owned(),
            MaybeKnown::Unknown(kind) => format!("ended ({kind})"),
        };
        match (self.exit_code, self.signal) {
            (Some(code), _) if code != 0 => text += &format!(", exit code {code}"),
            (None, Some(signal)) => text += &format!(", signal {signal}"),
            _ => {}
        }
        if self.oom_killed {
            text += ", out of memory";
        }
        text
    }

    /// Returns the exit code of `podmesh run`: the task's own; 128 + signal; 124 for timed out and
    /// 130 for cancelled, if the program left neither; 125 otherwise.
    pub fn shell_code(&self) -> i32 {
        match (self.kind.known(), self.exit_code, self.signal) {
            (Some(OutcomeKind::TimedOut), ..) => 124,
            (_, Some(code), _) => code,
            (_, None, Some(signal)) => 128 + signal,
            (Some(OutcomeKind::Succeeded), ..) => 0,
            (Some(OutcomeKind::Cancelled), ..) => 130,
            (
                Some(OutcomeKind::Failed | OutcomeKind::Lost | OutcomeKind::NotStarted) | None,
                ..,
            ) => 125,
        }
    }
}

/// An agent's report about an attempt, with the number by which it is acknowledged.
///
/// On the wire: `[number, attempt, fact]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report(
    /// 1, 2, 3 … without a gap within one run of the agent process.
    pub u64,
    /// The attempt.
    pub AttemptId,
    /// The reported fact.
    pub ReportFact,
);

/// The kinds of fact in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportFact {
    /// The agent has it, and something precedes its start, such as a pull. For people.
    Preparing(String),
    /// It has started.
    Started,
    /// It has ended, and the last byte of its output is in the file.
    Ended(Outcome),
    /// Output was lost; the file itself says where. For people.
    LogGap(String),
    /// A replica listens on these ports of its node, in the order of the names in its spec. Follows
    /// each start, also one of an attempt that was adopted.
    Listening(Vec<u16>),
    /// The health of a replica has changed. The text is what the last check said, for people.
    Health(Health, String),
}

/// The state of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Assigned to a node that has not reported on it yet.
    Assigned,
    /// The node prepares its start.
    Preparing,
    /// It is running.
    Running,
    /// It has ended.
    Ended,
}

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for room on a node, or for its next attempt.
    Queued,
    /// A node has an attempt of it.
    Active,
    /// Its last attempt succeeded.
    Succeeded,
    /// Its last attempt failed, and no more will follow.
    Failed,
    /// A user cancelled it.
    Cancelled,
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No task has started.
    Queued,
    /// Tasks have started, and some have not ended.
    Running,
    /// It was cancelled, or too many of its tasks failed; some attempts have not ended yet.
    Cancelling,
    /// Every task succeeded.
    Succeeded,
    /// Every task has ended, and some failed.
    Failed,
    /// A user cancelled it, and none of its tasks runs.
    Cancelled,
    /// Tasks that had no attempt in time were cancelled, and the others have ended.
    Expired,
}

impl JobState {
    /// Returns whether the job has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }
}

/// How many tasks of a job are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// See [`TaskState::Queued`].
    pub queued: u32,
    /// See [`TaskState::Active`].
    pub active: u32,
    /// See [`TaskState::Succeeded`].
    pub succeeded: u32,
    /// See [`TaskState::Failed`].
    pub failed: u32,
    /// See [`TaskState::Cancelled`].
    pub cancelled: u32,
}

impl TaskCounts {
    /// Returns the number of all tasks.
    pub fn total(&self) -> u64 {
        [self.queued, self.active, self.succeeded, self.failed, self.cancelled]
            .into_iter()
            .map(u64::from)
            .sum()
    }

    /// Returns the number of tasks that have ended.
    pub fn ended(&self) -> u64 {
        [self.succeeded, self.failed, self.cancelled].into_iter().map(u64::from).sum()
    }
}
