//! The manager's daemon, over its real sockets and on a real disk, with agents made of messages.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod access;
mod agents;
mod lifecycle;
mod requests;
mod support;
