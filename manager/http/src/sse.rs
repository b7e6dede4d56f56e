//! Server-sent events: <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::time::Duration;

use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use bytes::Bytes;
use serde::Serialize;

use crate::problem::Problem;

/// The media type of a stream of events.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";
/// How often a comment is sent while nothing happens, so that both ends notice a dead connection.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);
/// A comment.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The headers of a stream. A proxy that buffers would delay the events.
pub(crate) const HEADERS: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, EVENT_STREAM), (HeaderName::from_static("x-accel-buffering"), "no")];

/// Returns whether the client wants a stream of events.
pub(crate) fn wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    kinds.any(|kind| {
        kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(EVENT_STREAM)
    })
}

/// Returns the ID of the last event that the client has.
///
/// # Errors
/// If it is not a number.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(id) = headers.get("last-event-id") else { return Ok(None) };
    let id = id.to_str().ok().and_then(|id| id.parse().ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(Problem::bad_request("`Last-Event-ID` must be the `id` of an earlier event")),
    }
}

/// Adds an event to a buffer. JSON in one line, so that no content can end the event.
pub(crate) fn write(
    buffer: &mut Vec<u8>,
    event: Option<&str>,
    id: Option<u64>,
    data: &impl Serialize,
) {
    if let Some(event) = event {
        buffer.extend_from_slice(format!("event: {event}\n").as_bytes());
    }
    if let Some(id) = id {
        buffer.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    buffer.extend_from_slice(b"data: ");
    let start = buffer.len();
    if serde_json::to_writer(&mut *buffer, data).is_err() {
        // Views have no maps with keys that JSON does not permit.
        buffer.truncate(start);
    }
    buffer.extend_from_slice(b"\n\n");
}

/// Returns the event that ends a stream before its time.
pub(crate) fn problem(problem: &Problem) -> Bytes {
    let mut buffer = Vec::new();
    write(&mut buffer, Some("problem"), None, &problem.view());
    buffer.into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn content_cannot_end_an_event() {
        let mut buffer = Vec::new();
        write(&mut buffer, None, Some(7), &"a\n\ndata: x\r\n");
        assert_eq!(buffer, b"id: 7\ndata: \"a\\n\\ndata: x\\r\\n\"\n\n");
    }

    #[test]
    fn a_stream_is_asked_for_by_its_type() {
        let accept = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, value.parse().unwrap());
            wanted(&headers)
        };
        assert!(accept("text/event-stream") && accept("a/b, Text/Event-Stream;q=0.9"));
        assert!(!accept("*/*") && !accept("application/json"));
    }
}
