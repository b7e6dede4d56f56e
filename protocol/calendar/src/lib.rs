//! When schedules are due: cron patterns in time zones, and intervals.
//!
//! Everything here is pure: it reads no clock and no file. The zones are part of the program, so
//! that the same times follow from the same rule on every machine. Times are milliseconds since
//! 1970.
//!
//! # Daylight saving
//!
//! A pattern with numbers for its hours and minutes, such as `30 2 * * *`, runs once for each wall
//! time. If the wall time does not exist on a day, it runs at the first moment after the gap. If the
//! wall time exists twice, it runs at the first of the two. A pattern with `*` or a step in its
//! hours, minutes or seconds is an interval: it runs at each moment whose wall time matches, so it
//! continues through an hour that exists twice, and has no run in a gap.

mod zone;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::{Timestamp, Zoned};

pub use crate::zone::{Zone, moment};

/// Why a rule or a time is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// The pattern cannot be read.
    #[error(
        "`{pattern}` is not a cron pattern ({why}): write five fields, minute, hour, day of month, month and day of week, as in `0 3 * * *`; a field for seconds may come first"
    )]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// No moment matches the pattern.
    #[error(
        "`{pattern}` never comes: no date matches it, so it would never run; check its day and month"
    )]
    Never {
        /// The pattern.
        pattern: String,
    },
    /// There is no such zone.
    #[error("there is no time zone `{zone}`; similar ones: {}", near.join(", "))]
    Zone {
        /// The given name.
        zone: String,
        /// Names that are similar to it.
        near: Vec<String>,
    },
    /// A text is not a date with a time.
    #[error(
        "`{text}` is not a date with a time: write it as 2026-12-01T08:00, or with an offset, as 2026-12-01T08:00+01:00"
    )]
    Moment {
        /// The text.
        text: String,
    },
    /// A time before 1970 or far in the future.
    #[error("`{text}` is before 1970 or after the year 9999")]
    OutOfRange {
        /// The text.
        text: String,
    },
}

/// A rule that says when a schedule is due: its instants.
#[derive(Clone, Debug)]
pub struct Calendar(Rule);

#[derive(Clone, Debug)]
enum Rule {
    /// `anchor_ms + n * every_ms` for each `n` from 1 on.
    Every {
        every_ms: u64,
        anchor_ms: u64,
    },
    Cron {
        cron: Box<Cron>,
        zone: Zone,
    },
}

/// The instants in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// How many there are; counted no further than to a limit.
    pub count: u32,
    /// The last of them.
    pub latest_ms: u64,
}

impl Calendar {
    /// Returns the calendar with an instant each `every_ms` milliseconds after `anchor_ms`. An
    /// interval of 0 counts as 1.
    pub fn every(every_ms: u64, anchor_ms: u64) -> Self {
        Self(Rule::Every { every_ms: every_ms.max(1), anchor_ms })
    }

    /// Returns the calendar of a cron pattern in a time zone. The pattern has five fields, or six
    /// with seconds first. If both days are given, one of them must match, as in Vixie cron.
    ///
    /// # Errors
    /// If the pattern cannot be read.
    pub fn cron(pattern: &str, zone: Zone) -> Result<Self, CalendarError> {
        let parser =
            CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        match parser.parse(pattern) {
            Ok(cron) => Ok(Self(Rule::Cron { cron: Box::new(cron), zone })),
            Err(error) => {
                let why = error.to_string();
                let why = why.trim_end_matches('.').to_owned();
                Err(CalendarError::Pattern { pattern: pattern.into(), why })
            }
        }
    }

    /// Returns the first instant after a time; `None` if there is none before the year 9999.
    pub fn next_after(&self, ms: u64) -> Option<u64> {
        match &self.0 {
            Rule::Every { every_ms, anchor_ms } => {
                let passed = ms.saturating_sub(*anchor_ms) / every_ms;
                anchor_ms.checked_add(every_ms.checked_mul(passed.checked_add(1)?)?)
            }
            Rule::Cron { cron, zone } => {
                let next = cron.find_next_occurrence(&zone.at(ms)?, false).ok()?;
                millis(&next).filter(|next| *next > ms)
            }
        }
    }

    /// Returns the last instant that is not after a time.
    pub fn last_until(&self, ms: u64) -> Option<u64> {
        match &self.0 {
            Rule::Every { every_ms, anchor_ms } => {
                let passed = ms.checked_sub(*anchor_ms)? / every_ms;
                (passed > 0).then(|| anchor_ms + passed * every_ms)
            }
            Rule::Cron { cron, zone } => {
                let last = cron.find_previous_occurrence(&zone.at(ms)?, true).ok()?;
                millis(&last).filter(|last| *last <= ms)
            }
        }
    }

    /// Returns the instants after `after_ms` and not after `until_ms`; `None` if there are none. It
    /// counts up to `count_max` of them, at least one, which bounds the work.
    pub fn due(&self, after_ms: u64, until_ms: u64, count_max: u32) -> Option<Due> {
        let first = self.next_after(after_ms).filter(|first| *first <= until_ms)?;
        let mut due = Due { count: 1, latest_ms: first };
        if let Rule::Every { every_ms, .. } = self.0 {
            let more = (until_ms - first) / every_ms;
            due.latest_ms += more * every_ms;
            due.count = u32::try_from(more + 1).unwrap_or(u32::MAX).min(count_max.max(1));
            return Some(due);
        }
        while let Some(next) = self.next_after(due.latest_ms).filter(|next| *next <= until_ms) {
            if due.count >= count_max {
                let latest = self.last_until(until_ms).unwrap_or(next);
                return Some(Due { latest_ms: latest.max(next), ..due });
            }
            due = Due { count: due.count + 1, latest_ms: next };
        }
        Some(due)
    }
}

/// Returns the milliseconds since 1970; `None` for an earlier time.
fn millis(time: &Zoned) -> Option<u64> {
    u64::try_from(time.timestamp().as_millisecond()).ok()
}

/// Returns the moment; `None` after the year 9999.
fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()
}
