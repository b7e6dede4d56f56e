//! Shares the manager's time between many streams of output that are read at the same time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;

/// How many reads are in progress at a time.
const READS_MAX: u32 = 16;
/// How long one read waits for output, if there are no more streams than that. A further stream
/// may have to wait for that long for its first turn.
const WAIT: Duration = Duration::from_secs(5);
/// With more streams, a read does not wait, because it would keep others from their turn. Instead
/// each stream pauses for this time for each stream that there is: about 100 reads a second.
const PAUSE: Duration = Duration::from_millis(10);

/// The turns of the streams whose output is shown.
pub(crate) struct Turns {
    permits: Semaphore,
    streams: AtomicU32,
    /// Whether the message about removed output was shown. It is shown once, because there can be
    /// thousands of tasks without output.
    told_removed: AtomicBool,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(READS_MAX as usize),
            streams: AtomicU32::new(0),
            told_removed: AtomicBool::new(false),
        }
    }
}

/// A stream that is being read. It counts until it is dropped.
pub(crate) struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    /// Counts a stream.
    pub(crate) fn count(&self) -> Counted<'_> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Counted(&self.streams)
    }

    /// Waits for the next turn; it lasts until the permit is dropped. `None` never occurs: the
    /// semaphore is never closed.
    pub(crate) async fn next(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.acquire().await.ok()
    }

    /// Returns how many milliseconds a read may wait for output.
    pub(crate) fn wait_ms(&self) -> u32 {
        match self.pause_of() {
            Some(_) => 0,
            None => WAIT.as_millis() as u32,
        }
    }

    /// Waits before a stream without new output is read again.
    pub(crate) async fn pause(&self, asked: Instant) {
        if let Some(pause) = self.pause_of() {
            sleep(pause.saturating_sub(asked.elapsed())).await;
        }
    }

    /// Returns the pause between two reads of a stream; `None` if each read may wait.
    fn pause_of(&self) -> Option<Duration> {
        let streams = self.streams.load(Ordering::Relaxed);
        (streams > READS_MAX).then(|| PAUSE * streams)
    }

    /// Returns whether the message about removed output must be shown.
    pub(crate) fn first_removed(&self) -> bool {
        !self.told_removed.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn few_streams_wait_for_output_and_many_take_turns() {
        let turns = Turns::default();
        let mut counted: Vec<_> = (0..READS_MAX).map(|_| turns.count()).collect();
        assert_eq!((turns.wait_ms(), turns.pause_of()), (5_000, None));
        counted.extend((READS_MAX..2_000).map(|_| turns.count()));
        assert_eq!((turns.wait_ms(), turns.pause_of()), (0, Some(Duration::from_secs(20))));
        counted.truncate(2);
        assert_eq!(turns.wait_ms(), 5_000);
    }

    #[tokio::test]
    async fn only_a_few_reads_are_in_progress_at_a_time() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..READS_MAX {
            held.push(turns.next().await.unwrap());
        }
        assert_eq!(turns.permits.available_permits(), 0);
        held.pop();
        drop(turns.next().await.unwrap());
    }
}
