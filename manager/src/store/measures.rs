//! What the writer measures.

use std::sync::atomic::AtomicBool;

use podmesh_metrics::Histogram;

/// The upper ends of the intervals of commit times, in seconds.
const COMMIT_BOUNDS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// What the writer measures, since the start of the manager.
#[derive(Debug)]
pub(crate) struct StoreMeasures {
    /// How long transactions took, from their begin until they were on disk.
    pub(crate) commits: Histogram,
    /// Whether the writer waits for room on the disk.
    pub(crate) waits_for_room: AtomicBool,
}

impl Default for StoreMeasures {
    fn default() -> Self {
        Self { commits: Histogram::new(COMMIT_BOUNDS), waits_for_room: AtomicBool::new(false) }
    }
}
