//! Waits by polling, for the state of other processes.

use std::time::{Duration, Instant};

/// How long a test waits for something that must happen, far longer than it takes. A test that
/// waits this long fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `ask` until it returns a value. Panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} without success: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Like [`until`], for a condition.
pub fn until_true(what: &str, mut ask: impl FnMut() -> bool) {
    until(what, || ask().then_some(()));
}
