//! Services: from what is wanted to what runs.

mod bonds;
mod claims;
mod faults;

use std::collections::VecDeque;

use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::place::Offer;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::service::{
    Health, PortSpec, ReplicaState, RestartWhen, ServiceDetail, ServiceEndpoints, ServiceSpec,
    ServiceState,
};

use super::*;
use crate::input::ServiceChange;

/// A world with agents that do what they are told: they start replicas, report their ports and
/// health, stop them, and their proxies acknowledge endpoints.
struct Mesh {
    world: World,
    agents: BTreeMap<String, Agent>,
    /// What the manager has sent, and nobody has read.
    inbox: VecDeque<(ConnectionId, ToPeer)>,
    /// The health that started replicas report, by revision.
    health: BTreeMap<u32, Health>,
    /// The labels of nodes that join, and what they offer.
    labels: BTreeMap<Name, String>,
    offers: BTreeMap<Name, Offer>,
    /// Whether proxies acknowledge endpoints, and that they are drained.
    acks: (bool, bool),
    events: Vec<EventFact>,
}

#[derive(Default)]
struct Agent {
    connection: u64,
    epoch: Option<Epoch>,
    reports: u64,
    running: Vec<AttemptId>,
    endpoints: BTreeMap<Name, ServiceEndpoints>,
}

fn web(replicas: u32) -> ServiceSpec {
    let publish = PortSpec { publish: Some(80), ..PortSpec::default() };
    let JobSpec { require, resources, run, .. } = spec();
    ServiceSpec {
        name: name("web"),
        replicas,
        require,
        spread: None,
        place: Default::default(),
        project: None,
        depends_on: BTreeMap::new(),
        resources,
        ports: Arc::new([(name("http"), publish)].into()),
        health: None,
        restart: Default::default(),
        update: Default::default(),
        drain_ms: 1_000,
        run,
    }
}

/// The same, with another command: a new revision.
fn web_with(replicas: u32, argument: &str) -> ServiceSpec {
    let mut spec = web(replicas);
    spec.run.command.push(argument.into());
    spec
}

impl Mesh {
    fn new(nodes: &[&str]) -> Self {
        let mut mesh = Self {
            world: World::new(),
            agents: BTreeMap::new(),
            inbox: VecDeque::new(),
            health: BTreeMap::new(),
            labels: BTreeMap::new(),
            offers: BTreeMap::new(),
            acks: (true, true),
            events: Vec::new(),
        };
        for (number, node) in (1..).zip(nodes) {
            mesh.join(node, number);
        }
        mesh.play();
        mesh
    }

    fn join(&mut self, node: &str, number: u64) {
        let agent = self.agents.entry(node.into()).or_default();
        *agent = Agent { connection: number, running: agent.running.clone(), ..Agent::default() };
        let held = agent.running.clone();
        let address = Some(format!("10.0.0.{number}"));
        let runtimes = vec![RuntimeKind::Process.into(), RuntimeKind::Docker.into()];
        let (labels, resources) = (self.labels.clone(), self.offers.clone());
        let hello =
            Hello { address, attempts: held, runtimes, labels, resources, ..hello(node, number) };
        self.feed(Input::AgentConnected {
            connection: connection(number),
            caller: local(),
            hello: Box::new(hello),
        });
    }

    fn feed(&mut self, input: Input) -> Vec<Result<Answer, ErrorReply>> {
        let step = self.world.give(input);
        let mut answers = replies(&step);
        let steps = std::iter::once(step).chain(self.world.drain());
        for step in steps.collect::<Vec<_>>() {
            answers.extend(replies(&step));
            self.events.extend(step.events.clone());
            for effect in step.effects {
                if let Effect::Send { connection, message } = effect {
                    self.inbox.push_back((connection, message));
                }
            }
        }
        answers
    }

    fn ask(&mut self, command: Command) -> Result<Answer, ErrorReply> {
        let mut answers = self.feed(Input::Command(TICKET, command));
        answers.remove(0)
    }

    fn apply(&mut self, spec: ServiceSpec) -> (u32, bool) {
        assert_eq!(spec.validate(), Ok(()));
        let spec = Arc::new(spec);
        match self.ask(Command::ApplyService { by: name("ann"), spec, back_to: None }) {
            Ok(Answer::ServiceChanged { revision, changed }) => (revision, changed),
            other => panic!("{other:?}"),
        }
    }

    fn change(&mut self, change: ServiceChange) -> Result<Answer, ErrorReply> {
        let (by, service) = (name("ann"), name("web"));
        self.ask(Command::ChangeService { by, service, change })
    }

    /// Lets the agents read and answer until nothing more happens.
    fn play(&mut self) {
        while let Some((to, message)) = self.inbox.pop_front() {
            let Some((node, agent)) =
                self.agents.iter_mut().find(|(_, agent)| connection(agent.connection) == to)
            else {
                continue;
            };
            let mut facts = Vec::new();
            match message {
                ToPeer::Welcome(welcome) => agent.epoch = Some(welcome.epoch),
                ToPeer::Starts(_, attempts) => {
                    for attempt in attempts {
                        if agent.running.contains(&attempt) {
                            continue;
                        }
                        agent.running.push(attempt);
                        let spec = &self.world.core.state().jobs[&attempt.task.job].spec;
                        let revision = spec.run.replica.as_ref().unwrap().revision;
                        let health = self.health.get(&revision).copied();
                        facts.push((attempt, ReportFact::Started));
                        facts.push((attempt, ReportFact::Listening(vec![20_000])));
                        let health = health.unwrap_or(Health::Healthy);
                        facts.push((attempt, ReportFact::Health(health, "said".into())));
                    }
                }
                ToPeer::Stops(_, stops) => {
                    for (attempt, _) in stops {
                        agent.running.retain(|running| *running != attempt);
                        let outcome = Outcome::new(OutcomeKind::Cancelled);
                        facts.push((attempt, ReportFact::Ended(outcome)));
                    }
                }
                ToPeer::Endpoints { epoch, update, all, services } => {
                    if all {
                        agent.endpoints.clear();
                    }
                    agent.endpoints.extend(services.into_iter().map(|of| (of.service.clone(), of)));
                    let (applied, drained) = self.acks;
                    let acked = |acks: bool| if acks { update } else { 0 };
                    let ack = Input::EndpointsApplied {
                        connection: to,
                        epoch,
                        applied: acked(applied),
                        drained: acked(drained),
                    };
                    self.feed(ack);
                    continue;
                }
                _ => {}
            }
            let node = node.clone();
            self.report(&node, facts);
        }
    }

    fn report(&mut self, node: &str, facts: Vec<(AttemptId, ReportFact)>) {
        let agent = self.agents.get_mut(node).unwrap();
        let mut reports = Vec::new();
        for (attempt, fact) in facts {
            agent.reports += 1;
            reports.push(Report(agent.reports, attempt, fact));
        }
        if !reports.is_empty() {
            let (connection, epoch) = (connection(agent.connection), agent.epoch.unwrap());
            self.feed(Input::AttemptsReported { connection, epoch, reports });
        }
    }

    /// Lets a replica end by itself.
    fn end(&mut self, node: &str, attempt: AttemptId, code: i32) {
        self.agents.get_mut(node).unwrap().running.retain(|running| *running != attempt);
        self.report(node, vec![(attempt, ReportFact::Ended(Outcome::exited(code)))]);
    }

    fn pass(&mut self, ms: u64) {
        self.world.now.mono_ms += ms;
        self.world.now.wall_ms += ms;
        self.feed(Input::Tick);
        self.play();
    }

    fn show(&self) -> ServiceDetail {
        self.world.core.show_service(self.world.now, &name("web")).unwrap()
    }

    /// Returns the state, and how many replicas are healthy and exist.
    fn status(&self) -> (ServiceState, u32, u32) {
        let view = self.show().view;
        (*view.state.known().unwrap(), view.healthy, view.existing)
    }

    /// Returns what the proxy of a node passes connections to.
    fn endpoints(&self, node: &str) -> Vec<String> {
        let of = self.agents[node].endpoints.get(&name("web"));
        let ports = of.into_iter().flat_map(|of| &of.ports);
        ports.flat_map(|port| port.endpoints.iter().map(|(_, at)| at.clone())).collect()
    }

    fn replica(&self, number: u32) -> (String, AttemptId) {
        let detail = self.show();
        let found = detail.replicas.iter().find(|replica| replica.number == number).unwrap();
        (found.node.as_ref().unwrap().to_string(), found.attempt.unwrap())
    }
}

#[test]
fn a_service_is_spread_and_its_endpoints_reach_every_node() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    assert_eq!(mesh.apply(web(3)), (1, true));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 3, 3));
    for node in ["a", "b", "c"] {
        assert_eq!(mesh.agents[node].running.len(), 1, "{node}");
        let all = ["10.0.0.1:20000", "10.0.0.2:20000", "10.0.0.3:20000"];
        let mut found = mesh.endpoints(node);
        found.sort();
        assert_eq!(found, all);
    }
    assert_eq!(mesh.apply(web(3)), (1, false), "the same again changes nothing");
    assert!(mesh.inbox.is_empty());
}

#[test]
fn an_update_never_has_fewer_healthy_or_more_replicas_than_allowed() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    mesh.apply(web(3));
    mesh.play();
    assert_eq!(mesh.apply(web_with(3, "new")), (2, true));
    while let Some(next) = mesh.inbox.pop_front() {
        mesh.inbox.push_front(next);
        let rest = mesh.inbox.split_off(1);
        mesh.play();
        mesh.inbox.extend(rest);
        let detail = mesh.show();
        let serving = |replica: &&podmesh_protocol::service::ReplicaView| {
            replica.state == ReplicaState::Healthy
        };
        assert!(detail.replicas.iter().filter(serving).count() >= 3, "{detail:?}");
        assert!(detail.view.existing <= 4, "{detail:?}");
    }
    assert_eq!(mesh.status(), (ServiceState::Healthy, 3, 3));
    assert!(mesh.show().replicas.iter().all(|replica| replica.revision == 2));
    let nodes: Vec<usize> = mesh.agents.values().map(|agent| agent.running.len()).collect();
    assert_eq!(nodes, [1, 1, 1], "still spread");
    let updated = EventFact::ServiceUpdated { service: name("web"), revision: 2 };
    assert!(mesh.events.contains(&updated));
}

#[test]
fn a_revision_that_does_not_become_healthy_is_rolled_back() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let before: Vec<_> = mesh.agents.values().flat_map(|agent| agent.running.clone()).collect();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(2, "bad"));
    mesh.play();
    assert_eq!(mesh.status().0, ServiceState::Updating);
    mesh.pass(299_000);
    assert_eq!(mesh.show().view.revision, 2);
    mesh.pass(2_000);
    assert_eq!(mesh.show().view.revision, 1);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    let after: Vec<_> = mesh.agents.values().flat_map(|agent| agent.running.clone()).collect();
    assert_eq!(before, after, "the old replicas were not touched");
    assert!(mesh.show().failed_update.unwrap().contains("0 of 2 replicas became healthy"));
    assert_eq!(mesh.apply(web_with(2, "good")), (3, true), "numbers are not used again");
    mesh.play();
    assert_eq!(mesh.show().failed_update, None);
}

#[test]
fn an_update_that_cannot_succeed_any_more_fails_at_once() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.health.insert(1, Health::Starting);
    mesh.health.insert(2, Health::Starting);
    let mut spec = web(2);
    spec.restart.when = RestartWhen::Never;
    mesh.apply(spec.clone());
    mesh.play();
    let (node, attempt) = mesh.replica(2);
    mesh.end(&node, attempt, 3);
    mesh.play();
    let why = mesh.show().failed_update.unwrap();
    assert!(why.contains("0 of 2 replicas became healthy; web.2: exit code 3"), "{why}");

    // The next one has something to go back to.
    mesh.health.clear();
    mesh.apply(web_with(2, "good"));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    mesh.health.insert(3, Health::Starting);
    mesh.apply(ServiceSpec { run: web_with(2, "bad").run, ..spec });
    mesh.play();
    let (node, attempt) = mesh.replica(1);
    mesh.end(&node, attempt, 3);
    mesh.play();
    assert_eq!((mesh.status(), mesh.show().view.revision), ((ServiceState::Healthy, 2, 2), 2));
}

#[test]
fn a_replica_that_ends_is_started_at_once_and_then_ever_later() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(web(1));
    mesh.play();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let (node, attempt) = mesh.replica(1);
        mesh.end(&node, attempt, 3);
        mesh.play();
        let replica = mesh.show().replicas.remove(0);
        pauses.push(replica.restarts_in_ms.unwrap_or(0));
        if replica.state == ReplicaState::Restarting {
            assert_eq!(replica.message.as_deref(), Some("exit code 3"));
            assert_eq!(mesh.endpoints("a"), [""; 0]);
        }
        mesh.pass(replica.restarts_in_ms.unwrap_or(0));
        assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
    }
    assert_eq!(pauses, [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    mesh.pass(600_000);
    assert_eq!(mesh.show().replicas[0].failures, 0, "ten healthy minutes");
}

#[test]
fn an_unhealthy_replica_is_out_of_the_proxies_at_once_and_replaced() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let (node, attempt) = mesh.replica(2);
    mesh.report(&node, vec![(attempt, ReportFact::Health(Health::Unhealthy, "503".into()))]);
    let first = mesh.inbox.iter().find(|(_, message)| matches!(message, ToPeer::Endpoints { .. }));
    assert!(first.is_some(), "the proxies are told first");
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_ne!(mesh.replica(2).1, attempt);
    assert_eq!(mesh.show().replicas[1].failures, 1);
}

#[test]
fn a_replica_is_stopped_only_when_every_proxy_has_let_it_go() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(1));
    mesh.play();
    let (_, attempt) = mesh.replica(1);
    mesh.acks = (false, false);
    let stopped = |mesh: &Mesh| !mesh.agents.values().any(|a| a.running.contains(&attempt));
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    assert_eq!(mesh.show().replicas[0].state, ReplicaState::Draining);
    assert_eq!(mesh.endpoints("a"), [""; 0]);
    assert!(!stopped(&mesh));

    // All have applied it: now the connections have a second to end.
    for (number, drained) in [(1, 0), (2, 0)] {
        let epoch = mesh.agents.values().find(|a| a.connection == number).unwrap().epoch.unwrap();
        let applied = 100;
        let connection = connection(number);
        mesh.feed(Input::EndpointsApplied { connection, epoch, applied, drained });
    }
    mesh.pass(999);
    assert!(!stopped(&mesh));
    mesh.pass(1);
    assert!(stopped(&mesh));
    assert_eq!(mesh.status(), (ServiceState::Stopped, 0, 0));

    mesh.change(ServiceChange::Start).unwrap();
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

#[test]
fn a_lost_node_is_not_waited_for_and_its_replicas_start_elsewhere() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let gone = mesh.agents.remove("b").unwrap();
    mesh.feed(Input::ConnectionGone { connection: connection(gone.connection) });
    mesh.feed(Input::HeartbeatChanged {
        epoch: gone.epoch.unwrap(),
        change: HeartbeatChange::Closed,
    });
    mesh.play();
    assert_eq!(mesh.endpoints("a"), ["10.0.0.1:20000"], "at once");
    assert_eq!(mesh.status().0, ServiceState::Degraded);
    let change = HeartbeatChange::LeaseExpired;
    mesh.feed(Input::HeartbeatChanged { epoch: gone.epoch.unwrap(), change });
    mesh.pass(MARGIN_MS);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!(mesh.agents["a"].running.len(), 2);
}

#[test]
fn the_last_endpoints_stay_when_no_node_answers() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(web(1));
    mesh.play();
    let (connection, epoch) = (connection(1), mesh.agents["a"].epoch.unwrap());
    mesh.feed(Input::HeartbeatChanged { epoch, change: HeartbeatChange::Closed });
    assert!(mesh.inbox.is_empty(), "nothing is better than nobody");
    _ = connection;
}

#[test]
fn a_drained_node_is_left_without_a_gap() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let scheduling = Scheduling::Draining;
    let drain = Command::ScheduleNode {
        by: name("ann"),
        node: name("a"),
        scheduling,
        drain: DrainSpec::default(),
    };
    let notes = Vec::new();
    assert_eq!(mesh.ask(drain), Ok(Answer::NodeScheduled { attempts: 1, notes }));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!(mesh.agents["a"].running, []);
    assert_eq!(mesh.node_attempts("a"), 0);
    mesh.apply(web(4));
    mesh.play();
    assert_eq!(mesh.agents["b"].running.len(), 4);
    let open = Command::ScheduleNode {
        by: name("ann"),
        node: name("a"),
        scheduling: Scheduling::Open,
        drain: DrainSpec::default(),
    };
    mesh.ask(open).unwrap();
    mesh.change(ServiceChange::Restart).unwrap();
    mesh.play();
    assert_eq!(mesh.agents["a"].running.len(), 2, "it gets replicas again");
}

#[test]
fn an_update_goes_on_after_a_restart_of_the_manager() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    mesh.apply(web_with(2, "new"));
    // The manager dies before anybody reads anything.
    mesh.inbox.clear();
    mesh.world.restart();
    for (number, node) in [(11, "a"), (12, "b")] {
        mesh.join(node, number);
    }
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert!(mesh.show().replicas.iter().all(|replica| replica.revision == 2));
}

#[test]
fn an_update_during_an_update_and_a_removal_during_it() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(2, "two"));
    mesh.play();
    assert_eq!(mesh.apply(web_with(2, "three")), (3, true));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    mesh.health.insert(4, Health::Starting);
    mesh.apply(web_with(2, "four"));
    mesh.play();
    mesh.change(ServiceChange::Remove).unwrap();
    let error = mesh.change(ServiceChange::Restart).unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    mesh.play();
    assert_eq!(mesh.world.core.show_service(mesh.world.now, &name("web")), None);
    assert!(mesh.events.contains(&EventFact::ServiceRemoved { service: name("web") }));
    assert!(mesh.world.core.state().jobs.is_empty());
}

#[test]
fn applying_the_old_spec_again_goes_back_to_its_replicas() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(2, "two"));
    mesh.play();
    assert_eq!(mesh.apply(web(2)), (1, true));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!(mesh.world.core.state().last_job, JobId(3), "nothing was started for it");
}

#[test]
fn ports_and_names_belong_to_one_service() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(web(1));
    let apply = |mesh: &mut Mesh, spec: ServiceSpec| {
        let spec = Arc::new(spec);
        mesh.ask(Command::ApplyService { by: name("ann"), spec, back_to: None }).unwrap_err()
    };
    let error = apply(&mut mesh, ServiceSpec { name: name("other"), ..web(1) });
    assert!(error.message.contains("port 80 is published by service `web`"), "{error}");
    let error =
        apply(&mut mesh, ServiceSpec { name: name("WEB"), ports: Arc::default(), ..web(1) });
    assert!(error.message.contains("differs only in case"), "{error}");
}

#[test]
fn a_thousand_replicas_wait_for_room_and_go_again() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(1_000));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Updating, 8, 1_000));
    assert!(!mesh.show().waits_for.is_empty());
    mesh.change(ServiceChange::Scale(1)).unwrap();
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

impl Mesh {
    fn node_attempts(&self, node: &str) -> u32 {
        self.world.node(node).attempts
    }
}
