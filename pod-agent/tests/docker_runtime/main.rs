//! The Docker runtime against a real engine; `support.rs` says when these tests run.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod adopt;
mod logs;
mod mounts;
mod pull;
mod run;
mod support;
