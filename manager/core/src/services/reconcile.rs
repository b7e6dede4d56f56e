//! Brings services to what is wanted, one step at a time.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::limits::{PRIORITY_MAX, RESTART_RESET_MS};
use podmesh_protocol::node::{NodeState, Scheduling};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::service::{Health, ReplicaSpec, RestartPolicy, RestartWhen, RevisionState};
use podmesh_protocol::spec::{ArrayRange, JobSpec, OnLost, RetryPolicy, RunSpec};
use podmesh_protocol::time::{Millis, Now};

use super::deadline::{Deadline, Span};
use super::plan::{Plan, Replica, Situation, plan};
use super::{label, replica_of};
use crate::Core;
use crate::faults::planted;
use crate::nodes::Node;
use crate::state::Change;
use crate::state::{Failures, Job, ReplicaStatus, Service, ServicePhase, Update};
use crate::step::Step;

impl Core {
    /// Reconciles the services that something has happened to, up to the step's limit.
    pub(crate) fn reconcile_services(&mut self, now: Now, out: &mut Step) {
        while let Some(ix) = self.nodes.pop_changed() {
            self.node_touched(ix);
        }
        self.open_proxies(out);
        while self.has_room(out) {
            let Some(name) = self.services.dirty.pop_first() else { return };
            self.reconcile(now, &name, out);
        }
    }

    fn reconcile(&mut self, now: Now, name: &Name, out: &mut Step) {
        let Some(before) = self.state.services.get(name).cloned() else { return };
        self.services.touched.insert(name.clone());
        let mut service = Service::clone(&before);
        let mut wake = Wake::default();
        self.forgive(now, name, &mut service, &mut wake);
        let found = self.plan_of(now, name, &service, &mut wake);
        let is_first = self.services.jobs_of(name).next().is_none() && service.failures.is_empty();
        for job in &found.retire {
            self.retire(now, *job, &mut service);
        }
        let mut all_started = true;
        for number in &found.start {
            if !self.has_room(out) {
                all_started = false;
                break;
            }
            self.start_replica(now, &service, *number, out);
        }
        if let Some(update) = &mut service.update
            && is_first
            && !found.start.is_empty()
        {
            // It may have waited for other services until now.
            update.progress_wall_ms = now.wall_ms;
        }
        self.follow_update(now, &mut service, &found, &mut wake, out);
        if service != *before {
            self.save_service(service.clone(), out);
        }
        self.update_endpoints(&service, out);
        self.see_off(now, &service, &mut wake, out);
        self.services.set_timer(name, wake.at);
        self.mark_dependents(name);
        let is_empty = self.services.by_name.get(name).is_none_or(|found| found.jobs.is_empty());
        self.services.dirty.remove(name);
        if !all_started || service.revision != before.revision {
            self.services.mark(name);
        }
        if service.phase == ServicePhase::Removing && is_empty {
            self.remove_service(name, out);
        }
    }

    /// Forgets the earlier ends of replicas that have been healthy for long.
    fn forgive(&mut self, now: Now, name: &Name, service: &mut Service, wake: &mut Wake) {
        let Some(replicas) = self.services.by_name.get_mut(name) else { return };
        for (id, replica) in &mut replicas.jobs {
            let status = self.state.jobs.get(id).and_then(|job| status_of(job));
            let is_healthy = status.is_some_and(|status| status.health == Health::Healthy);
            replica.healthy_ms = match replica.healthy_ms {
                _ if !is_healthy => None,
                None => Some(now.mono_ms),
                since => since,
            };
            let Some(since) = replica.healthy_ms else { continue };
            if replica.revision == service.revision
                && service.failures.contains_key(&replica.number)
            {
                let due = since.saturating_add(RESTART_RESET_MS);
                if due <= now.mono_ms {
                    service.failures.remove(&replica.number);
                } else {
                    wake.by(due);
                }
            }
        }
    }

    /// Returns the numbers of which no replica may start now.
    fn paused(
        &mut self,
        now: Now,
        name: &Name,
        service: &Service,
        wake: &mut Wake,
    ) -> BTreeSet<u32> {
        let mut paused = BTreeSet::new();
        let Some(replicas) = self.services.by_name.get_mut(name) else { return paused };
        let known = core::mem::take(&mut replicas.pauses);
        for (number, failures) in &service.failures {
            let Some(span) = Span::of_pause(failures) else {
                paused.insert(*number);
                continue;
            };
            let pause = Deadline::of(span, known.get(number).copied(), now);
            replicas.pauses.insert(*number, pause);
            if pause.at > now.mono_ms {
                wake.by(pause.at);
                paused.insert(*number);
            }
        }
        if !self.waits_for_services(service).is_empty() {
            paused.extend(1..=service.wanted());
        }
        paused
    }

    fn plan_of(&mut self, now: Now, name: &Name, service: &Service, wake: &mut Wake) -> Plan {
        let paused = self.paused(now, name, service, wake);
        let replicas = self.replicas_of(name);
        let (wanted, done) = (service.wanted(), service.done());
        let least = service.spec.min_healthy().min(wanted.saturating_sub(done));
        let any_surge = planted!(self, SurgeNotLimited);
        let none_healthy = planted!(self, MinHealthyIgnored);
        let mut found = plan(&Situation {
            wanted,
            revision: service.revision,
            max_surge: if any_surge { u32::MAX } else { service.spec.max_surge() },
            min_healthy: if none_healthy { 0 } else { least },
            replicas: &replicas,
            paused: &paused,
        });
        let others = replicas.len() != found.healthy as usize;
        found.is_reached |= !others && found.healthy + done == wanted;
        found
    }

    /// Returns the replicas of a service as the plan sees them.
    pub(super) fn replicas_of(&self, name: &Name) -> Vec<Replica> {
        let Some(replicas) = self.services.by_name.get(name) else { return Vec::new() };
        let mut peers: BTreeMap<&Name, u32> = BTreeMap::new();
        for id in replicas.jobs.keys() {
            if let Some(active) = self.state.jobs.get(id).and_then(|job| job.active.values().next())
            {
                *peers.entry(&active.node).or_default() += 1;
            }
        }
        let spec = self.state.services.get(name).map(|service| &service.spec);
        let bonds = spec.map(|spec| self.bonds_of_service(spec)).unwrap_or_default();
        let view = |id: &JobId, replica: &super::Replica| {
            let job = self.state.jobs.get(id)?;
            let active = job.active.values().next();
            let is_away = |node: &Name| bonds.iter().any(|(bound, _)| bound != node);
            let node = active
                .and_then(|active| self.nodes.by_name(&active.node))
                .map(|ix| self.nodes.get(ix));
            Some(Replica {
                job: *id,
                number: replica.number,
                revision: replica.revision,
                health: active.map_or(Health::Starting, |active| active.replica().health),
                reachable: node.is_some_and(is_reachable) || planted!(self, LostNodeServes),
                leaves: job.is_stopping() || replica.leaving.is_some(),
                unwanted_node: node.is_some_and(|node| {
                    node.row.scheduling == Scheduling::Draining || is_away(&node.row.node)
                }),
                peers: active.and_then(|active| peers.get(&active.node).copied()).unwrap_or(0),
            })
        };
        replicas.jobs.iter().filter_map(|(id, replica)| view(id, replica)).collect()
    }

    /// Starts a replica: submits its job.
    fn start_replica(&mut self, now: Now, service: &Service, number: u32, out: &mut Step) {
        let spec = Arc::new(job_spec(service, number));
        self.insert_own_job(now, None, spec, service.by.clone(), out);
    }

    /// Begins to take a replica out. That an unhealthy one must go counts as its end.
    fn retire(&mut self, now: Now, id: JobId, service: &mut Service) {
        let status =
            self.state.jobs.get(&id).and_then(|job| status_of(job)).cloned().unwrap_or_default();
        let name = service.spec.name.clone();
        self.mark_project(&name);
        let Some(replicas) = self.services.by_name.get_mut(&name) else { return };
        let Some(replica) = replicas.jobs.get_mut(&id) else { return };
        replica.leaving = Some(Box::default());
        if status.health == Health::Unhealthy && replica.revision == service.revision {
            let message = format!("it was unhealthy: {}", status.message);
            fail(now, service, replica.number, false, message, RestartWhen::Always);
        }
    }

    /// Notes the end of a replica's last attempt, unless its job was cancelled.
    pub(crate) fn replica_ended(
        &mut self,
        now: Now,
        spec: &ReplicaSpec,
        outcome: &Outcome,
        out: &mut Step,
    ) {
        let Some(before) = self.state.services.get(&spec.service) else { return };
        if before.revision != spec.revision {
            return;
        }
        let mut service = Service::clone(before);
        let when = service.spec.restart.when;
        let succeeded = outcome.kind == OutcomeKind::Succeeded;
        fail(now, &mut service, spec.number, succeeded, told(outcome), when);
        self.save_service(service, out);
    }

    /// Ends an update that is done, and goes back if it failed.
    fn follow_update(
        &mut self,
        now: Now,
        service: &mut Service,
        found: &Plan,
        wake: &mut Wake,
        out: &mut Step,
    ) {
        let name = service.spec.name.clone();
        let waits = !self.waits_for_services(service).is_empty();
        let Some(update) = &mut service.update else { return };
        let revision = service.revision;
        if service.phase != ServicePhase::Running {
            return;
        }
        if found.is_reached {
            out.events.push(EventFact::ServiceUpdated { service: name.clone(), revision });
            let (state, message) = (RevisionState::Reached, None);
            let change = Change::RevisionEnded { service: name, revision, state, message };
            self.state.record(out, change);
            service.update = None;
            return;
        }
        if waits || service.failed_update.is_some() && !update.rolls_back {
            return;
        }
        if found.healthy > update.healthy {
            (update.healthy, update.progress_wall_ms) = (found.healthy, now.wall_ms);
        }
        let Some(span) = Span::of_update(service) else { return };
        let Some(replicas) = self.services.by_name.get_mut(&name) else { return };
        let deadline = Deadline::of(span, replicas.progress, now);
        replicas.progress = Some(deadline);
        if deadline.at > now.mono_ms && !service.has_failed() {
            return wake.by(deadline.at);
        }
        let message = self.why_not_healthy(service, found);
        let Some(update) = &mut service.update else { return };
        let rolled_back = update.rolls_back;
        let back = update.from.take().filter(|_| service.spec.update.rollback);
        out.events.push(EventFact::ServiceUpdateFailed {
            service: name.clone(),
            revision,
            back_to: back.as_ref().map(|(revision, _)| *revision),
            message: message.clone(),
        });
        if rolled_back {
            // Those who wait for the end are told. The replicas are still brought to this revision.
            service.update = None;
            let why = service.failed_update.get_or_insert_default();
            why.push_str(&format!("; then revision {revision}: {message}"));
            return;
        }
        let (state, said) = (RevisionState::Failed, Some(message.clone()));
        let change = Change::RevisionEnded { service: name, revision, state, message: said };
        self.state.record(out, change);
        service.failed_update = Some(format!("revision {revision}: {message}"));
        if let Some((revision, spec)) = back {
            service.revision = revision;
            service.spec = spec;
            service.failures.clear();
            service.update = Some(Update {
                from: None,
                rolls_back: true,
                healthy: 0,
                progress_wall_ms: now.wall_ms,
            });
        }
    }

    fn why_not_healthy(&self, service: &Service, found: &Plan) -> String {
        let (healthy, wanted) = (found.healthy, service.wanted());
        let mut message = format!("{healthy} of {wanted} replicas became healthy");
        let name = &service.spec.name;
        let ended = service.failures.iter().map(|(number, ended)| (*number, &ended.message));
        let waiting = self.services.by_name.get(name).into_iter().flat_map(|found| {
            let all = found.jobs.values();
            all.filter(|replica| replica.revision == service.revision)
                .filter_map(|replica| Some((replica.number, replica.said.as_ref()?)))
        });
        if let Some((number, why)) = ended.chain(waiting).next() {
            message += &format!("; {}: {why}", label(name, number));
        }
        message
    }

    fn remove_service(&mut self, name: &Name, out: &mut Step) {
        out.events.push(EventFact::ServiceRemoved { service: name.clone() });
        let spec = self.state.services.get(name).map(|service| &*service.spec);
        self.bonds.change_service(spec, None);
        self.services.dependents.change(spec, None);
        self.state.record(out, Change::ServiceRemoved(name.clone()));
        self.remove_endpoints(name, out);
        self.services.set_timer(name, None);
        self.services.by_name.remove(name);
        self.services.dirty.remove(name);
        self.services.draining.remove(name);
    }

    /// Handles what an agent says about a replica. Returns the change, if it is one.
    pub(crate) fn replica_reported(
        &mut self,
        attempt: AttemptId,
        change: impl FnOnce(&mut ReplicaStatus),
        out: &mut Step,
    ) -> Option<(String, ReplicaStatus)> {
        let job = self.state.jobs.get(&attempt.task.job)?;
        let spec = replica_of(job)?;
        let label = label(&spec.service, spec.number);
        let before = job.active.get(&attempt.task.index)?.replica();
        let mut status = before.clone();
        change(&mut status);
        if status == *before {
            return None;
        }
        self.state.record(out, Change::ReplicaChanged { attempt, status: status.clone() });
        self.replica_touched(attempt.task.job);
        Some((label, status))
    }
}

/// The earliest time at which a service must be looked at again.
#[derive(Debug, Default)]
pub(super) struct Wake {
    at: Option<Millis>,
}

impl Wake {
    pub(super) fn by(&mut self, at: Millis) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }
}

/// Returns whether connections may be passed to a node. A node that has not been heard of since the
/// manager started counts as reachable until its lease ends: its replicas served until now.
pub(super) fn is_reachable(node: &Node) -> bool {
    match node.state {
        NodeState::Alive => true,
        NodeState::Suspect => node.seen_ms.is_none(),
        NodeState::Lost => false,
    }
}

fn status_of(job: &Job) -> Option<&ReplicaStatus> {
    job.active.values().next().map(|active| active.replica())
}

/// Notes that a replica has ended, and when the next one with its number starts.
fn fail(
    now: Now,
    service: &mut Service,
    number: u32,
    succeeded: bool,
    message: String,
    when: RestartWhen,
) {
    let count = service.failures.get(&number).map_or(0, |before| before.count).saturating_add(1);
    let again = match when {
        RestartWhen::Always => true,
        RestartWhen::OnFailure => !succeeded,
        RestartWhen::Never => false,
    };
    let after_ms = again.then(|| pause_ms(&service.spec.restart, count));
    let ended_wall_ms = now.wall_ms;
    service
        .failures
        .insert(number, Failures { count, ended_wall_ms, after_ms, succeeded, message });
}

/// Returns the pause before the next replica after `count` have ended in a row.
fn pause_ms(policy: &RestartPolicy, count: u32) -> u64 {
    match count.checked_sub(2) {
        None => 0,
        Some(doublings) => {
            let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
            policy.backoff_ms.saturating_mul(factor).min(policy.backoff_ms_max)
        }
    }
}

fn told(outcome: &Outcome) -> String {
    let mut text: String = match (outcome.exit_code, outcome.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it ended".into(),
    };
    if outcome.oom_killed {
        text += ", out of memory";
    }
    if let Some(message) = &outcome.message {
        text += &format!(": {message}");
    }
    text
}

/// Returns the spec of the job that is a replica.
fn job_spec(service: &Service, number: u32) -> JobSpec {
    let spec = &service.spec;
    let replica = ReplicaSpec {
        service: spec.name.clone(),
        revision: service.revision,
        number,
        spread: spec.spread.clone(),
        ports: spec.ports.clone(),
        health: spec.health.clone(),
    };
    JobSpec {
        // The longest names have no room for the number.
        name: label(&spec.name, number).parse().unwrap_or_else(|_| spec.name.clone()),
        array: ArrayRange::default(),
        // What should always run goes before what should run once.
        priority: PRIORITY_MAX,
        require: spec.require.clone(),
        resources: spec.resources,
        retry: RetryPolicy::default(),
        on_lost: OnLost::Requeue,
        rules: Default::default(),
        place: spec.place.clone(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: RunSpec { replica: Some(Box::new(replica)), ..spec.run.clone() },
    }
}
