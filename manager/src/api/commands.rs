//! Commands: what the core decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_manager_core::input::{Command, Input};
use podmesh_manager_core::step::Answer;
use podmesh_protocol::access::{ApiToken, Caller, Role};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::spec::{JobSpec, validate_label_value};
use podmesh_protocol::volume::{VolumeReply, VolumeRequest};
use podmesh_wire::machine::unwritable;

use super::{Api, unexpected};
use crate::callers::Client;
use crate::core::{Pending, Room};
use crate::threads::stopping;

type Reply = Result<ReplyBody, ErrorReply>;

impl Api {
    /// Passes a [command](super::is_command) to the core before it returns, so that commands keep
    /// their order. The future waits for the answer.
    pub(super) fn command(
        &self,
        client: Client,
        request: RequestBody,
        room: Option<Room>,
    ) -> BoxFuture<'static, Reply> {
        match self.begin(client, request, room) {
            Ok(answer) => answer,
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn begin(
        &self,
        client: Client,
        request: RequestBody,
        room: Option<Room>,
    ) -> Result<BoxFuture<'static, Reply>, ErrorReply> {
        let core = &self.0.core;
        let by = client.caller.name.clone();
        let command = match request {
            RequestBody::Submit { submission, spec } => {
                self.may_submit(&client, &spec)?;
                if !spec.after.is_empty() {
                    let spec = Arc::from(spec);
                    return Ok(self.clone().submit_after(client.caller, submission, spec).boxed());
                }
                let pending = self.submit(client.caller, submission, spec, room);
                return Ok(async { reply(pending.answer().await?) }.boxed());
            }
            RequestBody::TokenCreate { role, ttl_ms, uses } => {
                let (secret, secret_hash) = self.0.tokens.create_secret()?;
                let command = Command::CreateToken { by, secret_hash, role, ttl_ms, uses };
                let (pending, api) = (core.command(command, room), self.clone());
                let answer = async move {
                    let Answer::TokenCreated { id, expires_wall_ms } = pending.answer().await?
                    else {
                        return Err(unexpected());
                    };
                    let token = api.0.tokens.text(id, secret, api.0.own_key.digest());
                    Ok(ReplyBody::TokenCreated { id, token, expires_wall_ms })
                };
                return Ok(answer.boxed());
            }
            RequestBody::ApiTokenCreate { role, ttl_ms } => {
                let (secret, secret_hash) = self.0.tokens.create_secret()?;
                let command = Command::CreateApiToken { by, secret_hash, role, ttl_ms };
                let pending = core.command(command, room);
                let answer = async move {
                    let Answer::TokenCreated { id, expires_wall_ms } = pending.answer().await?
                    else {
                        return Err(unexpected());
                    };
                    let token = ApiToken(secret).to_string();
                    Ok(ReplyBody::TokenCreated { id, token, expires_wall_ms })
                };
                return Ok(answer.boxed());
            }
            RequestBody::Cancel { job, downstream: true } => {
                return Ok(self.clone().cancel_downstream(job).boxed());
            }
            RequestBody::Cancel { job, downstream: false } => {
                let pending = core.command(Command::Cancel { job }, room);
                return Ok(self.clone().cancelled(pending).boxed());
            }
            RequestBody::KeyRenew { key } => {
                let Some(old) = client.caller.key else {
                    let message = "there is nothing to renew: on the manager's own machine, callers have no key";
                    return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
                };
                Command::RenewKey { old, new: key }
            }
            RequestBody::Service(request) => {
                return self.begin_service(by, request, room);
            }
            RequestBody::Schedule(request) => {
                return self.begin_schedule(&client, request, room);
            }
            RequestBody::Queue(request) => return self.begin_queue(&client, request, room),
            RequestBody::NodeScheduling { node, scheduling, drain } => {
                let invalid = |why: String| ErrorReply::new(ErrorCode::InvalidSpec, why);
                if scheduling != Scheduling::Draining && !drain.is_default() {
                    let why = "a deadline, requeue or reason is only for a node that is drained";
                    return Err(invalid(why.into()));
                }
                drain.validate().map_err(|error| invalid(error.to_string()))?;
                let command = Command::ScheduleNode { by, node, scheduling, drain };
                let pending = core.command(command, room);
                let answer = async move {
                    let Answer::NodeScheduled { attempts, notes } = pending.answer().await? else {
                        return Err(unexpected());
                    };
                    Ok(ReplyBody::NodeScheduling { scheduling, attempts, notes })
                };
                return Ok(answer.boxed());
            }
            RequestBody::Volume(VolumeRequest::Remove { volume, force }) => {
                Command::RemoveVolume { by, volume, force }
            }
            RequestBody::NodeLabels { node, set, remove } => {
                for value in set.values() {
                    validate_label_value("labels", value).map_err(|error| {
                        ErrorReply::new(ErrorCode::InvalidSpec, error.to_string())
                    })?;
                }
                Command::LabelNode { by, node, set, remove }
            }
            RequestBody::NodeMaintenance { node, maintenance } => {
                if let Some(spec) = &maintenance {
                    spec.validate().map_err(|error| {
                        ErrorReply::new(ErrorCode::InvalidSpec, error.to_string())
                    })?;
                }
                Command::SetMaintenance { by, node, maintenance }
            }
            RequestBody::NodeForget { node, force } => Command::ForgetNode { by, node, force },
            RequestBody::TokenRevoke { id } => Command::RevokeToken { by, id },
            RequestBody::Revoke { kind, name } => Command::RevokeKey { by, kind, name },
            _ => return Err(unexpected()),
        };
        let pending = core.command(command, room);
        Ok(async { reply(pending.answer().await?) }.boxed())
    }

    pub(super) fn may_submit(&self, client: &Client, spec: &JobSpec) -> Result<(), ErrorReply> {
        spec.validate()
            .map_err(|error| ErrorReply::new(ErrorCode::InvalidSpec, error.to_string()))?;
        self.may_have_priority(client, spec.priority)?;
        self.may_write()
    }

    /// Checks that a client may submit a job with a priority.
    pub(super) fn may_have_priority(
        &self,
        client: &Client,
        priority: i32,
    ) -> Result<(), ErrorReply> {
        let (caller, max) = (&client.caller, self.0.priority_max);
        if priority > max && !caller.role.includes(Role::Admin) {
            let message = format!(
                "the priority {priority} is for admins: {} has the role {}, and may submit with a priority of up to {max} (an admin can raise that: `priority_max` in manager.toml)",
                caller.name, caller.role
            );
            return Err(ErrorReply::new(ErrorCode::Forbidden, message));
        }
        Ok(())
    }

    /// Checks that the disk has room.
    pub(super) fn may_write(&self) -> Result<(), ErrorReply> {
        match unwritable(&self.0.data_dir) {
            Some(why) => Err(ErrorReply::new(ErrorCode::Storage, why)),
            None => Ok(()),
        }
    }

    /// Submits a job, unless the database has the submission already: then it does not count for the
    /// rate of its caller. The core remembers only recent ones. The lookups and the core keep the
    /// order of arrival.
    fn submit(
        &self,
        caller: Caller,
        submission: SubmissionId,
        spec: Box<JobSpec>,
        room: Option<Room>,
    ) -> Pending {
        let (core, limit) = (self.0.core.clone(), Arc::clone(&self.0.submissions));
        let pending = core.ticket();
        let ticket = pending.ticket;
        self.0.lookups.post(move |history| {
            let result = match history.note(history.submission(submission)) {
                Ok(None) => match limit.take(&caller, Instant::now()) {
                    Ok(()) => {
                        let (by, spec) = (caller.name, Arc::from(spec));
                        let upstream = BTreeMap::new();
                        let command = Command::Submit { by, submission, spec, upstream };
                        return core.send(Input::Command(ticket, command), room);
                    }
                    Err(error) => Err(error),
                },
                Ok(Some(job)) => Ok(Answer::Submitted { job, again: true }),
                Err(error) => Err(error.into()),
            };
            core.answered(ticket, result);
        });
        pending
    }

    pub(super) async fn cancelled(self, pending: Pending) -> Reply {
        match pending.answer().await? {
            Answer::EndedBefore { job } => {
                let state = self.0.reads.run(move |history| history.job_state(job));
                let (state, _) = state.await?;
                Ok(ReplyBody::Cancelled { state: state.into(), downstream: 0 })
            }
            answer => reply(answer),
        }
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
        let api = self.clone();
        // It holds the lock until the commit, also if the client leaves.
        let removal = async move {
            let _ended_jobs = api.0.ended_jobs.lock().await;
            let room = api.0.core.room().await;
            api.0.core.command(Command::RemoveJobs { jobs, by }, room).answer().await
        };
        match tokio::spawn(removal).await.map_err(|_| stopping())?? {
            Answer::JobsRemoved { jobs } => Ok(jobs),
            _ => Err(unexpected()),
        }
    }
}

/// Returns the reply for an answer that needs nothing more.
fn reply(answer: Answer) -> Reply {
    Ok(match answer {
        Answer::Submitted { job, again } => ReplyBody::Submitted { job, again },
        Answer::Cancelled { state } => ReplyBody::Cancelled { state: state.into(), downstream: 0 },
        Answer::NodeForgotten { enrolled } => ReplyBody::NodeForgotten { enrolled },
        Answer::VolumeRemoving { node } => ReplyBody::Volume(VolumeReply::Removing { node }),
        Answer::MaintenanceSet { changed } => ReplyBody::NodeMaintenance { changed },
        Answer::NodeLabelled { labels } => ReplyBody::NodeLabels { labels },
        Answer::TokenRevoked => ReplyBody::TokenRevoked,
        Answer::KeyRenewed => ReplyBody::KeyRenewed,
        Answer::KeyRevoked => ReplyBody::Revoked,
        Answer::EndedBefore { .. }
        | Answer::ReadAgain
        | Answer::JobsCancelled { .. }
        | Answer::JobsRemoved { .. }
        | Answer::Requeued { .. }
        | Answer::TokenCreated { .. }
        | Answer::ServiceChanged { .. }
        | Answer::ScheduleSaved { .. }
        | Answer::ScheduleChanged { .. }
        | Answer::ScheduleRan { .. }
        | Answer::QueueSaved { .. }
        | Answer::QueueChanged { .. }
        | Answer::NodeScheduled { .. }
        | Answer::Joined { .. } => return Err(unexpected()),
    })
}
