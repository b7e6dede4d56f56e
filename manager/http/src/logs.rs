//! Output of attempts.

use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use podmesh_protocol::client::{LogPosition, LogRead, LogSlice, LogStream, ReplyBody, RequestBody};
use podmesh_protocol::ids::{AttemptId, TaskId};
use podmesh_protocol::limits::LOG_READ_BYTES_MAX;
use podmesh_views::http::LogEvent;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::app::App;
use crate::budget::{Charged, STREAM_BYTES};
use crate::extract::{Path, Query, Session};
use crate::jobs::task_of;
use crate::problem::Problem;
use crate::sse;

/// How long one read waits for more output: less than a heartbeat.
pub(crate) const WAIT_MS: u32 = 10_000;
/// Bytes of one reply to a request for a range.
const RANGE_BYTES_MAX: usize = 1 << 20;
/// The offset of the first byte of a reply.
const OFFSET: HeaderName = HeaderName::from_static("podmesh-offset");
/// Output is never a page of this server.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// Which output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// The stream; default `stdout`.
    #[serde(default = "stdout")]
    #[schemars(with = "StreamName")]
    stream: LogStream,
    /// The number of the attempt; default: the last one.
    attempt: Option<u32>,
    /// Whether to wait for further output until the attempt has ended.
    #[serde(default)]
    follow: bool,
    /// Begin with this number of lines before the end.
    tail: Option<u64>,
    /// Begin after this number of bytes.
    offset: Option<u64>,
}

/// A stream of output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

pub(crate) fn stdout() -> LogStream {
    LogStream::Stdout
}

/// Reads one attempt's output, part by part.
pub(crate) struct Reader {
    pub(crate) session: Session,
    pub(crate) attempt: AttemptId,
    pub(crate) stream: LogStream,
    pub(crate) from: LogPosition,
    /// Whether to wait for further output.
    pub(crate) follow: bool,
    /// Whether everything has been read.
    pub(crate) ended: bool,
}

impl Reader {
    /// Asks for one part.
    pub(crate) async fn ask(
        &self,
        bytes_max: u32,
        find: Option<String>,
    ) -> Result<LogSlice, Problem> {
        let read = LogRead {
            attempt: self.attempt,
            stream: self.stream,
            from: self.from,
            bytes_max,
            wait_ms: if self.follow { WAIT_MS } else { 0 },
            find,
        };
        match self.session.ask(RequestBody::Log(read)).await? {
            ReplyBody::Log(slice) => Ok(slice),
            _ => Err(Problem::unexpected()),
        }
    }

    /// Returns the next part. It is empty if nothing came for a while.
    pub(crate) async fn next(&mut self, bytes_max: u32) -> Result<LogSlice, Problem> {
        let slice = self.ask(bytes_max, None).await?;
        self.from = LogPosition::Offset(slice.offset + slice.bytes.len() as u64);
        self.ended = slice.end || (slice.bytes.is_empty() && !self.follow);
        Ok(slice)
    }
}

/// Returns the wanted attempt of a task; by default the last one.
pub(crate) async fn attempt_of(
    session: &Session,
    task: TaskId,
    number: Option<u32>,
) -> Result<AttemptId, Problem> {
    match number {
        Some(number) => Ok(AttemptId { task, number }),
        None => last_attempt(session, task).await,
    }
}

async fn last_attempt(session: &Session, task: TaskId) -> Result<AttemptId, Problem> {
    match session.ask(RequestBody::Task { task, unless: None, wait_ms: 0 }).await? {
        ReplyBody::Task(detail) => match detail.attempts.last() {
            Some(attempt) => Ok(AttemptId { task, number: attempt.number }),
            None => Err(Problem::not_found(format!(
                "task {task} has had no attempt yet, so there is no output; GET /api/v1/jobs/{} says why it waits",
                task.job
            ))),
        },
        _ => Err(Problem::unexpected()),
    }
}

/// Returns the first and the last byte of `bytes=first-[last]`; `None` for another kind of range,
/// which may be ignored (RFC 9110).
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (first, last) =
        headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    match last {
        "" => Some((first, None)),
        last => last.parse().ok().filter(|last| *last >= first).map(|last| (first, Some(last))),
    }
}

/// GET /jobs/{job}/tasks/{index}/log
pub(crate) async fn log(
    State(app): State<App>,
    session: Session,
    path: Path,
    headers: HeaderMap,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    let task = task_of(&path)?;
    let attempt = attempt_of(&session, task, query.attempt).await?;
    let from = match (query.offset, query.tail) {
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request("`offset` and `tail` exclude each other"));
        }
        (_, Some(lines)) => LogPosition::TailLines(lines),
        (offset, None) => LogPosition::Offset(offset.unwrap_or(0)),
    };
    let (stream, follow) = (query.stream, query.follow);
    let mut reader = Reader { session, attempt, stream, from, follow, ended: false };
    if sse::wanted(&headers) {
        if let Some(id) = sse::last_event_id(&headers)? {
            reader.from = LogPosition::Offset(id);
        }
        return as_events(app, reader).await;
    }
    if let (Some((first, last)), false, None, None) =
        (range(&headers), follow, query.offset, query.tail)
    {
        return one_range(reader, first, last).await;
    }
    let charge = reader.session.budget.charge(STREAM_BYTES)?;
    // The first part comes before the status, so that an error can be told. Without waiting:
    // whoever follows sees at once that the request was accepted.
    reader.follow = false;
    let first = reader.next(LOG_READ_BYTES_MAX).await?;
    reader.follow = follow;
    reader.ended = first.end || (first.bytes.is_empty() && !follow);
    let headers = [(CONTENT_TYPE, TEXT.to_owned()), (OFFSET, first.offset.to_string())];
    let state = (Some(Bytes::from(first.bytes)), reader, app);
    let parts = unfold(state, async |(first, mut reader, app)| {
        if let Some(first) = first {
            return Some((Ok(first), (None, reader, app)));
        }
        if reader.ended {
            return None;
        }
        let mut stopping = app.stopping.clone();
        let next = tokio::select! {
            next = reader.next(LOG_READ_BYTES_MAX) => next,
            _ = stopping.wait_for(|stopping| *stopping) => {
                Err(Problem::overloaded("the manager is about to stop"))
            }
        };
        let part = match next {
            Ok(slice) => Ok(Bytes::from(slice.bytes)),
            // The client sees that the reply is incomplete.
            Err(problem) => {
                reader.ended = true;
                Err(io::Error::other(problem.detail().to_owned()))
            }
        };
        Some((part, (None, reader, app)))
    });
    let body = Charged::body(Body::from_stream(parts), charge);
    Ok((headers, [(ACCEPT_RANGES, "bytes")], body).into_response())
}

/// Answers with a part of the output: at most [`RANGE_BYTES_MAX`], also if more was asked for.
async fn one_range(mut reader: Reader, first: u64, last: Option<u64>) -> Result<Response, Problem> {
    reader.from = LogPosition::Offset(first);
    let wanted = last.map_or(RANGE_BYTES_MAX as u64, |last| last - first + 1);
    let wanted = usize::try_from(wanted).unwrap_or(RANGE_BYTES_MAX).min(RANGE_BYTES_MAX);
    let (mut bytes, mut start, mut end) = (Vec::new(), None, false);
    while bytes.len() < wanted && !reader.ended {
        let rest = u32::try_from(wanted - bytes.len()).unwrap_or(u32::MAX);
        let slice = reader.next(rest.min(LOG_READ_BYTES_MAX)).await?;
        if slice.bytes.is_empty() {
            end |= slice.end;
            break;
        }
        let expected = start.get_or_insert(slice.offset);
        if *expected + bytes.len() as u64 != slice.offset {
            break; // Older output was removed meanwhile.
        }
        bytes.extend_from_slice(&slice.bytes);
        end |= slice.end;
    }
    let Some(start) = start.filter(|_| !bytes.is_empty()) else {
        let problem = Problem::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            "There is no such output",
            format!("there is no output from byte {first} on, at present"),
        );
        return Ok(([(CONTENT_RANGE, "bytes */*")], problem).into_response());
    };
    let after = start + bytes.len() as u64;
    let total = if end { after.to_string() } else { "*".into() };
    let headers = [
        (CONTENT_TYPE, TEXT.to_owned()),
        (CONTENT_RANGE, format!("bytes {start}-{}/{total}", after - 1)),
    ];
    Ok((StatusCode::PARTIAL_CONTENT, headers, bytes).into_response())
}

/// Output as events: `id` is the offset after the text.
struct Events {
    app: App,
    reader: Reader,
    /// The first bytes of a character whose other bytes have not come yet.
    rest: Vec<u8>,
    /// The offset after the last byte that has come.
    at: u64,
    done: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut buffer = Vec::new();
        if self.reader.ended {
            self.done = true;
            sse::write(&mut buffer, Some("end"), None, &serde_json::json!({}));
            return Some(buffer.into());
        }
        let mut stopping = self.app.stopping.clone();
        let slice = tokio::select! {
            slice = self.reader.next(LOG_READ_BYTES_MAX) => slice,
            _ = stopping.wait_for(|stopping| *stopping) => return None,
        };
        match slice {
            Ok(slice) if slice.bytes.is_empty() && !self.reader.ended => Some(sse::COMMENT),
            Ok(slice) => {
                self.add(&mut buffer, slice);
                Some(if buffer.is_empty() { sse::COMMENT } else { buffer.into() })
            }
            Err(problem) => {
                self.done = true;
                Some(sse::problem(&problem))
            }
        }
    }

    fn add(&mut self, buffer: &mut Vec<u8>, slice: LogSlice) {
        let mut bytes = std::mem::take(&mut self.rest);
        if slice.offset != self.at && !bytes.is_empty() {
            // Older output was removed meanwhile: the other bytes of the character will not come.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let offset = self.at - bytes.len() as u64;
            sse::write(buffer, None, Some(self.at), &LogEvent { offset, text });
            bytes.clear();
        }
        let offset = slice.offset - bytes.len() as u64;
        bytes.extend_from_slice(&slice.bytes);
        self.at = slice.offset + slice.bytes.len() as u64;
        if !self.reader.ended {
            self.rest = bytes.split_off(bytes.len() - incomplete(&bytes));
        }
        if !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let id = offset + bytes.len() as u64;
            sse::write(buffer, None, Some(id), &LogEvent { offset, text });
        }
    }
}

/// Returns how many bytes at the end are the beginning of a character.
fn incomplete(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    match std::str::from_utf8(tail) {
        Err(error) if error.error_len().is_none() => tail.len() - error.valid_up_to(),
        // The tail may begin within a character.
        Err(_) => (1..tail.len())
            .find_map(|at| match std::str::from_utf8(&tail[at..]) {
                Ok(_) => Some(0),
                Err(error) if error.error_len().is_none() => {
                    Some(tail.len() - at - error.valid_up_to())
                }
                Err(_) => None,
            })
            .unwrap_or(0),
        Ok(_) => 0,
    }
}

async fn as_events(app: App, reader: Reader) -> Result<Response, Problem> {
    let charge = reader.session.budget.charge(STREAM_BYTES)?;
    let follow = reader.follow;
    let mut events = Events { app, reader, rest: Vec::new(), at: 0, done: false };
    events.reader.follow = false;
    let slice = events.reader.next(LOG_READ_BYTES_MAX).await?;
    events.reader.follow = follow;
    events.reader.ended = slice.end || (slice.bytes.is_empty() && !follow);
    let mut first = b"retry: 1000\n\n".to_vec();
    events.add(&mut first, slice);
    let texts = unfold((Some(Bytes::from(first)), events), async |(first, mut events)| {
        let text = match first {
            Some(first) => first,
            None => events.next().await?,
        };
        Some((Ok::<_, std::convert::Infallible>(text), (None, events)))
    });
    let body = Charged::body(Body::from_stream(texts), charge);
    Ok((sse::HEADERS, body).into_response())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_not_cut() {
        for (bytes, expected) in [
            (&b"abc"[..], 0),
            ("aä".as_bytes(), 0),
            (&"aä".as_bytes()[..2], 1),
            (&"€".as_bytes()[..2], 2),
            (&"😀".as_bytes()[..3], 3),
            ("😀".as_bytes(), 0),
            (&"😀ä".as_bytes()[..5], 1),
            (&[0xff, 0xff, 0xff], 0),
            (&[], 0),
        ] {
            assert_eq!(incomplete(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_range_begins_at_a_byte() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            range(&headers)
        };
        assert_eq!(parse("bytes=5-9"), Some((5, Some(9))));
        assert_eq!(parse("bytes=5-"), Some((5, None)));
        for other in ["bytes=-5", "bytes=9-5", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
