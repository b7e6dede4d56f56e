//! What the end-to-end tests and the benchmarks stand on: a whole mesh of real processes in a
//! temporary folder, on loopback, which is gone when it is dropped.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is tests: a failure ends the test, with a text"
)]

pub mod docker;
pub mod light;
pub mod mesh;
pub mod namespace;
pub mod ports;
pub mod process;
pub mod supervisor;
pub mod wait;
