//! Tests of the manager's daemon over real sockets and on a real disk, with simulated agents.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod access;
mod agents;
mod lifecycle;
mod recorded;
mod requests;
mod support;
mod versions;
