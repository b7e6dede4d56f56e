//! The bytes of podmesh on the wire: typed sockets over ZeroMQ and heartbeats, by TLS or the
//! manager's own unix sockets, with a guard between ZeroMQ and whatever came from elsewhere.
//!
//! Invariants: no socket here ever reconnects on its own (on any doubt a session is dropped and a
//! fresh pair of sockets is made), and an identity is never used twice: the manager's front
//! makes one for each connection.

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

pub use error::WireError;
