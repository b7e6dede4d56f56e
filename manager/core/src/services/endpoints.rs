//! What the proxies are told: the ready replicas behind each published port.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Name};
use podmesh_protocol::limits::FRAME_BYTES_MAX;
use podmesh_protocol::service::{Health, PortEndpoints, ServiceEndpoints};
use podmesh_protocol::session::ToPeer;

use super::reconcile::is_reachable;
use crate::Core;
use crate::ids::ConnectionId;
use crate::state::Service;
use crate::step::{Effect, Step};

/// The endpoints as they were last sent.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// The number of the last update. No proxy has applied one before the first.
    update: u64,
    of: BTreeMap<Name, ServiceEndpoints>,
    /// The jobs that have been in an update since they started.
    had: BTreeSet<JobId>,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { update: 1, of: BTreeMap::new(), had: BTreeSet::new() }
    }
}

impl Endpoints {
    pub(super) fn last_update(&self) -> u64 {
        self.update
    }

    /// Returns whether a proxy may have connections to a replica.
    pub(super) fn had(&self, job: JobId) -> bool {
        self.had.contains(&job)
    }

    /// Notes that the proxies may have connections to a replica.
    pub(super) fn note(&mut self, job: JobId) {
        self.had.insert(job);
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(super) fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.had.iter()
    }

    pub(super) fn forget(&mut self, job: JobId) {
        self.had.remove(&job);
    }
}

/// A ready replica.
struct Ready<'a> {
    attempt: AttemptId,
    address: &'a str,
    listening: &'a [u16],
    reachable: bool,
}

impl Core {
    /// Sends the proxies the endpoints of a service, if they have changed.
    pub(super) fn update_endpoints(&mut self, service: &Service, out: &mut Step) {
        let name = &service.spec.name;
        let found = self.endpoints_of(service);
        let before = self.services.endpoints.of.get(name);
        if before.map_or(found.ports.is_empty(), |before| *before == found) {
            return;
        }
        let jobs = found.ports.iter().flat_map(|port| &port.endpoints);
        let jobs: Vec<JobId> = jobs.map(|(attempt, _)| attempt.task.job).collect();
        let endpoints = &mut self.services.endpoints;
        endpoints.had.extend(jobs);
        if found.ports.is_empty() {
            endpoints.of.remove(name);
        } else {
            endpoints.of.insert(name.clone(), found.clone());
        }
        self.publish(found, out);
    }

    pub(super) fn remove_endpoints(&mut self, name: &Name, out: &mut Step) {
        if self.services.endpoints.of.remove(name).is_some() {
            self.publish(ServiceEndpoints { service: name.clone(), ports: Vec::new() }, out);
        }
    }

    fn publish(&mut self, changed: ServiceEndpoints, out: &mut Step) {
        self.services.endpoints.update += 1;
        let update = self.services.endpoints.update;
        for (_, node) in self.nodes.iter() {
            let Some(session) = &node.session else { continue };
            if session.proxy.as_ref().is_none_or(|proxy| proxy.is_new) {
                continue; // It gets all of them.
            }
            let services = [changed.clone()].into();
            let (epoch, connection) = (session.epoch, session.connection);
            let message = ToPeer::Endpoints { epoch, update, all: false, services };
            out.effects.push(Effect::Send { connection, message });
        }
    }

    /// Sends all endpoints to the proxies of new sessions.
    pub(super) fn open_proxies(&mut self, out: &mut Step) {
        while let Some(ix) = self.nodes.pop_new_proxy() {
            let Some(session) = &mut self.nodes.get_mut(ix).session else { continue };
            if let Some(proxy) = &mut session.proxy {
                proxy.is_new = false;
                proxy.first = self.services.endpoints.update;
            }
            let (epoch, connection) = (session.epoch, session.connection);
            self.send_all(epoch, connection, out);
        }
    }

    fn send_all(&self, epoch: Epoch, connection: ConnectionId, out: &mut Step) {
        let endpoints = &self.services.endpoints;
        let update = endpoints.update;
        let (mut services, mut bytes, mut all) = (Vec::new(), 0, true);
        let mut send = |services: Vec<ServiceEndpoints>, all| {
            let message = ToPeer::Endpoints { epoch, update, all, services };
            out.effects.push(Effect::Send { connection, message });
        };
        for service in endpoints.of.values() {
            let size = bytes_of(service);
            if bytes + size > FRAME_BYTES_MAX / 2 && !services.is_empty() {
                send(core::mem::take(&mut services), all);
                (bytes, all) = (0, false);
            }
            bytes += size;
            services.push(service.clone());
        }
        send(services, all);
    }

    /// Returns the endpoints of a service: its healthy replicas, of all revisions, that are not on
    /// their way out. Those on nodes that do not answer are left out, unless there are no others.
    fn endpoints_of(&self, service: &Service) -> ServiceEndpoints {
        let name = &service.spec.name;
        let mut ready: Vec<Ready<'_>> = Vec::new();
        for (id, replica) in
            self.services.by_name.get(name).map(|found| &found.jobs).into_iter().flatten()
        {
            let Some(job) = self.state.jobs.get(id) else { continue };
            let Some((index, active)) = job.active.first_key_value() else { continue };
            let Some(ix) = self.nodes.by_name(&active.node) else { continue };
            let node = self.nodes.get(ix);
            let Some(address) = &node.row.address else { continue };
            let leaves = job.is_stopping() || replica.leaving.is_some();
            if !leaves && active.replica().health == Health::Healthy {
                ready.push(Ready {
                    attempt: AttemptId::new(*id, *index, active.number),
                    address,
                    listening: &active.replica().listening,
                    reachable: is_reachable(node),
                });
            }
        }
        if ready.iter().any(|replica| replica.reachable) {
            ready.retain(|replica| replica.reachable);
        }
        let published = service.spec.ports.iter().filter_map(|(port, spec)| {
            let publish = spec.publish.filter(|_| service.wanted() > 0 || !ready.is_empty())?;
            let endpoints = ready.iter().filter_map(|replica| {
                // Its ports are those of its own revision.
                let job = self.state.jobs.get(&replica.attempt.task.job)?;
                let at = super::replica_of(job)?.ports.keys().position(|own| own == port)?;
                let port = replica.listening.get(at)?;
                Some((replica.attempt, address_of(replica.address, *port)))
            });
            Some(PortEndpoints {
                port: port.clone(),
                publish,
                proxy_protocol: spec.proxy_protocol,
                endpoints: endpoints.collect(),
            })
        });
        ServiceEndpoints { service: name.clone(), ports: published.collect() }
    }
}

/// Formats an IP address and a port.
pub(super) fn address_of(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Returns the approximate size on the wire, in bytes.
fn bytes_of(service: &ServiceEndpoints) -> usize {
    let endpoints: usize = service.ports.iter().map(|port| port.endpoints.len()).sum();
    256 + 128 * service.ports.len() + 80 * endpoints
}
