//! What happens to jobs as a whole, and how their tasks are handed out.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Name, SubmissionId, TaskId};
use podmesh_protocol::limits::{
    BATCH_ROWS_MAX, JOBS_ACTIVE_MAX, NOT_STARTED_BACKOFF_MS, NOT_STARTED_BACKOFF_MS_MAX,
    RETRIES_MAX,
};
use podmesh_protocol::node::NodeState;
use podmesh_protocol::report::{AttemptState, JobState, Outcome, OutcomeKind};
use podmesh_protocol::session::{StopReason, ToPeer};
use podmesh_protocol::spec::{JobSpec, OnLost};
use podmesh_protocol::time::{Millis, Now};

use crate::faults::planted;
use crate::ids::NodeIx;
use crate::ids::Ticket;
use crate::measures::Counted;
use crate::placement::{QueueKey, ShapeId};
use crate::state::Change;
use crate::state::UpstreamFact;
use crate::state::{ActiveAttempt, Closed, IndexSet, Job, Stop};
use crate::step::{Answer, Step};
use crate::timers::{Timer, Timers};
use crate::upstream::Settled;
use crate::{Core, answer};

/// The number of submissions of ended jobs to remember. For older ones the shell asks the database.
pub(crate) const SUBMISSIONS_REMEMBERED: usize = 16_384;

/// How the tasks of a job are handed out. It is derived from the state.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) shape: ShapeId,
    /// Whether it must not start yet: see [`JobSpec::not_before_ms`].
    pub(crate) too_early: bool,
    /// How many of its dependencies are not met.
    pub(crate) unmet: u32,
    /// How many of these hold the whole job back.
    pub(crate) holding: u32,
    /// The tasks without an attempt that may have one, if single ones are held back.
    pub(crate) open: Option<Box<IndexSet>>,
    /// The tasks that have succeeded since somebody asked for it.
    pub(crate) watched: Option<Box<IndexSet>>,
    /// The tasks whose retry is not due yet, by the time at which it is, and their index.
    pub(crate) waiting: BTreeSet<(Millis, u32)>,
    /// The tasks whose retry is due, by index, and since when.
    pub(crate) ready: BTreeMap<u32, Millis>,
    /// When the job came. After a restart of the manager: the time of the restart.
    pub(crate) since_ms: Millis,
    /// The sessions that the spec was sent to, by node. Most jobs have one task.
    told: Vec<(NodeIx, Epoch)>,
    /// When the first of `waiting` is due. The timers hold the same time.
    pub(crate) timer: Option<Millis>,
    /// When its tasks without an attempt expire. The timers hold the same time.
    pub(crate) expires: Option<Millis>,
    /// The tasks in `waiting` or `ready` that wait for room on another node than those where they
    /// failed, with the time since which they do.
    pub(crate) held: BTreeMap<u32, Millis>,
    /// Whether the job is in [`Core::dirty`].
    pub(crate) dirty: bool,
    /// The job as it is part of the totals; `None` if it is new.
    pub(crate) counted: Option<Counted>,
}

impl Dispatch {
    pub(crate) fn new(shape: ShapeId, since_ms: Millis) -> Self {
        Self {
            shape,
            too_early: false,
            unmet: 0,
            holding: 0,
            open: None,
            watched: None,
            waiting: BTreeSet::new(),
            ready: BTreeMap::new(),
            since_ms,
            told: Vec::new(),
            timer: None,
            expires: None,
            held: BTreeMap::new(),
            dirty: false,
            counted: None,
        }
    }

    /// Returns whether the job has a task that may be placed now.
    pub(crate) fn has_ready(&self, job: &Job) -> bool {
        !job.is_stopping()
            && !self.too_early
            && self.holding == 0
            && (!self.ready.is_empty() || self.has_fresh(job))
            && job.may_have_more()
    }

    /// Returns whether a task that has had no attempt may have one.
    fn has_fresh(&self, job: &Job) -> bool {
        job.fresh() > 0 && self.open.as_ref().is_none_or(|open| !open.is_empty())
    }

    /// Returns how many tasks may be placed now, if there is room.
    pub(crate) fn ready_tasks(&self, job: &Job) -> u64 {
        if !self.has_ready(job) {
            return 0;
        }
        let fresh = self.open.as_ref().map_or(job.fresh(), |open| open.count().min(job.fresh()));
        let max = job.spec.rules.max_active.unwrap_or(u32::MAX);
        (self.ready.len() as u64 + fresh).min(max.saturating_sub(job.counts.active).into())
    }

    /// Takes the next task to place: its index, the number of its next attempt, and since when it
    /// may be placed. Retries go first.
    pub(crate) fn pop_ready(&mut self, job: &Job) -> Option<(u32, u32, Millis)> {
        if job.is_stopping() {
            return None;
        }
        if let Some((index, since_ms)) = self.ready.pop_first() {
            self.held.remove(&index);
            return Some((index, job.retries.get(&index)?.number + 1, since_ms));
        }
        if job.rest_cancelled {
            return None;
        }
        let index = match &mut self.open {
            Some(open) => open.pop_first()?,
            None => u32::try_from(job.next_index).ok()?,
        };
        job.spec.array.contains(index).then_some((index, 1, self.since_ms))
    }

    /// Notes that the session of a node has the spec. Returns whether it must be sent.
    pub(crate) fn tell(&mut self, ix: NodeIx, epoch: Epoch) -> bool {
        match self.told.binary_search_by_key(&ix, |(ix, _)| *ix) {
            Ok(at) => core::mem::replace(&mut self.told[at].1, epoch) != epoch,
            Err(at) => {
                if self.told.is_empty() {
                    self.told.reserve_exact(1);
                }
                self.told.insert(at, (ix, epoch));
                true
            }
        }
    }

    pub(crate) fn refresh_timer(&mut self, id: JobId, timers: &mut Timers) {
        let due = self.waiting.first().map(|(due, _)| *due);
        if self.timer != due {
            timers.replace(self.timer, due, Timer::Retries(id));
            self.timer = due;
        }
    }
}

impl Job {
    pub(crate) fn key(&self) -> QueueKey {
        QueueKey::new(self.spec.priority, self.id)
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
            _ if self.is_stopping() => OutcomeKind::Cancelled,
            OutcomeKind::Cancelled => OutcomeKind::Failed,
            OutcomeKind::Failed
            | OutcomeKind::TimedOut
            | OutcomeKind::Lost
            | OutcomeKind::NotStarted => kind,
        }
    }

    /// Returns whether the task of an attempt that ended as `kind` runs again without using a retry,
    /// because we stopped the attempt for that.
    pub(crate) fn runs_again(&self, attempt: &ActiveAttempt, kind: OutcomeKind) -> bool {
        // The agent may never have had the attempt, and then says that it is lost.
        let never_started = kind == OutcomeKind::Lost && attempt.state == AttemptState::Assigned;
        matches!(attempt.stop, Some(Stop::Requeue | Stop::Preempt))
            && !self.is_stopping()
            && (kind == OutcomeKind::Cancelled || never_started)
    }

    /// Returns the milliseconds until a task is tried again after `attempt` ends with `outcome` (of
    /// a [recorded](Self::recorded_kind) kind); `None` if the task has ended.
    ///
    /// Each attempt that failed, timed out, or was lost in a job with `on_lost = wait` uses a
    /// retry, if the policy allows one for its exit code. With `on_lost = requeue` a lost attempt
    /// uses none, and the task is tried again at once. An attempt that its node could not start
    /// uses none either; the task is tried again after a short time, on another node if one has
    /// room. A task that has had [`RETRIES_MAX`] of these two kinds fails at the next one.
    pub(crate) fn retry_after_ms(&self, attempt: &ActiveAttempt, outcome: &Outcome) -> Option<u64> {
        if self.is_stopping() {
            return None;
        }
        let losses = attempt.past.losses;
        let unwanted = losses.unwanted(self.spec.on_lost);
        match (outcome.kind, self.spec.on_lost) {
            (OutcomeKind::Succeeded | OutcomeKind::Cancelled, _) => None,
            (OutcomeKind::Lost, OnLost::Requeue) => (unwanted < RETRIES_MAX).then_some(0),
            (OutcomeKind::NotStarted, _) => (unwanted < RETRIES_MAX).then(|| {
                let doubled = NOT_STARTED_BACKOFF_MS << unwanted.min(16);
                doubled.min(NOT_STARTED_BACKOFF_MS_MAX)
            }),
            (OutcomeKind::Failed | OutcomeKind::TimedOut | OutcomeKind::Lost, _) => {
                let since = attempt.number.saturating_sub(attempt.past.base);
                let used = since.saturating_sub(losses.free(self.spec.on_lost));
                let policy = &self.spec.retry;
                if used > policy.retries || !policy.allows(outcome) {
                    return None;
                }
                let doubled = 1u64.checked_shl(used.saturating_sub(1)).unwrap_or(u64::MAX);
                Some(policy.backoff_ms.saturating_mul(doubled).min(policy.backoff_ms_max))
            }
        }
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

    /// Keeps the submission of a job that goes on after its end.
    pub(crate) fn reopen(&mut self, submission: &SubmissionId) {
        self.ended.retain(|ended| ended != submission);
    }

    /// Returns whether it is noted that the job of a submission has ended.
    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn has_ended(&self, submission: &SubmissionId) -> bool {
        self.ended.contains(submission)
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
    #[expect(clippy::too_many_arguments, reason = "the fields of a command")]
    pub(crate) fn on_submit(
        &mut self,
        now: Now,
        ticket: Ticket,
        by: Name,
        submission: SubmissionId,
        spec: Arc<JobSpec>,
        upstream: &BTreeMap<JobId, UpstreamFact>,
        out: &mut Step,
    ) {
        if let Some(job) = self.submissions.get(&submission)
            && !planted!(self, SubmissionTwice)
        {
            return answer(out, ticket, Ok(Answer::Submitted { job, again: true }));
        }
        if let Err(error) = self.may_insert(&spec) {
            return answer(out, ticket, Err(error));
        }
        let settled = match self.look_upstream(&spec, upstream) {
            Ok(Some(settled)) => settled,
            Ok(None) => return answer(out, ticket, Ok(Answer::ReadAgain)),
            Err(error) => return answer(out, ticket, Err(error)),
        };
        let tasks = u32::try_from(spec.array.tasks()).unwrap_or(u32::MAX);
        let (id, name) = (self.next_job(), spec.name.clone());
        out.events.push(EventFact::JobSubmitted { job: id, name, tasks });
        self.insert_job(now, submission, spec, by, settled, out);
        answer(out, ticket, Ok(Answer::Submitted { job: id, again: false }));
    }

    /// Returns the number of the next job.
    pub(crate) fn next_job(&self) -> JobId {
        JobId(self.state.last_job.0 + 1)
    }

    /// Inserts a job without dependencies, which is allowed. Without a submission, the manager
    /// submits it itself.
    pub(crate) fn insert_own_job(
        &mut self,
        now: Now,
        submission: Option<SubmissionId>,
        spec: Arc<JobSpec>,
        by: Name,
        out: &mut Step,
    ) -> JobId {
        let id = self.next_job();
        let tasks = u32::try_from(spec.array.tasks()).unwrap_or(u32::MAX);
        out.events.push(EventFact::JobSubmitted { job: id, name: spec.name.clone(), tasks });
        let submission = submission.unwrap_or_else(|| SubmissionId::of_job(id));
        self.insert_job(now, submission, spec, by, Vec::new(), out);
        id
    }

    /// Inserts the next job, which is allowed and of which an event tells, with what is known of its
    /// upstream jobs.
    pub(crate) fn insert_job(
        &mut self,
        now: Now,
        submission: SubmissionId,
        spec: Arc<JobSpec>,
        by: Name,
        settled: Vec<Settled>,
        out: &mut Step,
    ) {
        let (id, wall_ms) = (self.next_job(), now.wall_ms);
        self.state.record(out, Change::JobInserted { job: id, submission, spec, by, wall_ms });
        self.record_settled(id, settled, out);
        self.add_job(id);
        self.set_expiry(now, id);
        self.mark_dirty(id);
    }

    /// Checks that there is room for one more job, and that it may use its volumes.
    pub(crate) fn may_insert(&self, spec: &JobSpec) -> Result<(), ErrorReply> {
        if self.state.jobs.len() >= JOBS_ACTIVE_MAX {
            let message = format!(
                "{JOBS_ACTIVE_MAX} jobs have not ended, which is the limit (JOBS_ACTIVE_MAX): submit again when some of them have ended"
            );
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        self.may_wait_in_queue(spec)?;
        self.may_use(spec.run.volumes())
    }

    /// Puts a job of the state into the queue.
    pub(crate) fn add_job(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        self.submissions.insert(job.submission, id);
        self.bonds.add_job(id, &job.spec);
        let needs = self.needs_of(&job.spec);
        let shape = self.queue.intern(job, needs, &self.nodes);
        let mut dispatch = Box::new(Dispatch::new(shape, self.now.mono_ms));
        dispatch.too_early = self.schedules.add_job(job, self.now.wall_ms);
        dispatch.refresh_upstream(job);
        self.dependents.add_job(job);
        if dispatch.has_ready(job) {
            self.queue.add(dispatch.shape, job.key());
        }
        self.dispatch.insert(id, dispatch);
        self.replica_added(id);
    }

    pub(crate) fn on_cancel(&mut self, ticket: Ticket, id: JobId, out: &mut Step) {
        let last = self.state.last_job;
        let Some(job) = self.state.jobs.get(&id) else {
            if id.0 == 0 || id > last {
                let message = match last {
                    JobId(0) => format!("there is no job {id}: none has been submitted yet"),
                    last => format!("there is no job {id}; the last one is {last}"),
                };
                let error = ErrorReply::new(ErrorCode::NotFound, message);
                return answer(out, ticket, Err(error));
            }
            return answer(out, ticket, Ok(Answer::EndedBefore { job: id }));
        };
        if job.is_stopping() {
            let state = job.state();
            return answer(out, ticket, Ok(Answer::Cancelled { state }));
        }
        self.cancel_job(id, out);
        self.replica_touched(id);
        let state = self.state.jobs.get(&id).map_or(JobState::Cancelled, |job| job.state());
        answer(out, ticket, Ok(Answer::Cancelled { state }));
    }

    /// Cancels a job that has not ended and was not cancelled.
    pub(crate) fn cancel_job(&mut self, id: JobId, out: &mut Step) {
        out.events.push(EventFact::JobCancelRequested { job: id });
        self.close_job(id, Closed::Cancelled, out);
        self.drop_retries(out);
    }

    /// Cancels the tasks of a job that have not ended. Those that wait for a retry follow in steps.
    pub(crate) fn close_job(&mut self, id: JobId, closed: Closed, out: &mut Step) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        if let Some(dispatch) = self.dispatch.get(&id) {
            self.queue.remove(dispatch.shape, job.key());
        }
        if !job.retries.is_empty() {
            self.draining.insert(id);
        }
        let mut lost_nodes = BTreeSet::new();
        for (index, active) in &job.active {
            let Some(ix) = self.nodes.by_name(&active.node) else { continue };
            let attempt = job.attempt_id(*index, active.number);
            let node = self.nodes.get_mut(ix);
            if node.state == NodeState::Lost {
                lost_nodes.insert(ix);
            }
            if let Some(session) = &mut node.session {
                session.outgoing.stops.push((attempt, StopReason::Cancelled));
                self.touched.insert(ix);
            }
        }
        self.state.record(out, Change::JobClosed(id, closed));
        self.mark_project_of(id);
        // Nodes whose margin has ended have no timer that would end these attempts.
        for ix in lost_nodes {
            self.end_margin(ix);
        }
        self.mark_dirty(id);
    }

    /// Drops retries of cancelled jobs, up to the step's limit.
    pub(crate) fn drop_retries(&mut self, out: &mut Step) {
        let mut room = BATCH_ROWS_MAX.saturating_sub(out.changes.len());
        while room > 0 && self.has_room(out) {
            let Some(id) = self.draining.first().copied() else { return };
            let Some(dispatch) = self.dispatch.get_mut(&id) else {
                self.draining.remove(&id);
                continue;
            };
            while room > 0 {
                let waiting = &mut dispatch.waiting;
                let next = dispatch.ready.pop_first().map(|(index, _)| index);
                let next = next.or_else(|| waiting.pop_first().map(|(_, index)| index));
                let Some(index) = next else { break };
                dispatch.held.remove(&index);
                let retry = self.state.jobs.get(&id).and_then(|job| job.retries.get(&index));
                if let Some(number) = retry.map(|retry| retry.number) {
                    let attempt = AttemptId::new(id, index, number);
                    self.state.record(out, Change::RetryDropped { attempt });
                }
                room -= 1;
            }
            if dispatch.ready.is_empty() && dispatch.waiting.is_empty() {
                self.draining.remove(&id);
            }
            dispatch.refresh_timer(id, &mut self.timers);
            self.mark_dirty(id);
        }
    }

    /// Puts a task back into the queue, now or after `after_ms` milliseconds.
    pub(crate) fn queue_retry(&mut self, now: Now, task: TaskId, after_ms: u64) {
        let Some(job) = self.state.jobs.get(&task.job) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&task.job) else { return };
        if after_ms == 0 {
            dispatch.ready.insert(task.index, now.mono_ms);
            if dispatch.has_ready(job) {
                self.queue.add(dispatch.shape, job.key());
            }
        } else {
            dispatch.waiting.insert((now.mono_ms.saturating_add(after_ms), task.index));
            dispatch.refresh_timer(task.job, &mut self.timers);
        }
    }

    /// Moves the tasks of a job whose retry is due into the queue.
    pub(crate) fn on_retries_due(&mut self, now: Now, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        while let Some((due, index)) = dispatch.waiting.first().copied()
            && due <= now.mono_ms
        {
            dispatch.waiting.pop_first();
            dispatch.ready.insert(index, due);
        }
        if dispatch.has_ready(job) {
            self.queue.add(dispatch.shape, job.key());
        }
        dispatch.refresh_timer(id, &mut self.timers);
    }

    pub(crate) fn mark_dirty(&mut self, id: JobId) {
        if let Some(dispatch) = self.dispatch.get_mut(&id)
            && !dispatch.dirty
        {
            dispatch.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Saves the rows of the changed jobs, and lets go of those that have ended.
    pub(crate) fn settle_jobs(&mut self, now: Now, out: &mut Step) {
        for id in core::mem::take(&mut self.dirty) {
            self.settle_job(now, id, out);
        }
    }

    /// Saves the row of a changed job, and lets go of it if it has ended.
    pub(crate) fn settle_job(&mut self, now: Now, id: JobId, out: &mut Step) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        if let Some(dispatch) = self.dispatch.get_mut(&id) {
            dispatch.dirty = false;
            let counted = Counted::of(job);
            self.measures.totals.replace(dispatch.counted.replace(counted), counted);
        }
        if !job.is_over() {
            let row = job.row(None);
            return self.state.record(out, Change::JobUpdated(row));
        }
        out.events.push(EventFact::JobEnded { job: id, state: job.state().into() });
        self.submissions.end(job.submission);
        let row = job.row(Some(now.wall_ms));
        self.bonds.remove_job(id, &job.spec);
        self.schedules.remove_job(job);
        self.dependents.remove_job(job);
        let replica = job.spec.run.replica.is_some().then(|| Arc::clone(&job.spec));
        self.state.record(out, Change::JobUpdated(row));
        if let Some(replica) = replica.as_ref().and_then(|spec| spec.run.replica.as_ref()) {
            self.replica_gone(id, replica);
        }
        let Some(dispatch) = self.dispatch.remove(&id) else { return };
        self.timers.replace(dispatch.expires, None, Timer::Expires(id));
        for (ix, epoch) in &dispatch.told {
            if let Some(session) = &mut self.nodes.get_mut(*ix).session
                && session.epoch == *epoch
            {
                session.outgoing.forget.push(id);
                self.touched.insert(*ix);
            }
        }
        self.queue.release(dispatch.shape);
    }
}
