//! Tests of the Docker runtime with a real engine. `support.rs` describes when they run.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod adopt;
mod logs;
mod mounts;
mod networks;
mod options;
mod pull;
mod replicas;
mod run;
mod support;
