//! Test harness for the end-to-end tests and the benchmarks: a mesh of real processes on loopback,
//! in a temporary folder. Dropping it removes everything.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure ends the test with a message"
)]

pub mod api;
pub mod browser;
pub mod docker;
pub mod http;
pub mod light;
pub mod mesh;
pub mod namespace;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod silent_fs;
pub mod small_disk;
pub mod supervisor;
pub mod wait;
