//! PUB: hints of what was committed, and the manager's own beacon. Nobody ever waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use podmesh_protocol::event::{PUBLISHED_CHUNK_BYTES_MAX, Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{InstanceId, Revision};
use podmesh_wire::publish::Publisher;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::store::CommittedChunk;

/// The least time between two times that hints are published: what is committed meanwhile goes out
/// together, so that many subscribers cost little beside a busy manager.
const GATHER: Duration = Duration::from_millis(20);
/// Hints that wait at the most; then they become one.
const HINTS_MAX: usize = 1024;

/// Heartbeat intervals between two beacons. Their answers tell an agent each second that the manager
/// lives; with as many beacons as answers, idle agents would cost the manager twice as much.
const INTERVALS: u32 = 5;

/// What is to be published.
#[derive(Default)]
pub(crate) struct Hints {
    queue: Mutex<VecDeque<Published>>,
    added: Notify,
}

impl Hints {
    /// Adds the events of a commit. Hints without their events make subscribers ask, and the answer
    /// has all that is new, so that one such hint replaces all others.
    pub(crate) fn add(&self, chunks: Vec<CommittedChunk>) {
        if chunks.is_empty() {
            return;
        }
        // No code that can panic runs while it is held.
        let mut queue = self.queue.lock();
        for CommittedChunk { chunk, bytes } in chunks {
            let since = Revision(chunk.first.0.saturating_sub(1));
            let last = chunk.last();
            let fits = bytes <= PUBLISHED_CHUNK_BYTES_MAX && queue.len() < HINTS_MAX;
            let asked_for =
                |hint: &Published| matches!(hint, Published::Events { chunk: None, .. });
            if fits && !queue.back().is_some_and(asked_for) {
                queue.push_back(Published::Events { since, last, chunk: Some(chunk) });
                continue;
            }
            let since = match queue.front() {
                Some(Published::Events { since, .. }) => *since,
                _ => since,
            };
            queue.clear();
            queue.push_back(Published::Events { since, last, chunk: None });
        }
        drop(queue);
        self.added.notify_one();
    }

    fn take(&self) -> VecDeque<Published> {
        std::mem::take(&mut *self.queue.lock())
    }
}

/// What the beacon says.
pub(crate) struct Beacon {
    pub(crate) instance: InstanceId,
    pub(crate) last_revision: Arc<AtomicU64>,
    /// The interval of heartbeats.
    pub(crate) heartbeat: Duration,
}

impl Beacon {
    fn say(&self, stopping: bool) -> Published {
        let revision = Revision(self.last_revision.load(Ordering::Acquire));
        Published::Manager { instance: self.instance, revision, stopping }
    }
}

/// Publishes until `stopped` is done; then what is left, and that the manager stops.
pub(crate) async fn run(
    mut publisher: Publisher,
    hints: Arc<Hints>,
    beacon: Beacon,
    stopped: impl Future<Output = ()>,
) -> Publisher {
    let mut stopped = std::pin::pin!(stopped);
    let mut interval = tokio::time::interval(INTERVALS * beacon.heartbeat);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published = Instant::now();
    loop {
        let stopping = tokio::select! {
            () = &mut stopped => true,
            () = async {
                hints.added.notified().await;
                sleep_until(published + GATHER).await;
            } => {
                published = Instant::now();
                false
            }
            _ = interval.tick() => {
                publish(&mut publisher, TOPIC_MANAGER, &beacon.say(false)).await;
                false
            }
        };
        for hint in hints.take() {
            publish(&mut publisher, TOPIC_EVENTS, &hint).await;
        }
        if stopping {
            publish(&mut publisher, TOPIC_MANAGER, &beacon.say(true)).await;
            return publisher;
        }
    }
}

async fn publish(publisher: &mut Publisher, topic: &str, publication: &Published) {
    // Whoever misses it asks for it.
    if let Err(error) = publisher.publish(topic, publication).await {
        tracing::debug!(%error, topic, "a publication was lost");
    }
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::event::{EventChunk, EventFact};
    use podmesh_protocol::ids::JobId;

    use super::*;

    fn chunk(first: u64, bytes: usize) -> CommittedChunk {
        let facts = vec![EventFact::JobCancelRequested { job: JobId(1) }; 2];
        CommittedChunk { chunk: EventChunk { first: Revision(first), wall_ms: 0, facts }, bytes }
    }

    /// What is queued: since, last, and whether the events go along.
    fn queued(hints: &Hints) -> Vec<(u64, u64, bool)> {
        let queued = hints.take();
        let about = |hint: &Published| match hint {
            Published::Events { since, last, chunk } => (since.0, last.0, chunk.is_some()),
            Published::Manager { .. } => unreachable!("no beacon was added"),
        };
        queued.iter().map(about).collect()
    }

    #[test]
    fn events_that_do_not_go_along_make_one_hint_of_many() {
        let hints = Hints::default();
        hints.add(vec![chunk(1, 10), chunk(3, PUBLISHED_CHUNK_BYTES_MAX)]);
        assert_eq!(queued(&hints), [(0, 2, true), (2, 4, true)]);

        hints.add(vec![chunk(5, 10), chunk(7, PUBLISHED_CHUNK_BYTES_MAX + 1)]);
        hints.add(vec![chunk(9, 10), chunk(11, 10)]);
        assert_eq!(queued(&hints), [(4, 12, false)]);

        for n in 0..=HINTS_MAX as u64 {
            hints.add(vec![chunk(1 + 2 * n, 10)]);
        }
        assert_eq!(queued(&hints), [(0, 2 * (HINTS_MAX as u64 + 1), false)]);
    }
}
