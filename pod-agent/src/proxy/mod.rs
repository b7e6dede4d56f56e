//! The node's proxy: a process that passes connections to the replicas of services, on whichever
//! node they run. It keeps running when the agent ends, is killed, or is replaced by another version.
//!
//! Each agent's data directory has at most one proxy. The agent starts it when the first service
//! publishes a port (`link.rs`, `connect.rs`), and passes on the endpoints that the manager sends
//! (`wanted.rs`, `messages.rs`). The proxy (`server.rs`) listens on the ports (`listeners.rs`). For
//! each client it chooses an endpoint (`table.rs`) and copies in both directions (`relay.rs`). It
//! keeps the last endpoints while the agent is away.
//!
//! A replica that is about to be stopped is removed from the endpoints first. The proxy reports the
//! last update that it has applied, and the last one whose removed endpoints have no connection any
//! more.

mod connect;
mod copy;
mod error;
mod header;
mod link;
mod listeners;
mod messages;
mod plane;
mod relay;
mod server;
mod sockets;
mod table;
#[cfg(test)]
mod tests;
mod wanted;
mod workers;

pub use self::error::ProxyError;
pub use self::link::{Ack, PortTroubles, Proxy, ProxySettings};
pub use self::messages::Counters;
pub use self::server::serve;
pub use self::wanted::Endpoints;
pub use crate::service_names::ServiceNames;
