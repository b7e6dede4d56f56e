//! Time as the cores see it: a value that is handed in.

use serde::{Deserialize, Serialize};

/// Milliseconds on the monotonic clock of one process. Never compared between machines.
pub type Millis = u64;

/// The moment of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// Monotonic; what every decision goes by.
    pub mono_ms: Millis,
    /// Milliseconds since 1970; for display only, may jump.
    pub wall_ms: u64,
}
