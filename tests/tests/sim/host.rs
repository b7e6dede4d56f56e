//! A host: what really runs there, and what is left of it.

use std::collections::BTreeMap;

use podmesh_agent_core::input::{FoundAttempt, Input, RuntimeFact};
use podmesh_agent_core::step::{Command, JobContext};
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, Resources, RuntimeKind};

use crate::agent::Agent;
use crate::faults::Planted;
use crate::net::{ConnId, Direction, StreamId};
use crate::world::{Event, Life, World, note};

/// How long what is killed may take to be gone.
const KILL_TAKES_MS: u64 = 1_000;
/// How long a container may run on after its stop was asked for.
const STOP_MS: u64 = 3_000 + KILL_TAKES_MS;

/// A machine, with its agent where that runs.
pub(crate) struct Node {
    pub(crate) name: Name,
    index: usize,
    pub(crate) capacity: Resources,
    pub(crate) boot: u64,
    pub(crate) agent: Option<Agent>,
    /// What is on the host: runs, or has left something.
    pub(crate) things: BTreeMap<AttemptId, Thing>,
    cut_up_until: u64,
    cut_down_until: u64,
    /// Until when its heartbeats were in trouble that is not the manager's.
    pub(crate) trouble_at: u64,
    /// Since when the agent, which can stop containers, has had contact; `None` since one died.
    contact_since: Option<u64>,
    /// Until when the supervisor of processes lets `requeue` attempts run.
    supervisor_lease: Option<u64>,
    /// How often something of an attempt is on the way to be started.
    pub(crate) truths: BTreeMap<AttemptId, Truth>,
}

/// What is left on a host of an attempt that was to be started there.
#[derive(Clone, Debug)]
pub(crate) struct Thing {
    serial: u64,
    docker: bool,
    on_lost: OnLost,
    state: State,
    since: u64,
    /// Which life of the agent has asked for its stop.
    stopped_by: Option<Life>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// To be started by this life of the agent.
    Asked(Life),
    Running,
    Over(Outcome),
}

/// What really became of an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) runs: u32,
    /// The code that it exited with by itself.
    pub(crate) exit: Option<i32>,
    /// Whether somebody stopped it, or its host or agent failed: its code need not be known.
    pub(crate) disturbed: bool,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Exit(i32),
    Killed,
    /// Killed by what ends processes when no agent does.
    Lost,
}

impl Node {
    pub(crate) fn new(index: usize, capacity: Resources) -> Self {
        Self {
            name: format!("node-{index}").parse().expect("a name"),
            index,
            capacity,
            boot: 1,
            agent: None,
            things: BTreeMap::new(),
            cut_up_until: 0,
            cut_down_until: 0,
            trouble_at: 0,
            contact_since: None,
            supervisor_lease: None,
            truths: BTreeMap::new(),
        }
    }

    pub(crate) fn labels(&self) -> BTreeMap<Name, String> {
        let gpu = ("gpu".parse().expect("a name"), "a100".to_owned());
        if self.index == 1 { BTreeMap::from([gpu]) } else { BTreeMap::new() }
    }

    /// A sign of the manager's has come. An agent whose Docker is away cannot stop a container
    /// that outlived the one before: that is no contact for it.
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

    /// Cuts up (0), down (1), or both.
    pub(crate) fn cut(&mut self, until: u64, way: u64) {
        if way != 1 {
            self.cut_up_until = until;
        }
        if way != 0 {
            self.cut_down_until = until;
        }
        self.trouble(until);
    }

    /// Its heartbeats are in trouble, until then.
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
        self.things.get(&attempt).is_some_and(|thing| thing.state == State::Running)
    }

    pub(crate) fn is_at_rest(&self) -> Result<(), String> {
        let name = &self.name;
        let Some(agent) = &self.agent else { return Err(format!("{name}: no agent")) };
        if agent.opened.is_none() || !agent.docker {
            return Err(format!("{name}: no session, or no docker yet"));
        }
        let held = agent.core.hello_attempts();
        if !held.is_empty() || !agent.core.outbox_is_empty() {
            return Err(format!("{name}: holds {held:?}, or has something to report"));
        }
        if !self.things.is_empty() {
            return Err(format!("{name}: left on the host: {:?}", self.things));
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
            Command::Remove { attempt } => {
                if let Some(thing) = self.nodes[node].things.remove(&attempt) {
                    let over = matches!(thing.state, State::Over(_));
                    assert!(over, "{attempt} is removed while it runs");
                }
            }
        }
    }

    fn tell(&mut self, node: usize, attempt: AttemptId, fact: RuntimeFact) {
        let late = self.rng.short(100);
        if let Some(agent) = &mut self.nodes[node].agent {
            // Facts of one agent come in order.
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
        let known = self.nodes[node].things.contains_key(&attempt);
        assert!(!known, "{attempt} is started, and there is one already");
        let Some(agent) = &self.nodes[node].agent else { return };
        if docker && !agent.docker || bad {
            self.nodes[node].truths.entry(attempt).or_default().disturbed = true;
            let outcome = Outcome::start_failed(125, "no such runtime");
            return self.tell(node, attempt, RuntimeFact::Ended(outcome));
        }
        let thing = Thing {
            serial,
            docker,
            on_lost: context.on_lost,
            state: State::Asked(agent.life),
            since: self.now,
            stopped_by: None,
        };
        self.nodes[node].things.insert(attempt, thing);
        if slow {
            self.tell(node, attempt, RuntimeFact::Preparing("pulling".into()));
        }
        self.after(late, Event::Runs(node, attempt, serial));
    }

    /// An attempt really begins to run. This is what must not happen twice.
    pub(crate) fn runs(&mut self, node: usize, attempt: AttemptId, serial: u64) {
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let now = self.now;
        let Some(thing) = self.nodes[node].things.get_mut(&attempt) else { return };
        let State::Asked(by) = thing.state else { return };
        // What the supervisor was asked to start, it starts.
        if thing.serial != serial || thing.docker && life != Some(by) {
            return;
        }
        thing.state = State::Running;
        thing.since = now;
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
        self.after(lasts, Event::Exits(node, attempt, serial, How::Exit(code)));
    }

    fn judge_run(&mut self, node: usize, attempt: AttemptId) {
        let now = self.now;
        assert!(self.store.attempt(attempt).is_some(), "{attempt} runs, and is not on disk");
        assert!(self.decided.is_live(attempt), "{attempt} runs, and the manager has ended it");
        let stored = self.store.attempt(attempt).map(|stored| stored.node.clone());
        assert_eq!(stored.as_ref(), Some(&self.nodes[node].name), "{attempt} runs elsewhere");
        let mut orphans = 0;
        for (index, other) in self.nodes.iter().enumerate() {
            for (older, thing) in &other.things {
                if older.task != attempt.task || *older == attempt || thing.state != State::Running
                {
                    continue;
                }
                // A container that outlives its agent: nobody there can stop it, until the next
                // agent has had the time to.
                let orphan = index != node
                    && thing.docker
                    && other.contact_since.is_none_or(|since| now < since + STOP_MS);
                let allowed = thing.on_lost == OnLost::Requeue && orphan;
                assert!(allowed, "{attempt} runs on node {node}, and {older} on {}", other.name);
                orphans += 1;
            }
        }
        self.stats.orphan_copies += orphans;
    }

    fn stop(&mut self, node: usize, attempt: AttemptId, grace_ms: u64) {
        let takes = self.rng.short(grace_ms) + self.rng.short(KILL_TAKES_MS);
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let truth = self.nodes[node].truths.entry(attempt).or_default();
        truth.disturbed = true;
        let Some(thing) = self.nodes[node].things.get_mut(&attempt) else { return };
        thing.stopped_by = life.filter(|_| !thing.docker);
        match thing.state {
            State::Asked(_) => {
                let outcome = Outcome::new(OutcomeKind::Lost);
                thing.state = State::Over(outcome.clone());
                self.tell(node, attempt, RuntimeFact::Ended(outcome));
            }
            State::Running => {
                let serial = thing.serial;
                self.after(takes, Event::Exits(node, attempt, serial, How::Killed));
            }
            State::Over(_) => {}
        }
    }

    pub(crate) fn exits(&mut self, node: usize, attempt: AttemptId, serial: u64, how: How) {
        let Some(thing) = self.nodes[node].things.get_mut(&attempt) else { return };
        if thing.serial != serial || thing.state != State::Running {
            return;
        }
        let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
        let Some(thing) = self.nodes[node].things.get_mut(&attempt) else { return };
        let outcome = match how {
            // Why it was stopped, only the agent knew that is gone.
            _ if thing.stopped_by.is_some_and(|by| life != Some(by)) => {
                Outcome::new(OutcomeKind::Lost)
            }
            How::Exit(code) => Outcome::exited(code),
            How::Lost => Outcome::new(OutcomeKind::Lost),
            How::Killed => Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) },
        };
        thing.state = State::Over(outcome.clone());
        note!(self, "node {node}: {attempt} is over: {how:?}");
        if let How::Exit(code) = how {
            self.nodes[node].truths.entry(attempt).or_default().exit = Some(code);
        }
        self.tell(node, attempt, RuntimeFact::Ended(outcome));
    }

    pub(crate) fn fact(&mut self, node: usize, life: Life, attempt: AttemptId, fact: RuntimeFact) {
        if self.nodes[node].agent.as_ref().is_some_and(|agent| agent.life == life) {
            self.feed_agent(node, Input::RuntimeReported(vec![(attempt, fact)]));
        }
    }

    /// What dies with the agent's process: what it was about to start. Processes are held by their
    /// supervisor, containers by the engine.
    pub(crate) fn agent_leaves_host(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        host.contact_since = None;
        let mut gone = Vec::new();
        for (attempt, thing) in &mut host.things {
            let truth = host.truths.entry(*attempt).or_default();
            match &thing.state {
                State::Running => {}
                // Why it was stopped, nobody knows any more.
                State::Over(_) if !thing.docker && thing.stopped_by.is_some() => {
                    thing.state = State::Over(Outcome::new(OutcomeKind::Lost));
                }
                // A container that never ran is removed, and not spoken of.
                State::Over(_) if thing.docker && truth.runs == 0 => gone.push(*attempt),
                State::Over(_) => {}
                // The supervisor may have heard of it already.
                State::Asked(_) if !thing.docker && self.rng.percent(70) => {}
                State::Asked(_) => {
                    truth.disturbed = true;
                    gone.push(*attempt);
                }
            }
        }
        host.things.retain(|attempt, _| !gone.contains(attempt));
    }

    /// The agent tells the supervisor of a lease.
    pub(crate) fn supervisor_hears_of_lease(&mut self, node: usize, until: u64) {
        if self.nodes[node].supervisor_lease != Some(until) {
            self.nodes[node].supervisor_lease = Some(until);
            self.at(until.max(self.now), Event::SupervisorLease(node, until));
        }
    }

    /// The supervisor kills what the manager is about to try elsewhere, agent or not.
    pub(crate) fn supervisor_lease_ends(&mut self, node: usize, until: u64) {
        let is_planted = self.planted == Some(Planted::SupervisorIdle);
        if self.nodes[node].supervisor_lease != Some(until) || is_planted {
            return;
        }
        self.nodes[node].supervisor_lease = None;
        self.end_processes(node, KILL_TAKES_MS, |thing| thing.on_lost == OnLost::Requeue);
    }

    /// The supervisor of processes is killed, and with it all that it holds.
    pub(crate) fn supervisor_dies(&mut self, node: usize) {
        note!(self, "node {node}: its supervisor of processes dies");
        self.end_processes(node, 0, |_| true);
    }

    fn end_processes(&mut self, node: usize, takes_ms: u64, which: impl Fn(&Thing) -> bool) {
        let things = self.nodes[node].things.iter();
        let ending: Vec<_> = things
            .filter(|(_, thing)| !thing.docker && which(thing))
            .filter(|(_, thing)| !matches!(thing.state, State::Over(_)))
            .map(|(attempt, thing)| (*attempt, thing.serial))
            .collect();
        for (attempt, serial) in ending {
            self.nodes[node].truths.entry(attempt).or_default().disturbed = true;
            let Some(thing) = self.nodes[node].things.get_mut(&attempt) else { continue };
            if let State::Asked(_) = thing.state {
                let outcome = Outcome::new(OutcomeKind::Lost);
                thing.state = State::Over(outcome.clone());
                self.tell(node, attempt, RuntimeFact::Ended(outcome));
            } else if takes_ms == 0 {
                self.exits(node, attempt, serial, How::Lost);
            } else {
                let takes = self.rng.short(takes_ms);
                self.after(takes, Event::Exits(node, attempt, serial, How::Lost));
            }
        }
    }

    /// The machine ends without a word.
    pub(crate) fn host_reboots(&mut self, node: usize) {
        note!(self, "node {node} loses its power");
        let keeps = self.rng.percent(50);
        self.agent_vanishes(node);
        self.agent_leaves_host(node);
        self.supervisor_dies(node);
        let host = &mut self.nodes[node];
        host.boot += 1;
        host.supervisor_lease = None;
        for (attempt, thing) in &mut host.things {
            if thing.state == State::Running {
                host.truths.entry(*attempt).or_default().disturbed = true;
                thing.state =
                    State::Over(Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) });
            }
        }
        // The folders of processes may be gone; Docker keeps what has exited.
        host.things.retain(|attempt, thing| {
            let stays = thing.docker || keeps;
            host.truths.entry(*attempt).or_default().disturbed |= !stays;
            stays
        });
        let pause = self.rng.short(40_000);
        self.after(pause, Event::AgentStarts(node));
    }

    /// What an agent finds that starts.
    pub(crate) fn found(&mut self, node: usize, docker: bool) -> Vec<FoundAttempt> {
        let now = self.now;
        let mut late = Vec::new();
        let mut found = Vec::new();
        for (attempt, thing) in &self.nodes[node].things {
            if thing.docker != docker {
                continue;
            }
            let mut ended = match &thing.state {
                State::Over(outcome) => Some(outcome.clone()),
                State::Asked(_) | State::Running => None,
            };
            // Its output takes long to complete: its end is told as a fact.
            if docker && self.rng.percent(20) {
                late.extend(ended.take().map(|outcome| (*attempt, outcome)));
            }
            let ran_ms = if ended.is_none() { now - thing.since } else { 0 };
            found.push(FoundAttempt {
                attempt: *attempt,
                ended,
                started: thing.state == State::Running,
                outlives_agent: true,
                on_lost: thing.on_lost,
                ran_ms,
            });
        }
        for (attempt, outcome) in late {
            self.tell(node, attempt, RuntimeFact::Ended(outcome));
        }
        found
    }

    /// The codes that the manager holds are those of the attempts.
    pub(crate) fn check_truths(&self) {
        for (attempt, truth) in self.truths() {
            let stored = self.store.attempt(attempt).expect("all that ran is on disk");
            let Some(outcome) = &stored.outcome else { continue };
            if let Some(code) = truth.exit
                && !truth.disturbed
            {
                assert_eq!(outcome.exit_code, Some(code), "the code of {attempt} was lost");
            }
        }
    }
}
