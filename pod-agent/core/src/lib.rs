//! The agent's decisions, without side effects: inputs are facts, outputs are plain values.
//!
//! It is `no_std`: no clock, socket, file or thread. The shell passes in the time and what
//! happened, and carries out the result. See [`Core`].

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod attempts;
mod claims;
mod config;
mod core;
#[cfg(not(feature = "planted-faults"))]
mod faults;
#[cfg(feature = "planted-faults")]
pub mod faults;
pub mod health;
pub mod input;
#[cfg(any(test, feature = "invariants"))]
mod invariants;
mod outbox;
pub mod replica;
pub mod step;
#[cfg(test)]
mod tests;

pub use crate::config::CoreConfig;
pub use crate::core::Core;
