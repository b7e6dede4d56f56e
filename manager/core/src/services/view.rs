//! What users see of services.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ops::Bound;

use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision};
use podmesh_protocol::limits::{FRAME_BYTES_MAX, PAGE_ROWS_MAX};
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::service::{
    Health, ReplicaState, ReplicaView, ServiceDetail, ServicePlan, ServiceSpec, ServiceState,
    ServiceView,
};
use podmesh_protocol::spec::{Resources, RuntimeSpec};
use podmesh_protocol::time::Now;
use podmesh_protocol::wait::WaitReason;

use super::deadline::{Deadline, Span};
use super::endpoints::address_of;
use super::reconcile::is_reachable;
use crate::Core;
use crate::in_use::InUse;
use crate::nodes::Node;
use crate::placement::Needs;
use crate::state::{Service, ServicePhase};

/// The most reasons why replicas wait that one answer names.
const REASONS_MAX: usize = 16;
/// The approximate size of a row of a list on the wire, in bytes, without its texts.
const ROW_BYTES: usize = 256;

impl Core {
    /// Returns the services whose names sort after `after`: at most `limit`, and only as many as fit
    /// into one frame.
    pub fn list_services(&self, after: Option<&Name>, limit: u32) -> Vec<ServiceView> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        self.state
            .services
            .range::<Name, _>((start, Bound::Unbounded))
            .map(|(_, service)| self.view_of(service))
            .take_while(|view| {
                let first = bytes == 0;
                bytes += ROW_BYTES + view.runs.len() + 64 * view.published.len();
                first || bytes <= FRAME_BYTES_MAX / 2
            })
            .take(limit.min(PAGE_ROWS_MAX) as usize)
            .collect()
    }

    /// Returns everything about a service; `None` if there is no such service.
    pub fn show_service(&self, now: Now, name: &Name) -> Option<ServiceDetail> {
        let service = self.state.services.get(name)?;
        let mut replicas = self.replica_views(now, service);
        replicas.extend(self.absent_replicas(now, service));
        replicas.sort_by_key(|replica| {
            (replica.revision != service.revision, replica.number, replica.attempt)
        });
        Some(ServiceDetail {
            view: self.view_of(service),
            spec: ServiceSpec::clone(&service.spec),
            changed: self.service_changed(name),
            replicas,
            waits_for: self.service_waits(now, name),
            failed_update: service.failed_update.clone(),
            closed_ports: self.closed_ports(service),
        })
    }

    /// Returns on which nodes published ports of a service are not open.
    fn closed_ports(&self, service: &Service) -> Vec<String> {
        let mut all = Vec::new();
        for (_, node) in self.nodes.iter() {
            let session = node.session.as_ref();
            let Some(proxy) = session.and_then(|session| session.proxy.as_ref()) else { continue };
            for publish in service.spec.ports.values().filter_map(|port| port.publish) {
                if let Some(why) = proxy.closed.get(&publish)
                    && all.len() < REASONS_MAX
                {
                    let node = &node.row.node;
                    all.push(format!("port {publish} is not open on node `{node}`: {why}"));
                }
            }
        }
        all
    }

    /// Returns a number that grows with every change of a service.
    pub fn service_changed(&self, name: &Name) -> Revision {
        Revision(self.services.by_name.get(name).map_or(0, |replicas| replicas.changed))
    }

    fn view_of(&self, service: &Service) -> ServiceView {
        let spec = &service.spec;
        let replicas = self.replicas_of(&spec.name);
        let healthy = replicas.iter().filter(|replica| {
            replica.revision == service.revision
                && !replica.leaves
                && replica.health == Health::Healthy
                && replica.reachable
        });
        let healthy = healthy.count() as u32;
        let wanted = service.wanted();
        let state = match (service.phase, &service.update) {
            (ServicePhase::Removing, _) => ServiceState::Removing,
            (ServicePhase::Stopped, _) => ServiceState::Stopped,
            (ServicePhase::Running, Some(update)) if update.rolls_back => ServiceState::RollingBack,
            (ServicePhase::Running, Some(_)) => ServiceState::Updating,
            (ServicePhase::Running, None) if healthy + service.done() >= wanted => {
                ServiceState::Healthy
            }
            (ServicePhase::Running, None) => ServiceState::Degraded,
        };
        let runs = match &spec.run.runtime {
            RuntimeSpec::Docker(docker) => docker.image.clone(),
            RuntimeSpec::Process | RuntimeSpec::Noop => {
                let mut text = spec.run.command.join(" ");
                text.truncate(text.floor_char_boundary(80));
                text
            }
        };
        let published =
            spec.ports.iter().filter_map(|(name, port)| Some((name.clone(), port.publish?)));
        ServiceView {
            service: spec.name.clone(),
            state: state.into(),
            revision: service.revision,
            replicas: spec.replicas,
            healthy,
            existing: replicas.len() as u32,
            runs,
            published: published.collect(),
            project: spec.project.clone(),
        }
    }

    /// Returns the replicas whose jobs have not ended.
    fn replica_views(&self, now: Now, service: &Service) -> Vec<ReplicaView> {
        let Some(found) = self.services.by_name.get(&service.spec.name) else { return Vec::new() };
        let view = |id: &JobId, replica: &super::Replica| {
            let job = self.state.jobs.get(id)?;
            let active = job.active.first_key_value();
            let node = active
                .and_then(|(_, active)| self.nodes.by_name(&active.node))
                .map(|ix| self.nodes.get(ix));
            let status = active.map(|(_, active)| active.replica());
            let state = match active {
                _ if job.is_stopping() => ReplicaState::Stopping,
                _ if replica.leaving.is_some() => ReplicaState::Draining,
                None => ReplicaState::Queued,
                Some((_, active)) => match (active.state, active.replica().health) {
                    _ if node.is_some_and(|node| !is_reachable(node)) => ReplicaState::Unreachable,
                    (AttemptState::Assigned | AttemptState::Preparing, _) => {
                        ReplicaState::Preparing
                    }
                    (_, Health::Starting) => ReplicaState::Starting,
                    (_, Health::Healthy) => ReplicaState::Healthy,
                    (_, Health::Unhealthy) => ReplicaState::Unhealthy,
                },
            };
            let address = node.and_then(|node| node.row.address.as_deref());
            let ports = super::replica_of(job).into_iter().flat_map(|spec| spec.ports.keys());
            let listening = status.into_iter().flat_map(|status| &status.listening);
            let endpoints = ports
                .zip(listening)
                .filter_map(|(port, number)| Some((port.clone(), address_of(address?, *number))));
            let failures = service.failures.get(&replica.number);
            let failures = failures.filter(|_| replica.revision == service.revision);
            let said = status.map(|status| &status.message).filter(|said| !said.is_empty());
            Some(ReplicaView {
                number: replica.number,
                revision: replica.revision,
                state: state.into(),
                attempt: active.map(|(index, active)| AttemptId::new(*id, *index, active.number)),
                node: active.map(|(_, active)| active.node.clone()),
                endpoints: endpoints.collect(),
                message: said
                    .or(replica.said.as_ref())
                    .or_else(|| failures.map(|ended| &ended.message))
                    .cloned(),
                failures: failures.map_or(0, |ended| ended.count),
                restarts_in_ms: self.queued_for(now, *id),
            })
        };
        found.jobs.iter().filter_map(|(id, replica)| view(id, replica)).collect()
    }

    /// Returns the milliseconds until the next attempt of a replica that its last node could not
    /// start.
    fn queued_for(&self, now: Now, id: JobId) -> Option<u64> {
        let (due, _) = self.dispatch.get(&id)?.waiting.first()?;
        Some(due.saturating_sub(now.mono_ms))
    }

    /// Returns the wanted replicas that have no job.
    fn absent_replicas(&self, now: Now, service: &Service) -> Vec<ReplicaView> {
        let found = self.services.by_name.get(&service.spec.name);
        let present: BTreeSet<u32> = found
            .into_iter()
            .flat_map(|found| found.jobs.values())
            .filter(|replica| replica.revision == service.revision && replica.leaving.is_none())
            .map(|replica| replica.number)
            .collect();
        let absent = (1..=service.wanted()).filter(|number| !present.contains(number));
        let waits = self.waits_for_services(service).into_iter().next();
        let view = |number| {
            let failures = service.failures.get(&number);
            let left = failures.map(|ended| {
                let known = found.and_then(|found| found.pauses.get(&number)).copied();
                let pause = Deadline::of(Span::of_pause(ended)?, known, now);
                Some(pause.at.saturating_sub(now.mono_ms))
            });
            let state = match left {
                Some(None) => ReplicaState::Ended,
                Some(Some(left)) if left > 0 => ReplicaState::Restarting,
                _ => ReplicaState::Waiting,
            };
            ReplicaView {
                number,
                revision: service.revision,
                state: state.into(),
                attempt: None,
                node: None,
                endpoints: BTreeMap::new(),
                message: failures.map(|ended| ended.message.clone()).or_else(|| waits.clone()),
                failures: failures.map_or(0, |ended| ended.count),
                restarts_in_ms: left.flatten().filter(|left| *left > 0),
            }
        };
        absent.map(view).collect()
    }

    /// Returns why replicas of a service wait for a node.
    fn service_waits(&self, now: Now, name: &Name) -> Vec<String> {
        let Some(found) = self.services.by_name.get(name) else { return Vec::new() };
        let service = self.state.services.get(name);
        let mut reasons = service.map(|found| self.waits_for_services(found)).unwrap_or_default();
        reasons.truncate(REASONS_MAX);
        for id in found.jobs.keys() {
            for reason in self.explain(now, *id) {
                let reason = reason.to_string();
                if reasons.len() < REASONS_MAX && !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        reasons
    }

    /// Returns what applying a spec would do now.
    pub fn plan_service(&self, spec: &Arc<ServiceSpec>) -> ServicePlan {
        let before = self.state.services.get(&spec.name);
        let replaces = before.is_none_or(|before| {
            before.phase != ServicePhase::Running || spec.replaces(&before.spec)
        });
        let more = before.map_or(0, |before| before.wanted());
        let new = if replaces { spec.replicas } else { spec.replicas.saturating_sub(more) };
        let (placements, waiting, lacks) = self.try_placing(spec, new);
        let waits_for = if waiting == 0 { Vec::new() } else { self.unplaceable(spec, lacks) };
        let before = before.map(|before| Box::new(ServiceSpec::clone(&before.spec)));
        ServicePlan { before, replaces, placements, waiting, waits_for }
    }

    /// Spreads replicas over the nodes as placement would. Returns how many each node gets, how many
    /// have no room, and what they lack besides cores and memory.
    fn try_placing(
        &self,
        spec: &ServiceSpec,
        replicas: u32,
    ) -> (BTreeMap<Name, u32>, u32, Option<WaitReason>) {
        let needs = self.needs_of_service(spec);
        let suited = self.nodes.iter().filter(|(_, node)| needs.suit(&node.row));
        let mut rooms: Vec<Room<'_>> = suited.filter_map(|(_, node)| Room::of(node)).collect();
        let mut waiting = 0;
        for _ in 0..replicas {
            let mut zones: BTreeMap<Option<&String>, u32> = BTreeMap::new();
            for room in &rooms {
                *zones.entry(zone_of(spec, room.node)).or_default() += room.placed;
            }
            let fitting = rooms.iter_mut().filter(|room| room.fits(spec));
            let best = fitting.min_by_key(|room| {
                let zone = spec.spread.as_ref().map_or(0, |_| zones[&zone_of(spec, room.node)]);
                let preferred = needs.preferred(&room.node.row);
                let used = u32::MAX - room.free.cpu_millis;
                (Reverse(preferred), zone, room.placed, used, room.node.rank)
            });
            match best {
                Some(room) => room.take(spec),
                None => waiting += 1,
            }
        }
        let lacks = (waiting > 0).then(|| lacking(spec, &rooms)).flatten();
        let placed = rooms.into_iter().filter(|room| room.placed > 0);
        (placed.map(|room| (room.node.row.node.clone(), room.placed)).collect(), waiting, lacks)
    }

    fn needs_of_service(&self, spec: &ServiceSpec) -> Needs {
        let bonds = self.bonds_of_service(spec);
        Needs::of_service(spec, bonds.into_iter().map(|(node, _)| node).collect())
    }

    fn unplaceable(&self, spec: &ServiceSpec, lacks: Option<WaitReason>) -> Vec<String> {
        let bonds = self.bonds_of_service(spec).into_iter();
        let bonds = bonds.map(|(node, to)| WaitReason::Bound { node, to }.to_string());
        bonds.chain([self.unplaceable_there(spec, lacks)]).collect()
    }

    fn unplaceable_there(&self, spec: &ServiceSpec, lacks: Option<WaitReason>) -> String {
        let needs = self.needs_of_service(spec);
        if self.nodes.len() == 0 {
            return "there are no nodes".into();
        }
        if !self.nodes.iter().any(|(_, node)| needs.suit(&node.row)) {
            return self.explain_unsuited(&needs).to_string();
        }
        match lacks {
            Some(reason) => reason.to_string(),
            None => "the nodes that suit have no room for more, or get no new work".into(),
        }
    }
}

/// What a node has left while replicas are placed by way of trial.
struct Room<'a> {
    node: &'a Node,
    free: Resources,
    in_use: InUse,
    placed: u32,
}

impl<'a> Room<'a> {
    /// Returns what a node has now; `None` if nothing can be placed there.
    fn of(node: &'a Node) -> Option<Self> {
        Some(Self { node, free: node.room()?, in_use: node.in_use.clone(), placed: 0 })
    }

    /// Returns whether there are the cores and memory of one more replica.
    fn has_size(&self, spec: &ServiceSpec) -> bool {
        spec.resources.fits(&self.free)
    }

    /// Returns whether there is room for one more replica.
    fn fits(&self, spec: &ServiceSpec) -> bool {
        let is_empty = self.placed == 0 && self.node.attempts.is_empty();
        self.has_size(spec)
            && (!spec.place.exclusive || is_empty)
            && self.in_use.has_room(&self.node.row.resources, &spec.place)
    }

    fn take(&mut self, spec: &ServiceSpec) {
        if let Some(claims) = self.in_use.claims(&self.node.row.resources, &spec.place) {
            self.in_use.take(&claims);
        }
        self.free.cpu_millis -= spec.resources.cpu_millis;
        self.free.memory_bytes -= spec.resources.memory_bytes;
        self.placed += 1;
    }
}

/// Returns what one more replica lacks on the nodes that have the cores and memory for it.
fn lacking(spec: &ServiceSpec, rooms: &[Room<'_>]) -> Option<WaitReason> {
    let with_size: Vec<&Room<'_>> = rooms.iter().filter(|room| room.has_size(spec)).collect();
    let (first, nodes) = (with_size.first()?, with_size.len());
    Some(match first.in_use.lacking(&first.node.row.resources, &spec.place) {
        Some((resource, wanted_millis)) => {
            WaitReason::InUse { resource: resource.clone(), wanted_millis, nodes }
        }
        None => WaitReason::NotEmpty { nodes },
    })
}

/// Returns the value of the label over which a service is spread.
fn zone_of<'a>(spec: &ServiceSpec, node: &'a Node) -> Option<&'a String> {
    spec.spread.as_ref().and_then(|label| node.row.label(label))
}
