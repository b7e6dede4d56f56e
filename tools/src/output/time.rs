//! Times and durations, for people and programs.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use podmesh_calendar::Zone;
use podmesh_views::time::timestamp;

/// Returns milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns date and time in the user's time zone.
pub(crate) fn local(ms: u64) -> String {
    local_as(ms, "%Y-%m-%d %H:%M:%S")
}

/// Returns the time of day in the user's time zone.
pub(crate) fn local_clock(ms: u64) -> String {
    local_as(ms, "%H:%M:%S%.3f")
}

/// Returns the user's time zone; UTC if it has no name that schedules may have.
pub(crate) fn local_zone() -> Zone {
    let zone = TimeZone::system();
    zone.iana_name().and_then(|name| Zone::new(name).ok()).unwrap_or_else(Zone::utc)
}

fn local_as(ms: u64, form: &str) -> String {
    match timestamp(ms) {
        Some(t) => t.to_zoned(TimeZone::system()).strftime(form).to_string(),
        None => "?".into(),
    }
}

/// Returns how long ago a time was: `3min ago`. The clocks of two machines may differ: a time in
/// the future is `now`.
pub(crate) fn ago(now_ms: u64, ms: u64) -> String {
    match now_ms.saturating_sub(ms) {
        0..1000 => "now".into(),
        since => format!("{} ago", coarse(since)),
    }
}

/// Returns a duration with one unit, with one decimal if it is short: `420ms`, `3.2s`, `5min`,
/// `2d`.
pub(crate) fn coarse(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..10_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{}s", ms / 1000),
        120_000..7_200_000 => format!("{}min", ms / 60_000),
        7_200_000..172_800_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_outside_the_calendar_is_a_question_mark() {
        assert_eq!(local(u64::MAX), "?");
    }

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (7, "7ms"),
            (3_250, "3.2s"),
            (90_000, "90s"),
            (200_000, "3min"),
            (7_300_000, "2h"),
            (u64::MAX, "213503982334d"),
        ] {
            assert_eq!(coarse(ms), text);
        }
        assert_eq!((ago(5000, 9000), ago(9000, 5000)), ("now".into(), "4.0s ago".into()));
    }
}
