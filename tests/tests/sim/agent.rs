//! The agent's shell: a core, its sessions and its heartbeats.

use std::sync::Arc;

use podmesh_agent_core::input::Input;
use podmesh_agent_core::step::{JobContext, Step};
use podmesh_agent_core::{Core, CoreConfig};
use podmesh_protocol::ids::{AttemptId, Epoch, InstanceId};
use podmesh_protocol::limits::PROTOCOL_VERSION;
use podmesh_protocol::place::Claims;
use podmesh_protocol::session::{Hello, ToManager, ToPeer, Welcome};
use podmesh_protocol::spec::RuntimeKind;
use podmesh_protocol::time::Now;
use uuid::Uuid;

use crate::faults::Planted;
use crate::net::{ConnId, Direction, StreamId};
use crate::proxy::Link;
use crate::store::CLUSTER;
use crate::world::{Event, Life, World, note};

/// How long the manager may take to answer a hello.
const WELCOME_LIMIT_MS: u64 = 10_000;

/// One run of an agent's process.
pub(crate) struct Agent {
    pub(crate) life: Life,
    pub(crate) core: Core,
    /// Whether containers can be started and earlier ones were found.
    pub(crate) docker: bool,
    pub(crate) conn: Option<ConnId>,
    pub(crate) opened: Option<Epoch>,
    hello_sent: u64,
    /// The attempts in the last hello.
    named: Vec<AttemptId>,
    /// Whether the last hello is incomplete, because more was found since.
    hello_outdated: bool,
    last_epoch: Epoch,
    pub(crate) stream: Option<StreamId>,
    answered_at: u64,
    wakes: Option<u64>,
    pub(crate) last_fact: u64,
    pub(crate) link: Link,
    mono_offset: u64,
    wall_offset: i64,
}

impl Agent {
    fn now(&self, now: u64) -> Now {
        let wall_ms = 1_700_000_000_000u64.saturating_add_signed(self.wall_offset) + now;
        Now { mono_ms: now + self.mono_offset, wall_ms }
    }
}

impl World {
    pub(crate) fn agent_starts(&mut self, node: usize) {
        if self.nodes[node].agent.is_some() || self.is_put_right(node) {
            return;
        }
        let life = self.number();
        let docker = self.calm || self.rng.percent(80);
        let mut core = Core::new(CoreConfig { goodbye_wait_ms: 5_000, processes_outlive: true });
        core.set_offers(self.nodes[node].offers(life));
        if let Some(Planted::Agent(fault)) = self.planted {
            core.plant_fault(fault);
        }
        note!(self, "node {node}: agent {life} starts, docker {docker}");
        let mono_offset = self.rng.below(1_000_000);
        self.nodes[node].trouble_at = self.now.max(self.nodes[node].trouble_at);
        self.nodes[node].agent = Some(Agent {
            life,
            core,
            docker,
            conn: None,
            opened: None,
            hello_sent: 0,
            named: Vec::new(),
            hello_outdated: false,
            last_epoch: Epoch(0),
            stream: None,
            answered_at: 0,
            wakes: None,
            last_fact: 0,
            link: Link::default(),
            mono_offset,
            wall_offset: 0,
        });
        self.link_opens(node, life);
        let found = self.found(node, false);
        self.feed_agent(node, Input::AttemptsFound(found));
        if docker {
            let found = self.found(node, true);
            self.feed_agent(node, Input::AttemptsFound(found));
        } else {
            let late = self.rng.short(30_000);
            self.after(late, Event::DockerReady(node, life));
        }
        self.after(1, Event::Connect(node, life));
    }

    pub(crate) fn docker_ready(&mut self, node: usize, life: Life) {
        let Some(agent) = self.agent_for(node, life) else { return };
        agent.docker = true;
        agent.hello_outdated = true;
        let found = self.found(node, true);
        self.feed_agent(node, Input::AttemptsFound(found));
        self.drop_session(node);
    }

    fn agent_for(&mut self, node: usize, life: Life) -> Option<&mut Agent> {
        self.nodes[node].agent.as_mut().filter(|agent| agent.life == life)
    }

    pub(crate) fn agent_crashes(&mut self, node: usize) {
        let Some(agent) = &self.nodes[node].agent else { return };
        note!(self, "node {node}: agent {} dies", agent.life);
        self.end_agent(node);
    }

    fn end_agent(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.take() else { return };
        self.stats.crashes += 1;
        agent.conn.into_iter().for_each(|conn| self.agent_closes(conn));
        agent.stream.into_iter().for_each(|stream| self.agent_closes_stream(stream));
        self.agent_leaves_host(node);
        let pause = self.rng.short(40_000);
        self.after(pause, Event::AgentStarts(node));
    }

    /// Ends the agent's process without anybody noticing.
    pub(crate) fn agent_vanishes(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.take() else { return };
        self.stats.crashes += 1;
        if let Some(conn) = agent.conn.and_then(|id| self.conns.get_mut(&id)) {
            conn.agent_open = false;
        }
        if let Some(stream) = agent.stream.and_then(|id| self.streams.get_mut(&id)) {
            stream.agent_open = false;
        }
    }

    pub(crate) fn shut_agent_down(&mut self, node: usize) {
        note!(self, "node {node}: its agent is asked to end");
        self.feed_agent(node, Input::ShutdownRequested);
    }

    pub(crate) fn clocks_jump(&mut self, node: usize) {
        const HOUR_MS: i64 = 3_600_000;
        let jumps = [HOUR_MS, -HOUR_MS, 87_600 * HOUR_MS, -87_600 * HOUR_MS, 0];
        let jump = jumps[self.rng.below(5) as usize];
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.wall_offset = jump;
        }
        self.manager_clock_jumps(jump);
    }

    pub(crate) fn agent_wakes(&mut self, node: usize, life: Life) {
        let now = self.now;
        let Some(agent) = self.agent_for(node, life) else { return };
        if agent.wakes != Some(now) {
            return;
        }
        agent.wakes = None;
        self.feed_agent(node, Input::Tick);
    }

    pub(crate) fn feed_agent(&mut self, node: usize, input: Input) {
        let now = self.now;
        let mut step = Step::default();
        let shown = if self.logs() { format!("{input:?}") } else { String::new() };
        let is_contact =
            matches!(input, Input::SessionOpened { .. } | Input::HeartbeatAnswered { .. });
        let Some(agent) = self.nodes[node].agent.as_mut() else { return };
        agent.core.step(agent.now(now), input, &mut step);
        agent.core.check_invariants();
        let lease = agent.core.lease_until().filter(|_| is_contact);
        let lease = lease.map(|until| until.saturating_sub(agent.mono_offset));
        let (life, session) = (agent.life, agent.conn.filter(|_| agent.opened.is_some()));
        note!(self, "node {node} < {shown} > {:?}", step.messages);
        if let Some(until) = lease {
            self.supervisor_hears_of_lease(node, until);
        }
        for command in step.commands {
            self.carry_out(node, command);
        }
        if let Some(conn) = session {
            for message in step.messages {
                let reports = match &message {
                    ToManager::Reports(epoch, _) => Some(*epoch),
                    _ => None,
                };
                self.send_up(conn, message);
                if let Some(epoch) = reports
                    && self.planted == Some(Planted::ForgottenWhenSent)
                {
                    self.feed_agent(node, Input::ReportsAcked { epoch, acked: u64::MAX });
                }
            }
        }
        if step.may_exit {
            note!(self, "node {node}: agent {life} ends");
            return self.end_agent(node);
        }
        if step.reconnect {
            self.drop_session(node);
        }
        let now = self.now;
        let Some(agent) = self.agent_for(node, life) else { return };
        let Some(at) = agent.core.next_wakeup() else { return };
        let at = at.saturating_sub(agent.mono_offset).max(now);
        if agent.wakes.is_none_or(|set| at < set) {
            agent.wakes = Some(at);
            self.at(at, Event::AgentWakes(node, life));
        }
    }

    pub(crate) fn connect(&mut self, node: usize, life: Life) {
        let pause = self.rng.within(50, 3_000);
        let cut = self.now < self.nodes[node].cut_until(Direction::Up)
            || self.now < self.nodes[node].cut_until(Direction::Down);
        let now = self.now;
        let manager = self.manager.as_ref().filter(|manager| manager.stalled(now).is_none());
        let manager = manager.map(|manager| manager.life);
        let boot = self.nodes[node].boot;
        let (name, capacity) = (self.nodes[node].name.clone(), self.nodes[node].capacity);
        let address = self.nodes[node].has_address.then(|| self.nodes[node].address().to_string());
        let (labels, agent_id) = (self.nodes[node].labels(), self.nodes[node].agent_id());
        let resources = self.nodes[node].offers(life);
        let Some(agent) = self.agent_for(node, life).filter(|agent| agent.conn.is_none()) else {
            return;
        };
        let Some(manager) = manager.filter(|_| !cut) else {
            return self.after(pause, Event::Connect(node, life));
        };
        let mut runtimes = vec![RuntimeKind::Process.into()];
        if agent.docker {
            runtimes.push(RuntimeKind::Docker.into());
        }
        let hello = Hello {
            version: PROTOCOL_VERSION,
            version_oldest: None,
            node: name,
            boot_id: format!("boot-{boot}"),
            agent_instance: InstanceId(Uuid::from_u128(u128::from(life))),
            agent_id: Some(agent_id),
            cluster: Some(CLUSTER),
            program_version: "0".into(),
            capacity,
            labels,
            runtimes,
            withdrawn: [].into(),
            unenforced: [].into(),
            low_disks: [].into(),
            address,
            resources,
            attempts: agent.core.hello_attempts(),
        };
        agent.hello_sent = now;
        agent.hello_outdated = false;
        agent.named.clone_from(&hello.attempts);
        let conn = self.open_conn(node, life, manager);
        note!(self, "node {node}: agent {life} says hello over {conn}");
        self.nodes[node].agent.as_mut().expect("it was there").conn = Some(conn);
        self.send_up(conn, ToManager::Hello(hello));
        self.after(WELCOME_LIMIT_MS, Event::WelcomeLimit(node, conn));
        if !self.calm && self.rng.percent(10) {
            // The agent gives up the connection while the hello is in flight and may arrive late.
            self.after(1, Event::AgentHears(conn));
        }
    }

    pub(crate) fn welcome_limit(&mut self, node: usize, conn: ConnId) {
        let waits = |agent: &Agent| agent.conn == Some(conn) && agent.opened.is_none();
        if self.nodes[node].agent.as_ref().is_some_and(waits) {
            self.lose_session(node);
        }
    }

    /// Drops the session, if there is one.
    fn drop_session(&mut self, node: usize) {
        if self.nodes[node].agent.as_ref().is_some_and(|agent| agent.opened.is_some()) {
            self.lose_session(node);
        }
    }

    /// Gives up the connection. The agent will open another one.
    fn lose_session(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let (life, conn, stream) = (agent.life, agent.conn.take(), agent.stream.take());
        let was_open = agent.opened.take();
        note!(self, "node {node}: agent {life} has no session any more");
        conn.into_iter().for_each(|conn| self.agent_closes(conn));
        stream.into_iter().for_each(|stream| self.agent_closes_stream(stream));
        let pause = self.rng.short(3_000);
        self.after(pause, Event::Connect(node, life));
        if let Some(epoch) = was_open {
            if self.planted == Some(Planted::OutboxLost) {
                self.feed_agent(node, Input::ReportsAcked { epoch, acked: u64::MAX });
            }
            self.feed_agent(node, Input::SessionClosed);
        }
    }

    /// The agent notices that its connection has ended.
    pub(crate) fn agent_hears(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.agent_open) else { return };
        let (node, life) = (conn.node, conn.agent);
        let cut_until = self.nodes[node].cut_until(Direction::Down);
        if self.now < cut_until {
            return self.at(cut_until, Event::AgentHears(id));
        }
        if self.agent_for(node, life).is_some_and(|agent| agent.conn == Some(id)) {
            self.lose_session(node);
        }
    }

    /// The agent receives a message from the manager.
    pub(crate) fn agent_receives(&mut self, id: ConnId, message: ToPeer) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (node, life) = (conn.node, conn.agent);
        let Some(agent) = self.agent_for(node, life).filter(|agent| agent.conn == Some(id)) else {
            return;
        };
        let opened = agent.opened;
        let input = match message {
            ToPeer::Welcome(welcome) if opened.is_none() => return self.opened(node, welcome),
            _ if opened.is_none() => return self.lose_session(node),
            ToPeer::HelloAgain(epoch) if opened == Some(epoch) => return self.lose_session(node),
            ToPeer::JobSpec { epoch, job, on_lost, resources, run, name } => {
                let context =
                    JobContext { job, name, on_lost, resources, run, claims: Claims::new() };
                let context = Arc::new(context);
                Input::JobSpecReceived { epoch, context }
            }
            ToPeer::Claims { epoch, claims } => Input::ClaimsReceived { epoch, claims },
            ToPeer::Starts(epoch, attempts) => {
                for attempt in &attempts {
                    let there = self.store.attempt(*attempt).is_some();
                    assert!(there, "the start of {attempt} left before it was on disk");
                }
                Input::StartsReceived { epoch, attempts }
            }
            ToPeer::Stops(epoch, mut stops) => {
                stops.retain(|(attempt, _)| agent.docker || agent.core.holds(attempt));
                Input::StopsReceived { epoch, stops }
            }
            ToPeer::Acked(epoch, acked) => Input::ReportsAcked { epoch, acked },
            ToPeer::ForgetJobs(epoch, jobs) => Input::JobsForgotten { epoch, jobs },
            ToPeer::Endpoints { epoch, update, all, services } if opened == Some(epoch) => {
                let generation = (life, epoch);
                return self.endpoints_arrive(node, generation, update, all, services);
            }
            _ => return,
        };
        self.feed_agent(node, input);
    }

    fn opened(&mut self, node: usize, welcome: Welcome) {
        let now = self.now;
        let on_disk = welcome.epoch.0 <= self.store.state.last_epoch.0;
        assert!(on_disk, "the welcome to session {} left before it was on disk", welcome.epoch);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        assert!(welcome.epoch > agent.last_epoch, "an epoch comes twice");
        (agent.last_epoch, agent.opened) = (welcome.epoch, Some(welcome.epoch));
        agent.answered_at = now;
        let (life, epoch, sent) = (agent.life, welcome.epoch, agent.hello_sent);
        let hello_sent_mono_ms = agent.now(sent).mono_ms;
        let outdated = agent.hello_outdated;
        for attempt in &agent.named {
            let sorted = welcome.keep.contains(attempt) != welcome.stop.contains(attempt);
            assert!(sorted, "{attempt} is held, and the welcome does not say whether to keep it");
        }
        self.nodes[node].has_contact(now);
        let stream = self.open_stream(node, life, epoch);
        self.nodes[node].agent.as_mut().expect("it was there").stream = Some(stream);
        let mut welcome = Box::new(welcome);
        if self.planted == Some(Planted::LeaseIgnored) {
            welcome.lease_ms *= 1_000;
        }
        self.feed_agent(node, Input::SessionOpened { welcome, hello_sent_mono_ms });
        if outdated {
            self.drop_session(node);
        }
    }

    /// Sends a beat.
    pub(crate) fn beat(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.agent_open) else { return };
        let (node, life, epoch) = (stream.node, stream.agent, stream.epoch);
        let (now, patience) = (self.now, self.plan.lease_ms / 2);
        let Some(agent) = self.agent_for(node, life).filter(|agent| agent.stream == Some(id))
        else {
            return;
        };
        if now - agent.answered_at >= patience {
            note!(self, "node {node}: the manager does not answer heartbeats of {epoch}");
            return self.drop_session(node);
        }
        self.after(self.plan.heartbeat_ms, Event::Beat(id));
        self.send_beat(id, Event::BeatArrives(id, now), Direction::Up);
    }

    pub(crate) fn answer_arrives(&mut self, id: StreamId, sent: u64) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.agent_open) else { return };
        let (node, life, epoch, now) = (stream.node, stream.agent, stream.epoch, self.now);
        let Some(agent) = self.agent_for(node, life).filter(|agent| agent.stream == Some(id))
        else {
            return;
        };
        agent.answered_at = now;
        let sent_mono_ms = agent.now(sent).mono_ms;
        self.nodes[node].has_contact(now);
        self.feed_agent(node, Input::HeartbeatAnswered { epoch, sent_mono_ms });
    }

    /// The agent notices the end of a stream and opens another one.
    pub(crate) fn stream_fails(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.agent_open) else {
            return;
        };
        stream.agent_open = false;
        let (node, life, epoch) = (stream.node, stream.agent, stream.epoch);
        let Some(agent) = self.agent_for(node, life).filter(|agent| agent.stream == Some(id))
        else {
            return;
        };
        agent.stream = None;
        let stream = self.open_stream(node, life, epoch);
        self.nodes[node].agent.as_mut().expect("it was there").stream = Some(stream);
    }
}
