//! The clock for the age of logs: the wall clock, protected against jumps.
//!
//! A wall clock can jump by years, in either direction, and jump back. Files are removed by their
//! age. So this clock advances only as fast as the monotonic clock while the agent runs, and by at
//! most [`AWAY_MAX`] while it does not run. It is never later than the wall clock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The file in the agent's data directory: milliseconds since 1970, as text.
const FILE: &str = "age-clock";
/// Maximum time counted between two runs of the agent. A machine that was switched off for longer
/// keeps its logs longer.
const AWAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// A clock that counts from the start of the agent.
#[derive(Clone, Debug)]
pub(crate) struct AgeClock {
    path: PathBuf,
    start: SystemTime,
    since: Instant,
}

impl AgeClock {
    /// Continues from the time that the agent's previous run saved.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let last = last.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
        Self { path, start: start(last, SystemTime::now()), since: Instant::now() }
    }

    /// Returns the current time.
    pub(crate) fn now(&self) -> SystemTime {
        (self.start + self.since.elapsed()).min(SystemTime::now())
    }

    /// Saves the time for the agent's next run. Blocks.
    ///
    /// # Errors
    /// If it cannot be written. The next run may then use the wall clock.
    pub(crate) fn save(&self) -> io::Result<()> {
        let since_1970 = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let new = self.path.with_extension("new");
        fs::write(&new, since_1970.as_millis().to_string())?;
        fs::rename(&new, &self.path)
    }
}

fn start(last: Option<SystemTime>, wall: SystemTime) -> SystemTime {
    last.map_or(wall, |last| wall.min(last + AWAY_MAX))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_jump_of_the_wall_clock_does_not_make_logs_old() {
        let wall = UNIX_EPOCH + 20_000 * DAY;
        assert_eq!(start(None, wall), wall);
        assert_eq!(start(Some(wall), wall + DAY / 2), wall + DAY / 2);
        assert_eq!(start(Some(wall), wall + 31 * DAY), wall + DAY, "a jump, or a month away");
        assert_eq!(start(Some(wall), wall - 31 * DAY), wall - 31 * DAY);
        // While the agent runs, only the time that passes counts.
        let dir = tempfile::tempdir().unwrap();
        let early = SystemTime::now() - 31 * DAY;
        let clock = AgeClock { path: dir.path().join(FILE), start: early, since: Instant::now() };
        assert!(clock.now() < early + DAY);
        clock.save().unwrap();
        let next = AgeClock::open(dir.path());
        assert!((early..early + 2 * DAY).contains(&next.now()));
    }
}
