//! Events: as a page, and as a stream that misses none and repeats none.
//!
//! The newest events are read and written as text once for all streams (the [`Feed`]). A stream that
//! is further behind reads pages by itself, until it has caught up. It takes a small piece at a time,
//! and the other pieces of a page are kept for a while for all streams (the [`Shelf`]). So a stream
//! whose client does not read holds little.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use parking_lot::Mutex;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::Revision;
use podmesh_views::events::EventOutput;
use podmesh_views::filter::EventFilter;
use podmesh_views::http::EventsOutput;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::budget::{Charged, STREAM_BYTES};
use crate::door::Door;
use crate::extract::{Query, Session, ok};
use crate::problem::Problem;
use crate::sse;

/// What is committed within this time goes out together.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes of text that are kept for all streams: of the newest events, and of older ones.
const RING_BYTES_MAX: usize = 4 << 20;
/// Pages that streams read at a time.
const PAGES_MAX: usize = 2;
/// Events of one piece of text.
const BATCH_EVENTS: usize = 64;

/// Since when.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// The revision of the last event that the client has; 0 for none. Default: for a page 0, for a
    /// stream the last event that there is.
    since: Option<u64>,
    /// Only events of this kind, such as `job_ended`.
    kind: Option<String>,
    /// Only events of this job and its tasks.
    job: Option<u64>,
    /// Only events that name this node.
    node: Option<String>,
    /// Only events of this service and its replicas.
    service: Option<String>,
    /// Only what this user did.
    user: Option<String>,
}

impl EventsQuery {
    fn filter(self) -> EventFilter {
        let Self { since: _, kind, job, node, service, user } = self;
        EventFilter { kind, job, node, service, user }
    }
}

/// The events `first` to `last`, as text.
#[derive(Clone)]
struct Batch {
    first: u64,
    last: u64,
    text: Bytes,
}

/// The newest events, without a gap.
#[derive(Default)]
struct Ring {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// The revision of its last event. If it is empty, that of the last event before.
    last: u64,
}

/// What a stream can take from the ring.
enum Taken {
    Text(Batch),
    /// It has all that the ring has.
    UpToDate,
    /// It needs events that the ring no longer has.
    Behind,
}

impl Ring {
    fn push(&mut self, batch: Batch) {
        self.last = batch.last;
        self.bytes += batch.text.len();
        self.batches.push_back(batch);
        while self.bytes > RING_BYTES_MAX
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.text.len();
        }
    }

    fn reset(&mut self, last: u64) {
        *self = Self { last, ..Self::default() };
    }

    fn take(&self, since: u64) -> Taken {
        if since >= self.last {
            return Taken::UpToDate;
        }
        let at = self.batches.partition_point(|batch| batch.last <= since);
        match self.batches.get(at) {
            Some(batch) if batch.first == since + 1 => Taken::Text(batch.clone()),
            _ => Taken::Behind,
        }
    }
}

/// Pieces of the pages that streams have read lately.
#[derive(Default)]
struct Shelf {
    by_first: BTreeMap<u64, Batch>,
    /// The order in which they came.
    order: VecDeque<u64>,
    bytes: usize,
}

impl Shelf {
    fn add(&mut self, batch: Batch) {
        self.bytes += batch.text.len();
        self.order.push_back(batch.first);
        if let Some(before) = self.by_first.insert(batch.first, batch) {
            // The same piece, or the beginning of it: its place in the order is the older one.
            self.bytes -= before.text.len();
            self.order.pop_back();
        }
        while self.bytes > RING_BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.by_first.remove(&oldest).map_or(0, |batch| batch.text.len());
        }
    }

    fn take(&self, since: u64) -> Option<Batch> {
        self.by_first.get(&(since + 1)).cloned()
    }
}

/// The events for all streams.
pub(crate) struct Feed {
    ring: Mutex<Ring>,
    shelf: Mutex<Shelf>,
    /// Whoever reads a page: many pages at a time would take much memory.
    reading: Semaphore,
    /// The last revision in the ring.
    newest: watch::Sender<u64>,
    streams: AtomicUsize,
}

impl Feed {
    pub(crate) fn new() -> Self {
        let (ring, newest) = (Mutex::default(), watch::Sender::new(0));
        Self {
            ring,
            shelf: Mutex::default(),
            reading: Semaphore::new(PAGES_MAX),
            newest,
            streams: AtomicUsize::new(0),
        }
    }

    /// Follows the door's events, as long as there are streams.
    pub(crate) async fn run(&self, door: Arc<dyn Door>) {
        let mut revisions = door.revisions();
        loop {
            let newest = revisions.borrow_and_update().0;
            if self.streams.load(Ordering::Relaxed) == 0 {
                self.ring.lock().reset(newest);
            } else if let Err(problem) = self.read_to(&*door, newest).await {
                tracing::debug!(detail = problem.detail(), "the events cannot be read");
                self.ring.lock().reset(newest);
            }
            let last = self.ring.lock().last;
            self.newest.send_replace(last);
            if revisions.changed().await.is_err() {
                return;
            }
            sleep(GATHER).await;
        }
    }

    async fn read_to(&self, door: &dyn Door, newest: u64) -> Result<(), Problem> {
        loop {
            let since = self.ring.lock().last;
            if since >= newest {
                return Ok(());
            }
            let (chunks, _) = door.events(Revision(since)).await?;
            if chunks.is_empty() {
                return Ok(());
            }
            let mut ring = self.ring.lock();
            chunks.iter().for_each(|chunk| text_of(chunk, |batch| ring.push(batch)));
            let last = ring.last;
            drop(ring);
            self.newest.send_replace(last);
        }
    }
}

/// Writes the events of a chunk as text, in pieces.
fn text_of(chunk: &EventChunk, mut add: impl FnMut(Batch)) {
    let mut first = chunk.first.0;
    let mut views = EventOutput::of_chunk(chunk);
    loop {
        let (mut text, mut last) = (Vec::new(), first);
        for (revision, view) in (first..).zip(views.by_ref().take(BATCH_EVENTS)) {
            sse::write(&mut text, None, Some(revision), &view);
            last = revision;
        }
        if text.is_empty() {
            return;
        }
        add(Batch { first, last, text: text.into() });
        first = last + 1;
    }
}

/// Returns the text of the wanted events. The ID of the last one stays, so that a client that
/// reconnects does not look through the others again.
fn wanted(batch: Batch, filter: &EventFilter) -> Bytes {
    if filter.takes_all() {
        return batch.text;
    }
    // `sse::write` writes the data in one line, and an empty line after it.
    let text = String::from_utf8_lossy(&batch.text);
    let mut kept = String::new();
    for event in text.split_inclusive("\n\n") {
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        if data.is_some_and(|data| filter.takes_text(data)) {
            kept += event;
        }
    }
    kept += &format!("id: {}\n\n", batch.last);
    kept.into()
}

/// One stream.
struct Stream {
    app: App,
    session: Session,
    newest: watch::Receiver<u64>,
    since: u64,
    filter: EventFilter,
    ended: bool,
}

impl Stream {
    /// Returns the next text; `None` when the stream ends.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let text = match self.text().await {
            Ok(text) => text?,
            Err(problem) => {
                self.ended = true;
                return Some(sse::problem(&problem));
            }
        };
        // The token may have been revoked meanwhile, even by what would be sent now.
        if let Err(error) = self.session.asker.check() {
            self.ended = true;
            return Some(sse::problem(&error.into()));
        }
        Some(text)
    }

    /// Returns the next piece, which the ring no longer has.
    async fn older(&self) -> Result<Option<Batch>, Problem> {
        let known = self.app.feed.shelf.lock().take(self.since);
        if known.is_some() {
            return Ok(known);
        }
        // The semaphore is never closed.
        let _turn = self.app.feed.reading.acquire().await;
        let known = self.app.feed.shelf.lock().take(self.since);
        if known.is_some() {
            return Ok(known);
        }
        let (chunks, _) = read(&self.session, Revision(self.since)).await?;
        let (mut first, mut shelf) = (None, self.app.feed.shelf.lock());
        for chunk in &chunks {
            text_of(chunk, |batch| {
                first.get_or_insert_with(|| batch.clone());
                shelf.add(batch);
            });
        }
        Ok(first)
    }

    async fn text(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let taken = self.app.feed.ring.lock().take(self.since);
            let batch = match taken {
                Taken::Text(batch) => Some(batch),
                Taken::Behind => self.older().await?,
                Taken::UpToDate => None,
            };
            if let Some(batch) = batch {
                self.since = batch.last;
                return Ok(Some(wanted(batch, &self.filter)));
            }
            let since = self.since;
            let mut stopping = self.app.stopping.clone();
            tokio::select! {
                newer = timeout(sse::HEARTBEAT, self.newest.wait_for(|last| *last > since)) => {
                    match newer {
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) => return Ok(None),
                        Err(_) => return Ok(Some(sse::COMMENT)),
                    }
                }
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(None),
            }
        }
    }
}

/// Counts the streams.
struct Counted(Arc<Feed>);

impl Counted {
    fn new(feed: &Arc<Feed>) -> Self {
        feed.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(feed))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn read(session: &Session, since: Revision) -> Result<(Vec<EventChunk>, Revision), Problem> {
    match session.ask(RequestBody::Events { since }).await? {
        ReplyBody::Events { chunks, last } => Ok((chunks, last)),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /events
pub(crate) async fn events(
    State(app): State<App>,
    session: Session,
    headers: HeaderMap,
    Query(query): Query<EventsQuery>,
) -> Result<Response, Problem> {
    let asked = query.since;
    let filter = query.filter();
    if !sse::wanted(&headers) {
        let since = Revision(asked.unwrap_or(0));
        let (chunks, last) = read(&session, since).await?;
        return Ok(ok(&EventsOutput::new(since, &chunks, last, &filter)));
    }
    let charge = session.budget.charge(STREAM_BYTES)?;
    let counted = Counted::new(&app.feed);
    let since = match sse::last_event_id(&headers)?.or(asked) {
        Some(since) => {
            // Also checks the role, and whether the events are kept.
            read(&session, Revision(since)).await?;
            since
        }
        None => {
            let ReplyBody::Info(info) = session.ask(RequestBody::Info).await? else {
                return Err(Problem::unexpected());
            };
            read(&session, info.revision).await?;
            info.revision.0
        }
    };
    // The ID makes a client that reconnects before the first event resume here.
    let hello = Bytes::from(format!("retry: 1000\nid: {since}\n\n"));
    let newest = app.feed.newest.subscribe();
    let stream = Stream { app, session, newest, since, filter, ended: false };
    let texts = unfold((Some(hello), stream, counted), async |(hello, mut stream, counted)| {
        let text = match hello {
            Some(hello) => hello,
            None => stream.next().await?,
        };
        Some((Ok::<_, Infallible>(text), (None, stream, counted)))
    });
    let body = Charged::body(Body::from_stream(texts), charge);
    Ok((sse::HEADERS, body).into_response())
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::event::EventFact;
    use podmesh_protocol::ids::JobId;

    use super::*;

    fn chunk(first: u64, events: usize) -> EventChunk {
        let facts = vec![EventFact::JobCancelRequested { job: JobId(1) }; events];
        EventChunk { first: Revision(first), wall_ms: 0, facts }
    }

    fn taken(ring: &Ring, since: u64) -> Option<(u64, u64)> {
        match ring.take(since) {
            Taken::Text(batch) => Some((batch.first, batch.last)),
            Taken::UpToDate => None,
            Taken::Behind => Some((0, 0)),
        }
    }

    #[test]
    fn a_stream_takes_every_event_once() {
        let mut ring = Ring::default();
        ring.reset(4);
        text_of(&chunk(5, BATCH_EVENTS + 2), |batch| ring.push(batch));
        let split = 4 + BATCH_EVENTS as u64;
        assert_eq!(taken(&ring, 4), Some((5, split)));
        assert_eq!(taken(&ring, split), Some((split + 1, split + 2)));
        assert_eq!(taken(&ring, split + 2), None);
        assert_eq!(taken(&ring, 3), Some((0, 0)), "an older event is not in the ring");
        assert_eq!(taken(&ring, 6), Some((0, 0)), "it would repeat events");
    }

    #[test]
    fn a_filter_keeps_the_wanted_events_and_the_last_id() {
        let mut chunk = chunk(5, 3);
        chunk.facts[1] = EventFact::JobCancelRequested { job: JobId(2) };
        let text = |filter: EventFilter| {
            let mut texts = vec![];
            text_of(&chunk, |batch| texts.extend_from_slice(&wanted(batch, &filter)));
            String::from_utf8_lossy(&texts).into_owned()
        };
        let ids = |text: &str| -> Vec<String> {
            text.lines().filter_map(|line| Some(line.strip_prefix("id: ")?.to_owned())).collect()
        };
        let found = text(EventFilter { job: Some(2), ..EventFilter::default() });
        assert_eq!(ids(&found), ["6", "7"]);
        assert_eq!(found.matches("data: ").count(), 1, "{found}");
        assert_eq!(ids(&text(EventFilter::default())), ["5", "6", "7"]);
    }

    #[test]
    fn the_shelf_has_the_pieces_that_came_last() {
        let mut shelf = Shelf::default();
        for n in 0..20_000 {
            text_of(&chunk(1 + n * 10, 10), |batch| shelf.add(batch));
            text_of(&chunk(1 + n * 10, 9), |batch| shelf.add(batch));
        }
        let bytes: usize = shelf.by_first.values().map(|batch| batch.text.len()).sum();
        assert_eq!((shelf.bytes, shelf.order.len()), (bytes, shelf.by_first.len()));
        assert!(bytes <= RING_BYTES_MAX && bytes > RING_BYTES_MAX / 2);
        assert!(shelf.take(0).is_none() && shelf.take(5).is_none());
        assert_eq!(shelf.take(199_990).map(|batch| batch.last), Some(199_999));
    }

    #[test]
    fn the_ring_is_limited() {
        let mut ring = Ring::default();
        for n in 0..20_000 {
            text_of(&chunk(1 + n * 10, 10), |batch| ring.push(batch));
        }
        assert!(ring.bytes <= RING_BYTES_MAX && ring.bytes > RING_BYTES_MAX / 2);
        assert_eq!(ring.bytes, ring.batches.iter().map(|batch| batch.text.len()).sum::<usize>());
        assert_eq!(ring.last, 200_000);
        assert_eq!(taken(&ring, 0), Some((0, 0)));
    }
}
