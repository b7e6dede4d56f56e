//! A job that has not ended, however many tasks it has.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, JobId, Name, SubmissionId};
use podmesh_protocol::limits::AVOIDED_NODES_MAX;
use podmesh_protocol::place::Claims;
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::service::Health;
use podmesh_protocol::spec::{ArrayRange, JobSpec, OnLost};
use serde::{Deserialize, Serialize};

use super::{Dependency, Progress, ReplicaStatus, Upstream};
use crate::state::JobRow;

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
    /// Why the rest of it was cancelled, if it was since it was last requeued.
    pub closed: Option<Closed>,
    /// The index from which on no task has had an attempt. Those before it have, except the
    /// [skipped](Upstream::skipped) ones.
    pub next_index: u64,
    /// Whether the tasks that have had no attempt are cancelled, all of them.
    pub rest_cancelled: bool,
    /// The time since which these tasks wait.
    pub waits_since_wall_ms: u64,
    /// How many of its tasks are in each state.
    pub counts: TaskCounts,
    /// The number of attempts that its tasks have had.
    pub attempts: u64,
    /// The time at which its first attempt was assigned, for display.
    pub started_wall_ms: Option<u64>,
    /// The attempts that have not ended, by the index of their task. Boxed, because most jobs have few: a
    /// node of the map has room for eleven values.
    pub active: BTreeMap<u32, Box<ActiveAttempt>>,
    /// The tasks that wait for a retry, by their index.
    pub retries: BTreeMap<u32, Retry>,
    /// The jobs that it waits for or has waited for, if there are any.
    #[serde(default)]
    pub upstream: Option<Box<Upstream>>,
}

/// Why the rest of a job was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closed {
    /// A user cancelled it: its tasks are stopped.
    Cancelled,
    /// Too many of its tasks failed: the others are stopped.
    MaxFailures,
    /// Tasks had no attempt in time. The others go on.
    Expired,
}

/// A task that has ended, as the database has it, and is to run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedTask {
    /// Its index.
    pub index: u32,
    /// The number of its last attempt.
    pub number: u32,
    /// Whether it was cancelled. Otherwise it failed.
    pub cancelled: bool,
    /// The node of the last attempt, if the attempt failed.
    pub avoid: Option<Name>,
    /// The time at which the last attempt ended.
    pub ended_wall_ms: u64,
}

/// What earlier attempts of a task mean for the next ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The number of the last attempt before the task was last requeued; 0 if it never was.
    pub base: u32,
    /// The attempts since then that may have used no retry.
    pub losses: Losses,
    /// The nodes where the last attempts failed, from that one on, the latest last. Others are tried first.
    pub avoid: Vec<Name>,
}

impl Past {
    /// Returns the past of a task that was requeued after an attempt.
    pub fn requeued(number: u32, avoid: Option<Name>) -> Self {
        Self { base: number, losses: Losses::default(), avoid: avoid.into_iter().collect() }
    }

    /// Adds an attempt that has ended.
    pub fn add(&mut self, kind: OutcomeKind, node: Name) {
        self.losses = self.losses.and(kind);
        if failed(kind) {
            self.avoid.retain(|other| *other != node);
            self.avoid.push(node);
            if self.avoid.len() > AVOIDED_NODES_MAX {
                self.avoid.remove(0);
            }
        }
    }
}

/// Returns whether an attempt with this outcome has failed, in one way or another.
pub fn failed(kind: OutcomeKind) -> bool {
    match kind {
        OutcomeKind::Succeeded | OutcomeKind::Cancelled => false,
        OutcomeKind::Failed
        | OutcomeKind::TimedOut
        | OutcomeKind::Lost
        | OutcomeKind::NotStarted => true,
    }
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
    /// The earlier attempts of the task.
    pub past: Past,
    /// What is known of a replica, once anything is.
    #[serde(default)]
    pub replica: Option<Box<ReplicaStatus>>,
    /// Whether it is to end although its job goes on.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// What it has of the named resources of its node; `None` if it needs none.
    #[serde(default)]
    pub claims: Option<Box<Claims>>,
}

/// What becomes of a task whose attempt is stopped although its job goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// It is queued again, which uses no retry.
    Requeue,
    /// The same, because a job that is not preemptible needs its room.
    Preempt,
    /// The attempt has failed.
    Fail,
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
    /// The attempts of the task.
    pub past: Past,
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
    /// The attempts that were stopped so that their tasks run again: the cancelled ones. They never
    /// use a retry.
    #[serde(default)]
    pub stopped: u32,
}

impl Losses {
    /// Returns how many attempts have used no retry.
    pub(crate) fn free(self, on_lost: OnLost) -> u32 {
        self.stopped + self.unwanted(on_lost)
    }

    /// Returns how many of these did not end by our will.
    pub(crate) fn unwanted(self, on_lost: OnLost) -> u32 {
        match on_lost {
            OnLost::Requeue => self.not_started + self.lost,
            OnLost::Wait => self.not_started,
        }
    }

    fn and(self, kind: OutcomeKind) -> Self {
        Self {
            lost: self.lost + u32::from(kind == OutcomeKind::Lost),
            not_started: self.not_started + u32::from(kind == OutcomeKind::NotStarted),
            stopped: self.stopped + u32::from(kind == OutcomeKind::Cancelled),
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
    pub(super) fn new(
        id: JobId,
        submission: SubmissionId,
        spec: Arc<JobSpec>,
        by: Name,
        wall_ms: u64,
    ) -> Self {
        let queued = u32::try_from(spec.array.tasks()).unwrap_or(u32::MAX);
        Self {
            id,
            submission,
            by: Some(by),
            closed: None,
            next_index: u64::from(spec.array.first),
            rest_cancelled: false,
            waits_since_wall_ms: wall_ms,
            counts: TaskCounts { queued, ..TaskCounts::default() },
            attempts: 0,
            started_wall_ms: None,
            active: BTreeMap::new(),
            retries: BTreeMap::new(),
            upstream: Upstream::of(&spec).map(Box::new),
            spec,
        }
    }

    /// Returns the number of tasks that have had no attempt and may have one.
    pub(crate) fn fresh(&self) -> u64 {
        if self.rest_cancelled { 0 } else { self.untried() }
    }

    /// Returns the number of tasks that have had no attempt.
    pub(crate) fn untried(&self) -> u64 {
        let skipped = self.upstream.as_ref().map_or(0, |upstream| upstream.skipped.count());
        (u64::from(self.spec.array.last) + 1).saturating_sub(self.next_index) + skipped
    }

    /// Returns whether a task of the array has had an attempt.
    pub(crate) fn has_tried(&self, index: u32) -> bool {
        let skipped = |upstream: &Upstream| upstream.skipped.contains(index);
        u64::from(index) < self.next_index && !self.upstream.as_deref().is_some_and(skipped)
    }

    /// Returns its dependency on another job.
    pub(crate) fn dependency(&self, upstream: JobId) -> Option<&Dependency> {
        self.upstream.as_ref()?.dependencies.get(&upstream)
    }

    /// Returns the jobs that it waits for, with how they must end.
    pub fn unmet(&self) -> impl Iterator<Item = (JobId, &Dependency)> + Clone {
        self.upstream.iter().flat_map(|upstream| upstream.unmet())
    }

    pub(super) fn change_dependency(
        &mut self,
        upstream: JobId,
        progress: Progress,
        starts_wall_ms: Option<u64>,
    ) {
        if let Some(own) = &mut self.upstream {
            own.change(upstream, progress);
        }
        self.waits_since_wall_ms = starts_wall_ms.unwrap_or(self.waits_since_wall_ms);
    }

    pub(super) fn release_tasks(&mut self, upstream: JobId, tasks: ArrayRange) {
        if let Some(own) = &mut self.upstream {
            own.release(upstream, tasks);
        }
    }

    /// Returns whether its tasks are stopped: none gets another attempt.
    pub fn is_stopping(&self) -> bool {
        matches!(self.closed, Some(Closed::Cancelled | Closed::MaxFailures))
    }

    /// Returns whether the job may have another active task.
    pub(crate) fn may_have_more(&self) -> bool {
        self.spec.rules.max_active.is_none_or(|max| self.counts.active < max)
    }

    /// Returns the milliseconds until its tasks without an attempt expire, at most the whole time;
    /// `None` if they do not.
    pub(crate) fn expires_in_ms(&self, wall_ms: u64) -> Option<u64> {
        let expires_ms = self.spec.rules.expires_ms.filter(|_| self.fresh() > 0)?;
        // Before that time they could not have one.
        let since = self.waits_since_wall_ms.max(self.spec.not_before_ms.unwrap_or(0));
        let due = since.saturating_add(expires_ms);
        Some(due.saturating_sub(wall_ms).min(expires_ms))
    }

    /// Returns whether all tasks of the job have ended.
    pub fn is_over(&self) -> bool {
        self.counts.queued == 0 && self.counts.active == 0
    }

    /// Returns its state.
    pub fn state(&self) -> JobState {
        match (self.is_over(), self.closed) {
            (true, Some(Closed::Cancelled)) => JobState::Cancelled,
            (true, Some(Closed::Expired)) => JobState::Expired,
            (true, Some(Closed::MaxFailures)) => JobState::Failed,
            (true, None) if self.counts.failed > 0 => JobState::Failed,
            // Not all of them were requeued.
            (true, None) if self.counts.cancelled > 0 => JobState::Cancelled,
            (true, None) => JobState::Succeeded,
            (false, Some(Closed::Cancelled | Closed::MaxFailures)) => JobState::Cancelling,
            (false, _) if self.started_wall_ms.is_some() => JobState::Running,
            (false, _) => JobState::Queued,
        }
    }

    /// Returns the part of it that changes.
    pub fn row(&self, ended_wall_ms: Option<u64>) -> JobRow {
        JobRow {
            job: self.id,
            state: self.state(),
            closed: self.closed,
            next_index: self.next_index,
            rest_cancelled: self.rest_cancelled,
            counts: self.counts,
            attempts: self.attempts,
            started_wall_ms: self.started_wall_ms,
            ended_wall_ms,
        }
    }

    pub(crate) fn attempt_id(&self, index: u32, number: u32) -> AttemptId {
        AttemptId::new(self.id, index, number)
    }

    pub(super) fn close(&mut self, closed: Closed) {
        let fresh = u32::try_from(self.fresh()).unwrap_or(u32::MAX);
        self.closed = Some(closed);
        self.rest_cancelled = true;
        self.counts.queued -= fresh;
        self.counts.cancelled += fresh;
    }

    pub(super) fn requeue(&mut self, task: &EndedTask) {
        if task.cancelled {
            self.counts.cancelled -= 1;
        } else {
            self.counts.failed -= 1;
        }
        self.counts.queued += 1;
        let retry = Retry {
            number: task.number,
            past: Past::requeued(task.number, task.avoid.clone()),
            ended_wall_ms: task.ended_wall_ms,
            after_ms: 0,
        };
        self.retries.insert(task.index, retry);
    }

    pub(super) fn requeue_rest(&mut self, wall_ms: u64) {
        let untried = u32::try_from(self.untried()).unwrap_or(u32::MAX);
        self.closed = None;
        self.rest_cancelled = false;
        self.waits_since_wall_ms = wall_ms;
        self.counts.cancelled -= untried;
        self.counts.queued += untried;
    }

    pub(super) fn insert(
        &mut self,
        attempt: AttemptId,
        node: Name,
        wall_ms: u64,
        claims: Option<Box<Claims>>,
    ) {
        let index = attempt.task.index;
        let past = match self.retries.remove(&index) {
            Some(retry) => retry.past,
            None => {
                self.try_first(index);
                Past::default()
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
            past,
            replica: None,
            stop: None,
            claims,
        };
        self.active.insert(index, Box::new(active));
    }

    /// Takes a task from those that have had no attempt.
    fn try_first(&mut self, index: u32) {
        if let Some(upstream) = &mut self.upstream {
            if upstream.skipped.remove(index) {
                return;
            }
            if let (Ok(first), Some(last)) = (u32::try_from(self.next_index), index.checked_sub(1))
            {
                upstream.skipped.insert(ArrayRange { first, last });
            }
        }
        self.next_index = u64::from(index) + 1;
    }

    pub(super) fn advance(&mut self, attempt: AttemptId, state: AttemptState) {
        if let Some(active) = self.active.get_mut(&attempt.task.index) {
            active.state = state;
        }
    }

    pub(super) fn stop(&mut self, attempt: AttemptId, stop: Stop) {
        if let Some(active) = self.active.get_mut(&attempt.task.index) {
            active.stop = Some(stop);
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
        let Some(mut active) = self.active.remove(&index) else { return };
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
        active.past.add(kind, active.node);
        let retry =
            Retry { number: attempt.number, past: active.past, ended_wall_ms: wall_ms, after_ms };
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
        let retry =
            Retry { number: 1, past: Past::default(), ended_wall_ms: 100_000, after_ms: 25_000 };
        assert_eq!(retry.remaining_ms(110_000), 15_000);
        assert_eq!(retry.remaining_ms(125_000), 0);
        assert_eq!(retry.remaining_ms(u64::MAX), 0, "a clock that went forward");
        assert_eq!(retry.remaining_ms(5), 25_000, "a clock that went back");
    }
}
