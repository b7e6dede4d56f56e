//! The output of all tasks of a job, or of all replicas of a service, as one stream of whole lines.
//!
//! The lines of one source keep their order. A stream reads a limited number of sources at a time,
//! each in small parts, and only when its client takes what it has: so it holds little.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, unfold};
use futures_util::{FutureExt, StreamExt};
use podmesh_protocol::client::{LogPosition, LogStream, ReplyBody, RequestBody};
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::service::{ServiceReply, ServiceRequest};
use podmesh_views::http::MergedLogEvent;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::budget::Charged;
use crate::extract::{Path, Query, Session};
use crate::logs::{Reader, StreamName, TEXT, WAIT_MS, stdout};
use crate::problem::Problem;
use crate::sse;

/// Sources that are read at a time. The others wait until one of them has ended.
const SOURCES_MAX: usize = 64;
/// Bytes of one read of a source.
const READ_BYTES: u32 = 8 << 10;
/// What one stream may hold: a part of each source, twice.
const MERGED_BYTES: u32 = 2 * SOURCES_MAX as u32 * READ_BYTES;
/// A longer line is sent in pieces.
const LINE_BYTES_MAX: usize = READ_BYTES as usize;
/// The pause before a source that cannot be read is read again, and between two looks at what there
/// is to read.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Which output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MergedQuery {
    /// The stream; default `stdout`.
    #[serde(default = "stdout")]
    #[schemars(with = "StreamName")]
    stream: LogStream,
    /// Whether to wait for further output, also of tasks or replicas that start later, until the job
    /// has ended or the service is removed.
    #[serde(default)]
    follow: bool,
    /// Begin with this number of lines before the end of each source; default: all.
    tail: Option<u64>,
}

/// What is read.
#[derive(Clone)]
enum Of {
    Job(JobId),
    Service(Name),
}

/// An attempt, and what its lines begin with.
struct Source {
    attempt: AttemptId,
    label: String,
    /// Whether it has ended.
    ended: bool,
}

/// What there is to read.
struct Found {
    sources: Vec<Source>,
    revision: Revision,
    /// Whether nothing will be added.
    complete: bool,
}

impl Of {
    /// Returns the last attempt of each task or replica, once something has changed after `since`
    /// or a while has passed.
    async fn find(&self, session: &Session, since: Option<Revision>) -> Result<Found, Problem> {
        let wait_ms = if since.is_some() { WAIT_MS } else { 0 };
        match self {
            Self::Job(job) => find_tasks(session, *job, since, wait_ms).await,
            Self::Service(service) => find_replicas(session, service, since, wait_ms).await,
        }
    }
}

async fn find_tasks(
    session: &Session,
    job: JobId,
    since: Option<Revision>,
    wait_ms: u32,
) -> Result<Found, Problem> {
    let ReplyBody::Job(detail) = session.ask(RequestBody::Job { job, since, wait_ms }).await?
    else {
        return Err(Problem::unexpected());
    };
    let all = detail.view.counts.total();
    if all > u64::from(PAGE_ROWS_MAX) {
        return Err(Problem::bad_request(format!(
            "job {job} has {all} tasks, and the output of at most {PAGE_ROWS_MAX} comes as one stream: GET /api/v1/jobs/{job}/tasks/INDEX/log has that of one task"
        )));
    }
    let request = RequestBody::Tasks { job, from: 0, state: None, limit: PAGE_ROWS_MAX };
    let ReplyBody::Tasks { tasks, .. } = session.ask(request).await? else {
        return Err(Problem::unexpected());
    };
    let source = |view: &podmesh_protocol::client::TaskView| {
        let last = view.last.as_ref()?;
        let attempt = AttemptId { task: view.task, number: last.number };
        Some(Source { attempt, label: view.task.to_string(), ended: last.outcome.is_some() })
    };
    let sources = tasks.iter().filter_map(source).collect();
    Ok(Found { sources, revision: detail.revision, complete: detail.view.is_end() })
}

async fn find_replicas(
    session: &Session,
    service: &Name,
    since: Option<Revision>,
    wait_ms: u32,
) -> Result<Found, Problem> {
    let request = ServiceRequest::Show { service: service.clone(), since, wait_ms };
    let ReplyBody::Service(ServiceReply::Service(detail)) =
        session.ask(RequestBody::Service(request)).await?
    else {
        return Err(Problem::unexpected());
    };
    let source = |replica: &podmesh_protocol::service::ReplicaView| {
        let label = format!("{service}.{}", replica.number);
        Some(Source { attempt: replica.attempt?, label, ended: false })
    };
    let sources = detail.replicas.iter().filter_map(source).collect();
    Ok(Found { sources, revision: detail.changed, complete: false })
}

/// Reads the lines of one source.
struct Lines {
    reader: Reader,
    label: String,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// Whether the last read failed, and the client knows why.
    failing: bool,
}

impl Lines {
    /// Reads the next part. Returns whole lines, or why there are none.
    async fn next(mut self) -> (Self, Result<String, Problem>) {
        if self.failing {
            sleep(PAUSE).await;
        }
        let text = match self.reader.next(READ_BYTES).await {
            Ok(slice) => {
                self.failing = false;
                Ok(self.take(&slice.bytes))
            }
            Err(problem) => Err(problem),
        };
        (self, text)
    }

    fn take(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = match self.rest.iter().rposition(|byte| *byte == b'\n') {
            _ if self.reader.ended => self.rest.len(),
            Some(at) => at + 1,
            None if self.rest.len() >= LINE_BYTES_MAX => self.rest.len(),
            None => 0,
        };
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        let mut text = String::from_utf8_lossy(&lines).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }
}

/// One stream.
struct Merge {
    app: App,
    session: Session,
    of: Of,
    query: MergedQuery,
    /// Whether the client gets events.
    events: bool,
    known: HashSet<AttemptId>,
    waiting: VecDeque<Source>,
    reading: FuturesUnordered<BoxFuture<'static, (Lines, Result<String, Problem>)>>,
    /// The next look at what there is to read.
    looking: Option<BoxFuture<'static, Result<Found, Problem>>>,
    done: bool,
}

impl Merge {
    /// Adds the sources that are not known yet.
    fn add(&mut self, found: Found) {
        let (known, mut fresh) = (&mut self.known, found.sources);
        fresh.retain(|source| known.insert(source.attempt));
        // Those that have ended do not wait for those that run.
        fresh.sort_by_key(|source| !source.ended);
        self.waiting.extend(fresh);
        if self.query.follow && !found.complete {
            let (of, session) = (self.of.clone(), self.session.clone());
            let look = async move {
                sleep(PAUSE).await;
                of.find(&session, Some(found.revision)).await
            };
            self.looking = Some(look.boxed());
        }
    }

    /// Begins to read sources, as long as there is room.
    fn fill(&mut self) {
        while self.reading.len() < SOURCES_MAX
            && let Some(Source { attempt, label, .. }) = self.waiting.pop_front()
        {
            let from = self.query.tail.map_or(LogPosition::Offset(0), LogPosition::TailLines);
            let MergedQuery { stream, follow, .. } = self.query;
            let session = self.session.clone();
            let reader = Reader { session, attempt, stream, from, follow, ended: false };
            let lines = Lines { reader, label, rest: Vec::new(), failing: false };
            self.reading.push(lines.next().boxed());
        }
    }

    /// Returns the next text; `None` when the stream ends.
    async fn next(&mut self) -> Option<Bytes> {
        let mut stopping = self.app.stopping.clone();
        while !self.done {
            self.fill();
            if self.reading.is_empty() && self.looking.is_none() {
                self.done = true;
                return self.events.then(end);
            }
            let turn = async {
                tokio::select! {
                    Some((lines, text)) = self.reading.next() => Turn::Read(Box::new(lines), text),
                    found = look(&mut self.looking) => Turn::Found(found),
                }
            };
            let turn = tokio::select! {
                turn = timeout(sse::HEARTBEAT, turn) => turn,
                _ = stopping.wait_for(|stopping| *stopping) => return None,
            };
            if let Err(error) = self.session.asker.check() {
                self.done = true;
                return Some(self.told(&error.into()));
            }
            match turn {
                Err(_) if self.events => return Some(sse::COMMENT),
                Err(_) => {}
                Ok(Turn::Read(lines, text)) => {
                    if let Some(text) = self.read(*lines, text) {
                        return Some(text);
                    }
                }
                Ok(Turn::Found(found)) => {
                    self.looking = None;
                    match found {
                        Ok(found) => self.add(found),
                        // The job or service was removed: what is left is still read.
                        Err(problem) if problem.code() == "not_found" => {}
                        Err(problem) => {
                            self.done = true;
                            return Some(self.told(&problem));
                        }
                    }
                }
            }
        }
        None
    }

    /// Takes what was read of a source, and returns what the client gets.
    fn read(&mut self, mut lines: Lines, text: Result<String, Problem>) -> Option<Bytes> {
        let attempt = lines.reader.attempt.to_string();
        let label = lines.label.clone();
        let passes = text.as_ref().is_err_and(Problem::passes);
        let event = match text {
            Ok(text) if text.is_empty() => None,
            Ok(text) => Some(MergedLogEvent { attempt, label, text, problem: None }),
            Err(problem) => {
                let told = std::mem::replace(&mut lines.failing, true);
                let problem = Some(problem.detail().to_owned());
                (!told).then(|| MergedLogEvent { attempt, label, text: String::new(), problem })
            }
        };
        // Without `follow`, what cannot be read now is left out.
        if !lines.reader.ended && (!lines.failing || (self.query.follow && passes)) {
            self.reading.push(lines.next().boxed());
        }
        event.map(|event| self.written(&event))
    }

    fn written(&self, event: &MergedLogEvent) -> Bytes {
        if self.events {
            let mut buffer = Vec::new();
            sse::write(&mut buffer, None, None, event);
            return buffer.into();
        }
        let MergedLogEvent { label, text, problem, .. } = event;
        let problem = problem.iter().map(|why| format!("{label}: [{why}]\n"));
        let lines = text.split_inclusive('\n').map(|line| format!("{label}: {line}"));
        lines.chain(problem).collect::<String>().into()
    }

    /// Returns why the stream ends before its time.
    fn told(&self, problem: &Problem) -> Bytes {
        if self.events { sse::problem(problem) } else { format!("[{}]\n", problem.detail()).into() }
    }
}

/// What came first.
enum Turn {
    Read(Box<Lines>, Result<String, Problem>),
    Found(Result<Found, Problem>),
}

async fn look(
    looking: &mut Option<BoxFuture<'static, Result<Found, Problem>>>,
) -> Result<Found, Problem> {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

fn end() -> Bytes {
    let mut buffer = Vec::new();
    sse::write(&mut buffer, Some("end"), None, &serde_json::json!({}));
    buffer.into()
}

async fn merged(
    app: App,
    session: Session,
    of: Of,
    headers: &HeaderMap,
    query: MergedQuery,
) -> Result<Response, Problem> {
    let charge = session.budget.charge(MERGED_BYTES)?;
    let events = sse::wanted(headers);
    let found = of.find(&session, None).await?;
    let (waiting, reading) = (VecDeque::new(), FuturesUnordered::new());
    let known = HashSet::new();
    let mut merge = Merge {
        app,
        session,
        of,
        query,
        events,
        known,
        waiting,
        reading,
        looking: None,
        done: false,
    };
    merge.add(found);
    let texts = unfold(merge, async |mut merge| {
        let text = merge.next().await?;
        Some((Ok::<_, Infallible>(text), merge))
    });
    let body = Charged::body(Body::from_stream(texts), charge);
    Ok(match events {
        true => (sse::HEADERS, body).into_response(),
        false => ([(CONTENT_TYPE, TEXT)], body).into_response(),
    })
}

/// GET /jobs/{job}/log
pub(crate) async fn of_job(
    State(app): State<App>,
    session: Session,
    path: Path,
    headers: HeaderMap,
    Query(query): Query<MergedQuery>,
) -> Result<Response, Problem> {
    merged(app, session, Of::Job(path.part("job")?), &headers, query).await
}

/// GET /services/{service}/log
pub(crate) async fn of_service(
    State(app): State<App>,
    session: Session,
    path: Path,
    headers: HeaderMap,
    Query(query): Query<MergedQuery>,
) -> Result<Response, Problem> {
    merged(app, session, Of::Service(path.part("service")?), &headers, query).await
}
