//! The integers that stand for states in the database. Never changed once released.

use podmesh_protocol::access::Role;
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskState};
use rusqlite::types::{FromSqlError, FromSqlResult};

/// What an attempt means for its task. The index of what goes on holds those below 2.
pub(super) mod standing {
    /// The attempt is with a node.
    pub(in crate::store) const ACTIVE: i64 = 0;
    /// It ended, and the task waits for its next one.
    pub(in crate::store) const RETRY: i64 = 1;
    /// It ended, or a newer one followed.
    pub(in crate::store) const OVER: i64 = 2;
    /// The task waited for its next attempt when its job was cancelled.
    pub(in crate::store) const DROPPED: i64 = 3;
}

/// A code of the table; an integer that is none of them is an error of the database.
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
    // Those below 3 go on: the index `jobs_going_on` counts on it.
    Queued = 0, Running = 1, Cancelling = 2, Succeeded = 3, Failed = 4, Cancelled = 5,
});
codes!(attempt_code, attempt_state, AttemptState {
    Assigned = 0, Preparing = 1, Running = 2, Ended = 3,
});
codes!(outcome_code, outcome_kind, OutcomeKind {
    Succeeded = 0, Failed = 1, Cancelled = 2, TimedOut = 3, Lost = 4, NotStarted = 5,
});

codes!(role_code, role, Role {
    Agent = 0, Viewer = 1, Operator = 2, Admin = 3,
});

/// Where a task stands, by its last attempt.
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

/// SQLite's integers end at 2^63 - 1. What a peer claims beyond that is cut to it: no number
/// off the wire may make a commit fail.
pub(super) fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The way back; none of our columns is negative.
pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
