//! What clients ask that is answered without a decision: from the database, from an agent, or
//! after a wait.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podmesh_manager_core::input::{Input, Peer};
use podmesh_protocol::client::{Info, JobDetail, LogRead, LogSlice, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, InstanceId, JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::{
    FORGET_JOBS_MAX, LOG_READ_BYTES_MAX, PROTOCOL_VERSION, WAIT_MS_MAX,
};
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::spec::JobSpec;
use podmesh_wire::control::ManagerSender;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::callers::Callers;
use crate::clock::Clock;
use crate::heartbeat::Heartbeats;
use crate::log_reads::{LogReads, unavailable};
use crate::own_key::OwnKey;
use crate::publisher::Hints;
use crate::sender::reply;
use crate::store::{History, ReadError};
use crate::threads::{Inputs, Reads, stopping};
use crate::tokens::Tokens;
use crate::turns::{ConnectionReads, Turns};
use crate::waiters::Waiters;

/// How long an agent may take to answer beyond what it was asked to wait.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Reasons why a job waits that one reply names.
const REASONS_MAX: usize = 64;

/// All parts of the manager that a request may need.
pub(crate) struct Manager {
    pub(crate) data_dir: PathBuf,
    /// The highest priority that a job of an operator may have.
    pub(crate) priority_max: i32,
    pub(crate) cluster: ClusterId,
    pub(crate) instance: InstanceId,
    pub(crate) program_version: String,
    pub(crate) clock: Clock,
    pub(crate) callers: Callers,
    pub(crate) tokens: Tokens,
    pub(crate) own_key: OwnKey,
    pub(crate) last_revision: Arc<AtomicU64>,
    pub(crate) inputs: Inputs,
    pub(crate) reads: Reads,
    /// The same database, for submissions alone.
    pub(crate) lookups: Reads,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) hints: Arc<Hints>,
    pub(crate) log_reads: LogReads,
    pub(crate) waiters: Waiters,
    pub(crate) turns: Turns,
    /// Why a job waits.
    pub(crate) explanations: Questions<Vec<String>>,
    /// How many jobs were removed.
    pub(crate) removals: Questions<u32>,
    /// True once the manager is about to stop: nothing waits any longer then.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// What the core was asked, and answers by the number of the question.
pub(crate) struct Questions<T> {
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<T>>>,
}

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self { last: AtomicU64::default(), waiting: Mutex::default() }
    }
}

impl<T> Questions<T> {
    fn ask(&self) -> (u64, oneshot::Receiver<T>) {
        let question = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = oneshot::channel();
        // No code that can panic runs while it is held; the core answers every question.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(question, sender);
        (question, answer)
    }

    pub(crate) fn answered(&self, question: u64, answer: T) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&question);
        if let Some(waiting) = waiting {
            // The request may have been given up.
            _ = waiting.send(answer);
        }
    }
}

/// A submission, and who made it.
pub(crate) struct Submit {
    pub(crate) peer: Peer,
    pub(crate) request: u64,
    pub(crate) submission: SubmissionId,
    pub(crate) spec: Box<JobSpec>,
}

impl Manager {
    /// Whether the submission is one of before is looked up in the database: the core remembers
    /// those of late. Both the lookups and the core go in order of arrival.
    pub(crate) fn submit(&self, submit: Submit, room: OwnedSemaphorePermit, sender: ManagerSender) {
        let Submit { peer, request, submission, spec } = submit;
        let (inputs, runtime) = (self.inputs.clone(), Handle::current());
        self.lookups.post(move |history| {
            let result = match history.note(history.submission(submission)) {
                Ok(None) => {
                    let spec = Arc::from(spec);
                    let input = Input::JobSubmitted { peer, request, submission, spec };
                    return inputs.send(input, Some(room));
                }
                Ok(Some(job)) => Ok(ReplyBody::Submitted { job, again: true }),
                Err(error) => Err(error.into()),
            };
            runtime.spawn(reply(sender, peer, request, result));
        });
    }

    /// The answer to a request that needs no decision.
    pub(crate) async fn answer(
        &self,
        by: Name,
        body: RequestBody,
        reads: &ConnectionReads,
        sender: ManagerSender,
    ) -> Result<ReplyBody, ErrorReply> {
        match body {
            RequestBody::Info => Ok(ReplyBody::Info(Info {
                version: PROTOCOL_VERSION,
                program_version: self.program_version.clone(),
                cluster: self.cluster,
                instance: self.instance,
                revision: Revision(self.last_revision.load(Ordering::Acquire)),
                wall_ms: self.clock.now().wall_ms,
                key: self.own_key.digest(),
            })),
            RequestBody::Jobs { before, active, limit } => {
                let jobs = self.reads.run(move |history| history.jobs(before, active, limit));
                Ok(ReplyBody::Jobs(jobs.await?))
            }
            RequestBody::Job { job, since, wait_ms } => {
                Ok(ReplyBody::Job(Box::new(self.job(job, since, wait_ms, reads).await?)))
            }
            RequestBody::Tasks { job, from, state, limit } => {
                let tasks = self.reads.run(move |history| history.tasks(job, from, state, limit));
                let (tasks, next) = tasks.await?;
                Ok(ReplyBody::Tasks { tasks, next })
            }
            RequestBody::Task { task, unless, wait_ms } => {
                self.task(task, unless, wait_ms, reads).await
            }
            RequestBody::Events { since } => {
                self.reads.run(move |history| history.events(since)).await
            }
            RequestBody::Forget { first, last } => self.forget(first, last, by).await,
            RequestBody::Log(read) => {
                // It makes work for the agent too, so it counts as two reads.
                self.turns.take(reads).await;
                Ok(ReplyBody::Log(self.log(read, sender).await?))
            }
            // The router answers these, or passes them to the core.
            RequestBody::Submit { .. }
            | RequestBody::Cancel { .. }
            | RequestBody::Nodes { .. }
            | RequestBody::NodeForget { .. }
            | RequestBody::WhoAmI
            | RequestBody::TokenCreate { .. }
            | RequestBody::Tokens
            | RequestBody::TokenRevoke { .. }
            | RequestBody::Users { .. }
            | RequestBody::Revoke { .. }
            | RequestBody::KeyRenew { .. }
            | RequestBody::KeyRotate { .. } => {
                Err(ErrorReply::new(ErrorCode::BadMessage, "this is not a request to read"))
            }
        }
    }

    async fn job(
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
        let (mut detail, _) = self.reads.run(move |history| history.job(job)).await?;
        if detail.view.counts.queued > 0 && !detail.view.state.is_end() {
            detail.waits_for = self.explain(job).await?;
        }
        Ok(detail)
    }

    async fn explain(&self, job: JobId) -> Result<Vec<String>, ErrorReply> {
        let room = self.inputs.room().await;
        let (question, answer) = self.explanations.ask();
        self.inputs.send(Input::ExplanationRequested { question, job }, room);
        let mut reasons = answer.await.map_err(|_| stopping())?;
        reasons.truncate(REASONS_MAX);
        Ok(reasons)
    }

    /// Removes the ended jobs of a range, at most [`FORGET_JOBS_MAX`].
    async fn forget(&self, first: JobId, last: JobId, by: Name) -> Result<ReplyBody, ErrorReply> {
        if first > last {
            let message =
                format!("{first} to {last} is not a range of jobs: the first is after the last");
            return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
        }
        let limit = FORGET_JOBS_MAX;
        let found = self.reads.run(move |history| history.jobs_between(first, last, limit)).await?;
        let full = found.len() == limit as usize;
        let next = found.last().filter(|(job, _)| full && *job < last);
        let next = next.map(|(job, _)| JobId(job.0 + 1));
        let (ended, active): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, ended)| *ended);
        let numbers = |jobs: Vec<(JobId, bool)>| jobs.into_iter().map(|(job, _)| job).collect();
        let removed = self.remove_jobs(numbers(ended), Some(by)).await?;
        Ok(ReplyBody::Forgotten { removed, active: numbers(active), next })
    }

    /// Removes ended jobs. Returns how many, once the removal is on disk.
    pub(crate) async fn remove_jobs(
        &self,
        jobs: Vec<JobId>,
        by: Option<Name>,
    ) -> Result<u32, ErrorReply> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let room = self.inputs.room().await;
        let (question, answer) = self.removals.ask();
        self.inputs.send(Input::JobRemovalRequested { question, jobs, by }, room);
        answer.await.map_err(|_| stopping())
    }

    async fn task(
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
        Ok(ReplyBody::Task(self.reads.run(move |history| history.task(task)).await?))
    }

    /// Looks again after every change of the job, until the look says yes, the time is up, or
    /// the manager stops. A busy job changes all the time, so each further look counts as a read.
    async fn wait(
        &self,
        job: JobId,
        wait_ms: u32,
        reads: &ConnectionReads,
        look: impl Fn(&History) -> Result<bool, ReadError> + Copy + Send + 'static,
    ) -> Result<(), ErrorReply> {
        let wait = Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into());
        let deadline = Instant::now() + wait;
        let watch = self.waiters.watch(job);
        let mut stopping = self.stopping.clone();
        loop {
            let next = watch.next();
            if self.reads.run(look).await? {
                return Ok(());
            }
            let turn = async {
                next.await;
                self.turns.take(reads).await;
            };
            tokio::select! {
                () = turn => {}
                () = sleep_until(deadline) => return Ok(()),
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            }
        }
    }

    /// Has the agent that runs or ran the attempt read its log.
    async fn log(
        &self,
        mut read: LogRead,
        mut sender: ManagerSender,
    ) -> Result<LogSlice, ErrorReply> {
        let attempt = read.attempt;
        read.bytes_max = read.bytes_max.min(LOG_READ_BYTES_MAX);
        read.wait_ms = read.wait_ms.min(WAIT_MS_MAX);
        let bytes_max = read.bytes_max as usize;
        let limit = AGENT_LIMIT + Duration::from_millis(read.wait_ms.into());
        let node = self.reads.run(move |history| history.node_of(attempt)).await?;
        let mut question = self.log_reads.ask(&node, attempt)?;
        let message = ToPeer::LogRead(question.number, read);
        if sender.send(&question.peer.0, &message).await.is_err() {
            return Err(unavailable(&node, attempt));
        }
        let mut stop = self.stopping.clone();
        let answer = tokio::select! {
            answer = timeout(limit, &mut question.answer) => answer,
            _ = stop.wait_for(|stopping| *stopping) => return Err(stopping()),
        };
        match answer {
            Ok(Ok(Ok(slice))) if slice.bytes.len() > bytes_max => {
                let message = format!("node `{node}` sent more of the log than it was asked for");
                Err(ErrorReply::new(ErrorCode::BadMessage, message))
            }
            Ok(Ok(result)) => result,
            // The session ended.
            Ok(Err(_)) => Err(unavailable(&node, attempt)),
            Err(_) => {
                let message = format!(
                    "node `{node}` did not answer within {} s: try again later",
                    limit.as_secs()
                );
                Err(ErrorReply::new(ErrorCode::NodeUnavailable, message))
            }
        }
    }
}
