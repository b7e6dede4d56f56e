//! Schedules.

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::schedule::{ScheduleReply, ScheduleRequest};
use podmesh_views::input::ScheduleInput;
use podmesh_views::schedule::{
    ScheduleChangedOutput, ScheduleHistoryOutput, ScheduleOutput, ScheduleRanOutput, ScheduleRow,
    ScheduleSavedOutput, SchedulesOutput, instants,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::{Json, Path, Query, Session, json, ok};
use crate::jobs::{LIMIT_DEFAULT, key_of, submission};
use crate::problem::Problem;

/// Which rows of the history.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunsQuery {
    /// Only rows with a smaller number: the next page.
    before: Option<u64>,
    /// Rows of the page, at most 1000; default 100.
    limit: Option<u32>,
}

async fn ask(session: &Session, request: ScheduleRequest) -> Result<ScheduleReply, Problem> {
    match session.ask(RequestBody::Schedule(request)).await? {
        ReplyBody::Schedule(reply) => Ok(reply),
        _ => Err(Problem::unexpected()),
    }
}

async fn change(
    session: &Session,
    path: &Path,
    request: fn(Name) -> ScheduleRequest,
) -> Result<Response, Problem> {
    let schedule: Name = path.part("schedule")?;
    match ask(session, request(schedule.clone())).await? {
        ScheduleReply::Changed { changed } => {
            Ok(ok(&ScheduleChangedOutput { schedule: schedule.to_string(), changed }))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// GET /schedules
pub(crate) async fn list(session: Session) -> Result<Response, Problem> {
    let mut schedules: Vec<ScheduleRow> = Vec::new();
    let mut after = None;
    loop {
        match ask(&session, ScheduleRequest::List { after, limit: PAGE_ROWS_MAX }).await? {
            // Only an empty page is the last: the bytes of a page are limited too.
            ScheduleReply::List(page) if page.is_empty() => {
                return Ok(ok(&SchedulesOutput { schedules }));
            }
            ScheduleReply::List(page) => {
                schedules.extend(page.iter().map(ScheduleRow::from));
                after = page.last().map(|view| view.schedule.clone());
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// GET /schedules/{schedule}
pub(crate) async fn show(session: Session, path: Path) -> Result<Response, Problem> {
    let schedule = path.part("schedule")?;
    match ask(&session, ScheduleRequest::Show { schedule }).await? {
        ScheduleReply::Schedule(detail) => Ok(ok(&ScheduleOutput::from(&*detail))),
        _ => Err(Problem::unexpected()),
    }
}

/// PUT /schedules/{schedule}
pub(crate) async fn save(
    session: Session,
    path: Path,
    Json(input): Json<ScheduleInput>,
) -> Result<Response, Problem> {
    let name: Name = path.part("schedule")?;
    let spec = input.into_spec(name.clone());
    let spec = spec.map(Box::new).map_err(|error| Problem::invalid(error.to_string()))?;
    match ask(&session, ScheduleRequest::Save { spec }).await? {
        ScheduleReply::Saved { added, changed, next_ms } => Ok(ok(&ScheduleSavedOutput {
            schedule: name.to_string(),
            added,
            changed,
            next_instants: instants(&next_ms),
        })),
        _ => Err(Problem::unexpected()),
    }
}

/// DELETE /schedules/{schedule}
pub(crate) async fn remove(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |schedule| ScheduleRequest::Remove { schedule }).await
}

/// POST /schedules/{schedule}/pause
pub(crate) async fn pause(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |schedule| ScheduleRequest::Pause { schedule }).await
}

/// POST /schedules/{schedule}/resume
pub(crate) async fn resume(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |schedule| ScheduleRequest::Resume { schedule }).await
}

/// POST /schedules/{schedule}/run
pub(crate) async fn run(
    session: Session,
    path: Path,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let schedule: Name = path.part("schedule")?;
    let submission = submission(&session, key_of(&headers)?)?;
    let request = ScheduleRequest::Run { schedule: schedule.clone(), submission };
    match ask(&session, request).await? {
        ScheduleReply::Ran { job } => {
            let job = job.map(|job| job.0);
            let view = ScheduleRanOutput { schedule: schedule.to_string(), job };
            Ok(json(StatusCode::ACCEPTED, &view))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// GET /schedules/{schedule}/history
pub(crate) async fn history(
    session: Session,
    path: Path,
    Query(query): Query<RunsQuery>,
) -> Result<Response, Problem> {
    let schedule = path.part("schedule")?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    let request = ScheduleRequest::History { schedule, before: query.before, limit };
    match ask(&session, request).await? {
        ScheduleReply::History(rows) => {
            Ok(ok(&ScheduleHistoryOutput { runs: rows.iter().map(Into::into).collect() }))
        }
        _ => Err(Problem::unexpected()),
    }
}
