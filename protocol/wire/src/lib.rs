//! The transport of podmesh: typed sockets over ZeroMQ and heartbeats, through TLS or the manager's
//! local unix sockets, with a guard between ZeroMQ and all input from outside.
//!
//! Invariants: no socket here ever reconnects by itself (after any error a session is dropped and a
//! new pair of sockets is made), and an identity is never used twice: the manager's front assigns
//! one to each connection.

pub mod address;
pub mod backoff;
pub mod client;
pub mod control;
pub mod enrolment;
mod error;
pub mod front;
pub mod guard;
pub mod heartbeat;
pub mod key;
pub mod locate;
pub mod machine;
pub mod manager_keys;
mod outbox;
pub mod publish;
pub mod route;
pub mod socket_dir;
mod stream;
mod tls;
pub mod watchdog;

pub use tls::Service;

pub use error::{WireError, chain};
