//! Random inputs in random order never break an invariant, and all ends well once the mesh heals.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::restore::restart_and_compare;
use super::*;
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::report::OutcomeKind;

const NODES: [&str; 3] = ["a", "b", "c"];

/// One thing that happens.
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
    },
    Cancel(Index),
    /// An agent with some of the attempts that its node was ever given, and maybe one of another's.
    Hello {
        node: usize,
        same_agent: bool,
        same_boot: bool,
        cpu: u32,
        held: Vec<Index>,
        peer: u8,
    },
    /// Reports of attempts, whatever they are; `skip` makes a gap, `stale` an old epoch.
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
    PeerGone(usize),
    Explain(Index),
    /// One of some keys joins as a node.
    Join {
        node: usize,
        key: u8,
    },
    Revoke(usize),
    Pass(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    let change = prop_oneof![
        Just(HeartbeatChange::Begun),
        Just(HeartbeatChange::Closed),
        Just(HeartbeatChange::Late),
        Just(HeartbeatChange::Resumed),
        Just(HeartbeatChange::LeaseExpired),
    ];
    let fact = (any::<Index>(), 0..8u8);
    prop_oneof![
        4 => (1..30u32, -1..2i32, 1..5u32, 0..3u64, 0..3u32, any::<bool>(), any::<bool>()).prop_map(
            |(tasks, priority, cpu, memory, retries, requeue, gpu)| {
                Op::Submit { tasks, priority, cpu, memory, retries, requeue, gpu }
            }
        ),
        1 => any::<Index>().prop_map(Op::Cancel),
        4 => (
            node.clone(), prop::bool::weighted(0.7), prop::bool::weighted(0.8), 1..9u32,
            prop::collection::vec(any::<Index>(), 0..12), any::<u8>(),
        ).prop_map(|(node, same_agent, same_boot, cpu, held, peer)| {
            Op::Hello { node, same_agent, same_boot, cpu, held, peer }
        }),
        8 => (
            node.clone(), prop::collection::vec(fact, 1..8),
            prop::bool::weighted(0.05), prop::bool::weighted(0.05),
        ).prop_map(|(node, facts, skip, stale)| Op::Report { node, facts, skip, stale }),
        2 => (node.clone(), change).prop_map(|(node, change)| Op::Beat { node, change }),
        1 => node.clone().prop_map(Op::Leave),
        1 => node.clone().prop_map(Op::PeerGone),
        1 => (node.clone(), 0..6u8).prop_map(|(node, key)| Op::Join { node, key }),
        1 => node.prop_map(Op::Revoke),
        1 => any::<Index>().prop_map(Op::Explain),
        3 => prop_oneof![0..100u64, 0..30_000u64].prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

/// What a node's agent believes.
#[derive(Debug, Default)]
struct Agent {
    instance: u64,
    boot: u64,
    epoch: Option<Epoch>,
    peer: u64,
    last_report: u64,
}

struct Mesh {
    world: World,
    agents: Vec<Agent>,
    last_peer: u64,
    last_instance: u64,
}

impl Mesh {
    fn new() -> Self {
        let agents = NODES.iter().map(|_| Agent::default()).collect();
        Self { world: World::new(), agents, last_peer: 1_000, last_instance: 0 }
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
        self.last_peer += 1;
        agent.peer = self.last_peer;
        let mut hello = hello(NODES[node], agent.instance);
        hello.boot_id = agent.boot.to_string();
        hello.capacity = Resources { cpu_millis: cpu * 1_000, memory_bytes: 2 * GIB };
        if node == 0 {
            hello.labels.insert(name("gpu"), "a100".into());
        }
        hello
    }

    fn connect(&mut self, node: usize, hello: Hello, peer: u64) -> Step {
        // With its key, where it has one.
        let mut live = self.world.model.keys.values().filter(|row| !row.revoked);
        let caller = match live.find(|row| row.name == hello.node) {
            Some(row) => Caller { role: Role::Agent, name: row.name.clone(), key: Some(row.key) },
            None => local(),
        };
        let step = self.world.connect_as(caller, hello, peer);
        let welcomed = messages(&step).into_iter().find_map(|message| match message {
            ToPeer::Welcome(welcome) => Some(welcome.epoch),
            _ => None,
        });
        self.agents[node].epoch = welcomed.or(self.agents[node].epoch);
        step
    }

    fn run(&mut self, op: Op) {
        let known = self.world.model.attempts();
        let jobs = self.world.core.last_job.0;
        match op {
            Op::Submit { tasks, priority, cpu, memory, retries, requeue, gpu } => {
                let mut spec = array(tasks);
                spec.priority = priority;
                spec.resources = Resources { cpu_millis: cpu * 500, memory_bytes: memory * GIB };
                spec.retry.retries = retries;
                spec.on_lost = if requeue { OnLost::Requeue } else { OnLost::Wait };
                if gpu {
                    spec.require.insert(name("gpu"), "a100".into());
                }
                self.world.submit(spec);
            }
            Op::Cancel(job) => _ = self.world.cancel(job.index(jobs as usize + 2) as u64),
            Op::Hello { node, same_agent, same_boot, cpu, held, peer } => {
                let mut hello = self.hello(node, same_agent, same_boot, cpu);
                let held: BTreeSet<AttemptId> = held
                    .iter()
                    .filter(|_| !known.is_empty())
                    .map(|index| known[index.index(known.len())].0)
                    .collect();
                hello.attempts = held.into_iter().collect();
                // Now and then on a connection that is known, maybe as another node's.
                let peer = if peer < 16 { 1_001 + u64::from(peer) } else { self.agents[node].peer };
                self.agents[node].peer = peer;
                self.connect(node, hello, peer);
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
                        _ => ReportFact::Ended(Outcome::new(OutcomeKind::Cancelled)),
                    };
                    reports.push(Report(number, attempt, fact));
                }
                if !skip {
                    agent.last_report = number;
                }
                let epoch = agent.epoch.unwrap_or(Epoch(7));
                let epoch = if stale { Epoch(epoch.0.saturating_sub(1)) } else { epoch };
                let peer = agent.peer;
                self.world.report(peer, epoch, reports);
            }
            Op::Beat { node, change } => {
                let epoch = self.agents[node].epoch.unwrap_or(Epoch(0));
                self.world.beat(epoch, change);
            }
            Op::Leave(node) => {
                let Agent { epoch, peer: number, .. } = &self.agents[node];
                let (peer, epoch) = (peer(*number), epoch.unwrap_or(Epoch(0)));
                self.world.give(Input::AgentLeft { peer, epoch });
            }
            Op::PeerGone(node) => {
                let peer = peer(self.agents[node].peer);
                self.world.give(Input::PeerGone { peer });
            }
            Op::Explain(job) => _ = self.world.explain(job.index(jobs as usize + 2) as u64),
            Op::Join { node, key } => {
                let token = self.world.token(Role::Agent, 1);
                _ = self.world.try_join(key, token, NODES[node]);
            }
            Op::Revoke(node) => _ = self.world.revoke(PrincipalKind::Node, NODES[node]),
            Op::Pass(ms) => _ = self.world.pass(ms),
            Op::Restart => restart_and_compare(&mut self.world),
        }
        self.world.drain();
    }

    /// Every node comes back, large enough for all that was submitted, and holds what the core
    /// says is with it; from then on each agent does as it is told.
    fn heal(&mut self, codes: &[u8]) {
        let mut held: Vec<BTreeSet<AttemptId>> = vec![BTreeSet::new(); NODES.len()];
        for node in 0..NODES.len() {
            if let Some(epoch) = self.agents[node].epoch {
                self.world.beat(epoch, HeartbeatChange::Closed);
            }
            let live = self.world.model.snapshot(0).attempts.into_iter();
            let mine = live.filter(|(_, at, _)| *at == name(NODES[node]));
            // One in three has been lost on the way there.
            held[node] =
                mine.map(|(attempt, ..)| attempt).filter(|at| at.task.index % 3 != 0).collect();
            let mut hello = self.hello(node, true, true, 8);
            hello.attempts = held[node].iter().copied().collect();
            let peer = self.agents[node].peer;
            let step = self.connect(node, hello, peer);
            self.obey(&step, &mut held);
            self.agents[node].last_report = welcome(&step).acked;
            let epoch = welcome(&step).epoch;
            let step = self.world.beat(epoch, HeartbeatChange::Begun);
            self.obey(&step, &mut held);
        }
        let mut codes = codes.iter().cycle();
        for round in 0.. {
            assert!(round < 10_000, "the mesh never comes to its end: {:#?}", self.world.core.jobs);
            for node in 0..NODES.len() {
                let agent = &mut self.agents[node];
                let mut reports = Vec::new();
                for attempt in std::mem::take(&mut held[node]) {
                    let code = i32::from(*codes.next().unwrap());
                    agent.last_report += 1;
                    reports.push(exited(agent.last_report, attempt, code));
                }
                if let (Some(epoch), false) = (agent.epoch, reports.is_empty()) {
                    let peer = agent.peer;
                    let step = self.world.report(peer, epoch, reports);
                    let again = messages(&step).iter().any(|m| matches!(m, ToPeer::HelloAgain(_)));
                    assert!(!again, "a healthy session is good");
                    self.obey(&step, &mut held);
                }
            }
            for step in self.world.drain() {
                self.obey(&step, &mut held);
            }
            if self.world.model.ended() {
                break;
            }
            if held.iter().all(BTreeSet::is_empty) {
                let next = self.world.core.next_wakeup().expect("something will happen");
                let step = self.world.pass(next - self.world.now.mono_ms);
                self.obey(&step, &mut held);
            }
        }
        assert!(self.world.core.jobs.is_empty());
        for (_, node) in self.world.core.nodes.iter() {
            assert_eq!((node.used_cpu_millis, node.used_memory_bytes), (0, 0));
        }
    }

    fn obey(&self, step: &Step, held: &mut [BTreeSet<AttemptId>]) {
        for effect in &step.effects {
            let Effect::Send { peer: to, message } = effect else { continue };
            let Some(node) = self.agents.iter().position(|agent| peer(agent.peer) == *to) else {
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
    fn nothing_breaks_the_core_and_a_healed_mesh_ends_all_jobs(
        ops in prop::collection::vec(op(), 1..80),
        codes in prop::collection::vec(0..2u8, 1..8),
    ) {
        let mut mesh = Mesh::new();
        for op in ops {
            mesh.run(op);
        }
        restart_and_compare(&mut mesh.world);
        mesh.heal(&codes);
    }
}
