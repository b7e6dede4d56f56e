//! The clock that hands the core its time.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};
use podmesh_protocol::time::{Millis, Now};

/// Milliseconds by the machine's monotonic clock, which all its processes share.
pub(crate) fn machine_ms() -> Millis {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    // It is there on every Linux.
    u64::try_from(time.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the agent started, and the wall clock's for display.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// This moment.
    pub(crate) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ms: self.mono_ms(),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// This moment by the monotonic clock.
    pub(crate) fn mono_ms(self) -> Millis {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A moment that is not over by the machine's monotonic clock.
    pub(crate) fn on_machine(self, at: Millis) -> Millis {
        machine_ms().saturating_add(at.saturating_sub(self.mono_ms()))
    }

    /// How long it is until a moment, or a part of that when it is far off.
    pub(crate) fn until(self, at: Millis) -> Duration {
        const FAR: Duration = Duration::from_secs(3600);
        // Rounded up, so that a timer that fires is due.
        let until = Duration::from_millis(at.saturating_add(1));
        until.saturating_sub(self.origin.elapsed()).min(FAR)
    }
}
