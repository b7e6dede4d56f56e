//! Waiting for what has no event to await: a state in another process.

use std::time::{Duration, Instant};

/// How long a test waits for what must happen: far beyond what it takes. Nothing passes because
/// of it; a test that waits so long fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer, and panics with `what` when there is none within [`PATIENCE`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, mut ask: impl FnMut() -> bool) {
    until(what, || ask().then_some(()));
}
