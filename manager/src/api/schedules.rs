//! Requests about schedules.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_manager_core::Core;
use podmesh_manager_core::input::{Command, ScheduleChange};
use podmesh_manager_core::schedules::check_calendar;
use podmesh_manager_core::step::Answer;
use podmesh_protocol::access::Caller;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{Name, SubmissionId};
use podmesh_protocol::schedule::{ScheduleReply, ScheduleRequest, ScheduleSpec};

use super::{Api, unexpected};
use crate::callers::Client;
use crate::core::Room;

/// Returns whether a request is a command: the core decides it, in the order of arrival.
pub(super) fn is_command(request: &ScheduleRequest) -> bool {
    match request {
        ScheduleRequest::Save { .. }
        | ScheduleRequest::Pause { .. }
        | ScheduleRequest::Resume { .. }
        | ScheduleRequest::Run { .. }
        | ScheduleRequest::Remove { .. } => true,
        ScheduleRequest::List { .. }
        | ScheduleRequest::Show { .. }
        | ScheduleRequest::History { .. } => false,
    }
}

impl Api {
    /// Answers a request that changes nothing.
    pub(super) async fn schedule(
        &self,
        request: ScheduleRequest,
    ) -> Result<ScheduleReply, ErrorReply> {
        match request {
            ScheduleRequest::List { after, limit } => {
                let list = move |core: &Core, _| core.list_schedules(after.as_ref(), limit);
                Ok(ScheduleReply::List(self.0.core.read(list).await?))
            }
            ScheduleRequest::Show { schedule } => {
                let name = schedule.clone();
                let show = move |core: &Core, now| core.show_schedule(now, &name);
                let detail = self.0.core.read(show).await?;
                let detail = detail.ok_or_else(|| no_schedule(&schedule))?;
                Ok(ScheduleReply::Schedule(Box::new(detail)))
            }
            ScheduleRequest::History { schedule, before, limit } => {
                let name = schedule.clone();
                let list = move |history: &crate::store::History| {
                    history.schedule_history(&name, before, limit)
                };
                let rows = self.0.reads.run(list).await?;
                if rows.is_empty() {
                    let name = schedule.clone();
                    let is_there = move |core: &Core, _| core.state().schedules.contains_key(&name);
                    if !self.0.core.read(is_there).await? {
                        return Err(no_schedule(&schedule));
                    }
                }
                Ok(ScheduleReply::History(rows))
            }
            _ => Err(unexpected()),
        }
    }

    /// Passes a command about a schedule to the core.
    pub(super) fn begin_schedule(
        &self,
        client: &Client,
        request: ScheduleRequest,
        room: Option<Room>,
    ) -> Result<BoxFuture<'static, Result<ReplyBody, ErrorReply>>, ErrorReply> {
        let by = client.caller.name.clone();
        let (schedule, change) = match request {
            ScheduleRequest::Save { spec } => {
                spec.validate().map_err(|error| invalid(error.to_string()))?;
                self.may_submit(client, &spec.job)?;
                return Ok(self.clone().save_schedule(by, spec, room).boxed());
            }
            ScheduleRequest::Pause { schedule } => (schedule, ScheduleChange::Pause),
            ScheduleRequest::Resume { schedule } => (schedule, ScheduleChange::Resume),
            ScheduleRequest::Remove { schedule } => (schedule, ScheduleChange::Remove),
            ScheduleRequest::Run { schedule, submission } => {
                let caller = client.caller.clone();
                return Ok(self.clone().run_schedule(caller, schedule, submission, room).boxed());
            }
            _ => return Err(unexpected()),
        };
        let pending = self.0.core.command(Command::ChangeSchedule { by, schedule, change }, room);
        let answer = async move {
            match pending.answer().await? {
                Answer::ScheduleChanged { changed } => {
                    Ok(ReplyBody::Schedule(ScheduleReply::Changed { changed }))
                }
                _ => Err(unexpected()),
            }
        };
        Ok(answer.boxed())
    }

    /// Runs a schedule, unless the same request has made a job before. The database is asked, because
    /// the core does not know the jobs that ended before the manager started.
    async fn run_schedule(
        self,
        caller: Caller,
        schedule: Name,
        submission: SubmissionId,
        room: Option<Room>,
    ) -> Result<ReplyBody, ErrorReply> {
        let known = self.0.reads.run(move |history| history.submission(submission));
        if let Some(job) = known.await? {
            return Ok(ReplyBody::Schedule(ScheduleReply::Ran { job: Some(job) }));
        }
        self.0.submissions.take(&caller, Instant::now())?;
        let (by, change) = (caller.name, ScheduleChange::Run { submission });
        let command = Command::ChangeSchedule { by, schedule, change };
        match self.0.core.command(command, room).answer().await? {
            Answer::ScheduleRan { job } => Ok(ReplyBody::Schedule(ScheduleReply::Ran { job })),
            _ => Err(unexpected()),
        }
    }

    /// Saves a schedule whose rule comes at least once. To find out that it never does takes a while.
    async fn save_schedule(
        self,
        by: Name,
        spec: Box<ScheduleSpec>,
        room: Option<Room>,
    ) -> Result<ReplyBody, ErrorReply> {
        let (when, wall_ms) = (spec.when.clone(), self.0.identity.clock.now().wall_ms);
        tokio::task::spawn_blocking(move || check_calendar(&when, wall_ms))
            .await
            .map_err(|_| unexpected())?
            .map_err(|error| invalid(error.to_string()))?;
        let command = Command::SaveSchedule { by, spec: Arc::from(spec) };
        match self.0.core.command(command, room).answer().await? {
            Answer::ScheduleSaved { added, changed, next_ms } => {
                Ok(ReplyBody::Schedule(ScheduleReply::Saved { added, changed, next_ms }))
            }
            _ => Err(unexpected()),
        }
    }
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::InvalidSpec, message)
}

fn no_schedule(schedule: &Name) -> ErrorReply {
    let message = format!("there is no schedule `{schedule}`; `podmesh schedule list` shows all");
    ErrorReply::new(ErrorCode::NotFound, message)
}
