//! Jobs and their tasks.

use axum::extract::Request;
use axum::http::header::{ETAG, LINK, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use podmesh_protocol::again::RequeueRequest;
use podmesh_protocol::client::{JobView, ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::report::TaskState as WireTaskState;
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::trace::{TRACEPARENT, TraceParent};
use podmesh_views::again::{FailedOutput, RequeueOutput};
use podmesh_views::http::{BatchOutput, BatchRow, TaskOutput};
use podmesh_views::input::{ForgetInput, JobInput, RequeueInput};
use podmesh_views::json::{
    CancelledJob, ForgetOutput, JobOutput, JobRow, JobsOutput, SubmitOutput, TaskState, TasksOutput,
};
use podmesh_wire::key::sha256;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use crate::extract::{Json, OptionalJson, Path, Query, Session, etag, json, ok};
use crate::problem::Problem;

/// Rows of a page, if the request does not say.
pub(crate) const LIMIT_DEFAULT: u32 = 100;
/// The header with the key by which a repeated submission is recognised.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header with the trace of a request.
const TRACE_HEADER: &str = "traceparent";
/// Bytes of that key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// Which jobs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsQuery {
    /// Only jobs before this one: the next page.
    before: Option<u64>,
    /// Only jobs that have not ended.
    #[serde(default)]
    active: bool,
    /// Only jobs that this user or node submitted.
    #[schemars(with = "Option<String>")]
    by: Option<Name>,
    /// Only the replicas of this service. Without it, the list has no replicas.
    #[schemars(with = "Option<String>")]
    service: Option<Name>,
    /// Only replicas with this number.
    replica: Option<u32>,
    /// Rows of the page, at most 1000; default 100.
    limit: Option<u32>,
}

/// What to cancel.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelQuery {
    /// Also the jobs that depend on it, or on a job that does, as long as they have not ended.
    #[serde(default)]
    downstream: bool,
}

/// Which failed tasks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FailedQuery {
    /// Only tasks that failed in the last so many milliseconds.
    since_ms: Option<u64>,
}

/// For what to wait before the reply.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitQuery {
    /// The `revision` of an earlier reply: wait until there is a later one.
    pub(crate) since: Option<u64>,
    /// How long to wait at most, with `since`; at most 30000.
    #[serde(default)]
    pub(crate) wait_ms: u32,
}

/// Which tasks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TasksQuery {
    /// Only tasks with at least this index: the next page.
    #[serde(default)]
    from: u32,
    /// Only tasks in this state.
    #[schemars(with = "Option<TaskState>")]
    state: Option<WireTaskState>,
    /// Rows of the page, at most 1000; default 100.
    limit: Option<u32>,
}

/// Many new jobs.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct BatchInput {
    /// The jobs.
    jobs: Vec<BatchJob>,
}

/// A new job of a batch.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct BatchJob {
    /// The key by which a repeated submission is recognised.
    idempotency_key: Option<String>,
    /// The job.
    job: JobInput,
}

/// Returns the submission ID for an idempotency key. A UUID is the ID itself, as other clients send
/// it. Any other key counts for its caller alone.
pub(crate) fn submission(session: &Session, key: Option<&str>) -> Result<SubmissionId, Problem> {
    let Some(key) = key else { return Ok(SubmissionId(Uuid::new_v4())) };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(Problem::bad_request(format!(
            "an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes; use a new UUID for each job"
        )));
    }
    if let Ok(id) = Uuid::parse_str(key) {
        return Ok(SubmissionId(id));
    }
    let hash = sha256(format!("{}\n{key}", session.asker.caller().name).as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Ok(SubmissionId(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
}

/// Returns the idempotency key of a request.
pub(crate) fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = key.to_str().map_err(|_| Problem::bad_request("the idempotency key is not text"))?;
    Ok(Some(text.trim_matches('"')))
}

/// Returns the spec of a job. It becomes a part of the trace of the request, unless its own
/// environment names one. As the standard asks, a header that is not valid is ignored.
fn spec(input: JobInput, headers: &HeaderMap) -> Result<Box<JobSpec>, Problem> {
    let mut spec: JobSpec = input
        .try_into()
        .map_err(|error: podmesh_views::input::InputError| Problem::invalid(error.to_string()))?;
    let parent = headers.get(TRACE_HEADER).and_then(|header| header.to_str().ok());
    if let Some(parent) = parent.and_then(|text| text.parse::<TraceParent>().ok()) {
        spec.run.env.entry(TRACEPARENT.into()).or_insert_with(|| parent.to_string());
    }
    Ok(Box::new(spec))
}

/// POST /jobs
pub(crate) async fn submit(
    session: Session,
    headers: HeaderMap,
    Json(input): Json<JobInput>,
) -> Result<Response, Problem> {
    let submission = submission(&session, key_of(&headers)?)?;
    let spec = spec(input, &headers)?;
    let (name, tasks) = (spec.name.to_string(), spec.array.tasks());
    match session.ask(RequestBody::Submit { submission, spec }).await? {
        ReplyBody::Submitted { job, again } => {
            let status = if again { StatusCode::OK } else { StatusCode::CREATED };
            let view = SubmitOutput { job: job.0, name, tasks };
            Ok(([(LOCATION, format!("/api/v1/jobs/{job}"))], json(status, &view)).into_response())
        }
        _ => Err(Problem::unexpected()),
    }
}

/// POST /jobs/batch
pub(crate) async fn submit_batch(
    session: Session,
    headers: HeaderMap,
    Json(input): Json<BatchInput>,
) -> Result<Response, Problem> {
    // The door takes commands in this order. The answers come together.
    let jobs = input.jobs.into_iter().map(|BatchJob { idempotency_key, job }| {
        let request = submission(&session, idempotency_key.as_deref()).and_then(|submission| {
            Ok(session.asker.ask(RequestBody::Submit { submission, spec: spec(job, &headers)? }))
        });
        async move {
            match request?.await? {
                ReplyBody::Submitted { job, again } => {
                    Ok(BatchRow::Submitted { job: job.0, again })
                }
                _ => Err(Problem::unexpected()),
            }
        }
    });
    let row = |result: Result<BatchRow, Problem>| {
        result.unwrap_or_else(|problem| BatchRow::Refused {
            code: problem.code(),
            detail: problem.detail().to_owned(),
        })
    };
    let jobs = join_all(jobs).await.into_iter().map(row).collect();
    Ok(ok(&BatchOutput { jobs }))
}

async fn page(
    session: &Session,
    query: &JobsQuery,
    before: Option<JobId>,
    limit: u32,
) -> Result<Vec<JobView>, Problem> {
    let (by, service) = (query.by.clone(), query.service.clone());
    let (active, replica) = (query.active, query.replica);
    let request = RequestBody::Jobs { before, active, by, service, replica, limit };
    match session.ask(request).await? {
        ReplyBody::Jobs(jobs) => Ok(jobs),
        _ => Err(Problem::unexpected()),
    }
}

/// Returns the URL of a request with another cursor, as a link to the next page.
fn next_link(request: &Request, cursor: &str, value: impl std::fmt::Display) -> HeaderValue {
    let kept = request.uri().query().unwrap_or_default().split('&');
    let kept = kept.filter(|pair| !pair.is_empty() && pair.split('=').next() != Some(cursor));
    let mut query: Vec<&str> = kept.collect();
    let next = format!("{cursor}={value}");
    query.push(&next);
    let link = format!("<{}?{}>; rel=\"next\"", request.uri().path(), query.join("&"));
    HeaderValue::from_str(&link).unwrap_or(HeaderValue::from_static(""))
}

/// GET /jobs
pub(crate) async fn list(
    session: Session,
    Query(query): Query<JobsQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(PAGE_ROWS_MAX);
    let jobs = page(&session, &query, query.before.map(JobId), limit).await?;
    // A page can be shorter than asked for, because its bytes are limited too.
    let last = jobs.last().map(|view| view.job);
    let more = match last {
        Some(last) => !page(&session, &query, Some(last), 1).await?.is_empty(),
        None => false,
    };
    let view = JobsOutput { jobs: jobs.iter().map(JobRow::from).collect(), more };
    Ok(match last.filter(|_| more) {
        Some(last) => ([(LINK, next_link(&request, "before", last))], ok(&view)).into_response(),
        None => ok(&view),
    })
}

/// GET /jobs/{job}
pub(crate) async fn show(
    session: Session,
    path: Path,
    headers: HeaderMap,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Problem> {
    let (job, since) = (path.part("job")?, query.since.map(Revision));
    match session.ask(RequestBody::Job { job, since, wait_ms: query.wait_ms }).await? {
        ReplyBody::Job(detail) => {
            let (tag, has) = etag(&headers, detail.revision);
            // Why tasks wait changes without a revision.
            if has && detail.waits_for.is_empty() {
                return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
            }
            Ok(([(ETAG, tag)], ok(&JobOutput::from(&*detail))).into_response())
        }
        _ => Err(Problem::unexpected()),
    }
}

/// POST /jobs/{job}/cancel
pub(crate) async fn cancel(
    session: Session,
    path: Path,
    Query(query): Query<CancelQuery>,
) -> Result<Response, Problem> {
    let job: JobId = path.part("job")?;
    match session.ask(RequestBody::Cancel { job, downstream: query.downstream }).await? {
        ReplyBody::Cancelled { state, downstream } => {
            Ok(ok(&CancelledJob { job: job.0, state: (&state).into(), downstream }))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// POST /jobs/{job}/requeue
pub(crate) async fn requeue(
    session: Session,
    path: Path,
    OptionalJson(input): OptionalJson<RequeueInput>,
) -> Result<Response, Problem> {
    let job: JobId = path.part("job")?;
    let RequeueInput { state, tasks, downstream } = input;
    let request = RequeueRequest { job, state, tasks, downstream };
    match session.ask(RequestBody::Requeue(request)).await? {
        ReplyBody::Requeued(done) => Ok(ok(&RequeueOutput::new(job, &done))),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /failed
pub(crate) async fn failed(
    session: Session,
    Query(query): Query<FailedQuery>,
) -> Result<Response, Problem> {
    match session.ask(RequestBody::Failed { since_ms: query.since_ms }).await? {
        ReplyBody::Failed(failed) => Ok(ok(&FailedOutput::from(&failed))),
        _ => Err(Problem::unexpected()),
    }
}

/// DELETE /jobs/{job}
pub(crate) async fn forget_one(session: Session, path: Path) -> Result<Response, Problem> {
    let job = path.part("job")?;
    forget(session, job, job).await
}

/// POST /jobs/forget
pub(crate) async fn forget_many(
    session: Session,
    Json(range): Json<ForgetInput>,
) -> Result<Response, Problem> {
    forget(session, JobId(range.first), JobId(range.last)).await
}

async fn forget(session: Session, mut first: JobId, last: JobId) -> Result<Response, Problem> {
    let mut view = ForgetOutput { removed: 0, active: vec![] };
    loop {
        match session.ask(RequestBody::Forget { first, last }).await? {
            ReplyBody::Forgotten { removed, active, next } => {
                view.removed += u64::from(removed);
                view.active.extend(active.iter().map(|job| job.0));
                match next {
                    Some(next) => first = next,
                    None => return Ok(ok(&view)),
                }
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// GET /jobs/{job}/tasks
pub(crate) async fn tasks(
    session: Session,
    path: Path,
    Query(query): Query<TasksQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let job = path.part("job")?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(PAGE_ROWS_MAX);
    let (from, state) = (query.from, query.state);
    match session.ask(RequestBody::Tasks { job, from, state, limit }).await? {
        ReplyBody::Tasks { tasks, next } => {
            let view = TasksOutput::new(job, &tasks, next.is_some());
            Ok(match next {
                Some(next) => {
                    ([(LINK, next_link(&request, "from", next))], ok(&view)).into_response()
                }
                None => ok(&view),
            })
        }
        _ => Err(Problem::unexpected()),
    }
}

/// Returns the task of a path.
pub(crate) fn task_of(path: &Path) -> Result<TaskId, Problem> {
    Ok(TaskId { job: path.part("job")?, index: path.part("index")? })
}

/// GET /jobs/{job}/tasks/{index}
pub(crate) async fn task(session: Session, path: Path) -> Result<Response, Problem> {
    let task = task_of(&path)?;
    match session.ask(RequestBody::Task { task, unless: None, wait_ms: 0 }).await? {
        ReplyBody::Task(detail) => Ok(ok(&TaskOutput::from(&detail))),
        _ => Err(Problem::unexpected()),
    }
}
