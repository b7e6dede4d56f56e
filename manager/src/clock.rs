//! The one clock of the process.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podmesh_protocol::time::{Millis, Now};

/// Counts from the start of the manager; all threads share one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn mono_ms(self) -> Millis {
        millis(self.start.elapsed())
    }

    pub(crate) fn now(self) -> Now {
        // A wall clock before 1970 shows as 1970.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: self.mono_ms(), wall_ms: millis(wall) }
    }

    /// The moment at which [`Clock::mono_ms`] is `ms`.
    pub(crate) fn instant(self, ms: Millis) -> Instant {
        // A century off is as good as never, and can be added.
        self.start + Duration::from_millis(ms.min(100 * 366 * 24 * 3600 * 1000))
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
