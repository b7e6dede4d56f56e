//! The interval of polling.

use std::time::{Duration, Instant};

use tokio::time::sleep;

/// The first pause after a request that brought nothing new.
const FIRST: Duration = Duration::from_millis(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_millis(100);

/// Spaces requests: short pauses at first, so that short tasks are seen at once, then longer and
/// longer ones, because a job of many tasks changes all the time.
pub(crate) struct Pace {
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: FIRST }
    }
}

impl Pace {
    /// Spaces requests by the longest pause from the start.
    pub(crate) fn longest() -> Self {
        Self { pause: LONGEST }
    }

    /// Waits until the pause since `asked` is over, and doubles the next one.
    pub(crate) async fn wait(&mut self, asked: Instant) {
        sleep(self.pause.saturating_sub(asked.elapsed())).await;
        self.pause = (self.pause * 2).min(LONGEST);
    }

    /// Starts again with short pauses, after something new.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
