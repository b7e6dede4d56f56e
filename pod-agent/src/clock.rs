//! The clock that provides the core's time.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};
use podmesh_protocol::time::{Millis, Now};

/// Returns the milliseconds of the machine's monotonic clock, which all its processes share.
pub(crate) fn machine_ms() -> Millis {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    // Linux always has this clock.
    u64::try_from(time.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Returns the milliseconds since the machine started.
pub(crate) fn boot_ms() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX)
}

/// A clock with the milliseconds since the agent started, and the wall clock for display.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts the clock at 0.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Returns the current time.
    pub(crate) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ms: self.mono_ms(),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the current time of the monotonic clock.
    pub(crate) fn mono_ms(self) -> Millis {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Converts a time that has not passed yet to the machine's monotonic clock.
    pub(crate) fn on_machine(self, at: Millis) -> Millis {
        machine_ms().saturating_add(at.saturating_sub(self.mono_ms()))
    }

    /// Returns how long it is until a time, at most an hour.
    pub(crate) fn until(self, at: Millis) -> Duration {
        const FAR: Duration = Duration::from_secs(3600);
        // Rounded up, so that a timer that fires is due.
        let until = Duration::from_millis(at.saturating_add(1));
        until.saturating_sub(self.origin.elapsed()).min(FAR)
    }
}
