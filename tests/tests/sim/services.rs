//! Users of services: what they ask for, and what must be there in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_manager_core::input::{Command, ServiceChange};
use podmesh_manager_core::state::{Service, ServicePhase};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::service::{
    Health, PortSpec, ReplicaSpec, RestartPolicy, RestartWhen, ServiceSpec, UpdatePolicy,
};
use podmesh_protocol::spec::{DockerSpec, Resources, RunSpec, RuntimeSpec};

use crate::proxy::Endpoint;
use crate::users::UserRequest;
use crate::world::{Event, World};

/// The variable in the environment of replicas that do not become healthy.
pub(crate) const SICK: &str = "SICK";

/// What users do with services.
#[derive(Debug, Default)]
pub(crate) struct ServiceUsers {
    /// The last spec that they have written of each service.
    specs: Vec<ServiceSpec>,
    /// What they have asked for, by number.
    asked: Vec<Command>,
    /// How many specs they have written.
    version: u64,
    /// The nodes that stay drained at the end.
    drained: BTreeSet<Name>,
}

fn user() -> Name {
    "user".parse().expect("a name")
}

/// Returns whether the replicas of a spec never become healthy.
fn is_sick(spec: &ServiceSpec) -> bool {
    spec.run.env.contains_key(SICK)
}

impl World {
    pub(crate) fn make_services(&mut self) {
        if self.rng.percent(30) {
            return;
        }
        for service in 0..self.rng.within(1, 3) {
            let spec = self.make_service(service);
            self.service_users.specs.push(spec);
        }
        self.after(2_000, Event::ServiceUserActs);
        for node in 0..self.nodes.len() {
            let at = self.rng.within(0, 2_000);
            self.after(at, Event::ClientConnects(node));
        }
    }

    fn make_service(&mut self, service: u64) -> ServiceSpec {
        let rng = &mut self.rng;
        let docker = rng.percent(60);
        let runtime = if docker {
            RuntimeSpec::from(DockerSpec { image: "busybox".into(), ..Default::default() })
        } else {
            RuntimeSpec::Process
        };
        let mut ports = BTreeMap::new();
        for (number, port) in ["http", "admin"].into_iter().enumerate() {
            if rng.percent(70) {
                let publish =
                    rng.percent(80).then(|| (8_000 + 10 * service) as u16 + number as u16);
                let port_spec = PortSpec {
                    container: docker.then_some(80 + number as u16),
                    publish,
                    proxy_protocol: false,
                };
                ports.insert(port.parse().expect("a name"), port_spec);
            }
        }
        let when = match rng.below(20) {
            0 => RestartWhen::Never,
            1 | 2 => RestartWhen::OnFailure,
            _ => RestartWhen::Always,
        };
        let replicas = rng.within(0, 4) as u32;
        let mut place = PlaceRules { exclusive: rng.percent(15), ..PlaceRules::default() };
        if rng.percent(30) {
            // So little that every node can have all replicas of all services.
            place.resources.insert("gpu".parse().expect("a name"), 30);
        }
        ServiceSpec {
            name: format!("svc-{service}").parse().expect("a name"),
            replicas,
            place: place.into(),
            project: None,
            depends_on: BTreeMap::new(),
            require: BTreeMap::new(),
            spread: None,
            resources: Resources { cpu_millis: 20, memory_bytes: 1 << 20 },
            ports: Arc::new(ports),
            health: None,
            restart: RestartPolicy { when, backoff_ms: 300, backoff_ms_max: 4_000 },
            update: self.make_policy(replicas),
            drain_ms: self.rng.short(10_000),
            run: RunSpec {
                runtime,
                command: vec!["serve".into()],
                env: BTreeMap::new(),
                workdir: None,
                timeout_ms: None,
                stop_grace_ms: self.rng.below(3_000),
                replica: None,
                files: BTreeMap::new(),
            },
        }
    }

    fn make_policy(&mut self, replicas: u32) -> UpdatePolicy {
        let rng = &mut self.rng;
        let max_surge = rng.below(3) as u32;
        let some = rng.below(u64::from(replicas) + 1) as u32;
        let min_healthy = match max_surge {
            0 => Some(some.min(replicas.saturating_sub(1))),
            _ => rng.percent(50).then_some(some),
        };
        let healthy_within_ms = rng.within(10_000, 40_000);
        UpdatePolicy { max_surge, min_healthy, healthy_within_ms, rollback: rng.percent(75) }
    }

    /// A user changes a service, or an admin the scheduling of a node.
    pub(crate) fn service_user_acts(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.within(100, 12_000);
        self.after(next, Event::ServiceUserActs);
        let at = self.rng.below(self.service_users.specs.len() as u64) as usize;
        let service = self.service_users.specs[at].name.clone();
        let change = match self.rng.below(100) {
            0..30 => return self.apply_changed(at, false),
            30..40 => return self.apply(at),
            40..58 => ServiceChange::Scale(self.rng.within(0, 5) as u32),
            58..66 => ServiceChange::Restart,
            66..71 => ServiceChange::Stop,
            71..79 => ServiceChange::Start,
            79..83 => ServiceChange::Remove,
            _ => return self.schedule_some_node(),
        };
        self.ask_service(Command::ChangeService { by: user(), service, change });
    }

    /// Writes another spec of a service and applies it.
    fn apply_changed(&mut self, at: usize, is_good: bool) {
        self.service_users.version += 1;
        let version = self.service_users.version.to_string();
        let replaces = is_good || self.rng.percent(75);
        let is_sick = !is_good && self.rng.percent(30);
        let mut replicas = self.service_users.specs[at].replicas;
        if !is_good && self.rng.percent(30) {
            replicas = self.rng.within(0, 4) as u32;
        }
        let (update, drain_ms) = (self.make_policy(replicas), self.rng.short(10_000));
        let sickness = ["starting", "unhealthy"][self.rng.below(2) as usize];
        let toggles = self.rng.percent(20);
        let spec = &mut self.service_users.specs[at];
        (spec.replicas, spec.update, spec.drain_ms) = (replicas, update, drain_ms);
        if replaces {
            spec.run.env.insert("VERSION".into(), version);
            spec.run.env.remove(SICK);
            if is_sick {
                spec.run.env.insert(SICK.into(), sickness.into());
            }
        }
        if toggles && let Some(port) = Arc::make_mut(&mut spec.ports).values_mut().next() {
            port.publish = if port.publish.is_some() { None } else { Some(9_000 + at as u16) };
        }
        self.apply(at);
    }

    fn apply(&mut self, at: usize) {
        let spec = self.service_users.specs[at].clone();
        spec.validate().expect("a valid spec");
        let spec = Arc::new(spec);
        self.ask_service(Command::ApplyService { by: user(), spec, back_to: None });
    }

    /// Lets the replicas of a service run beside others. Those that have their nodes for themselves go
    /// first, so that there is room.
    fn apply_beside_others(&mut self, at: usize) {
        self.service_users.version += 1;
        let version = self.service_users.version.to_string();
        let spec = &mut self.service_users.specs[at];
        spec.place.exclusive = false;
        (spec.update.max_surge, spec.update.min_healthy) = (0, Some(0));
        spec.run.env.insert("VERSION".into(), version);
        spec.run.env.remove(SICK);
        self.apply(at);
    }

    fn schedule_some_node(&mut self) {
        let at = self.rng.below(self.nodes.len() as u64) as usize;
        if self.rng.percent(25) {
            return self.plan_maintenance(at);
        }
        let scheduling = match self.rng.below(10) {
            0..3 => Scheduling::Draining,
            3 => Scheduling::Cordoned,
            _ => Scheduling::Open,
        };
        let node = self.nodes[at].name.clone();
        let mut drain = DrainSpec::default();
        if scheduling == Scheduling::Draining {
            drain.deadline_ms = self.rng.percent(60).then(|| self.rng.below(15_000));
            drain.requeue = self.rng.percent(60);
        }
        self.ask_service(Command::ScheduleNode { by: user(), node, scheduling, drain });
    }

    /// Plans a maintenance of a node soon, or takes it back.
    fn plan_maintenance(&mut self, at: usize) {
        let Some(manager) = &self.manager else { return };
        let from_ms = manager.now(self.now).wall_ms + self.rng.below(25_000);
        let for_ms = self.rng.within(1_000, 15_000);
        let deadline_ms = self.rng.percent(40).then(|| self.rng.below(15_000));
        let requeue = self.rng.percent(30);
        let drain = DrainSpec { deadline_ms, requeue, reason: None };
        let maintenance =
            self.rng.percent(85).then_some(MaintenanceSpec { from_ms, for_ms, drain });
        let node = self.nodes[at].name.clone();
        self.ask_service(Command::SetMaintenance { by: user(), node, maintenance });
    }

    pub(crate) fn ask_service(&mut self, command: Command) {
        self.service_users.asked.push(command);
        self.ask(UserRequest::Service(self.service_users.asked.len() - 1));
    }

    pub(crate) fn service_command(&self, number: usize) -> Command {
        self.service_users.asked[number].clone()
    }

    /// Decides which nodes stay drained at the end: some, if there are others.
    pub(crate) fn settle_schedules(&mut self) {
        for at in 1..self.nodes.len() {
            let drained = self.rng.percent(20) && self.nodes[at].name != self.nodes[0].name;
            if drained {
                let name = self.nodes[at].name.clone();
                self.service_users.drained.insert(name);
            }
        }
    }

    /// After the faults, users repeat what was lost: nodes are scheduled as they should be, and
    /// services that cannot become healthy get another spec.
    pub(crate) fn users_insist(&mut self) {
        if self.service_users.specs.is_empty() {
            return;
        }
        let wanted = |name: &Name| {
            let is_drained = self.service_users.drained.contains(name);
            if is_drained { Scheduling::Draining } else { Scheduling::Open }
        };
        let rows = self.decided.state.nodes.values();
        let others = rows.filter(|row| row.scheduling != wanted(&row.node));
        let others: Vec<_> = others.map(|row| row.node.clone()).collect();
        let planned = self.decided.state.nodes.values().filter(|row| row.maintenance.is_some());
        let taken_back = planned.map(|row| Command::SetMaintenance {
            by: user(),
            node: row.node.clone(),
            maintenance: None,
        });
        let taken_back: Vec<Command> = taken_back.collect();
        let commands: Vec<_> = others
            .into_iter()
            .map(|node| {
                let scheduling = wanted(&node);
                Command::ScheduleNode { by: user(), node, scheduling, drain: DrainSpec::default() }
            })
            .collect();
        let services = self.decided.state.services.values();
        let runs_alone = |service: &Service| {
            service.spec.place.exclusive && service.phase == ServicePhase::Running
        };
        let alone = services.clone().filter(|service| runs_alone(service));
        let alone: Vec<Name> = alone.map(|service| service.spec.name.clone()).collect();
        let hopeless = services.filter(|service| {
            // A replica that has failed for good counts among those that must be healthy, so that
            // others may have to stay where they should not be.
            let mut failures = service.failures.values();
            let is_stuck = failures.any(|ended| ended.after_ms.is_none() && !ended.succeeded);
            let has_update = self.decided.updates.contains_key(&service.spec.name);
            (is_sick(&service.spec) || is_stuck) && !has_update && !runs_alone(service)
        });
        let hopeless: Vec<Name> = hopeless.map(|service| service.spec.name.clone()).collect();
        let specs = &self.service_users.specs;
        let at = |name: &Name| specs.iter().position(|spec| spec.name == *name);
        let hopeless: Vec<usize> = hopeless.iter().filter_map(at).collect();
        let alone: Vec<usize> = alone.iter().filter_map(at).collect();
        for command in taken_back.into_iter().chain(commands) {
            self.ask_service(command);
        }
        for at in alone {
            self.apply_beside_others(at);
        }
        for at in hopeless {
            self.apply_changed(at, true);
        }
    }

    /// Returns whether every service is as it should be.
    pub(crate) fn services_converged(&self) -> Result<(), String> {
        let mut jobs: BTreeMap<&Name, Vec<(JobId, &ReplicaSpec)>> = BTreeMap::new();
        for (id, job) in &self.store.state.jobs {
            if let Some(replica) = job.spec.run.replica.as_deref() {
                jobs.entry(&replica.service).or_default().push((*id, replica));
            }
        }
        for (name, service) in &self.store.state.services {
            let of_service = jobs.remove(name).unwrap_or_default();
            self.service_converged(service, &of_service)
                .map_err(|why| format!("service {name}: {why}: {service:?} {of_service:?}"))?;
        }
        if !jobs.is_empty() {
            return Err(format!("replicas of services that are gone: {jobs:?}"));
        }
        let expected = self.expected_endpoints();
        for node in self.nodes.iter().filter(|node| !node.is_gone) {
            let present = if node.has_address { node.proxy.present() } else { BTreeSet::new() };
            if node.has_address && present != expected {
                let name = &node.name;
                return Err(format!("the proxy of {name} has {present:?}, not {expected:?}"));
            }
        }
        for row in self.store.state.nodes.values() {
            if row.scheduling == Scheduling::Draining && self.store.has_replicas(&row.node) {
                return Err(format!("{} is drained and has replicas", row.node));
            }
        }
        Ok(())
    }

    fn service_converged(
        &self,
        service: &Service,
        jobs: &[(JobId, &ReplicaSpec)],
    ) -> Result<(), &'static str> {
        if service.phase == ServicePhase::Removing {
            return Err("it is being removed");
        }
        let is_stopped = service.phase == ServicePhase::Stopped;
        if self.store.updates.contains_key(&service.spec.name) && !is_stopped {
            return Err("its update has not ended");
        }
        let ended = |number: &u32| {
            service.failures.get(number).is_some_and(|failures| failures.after_ms.is_none())
        };
        let wanted: Vec<u32> = (1..=service.wanted()).filter(|number| !ended(number)).collect();
        let mut numbers: Vec<u32> = jobs.iter().map(|(_, replica)| replica.number).collect();
        numbers.sort_unstable();
        let is_current = jobs.iter().all(|(_, replica)| replica.revision == service.revision);
        if numbers != wanted || !is_current {
            return Err("it has not exactly the wanted replicas");
        }
        for (id, _) in jobs {
            let active = self.store.state.jobs[id].active.values().next();
            if active.is_none_or(|active| active.replica().health != Health::Healthy) {
                return Err("not all replicas are healthy");
            }
        }
        Ok(())
    }

    /// Returns what every proxy should pass connections to: every replica that really runs.
    fn expected_endpoints(&self) -> BTreeSet<Endpoint> {
        let mut all = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| node.has_address && !node.is_gone) {
            for (attempt, here) in node.running_replicas() {
                let spec = &here.replica.spec;
                let Some(service) = self.store.state.services.get(&spec.service) else { continue };
                for ((port, _), number) in spec.ports.iter().zip(&here.replica.ports) {
                    let published =
                        service.spec.ports.get(port).is_some_and(|p| p.publish.is_some());
                    if published && here.health == Health::Healthy {
                        let at = format!("{}:{number}", here.replica.address);
                        all.insert((spec.service.clone(), port.clone(), attempt, at));
                    }
                }
            }
        }
        all
    }
}
