//! How often to ask again.

use std::time::{Duration, Instant};

use tokio::time::sleep;

/// The first pause between two questions that brought nothing new.
const FIRST: Duration = Duration::from_millis(1);
/// The longest one.
const LONGEST: Duration = Duration::from_millis(100);

/// Spaces questions out: close together at first, so that what is short is seen at once, then
/// further and further apart, because a job of many tasks changes all the time.
pub(crate) struct Pace {
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: FIRST }
    }
}

impl Pace {
    /// Waits until the pause since `asked` is over; the next one is twice as long.
    pub(crate) async fn wait(&mut self, asked: Instant) {
        sleep(self.pause.saturating_sub(asked.elapsed())).await;
        self.pause = (self.pause * 2).min(LONGEST);
    }

    /// Something new came: begin anew.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
