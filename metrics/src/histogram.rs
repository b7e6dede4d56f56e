//! A histogram of times, made of atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often something took how long. Any thread can add to it, without a lock.
#[derive(Debug)]
pub struct Histogram {
    /// The upper ends of all but the last interval, in seconds, ascending.
    bounds: &'static [f64],
    /// One more than bounds: the last one is for all longer times.
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// The numbers of a histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    /// The upper end of each interval, in seconds, and how many times are in it. The last end is
    /// infinite.
    pub intervals: Vec<(f64, u64)>,
    /// The sum of all times, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Creates an empty histogram with the ends of its intervals, in seconds, ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_nanos: AtomicU64::new(0) }
    }

    /// Adds a time.
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let interval = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[interval].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns what was added.
    pub fn buckets(&self) -> Buckets {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let sum = Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        Buckets::new(self.bounds.iter().copied(), counts, sum)
    }
}

impl Buckets {
    /// Returns intervals with these ends, in seconds. There is one more count: of longer times.
    pub fn new(
        bounds: impl IntoIterator<Item = f64>,
        counts: impl IntoIterator<Item = u64>,
        sum: f64,
    ) -> Self {
        let ends = bounds.into_iter().chain([f64::INFINITY]);
        Self { intervals: ends.zip(counts).collect(), sum }
    }

    /// Returns how many times there are.
    pub fn count(&self) -> u64 {
        self.intervals.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_interval_that_is_long_enough() {
        let histogram = Histogram::new(&[0.001, 1.0]);
        for micros in [0, 1_000, 1_001, 1_000_000, 2_500_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let buckets = histogram.buckets();
        assert_eq!(buckets.intervals, [(0.001, 2), (1.0, 2), (f64::INFINITY, 1)]);
        assert_eq!(buckets.count(), 5);
        assert!((buckets.sum - 3.502_001).abs() < 1e-9, "{}", buckets.sum);
    }
}
