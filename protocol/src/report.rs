//! What became of attempts: states, outcomes, and the reports in which agents tell of them.

use serde::{Deserialize, Serialize};

use crate::ids::AttemptId;
use crate::limits::MESSAGE_BYTES_MAX;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In a word.
    pub kind: OutcomeKind,
    /// The exit code of the program, where it exited. A program that could not be started has
    /// the code a shell would give: 127 not found, 126 not executable, 125 anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the program, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer struck in it. It may have struck a child: the
    /// exit code can be 0 all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// What there is to say, for people; at most [`MESSAGE_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds from start to end by the agent's monotonic clock; 0 where it never ran.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ran_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How an attempt ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal, or a program that cannot be started anywhere.
    Failed,
    /// Stopped because a user asked.
    Cancelled,
    /// Stopped because its time was up.
    TimedOut,
    /// Its node, or what held it there, is gone; what it did is not known.
    Lost,
    /// Its node could not start it for a reason of the node's own: no room, or no answer of its
    /// Docker engine. It has done nothing; the task is tried again, and uses no retry for it.
    NotStarted,
}

impl Outcome {
    /// An outcome without code, signal or message.
    pub fn new(kind: OutcomeKind) -> Self {
        Self { kind, exit_code: None, signal: None, oom_killed: false, message: None, ran_ms: 0 }
    }

    /// The outcome of a program that exited with `code`.
    pub fn exited(code: i32) -> Self {
        let kind = if code == 0 { OutcomeKind::Succeeded } else { OutcomeKind::Failed };
        Self { exit_code: Some(code), ..Self::new(kind) }
    }

    /// The outcome of a node that cannot start anything now.
    pub fn not_started(message: impl Into<String>) -> Self {
        Self::new(OutcomeKind::NotStarted).with_message(message)
    }

    /// The outcome of a program that cannot be started: `code` is 125, 126 or 127.
    pub fn start_failed(code: i32, message: impl Into<String>) -> Self {
        Self { exit_code: Some(code), ..Self::new(OutcomeKind::Failed) }.with_message(message)
    }

    /// The same with a message for people, cut at [`MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        self.message = Some(message);
        self
    }

    /// The exit code that `podmesh run` ends with: the task's own; 128 + signal; 124 for timed
    /// out and 130 for cancelled, where the program itself left neither; 125 otherwise.
    pub fn shell_code(&self) -> i32 {
        match (self.kind, self.exit_code, self.signal) {
            (OutcomeKind::TimedOut, ..) => 124,
            (_, Some(code), _) => code,
            (_, None, Some(signal)) => 128 + signal,
            (OutcomeKind::Succeeded, ..) => 0,
            (OutcomeKind::Cancelled, ..) => 130,
            (OutcomeKind::Failed | OutcomeKind::Lost | OutcomeKind::NotStarted, ..) => 125,
        }
    }
}

/// What an agent says of an attempt, with the number by which it is acknowledged.
///
/// On the wire: `[number, attempt, fact]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report(
    /// 1, 2, 3 … without a gap in one life of an agent process.
    pub u64,
    /// Of which attempt.
    pub AttemptId,
    /// What is said.
    pub ReportFact,
);

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportFact {
    /// It is taken up, and something comes before its start: a pull, for instance. For people.
    Preparing(String),
    /// It runs.
    Started,
    /// It is over, and the last byte of its output is in the file.
    Ended(Outcome),
    /// Output of it was lost; where, the file says itself. For people.
    LogGap(String),
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Given to a node that has not spoken of it yet.
    Assigned,
    /// The node prepares its start.
    Preparing,
    /// It runs.
    Running,
    /// It is over.
    Ended,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for room on a node, or for its next try.
    Queued,
    /// An attempt of it is with a node.
    Active,
    /// Its last attempt succeeded.
    Succeeded,
    /// Its last attempt did not, and no more will follow.
    Failed,
    /// A user cancelled it.
    Cancelled,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No task has started.
    Queued,
    /// Tasks have started, and some are not over.
    Running,
    /// A user cancelled it; some attempts have not ended yet.
    Cancelling,
    /// Every task succeeded.
    Succeeded,
    /// Every task is over, and some failed.
    Failed,
    /// A user cancelled it, and nothing of it runs any more.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to the job.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How many tasks of a job stand where.
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
    /// All tasks of the job.
    pub fn total(&self) -> u64 {
        [self.queued, self.active, self.succeeded, self.failed, self.cancelled]
            .into_iter()
            .map(u64::from)
            .sum()
    }

    /// Those that are over.
    pub fn ended(&self) -> u64 {
        [self.succeeded, self.failed, self.cancelled].into_iter().map(u64::from).sum()
    }
}
