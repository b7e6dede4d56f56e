//! What an agent knows about a replica beyond its job: where it listens.

use alloc::vec::Vec;
use core::net::IpAddr;

use podmesh_protocol::service::ReplicaSpec;
use serde::{Deserialize, Serialize};

/// A replica on this node. The agent records it with the attempt, so that the next agent knows it
/// without the manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its spec.
    pub spec: ReplicaSpec,
    /// The address of the node on which it is reached.
    pub address: IpAddr,
    /// Its ports on that address, in the order of the names in its spec.
    pub ports: Vec<u16>,
}

impl Replica {
    /// Returns the port on the node of the port with this name; `None` if there is none.
    pub fn port(&self, name: &podmesh_protocol::ids::Name) -> Option<u16> {
        let at = self.spec.ports.keys().position(|other| other == name)?;
        self.ports.get(at).copied()
    }
}
