//! The clock of the process.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podmesh_protocol::time::{Millis, Now};

/// A clock that counts from the start of the manager. All threads share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    age_at_start_ms: u64,
}

impl Clock {
    pub(crate) fn start(age_at_start_ms: u64) -> Self {
        Self { start: Instant::now(), age_at_start_ms }
    }

    /// Returns the time of the age clock; see
    /// [`Input::RetentionDue`](podmesh_manager_core::input::Input::RetentionDue).
    pub(crate) fn age_ms(self) -> u64 {
        self.age_at_start_ms.saturating_add(self.mono_ms())
    }

    pub(crate) fn mono_ms(self) -> Millis {
        millis(self.start.elapsed())
    }

    pub(crate) fn now(self) -> Now {
        Now { mono_ms: self.mono_ms(), wall_ms: wall_ms() }
    }

    /// Returns the instant at which [`Clock::mono_ms`] is `ms`.
    pub(crate) fn instant(self, ms: Millis) -> Instant {
        // Limited to a century, which cannot overflow the addition.
        self.start + Duration::from_millis(ms.min(100 * 366 * 24 * 3600 * 1000))
    }
}

/// Returns the time of the wall clock. A time before 1970 counts as 1970.
pub(crate) fn wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
