//! The words of podmesh on the wire: ids, specs, messages and limits. No I/O.
//!
//! `PROTOCOL.md` beside this crate describes the same for clients in other languages.

pub mod access;
pub mod client;
pub mod codec;
pub mod error;
pub mod event;
pub mod ids;
pub mod limits;
pub mod report;
pub mod session;
pub mod spec;
pub mod time;
