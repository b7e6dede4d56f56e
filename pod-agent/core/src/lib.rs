//! The agent's decisions, pure: inputs are facts of the past, steps are plain values.
pub mod input;
pub mod step;
/// The core.
pub struct Core;
