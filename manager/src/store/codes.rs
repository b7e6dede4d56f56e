//! The integers that stand for states in the database. Never changed once released.

use podmesh_manager_core::state::{Closed, Stop};
use podmesh_protocol::access::Role;
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskState};
use podmesh_protocol::schedule::RunResult;
use podmesh_protocol::service::RevisionState;
use podmesh_protocol::workflow::Condition;
use rusqlite::types::{FromSqlError, FromSqlResult};

/// What an attempt means for its task. The index `attempts_going_on` holds those below 2.
pub(super) mod standing {
    /// The attempt is with a node.
    pub(in crate::store) const ACTIVE: i64 = 0;
    /// The attempt ended, and the task waits for a retry.
    pub(in crate::store) const RETRY: i64 = 1;
    /// The attempt ended, and its task has ended or has a newer attempt.
    pub(in crate::store) const OVER: i64 = 2;
    /// The task waited for a retry when its job was cancelled.
    pub(in crate::store) const DROPPED: i64 = 3;
}

/// Defines the conversions of a type from and to its codes. An unknown code is a database error.
macro_rules! codes {
    ($write:ident, $read:ident, $kind:ident { $($variant:ident = $code:literal),* $(,)? }) => {
        pub(super) fn $write(value: $kind) -> i64 {
            match value { $($kind::$variant => $code),* }
        }
        pub(super) fn $read(code: i64) -> FromSqlResult<$kind> {
            match code { $($code => Ok($kind::$variant),)* _ => Err(FromSqlError::OutOfRange(code)) }
        }
    };
}

codes!(job_code, job_state, JobState {
    // Codes below 3 are jobs that have not ended: the index `jobs_going_on` relies on it.
    Queued = 0, Running = 1, Cancelling = 2, Succeeded = 3, Failed = 4, Cancelled = 5, Expired = 6,
});
codes!(closed_code, closed, Closed {
    Cancelled = 0, MaxFailures = 1, Expired = 2,
});
codes!(stop_code, stop, Stop {
    Requeue = 0, Fail = 1, Preempt = 2,
});
codes!(attempt_code, attempt_state, AttemptState {
    Assigned = 0, Preparing = 1, Running = 2, Ended = 3,
});
codes!(outcome_code, outcome_kind, OutcomeKind {
    Succeeded = 0, Failed = 1, Cancelled = 2, TimedOut = 3, Lost = 4, NotStarted = 5,
});

codes!(revision_code, revision_state, RevisionState {
    Begun = 0, Reached = 1, Failed = 2,
});
codes!(run_result_code, run_result, RunResult {
    Ran = 0, Skipped = 1, Missed = 2,
});
codes!(scheduling_code, scheduling, Scheduling {
    Open = 0, Cordoned = 1, Draining = 2,
});
codes!(condition_code, condition, Condition {
    Succeeded = 0, Failed = 1, Ended = 2, Each = 3,
});
codes!(role_code, role, Role {
    Agent = 0, Viewer = 1, Operator = 2, Admin = 3,
});

/// Returns the state of a task, given its last attempt.
pub(super) fn task_state(standing: i64, outcome: Option<OutcomeKind>) -> TaskState {
    match (standing, outcome) {
        (standing::ACTIVE, _) => TaskState::Active,
        (standing::RETRY, _) => TaskState::Queued,
        (standing::DROPPED, _) | (_, Some(OutcomeKind::Cancelled)) => TaskState::Cancelled,
        (_, Some(OutcomeKind::Succeeded)) => TaskState::Succeeded,
        (
            _,
            Some(
                OutcomeKind::Failed
                | OutcomeKind::TimedOut
                | OutcomeKind::Lost
                | OutcomeKind::NotStarted,
            )
            | None,
        ) => TaskState::Failed,
    }
}

/// Converts to an integer of SQLite, whose maximum is 2^63 - 1. Larger numbers become the maximum,
/// so that no number from the network can make a commit fail.
pub(super) fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Converts an integer of SQLite back. No column holds negative numbers.
pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
