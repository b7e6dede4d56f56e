//! Jobs that have not ended: one entry each, however many tasks they have.

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

/// Submissions of ended jobs that are remembered; for older ones the shell asks the database.
pub(crate) const SUBMISSIONS_REMEMBERED: usize = 16_384;

/// An attempt that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) number: u32,
    /// How many of the task's earlier attempts were lost and tried again without using a retry.
    pub(crate) lost: u32,
    pub(crate) node: NodeIx,
    pub(crate) state: AttemptState,
    /// When its start was last sent; none: not in the node's present session.
    pub(crate) sent_ms: Option<Millis>,
    /// Whether the node has shown since that it holds it.
    pub(crate) heard: bool,
}

/// A task that has been tried, and is to be tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried {
    /// The number of its last attempt.
    pub(crate) number: u32,
    /// See [`Live::lost`].
    pub(crate) lost: u32,
}

/// What follows the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequel {
    /// The task is over.
    Over,
    /// It is tried again.
    Again { after_ms: u64, lost: u32 },
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
    pub(crate) started_wall_ms: Option<u64>,
    /// The live attempts by task index.
    pub(crate) live: BTreeMap<u32, Live>,
    /// Tasks that wait for the time of their retry, by that time and index.
    pub(crate) waiting: BTreeMap<(Millis, u32), Tried>,
    /// Tasks whose time has come, by index.
    pub(crate) ready: BTreeMap<u32, Tried>,
    /// The sessions that were told the spec.
    pub(crate) told: BTreeMap<NodeIx, Epoch>,
    /// When the first of `waiting` is due, as it stands in the timers.
    pub(crate) timer: Option<Millis>,
    /// Whether it stands in [`Core::dirty`].
    pub(crate) dirty: bool,
}

impl Job {
    pub(crate) fn key(&self) -> QueueKey {
        QueueKey::new(self.spec.priority, self.id)
    }

    /// Tasks that have had no attempt and may have one.
    pub(crate) fn fresh(&self) -> u64 {
        if self.cancelling {
            return 0;
        }
        (u64::from(self.spec.array.last) + 1).saturating_sub(self.next_index)
    }

    /// Whether a task of it could be placed now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.cancelling && (!self.ready.is_empty() || self.fresh() > 0)
    }

    /// The next task to place: its index and its last attempt. Those tried before go first.
    pub(crate) fn pop_ready(&mut self) -> Option<(u32, Tried)> {
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
        Some((index, Tried { number: 0, lost: 0 }))
    }

    /// Whether nothing more will happen to it.
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

    /// How an end is written down, so that the last attempt of a task always says what became of
    /// the task: what ends without success in a cancelled job is cancelled, and nothing is
    /// cancelled that nobody cancelled.
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

    /// What follows when `live` ends as `kind` (a [recorded](Self::recorded_kind) one).
    ///
    /// A retry is used up by each attempt that failed, timed out, or was lost in a job with
    /// `on_lost = wait`. With `on_lost = requeue` a lost one uses none, and is tried again at
    /// once. One that its node could not start uses none, either; it is tried again after a moment,
    /// since that node may still look as if it had room. [`RETRIES_MAX`] of both together are the
    /// end all the same.
    pub(crate) fn sequel(&self, live: &Live, kind: OutcomeKind) -> Sequel {
        if self.cancelling {
            return Sequel::Over;
        }
        match (kind, self.spec.on_lost) {
            (OutcomeKind::Succeeded | OutcomeKind::Cancelled, _) => Sequel::Over,
            (OutcomeKind::Lost, OnLost::Requeue) if live.lost < RETRIES_MAX => {
                Sequel::Again { after_ms: 0, lost: live.lost + 1 }
            }
            (OutcomeKind::NotStarted, _) if live.lost < RETRIES_MAX => {
                let doubled = NOT_STARTED_BACKOFF_MS << live.lost.min(16);
                let after_ms = doubled.min(NOT_STARTED_BACKOFF_MS_MAX);
                Sequel::Again { after_ms, lost: live.lost + 1 }
            }
            (OutcomeKind::Lost, OnLost::Requeue) | (OutcomeKind::NotStarted, _) => Sequel::Over,
            (OutcomeKind::Failed | OutcomeKind::TimedOut | OutcomeKind::Lost, _) => {
                let used = live.number.saturating_sub(live.lost);
                let policy = &self.spec.retry;
                if used > policy.retries {
                    return Sequel::Over;
                }
                let doubled = 1u64.checked_shl(used.saturating_sub(1)).unwrap_or(u64::MAX);
                let after_ms = policy.backoff_ms.saturating_mul(doubled).min(policy.backoff_ms_max);
                Sequel::Again { after_ms, lost: live.lost }
            }
        }
    }

    pub(crate) fn attempt_id(&self, index: u32, number: u32) -> AttemptId {
        AttemptId::new(self.id, index, number)
    }
}

/// The submissions whose jobs are known.
#[derive(Debug, Default)]
pub(crate) struct Submissions {
    by_id: BTreeMap<SubmissionId, JobId>,
    /// Those of ended jobs, the longest ended first.
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
                "{JOBS_ACTIVE_MAX} jobs have not ended, which is the limit (JOBS_ACTIVE_MAX): submit again when some have"
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
            started_wall_ms: None,
            live: BTreeMap::new(),
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
        let mut gone = BTreeSet::new();
        for (index, live) in &job.live {
            let attempt = job.attempt_id(*index, live.number);
            if self.nodes.get(live.node).state == NodeState::Lost {
                gone.insert(live.node);
            }
            if let Some(session) = &mut self.nodes.get_mut(live.node).session {
                session.outgoing.stops.push((attempt, StopReason::Cancelled));
                self.touched.insert(live.node);
            }
        }
        // Of those whose lease has ended long ago nothing else is to come.
        for ix in gone {
            self.end_margin(ix);
        }
        self.mark_dirty(id);
        self.drop_retries(out);
        let state = self.jobs.get(&id).map_or(JobState::Cancelled, Job::state);
        reply(out, peer, request, Ok(ReplyBody::Cancelled { state }));
    }

    /// Drops retries of cancelled jobs, as many as one step may.
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
                    .or_else(|| job.waiting.pop_first().map(|((_, index), tried)| (index, tried)));
                let Some((index, tried)) = next else { break };
                let attempt = job.attempt_id(index, tried.number);
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

    /// Puts a task back into the queue: at once, or when its time comes.
    pub(crate) fn queue_retry(&mut self, now: Now, task: TaskId, tried: Tried, after_ms: u64) {
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        if after_ms == 0 {
            job.ready.insert(task.index, tried);
            self.queue.add(job.shape, job.key());
        } else {
            let due = now.mono_ms.saturating_add(after_ms);
            job.waiting.insert((due, task.index), tried);
            self.refresh_retry_timer(task.job);
        }
    }

    /// Tasks of the job wait no longer for their retry.
    pub(crate) fn on_retries_due(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        while let Some(first) = job.waiting.first_entry()
            && first.key().0 <= now.mono_ms
        {
            let ((_, index), tried) = first.remove_entry();
            job.ready.insert(index, tried);
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

    /// Writes down where the changed jobs stand, and lets go of those that are over.
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
