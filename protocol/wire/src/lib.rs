//! The bytes of podmesh on the wire: typed sockets over ZeroMQ, heartbeats over plain TCP.
//!
//! Invariants: no socket here ever reconnects on its own (on any doubt a session is dropped and a
//! fresh pair of sockets is made), and an identity is never used twice: ROUTER makes a random one
//! for each connection.

pub mod address;
pub mod backoff;
pub mod client;
pub mod control;
mod error;
pub mod heartbeat;
pub mod publish;

pub use error::WireError;
