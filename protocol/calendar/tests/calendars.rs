//! Cron patterns and intervals, and what daylight saving makes of them.
#![expect(clippy::unwrap_used, reason = "tests")]

use jiff::Timestamp;
use jiff::civil::{DateTime, Time, date};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use podmesh_calendar::{Calendar, CalendarError, Zone, moment};

/// Zones with daylight saving on both hemispheres, by half an hour, at midnight, without a change,
/// and with changes that politics made.
const ZONES: [&str; 10] = [
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Santiago",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Kolkata",
];

fn ms(text: &str) -> u64 {
    u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

fn cron(pattern: &str, zone: &str) -> Calendar {
    Calendar::cron(pattern, Zone::new(zone).unwrap()).unwrap()
}

fn times(calendar: &Calendar, from: &str, zone: &str, count: usize) -> Vec<String> {
    let zone = Zone::new(zone).unwrap();
    let mut at = ms(from);
    let next = || {
        at = calendar.next_after(at)?;
        Some(zone.format(at))
    };
    std::iter::from_fn(next).take(count).collect()
}

#[test]
fn each_wall_time_runs_once_in_ten_zones_over_ten_years() {
    for name in ZONES {
        let zone: TimeZone = TimeZoneDatabase::bundled().get(name).unwrap();
        for (hour, minute) in [(0, 0), (0, 30), (1, 15), (1, 45), (2, 0), (2, 30), (3, 0)] {
            let calendar = cron(&format!("{minute} {hour} * * *"), name);
            let mut day = date(2020, 1, 1);
            let mut at =
                u64::try_from(day.to_zoned(zone.clone()).unwrap().timestamp().as_millisecond() - 1)
                    .unwrap();
            while day.year() < 2030 {
                let wall = DateTime::from_parts(day, Time::new(hour, minute, 0, 0).unwrap());
                let found = zone.to_ambiguous_zoned(wall);
                let expected = match found.offset() {
                    AmbiguousOffset::Gap { .. } => {
                        // The first moment after the gap is where the offset changes.
                        let near = found.clone().earlier().unwrap().timestamp();
                        zone.following(near).next().unwrap().timestamp()
                    }
                    _ => found.earlier().unwrap().timestamp(),
                };
                let next = calendar.next_after(at).unwrap();
                let shown = Zone::new(name).unwrap().format(next);
                assert_eq!(next as i64, expected.as_millisecond(), "{name} {wall}: {shown}");
                assert_eq!(calendar.last_until(next), Some(next), "{name} {wall}: back");
                assert_eq!(calendar.last_until(next + 3_599_999), Some(next), "{name} {wall}");
                (at, day) = (next, day.tomorrow().unwrap());
            }
        }
    }
}

#[test]
fn an_interval_goes_on_through_an_hour_that_exists_twice() {
    let calendar = cron("*/30 * * * *", "Europe/Berlin");
    let back = times(&calendar, "2026-10-25T00:15:00Z", "Europe/Berlin", 4);
    assert_eq!(
        back,
        [
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-25T03:00:00+01:00"
        ]
    );
    let ahead = times(&calendar, "2026-03-29T00:15:00Z", "Europe/Berlin", 2);
    assert_eq!(ahead, ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00"]);
}

#[test]
fn a_wall_time_in_a_gap_runs_after_it_and_one_that_exists_twice_runs_first() {
    let calendar = cron("30 2 * * *", "Europe/Berlin");
    let ahead = times(&calendar, "2026-03-28T12:00:00Z", "Europe/Berlin", 2);
    assert_eq!(ahead, ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]);
    let back = times(&calendar, "2026-10-24T12:00:00Z", "Europe/Berlin", 2);
    assert_eq!(back, ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]);
}

#[test]
fn a_pattern_that_never_comes_has_no_next_time() {
    for pattern in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 *"] {
        let begun = std::time::Instant::now();
        assert_eq!(cron(pattern, "Europe/Berlin").next_after(ms("2026-01-01T00:00:00Z")), None);
        println!("{pattern}: {:?}", begun.elapsed());
    }
    let leap = cron("0 0 29 2 *", "UTC").next_after(ms("2096-03-01T00:00:00Z"));
    assert_eq!(leap, Some(ms("2104-02-29T00:00:00Z")), "2100 is no leap year");
}

#[test]
fn wrong_rules_are_refused_with_the_reason() {
    let wrong =
        |pattern: &str| Calendar::cron(pattern, Zone::utc()).map(|_| ()).unwrap_err().to_string();
    for pattern in ["", "*", "61 * * * *", "* * * *", "* * * * * * 2030", "a b c d e", "@reboot"] {
        let said = wrong(pattern);
        assert!(said.contains("is not a cron pattern"), "{pattern}: {said}");
    }
    let near = |zone: &str| match Zone::new(zone).unwrap_err() {
        CalendarError::Zone { near, .. } => near,
        other => unreachable!("{other}"),
    };
    assert!(near("Berlin").contains(&"Europe/Berlin".to_owned()), "{:?}", near("Berlin"));
    assert!(near("Europe/Brelin").contains(&"Europe/Berlin".to_owned()));
    assert_eq!(Zone::new("europe/berlin").unwrap().name(), "Europe/Berlin");
}

#[test]
fn what_is_due_is_counted_with_bounded_work() {
    let from = ms("2025-01-01T00:00:00Z");
    let until = ms("2026-01-01T00:00:00Z");
    let calendar = cron("* * * * * *", "Europe/Berlin");
    let due = calendar.due(from, until, 100).unwrap();
    assert_eq!((due.count, due.latest_ms), (100, until));
    let every = Calendar::every(1_000, from);
    let due = every.due(from, until + 5, u32::MAX).unwrap();
    assert_eq!((due.count, due.latest_ms), (365 * 24 * 3600, until));
    assert_eq!(every.due(from, from + 999, 9), None);
    let due = cron("0 * * * *", "UTC").due(from, from + 3 * 3_600_000, 9).unwrap();
    assert_eq!((due.count, due.latest_ms), (3, from + 3 * 3_600_000));
}

#[test]
fn what_comes_next_and_what_came_last_agree() {
    let mut rng = fastrand::Rng::with_seed(1);
    let patterns = ["*/7 * * * *", "0 3 * * *", "30 2 * * 1-5", "15 1,2 1 * *", "*/20 5 * * * *"];
    for _ in 0..3_000 {
        let zone = ZONES[rng.usize(0..ZONES.len())];
        let pattern = patterns[rng.usize(0..patterns.len())];
        let calendar = cron(pattern, zone);
        let at = rng.u64(ms("2020-01-01T00:00:00Z")..ms("2030-01-01T00:00:00Z"));
        let next = calendar.next_after(at).unwrap();
        let last = calendar.last_until(next - 1).unwrap();
        let shown = Zone::new(zone).unwrap();
        let (next, last, now) = (shown.format(next), (last, shown.format(last)), shown.format(at));
        assert!(last.0 <= at, "{pattern} in {zone}: {} is between {now} and {next}", last.1);
        assert_eq!(calendar.next_after(last.0).map(|ms| shown.format(ms)), Some(next), "{pattern}");
    }
}

#[test]
fn times_of_people_are_read_in_their_zone() {
    let berlin = Zone::new("Europe/Berlin").unwrap();
    let read = |text: &str| moment(text, &berlin).map(|ms| berlin.format(ms));
    assert_eq!(read("2026-12-01T08:00").unwrap(), "2026-12-01T08:00:00+01:00");
    assert_eq!(read("2026-12-01 08:00").unwrap(), "2026-12-01T08:00:00+01:00");
    assert_eq!(read("2026-12-01T08:00Z").unwrap(), "2026-12-01T09:00:00+01:00");
    assert_eq!(read("2026-03-29T02:30").unwrap(), "2026-03-29T03:30:00+02:00");
    for wrong in ["", "tomorrow", "08:00", "2026-12-01", "2026-13-01T08:00"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
    assert!(matches!(read("1969-12-01T08:00"), Err(CalendarError::OutOfRange { .. })));
}
