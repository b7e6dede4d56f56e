//! The requests about schedules, with the reply of the matching type.

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::schedule::{
    ScheduleDetail, ScheduleReply, ScheduleRequest, ScheduleRunView, ScheduleSpec, ScheduleView,
};

use crate::connect::{Connection, RequestError, unexpected};

/// What became of a schedule that was saved.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    /// Whether there was none with the name.
    pub(crate) added: bool,
    /// Whether anything has changed.
    pub(crate) changed: bool,
    /// Its next instants, in milliseconds since 1970.
    pub(crate) next_ms: Vec<u64>,
}

impl Connection {
    async fn schedule_request(
        &self,
        request: ScheduleRequest,
    ) -> Result<ScheduleReply, RequestError> {
        match self.request(RequestBody::Schedule(request)).await? {
            ReplyBody::Schedule(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// Adds or changes a schedule.
    pub(crate) async fn save_schedule(&self, spec: ScheduleSpec) -> Result<Saved, RequestError> {
        let spec = Box::new(spec);
        match self.schedule_request(ScheduleRequest::Save { spec }).await? {
            ScheduleReply::Saved { added, changed, next_ms } => {
                Ok(Saved { added, changed, next_ms })
            }
            _ => Err(unexpected()),
        }
    }

    /// Returns all schedules in order of name. Only an empty page is the last.
    pub(crate) async fn schedules(&self) -> Result<Vec<ScheduleView>, RequestError> {
        let mut all: Vec<ScheduleView> = Vec::new();
        loop {
            let after = all.last().map(|view| view.schedule.clone());
            let request = ScheduleRequest::List { after, limit: PAGE_ROWS_MAX };
            match self.schedule_request(request).await? {
                ScheduleReply::List(page) if page.is_empty() => return Ok(all),
                ScheduleReply::List(page) => all.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Returns one schedule.
    pub(crate) async fn schedule(&self, schedule: Name) -> Result<ScheduleDetail, RequestError> {
        match self.schedule_request(ScheduleRequest::Show { schedule }).await? {
            ScheduleReply::Schedule(detail) => Ok(*detail),
            _ => Err(unexpected()),
        }
    }

    /// Returns up to `limit` rows of the history of a schedule, newest first.
    pub(crate) async fn schedule_history(
        &self,
        schedule: Name,
        limit: u32,
    ) -> Result<Vec<ScheduleRunView>, RequestError> {
        let mut rows: Vec<ScheduleRunView> = Vec::new();
        loop {
            let left = limit.saturating_sub(u32::try_from(rows.len()).unwrap_or(u32::MAX));
            let before = rows.last().map(|row| row.number);
            let schedule = schedule.clone();
            let request = ScheduleRequest::History { schedule, before, limit: left };
            match self.schedule_request(request).await? {
                ScheduleReply::History(page) if page.is_empty() || left == 0 => return Ok(rows),
                ScheduleReply::History(page) => rows.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Starts a run. Returns its job; `None` if it starts when the last run has ended.
    pub(crate) async fn run_schedule(
        &self,
        schedule: Name,
        submission: SubmissionId,
    ) -> Result<Option<JobId>, RequestError> {
        match self.schedule_request(ScheduleRequest::Run { schedule, submission }).await? {
            ScheduleReply::Ran { job } => Ok(job),
            _ => Err(unexpected()),
        }
    }

    /// Pauses, resumes or removes a schedule. Returns whether anything has changed.
    pub(crate) async fn change_schedule(
        &self,
        request: ScheduleRequest,
    ) -> Result<bool, RequestError> {
        match self.schedule_request(request).await? {
            ScheduleReply::Changed { changed } => Ok(changed),
            _ => Err(unexpected()),
        }
    }
}
