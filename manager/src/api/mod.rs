//! The one door: whatever a client asks goes through [`Api::call`], however the request came.
//!
//! Roles are checked here. Commands go to the core, and are answered once they are on disk. Reads
//! are answered from the database or by an agent, and never wait for a commit. What is not stored
//! comes from the core's memory: the nodes as they are now, and why a job waits. `commands` has the
//! commands, `jobs` the reads of jobs, `workflows` what
//! is about jobs that wait for others, `logs` the reads of output, and `metrics` the page of metrics.

mod again;
mod commands;
mod jobs;
mod logs;
mod metrics;
mod queues;
mod schedules;
mod services;
#[cfg(test)]
mod tests;
mod workflows;

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_manager_core::Core;
use podmesh_protocol::client::{Info, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, InstanceId, Revision};
use podmesh_protocol::volume::{VolumeReply, VolumeRequest};
use tokio::sync::watch;

pub(crate) use self::metrics::Measured;
use crate::callers::{Callers, Client, forbidden};
use crate::clock::Clock;
use crate::core::{CoreHandle, Room};
use crate::log_reads::LogReads;
use crate::messages::Messages;
use crate::own_key::OwnKey;
use crate::store::{History, JobFilter};
use crate::submission_rate::SubmissionLimit;
use crate::threads::Reads;
use crate::tokens::Tokens;
use crate::turns::Turns;
use crate::waiters::Waiters;

/// What the manager says about itself.
pub(crate) struct Identity {
    /// The newest protocol version that it speaks.
    pub(crate) version: u16,
    pub(crate) cluster: ClusterId,
    pub(crate) instance: InstanceId,
    pub(crate) program_version: String,
    pub(crate) last_revision: Arc<AtomicU64>,
    pub(crate) clock: Clock,
}

/// The parts of the manager that requests need.
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) data_dir: PathBuf,
    /// The highest priority that a job of an operator may have.
    pub(crate) priority_max: i32,
    /// For what a request submits: not again for a repeated one.
    pub(crate) submissions: Arc<SubmissionLimit>,
    pub(crate) tokens: Tokens,
    pub(crate) own_key: OwnKey,
    pub(crate) callers: Callers,
    pub(crate) core: CoreHandle,
    pub(crate) reads: Reads,
    /// The same database, for submissions alone.
    pub(crate) lookups: Reads,
    /// For messages to agents.
    pub(crate) messages: Messages,
    pub(crate) log_reads: Arc<LogReads>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) measured: Measured,
    /// Held while something reads ended jobs, and then requeues tasks of them or removes them.
    pub(crate) ended_jobs: tokio::sync::Mutex<()>,
    /// True once the manager is about to stop. Nothing waits any longer then.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Answers requests.
#[derive(Clone)]
pub(crate) struct Api(Arc<Parts>);

impl Api {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Answers a request. [Commands](is_command) are passed to the core before this returns, so that
    /// they keep their order. Their sender waits for [room](CoreHandle::room) first.
    ///
    /// # Errors
    /// What the client is told: it may not ask this, the request is wrong, or it cannot be answered
    /// now.
    pub(crate) fn call(
        &self,
        client: Client,
        request: RequestBody,
        room: Option<Room>,
    ) -> BoxFuture<'static, Result<ReplyBody, ErrorReply>> {
        if let Some(needed) = request.needs()
            && !client.caller.role.includes(needed)
        {
            return ready(Err(forbidden(&client.caller, needed))).boxed();
        }
        if is_command(&request) {
            return self.command(client, request, room);
        }
        let api = self.clone();
        async move { api.read(client, request).await }.boxed()
    }

    /// Answers a request that is not a command, in its turn.
    async fn read(&self, client: Client, request: RequestBody) -> Result<ReplyBody, ErrorReply> {
        let Client { caller, connection, reads } = &client;
        self.0.turns.take(reads).await;
        match request {
            RequestBody::Info => Ok(ReplyBody::Info(self.info())),
            RequestBody::WhoAmI => Ok(ReplyBody::WhoAmI(client.caller.clone())),
            RequestBody::Jobs { before, active, by, service, replica, limit } => {
                let only = JobFilter { active, by, service, replica };
                let list = move |history: &History| history.jobs(before, &only, limit);
                let jobs = self.0.reads.run(list);
                Ok(ReplyBody::Jobs(jobs.await?))
            }
            RequestBody::Job { job, since, wait_ms } => {
                Ok(ReplyBody::Job(Box::new(self.job(job, since, wait_ms, reads).await?)))
            }
            RequestBody::Tasks { job, from, state, limit } => {
                let tasks = self.0.reads.run(move |history| history.tasks(job, from, state, limit));
                let (tasks, next) = tasks.await?;
                Ok(ReplyBody::Tasks { tasks, next })
            }
            RequestBody::Task { task, unless, wait_ms } => {
                self.task(task, unless, wait_ms, reads).await
            }
            RequestBody::Events { since } => {
                self.0.reads.run(move |history| history.events(since)).await
            }
            RequestBody::Nodes { after, limit } => {
                let list = move |core: &Core, now| core.list_nodes(now, after.as_ref(), limit);
                Ok(ReplyBody::Nodes(self.0.core.read(list).await?))
            }
            RequestBody::Tokens => {
                let wall_ms = self.0.identity.clock.now().wall_ms;
                let tokens = self.0.reads.run(move |history| history.join_tokens(wall_ms));
                Ok(ReplyBody::Tokens(tokens.await?))
            }
            RequestBody::Users { after, limit } => {
                let users = self.0.reads.run(move |history| history.users(after.as_ref(), limit));
                Ok(ReplyBody::Users(users.await?))
            }
            RequestBody::Log(read) => {
                // It makes work for the agent too, so it counts as two reads.
                self.0.turns.take(reads).await;
                Ok(ReplyBody::Log(self.log(read).await?))
            }
            RequestBody::Requeue(request) => self.requeue(request, caller.name.clone()).await,
            RequestBody::Failed { since_ms } => self.failed(since_ms).await,
            RequestBody::Forget { first, last } => {
                self.forget(first, last, caller.name.clone()).await
            }
            RequestBody::KeyRotate { key } => {
                let by = caller.name.clone();
                let rotated = self.0.own_key.rotate(key, by, &self.0.core).await;
                if rotated.is_ok() {
                    self.0.callers.reconnect_all(*connection);
                }
                rotated
            }
            RequestBody::Service(request) => {
                Ok(ReplyBody::Service(self.service(request, reads).await?))
            }
            RequestBody::Schedule(request) => {
                Ok(ReplyBody::Schedule(self.schedule(request).await?))
            }
            RequestBody::Queue(request) => Ok(ReplyBody::Queue(self.queue(request).await?)),
            RequestBody::Workflow(request) => {
                Ok(ReplyBody::Workflow(self.workflow(&client, request).await?))
            }
            RequestBody::Volume(VolumeRequest::List { after, limit }) => {
                let list = move |core: &Core, _| core.list_volumes(after.as_ref(), limit);
                Ok(ReplyBody::Volume(VolumeReply::List(self.0.core.read(list).await?)))
            }
            // These are commands.
            RequestBody::Submit { .. }
            | RequestBody::Cancel { .. }
            | RequestBody::NodeForget { .. }
            | RequestBody::TokenCreate { .. }
            | RequestBody::ApiTokenCreate { .. }
            | RequestBody::TokenRevoke { .. }
            | RequestBody::Revoke { .. }
            | RequestBody::NodeScheduling { .. }
            | RequestBody::NodeLabels { .. }
            | RequestBody::NodeMaintenance { .. }
            | RequestBody::Volume(VolumeRequest::Remove { .. })
            | RequestBody::KeyRenew { .. } => Err(unexpected()),
        }
    }

    fn info(&self) -> Info {
        let Identity { version, cluster, instance, program_version, last_revision, clock } =
            &self.0.identity;
        Info {
            version: *version,
            program_version: program_version.clone(),
            cluster: *cluster,
            instance: *instance,
            revision: Revision(last_revision.load(Ordering::Acquire)),
            wall_ms: clock.now().wall_ms,
            key: self.0.own_key.digest(),
        }
    }
}

/// Returns whether a request is a command: the core decides it, in the order of arrival.
pub(crate) fn is_command(request: &RequestBody) -> bool {
    matches!(
        request,
        RequestBody::Submit { .. }
            | RequestBody::Cancel { .. }
            | RequestBody::NodeForget { .. }
            | RequestBody::NodeScheduling { .. }
            | RequestBody::NodeLabels { .. }
            | RequestBody::NodeMaintenance { .. }
            | RequestBody::Volume(VolumeRequest::Remove { .. })
            | RequestBody::TokenCreate { .. }
            | RequestBody::ApiTokenCreate { .. }
            | RequestBody::TokenRevoke { .. }
            | RequestBody::Revoke { .. }
            | RequestBody::KeyRenew { .. }
    ) || matches!(request, RequestBody::Service(request) if services::is_command(request))
        || matches!(request, RequestBody::Schedule(request) if schedules::is_command(request))
        || matches!(request, RequestBody::Queue(request) if queues::is_command(request))
}

/// Returns the error for an answer of the core that does not belong to the command.
fn unexpected() -> ErrorReply {
    ErrorReply::new(ErrorCode::BadMessage, "the answer to another request came; this is a bug")
}
