//! Jobs that have not ended. Each is one entry, however many tasks it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use podmesh_protocol::client::{NodeState, ReplyBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, SubmissionId, TaskId};
use podmesh_protocol::limits::{
    BATCH_ROWS_MAX, JOBS_ACTIVE_MAX, NOT_STARTED_BACKOFF_MS, NOT_STARTED_BACKOFF_MS_MAX,
    RETRIES_MAX,
};
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::session::{StopReason, ToPeer};
use podmesh_protocol::spec::{JobSpec, OnLost};
use podmesh_protocol::time::{Millis, Now};

use crate::faults::planted;
use crate::input::Peer;
use crate::nodes::NodeIx;
use crate::placement::{QueueKey, ShapeId};
use crate::step::{Change, Effect, JobRow, Step};
use crate::timers::Timer;
use crate::{Core, reply};

/// The number of submissions of ended jobs to remember. For older ones the shell asks the database.
pub(crate) const SUBMISSIONS_REMEMBERED: usize = 16_384;

/// An attempt that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct ActiveAttempt {
    pub(crate) number: u32,
    /// How many earlier attempts of the task were tried again without using a retry.
    pub(crate) lost: u32,
    pub(crate) node: NodeIx,
    pub(crate) state: AttemptState,
    /// When it was assigned or, once it runs, when its start was reported. After a restart of the
    /// manager: the time of the restart.
    pub(crate) since_ms: Millis,
    /// When its start was last sent; `None` if not in the current session of the node.
    pub(crate) sent_ms: Option<Millis>,
    /// Whether the node has since shown that it holds the attempt.
    pub(crate) heard: bool,
}

/// The last attempt of a task that waits for its next one; for a new task, `number` is 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryState {
    /// The number of the last attempt.
    pub(crate) number: u32,
    /// See [`ActiveAttempt::lost`].
    pub(crate) lost: u32,
    /// The node that could not start the last attempt. Another one is tried first.
    pub(crate) avoid: Option<NodeIx>,
}

/// Whether a task is tried again after the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// The task has ended.
    TaskEnded,
    /// The task is tried again after `after_ms` milliseconds.
    Retry { after_ms: u64, lost: u32 },
}

/// A job that has not ended.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) submission: SubmissionId,
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) shape: ShapeId,
    pub(crate) cancelling: bool,
    /// The index of the first task that has had no attempt.
    pub(crate) next_index: u64,
    pub(crate) counts: TaskCounts,
    /// The number of attempts that its tasks have had.
    pub(crate) attempts: u64,
    pub(crate) started_wall_ms: Option<u64>,
    /// The attempts that have not ended, by task index.
    pub(crate) active: BTreeMap<u32, ActiveAttempt>,
    /// Tasks that wait until their retry is due, by that time and index.
    pub(crate) waiting: BTreeMap<(Millis, u32), RetryState>,
    /// Tasks whose retry is due, by index.
    pub(crate) ready: BTreeMap<u32, RetryState>,
    /// The sessions that the spec was sent to, by node.
    pub(crate) told: BTreeMap<NodeIx, Epoch>,
    /// When the first of `waiting` is due. The timers hold the same time.
    pub(crate) timer: Option<Millis>,
    /// Whether the job is in [`Core::dirty`].
    pub(crate) dirty: bool,
}

impl Job {
    pub(crate) fn key(&self) -> QueueKey {
        QueueKey::new(self.spec.priority, self.id)
    }

    /// Returns the number of tasks that have had no attempt and may have one.
    pub(crate) fn fresh(&self) -> u64 {
        if self.cancelling {
            return 0;
        }
        (u64::from(self.spec.array.last) + 1).saturating_sub(self.next_index)
    }

    /// Returns whether the job has a task that may be placed now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.cancelling && (!self.ready.is_empty() || self.fresh() > 0)
    }

    /// Takes the next task to place: its index and its last attempt. Retries go first.
    pub(crate) fn pop_ready(&mut self) -> Option<(u32, RetryState)> {
        if self.cancelling {
            return None;
        }
        if let Some(task) = self.ready.pop_first() {
            return Some(task);
        }
        let index = u32::try_from(self.next_index).ok()?;
        if !self.spec.array.contains(index) {
            return None;
        }
        self.next_index += 1;
        Some((index, RetryState { number: 0, lost: 0, avoid: None }))
    }

    /// Returns the node that the next task to place should not go to while another node has room.
    pub(crate) fn next_avoids(&self) -> Option<NodeIx> {
        self.ready.first_key_value()?.1.avoid
    }

    /// Returns whether all tasks of the job have ended.
    pub(crate) fn is_over(&self) -> bool {
        self.counts.queued == 0 && self.counts.active == 0
    }

    pub(crate) fn state(&self) -> JobState {
        match (self.is_over(), self.cancelling) {
            (true, true) => JobState::Cancelled,
            (true, false) if self.counts.failed > 0 => JobState::Failed,
            (true, false) => JobState::Succeeded,
            (false, true) => JobState::Cancelling,
            (false, false) if self.started_wall_ms.is_some() => JobState::Running,
            (false, false) => JobState::Queued,
        }
    }

    pub(crate) fn row(&self, ended_wall_ms: Option<u64>) -> JobRow {
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

    pub(crate) fn spec_message(&self, epoch: Epoch) -> ToPeer {
        ToPeer::JobSpec {
            epoch,
            job: self.id,
            on_lost: self.spec.on_lost,
            resources: self.spec.resources,
            run: self.spec.run.clone(),
            name: self.spec.name.clone(),
        }
    }

    /// Returns the kind of outcome to record for an attempt that ended as `kind`, so that the last
    /// attempt of a task always shows the state of the task: in a cancelled job everything that did
    /// not succeed is cancelled, and in other jobs nothing is.
    pub(crate) fn recorded_kind(&self, kind: OutcomeKind) -> OutcomeKind {
        match kind {
            OutcomeKind::Succeeded => OutcomeKind::Succeeded,
            _ if self.cancelling => OutcomeKind::Cancelled,
            OutcomeKind::Cancelled => OutcomeKind::Failed,
            OutcomeKind::Failed
            | OutcomeKind::TimedOut
            | OutcomeKind::Lost
            | OutcomeKind::NotStarted => kind,
        }
    }

    /// Decides whether a task is tried again after `attempt` ends as `kind` (a
    /// [recorded](Self::recorded_kind) one).
    ///
    /// Each attempt that failed, timed out, or was lost in a job with `on_lost = wait` uses a
    /// retry. With `on_lost = requeue` a lost attempt uses none, and the task is tried again at
    /// once. An attempt that its node could not start uses none either; the task is tried again
    /// after a short time, on another node if one has room. A task that has had [`RETRIES_MAX`] of
    /// these two kinds fails at the next one.
    pub(crate) fn retry_decision(
        &self,
        attempt: &ActiveAttempt,
        kind: OutcomeKind,
    ) -> RetryDecision {
        if self.cancelling {
            return RetryDecision::TaskEnded;
        }
        match (kind, self.spec.on_lost) {
            (OutcomeKind::Succeeded | OutcomeKind::Cancelled, _) => RetryDecision::TaskEnded,
            (OutcomeKind::Lost, OnLost::Requeue) if attempt.lost < RETRIES_MAX => {
                RetryDecision::Retry { after_ms: 0, lost: attempt.lost + 1 }
            }
            (OutcomeKind::NotStarted, _) if attempt.lost < RETRIES_MAX => {
                let doubled = NOT_STARTED_BACKOFF_MS << attempt.lost.min(16);
                let after_ms = doubled.min(NOT_STARTED_BACKOFF_MS_MAX);
                RetryDecision::Retry { after_ms, lost: attempt.lost + 1 }
            }
            (OutcomeKind::Lost, OnLost::Requeue) | (OutcomeKind::NotStarted, _) => {
                RetryDecision::TaskEnded
            }
            (OutcomeKind::Failed | OutcomeKind::TimedOut | OutcomeKind::Lost, _) => {
                let used = attempt.number.saturating_sub(attempt.lost);
                let policy = &self.spec.retry;
                if used > policy.retries {
                    return RetryDecision::TaskEnded;
                }
                let doubled = 1u64.checked_shl(used.saturating_sub(1)).unwrap_or(u64::MAX);
                let after_ms = policy.backoff_ms.saturating_mul(doubled).min(policy.backoff_ms_max);
                RetryDecision::Retry { after_ms, lost: attempt.lost }
            }
        }
    }

    pub(crate) fn attempt_id(&self, index: u32, number: u32) -> AttemptId {
        AttemptId::new(self.id, index, number)
    }
}

/// The submissions that are remembered, with their jobs.
#[derive(Debug, Default)]
pub(crate) struct Submissions {
    by_id: BTreeMap<SubmissionId, JobId>,
    /// The submissions of ended jobs, in the order in which the jobs ended.
    ended: VecDeque<SubmissionId>,
}

impl Submissions {
    pub(crate) fn get(&self, submission: &SubmissionId) -> Option<JobId> {
        self.by_id.get(submission).copied()
    }

    pub(crate) fn insert(&mut self, submission: SubmissionId, job: JobId) {
        self.by_id.insert(submission, job);
    }

    fn end(&mut self, submission: SubmissionId) {
        self.ended.push_back(submission);
        if self.ended.len() > SUBMISSIONS_REMEMBERED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

impl Core {
    pub(crate) fn on_job_submitted(
        &mut self,
        now: Now,
        peer: Peer,
        request: u64,
        submission: SubmissionId,
        spec: Arc<JobSpec>,
        out: &mut Step,
    ) {
        if let Some(job) = self.submissions.get(&submission)
            && !planted!(self, SubmissionTwice)
        {
            return reply(out, peer, request, Ok(ReplyBody::Submitted { job, again: true }));
        }
        if self.jobs.len() >= JOBS_ACTIVE_MAX {
            let message = format!(
                "{JOBS_ACTIVE_MAX} jobs have not ended, which is the limit (JOBS_ACTIVE_MAX): submit again when some of them have ended"
            );
            let error = ErrorReply::new(ErrorCode::Overloaded, message);
            return reply(out, peer, request, Err(error));
        }
        self.last_job.0 += 1;
        let id = self.last_job;
        let tasks = u32::try_from(spec.array.tasks()).unwrap_or(u32::MAX);
        out.changes.push(Change::JobInserted {
            job: id,
            submission,
            spec: Arc::clone(&spec),
            wall_ms: now.wall_ms,
        });
        out.events.push(EventFact::JobSubmitted(id, spec.name.clone(), tasks));
        reply(out, peer, request, Ok(ReplyBody::Submitted { job: id, again: false }));
        self.submissions.insert(submission, id);
        let job = Job {
            id,
            submission,
            shape: self.queue.intern(&spec, &self.nodes),
            cancelling: false,
            next_index: u64::from(spec.array.first),
            counts: TaskCounts { queued: tasks, ..TaskCounts::default() },
            attempts: 0,
            started_wall_ms: None,
            active: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ready: BTreeMap::new(),
            told: BTreeMap::new(),
            timer: None,
            dirty: false,
            spec,
        };
        if job.has_ready() {
            self.queue.add(job.shape, job.key());
        }
        self.jobs.insert(id, job);
        self.mark_dirty(id);
    }

    pub(crate) fn on_cancel_requested(
        &mut self,
        peer: Peer,
        request: u64,
        id: JobId,
        out: &mut Step,
    ) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.is_over()) else {
            if id.0 == 0 || id > self.last_job {
                let message = match self.last_job {
                    JobId(0) => format!("there is no job {id}: none has been submitted yet"),
                    last => format!("there is no job {id}; the last one is {last}"),
                };
                let error = ErrorReply::new(ErrorCode::NotFound, message);
                return reply(out, peer, request, Err(error));
            }
            out.effects.push(Effect::CancelOfEndedJob { peer, request, job: id });
            return;
        };
        if job.cancelling {
            let state = job.state();
            return reply(out, peer, request, Ok(ReplyBody::Cancelled { state }));
        }
        out.events.push(EventFact::JobCancelRequested(id));
        self.queue.remove(job.shape, job.key());
        let fresh = u32::try_from(job.fresh()).unwrap_or(u32::MAX);
        job.cancelling = true;
        job.counts.queued -= fresh;
        job.counts.cancelled += fresh;
        if !job.waiting.is_empty() || !job.ready.is_empty() {
            self.draining.insert(id);
        }
        let mut lost_nodes = BTreeSet::new();
        for (index, active) in &job.active {
            let attempt = job.attempt_id(*index, active.number);
            if self.nodes.get(active.node).state == NodeState::Lost {
                lost_nodes.insert(active.node);
            }
            if let Some(session) = &mut self.nodes.get_mut(active.node).session {
                session.outgoing.stops.push((attempt, StopReason::Cancelled));
                self.touched.insert(active.node);
            }
        }
        // Nodes whose margin has ended have no timer that would end these attempts.
        for ix in lost_nodes {
            self.end_margin(ix);
        }
        self.mark_dirty(id);
        self.drop_retries(out);
        let state = self.jobs.get(&id).map_or(JobState::Cancelled, Job::state);
        reply(out, peer, request, Ok(ReplyBody::Cancelled { state }));
    }

    /// Drops retries of cancelled jobs, up to the step's limit.
    pub(crate) fn drop_retries(&mut self, out: &mut Step) {
        let mut room = BATCH_ROWS_MAX.saturating_sub(out.changes.len());
        while room > 0 && self.has_room(out) {
            let Some(id) = self.draining.first().copied() else { return };
            let Some(job) = self.jobs.get_mut(&id) else {
                self.draining.remove(&id);
                continue;
            };
            while room > 0 {
                let next = job
                    .ready
                    .pop_first()
                    .or_else(|| job.waiting.pop_first().map(|((_, index), retry)| (index, retry)));
                let Some((index, retry)) = next else { break };
                let attempt = job.attempt_id(index, retry.number);
                out.changes.push(Change::RetryDropped { attempt });
                job.counts.queued -= 1;
                job.counts.cancelled += 1;
                room -= 1;
            }
            if job.ready.is_empty() && job.waiting.is_empty() {
                self.draining.remove(&id);
            }
            self.refresh_retry_timer(id);
            self.mark_dirty(id);
        }
    }

    /// Puts a task back into the queue, now or after `after_ms` milliseconds.
    pub(crate) fn queue_retry(&mut self, now: Now, task: TaskId, retry: RetryState, after_ms: u64) {
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        if after_ms == 0 {
            job.ready.insert(task.index, retry);
            self.queue.add(job.shape, job.key());
        } else {
            let due = now.mono_ms.saturating_add(after_ms);
            job.waiting.insert((due, task.index), retry);
            self.refresh_retry_timer(task.job);
        }
    }

    /// Moves the tasks of a job whose retry is due into the queue.
    pub(crate) fn on_retries_due(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        while let Some(first) = job.waiting.first_entry()
            && first.key().0 <= now.mono_ms
        {
            let ((_, index), retry) = first.remove_entry();
            job.ready.insert(index, retry);
        }
        if job.has_ready() {
            self.queue.add(job.shape, job.key());
        }
        self.refresh_retry_timer(id);
    }

    fn refresh_retry_timer(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let due = job.waiting.first_key_value().map(|((due, _), _)| *due);
        if job.timer != due {
            self.timers.replace(job.timer, due, Timer::Retries(id));
            job.timer = due;
        }
    }

    pub(crate) fn mark_dirty(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id)
            && !job.dirty
        {
            job.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Saves the state of the changed jobs, and removes those that have ended.
    pub(crate) fn settle_jobs(&mut self, now: Now, out: &mut Step) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.dirty = false;
            if !job.is_over() {
                out.changes.push(Change::JobUpdated(job.row(None)));
                continue;
            }
            out.changes.push(Change::JobUpdated(job.row(Some(now.wall_ms))));
            out.events.push(EventFact::JobEnded(id, job.state()));
            for (ix, epoch) in &job.told {
                if let Some(session) = &mut self.nodes.get_mut(*ix).session
                    && session.epoch == *epoch
                {
                    session.outgoing.forget.push(id);
                    self.touched.insert(*ix);
                }
            }
            self.submissions.end(job.submission);
            self.queue.release(job.shape);
            self.jobs.remove(&id);
        }
    }
}
