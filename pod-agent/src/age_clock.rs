//! The time by which the age of logs is counted: the wall clock, as far as it can be trusted.
//!
//! A wall clock can jump by years, in either direction, and come back. Files are removed for their
//! age, so the time here only goes on as fast as the monotonic clock does while the agent runs, and
//! by at most [`AWAY_MAX`] over the time in which it did not. It is never later than the wall clock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The file in the agent's data directory: milliseconds since 1970, as text.
const FILE: &str = "age-clock";
/// How much time is believed to have passed between two lives of the agent. A machine that was
/// switched off for longer keeps its logs for longer.
const AWAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// Counts from the start of the agent.
#[derive(Clone, Debug)]
pub(crate) struct AgeClock {
    path: PathBuf,
    start: SystemTime,
    since: Instant,
}

impl AgeClock {
    /// Goes on where the last life of the agent stopped.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let last = last.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
        Self { path, start: start(last, SystemTime::now()), since: Instant::now() }
    }

    /// The time now.
    pub(crate) fn now(&self) -> SystemTime {
        (self.start + self.since.elapsed()).min(SystemTime::now())
    }

    /// Keeps the time for the next life of the agent. Blocks.
    ///
    /// # Errors
    /// When it cannot be written: the next life then believes the wall clock.
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
    fn a_clock_that_jumps_makes_nothing_old() {
        let wall = UNIX_EPOCH + 20_000 * DAY;
        assert_eq!(start(None, wall), wall);
        assert_eq!(start(Some(wall), wall + DAY / 2), wall + DAY / 2);
        assert_eq!(start(Some(wall), wall + 31 * DAY), wall + DAY, "a jump, or a month away");
        assert_eq!(start(Some(wall), wall - 31 * DAY), wall - 31 * DAY);
        // While the agent runs, only time that passes counts.
        let dir = tempfile::tempdir().unwrap();
        let early = SystemTime::now() - 31 * DAY;
        let clock = AgeClock { path: dir.path().join(FILE), start: early, since: Instant::now() };
        assert!(clock.now() < early + DAY);
        clock.save().unwrap();
        let next = AgeClock::open(dir.path());
        assert!((early..early + 2 * DAY).contains(&next.now()));
    }
}
