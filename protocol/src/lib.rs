//! The protocol of podmesh: ids, specs, messages and limits. No I/O.
//!
//! `PROTOCOL.md` in this crate describes the protocol for clients in other languages.

pub mod access;
pub mod again;
pub mod client;
pub mod codec;
pub mod error;
pub mod event;
pub mod facts;
pub mod ids;
pub mod limits;
pub mod node;
pub mod place;
pub mod queue;
pub mod ranges;
pub mod rare;
pub mod report;
pub mod schedule;
pub mod service;
pub mod session;
pub mod spec;
pub mod time;
pub mod trace;
pub mod version;
pub mod volume;
pub mod wait;
pub mod word;
pub mod workflow;
