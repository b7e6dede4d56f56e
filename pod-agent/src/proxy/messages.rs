//! The messages between an agent and its proxy: MessagePack maps in frames with a length.
//!
//! Versions are as in `supervisor/messages.rs`: [`VERSION`] grows when the other side must
//! understand a change, and both sides use the newest version that both support.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podmesh_protocol::service::ServiceEndpoints;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The newest version that this program supports.
pub(super) const VERSION: u16 = 1;
/// The oldest version that this program supports.
pub(super) const VERSION_OLDEST: u16 = 1;
/// Maximum number of troubles in one status.
pub(super) const TROUBLES_MAX: usize = 100;

/// The messages of the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToProxy {
    /// The first message.
    Hello(Hello),
    /// New endpoints.
    Endpoints(Update),
    /// The proxy closes its listeners and all connections, and ends.
    End,
}

/// The messages of the proxy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// Accepts a hello. [`ToAgent::Status`] follows.
    Welcome {
        /// The version to use from now on.
        version: u16,
        /// The version of the proxy's program.
        program_version: String,
    },
    /// Refuses a hello. Then the connection is closed.
    Refused {
        /// The reason.
        message: String,
    },
    /// What has changed, in full.
    Status(Status),
}

/// The first message of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The newest version that the agent supports.
    pub(super) version: u16,
    /// The oldest version that it supports.
    pub(super) version_oldest: u16,
    /// The id of its data directory.
    pub(super) agent: Uuid,
    /// Whether the proxy must end when the agent ends for any reason.
    pub(super) stop_with_agent: bool,
    /// The addresses to listen on; empty for all.
    pub(super) listen: Vec<IpAddr>,
}

/// Updates of one generation can be compared: a session of an agent with the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    /// The agent's run.
    pub(super) run: Uuid,
    /// The number of the session in that run.
    pub(super) session: u64,
}

/// New endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Update {
    /// Numbers of other generations cannot be compared with this one.
    pub(super) generation: Generation,
    /// The number of the update.
    pub(super) number: u64,
    /// Whether services that are not in this message must be forgotten.
    pub(super) all: bool,
    /// The services that have changed.
    pub(super) services: Vec<ServiceEndpoints>,
}

/// The state of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// The generation of the numbers; `None` before the first update.
    pub(super) generation: Option<Generation>,
    /// The last update that was applied.
    pub(super) applied: u64,
    /// The last update up to which no removed endpoint has a connection.
    pub(super) drained: u64,
    /// What is wrong with a port: at most [`TROUBLES_MAX`].
    pub(super) troubles: BTreeMap<u16, String>,
    /// Numbers for display. They are at most some seconds old.
    pub(super) counters: Counters,
}

/// Numbers since the proxy started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections of clients that are open now.
    pub open: u64,
    /// Connections of clients that were accepted, including those that were refused.
    pub accepted: u64,
    /// Connections that were closed at once because too many were open.
    pub refused: u64,
    /// Connections that were closed because no endpoint could be reached.
    pub failed: u64,
    /// Bytes that were passed on, in both directions.
    pub bytes: u64,
}
