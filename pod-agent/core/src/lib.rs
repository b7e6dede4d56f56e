//! The agent's decisions, pure: inputs are facts of the past, steps are plain values.
//!
//! No clock, socket, file, thread or randomness: the shell hands in the time and what happened,
//! and carries out what comes back. See [`Core`].

mod attempts;
mod core;
#[cfg(not(feature = "planted-faults"))]
mod faults;
#[cfg(feature = "planted-faults")]
pub mod faults;
pub mod input;
#[cfg(any(test, feature = "invariants"))]
mod invariants;
mod outbox;
pub mod step;
#[cfg(test)]
mod tests;

pub use crate::core::{Core, CoreConfig};
