//! Replicas on their way out: first out of every proxy, then the end of their connections, then
//! stopped.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::ids::{Epoch, JobId};
use podmesh_protocol::limits::{PORTS_CLOSED_MAX, PROXY_ACK_MS_MAX};
use podmesh_protocol::node::NodeState;
use podmesh_protocol::time::{Millis, Now};

use super::reconcile::Wake;
use super::replica_of;
use crate::Core;
use crate::faults::planted;
use crate::ids::ConnectionId;
use crate::reports::cut;
use crate::state::Service;
use crate::step::Step;

/// How far a replica is on its way out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaving {
    /// The update of the endpoints that no longer has it, and when it was sent.
    left: Option<(u64, Millis)>,
    /// When the last proxy acknowledged it, or nobody waited for one any longer.
    acknowledged_ms: Option<Millis>,
}

impl Core {
    /// Notes what the proxy of a node has applied.
    pub(crate) fn on_endpoints_applied(
        &mut self,
        connection: ConnectionId,
        epoch: Epoch,
        applied: u64,
        drained: u64,
    ) {
        let Some(ix) = self.nodes.by_session(connection, epoch) else { return };
        if let Some(session) = &mut self.nodes.get_mut(ix).session
            && let Some(proxy) = &mut session.proxy
        {
            // For a proxy, the first update of a session has removed whatever was removed before.
            // As long as that is not drained, nothing is.
            proxy.drained = if drained < proxy.first { 0 } else { drained };
            proxy.applied = applied;
            self.services.dirty.extend(self.services.draining.iter().cloned());
        }
    }

    /// Notes which published ports are not open on a node.
    pub(crate) fn on_ports_closed(
        &mut self,
        connection: ConnectionId,
        epoch: Epoch,
        closed: BTreeMap<u16, String>,
    ) {
        let Some(ix) = self.nodes.by_session(connection, epoch) else { return };
        let Some(session) = &mut self.nodes.get_mut(ix).session else { return };
        let Some(proxy) = &mut session.proxy else { return };
        let bounded = closed.into_iter().take(PORTS_CLOSED_MAX);
        let closed: BTreeMap<u16, String> = bounded.map(|(port, why)| (port, cut(why))).collect();
        let before = core::mem::replace(&mut proxy.closed, closed.clone());
        let changed = |port: &u16| before.get(port) != closed.get(port);
        for (name, service) in &self.state.services {
            let mut ports = service.spec.ports.values().filter_map(|port| port.publish);
            if ports.any(|port| changed(&port)) {
                self.services.touched.insert(name.clone());
            }
        }
    }

    /// Lets a replica leave, whether there is another one in its place or not.
    pub(crate) fn retire_replica(&mut self, id: JobId) {
        let Some(spec) = self.state.jobs.get(&id).and_then(|job| replica_of(job)) else { return };
        let service = spec.service.clone();
        self.mark_project(&service);
        let replicas = self.services.by_name.get_mut(&service);
        if let Some(replica) = replicas.and_then(|replicas| replicas.jobs.get_mut(&id)) {
            replica.leaving.get_or_insert_default();
            self.services.mark(&service);
        }
    }

    /// Stops the replicas of a service that no proxy uses any more.
    pub(super) fn see_off(&mut self, now: Now, service: &Service, wake: &mut Wake, out: &mut Step) {
        let name = &service.spec.name;
        let update = self.services.endpoints.last_update();
        let (applied, drained) = self.acknowledged();
        let mut stop = Vec::new();
        let mut waits = false;
        let any_proxy = planted!(self, ProxiesNotAwaited);
        let any_client = planted!(self, DrainNotAwaited);
        let Some(replicas) = self.services.by_name.get_mut(name) else { return };
        for (id, replica) in &mut replicas.jobs {
            let Some(leaving) = &mut replica.leaving else { continue };
            if self.state.jobs.get(id).is_none_or(|job| job.is_stopping()) {
                continue;
            }
            if !self.services.endpoints.had(*id) || any_proxy {
                stop.push(*id);
                continue;
            }
            let (left, sent_ms) = *leaving.left.get_or_insert((update, now.mono_ms));
            if leaving.acknowledged_ms.is_none() {
                let due = sent_ms.saturating_add(PROXY_ACK_MS_MAX);
                if applied < left && now.mono_ms < due {
                    waits = true;
                    wake.by(due);
                    continue;
                }
                leaving.acknowledged_ms = Some(now.mono_ms);
            }
            let since = leaving.acknowledged_ms.unwrap_or(now.mono_ms);
            let due = since.saturating_add(service.spec.drain_ms);
            if drained < left && now.mono_ms < due && !any_client {
                waits = true;
                wake.by(due);
                continue;
            }
            stop.push(*id);
        }
        if waits {
            self.services.draining.insert(name.clone());
        } else {
            self.services.draining.remove(name);
        }
        for id in stop {
            self.cancel_job(id, out);
        }
    }

    /// Returns the last update that the proxies of all nodes have applied, and the last one that they
    /// have drained. Only lost nodes are not waited for.
    fn acknowledged(&self) -> (u64, u64) {
        let nodes = self.nodes.iter().map(|(_, node)| node);
        let with_proxy =
            nodes.filter(|node| node.row.address.is_some() && node.state != NodeState::Lost);
        let said = with_proxy.map(|node| {
            let proxy = node.session.as_ref().and_then(|session| session.proxy.as_ref());
            proxy.map_or((0, 0), |proxy| (proxy.applied, proxy.drained))
        });
        said.fold((u64::MAX, u64::MAX), |least, said| (least.0.min(said.0), least.1.min(said.1)))
    }
}
