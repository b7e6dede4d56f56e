//! What must hold for services after every decision, and for every connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_manager_core::state::{Change, Drain, NodeRow, Service, State};
use podmesh_manager_core::step::{Effect, Step};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AgentId, AttemptId, JobId, Name};
use podmesh_protocol::limits::PROXY_ACK_MS_MAX;
use podmesh_protocol::node::{NodeState, NodeView};
use podmesh_protocol::service::{Health, ReplicaState};

use crate::store::Store;
use crate::world::World;

/// What is remembered of decisions.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Since when replicas are on their way out, in the present run of the manager.
    drains_since: BTreeMap<JobId, u64>,
    /// The replicas that served after the last decision, by service.
    served: BTreeMap<Name, BTreeSet<JobId>>,
    /// The replicas that the manager has decided to stop.
    stopped: BTreeMap<AttemptId, Stopped>,
    /// The replicas that users have cancelled, past the service.
    cancelled: BTreeSet<JobId>,
    /// The replicas that an agent was told to stop for good.
    terminated: BTreeSet<AttemptId>,
    /// When nodes were last lost or unknown, or their names belonged to other machines.
    lost_until: BTreeMap<Name, u64>,
    /// The drains that have a deadline, and since when they are known.
    drains: BTreeMap<Name, (Arc<Drain>, u64)>,
}

/// A decision to stop a replica.
#[derive(Debug)]
struct Stopped {
    drain_ms: u64,
    /// When the manager no longer waits for proxies. Connections then have `drain_ms` left.
    given_up_at: u64,
    /// The machines whose proxies may still use it: lost ones, and those that the manager gave up.
    excused: BTreeSet<usize>,
}

/// What is checked before a step changes the state.
#[derive(Debug, Default)]
pub(crate) struct Before {
    services: BTreeMap<Name, std::sync::Arc<Service>>,
    /// The nodes, with the machine that each name belongs to.
    owners: BTreeMap<Name, Option<AgentId>>,
}

fn service_of(store: &Store, job: JobId) -> Option<&Name> {
    store.jobs.get(&job)?.spec.run.replica.as_ref().map(|replica| &replica.service)
}

/// Returns how many replicas may exist, and how many must stay healthy.
fn limits(service: &Service) -> (u32, u32) {
    let wanted = service.wanted();
    let least = service.spec.min_healthy().min(wanted.saturating_sub(service.done()));
    (wanted + service.spec.update.max_surge, least)
}

/// Returns whether a node answers, as the manager sees it. After its start the manager assumes that
/// all do.
fn is_reachable(nodes: &[NodeView], name: &Name) -> bool {
    let view = nodes.iter().find(|view| view.node == *name);
    view.is_some_and(|view| match view.state.known() {
        Some(NodeState::Alive) => true,
        Some(NodeState::Suspect) => view.seen_ms_ago.is_none(),
        Some(NodeState::Lost) | None => false,
    })
}

impl World {
    /// A manager has started: it does not know which replicas were on their way out.
    pub(crate) fn judge_starts(&mut self) {
        self.judge.drains_since.clear();
        self.judge.served.clear();
        let names: Vec<Name> = self.decided.state.services.keys().cloned().collect();
        let nodes = self.node_views();
        for name in names {
            let served = self.serving(&name, &nodes);
            self.judge.served.insert(name, served);
        }
    }

    pub(crate) fn judge_before(&self) -> Before {
        let State { services, nodes, .. } = &self.decided.state;
        let owners = nodes.iter().map(|(name, row)| (name.clone(), row.agent_id));
        Before { services: services.clone(), owners: owners.collect() }
    }

    /// A user cancels a job.
    pub(crate) fn judge_cancel(&mut self, job: JobId) {
        self.judge.cancelled.insert(job);
    }

    /// Checks what a step has decided about services.
    pub(crate) fn judge_services(&mut self, before: &Before, step: &Step) {
        self.note_losses(before, step);
        let touched: BTreeSet<Name> = step
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::ServiceTouched(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let stops = step.changes.iter().filter_map(|change| match change {
            Change::JobClosed(job, _) => service_of(&self.decided, *job).map(|_| *job),
            _ => None,
        });
        let stops: Vec<JobId> = stops.collect();
        if !touched.is_empty() || !stops.is_empty() {
            let nodes = self.node_views();
            for name in &touched {
                self.note_drains(name);
                self.judge_replicas(before, name, step, &nodes);
            }
            for job in stops {
                self.judge_stop(job, before, &nodes);
            }
        }
        for effect in &step.effects {
            self.judge_message(effect);
        }
    }

    fn note_losses(&mut self, before: &Before, step: &Step) {
        let now = self.now;
        for event in &step.events {
            match event {
                EventFact::NodeLost { node } => {
                    self.judge.lost_until.insert(node.clone(), u64::MAX);
                }
                EventFact::NodeConnected { node, .. } => {
                    let lost = self.judge.lost_until.get_mut(node).filter(|at| **at == u64::MAX);
                    let owner = self.decided.state.nodes.get(node).map(|row| row.agent_id);
                    if lost.is_some() || before.owners.get(node).copied() != owner {
                        self.judge.lost_until.insert(node.clone(), now);
                    }
                }
                _ => {}
            }
        }
    }

    /// Checks that at the deadline of a drain every task that the node has is told to stop. A manager
    /// that was away gives the whole time again at most.
    pub(crate) fn judge_drains(&mut self) {
        let Some(manager) = &self.manager else { return };
        let state = &self.decided.state;
        self.judge.drains.retain(|node, (drain, _)| {
            state.nodes.get(node).is_some_and(|row| row.drain.as_ref() == Some(drain))
        });
        for (name, row) in &state.nodes {
            let Some(drain) = &row.drain else { continue };
            let Some(after_ms) = drain.spec.stops_after_ms() else { continue };
            let (_, since) =
                self.judge.drains.entry(name.clone()).or_insert_with(|| (drain.clone(), self.now));
            if self.now <= (*since).max(manager.started_at) + after_ms {
                continue;
            }
            for job in state.jobs.values().filter(|job| job.spec.run.replica.is_none()) {
                let mut active = job.active.values();
                let runs_on = active.any(|active| active.node == *name && active.stop.is_none());
                let runs_on = runs_on && !job.is_stopping();
                assert!(!runs_on, "job {} goes on after the deadline of {name}", job.id);
            }
        }
    }

    fn note_drains(&mut self, service: &Name) {
        let drains = self.draining(service);
        let now = self.now;
        for job in drains {
            self.judge.drains_since.entry(job).or_insert(now);
        }
    }

    /// Checks how many replicas exist and serve.
    fn judge_replicas(&mut self, before: &Before, name: &Name, step: &Step, nodes: &[NodeView]) {
        let state = &self.decided.state;
        // A step can begin an update and go back. What any of its specs allows is allowed.
        let saved = step.changes.iter().filter_map(|change| match change {
            Change::ServiceSaved { service, saved } if service == name => Some(saved),
            _ => None,
        });
        let limits = before.services.get(name).into_iter().chain(saved).map(|of| limits(of));
        let (most, least): (Vec<u32>, Vec<u32>) = limits.unzip();
        let most = most.into_iter().max().unwrap_or(0);
        let least = least.into_iter().min().unwrap_or(0);
        let started = step.changes.iter().any(|change| match change {
            Change::JobInserted { job, .. } => service_of(&self.decided, *job) == Some(name),
            _ => false,
        });
        if started {
            let exist =
                state.jobs.keys().filter(|job| service_of(&self.decided, **job) == Some(name));
            let exist = exist.count() as u32;
            assert!(exist <= most, "service {name} has {exist} replicas, {most} are allowed");
        }
        let serves = self.serving(name, nodes);
        let served = self.judge.served.insert(name.clone(), serves.clone()).unwrap_or_default();
        // At the deadline of a drain replicas leave without a successor.
        let stops = |row: &NodeRow| {
            row.drain.as_ref().is_some_and(|drain| drain.spec.stops_after_ms().is_some())
        };
        // The drain may have begun and ended in this step.
        let has_deadline = |node: &Name| {
            self.decided.state.nodes.get(node).is_some_and(|row| stops(row))
                || step.changes.iter().any(|change| {
                    matches!(change, Change::NodeSaved(row) if row.node == *node && stops(row))
                })
        };
        let left_freely = served.difference(&serves).filter(|job| {
            let Some(job) = self.decided.state.jobs.get(job) else { return false };
            let Some(active) = job.active.values().next() else { return false };
            active.replica().health == Health::Healthy
                && is_reachable(nodes, &active.node)
                && !has_deadline(&active.node)
                && !self.judge.cancelled.contains(&job.id)
        });
        let (left, serve) = (left_freely.count(), serves.len() as u32);
        assert!(
            left == 0 || serve >= least,
            "service {name} lets go of {left} healthy replicas: {serve} still serve, not {least}"
        );
    }

    /// Checks that nobody uses a replica that the manager has decided to stop, and that its
    /// connections have had their time.
    fn judge_stop(&mut self, job: JobId, before: &Before, nodes: &[NodeView]) {
        if self.judge.cancelled.contains(&job) {
            return;
        }
        let Some(name) = service_of(&self.decided, job) else { return };
        let Some(state) = self.decided.state.jobs.get(&job) else { return };
        let Some((index, active)) = state.active.first_key_value() else { return };
        let attempt = AttemptId::new(job, *index, active.number);
        let services = &self.decided.state.services;
        let service = services.get(name).or_else(|| before.services.get(name));
        let drain_ms = service.map_or(0, |service| service.spec.drain_ms);
        let since = self.judge.drains_since.get(&job).copied().unwrap_or(self.now);
        let given_up_at = since + PROXY_ACK_MS_MAX;
        let mut excused = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let row = self.decided.state.nodes.get(&node.name);
            let is_owner = row.is_some_and(|row| row.agent_id == Some(node.agent_id()));
            let view = nodes.iter().find(|view| view.node == node.name);
            let is_lost = view.is_none_or(|view| view.state.known() == Some(&NodeState::Lost));
            let was_lost = self.judge.lost_until.get(&node.name).is_some_and(|at| *at >= since);
            if !is_owner || is_lost || was_lost {
                excused.insert(at);
                continue;
            }
            let uses = node.proxy.present().iter().any(|endpoint| endpoint.2 == attempt);
            let given_up = self.now >= given_up_at;
            assert!(
                !uses || given_up,
                "{attempt} is stopped, and the proxy of {} uses it",
                node.name
            );
            // What it has not read yet may still have the attempt.
            if uses || (given_up && node.proxy.is_late(self.now)) {
                excused.insert(at);
            }
        }
        self.judge.stopped.insert(attempt, Stopped { drain_ms, given_up_at, excused });
        self.judge_cut(attempt);
    }

    /// Checks that the connections to a replica have had the time to end.
    fn judge_cut(&self, attempt: AttemptId) {
        let Some(stopped) = self.judge.stopped.get(&attempt) else { return };
        for (at, node) in self.nodes.iter().enumerate() {
            if stopped.excused.contains(&at) {
                continue;
            }
            for (of, removed_at) in node.proxy.clients() {
                let due = removed_at.map(|at| at.min(stopped.given_up_at) + stopped.drain_ms);
                assert!(
                    of != attempt || due.is_some_and(|due| due <= self.now),
                    "{attempt} is stopped, and has connections on {} until {due:?}",
                    node.name
                );
            }
        }
    }

    /// Checks that the endpoints in a message may be used.
    fn judge_message(&self, effect: &Effect) {
        use podmesh_protocol::session::ToPeer;

        let Effect::Send { message: ToPeer::Endpoints { services, .. }, .. } = effect else {
            return;
        };
        let ports = services.iter().flat_map(|service| &service.ports);
        for (attempt, _) in ports.flat_map(|port| &port.endpoints) {
            let job = self.decided.state.jobs.get(&attempt.task.job);
            let goes_on = job.is_some_and(|job| !job.is_stopping());
            assert!(
                goes_on && self.decided.is_live(*attempt),
                "{attempt} is an endpoint, and has ended or is being stopped"
            );
        }
    }

    /// An agent stops an attempt.
    pub(crate) fn judge_term(&mut self, attempt: AttemptId) {
        let job = self.decided.state.jobs.get(&attempt.task.job);
        if job.is_none_or(|job| job.is_stopping()) {
            self.judge.terminated.insert(attempt);
            self.judge_cut(attempt);
        }
    }

    /// Checks that a proxy may pass a new connection to an attempt.
    pub(crate) fn judge_connection(&self, node: usize, attempt: AttemptId) {
        if !self.judge.terminated.contains(&attempt) {
            return;
        }
        let stopped = self.judge.stopped.get(&attempt);
        let allowed = stopped.is_none_or(|stopped| stopped.excused.contains(&node));
        assert!(allowed, "node {node} passes a connection to {attempt}, which is being stopped");
    }

    /// Returns the replicas of a service that serve: healthy, reachable, and not on their way out.
    fn serving(&self, service: &Name, nodes: &[NodeView]) -> BTreeSet<JobId> {
        let drains = self.draining(service);
        let jobs = self.decided.state.jobs.values().filter(|job| {
            let of = job.spec.run.replica.as_ref().is_some_and(|spec| spec.service == *service);
            let active = job.active.values().next();
            let is_healthy = active.is_some_and(|active| {
                active.replica().health == Health::Healthy && is_reachable(nodes, &active.node)
            });
            of && is_healthy && !job.is_stopping() && !drains.contains(&job.id)
        });
        jobs.map(|job| job.id).collect()
    }

    /// Returns the replicas of a service that are on their way out.
    fn draining(&self, service: &Name) -> BTreeSet<JobId> {
        let Some(detail) = self.service_detail(service) else { return BTreeSet::new() };
        let replicas = detail.replicas.iter().filter(|replica| {
            replica.state == ReplicaState::Draining || replica.state == ReplicaState::Stopping
        });
        replicas.filter_map(|replica| Some(replica.attempt?.task.job)).collect()
    }
}
