//! What the manager wants the proxy to do, without what the node's owner does not allow.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceEndpoints;

use super::messages::{Generation, Update};
use crate::config::IngressConfig;
use crate::policy::IngressAddress;
use crate::ports::PortRange;

/// Endpoints of one message, approximately, so that it is no longer than a frame may be.
const MESSAGE_ENDPOINTS_MAX: usize = 4096;

/// An update of the endpoints, as the manager sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The agent's number of the session. The numbers of updates of different sessions cannot be
    /// compared.
    pub session: u64,
    /// The number of the update.
    pub update: u64,
    /// Whether all services that are not in this update must be forgotten.
    pub all: bool,
    /// The services that have changed.
    pub services: Vec<ServiceEndpoints>,
}

/// Checks that the proxy may listen on a port.
///
/// # Errors
/// Why it may not, for people.
pub(super) fn may_listen(
    ingress: &IngressConfig,
    replica_ports: Option<PortRange>,
    port: u16,
) -> Result<(), String> {
    let ports = &ingress.ports;
    if ingress.address == IngressAddress::Off {
        return Err(
            "this node opens no ports of services; the node's owner can change ingress_address in agent.toml"
                .to_owned(),
        );
    }
    if let Some(range) = replica_ports.filter(|range| range.contains(port)) {
        return Err(format!(
            "the ports {range} of this node are for its replicas; publish the service on another port, or the node's owner can change replica_ports in agent.toml"
        ));
    }
    if !ports.contains(port) {
        return Err(format!(
            "this node allows {ports}; publish the service on one of these, or the node's owner can change ingress in agent.toml"
        ));
    }
    Ok(())
}

/// All services with their endpoints, after the last update.
#[derive(Debug)]
pub(super) struct Wanted {
    ingress: IngressConfig,
    /// The ports of the node's replicas, which the proxy never listens on.
    replica_ports: Option<PortRange>,
    generation: Option<Generation>,
    number: u64,
    services: BTreeMap<Name, ServiceEndpoints>,
    /// Why ports of services are not listened on.
    refused: BTreeMap<(Name, u16), String>,
}

impl Wanted {
    pub(super) fn new(ingress: IngressConfig, replica_ports: Option<PortRange>) -> Self {
        Self {
            ingress,
            replica_ports,
            generation: None,
            number: 0,
            services: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Applies an update, and returns the part of it that the proxy must know.
    pub(super) fn apply(
        &mut self,
        generation: Generation,
        number: u64,
        all: bool,
        mut services: Vec<ServiceEndpoints>,
    ) -> Update {
        self.generation = Some(generation);
        self.number = number;
        if all {
            self.services.clear();
            self.refused.clear();
        }
        for service in &mut services {
            let name = &service.service;
            self.refused.retain(|(of, _), _| of != name);
            if self.ingress.address == IngressAddress::Off {
                service.ports.clear();
            }
            service.ports.retain(|port| {
                match may_listen(&self.ingress, self.replica_ports, port.publish) {
                    Ok(()) => true,
                    Err(why) => {
                        self.refused.insert((name.clone(), port.publish), why);
                        false
                    }
                }
            });
            if service.ports.is_empty() {
                self.services.remove(name);
            } else {
                self.services.insert(name.clone(), service.clone());
            }
        }
        Update { generation, number, all, services }
    }

    /// Returns whether a proxy is needed.
    pub(super) fn has_ports(&self) -> bool {
        !self.services.is_empty()
    }

    /// Returns the generation and number of the last update; `None` before the first.
    pub(super) fn last(&self) -> Option<(Generation, u64)> {
        self.generation.map(|generation| (generation, self.number))
    }

    /// Returns the ports that the proxy should listen on.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.services.values().flat_map(|service| service.ports.iter().map(|port| port.publish))
    }

    /// Returns why ports are not listened on, for people.
    pub(super) fn refused(&self) -> impl Iterator<Item = (u16, String)> {
        self.refused.iter().map(|((_, port), why)| (*port, why.clone()))
    }

    /// Returns the updates for a proxy that knows nothing. All but the last have the number 0, so
    /// that the proxy reports the last update only when it has everything.
    pub(super) fn in_full(&self) -> Vec<Update> {
        let Some(generation) = self.generation else { return Vec::new() };
        let first = Update { generation, number: 0, all: true, services: Vec::new() };
        let mut updates = vec![first];
        let mut count = 0;
        for service in self.services.values() {
            let endpoints: usize = service.ports.iter().map(|port| 1 + port.endpoints.len()).sum();
            count += 1 + endpoints;
            if count > MESSAGE_ENDPOINTS_MAX {
                count = 1 + endpoints;
                updates.push(Update { generation, number: 0, all: false, services: Vec::new() });
            }
            // There is always at least one.
            if let Some(last) = updates.last_mut() {
                last.services.push(service.clone());
            }
        }
        if let Some(last) = updates.last_mut() {
            last.number = self.number;
        }
        updates
    }
}
