//! The delay before the next attempt to connect.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Returns delays between attempts to reach the manager: 50 ms at first, doubled up to 2 s. Jitter
/// adds up to the same again, so that a waiting peer reconnects within 5 s after the manager
/// returns. The delays never end: even after a week, a manager gets its agents back.
pub fn reconnect_delays() -> impl Iterator<Item = Duration> + Send + use<> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_never_end() {
        let delays: Vec<_> = reconnect_delays().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        assert!(delays[0] < Duration::from_millis(101));
        // Jitter adds up to the same again.
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(4)));
        assert!(delays[999] >= Duration::from_secs(2));
    }
}
