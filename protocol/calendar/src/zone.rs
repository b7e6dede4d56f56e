//! Time zones by name, and times of people in them.

use std::sync::LazyLock;

use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};

use crate::{CalendarError, millis, timestamp};

/// The zones that are part of the program.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
/// How many similar names an error gives.
const NEAR: usize = 3;

/// A time zone of the IANA database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// Returns the zone with an IANA name such as `Europe/Berlin`, in upper or lower case.
    ///
    /// # Errors
    /// If there is none. The error gives similar names.
    pub fn new(name: &str) -> Result<Self, CalendarError> {
        ZONES
            .get(name)
            .map(Self)
            .map_err(|_| CalendarError::Zone { zone: name.into(), near: similar(name) })
    }

    /// Returns coordinated universal time.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// Returns its name, as it is written in the database.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// Writes a moment as a wall time of the zone with its offset: `2026-12-01T08:00:00+01:00`. A
    /// moment after the year 9999 is written as milliseconds.
    pub fn format(&self, ms: u64) -> String {
        match self.at(ms) {
            Some(time) => time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            None => format!("{ms} ms"),
        }
    }

    pub(crate) fn at(&self, ms: u64) -> Option<Zoned> {
        Some(timestamp(ms)?.to_zoned(self.0.clone()))
    }
}

/// Reads a date with a time, such as `2026-12-01T08:00`, as a wall time of the zone. A text with an
/// offset or `Z` means the same moment in every zone. A wall time that does not exist is moved by the
/// length of the gap, and of one that exists twice the first is taken.
///
/// # Errors
/// If it is not one, or before 1970.
pub fn moment(text: &str, zone: &Zone) -> Result<u64, CalendarError> {
    let wrong = || CalendarError::Moment { text: text.into() };
    let out_of_range = || CalendarError::OutOfRange { text: text.into() };
    let time = match text.parse::<Timestamp>() {
        Ok(time) => time.to_zoned(zone.0.clone()),
        Err(_) if text.len() < "2026-12-01T08:00".len() => return Err(wrong()),
        Err(_) => {
            let civil: DateTime = text.parse().map_err(|_| wrong())?;
            civil.to_zoned(zone.0.clone()).map_err(|_| out_of_range())?
        }
    };
    millis(&time).ok_or_else(out_of_range)
}

fn similar(name: &str) -> Vec<String> {
    let wanted = name.to_lowercase();
    let rank = |zone: &str| {
        let zone = zone.to_lowercase();
        let city = zone.rsplit('/').next().unwrap_or(&zone);
        let whole = strsim::jaro_winkler(&wanted, &zone);
        whole.max(strsim::jaro_winkler(wanted.rsplit('/').next().unwrap_or(&wanted), city))
    };
    let mut names: Vec<(f64, String)> =
        ZONES.available().map(|zone| (rank(zone.as_str()), zone.to_string())).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    names.into_iter().take(NEAR).map(|(_, name)| name).collect()
}
