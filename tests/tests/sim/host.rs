//! A host: what really runs on it, and what is left there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use podmesh_agent_core::input::{FoundAttempt, Input, RuntimeFact};
use podmesh_agent_core::step::{Command, JobContext};
use podmesh_protocol::ids::{AgentId, AttemptId, Name};
use podmesh_protocol::place::Offer;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, Resources, RuntimeKind};
use uuid::Uuid;

use crate::agent::Agent;
use crate::faults::Planted;
use crate::net::{ConnId, Direction, StreamId};
use crate::proxy::Proxy;
use crate::replicas::OnHost;
use crate::world::{Event, Life, World, note};

/// Maximum time from a kill to the end.
const KILL_TAKES_MS: u64 = 1_000;
/// Maximum time that a container runs after the request to stop it.
const STOP_MS: u64 = 3_000 + KILL_TAKES_MS;

/// A machine, with its agent if that is running.
pub(crate) struct Node {
    pub(crate) name: Name,
    /// Whether it is a second one with the name of another.
    pub(crate) is_stranger: bool,
    /// A stranger that somebody has put right: nothing of it is left.
    pub(crate) is_gone: bool,
    index: usize,
    pub(crate) capacity: Resources,
    pub(crate) boot: u64,
    pub(crate) agent: Option<Agent>,
    /// What runs on the host or has left something there.
    pub(crate) workloads: BTreeMap<AttemptId, Workload>,
    cut_up_until: u64,
    cut_down_until: u64,
    /// Until when its heartbeats were disturbed by something other than the manager.
    pub(crate) trouble_at: u64,
    /// Since when the current agent has had contact and can stop containers; `None` if it has not.
    contact_since: Option<u64>,
    /// Until when the supervisor lets `requeue` attempts run.
    supervisor_lease: Option<u64>,
    /// What really happened to each attempt.
    pub(crate) truths: BTreeMap<AttemptId, Truth>,
    /// Whether other machines reach it. Without an address it has no proxy either.
    pub(crate) has_address: bool,
    pub(crate) proxy: Proxy,
}

/// A process or container on a host, or what is left of it.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    serial: u64,
    docker: bool,
    on_lost: OnLost,
    state: State,
    since: u64,
    /// The run of the agent that requested its stop.
    stopped_by: Option<Life>,
    /// What it is if it is a replica.
    replica: Option<OnHost>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// This run of the agent has requested its start.
    Requested(Life),
    Running,
    Ended(Outcome),
}

/// What really happened to an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) runs: u32,
    /// The exit code, if it exited by itself.
    pub(crate) exit: Option<i32>,
    /// Whether it was stopped, or its host or agent failed. Then its exit code may be unknown.
    pub(crate) disturbed: bool,
}

/// The cause of an attempt's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndCause {
    Exit(i32),
    Killed,
    /// Killed without the agent: by the supervisor, or together with it.
    Lost,
}

impl Node {
    pub(crate) fn new(index: usize, capacity: Resources, has_address: bool) -> Self {
        Self {
            name: format!("node-{index}").parse().expect("a name"),
            is_stranger: false,
            is_gone: false,
            index,
            capacity,
            boot: 1,
            agent: None,
            workloads: BTreeMap::new(),
            cut_up_until: 0,
            cut_down_until: 0,
            trouble_at: 0,
            contact_since: None,
            supervisor_lease: None,
            truths: BTreeMap::new(),
            has_address,
            proxy: Proxy::default(),
        }
    }

    /// Another machine with the name of this one.
    pub(crate) fn stranger(&self, index: usize) -> Self {
        Self {
            name: self.name.clone(),
            is_stranger: true,
            ..Self::new(index, self.capacity, self.has_address)
        }
    }

    pub(crate) fn agent_id(&self) -> AgentId {
        AgentId(Uuid::from_u128(1 + self.index as u128))
    }

    /// Returns the address at which other machines reach its replicas.
    pub(crate) fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, 1 + self.index as u8).into()
    }

    pub(crate) fn labels(&self) -> BTreeMap<Name, String> {
        let gpu = ("gpu".parse().expect("a name"), "a100".to_owned());
        if self.index == 1 { BTreeMap::from([gpu]) } else { BTreeMap::new() }
    }

    /// Returns what an agent offers of named resources. The ids change between the lives of agents,
    /// their number does not.
    pub(crate) fn offers(&self, life: u64) -> BTreeMap<Name, Offer> {
        let last = if life.is_multiple_of(4) { "z" } else { "y" };
        let ids = if self.index.is_multiple_of(2) { vec!["x", last] } else { vec![last] };
        let ids = ids.into_iter().map(str::to_owned).collect();
        let license = Offer { count: 3, ids: Vec::new() };
        let names = ["gpu", "license"].map(|name| name.parse().expect("a name"));
        names.into_iter().zip([Offer { count: 0, ids }, license]).collect()
    }

    /// Notes contact with the manager. It does not count while Docker is away, because the agent
    /// then cannot stop a container that outlived the previous agent.
    pub(crate) fn has_contact(&mut self, now: u64) {
        if self.agent.as_ref().is_some_and(|agent| agent.docker) {
            self.contact_since.get_or_insert(now);
        }
    }

    pub(crate) fn cut_until(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Up => self.cut_up_until,
            Direction::Down => self.cut_down_until,
        }
    }

    /// Cuts the way up (0), down (1), or both.
    pub(crate) fn cut(&mut self, until: u64, way: u64) {
        if way != 1 {
            self.cut_up_until = until;
        }
        if way != 0 {
            self.cut_down_until = until;
        }
        self.trouble(until);
    }

    /// Notes that its heartbeats are disturbed until then.
    pub(crate) fn trouble(&mut self, until: u64) {
        self.trouble_at = self.trouble_at.max(until);
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.agent.as_ref()?.conn
    }

    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.agent.as_ref()?.stream
    }

    pub(crate) fn is_running(&self, attempt: AttemptId) -> bool {
        self.workloads.get(&attempt).is_some_and(|workload| workload.state == State::Running)
    }

    /// Returns whether this start of an attempt still runs.
    pub(crate) fn runs_as(&self, attempt: AttemptId, serial: u64) -> bool {
        let workload = self.workloads.get(&attempt).filter(|workload| workload.serial == serial);
        workload.is_some_and(|workload| workload.state == State::Running)
    }

    /// Returns the replicas that run.
    pub(crate) fn running_replicas(&self) -> impl Iterator<Item = (AttemptId, &OnHost)> {
        let running = self.workloads.iter().filter(|(_, of)| of.state == State::Running);
        running.filter_map(|(attempt, workload)| Some((*attempt, workload.replica.as_ref()?)))
    }

    /// Returns whether nothing more happens here. `stays` says which attempts go on for ever.
    pub(crate) fn is_at_rest(&self, stays: impl Fn(AttemptId) -> bool) -> Result<(), String> {
        let name = &self.name;
        if self.is_gone {
            return Ok(());
        }
        if self.is_stranger {
            return Err(format!("{name}: there is another one of that name"));
        }
        let Some(agent) = &self.agent else { return Err(format!("{name}: no agent")) };
        if agent.opened.is_none() || !agent.docker {
            return Err(format!("{name}: no session or no docker yet"));
        }
        let held: Vec<_> = agent.core.held_attempts().filter(|held| !stays(*held)).collect();
        if !held.is_empty() || !agent.core.outbox_is_empty() {
            return Err(format!("{name}: holds {held:?} or has something to report"));
        }
        let left = |(attempt, workload): &(&AttemptId, &Workload)| {
            !stays(**attempt) || workload.state != State::Running
        };
        let left: Vec<_> = self.workloads.iter().filter(left).collect();
        if !left.is_empty() {
            return Err(format!("{name}: left on the host: {left:?}"));
        }
        Ok(())
    }
}

impl World {
    pub(crate) fn truths(&self) -> impl Iterator<Item = (AttemptId, &Truth)> {
        self.nodes.iter().flat_map(|node| node.truths.iter().map(|(id, truth)| (*id, truth)))
    }

    pub(crate) fn carry_out(&mut self, node: usize, command: Command) {
        note!(self, "node {node}: {command:?}");
        match command {
            Command::Start { attempt, context } => self.start(node, attempt, &context),
            Command::Stop { attempt, grace_ms } => self.stop(node, attempt, grace_ms),
            Command::SetOutputAside { attempt } => {
                unreachable!("{attempt}: no backup is restored in this world");
            }
            Command::Remove { attempt } => {
                if let Some(workload) = self.nodes[node].workloads.remove(&attempt) {
                    let ended = matches!(workload.state, State::Ended(_));
                    assert!(ended, "{attempt} is removed while running");
                }
            }
        }
    }

    pub(crate) fn replica_at(&mut self, node: usize, attempt: AttemptId) -> Option<&mut OnHost> {
        self.nodes[node].workloads.get_mut(&attempt)?.replica.as_mut()
    }

    pub(crate) fn tell(&mut self, node: usize, attempt: AttemptId, fact: RuntimeFact) {
        let late = self.rng.short(100);
        if let Some(agent) = &mut self.nodes[node].agent {
            // Facts reach one agent in order.
            let at = (self.now + late).max(agent.last_fact);
            agent.last_fact = at;
            let life = agent.life;
            self.at(at, Event::Fact(node, life, attempt, fact));
        }
    }

    fn start(&mut self, node: usize, attempt: AttemptId, context: &JobContext) {
        let docker = context.run.runtime.kind() == RuntimeKind::Docker;
        let serial = self.number();
        let (bad, slow) = (self.rng.percent(2), self.rng.percent(15));
        let late = if slow { self.rng.within(0, 8_000) } else { self.rng.short(50) };
        let known = self.nodes[node].workloads.contains_key(&attempt);
        assert!(!known, "{attempt} is started, but already exists");
        let Some(agent) = &self.nodes[node].agent else { return };
        if docker && !agent.docker || bad {
            self.nodes[node].truths.entry(attempt).or_default().disturbed = true;
            let outcome = Outcome::start_failed(125, "no such runtime");
            return self.tell(node, attempt, RuntimeFact::Ended(outcome));
        }
        let workload = Workload {
            serial,
            docker,
            on_lost: context.on_lost,
            state: State::Requested(agent.life),
            since: self.now,
            stopped_by: None,
            replica: OnHost::of(context, self.nodes[node].address(), serial),
        };
        self.nodes[node].workloads.insert(attempt, workload);
        if slow {
            self.tell(node, attempt, RuntimeFact::Preparing("pulling".into()));
        }
        self.after(late, Event::Runs(node, attempt, serial));
    }

    /// An attempt really begins to run, which must not happen twice.
    pub(crate) fn runs(&mut self, node: usize, attempt: AttemptId, serial: u64) {
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let now = self.now;
        let Some(workload) = self.nodes[node].workloads.get_mut(&attempt) else { return };
        let State::Requested(by) = workload.state else { return };
        // The supervisor starts what it was asked to, even without the agent.
        if workload.serial != serial || workload.docker && life != Some(by) {
            return;
        }
        workload.state = State::Running;
        workload.since = now;
        note!(self, "node {node}: {attempt} RUNS");
        self.stats.attempts += 1;
        self.judge_run(node, attempt);
        let truth = self.nodes[node].truths.entry(attempt).or_default();
        truth.runs += 1;
        assert_eq!(truth.runs, 1, "{attempt} runs a second time");
        let lasts = match self.rng.below(10) {
            _ if self.calm => self.rng.within(0, 2_000),
            0..5 => self.rng.within(0, 500),
            5..8 => self.rng.within(0, 20_000),
            _ => self.rng.within(20_000, 90_000),
        };
        let code = if self.rng.percent(70) { 0 } else { self.rng.within(1, 3) as i32 };
        self.tell(node, attempt, RuntimeFact::Started);
        if self.replica_at(node, attempt).is_some() {
            return self.replica_runs(node, attempt, serial);
        }
        self.after(lasts, Event::Exits(node, attempt, serial, EndCause::Exit(code)));
    }

    fn judge_run(&mut self, node: usize, attempt: AttemptId) {
        let now = self.now;
        assert!(self.store.attempt(attempt).is_some(), "{attempt} runs, but is not on disk");
        assert!(self.decided.is_live(attempt), "{attempt} runs, but has ended for the manager");
        let stored = self.store.attempt(attempt).map(|stored| stored.node.clone());
        assert_eq!(stored.as_ref(), Some(&self.nodes[node].name), "{attempt} runs elsewhere");
        let owner = self.store.state.nodes[&self.nodes[node].name].agent_id;
        assert_eq!(owner, Some(self.nodes[node].agent_id()), "{attempt} runs with a stranger");
        let mut orphans = 0;
        for (index, other) in self.nodes.iter().enumerate() {
            for (older, workload) in &other.workloads {
                if older.task != attempt.task
                    || *older == attempt
                    || workload.state != State::Running
                {
                    continue;
                }
                // A container that outlives its agent. Nobody can stop it until the next agent has
                // had the time to.
                let orphan = index != node
                    && workload.docker
                    && other.contact_since.is_none_or(|since| now < since + STOP_MS);
                // One that was forgotten with its node, by somebody who said so.
                let is_forgotten = self.forgotten.contains(older);
                let allowed = workload.on_lost == OnLost::Requeue && orphan || is_forgotten;
                assert!(allowed, "{attempt} runs on node {node}, and {older} on {}", other.name);
                orphans += 1;
            }
        }
        self.stats.orphan_copies += orphans;
    }

    fn stop(&mut self, node: usize, attempt: AttemptId, grace_ms: u64) {
        self.judge_term(attempt);
        let takes = self.rng.short(grace_ms) + self.rng.short(KILL_TAKES_MS);
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let truth = self.nodes[node].truths.entry(attempt).or_default();
        truth.disturbed = true;
        let Some(workload) = self.nodes[node].workloads.get_mut(&attempt) else { return };
        workload.stopped_by = life.filter(|_| !workload.docker);
        match workload.state {
            State::Requested(_) => {
                let outcome = Outcome::new(OutcomeKind::Lost);
                workload.state = State::Ended(outcome.clone());
                self.tell(node, attempt, RuntimeFact::Ended(outcome));
            }
            State::Running => {
                let serial = workload.serial;
                self.after(takes, Event::Exits(node, attempt, serial, EndCause::Killed));
            }
            State::Ended(_) => {}
        }
    }

    pub(crate) fn exits(&mut self, node: usize, attempt: AttemptId, serial: u64, cause: EndCause) {
        let Some(workload) = self.nodes[node].workloads.get_mut(&attempt) else { return };
        if workload.serial != serial || workload.state != State::Running {
            return;
        }
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let Some(workload) = self.nodes[node].workloads.get_mut(&attempt) else { return };
        let outcome = match cause {
            // Only the previous agent knew why it was stopped.
            _ if workload.stopped_by.is_some_and(|by| life != Some(by)) => {
                Outcome::new(OutcomeKind::Lost)
            }
            EndCause::Exit(code) => Outcome::exited(code),
            EndCause::Lost => Outcome::new(OutcomeKind::Lost),
            EndCause::Killed => Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) },
        };
        workload.state = State::Ended(outcome.clone());
        note!(self, "node {node}: {attempt} has ended: {cause:?}");
        self.connections_end(attempt);
        if let EndCause::Exit(code) = cause {
            self.nodes[node].truths.entry(attempt).or_default().exit = Some(code);
        }
        self.tell(node, attempt, RuntimeFact::Ended(outcome));
    }

    pub(crate) fn fact(&mut self, node: usize, life: Life, attempt: AttemptId, fact: RuntimeFact) {
        if self.nodes[node].agent.as_ref().is_some_and(|agent| agent.life == life) {
            self.feed_agent(node, Input::RuntimeReported(vec![(attempt, fact)]));
        }
    }

    /// Removes what dies with the agent's process: what it was about to start. Processes are held
    /// by their supervisor, containers by the engine.
    pub(crate) fn agent_leaves_host(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        host.contact_since = None;
        let mut gone = Vec::new();
        for (attempt, workload) in &mut host.workloads {
            let truth = host.truths.entry(*attempt).or_default();
            match &workload.state {
                State::Running => {}
                // Nobody knows any more why it was stopped.
                State::Ended(_) if !workload.docker && workload.stopped_by.is_some() => {
                    workload.state = State::Ended(Outcome::new(OutcomeKind::Lost));
                }
                // A container that never ran is removed without a report.
                State::Ended(_) if workload.docker && truth.runs == 0 => gone.push(*attempt),
                State::Ended(_) => {}
                // The supervisor may already have received the request.
                State::Requested(_) if !workload.docker && self.rng.percent(70) => {}
                State::Requested(_) => {
                    truth.disturbed = true;
                    gone.push(*attempt);
                }
            }
        }
        host.workloads.retain(|attempt, _| !gone.contains(attempt));
    }

    /// The agent tells the supervisor its lease.
    pub(crate) fn supervisor_hears_of_lease(&mut self, node: usize, until: u64) {
        if self.nodes[node].supervisor_lease != Some(until) {
            self.nodes[node].supervisor_lease = Some(until);
            self.at(until.max(self.now), Event::SupervisorLease(node, until));
        }
    }

    /// The supervisor kills the attempts that the manager may retry elsewhere, with or without an
    /// agent.
    pub(crate) fn supervisor_lease_ends(&mut self, node: usize, until: u64) {
        let is_planted = self.planted == Some(Planted::SupervisorIdle);
        if self.nodes[node].supervisor_lease != Some(until) || is_planted {
            return;
        }
        self.nodes[node].supervisor_lease = None;
        self.end_processes(node, KILL_TAKES_MS, |workload| workload.on_lost == OnLost::Requeue);
    }

    /// Kills the supervisor, and with it the processes that it holds.
    pub(crate) fn supervisor_dies(&mut self, node: usize) {
        note!(self, "node {node}: its supervisor dies");
        self.end_processes(node, 0, |_| true);
    }

    fn end_processes(&mut self, node: usize, takes_ms: u64, which: impl Fn(&Workload) -> bool) {
        let workloads = self.nodes[node].workloads.iter();
        let ending: Vec<_> = workloads
            .filter(|(_, workload)| !workload.docker && which(workload))
            .filter(|(_, workload)| !matches!(workload.state, State::Ended(_)))
            .map(|(attempt, workload)| (*attempt, workload.serial))
            .collect();
        for (attempt, serial) in ending {
            self.nodes[node].truths.entry(attempt).or_default().disturbed = true;
            let Some(workload) = self.nodes[node].workloads.get_mut(&attempt) else { continue };
            if let State::Requested(_) = workload.state {
                let outcome = Outcome::new(OutcomeKind::Lost);
                workload.state = State::Ended(outcome.clone());
                self.tell(node, attempt, RuntimeFact::Ended(outcome));
            } else if takes_ms == 0 {
                self.exits(node, attempt, serial, EndCause::Lost);
            } else {
                let takes = self.rng.short(takes_ms);
                self.after(takes, Event::Exits(node, attempt, serial, EndCause::Lost));
            }
        }
    }

    /// The machine loses its power and restarts.
    pub(crate) fn host_reboots(&mut self, node: usize) {
        note!(self, "node {node} loses its power");
        let keeps = self.rng.percent(50);
        self.agent_vanishes(node);
        self.agent_leaves_host(node);
        self.supervisor_dies(node);
        self.proxy_dies(node);
        let host = &mut self.nodes[node];
        host.boot += 1;
        host.supervisor_lease = None;
        for (attempt, workload) in &mut host.workloads {
            if workload.state == State::Running {
                host.truths.entry(*attempt).or_default().disturbed = true;
                workload.state =
                    State::Ended(Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) });
            }
        }
        // The folders of processes may be gone; Docker keeps exited containers.
        host.workloads.retain(|attempt, workload| {
            let stays = workload.docker || keeps;
            host.truths.entry(*attempt).or_default().disturbed |= !stays;
            stays
        });
        let pause = self.rng.short(40_000);
        self.after(pause, Event::AgentStarts(node));
    }

    /// Returns what a starting agent finds.
    pub(crate) fn found(&mut self, node: usize, docker: bool) -> Vec<FoundAttempt> {
        let now = self.now;
        let mut late = Vec::new();
        let (mut found, mut replicas) = (Vec::new(), Vec::new());
        for (attempt, workload) in &self.nodes[node].workloads {
            if workload.docker != docker {
                continue;
            }
            let mut ended = match &workload.state {
                State::Ended(outcome) => Some(outcome.clone()),
                State::Requested(_) | State::Running => None,
            };
            // If its output takes long to complete, its end is reported as a fact.
            if docker && self.rng.percent(20) {
                late.extend(ended.take().map(|outcome| (*attempt, outcome)));
            }
            let ran_ms = if ended.is_none() { now - workload.since } else { 0 };
            found.push(FoundAttempt {
                attempt: *attempt,
                ended,
                started: workload.state == State::Running,
                outlives_agent: true,
                on_lost: workload.on_lost,
                ran_ms,
                replica: workload.replica.as_ref().map(|here| Arc::clone(&here.replica)),
            });
            if workload.replica.is_some() && workload.state == State::Running {
                replicas.push(*attempt);
            }
        }
        for attempt in replicas {
            self.replica_found(node, attempt);
        }
        for (attempt, outcome) in late {
            self.tell(node, attempt, RuntimeFact::Ended(outcome));
        }
        found
    }

    /// Checks that the stored exit codes are those of the attempts.
    pub(crate) fn check_truths(&self) {
        for (attempt, truth) in self.truths() {
            let stored = self.store.attempt(attempt).expect("every attempt that ran is on disk");
            let Some(outcome) = &stored.outcome else { continue };
            if let Some(code) = truth.exit
                && !truth.disturbed
            {
                assert_eq!(outcome.exit_code, Some(code), "the code of {attempt} was lost");
            }
        }
    }
}
