//! Requests about tasks that failed: to run them again, and to list them.

use podmesh_manager_core::input::Command;
use podmesh_manager_core::state::Job;
use podmesh_manager_core::step::Answer;
use podmesh_protocol::again::{RequeueRequest, Requeued};
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::Name;
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::spec::ArrayRange;

use super::{Api, unexpected};
use crate::threads::stopping;

impl Api {
    /// Requeues tasks of a job in bounded steps. Continues if the client leaves.
    pub(super) async fn requeue(
        &self,
        request: RequeueRequest,
        by: Name,
    ) -> Result<ReplyBody, ErrorReply> {
        let api = self.clone();
        let work = async move { api.requeue_and_downstream(request, by).await };
        Ok(ReplyBody::Requeued(tokio::spawn(work).await.map_err(|_| stopping())??))
    }

    async fn requeue_and_downstream(
        self,
        request: RequeueRequest,
        by: Name,
    ) -> Result<Requeued, ErrorReply> {
        let (job, downstream) = (request.job, request.downstream);
        let mut done = self.requeue_all(request, by.clone()).await?;
        if !downstream {
            return Ok(done);
        }
        let jobs = self.0.reads.run(move |history| history.downstream(job)).await?;
        for (job, array) in jobs {
            let tasks = Some(array.into());
            let request = RequeueRequest { job, state: None, tasks, downstream: false };
            let of_job = self.requeue_all(request, by.clone()).await?;
            done.tasks += of_job.tasks;
            done.downstream += u32::from(of_job.tasks > 0);
        }
        Ok(done)
    }

    async fn requeue_all(&self, request: RequeueRequest, by: Name) -> Result<Requeued, ErrorReply> {
        let mut done = Requeued::default();
        let mut from = 0;
        loop {
            // What is read of ended tasks stays true until the core has decided.
            let _ended_jobs = self.0.ended_jobs.lock().await;
            let read = request.clone();
            let batch = self.0.reads.run(move |history| history.requeue(&read, from)).await?;
            check(&batch.job, &request)?;
            if batch.has_ended && batch.job.closed.is_some() && done.tasks > 0 {
                let message = format!(
                    "job {} was cancelled meanwhile: {} of its tasks had been requeued; requeue again to go on",
                    request.job, done.tasks
                );
                return Err(ErrorReply::new(ErrorCode::Conflict, message));
            }
            if let Some(missing) = batch.missing.filter(|_| batch.rest) {
                let message = format!(
                    "job {} waits for job {missing}, which was removed: submit it anew without `--after {missing}`",
                    request.job
                );
                return Err(ErrorReply::new(ErrorCode::Conflict, message));
            }
            if batch.rest || !batch.tasks.is_empty() {
                let command = Command::Requeue {
                    by: by.clone(),
                    job: request.job,
                    ended: batch.has_ended.then_some(batch.job),
                    tasks: batch.tasks,
                    rest: batch.rest,
                };
                let room = self.0.core.room().await;
                match self.0.core.command(command, room).answer().await? {
                    Answer::Requeued { tasks } => done.tasks += u64::from(tasks),
                    // The job ended after the read, which is repeated.
                    Answer::EndedBefore { .. } => continue,
                    _ => return Err(unexpected()),
                }
            }
            done.succeeded += batch.skipped.succeeded;
            done.active += batch.skipped.active;
            done.untried = done.untried.or(batch.skipped.untried);
            match batch.next {
                Some(next) => from = next,
                None => return Ok(done),
            }
        }
    }

    pub(super) async fn failed(&self, since_ms: Option<u64>) -> Result<ReplyBody, ErrorReply> {
        let now_ms = self.0.identity.clock.now().wall_ms;
        let since = since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        Ok(ReplyBody::Failed(self.0.reads.run(move |history| history.failed(since)).await?))
    }
}

fn check(job: &Job, request: &RequeueRequest) -> Result<(), ErrorReply> {
    let id = request.job;
    if let Some(replica) = &job.spec.run.replica {
        let message = format!(
            "job {id} is a replica of service {0}, which starts replicas again by itself; `podmesh service restart {0}` replaces them",
            replica.service
        );
        return Err(ErrorReply::new(ErrorCode::Conflict, message));
    }
    let ArrayRange { first, last } = job.spec.array;
    let outside = |tasks: &&Ranges| tasks.first() < first || tasks.last() > last;
    if let Some(tasks) = request.tasks.as_ref().filter(outside) {
        let missing = if tasks.first() < first { tasks.first() } else { tasks.last() };
        let message =
            format!("there is no task {id}.{missing}: the tasks of job {id} are {first} to {last}");
        return Err(ErrorReply::new(ErrorCode::NotFound, message));
    }
    Ok(())
}
