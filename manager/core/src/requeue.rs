//! Tasks that run again after they have ended, and jobs whose rest is cancelled by their rules.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::JOBS_ACTIVE_MAX;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::faults::planted;
use crate::state::Change;
use crate::state::{Closed, EndedTask, Job, failed};
use crate::step::{Answer, Step};
use crate::timers::Timer;

impl Core {
    /// Queues tasks that have ended, up to those of one command. A task that waits or runs is left
    /// as it is.
    #[expect(clippy::too_many_arguments, reason = "the fields of a command")]
    pub(crate) fn requeue(
        &mut self,
        now: Now,
        by: Name,
        id: JobId,
        mut ended: Option<Box<Job>>,
        mut tasks: Vec<EndedTask>,
        rest: bool,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let is_active = self.state.jobs.contains_key(&id);
        if let Some(ended) = &mut ended
            && !is_active
            && !self.look_upstream_again(ended)
        {
            return Ok(Answer::EndedBefore { job: id });
        }
        let job = match (self.state.jobs.get(&id), &ended) {
            (Some(job), _) => job,
            (None, Some(ended)) => ended,
            (None, None) => return Ok(Answer::EndedBefore { job: id }),
        };
        if job.is_stopping() && is_active {
            let message = format!(
                "job {id} is being cancelled: its tasks can be requeued when all of them have ended"
            );
            return Err(ErrorReply::new(ErrorCode::Conflict, message));
        }
        tasks.retain(|task| {
            let tried = job.spec.array.contains(task.index) && job.has_tried(task.index);
            let waits =
                job.active.contains_key(&task.index) || job.retries.contains_key(&task.index);
            tried && (!waits || planted!(self, ActiveTaskRequeued))
        });
        let untried = if rest && job.rest_cancelled { job.untried() } else { 0 };
        let count = untried.saturating_add(tasks.len() as u64);
        if count == 0 {
            return Ok(Answer::Requeued { tasks: 0 });
        }
        if !is_active {
            if self.state.jobs.len() >= JOBS_ACTIVE_MAX {
                let message = format!(
                    "{JOBS_ACTIVE_MAX} jobs have not ended, which is the limit (JOBS_ACTIVE_MAX): requeue again when some of them have ended"
                );
                return Err(ErrorReply::new(ErrorCode::Overloaded, message));
            }
            self.may_wait_in_queue(&job.spec)?;
            self.may_use(job.spec.run.volumes())?;
        }
        if let Some(mut job) = ended.filter(|_| !is_active) {
            job.closed = None;
            self.submissions.reopen(&job.submission);
            self.state.record(out, Change::JobReopened(job));
            self.add_job(id);
            self.count_restored(id);
            self.wait_again(id, out);
        }
        for task in tasks {
            let index = task.index;
            self.state.record(out, Change::TaskRequeued { job: id, task });
            if let Some(dispatch) = self.dispatch.get_mut(&id) {
                dispatch.ready.insert(index, now.mono_ms);
            }
        }
        if untried > 0 {
            self.state.record(out, Change::RestRequeued { job: id, wall_ms: now.wall_ms });
        }
        let tasks = u32::try_from(count).unwrap_or(u32::MAX);
        out.events.push(EventFact::JobRequeued { job: id, tasks, by });
        self.set_expiry(now, id);
        self.offer(id);
        self.mark_dirty(id);
        self.mark_project_of(id);
        Ok(Answer::Requeued { tasks })
    }

    /// Puts a job into the queue if it has a task that may be placed now.
    pub(crate) fn offer(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get(&id) else { return };
        if dispatch.has_ready(job) {
            self.queue.add(dispatch.shape, job.key());
        }
    }

    /// Sets or ends the timer of the tasks that have had no attempt. It does not run while the job
    /// must not start yet, or waits for other jobs.
    pub(crate) fn set_expiry(&mut self, now: Now, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        let left_ms =
            job.expires_in_ms(now.wall_ms).filter(|_| !dispatch.too_early && dispatch.unmet == 0);
        let at = left_ms.map(|ms| now.mono_ms.saturating_add(ms));
        self.timers.replace(dispatch.expires, at, Timer::Expires(id));
        dispatch.expires = at;
    }

    /// Cancels the tasks of a job that have had no attempt in time.
    pub(crate) fn on_expired(&mut self, id: JobId, out: &mut Step) {
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        self.timers.replace(dispatch.expires.take(), None, Timer::Expires(id));
        let Some(job) = self.state.jobs.get(&id) else { return };
        if job.fresh() == 0 {
            return;
        }
        out.events.push(EventFact::JobEndedEarly { job: id, message: why(job, Closed::Expired) });
        self.state.record(out, Change::JobClosed(id, Closed::Expired));
        let Some(job) = self.state.jobs.get(&id) else { return };
        if !dispatch.has_ready(job) {
            self.queue.remove(dispatch.shape, job.key());
        }
        self.mark_dirty(id);
        self.mark_project_of(id);
    }

    /// Cancels the rest of a job if a task of it has just failed, and that was one too many.
    pub(crate) fn check_failures(&mut self, id: JobId, kind: OutcomeKind, out: &mut Step) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(max) = job.spec.rules.max_failures.filter(|_| failed(kind)) else { return };
        if job.counts.failed < max
            || job.is_stopping()
            || job.is_over()
            || planted!(self, FailuresNotLimited)
        {
            return;
        }
        let message = why(job, Closed::MaxFailures);
        out.events.push(EventFact::JobEndedEarly { job: id, message });
        self.close_job(id, Closed::MaxFailures, out);
    }
}

/// Returns why a job is closed by one of its rules, for people.
fn why(job: &Job, closed: Closed) -> alloc::string::String {
    match closed {
        Closed::MaxFailures => {
            format!(
                "{} tasks have failed (--max-failures): the rest is cancelled",
                job.counts.failed
            )
        }
        Closed::Cancelled | Closed::Expired => {
            format!("expired: {} tasks had no attempt in time (--expires)", job.fresh())
        }
    }
}
