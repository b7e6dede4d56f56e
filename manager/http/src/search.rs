//! Search in the output of an attempt.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use podmesh_protocol::client::{LogPosition, LogSlice, LogStream};
use podmesh_protocol::limits::LOG_READ_BYTES_MAX;
use podmesh_views::http::{FoundLine, SearchOutput};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::app::App;
use crate::extract::{Path, Query, Session, ok};
use crate::jobs::task_of;
use crate::logs::{Reader, StreamName, attempt_of, stdout};
use crate::problem::Problem;

/// How long one request looks for the text. Then the client asks again, or gives up.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a line that a reply shows.
const LINE_BYTES_MAX: usize = 8192;

/// What to look for, and where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SearchQuery {
    /// The text, byte for byte: at most 256 bytes, without a line break.
    text: String,
    /// The offset where the search begins: `next` of the last reply; default 0.
    #[serde(default)]
    from: u64,
    /// The stream; default `stdout`.
    #[serde(default = "stdout")]
    #[schemars(with = "StreamName")]
    stream: LogStream,
    /// The number of the attempt; default: the last one.
    attempt: Option<u32>,
}

/// GET /jobs/{job}/tasks/{index}/log/search
pub(crate) async fn search(
    State(app): State<App>,
    session: Session,
    path: Path,
    Query(query): Query<SearchQuery>,
) -> Result<Response, Problem> {
    let attempt = attempt_of(&session, task_of(&path)?, query.attempt).await?;
    let from = LogPosition::Offset(query.from);
    let mut reader =
        Reader { session, attempt, stream: query.stream, from, follow: false, ended: false };
    let mut stopping = app.stopping.clone();
    tokio::select! {
        found = look(&mut reader, query.from, &query.text) => Ok(ok(&found?)),
        _ = stopping.wait_for(|stopping| *stopping) => {
            Err(Problem::overloaded("the manager is about to stop"))
        }
    }
}

async fn look(reader: &mut Reader, mut from: u64, text: &str) -> Result<SearchOutput, Problem> {
    let finder = Finder::new(text);
    let begun = Instant::now();
    loop {
        reader.from = LogPosition::Offset(from);
        let slice = reader.ask(LOG_READ_BYTES_MAX, Some(text.to_owned())).await?;
        if let Some(at) = finder.find(&slice.bytes) {
            let (line, next) = line_at(&slice, at);
            return Ok(SearchOutput { found: Some(line), next, end: false });
        }
        let next = after(&slice, text.len()).max(from);
        let end = slice.end || next == from;
        if end || begun.elapsed() > SEARCH_LIMIT {
            return Ok(SearchOutput { found: None, next, end });
        }
        from = next;
    }
}

/// Returns where the search goes on after a slice without the text. An agent that does not know how
/// to search sends every byte: the text may begin at the end of the slice.
fn after(slice: &LogSlice, text: usize) -> u64 {
    slice.offset + slice.bytes.len().saturating_sub(text - 1) as u64
}

/// Returns the line around a place of a slice, and the offset after it.
fn line_at(slice: &LogSlice, at: usize) -> (FoundLine, u64) {
    let bytes = &slice.bytes;
    let start = memrchr(b'\n', &bytes[..at]).map_or(0, |before| before + 1);
    let end = memchr(b'\n', &bytes[at..]).map(|rest| at + rest);
    let shown = &bytes[start..end.unwrap_or(bytes.len()).min(start + LINE_BYTES_MAX)];
    let text = String::from_utf8_lossy(shown).into_owned();
    let next = slice.offset + end.map_or(bytes.len(), |end| end + 1) as u64;
    (FoundLine { offset: slice.offset + start as u64, text }, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(bytes: &[u8]) -> LogSlice {
        LogSlice { offset: 100, bytes: bytes.to_vec(), end: false, removed: false }
    }

    #[test]
    fn the_line_around_a_place() {
        let found = |at| {
            let (line, next) = line_at(&slice(b"one\ntwo\nthree"), at);
            (line.offset, line.text, next)
        };
        assert_eq!(found(1), (100, "one".into(), 104));
        assert_eq!(found(4), (104, "two".into(), 108));
        assert_eq!(found(10), (108, "three".into(), 113));
    }

    #[test]
    fn a_text_at_the_edge_of_a_slice_is_looked_at_again() {
        assert_eq!(after(&slice(b"xxxne"), 6), 100);
        assert_eq!(after(&slice(b"xxxxxxxxne"), 6), 105);
        assert_eq!(after(&slice(b""), 6), 100);
    }
}
