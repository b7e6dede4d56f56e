//! Time as the cores see it: a value passed in from outside.

use serde::{Deserialize, Serialize};

/// Milliseconds on the monotonic clock of one process. Never compared between machines.
pub type Millis = u64;

/// The time of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// Monotonic; the basis of every decision.
    pub mono_ms: Millis,
    /// Milliseconds since 1970; only for display, may jump.
    pub wall_ms: u64,
}
