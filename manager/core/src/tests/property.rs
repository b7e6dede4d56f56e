//! Random inputs in random order never break an invariant, and all jobs end once the cluster has
//! recovered.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::restore::restart_and_compare;
use super::*;
use crate::input::{QueueAction, ServiceChange};
use crate::state::Progress;
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::service::{DependsOn, Health, PortSpec, Project, ServiceSpec, UpdatePolicy};
use podmesh_protocol::spec::{DockerSpec, JobRules, VolumeMount};
use podmesh_protocol::workflow::{Condition, Dependency};

const NODES: [&str; 3] = ["a", "b", "c"];

/// A container with the volume `data`.
pub(super) fn with_volume() -> RuntimeSpec {
    RuntimeSpec::from(DockerSpec {
        image: "busybox".into(),
        volumes: vec![VolumeMount {
            volume: name("data"),
            target: "/data".into(),
            read_only: false,
        }],
        ..DockerSpec::default()
    })
}

/// One event in the cluster.
#[derive(Clone, Debug)]
enum Op {
    Submit {
        tasks: u32,
        priority: i32,
        cpu: u32,
        memory: u64,
        retries: u32,
        requeue: bool,
        gpu: bool,
        timeout: Option<u64>,
        /// At most so many failures, so many active tasks, and so many milliseconds.
        rules: [Option<u32>; 3],
        /// Whether it is in the queue `night`, whether bob submits it, and whether it is preemptible.
        owner: [bool; 3],
        /// The jobs that it waits for, with the kind of condition.
        after: Vec<(Index, u8)>,
    },
    SetQueue {
        night: bool,
        weight: Option<u32>,
        max_active: Option<u32>,
        max_active_per_caller: Option<u32>,
        dead_letter: bool,
    },
    ChangeQueue {
        night: bool,
        action: QueueAction,
    },
    Cancel(Index),
    CancelDownstream(Index),
    /// Requeues tasks that have ended: one, or all.
    Requeue {
        job: Index,
        only: Option<u32>,
        rest: bool,
    },
    /// A hello of an agent that holds some of all attempts there have been, of any node. With
    /// `stranger`, the agent has another data directory but the same name.
    Hello {
        node: usize,
        stranger: bool,
        same_agent: bool,
        same_boot: bool,
        cpu: u32,
        held: Vec<Index>,
        connection: u8,
    },
    /// Reports about any attempts. `skip` makes a gap in the numbers, `stale` uses an old epoch.
    Report {
        node: usize,
        facts: Vec<(Index, u8)>,
        skip: bool,
        stale: bool,
    },
    Beat {
        node: usize,
        change: HeartbeatChange,
    },
    Leave(usize),
    ConnectionGone(usize),
    Explain(Index),
    /// One of a few keys joins as a node.
    Join {
        node: usize,
        key: u8,
    },
    Revoke(usize),
    ForgetNode {
        node: usize,
        force: bool,
    },
    /// A service `web` or `db`, with a port or not.
    Apply {
        web: bool,
        replicas: u32,
        argument: u8,
        surge: u32,
        /// With a volume, in a project that runs together, after the other service.
        bonds: [bool; 3],
    },
    RemoveVolume {
        force: bool,
    },
    VolumeRemoved {
        node: usize,
        gone: bool,
    },
    ChangeService {
        web: bool,
        change: ServiceChange,
    },
    Schedule {
        node: usize,
        scheduling: Scheduling,
    },
    /// A maintenance of a node, so long from now on and so long, in seconds.
    Plan {
        node: usize,
        times: Option<(u64, u64)>,
    },
    /// What the proxy of a node says.
    Ack {
        node: usize,
        applied: u64,
        drained: u64,
    },
    /// Asks to remove a range of jobs, ended or not.
    ForgetJobs(Index, u64),
    /// Lost nodes and revoked keys are removed after this many milliseconds.
    Retain(u64),
    Pass(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    let beat = prop_oneof![
        Just(HeartbeatChange::Begun),
        Just(HeartbeatChange::Closed),
        Just(HeartbeatChange::Late),
        Just(HeartbeatChange::Resumed),
        Just(HeartbeatChange::LeaseExpired),
    ];
    let fact = (any::<Index>(), 0..11u8);
    let change = prop_oneof![
        (0..4u32).prop_map(ServiceChange::Scale),
        Just(ServiceChange::Restart),
        Just(ServiceChange::Stop),
        Just(ServiceChange::Start),
        Just(ServiceChange::Remove),
    ];
    let action = prop_oneof![
        Just(QueueAction::Pause),
        Just(QueueAction::Resume),
        Just(QueueAction::Remove),
    ];
    let scheduling =
        prop_oneof![Just(Scheduling::Open), Just(Scheduling::Cordoned), Just(Scheduling::Draining)];
    let few = || prop::option::weighted(0.3, 1..6u32);
    let rules = (few(), few(), prop::option::weighted(0.3, 1..300_000u32));
    let rules = rules.prop_map(|(failures, active, ms)| [failures, active, ms]);
    prop_oneof![
        4 => (
            1..30u32, -1..2i32, 1..5u32, 0..3u64, 0..3u32, any::<bool>(), any::<bool>(),
            prop::option::of(1..200_000u64),
            (rules, any::<[bool; 3]>(), prop::collection::vec((any::<Index>(), 0..4u8), 0..3)),
        ).prop_map(|(
            tasks, priority, cpu, memory, retries, requeue, gpu, timeout, (rules, owner, after)
        )| {
            Op::Submit {
                tasks, priority, cpu, memory, retries, requeue, gpu, timeout, rules, owner, after
            }
        }),
        2 => (
            prop::bool::weighted(0.8), prop::option::of(1..4u32), prop::option::of(0..6u32),
            prop::option::of(0..6u32), any::<bool>(),
        ).prop_map(|(night, weight, max_active, max_active_per_caller, dead_letter)| {
            Op::SetQueue { night, weight, max_active, max_active_per_caller, dead_letter }
        }),
        2 => (prop::bool::weighted(0.8), action)
            .prop_map(|(night, action)| Op::ChangeQueue { night, action }),
        1 => any::<Index>().prop_map(Op::Cancel),
        1 => any::<Index>().prop_map(Op::CancelDownstream),
        3 => (any::<Index>(), prop::option::of(1..9u32), any::<bool>())
            .prop_map(|(job, only, rest)| Op::Requeue { job, only, rest }),
        4 => (
            node.clone(), prop::bool::weighted(0.1), prop::bool::weighted(0.7),
            prop::bool::weighted(0.8), 1..9u32,
            prop::collection::vec(any::<Index>(), 0..12), any::<u8>(),
        ).prop_map(|(node, stranger, same_agent, same_boot, cpu, held, connection)| {
            Op::Hello { node, stranger, same_agent, same_boot, cpu, held, connection }
        }),
        8 => (
            node.clone(), prop::collection::vec(fact, 1..8),
            prop::bool::weighted(0.05), prop::bool::weighted(0.05),
        ).prop_map(|(node, facts, skip, stale)| Op::Report { node, facts, skip, stale }),
        2 => (node.clone(), beat).prop_map(|(node, change)| Op::Beat { node, change }),
        3 => (any::<bool>(), 0..4u32, 0..3u8, 0..3u32, any::<[bool; 3]>()).prop_map(
            |(web, replicas, argument, surge, bonds)| {
                Op::Apply { web, replicas, argument, surge, bonds }
            },
        ),
        1 => any::<bool>().prop_map(|force| Op::RemoveVolume { force }),
        1 => (node.clone(), any::<bool>())
            .prop_map(|(node, gone)| Op::VolumeRemoved { node, gone }),
        2 => (any::<bool>(), change).prop_map(|(web, change)| Op::ChangeService { web, change }),
        1 => (node.clone(), scheduling)
            .prop_map(|(node, scheduling)| Op::Schedule { node, scheduling }),
        1 => (node.clone(), prop::option::of((0..60u64, 1..60u64)))
            .prop_map(|(node, times)| Op::Plan { node, times }),
        2 => (node.clone(), 0..40u64, 0..40u64)
            .prop_map(|(node, applied, drained)| Op::Ack { node, applied, drained }),
        1 => node.clone().prop_map(Op::Leave),
        1 => node.clone().prop_map(Op::ConnectionGone),
        1 => (node.clone(), 0..6u8).prop_map(|(node, key)| Op::Join { node, key }),
        1 => node.clone().prop_map(Op::Revoke),
        1 => (node, any::<bool>()).prop_map(|(node, force)| Op::ForgetNode { node, force }),
        1 => any::<Index>().prop_map(Op::Explain),
        1 => (any::<Index>(), 0..4u64).prop_map(|(first, more)| Op::ForgetJobs(first, more)),
        1 => prop_oneof![Just(0), 0..600_000u64].prop_map(Op::Retain),
        4 => prop_oneof![0..100u64, 0..30_000u64, 0..600_000u64].prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

/// What the agent of a node believes.
#[derive(Debug, Default)]
struct Agent {
    instance: u64,
    id: u128,
    boot: u64,
    epoch: Option<Epoch>,
    connection: u64,
    last_report: u64,
}

struct Cluster {
    world: World,
    agents: Vec<Agent>,
    last_connection: u64,
    last_instance: u64,
}

impl Cluster {
    fn new() -> Self {
        let agents = NODES.iter().map(|_| Agent::default()).collect();
        Self { world: World::new(), agents, last_connection: 1_000, last_instance: 0 }
    }

    fn hello(&mut self, node: usize, same_agent: bool, same_boot: bool, cpu: u32) -> Hello {
        let agent = &mut self.agents[node];
        if !same_agent || agent.instance == 0 {
            self.last_instance += 1;
            agent.instance = self.last_instance;
            agent.last_report = 0;
        }
        if !same_boot {
            agent.boot += 1;
        }
        self.last_connection += 1;
        agent.connection = self.last_connection;
        let mut hello = hello_of(agent.id, NODES[node], agent.instance);
        hello.boot_id = agent.boot.to_string();
        hello.runtimes.push(RuntimeKind::Docker.into());
        hello.capacity = Resources { cpu_millis: cpu * 1_000, memory_bytes: 2 * GIB };
        if node != 1 {
            hello.address = Some(format!("10.0.0.{node}"));
        }
        if node == 0 {
            hello.labels.insert(name("gpu"), "a100".into());
        }
        hello
    }

    fn connect(&mut self, node: usize, hello: Hello, connection: u64) -> Step {
        // The agent uses the key of its node, if there is one.
        let mut valid = self.world.model.state.keys.values().filter(|row| !row.revoked);
        let caller = match valid.find(|row| row.name == hello.node) {
            Some(row) => Caller { role: Role::Agent, name: row.name.clone(), key: Some(row.key) },
            None => local(),
        };
        let id = hello.agent_id.unwrap().0.as_u128();
        let step = self.world.connect_as(caller, hello, connection);
        let welcomed = messages(&step).into_iter().find_map(|message| match message {
            ToPeer::Welcome(welcome) => Some(welcome.epoch),
            _ => None,
        });
        self.agents[node].epoch = welcomed.or(self.agents[node].epoch);
        if welcomed.is_some() {
            self.agents[node].id = id;
        }
        step
    }

    fn run(&mut self, op: Op) {
        let known = self.world.model.attempts();
        let jobs = self.world.core.state().last_job.0;
        match op {
            Op::Submit {
                tasks,
                priority,
                cpu,
                memory,
                retries,
                requeue,
                gpu,
                timeout,
                rules,
                owner: [night, is_bob, preemptible],
                after,
            } => {
                let mut spec = array(tasks);
                for (job, kind) in after {
                    let job = JobId(job.index(jobs as usize + 1) as u64);
                    let Some(array) = self.world.model.may_be_upstream(job) else { continue };
                    if spec.after.iter().any(|own| own.job == job) {
                        continue;
                    }
                    let each = spec.after.iter().any(|own| own.when == Condition::Each);
                    let when = match kind {
                        0 => Condition::Succeeded,
                        1 => Condition::Failed,
                        2 => Condition::Ended,
                        _ if each && array != spec.array => Condition::Ended,
                        _ => Condition::Each,
                    };
                    if when == Condition::Each {
                        spec.array = array;
                    }
                    spec.after.push(Dependency { job, when });
                }
                spec.priority = priority;
                spec.resources = Resources { cpu_millis: cpu * 500, memory_bytes: memory * GIB };
                spec.retry.retries = retries;
                let [max_failures, max_active, expires_ms] = rules;
                let expires_ms = expires_ms.map(u64::from);
                spec.rules = JobRules {
                    max_failures,
                    max_active,
                    expires_ms,
                    queue: night.then(|| name("night")),
                    preemptible,
                }
                .into();
                spec.run.timeout_ms = timeout;
                if tasks % 7 == 0 && !gpu {
                    spec.run.runtime = with_volume();
                }
                spec.on_lost = if requeue { OnLost::Requeue } else { OnLost::Wait };
                if gpu {
                    spec.require.insert(name("gpu"), "a100".into());
                }
                self.world.submit_as(if is_bob { "bob" } else { "ann" }, spec);
            }
            Op::SetQueue { night, weight, max_active, max_active_per_caller, dead_letter } => {
                let change = QueueChange {
                    weight,
                    max_active,
                    max_active_per_caller,
                    dead_letter: dead_letter.then(|| Box::new(spec())),
                    no_dead_letter: !dead_letter,
                };
                self.world.set_queue(if night { "night" } else { "default" }, change);
            }
            Op::ChangeQueue { night, action } => {
                self.world.change_queue(if night { "night" } else { "default" }, action);
            }
            Op::CancelDownstream(job) => {
                let job = JobId(job.index(jobs as usize + 2) as u64);
                let command = Command::CancelDownstream { job, done: 0 };
                self.world.give(Input::Command(TICKET, command));
            }
            Op::Requeue { job, only, rest } => {
                let job = job.index(jobs as usize + 2) as u64;
                if !self.world.model.is_replica(JobId(job)) {
                    self.world.requeue(job, rest, |index| only.is_none_or(|only| only == index));
                }
            }
            Op::Cancel(job) => _ = self.world.cancel(job.index(jobs as usize + 2) as u64),
            Op::Hello { node, stranger, same_agent, same_boot, cpu, held, connection } => {
                let mut hello = self.hello(node, same_agent && !stranger, same_boot, cpu);
                if stranger {
                    self.last_instance += 1;
                    hello.agent_id = Some(AgentId(Uuid::from_u128(self.last_instance.into())));
                }
                let held: BTreeSet<AttemptId> = held
                    .iter()
                    .filter(|_| !known.is_empty())
                    .map(|index| known[index.index(known.len())].0)
                    .collect();
                hello.attempts = held.into_iter().collect();
                // Sometimes on a known connection, which may belong to another node.
                let connection = if connection < 16 {
                    1_001 + u64::from(connection)
                } else {
                    self.agents[node].connection
                };
                self.agents[node].connection = connection;
                self.connect(node, hello, connection);
            }
            Op::Report { node, facts, skip, stale } => {
                let agent = &mut self.agents[node];
                let mut number = agent.last_report + u64::from(skip);
                let mut reports = Vec::new();
                for (index, fact) in facts.into_iter().filter(|_| !known.is_empty()) {
                    number += 1;
                    let attempt = known[index.index(known.len())].0;
                    let fact = match fact {
                        0 => ReportFact::Preparing("pulling".into()),
                        1 | 2 => ReportFact::Started,
                        3 => ReportFact::LogGap("some".into()),
                        4 => ReportFact::Ended(Outcome::exited(0)),
                        5 => ReportFact::Ended(Outcome::exited(1)),
                        6 => ReportFact::Ended(Outcome::new(OutcomeKind::Lost)),
                        7 => ReportFact::Listening(vec![number as u16]),
                        8 => ReportFact::Health(Health::Healthy, String::new()),
                        9 => ReportFact::Health(Health::Unhealthy, String::new()),
                        _ => ReportFact::Ended(Outcome::new(OutcomeKind::Cancelled)),
                    };
                    reports.push(Report(number, attempt, fact));
                }
                if !skip {
                    agent.last_report = number;
                }
                let epoch = agent.epoch.unwrap_or(Epoch(7));
                let epoch = if stale { Epoch(epoch.0.saturating_sub(1)) } else { epoch };
                let connection = agent.connection;
                self.world.report(connection, epoch, reports);
            }
            Op::Beat { node, change } => {
                let epoch = self.agents[node].epoch.unwrap_or(Epoch(0));
                self.world.beat(epoch, change);
            }
            Op::Leave(node) => {
                let Agent { epoch, connection: number, .. } = &self.agents[node];
                let (connection, epoch) = (ConnectionId(*number), epoch.unwrap_or(Epoch(0)));
                self.world.give(Input::AgentLeft { connection, epoch });
            }
            Op::ConnectionGone(node) => {
                let connection = ConnectionId(self.agents[node].connection);
                self.world.give(Input::ConnectionGone { connection });
            }
            Op::Explain(job) => _ = self.world.explain(job.index(jobs as usize + 2) as u64),
            Op::Join { node, key } => {
                let token = self.world.token(Role::Agent, 1);
                _ = self.world.try_join(key, token, NODES[node]);
            }
            Op::Revoke(node) => _ = self.world.revoke(PrincipalKind::Node, NODES[node]),
            Op::ForgetNode { node, force } => _ = self.world.forget(NODES[node], force),
            Op::RemoveVolume { force } => {
                let (by, volume) = (name("ann"), name("data"));
                let command = Command::RemoveVolume { by, volume, force };
                self.world.give(Input::Command(TICKET, command));
            }
            Op::VolumeRemoved { node, gone } => {
                let agent = &self.agents[node];
                let connection = ConnectionId(agent.connection);
                let epoch = agent.epoch.unwrap_or(Epoch(0));
                let removed = gone.then(|| name("data")).into_iter().collect();
                let failed = (!gone).then(|| (name("data"), "no".into())).into_iter().collect();
                self.world.give(Input::VolumesRemoved { connection, epoch, removed, failed });
            }
            Op::Apply { web, replicas, argument, surge, bonds: [volume, together, after] } => {
                let ports = [(name("http"), PortSpec { publish: Some(80), ..Default::default() })];
                let JobSpec { require, resources, mut run, .. } = spec();
                run.command.push(argument.to_string());
                if volume {
                    run.runtime = with_volume();
                }
                let member = name(if web { "web" } else { "db" });
                let other = name(if web { "db" } else { "web" });
                let project = Project { name: name("shop"), member: member.clone(), together };
                let min_healthy = (surge == 0).then_some(0);
                let spec = ServiceSpec {
                    name: member,
                    replicas,
                    require,
                    spread: web.then(|| name("gpu")),
                    place: Default::default(),
                    project: Some(project),
                    depends_on: after.then_some((other, DependsOn::Healthy)).into_iter().collect(),
                    resources,
                    ports: Arc::new(ports.into_iter().filter(|_| web).collect()),
                    health: None,
                    restart: Default::default(),
                    update: UpdatePolicy { max_surge: surge, min_healthy, ..Default::default() },
                    drain_ms: 1_000,
                    run,
                };
                if spec.validate().is_ok() {
                    let (by, spec) = (name("ann"), Arc::new(spec));
                    let apply = Command::ApplyService { by, spec, back_to: None };
                    self.world.give(Input::Command(TICKET, apply));
                }
            }
            Op::ChangeService { web, change } => {
                let (by, service) = (name("ann"), name(if web { "web" } else { "db" }));
                let command = Command::ChangeService { by, service, change };
                self.world.give(Input::Command(TICKET, command));
            }
            Op::Schedule { node, scheduling } => _ = self.schedule(node, scheduling),
            Op::Plan { node, times } => _ = self.plan(node, times),
            Op::Ack { node, applied, drained } => {
                let agent = &self.agents[node];
                let (connection, epoch) = (agent.connection, agent.epoch.unwrap_or(Epoch(0)));
                let connection = ConnectionId(connection);
                self.world.give(Input::EndpointsApplied { connection, epoch, applied, drained });
            }
            Op::ForgetJobs(first, more) => {
                let first = first.index(jobs as usize + 2) as u64;
                _ = self.world.forget_jobs(first..=first + more);
            }
            Op::Retain(keep_ms) => {
                _ = self.world.retain(self.world.now.mono_ms, keep_ms);
            }
            Op::Pass(ms) => _ = self.world.pass(ms),
            Op::Restart => restart_and_compare(&mut self.world),
        }
        self.world.drain();
    }

    fn plan(&mut self, at: usize, times: Option<(u64, u64)>) -> Vec<Step> {
        let now_ms = self.world.now.wall_ms;
        let maintenance = times.map(|(after, takes)| MaintenanceSpec {
            from_ms: now_ms + after * 1_000,
            for_ms: takes * 1_000,
            drain: DrainSpec { requeue: takes % 2 == 0, ..DrainSpec::default() },
        });
        let (by, node) = (name("ann"), name(NODES[at]));
        let command = Command::SetMaintenance { by, node, maintenance };
        let first = self.world.give(Input::Command(TICKET, command));
        std::iter::once(first).chain(self.world.drain()).collect()
    }

    fn schedule(&mut self, at: usize, scheduling: Scheduling) -> Vec<Step> {
        let (by, node) = (name("ann"), name(NODES[at]));
        let drain = match (scheduling, at) {
            (Scheduling::Draining, 1) => {
                DrainSpec { deadline_ms: Some(2_000), requeue: true, reason: None }
            }
            (Scheduling::Draining, 2) => DrainSpec { deadline_ms: Some(0), ..DrainSpec::default() },
            _ => DrainSpec::default(),
        };
        let command = Command::ScheduleNode { by, node, scheduling, drain };
        let first = self.world.give(Input::Command(TICKET, command));
        std::iter::once(first).chain(self.world.drain()).collect()
    }

    /// Reconnects every node, large enough for all jobs. Each holds most of the attempts that the
    /// core believes are on it. From then on each agent follows its instructions.
    fn recover(&mut self, codes: &[u8]) {
        let mut held: Vec<BTreeSet<AttemptId>> = vec![BTreeSet::new(); NODES.len()];
        for node in 0..NODES.len() {
            if let Some(epoch) = self.agents[node].epoch {
                self.world.beat(epoch, HeartbeatChange::Closed);
            }
            let jobs = self.world.core.state().jobs.values();
            let active = jobs.flat_map(|job| {
                job.active.iter().map(|(index, active)| {
                    (AttemptId::new(job.id, *index, active.number), &active.node)
                })
            });
            let mine = active.filter(|(_, at)| **at == name(NODES[node]));
            // One in three was lost on the way to the node.
            held[node] =
                mine.map(|(attempt, _)| attempt).filter(|at| at.task.index % 3 != 0).collect();
            let mut hello = self.hello(node, true, true, 8);
            hello.attempts = held[node].iter().copied().collect();
            let connection = self.agents[node].connection;
            let step = self.connect(node, hello, connection);
            self.obey(&step, &mut held);
            self.agents[node].last_report = welcome(&step).acked;
            let epoch = welcome(&step).epoch;
            let step = self.world.beat(epoch, HeartbeatChange::Begun);
            self.obey(&step, &mut held);
        }
        for node in 0..NODES.len() {
            let steps = self.plan(node, None).into_iter();
            for step in steps.chain(self.schedule(node, Scheduling::Open)) {
                self.obey(&step, &mut held);
            }
        }
        for queue in ["default", "night"] {
            let step = self.world.change_queue(queue, QueueAction::Resume);
            self.obey(&step, &mut held);
        }
        for service in ["web", "db"].map(name) {
            let (by, change) = (name("ann"), ServiceChange::Remove);
            let command = Command::ChangeService { by, service, change };
            let step = self.world.give(Input::Command(TICKET, command));
            self.obey(&step, &mut held);
        }
        let mut codes = codes.iter().cycle();
        for round in 0.. {
            assert!(round < 10_000, "the jobs never end: {:#?}", self.world.core.state().jobs);
            for node in 0..NODES.len() {
                let agent = &mut self.agents[node];
                let mut reports = Vec::new();
                for attempt in std::mem::take(&mut held[node]) {
                    let code = i32::from(*codes.next().unwrap());
                    agent.last_report += 1;
                    reports.push(exited(agent.last_report, attempt, code));
                }
                if let (Some(epoch), false) = (agent.epoch, reports.is_empty()) {
                    let connection = agent.connection;
                    let step = self.world.report(connection, epoch, reports);
                    let again = messages(&step).iter().any(|m| matches!(m, ToPeer::HelloAgain(_)));
                    assert!(!again, "the session is valid");
                    self.obey(&step, &mut held);
                }
            }
            for step in self.world.drain() {
                self.obey(&step, &mut held);
            }
            // What can never run is cancelled.
            let jobs = self.world.core.state().jobs.values();
            let blocked = jobs.filter(|job| {
                job.unmet().any(|(_, own)| matches!(own.progress, Progress::Blocked(_)))
            });
            let blocked: Vec<JobId> = blocked.map(|job| job.id).collect();
            for job in &blocked {
                let step = self.world.cancel(job.0);
                self.obey(&step, &mut held);
            }
            if self.world.model.ended() {
                break;
            }
            // A cancelled job may block others.
            if blocked.is_empty() && held.iter().all(BTreeSet::is_empty) {
                let next = self.world.core.next_wakeup().expect("a timer is set");
                let step = self.world.pass(next - self.world.now.mono_ms);
                self.obey(&step, &mut held);
            }
        }
        for step in self.world.drain() {
            self.obey(&step, &mut held);
        }
        assert!(self.world.core.state().jobs.is_empty());
        assert!(self.world.core.state().services.is_empty());
        for (_, node) in self.world.core.nodes.iter() {
            assert_eq!((node.used_cpu_millis, node.used_memory_bytes), (0, 0));
        }
    }

    fn obey(&self, step: &Step, held: &mut [BTreeSet<AttemptId>]) {
        for effect in &step.effects {
            let Effect::Send { connection: to, message } = effect else { continue };
            let Some(node) =
                self.agents.iter().position(|agent| ConnectionId(agent.connection) == *to)
            else {
                continue;
            };
            match message {
                ToPeer::Starts(_, attempts) => held[node].extend(attempts),
                ToPeer::Welcome(welcome) => {
                    held[node].retain(|attempt| !welcome.stop.contains(attempt));
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_events_break_no_invariant_and_all_jobs_end_after_recovery(
        ops in prop::collection::vec(op(), 1..80),
        codes in prop::collection::vec(0..2u8, 1..8),
    ) {
        let mut cluster = Cluster::new();
        for op in ops {
            cluster.run(op);
        }
        restart_and_compare(&mut cluster.world);
        cluster.recover(&codes);
    }
}
