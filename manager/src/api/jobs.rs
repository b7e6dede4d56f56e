//! Reads of jobs and tasks, which may wait for a change, and the removal of ended jobs.

use std::time::Duration;

use podmesh_protocol::client::{JobDetail, ReplyBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{JobId, Name, Revision, TaskId};
use podmesh_protocol::limits::{FORGET_JOBS_MAX, WAIT_MS_MAX};
use podmesh_protocol::report::AttemptState;
use tokio::time::{Instant, sleep_until};

use super::Api;
use crate::store::{History, ReadError};
use crate::turns::ConnectionReads;
use crate::waiters::Subject;

/// The most reasons why a job waits that one reply names.
const REASONS_MAX: usize = 64;

impl Api {
    pub(super) async fn job(
        &self,
        job: JobId,
        since: Option<Revision>,
        wait_ms: u32,
        reads: &ConnectionReads,
    ) -> Result<JobDetail, ErrorReply> {
        if let Some(since) = since {
            self.wait(job, wait_ms, reads, move |history| {
                let (state, changed) = history.job_state(job)?;
                // An ended job changes no more.
                Ok(changed > since || state.is_end())
            })
            .await?;
        }
        let (mut detail, _) = self.0.reads.run(move |history| history.job(job)).await?;
        if detail.view.counts.queued > 0 && !detail.view.is_end() {
            let reasons = self.0.core.read(move |core, now| core.explain(now, job)).await?;
            let reasons = reasons.iter().take(REASONS_MAX);
            detail.waits_for = reasons.map(ToString::to_string).collect();
        }
        Ok(detail)
    }

    pub(super) async fn task(
        &self,
        task: TaskId,
        unless: Option<(u32, AttemptState)>,
        wait_ms: u32,
        reads: &ConnectionReads,
    ) -> Result<ReplyBody, ErrorReply> {
        if let Some(unless) = unless {
            self.wait(task.job, wait_ms, reads, move |history| {
                Ok(history.last_attempt(task)? != Some(unless))
            })
            .await?;
        }
        Ok(ReplyBody::Task(self.0.reads.run(move |history| history.task(task)).await?))
    }

    /// Looks again after every change of the job, until `look` returns true, the time is over, or
    /// the manager stops. A busy job changes all the time, so each further look takes its turn.
    async fn wait(
        &self,
        job: JobId,
        wait_ms: u32,
        reads: &ConnectionReads,
        look: impl Fn(&History) -> Result<bool, ReadError> + Copy + Send + 'static,
    ) -> Result<(), ErrorReply> {
        let wait = Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into());
        let deadline = Instant::now() + wait;
        let watch = self.0.waiters.watch(Subject::Job(job));
        let mut stopping = self.0.stopping.clone();
        loop {
            let next = watch.next();
            if self.0.reads.run(look).await? {
                return Ok(());
            }
            let turn = async {
                next.await;
                self.0.turns.take(reads).await;
            };
            tokio::select! {
                () = turn => {}
                () = sleep_until(deadline) => return Ok(()),
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            }
        }
    }

    /// Removes the ended jobs of a range, at most [`FORGET_JOBS_MAX`].
    pub(super) async fn forget(
        &self,
        first: JobId,
        last: JobId,
        by: Name,
    ) -> Result<ReplyBody, ErrorReply> {
        if first > last {
            let message =
                format!("{first} to {last} is not a range of jobs: the first is after the last");
            return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
        }
        let limit = FORGET_JOBS_MAX;
        let found =
            self.0.reads.run(move |history| history.jobs_between(first, last, limit)).await?;
        let full = found.len() == limit as usize;
        let next = found.last().filter(|(job, _)| full && *job < last);
        let next = next.map(|(job, _)| JobId(job.0 + 1));
        let (ended, active): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, ended)| *ended);
        let numbers = |jobs: Vec<(JobId, bool)>| jobs.into_iter().map(|(job, _)| job).collect();
        let removed = self.remove_jobs(numbers(ended), Some(by)).await?;
        Ok(ReplyBody::Forgotten { removed, active: numbers(active), next })
    }
}
