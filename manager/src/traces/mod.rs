//! Traces: jobs and attempts as spans, sent to a collector by OTLP (`--otlp`).
//!
//! `spans` makes spans of committed events; `otlp` sends them. A collector that is slow
//! or away delays nothing: the spans that wait are limited, and those beyond are dropped and counted.

mod otlp;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_sdk::trace::SpanData;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, Revision};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

pub(crate) use self::otlp::Sender;
pub use self::otlp::{Collector, CollectorError, ParseCollectorError};
use self::spans::Tracer;
use crate::threads::Reads;
use crate::turns::{ConnectionReads, Turns};

/// What is committed within this time is read together.
const GATHER: Duration = Duration::from_millis(200);
/// Spans that wait for the collector.
const WAITING_MAX: usize = 8192;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long the exporter waits for the collector when the manager stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The pause after the events could not be read.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts spans.
#[derive(Debug, Default)]
pub(crate) struct SpanCounts {
    /// The collector has them.
    pub(crate) exported: AtomicU64,
    /// They did not get to the collector.
    pub(crate) dropped: AtomicU64,
}

impl SpanCounts {
    fn note_dropped(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

/// Exports spans.
pub(crate) struct Exporter {
    pub(crate) sender: Sender,
    pub(crate) cluster: ClusterId,
    pub(crate) reads: Reads,
    pub(crate) turns: Arc<Turns>,
    pub(crate) line: ConnectionReads,
    pub(crate) revisions: watch::Receiver<Revision>,
    pub(crate) counts: Arc<SpanCounts>,
}

impl Exporter {
    /// Exports what is committed from now on, until `stopping` is true. Then the spans that wait are
    /// sent, if that is soon done.
    pub(crate) async fn run(self, mut stopping: watch::Receiver<bool>) {
        let (spans, waiting) = mpsc::channel(WAITING_MAX);
        let mut sending = std::pin::pin!(self.sender.run(waiting, BATCH_MAX));
        let reading = async {
            tokio::select! {
                () = self.read(spans) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        };
        tokio::select! {
            // Not before its other end is dropped.
            () = &mut sending => return,
            () = reading => {}
        }
        if timeout(STOP_LIMIT, sending).await.is_err() {
            tracing::warn!("the manager stops before the collector has all spans");
        }
    }

    /// Reads the events as they come.
    async fn read(&self, spans: mpsc::Sender<SpanData>) {
        let mut revisions = self.revisions.clone();
        let mut tracer = Tracer::new(self.cluster);
        let mut since = *revisions.borrow_and_update();
        while revisions.changed().await.is_ok() {
            sleep(GATHER).await;
            let newest = *revisions.borrow_and_update();
            while since < newest {
                since = match self.page(&mut tracer, since, &spans).await {
                    Ok(last) => last,
                    Err(error) if error.code == ErrorCode::Compacted => {
                        tracing::warn!(%error, "spans are missing");
                        newest
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the events for traces cannot be read");
                        sleep(PAUSE).await;
                        break;
                    }
                };
            }
        }
    }

    /// Makes spans of the next events, and returns the last revision.
    async fn page(
        &self,
        tracer: &mut Tracer,
        since: Revision,
        spans: &mpsc::Sender<SpanData>,
    ) -> Result<Revision, ErrorReply> {
        self.turns.take(&self.line).await;
        let reply = self.reads.run(move |history| history.events(since)).await?;
        let ReplyBody::Events { chunks, last } = reply else { return Ok(since) };
        let end = chunks.last().map_or(last, |chunk| chunk.last());
        for chunk in chunks {
            for (revision, fact) in chunk.iter() {
                if let Some(job) = tracer.unknown_job(fact) {
                    match self.reads.run(move |history| history.job(job)).await {
                        Ok((detail, _)) => tracer.open(&detail),
                        // It was removed meanwhile.
                        Err(error) if error.code == ErrorCode::NotFound => continue,
                        Err(error) => return Err(error),
                    }
                }
                let made = tracer.observe(chunk.wall_ms, revision, fact);
                for span in made.spans {
                    if spans.try_send(span).is_err() {
                        self.counts.note_dropped(1);
                    }
                }
                self.counts.note_dropped(made.dropped);
            }
        }
        Ok(end)
    }
}
