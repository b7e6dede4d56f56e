//! A job that has not ended, however many tasks it has.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, JobId, Name, SubmissionId};
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::service::Health;
use podmesh_protocol::spec::{JobSpec, OnLost};
use serde::{Deserialize, Serialize};

use super::ReplicaStatus;
use crate::step::JobRow;

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// The idempotency key.
    pub submission: SubmissionId,
    /// The submitted spec.
    pub spec: Arc<JobSpec>,
    /// Who submitted it; `None` if an older version of podmesh accepted it.
    pub by: Option<Name>,
    /// Whether it was cancelled.
    pub cancelling: bool,
    /// The index of the first task that has had no attempt. The tasks after it have had none
    /// either.
    pub next_index: u64,
    /// How many of its tasks are in each state.
    pub counts: TaskCounts,
    /// The number of attempts that its tasks have had.
    pub attempts: u64,
    /// The time at which its first attempt was assigned, for display.
    pub started_wall_ms: Option<u64>,
    /// The attempts that have not ended, by the index of their task.
    pub active: BTreeMap<u32, ActiveAttempt>,
    /// The tasks that wait for a retry, by their index.
    pub retries: BTreeMap<u32, Retry>,
}

/// An attempt that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveAttempt {
    /// Its number.
    pub number: u32,
    /// The node that it was assigned to.
    pub node: Name,
    /// Its state.
    pub state: AttemptState,
    /// The earlier attempts of the task that may have used no retry.
    pub losses: Losses,
    /// What is known of a replica, once anything is.
    #[serde(default)]
    pub replica: Option<Box<ReplicaStatus>>,
}

impl ActiveAttempt {
    /// Returns what is known of a replica.
    pub fn replica(&self) -> &ReplicaStatus {
        const NOTHING: &ReplicaStatus = &ReplicaStatus {
            listening: Vec::new(),
            health: Health::Starting,
            message: String::new(),
        };
        self.replica.as_deref().unwrap_or(NOTHING)
    }
}

/// A task that waits for its next attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The number of the last attempt.
    pub number: u32,
    /// The attempts of the task that may have used no retry.
    pub losses: Losses,
    /// The node that could not start the last attempt. Another one is tried first.
    pub avoid: Option<Name>,
    /// The time at which the last attempt ended.
    pub ended_wall_ms: u64,
    /// Milliseconds from then until the next attempt.
    pub after_ms: u64,
}

/// How many ended attempts of a task may have used no retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// The lost attempts. They use no retries in jobs with `on_lost = requeue`.
    pub lost: u32,
    /// The attempts that their nodes could not start. They never use a retry.
    pub not_started: u32,
}

impl Losses {
    /// Returns how many attempts have used no retry.
    pub(crate) fn free(self, on_lost: OnLost) -> u32 {
        match on_lost {
            OnLost::Requeue => self.not_started + self.lost,
            OnLost::Wait => self.not_started,
        }
    }

    fn and(self, kind: OutcomeKind) -> Self {
        Self {
            lost: self.lost + u32::from(kind == OutcomeKind::Lost),
            not_started: self.not_started + u32::from(kind == OutcomeKind::NotStarted),
        }
    }
}

impl Retry {
    /// Returns how much is left of the wait after a restart of the manager. It is never longer than
    /// the whole wait, also if the wall clock went back meanwhile.
    pub(crate) fn remaining_ms(&self, wall_ms: u64) -> u64 {
        let due = self.ended_wall_ms.saturating_add(self.after_ms);
        due.saturating_sub(wall_ms).min(self.after_ms)
    }
}

impl Job {
    /// Returns a job none of whose tasks has had an attempt.
    pub(super) fn new(id: JobId, submission: SubmissionId, spec: Arc<JobSpec>, by: Name) -> Self {
        let queued = u32::try_from(spec.array.tasks()).unwrap_or(u32::MAX);
        Self {
            id,
            submission,
            by: Some(by),
            cancelling: false,
            next_index: u64::from(spec.array.first),
            counts: TaskCounts { queued, ..TaskCounts::default() },
            attempts: 0,
            started_wall_ms: None,
            active: BTreeMap::new(),
            retries: BTreeMap::new(),
            spec,
        }
    }

    /// Returns the number of tasks that have had no attempt and may have one.
    pub(crate) fn fresh(&self) -> u64 {
        if self.cancelling {
            return 0;
        }
        (u64::from(self.spec.array.last) + 1).saturating_sub(self.next_index)
    }

    /// Returns whether all tasks of the job have ended.
    pub fn is_over(&self) -> bool {
        self.counts.queued == 0 && self.counts.active == 0
    }

    /// Returns its state.
    pub fn state(&self) -> JobState {
        match (self.is_over(), self.cancelling) {
            (true, true) => JobState::Cancelled,
            (true, false) if self.counts.failed > 0 => JobState::Failed,
            (true, false) => JobState::Succeeded,
            (false, true) => JobState::Cancelling,
            (false, false) if self.started_wall_ms.is_some() => JobState::Running,
            (false, false) => JobState::Queued,
        }
    }

    /// Returns the part of it that changes.
    pub fn row(&self, ended_wall_ms: Option<u64>) -> JobRow {
        JobRow {
            job: self.id,
            state: self.state(),
            next_index: self.next_index,
            counts: self.counts,
            attempts: self.attempts,
            started_wall_ms: self.started_wall_ms,
            ended_wall_ms,
        }
    }

    pub(crate) fn attempt_id(&self, index: u32, number: u32) -> AttemptId {
        AttemptId::new(self.id, index, number)
    }

    pub(super) fn cancel(&mut self) {
        let fresh = u32::try_from(self.fresh()).unwrap_or(u32::MAX);
        self.cancelling = true;
        self.counts.queued -= fresh;
        self.counts.cancelled += fresh;
    }

    pub(super) fn insert(&mut self, attempt: AttemptId, node: Name, wall_ms: u64) {
        let index = attempt.task.index;
        let losses = match self.retries.remove(&index) {
            Some(retry) => retry.losses,
            None => {
                self.next_index = u64::from(index) + 1;
                Losses::default()
            }
        };
        self.counts.queued -= 1;
        self.counts.active += 1;
        self.attempts += 1;
        self.started_wall_ms.get_or_insert(wall_ms);
        let active = ActiveAttempt {
            number: attempt.number,
            node,
            state: AttemptState::Assigned,
            losses,
            replica: None,
        };
        self.active.insert(index, active);
    }

    pub(super) fn advance(&mut self, attempt: AttemptId, state: AttemptState) {
        if let Some(active) = self.active.get_mut(&attempt.task.index) {
            active.state = state;
        }
    }

    pub(super) fn set_status(&mut self, attempt: AttemptId, status: &ReplicaStatus) {
        if let Some(active) = self.active.get_mut(&attempt.task.index) {
            active.replica = Some(Box::new(status.clone()));
        }
    }

    pub(super) fn end(
        &mut self,
        attempt: AttemptId,
        kind: OutcomeKind,
        wall_ms: u64,
        retry_after_ms: Option<u64>,
    ) {
        let index = attempt.task.index;
        let Some(active) = self.active.remove(&index) else { return };
        self.counts.active -= 1;
        let Some(after_ms) = retry_after_ms else {
            *match kind {
                OutcomeKind::Succeeded => &mut self.counts.succeeded,
                OutcomeKind::Cancelled => &mut self.counts.cancelled,
                OutcomeKind::Failed
                | OutcomeKind::TimedOut
                | OutcomeKind::Lost
                | OutcomeKind::NotStarted => &mut self.counts.failed,
            } += 1;
            return;
        };
        self.counts.queued += 1;
        let retry = Retry {
            number: attempt.number,
            losses: active.losses.and(kind),
            avoid: (kind == OutcomeKind::NotStarted).then_some(active.node),
            ended_wall_ms: wall_ms,
            after_ms,
        };
        self.retries.insert(index, retry);
    }

    pub(super) fn drop_retry(&mut self, attempt: AttemptId) {
        if self.retries.remove(&attempt.task.index).is_some() {
            self.counts.queued -= 1;
            self.counts.cancelled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_does_not_restart_a_backoff() {
        let retry = Retry {
            number: 1,
            losses: Losses::default(),
            avoid: None,
            ended_wall_ms: 100_000,
            after_ms: 25_000,
        };
        assert_eq!(retry.remaining_ms(110_000), 15_000);
        assert_eq!(retry.remaining_ms(125_000), 0);
        assert_eq!(retry.remaining_ms(u64::MAX), 0, "a clock that went forward");
        assert_eq!(retry.remaining_ms(5), 25_000, "a clock that went back");
    }
}
