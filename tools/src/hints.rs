//! Hints that there are new events, so that a reader need not ask at a fixed rate.

use std::time::{Duration, Instant};

use podmesh_protocol::event::{EventChunk, Published, TOPIC_EVENTS};
use podmesh_protocol::ids::Revision;
use podmesh_wire::publish::Subscriber;
use tokio::time::{sleep, timeout};

use crate::connect::Connection;

/// How long to wait for a hint before asking the manager anyway.
const POLL: Duration = Duration::from_secs(1);

/// Published messages: they announce events, or contain small ones.
#[derive(Default)]
pub(crate) struct Hints {
    subscriber: Option<Subscriber>,
    /// The connection for which the subscriber was made. After a restart of the manager a new
    /// subscriber is made.
    generation: u64,
    failed: Option<Instant>,
}

impl Hints {
    /// Waits for a hint, at most a second. Returns events if the hint contains them and they follow
    /// `last` without a gap; otherwise `None`: then the manager must be asked.
    pub(crate) async fn next(
        &mut self,
        connection: &Connection,
        last: Revision,
    ) -> Option<EventChunk> {
        let generation = connection.generation().await;
        if self.generation != generation {
            self.subscriber = None;
        }
        if self.subscriber.is_none() && self.failed.is_none_or(|failed| failed.elapsed() > POLL) {
            self.subscriber = subscribe(connection).await;
            self.generation = generation;
            self.failed = self.subscriber.is_none().then(Instant::now);
            // Events published before must be requested.
            return None;
        }
        let Some(subscriber) = &mut self.subscriber else {
            sleep(POLL).await;
            return None;
        };
        let deadline = Instant::now() + POLL;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, subscriber.recv()).await {
                Err(_) => return None,
                Ok(Ok(Published::Events { last: published, chunk, .. })) => {
                    if published <= last {
                        // An old message that arrived late.
                        continue;
                    }
                    return chunk.filter(|chunk| chunk.first.0 <= last.0 + 1);
                }
                Ok(Ok(Published::Manager { .. })) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the subscription ended");
                    self.subscriber = None;
                    self.failed = Some(Instant::now());
                    return None;
                }
            }
        }
    }
}

async fn subscribe(connection: &Connection) -> Option<Subscriber> {
    connection.info().await.ok()?;
    Subscriber::connect(&connection.route()?, &[TOPIC_EVENTS]).await.ok()
}
