//! Services: replicas are started, replaced and stopped until they are what is wanted.
//!
//! A replica is a job of one task, so that placement, fencing, logs and events are those of tasks.
//! The reconciler compares what is wanted with the jobs that exist after every fact about one of
//! them. It keeps no plan: after a restart it goes on from the state.
//!
//! - `commands`: what users ask for
//! - `dependencies`: services that wait for others
//! - [`plan`]: the decision, as a pure function
//! - `reconcile`: carrying it out, updates and restarts
//! - `leaving`: replicas on their way out: out of the proxies, drained, stopped
//! - `endpoints`: what the proxies are told
//! - `deadline`: their times, which hold when the wall clock jumps
//! - `view`: what users see

mod commands;
mod deadline;
mod dependencies;
mod endpoints;
mod leaving;
mod plan;
mod reconcile;
mod view;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;

use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::service::{Health, ReplicaSpec};
use podmesh_protocol::time::{Millis, Now};

use self::deadline::{Deadline, Span};
use self::dependencies::Dependents;
use self::endpoints::Endpoints;
use self::leaving::Leaving;
use crate::Core;
use crate::ids::NodeIx;
use crate::state::Job;
use crate::step::{Effect, Step};

/// What is derived from the state about services.
#[derive(Debug, Default)]
pub(crate) struct Services {
    by_name: BTreeMap<Name, Replicas>,
    /// The services to reconcile.
    dirty: BTreeSet<Name>,
    /// The services that have changed in this step.
    touched: BTreeSet<Name>,
    /// The services with replicas that wait for the proxies.
    draining: BTreeSet<Name>,
    endpoints: Endpoints,
    dependents: Dependents,
    /// When services must be reconciled, the earliest first.
    timers: BTreeSet<(Millis, Name)>,
}

/// The replicas of one service whose jobs have not ended.
#[derive(Debug, Default)]
struct Replicas {
    /// Boxed, because most services have few: a node of the map has room for eleven values.
    jobs: BTreeMap<JobId, Box<Replica>>,
    /// When the service is reconciled again. `timers` holds the same time.
    timer: Option<Millis>,
    /// When replicas of the numbers with failures may start again.
    pauses: BTreeMap<u32, Deadline>,
    /// When the update fails if no more replicas are healthy.
    progress: Option<Deadline>,
    /// Grows with every change of the service.
    changed: u64,
}

#[derive(Debug)]
struct Replica {
    number: u32,
    revision: u32,
    /// Why its last attempt did not start, or how it was lost.
    said: Option<String>,
    /// Since when it has been healthy. After a restart of the manager: since the restart.
    healthy_ms: Option<Millis>,
    leaving: Option<Box<Leaving>>,
}

impl Services {
    /// Adds the replica that a job is.
    fn insert(&mut self, id: JobId, spec: &ReplicaSpec) {
        let replica = Replica {
            number: spec.number,
            revision: spec.revision,
            said: None,
            healthy_ms: None,
            leaving: None,
        };
        self.by_name.entry(spec.service.clone()).or_default().jobs.insert(id, Box::new(replica));
        self.dirty.insert(spec.service.clone());
    }

    /// Returns whether the last step has left services to reconcile.
    pub(crate) fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn next_wakeup(&self) -> Option<Millis> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Marks the services whose time has come.
    pub(crate) fn run_timers(&mut self, now: Now) {
        while let Some((_, name)) =
            self.timers.first().filter(|(at, _)| *at <= now.mono_ms).cloned()
        {
            self.set_timer(&name, None);
            self.dirty.insert(name);
        }
    }

    fn set_timer(&mut self, name: &Name, at: Option<Millis>) {
        let Some(replicas) = self.by_name.get_mut(name) else { return };
        if replicas.timer != at {
            if let Some(before) = replicas.timer {
                self.timers.remove(&(before, name.clone()));
            }
            self.timers.extend(at.map(|at| (at, name.clone())));
            replicas.timer = at;
        }
    }

    pub(crate) fn mark(&mut self, service: &Name) {
        self.dirty.insert(service.clone());
    }

    /// Returns the jobs of a service that have not ended.
    pub(crate) fn jobs_of(&self, service: &Name) -> impl Iterator<Item = JobId> {
        self.by_name.get(service).into_iter().flat_map(|found| found.jobs.keys().copied())
    }

    /// Returns those of them that are not on their way out.
    pub(crate) fn staying(&self, service: &Name) -> impl Iterator<Item = JobId> {
        let jobs = self.by_name.get(service).into_iter().flat_map(|found| &found.jobs);
        jobs.filter(|(_, replica)| replica.leaving.is_none()).map(|(id, _)| *id)
    }
}

/// Returns what a job is to its service, if it is a replica.
pub(crate) fn replica_of(job: &Job) -> Option<&ReplicaSpec> {
    job.spec.run.replica.as_deref()
}

/// Returns how people call a replica: `web.3`.
fn label(service: &Name, number: u32) -> String {
    format!("{service}.{number}")
}

impl Core {
    /// Notes a job of the state, if it is a replica.
    pub(crate) fn replica_added(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(spec) = replica_of(job) else { return };
        self.services.insert(id, spec);
        self.mark_project_of(id);
        let Some(job) = self.state.jobs.get(&id) else { return };
        let mut status = job.active.values().map(|active| active.replica());
        if status.any(|status| status.health != Health::Starting) {
            // After a restart of the manager the proxies may still have it.
            self.services.endpoints.note(id);
        }
    }

    /// Notes the services of the state after a start. Their jobs follow.
    pub(crate) fn restore_services(&mut self, now: Now) {
        // Before an update fails, the agents must have had the time to say what happened meanwhile.
        let heard_at = now.mono_ms.saturating_add(self.config.lease_ms);
        for (name, service) in &self.state.services {
            let changed = self.state.last_revision.0;
            self.bonds.change_service(None, Some(&service.spec));
            self.services.dependents.change(None, Some(&service.spec));
            let progress = Span::of_update(service)
                .map(|span| Deadline::of(span, None, now).not_before(heard_at));
            let replicas = Replicas { changed, progress, ..Replicas::default() };
            self.services.by_name.insert(name.clone(), replicas);
            self.services.dirty.insert(name.clone());
        }
    }

    /// Notes the end of an attempt, if it is of a replica. If no other attempt follows, the replica
    /// has ended; unless its job was cancelled, it should have run on.
    pub(crate) fn note_replica_end(
        &mut self,
        now: Now,
        id: JobId,
        outcome: &Outcome,
        is_last: bool,
        out: &mut Step,
    ) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(spec) = job.spec.run.replica.clone() else { return };
        self.services.mark(&spec.service);
        let was_cancelled = job.is_stopping();
        self.mark_project(&spec.service);
        if is_last && !was_cancelled {
            return self.replica_ended(now, &spec, outcome, out);
        }
        let replicas = self.services.by_name.get_mut(&spec.service);
        if let Some(replica) = replicas.and_then(|replicas| replicas.jobs.get_mut(&id)) {
            replica.said = outcome.message.clone();
        }
    }

    /// Notes that a job has ended, if it was a replica.
    pub(crate) fn replica_gone(&mut self, id: JobId, spec: &ReplicaSpec) {
        if let Some(replicas) = self.services.by_name.get_mut(&spec.service) {
            replicas.jobs.remove(&id);
        }
        self.services.endpoints.forget(id);
        self.services.mark(&spec.service);
        self.mark_project(&spec.service);
    }

    /// Notes that something about a job has changed that its service depends on.
    pub(crate) fn replica_touched(&mut self, id: JobId) {
        if let Some(spec) = self.state.jobs.get(&id).and_then(|job| replica_of(job)) {
            self.services.dirty.insert(spec.service.clone());
        }
    }

    /// Notes that a node has changed: whether it answers, or whether it is being drained.
    fn node_touched(&mut self, ix: NodeIx) {
        let node = self.nodes.get(ix);
        let specs = node.attempts.keys().filter_map(|task| {
            replica_of(self.state.jobs.get(&task.job)?).map(|spec| &spec.service)
        });
        let services: BTreeSet<Name> = specs.cloned().collect();
        services.iter().for_each(|service| self.mark_project(service));
        self.services.dirty.extend(services);
        // One node less may have to acknowledge.
        self.services.dirty.extend(self.services.draining.iter().cloned());
    }

    /// Tells those who wait which services have changed.
    pub(crate) fn flush_services(&mut self, out: &mut Step) {
        while let Some(name) = self.services.touched.pop_first() {
            if let Some(replicas) = self.services.by_name.get_mut(&name) {
                replicas.changed = (replicas.changed + 1).max(self.state.last_revision.0);
            }
            out.effects.push(Effect::ServiceTouched(name));
        }
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Core {
    pub(crate) fn check_services(&self) {
        let mut jobs = BTreeMap::<&Name, BTreeSet<JobId>>::new();
        for (id, job) in &self.state.jobs {
            if let Some(spec) = replica_of(job) {
                assert!(self.state.services.contains_key(&spec.service), "job {id}: its service");
                jobs.entry(&spec.service).or_default().insert(*id);
            }
        }
        let services = &self.services;
        assert!(services.by_name.keys().eq(self.state.services.keys()), "every service");
        assert!(services.touched.is_empty(), "every change was told");
        let mut timers = BTreeSet::new();
        for (name, replicas) in &services.by_name {
            let found: BTreeSet<JobId> = replicas.jobs.keys().copied().collect();
            assert_eq!(found, jobs.remove(name).unwrap_or_default(), "service {name}: its jobs");
            timers.extend(replicas.timer.map(|at| (at, name.clone())));
        }
        assert_eq!(services.timers, timers, "the timers of services");
        let of_service = |job: &JobId| self.state.jobs.contains_key(job);
        assert!(services.endpoints.jobs().all(of_service), "the jobs that proxies have");
        for (_, node) in self.nodes.iter() {
            let mut replicas = BTreeMap::new();
            for spec in
                node.attempts.keys().filter_map(|task| replica_of(&self.state.jobs[&task.job]))
            {
                *replicas.entry((spec.service.clone(), spec.revision)).or_insert(0) += 1;
            }
            assert_eq!(node.replicas, replicas, "node {}: its replicas", node.row.node);
        }
    }
}
