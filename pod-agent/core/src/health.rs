//! What the results of health checks say about a replica, and when the next check is due.

use podmesh_protocol::service::{Health, HealthSpec};
use podmesh_protocol::time::Millis;

/// The first pause between two checks of a replica that starts. Each is twice as long as the
/// previous one.
const PAUSE_MS_FIRST: u64 = 50;
/// The longest pause between two checks of a replica that starts.
const PAUSE_MS_MAX: u64 = 1_000;

/// The times of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthTimes {
    /// See [`HealthSpec::interval_ms`].
    pub interval_ms: u64,
    /// See [`HealthSpec::start_period_ms`].
    pub start_period_ms: u64,
    /// See [`HealthSpec::failures`].
    pub failures: u32,
}

impl From<&HealthSpec> for HealthTimes {
    fn from(spec: &HealthSpec) -> Self {
        let HealthSpec { interval_ms, start_period_ms, failures, .. } = *spec;
        Self { interval_ms, start_period_ms, failures }
    }
}

/// The health of one replica, as its checks have shown it.
///
/// - A check that succeeds makes it healthy at once.
/// - `failures` failed checks in a row make it unhealthy. Those that began in the start period do
///   not count, unless a check has succeeded before.
/// - While it starts, checks come quickly, so that it is known soon when it works. Then only failed
///   checks an interval apart count, so that quick checks do not make it unhealthy any sooner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthWatch {
    times: HealthTimes,
    /// When the start period ends.
    grace_until: Millis,
    health: Health,
    /// How many failed checks in a row count, and when the last of them began.
    failed: u32,
    failed_at: Millis,
    pause_ms: u64,
}

impl HealthWatch {
    /// Begins to watch a replica that has run for `ran_ms` milliseconds. The first check is due at
    /// once.
    pub fn new(times: HealthTimes, now: Millis, ran_ms: u64) -> Self {
        Self {
            times,
            grace_until: now.saturating_add(times.start_period_ms.saturating_sub(ran_ms)),
            health: Health::Starting,
            failed: 0,
            failed_at: now,
            pause_ms: PAUSE_MS_FIRST,
        }
    }

    /// Notes the result of a check that began at `began`. Returns the health if it has changed.
    pub fn checked(&mut self, began: Millis, passed: bool) -> Option<Health> {
        let before = self.health;
        if passed {
            self.failed = 0;
            self.health = Health::Healthy;
        } else if self.counts(began) {
            self.failed = self.failed.saturating_add(1);
            self.failed_at = began;
            if self.failed >= self.times.failures {
                self.health = Health::Unhealthy;
            }
        }
        (self.health != before).then_some(self.health)
    }

    fn counts(&self, began: Millis) -> bool {
        if self.health != Health::Starting {
            return true;
        }
        let is_due = began.saturating_sub(self.failed_at) >= self.times.interval_ms;
        began >= self.grace_until && (self.failed == 0 || is_due)
    }

    /// Returns for how many milliseconds to wait before the next check.
    pub fn pause_ms(&mut self) -> u64 {
        let interval_ms = self.times.interval_ms;
        if self.health != Health::Starting {
            return interval_ms;
        }
        let pause_ms = self.pause_ms;
        self.pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
        pause_ms.min(interval_ms)
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "tests")]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const TIMES: HealthTimes =
        HealthTimes { interval_ms: 10_000, start_period_ms: 30_000, failures: 3 };

    /// Runs checks that take no time until `until`, and returns what changed, and when.
    fn run(
        watch: &mut HealthWatch,
        from: Millis,
        until: Millis,
        passes: impl Fn(Millis) -> bool,
    ) -> Vec<(Millis, Health)> {
        let (mut now, mut changes) = (from, Vec::new());
        while now <= until {
            changes.extend(watch.checked(now, passes(now)).map(|health| (now, health)));
            now += watch.pause_ms();
        }
        changes
    }

    #[test]
    fn a_replica_that_works_is_healthy_at_the_first_check() {
        let mut watch = HealthWatch::new(TIMES, 7, 0);
        assert_eq!(run(&mut watch, 7, 99_999, |_| true), [(7, Health::Healthy)]);
    }

    #[test]
    fn checks_come_quickly_until_the_first_success_and_then_at_the_interval() {
        let mut watch = HealthWatch::new(TIMES, 0, 0);
        let pauses: Vec<u64> = (0..7).map(|_| watch.pause_ms()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
        watch.checked(1, true);
        assert_eq!((watch.pause_ms(), watch.pause_ms()), (10_000, 10_000));
        watch.checked(1, false);
        assert_eq!(watch.pause_ms(), 10_000);
        let short = HealthTimes { interval_ms: 70, ..TIMES };
        let mut watch = HealthWatch::new(short, 0, 0);
        assert_eq!((watch.pause_ms(), watch.pause_ms(), watch.pause_ms()), (50, 70, 70));
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_and_later_ones_count_an_interval_apart() {
        let mut watch = HealthWatch::new(TIMES, 0, 0);
        let changes = run(&mut watch, 0, 120_000, |_| false);
        let [(at, Health::Unhealthy)] = changes[..] else { panic!("{changes:?}") };
        assert!((50_000..53_000).contains(&at), "{at}");
        // It may still recover.
        assert_eq!(watch.checked(130_000, true), Some(Health::Healthy));
    }

    #[test]
    fn a_success_ends_the_start_period() {
        let mut watch = HealthWatch::new(TIMES, 0, 0);
        assert_eq!(watch.checked(0, true), Some(Health::Healthy));
        let failed: Vec<_> = (1..=3).map(|n| watch.checked(n * 100, false)).collect();
        assert_eq!(failed, [None, None, Some(Health::Unhealthy)]);
        assert_eq!(watch.checked(400, false), None);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let mut watch = HealthWatch::new(TIMES, 0, 0);
        watch.checked(0, true);
        for n in 1..20 {
            assert_eq!(watch.checked(n * 10_000, n % 3 == 0), None, "{n}");
        }
    }

    #[test]
    fn an_adopted_replica_does_not_get_the_start_period_twice() {
        let mut watch = HealthWatch::new(TIMES, 1_000, 3_600_000);
        let changes = run(&mut watch, 1_000, 60_000, |_| false);
        let [(at, Health::Unhealthy)] = changes[..] else { panic!("{changes:?}") };
        assert!((21_000..24_000).contains(&at), "{at}");
        let mut watch = HealthWatch::new(TIMES, 1_000, 20_000);
        assert_eq!(run(&mut watch, 1_000, 11_000, |_| false), []);
    }

    #[test]
    fn one_failure_is_enough_if_the_spec_says_so() {
        let times = HealthTimes { start_period_ms: 0, failures: 1, ..TIMES };
        let mut watch = HealthWatch::new(times, 0, 0);
        assert_eq!(watch.checked(0, false), Some(Health::Unhealthy));
    }
}
