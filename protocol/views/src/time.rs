//! Times as RFC 3339.

use jiff::Timestamp;

/// Returns a time in milliseconds since 1970; `None` if it is outside the calendar.
pub fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()
}

/// Returns RFC 3339 in UTC; empty for a time outside the calendar.
pub fn rfc3339(ms: u64) -> String {
    timestamp(ms).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(u64::MAX), "");
    }
}
