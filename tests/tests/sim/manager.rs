//! The manager's shell: a core, its store and its heartbeats. Nothing leaves before its commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use podmesh_manager_core::ids::ConnectionId;
use podmesh_manager_core::input::Input;
use podmesh_manager_core::lease::LeaseTable;
use podmesh_manager_core::state::{Change, Drain, State};
use podmesh_manager_core::step::{Answer, Effect, Step};
use podmesh_manager_core::{Core, CoreConfig};
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, Name};
use podmesh_protocol::limits::LEASE_MS_DEFAULT;
use podmesh_protocol::node::NodeView;
use podmesh_protocol::report::{AttemptState, Outcome, OutcomeKind};
use podmesh_protocol::service::ServiceDetail;
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Now;
use podmesh_protocol::version::VersionRange;

use crate::faults::Planted;
use crate::net::{ConnId, Direction, StreamId};
use crate::users::request_of;
use crate::world::{Event, Life, World, note};

/// The wall clock at the start of the world.
const WALL_MS: u64 = 1_700_000_000_000;

/// One run of the manager's process.
pub(crate) struct Manager {
    pub(crate) life: Life,
    pub(crate) started_at: u64,
    core: Core,
    leases: LeaseTable,
    /// The watched sessions, each with its stream.
    watched: BTreeMap<Epoch, Option<StreamId>>,
    /// The session of each node, as decided.
    sessions: BTreeMap<usize, (Epoch, ConnectionId)>,
    /// Steps that are not committed, with the time of the decision.
    pending: VecDeque<(u64, Step)>,
    committing: bool,
    /// Steps that are committed but not delivered.
    committed: VecDeque<Step>,
    core_wakes: Option<u64>,
    leases_wake: Option<u64>,
    /// Until when it is stalled.
    pub(crate) stalled_until: u64,
    /// Until when its disk is slow.
    pub(crate) slow_until: u64,
    /// When the last message of the heartbeat thread reaches the core.
    told_until: u64,
    mono_offset: u64,
    wall_offset: i64,
}

impl Manager {
    pub(crate) fn now(&self, now: u64) -> Now {
        let wall_ms = WALL_MS.saturating_add_signed(self.wall_offset) + now;
        Now { mono_ms: now + self.mono_offset, wall_ms }
    }

    pub(crate) fn stalled(&self, now: u64) -> Option<u64> {
        (now < self.stalled_until).then_some(self.stalled_until)
    }

    /// Returns whether a step that is not committed removes jobs or requeues tasks, or has asked to
    /// read again.
    pub(crate) fn decides_of_ended_jobs(&self) -> bool {
        let mut effects = self.pending.iter().flat_map(|(_, step)| &step.effects);
        let reads_again = |effect: &Effect| {
            matches!(
                effect,
                Effect::Answered { result: Ok(Answer::ReadAgain | Answer::EndedBefore { .. }), .. }
            )
        };
        let mut changes = self.pending.iter().flat_map(|(_, step)| &step.changes);
        effects.any(reads_again)
            || changes.any(|change| {
                matches!(
                    change,
                    Change::JobRemoved(_)
                        | Change::JobReopened(_)
                        | Change::TaskRequeued { .. }
                        | Change::RestRequeued { .. }
                )
            })
    }

    /// Returns whether nothing is waiting to be committed or delivered.
    pub(crate) fn rests(&self) -> bool {
        self.pending.is_empty() && self.committed.is_empty()
    }
}

impl World {
    pub(crate) fn manager_starts(&mut self) {
        let life = self.number();
        let mono_offset = self.rng.below(1_000_000);
        let config = CoreConfig {
            lease_ms: self.plan.lease_ms,
            heartbeat_ms: self.plan.heartbeat_ms,
            margin_ms: self.plan.margin_ms,
            versions: VersionRange::SPOKEN,
        };
        self.decided = self.store.clone();
        let now = Now { mono_ms: self.now + mono_offset, wall_ms: WALL_MS + self.now };
        let mut state = self.store.state.clone();
        if self.planted == Some(Planted::DeadlineForgotten) {
            forget_deadlines(&mut state);
        }
        let mut core = Core::new(now, config, state);
        core.check_invariants();
        let mut leases = LeaseTable::new(self.plan.heartbeat_ms, self.plan.lease_ms);
        if let Some(Planted::Manager(fault)) = self.planted {
            core.plant_fault(fault);
            leases.plant_fault(fault);
        }
        note!(self, "manager {life} starts");
        self.manager = Some(Manager {
            life,
            started_at: self.now,
            core,
            leases,
            watched: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pending: VecDeque::new(),
            committing: false,
            committed: VecDeque::new(),
            core_wakes: None,
            leases_wake: None,
            stalled_until: 0,
            slow_until: 0,
            told_until: 0,
            mono_offset,
            wall_offset: 0,
        });
        self.judge_starts();
        self.after_core();
    }

    pub(crate) fn manager_crashes(&mut self) {
        let Some(manager) = self.manager.take() else { return };
        note!(self, "manager {} dies, {} steps not on disk", manager.life, manager.pending.len());
        self.stats.crashes += 1;
        self.decided = self.store.clone();
        self.manager_closes_all();
        let pause = self.rng.short(30_000);
        self.after(pause, Event::ManagerStarts);
    }

    pub(crate) fn manager_stalls(&mut self, ms: u64) {
        let now = self.now;
        if let Some(manager) = &mut self.manager {
            manager.stalled_until = now + ms;
            note!(self, "manager stalls for {ms} ms");
        }
    }

    pub(crate) fn disk_is_slow(&mut self, ms: u64) {
        let now = self.now;
        if let Some(manager) = &mut self.manager {
            manager.slow_until = now + ms;
            note!(self, "the disk is slow for {ms} ms");
        }
    }

    pub(crate) fn manager_clock_jumps(&mut self, ms: i64) {
        if let Some(manager) = &mut self.manager {
            manager.wall_offset = ms;
            self.store.clock_jumped = true;
            self.decided.clock_jumped = true;
        }
    }

    /// Returns the manager if this run of it is still alive and not stalled. A stalled manager gets
    /// the event when it resumes.
    fn manager_for(&mut self, life: Life, event: Event) -> Option<&mut Manager> {
        let manager = self.manager.as_ref().filter(|manager| manager.life == life)?;
        if let Some(until) = manager.stalled(self.now) {
            self.at(until, event);
            return None;
        }
        self.manager.as_mut()
    }

    pub(crate) fn core_wakes(&mut self, life: Life) {
        let now = self.now;
        let Some(manager) = self.manager_for(life, Event::CoreWakes(life)) else { return };
        if manager.core_wakes.is_some_and(|set| set > now) {
            return; // A later wakeup is set.
        }
        manager.core_wakes = None;
        self.drain_core();
        self.after_core();
    }

    /// Passes an input to the core as the shell does, after the timers that are due.
    pub(crate) fn feed_manager(&mut self, input: Input) {
        if self.manager.is_none() {
            return;
        }
        self.drain_core();
        note!(self, "core < {input:?}");
        let stale = self.is_stale(&input);
        if stale {
            // The wall clock may have jumped to the time of a schedule.
            let step = self.step_core(Input::Tick);
            self.take_step(step);
            self.drain_core();
        }
        let step = self.step_core(input);
        if stale {
            let quiet = step.changes.is_empty() && step.events.is_empty();
            assert!(quiet, "a report of another session changed something: {step:?}");
        }
        self.take_step(step);
        self.drain_core();
        self.after_core();
    }

    fn drain_core(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the manager's core never rests");
            let Some(manager) = &self.manager else { return };
            let mono_ms = manager.now(self.now).mono_ms;
            if manager.core.next_wakeup().is_none_or(|at| at > mono_ms) {
                return;
            }
            let step = self.step_core(Input::Tick);
            self.take_step(step);
        }
    }

    fn step_core(&mut self, input: Input) -> Step {
        let mut step = Step::default();
        if let Some(manager) = &mut self.manager {
            manager.core.step(manager.now(self.now), input, &mut step);
            manager.core.check_invariants();
        }
        step
    }

    /// Returns whether the input contains reports of a session that is not the node's current one.
    fn is_stale(&self, input: &Input) -> bool {
        let (Input::AttemptsReported { connection, epoch, .. }
        | Input::EndpointsApplied { connection, epoch, .. }) = input
        else {
            return false;
        };
        let sessions = self.manager.iter().flat_map(|manager| manager.sessions.values());
        let mut sessions = sessions.filter(|(of, by)| of == epoch && by == connection);
        sessions.next().is_none()
    }

    /// Checks what was decided, and passes it to the store.
    fn take_step(&mut self, step: Step) {
        if step.is_empty() {
            return;
        }
        note!(self, "core > {:?} {:?}", step.changes, step.effects);
        for change in &step.changes {
            match change {
                Change::AttemptEnded { attempt, outcome, .. } => {
                    self.judge_end(*attempt, outcome);
                }
                Change::AttemptAdvanced { attempt, state: AttemptState::Running, .. } => {
                    let ran = self.truths().any(|(id, truth)| id == *attempt && truth.runs > 0);
                    assert!(ran, "the manager says that {attempt} runs, but it never did");
                }
                _ => {}
            }
        }
        for event in &step.events {
            if let EventFact::NodeLost { node } = event {
                self.judge_loss(node);
            }
        }
        let mut step = step;
        if self.planted == Some(Planted::EpochNotSaved) {
            step.changes.retain(|change| !matches!(change, Change::EpochTaken(_)));
        }
        if self.planted == Some(Planted::HealthNotStored) {
            step.changes.retain(|change| !matches!(change, Change::ReplicaChanged { .. }));
        }
        if self.planted == Some(Planted::DependencyNotStored) {
            step.changes.retain(|change| !matches!(change, Change::DependencyChanged { .. }));
        }
        if self.planted == Some(Planted::UpdateForgotten) {
            step.changes.iter_mut().for_each(forget_update);
        }
        self.forget_runs(&mut step);
        let before = self.judge_before();
        self.decided.apply(self.now, &step);
        self.judge_services(&before, &step);
        if self.planted.is_none()
            && let Some(manager) = &self.manager
        {
            assert_eq!(self.decided.state, *manager.core.state(), "the changes lead to the state");
        }
        for effect in &step.effects {
            match effect {
                Effect::SessionOpened { epoch, connection, .. } => {
                    let at = self.conns[&connection.0].node;
                    if let Some(manager) = &mut self.manager {
                        manager.sessions.insert(at, (*epoch, *connection));
                    }
                }
                Effect::SessionClosed { epoch } => {
                    if let Some(manager) = &mut self.manager {
                        manager.sessions.retain(|_, (of, _)| of != epoch);
                    }
                }
                _ => {}
            }
        }
        if self.planted == Some(Planted::EarlySend) {
            let effects = step.effects.clone();
            let step = Step { effects: Vec::new(), ..step };
            self.put_in_queue(step);
            return self.carry_out_effects(effects);
        }
        self.put_in_queue(step);
    }

    fn put_in_queue(&mut self, step: Step) {
        let now = self.now;
        let (fast, slow) = (self.rng.short(10), self.rng.short(4_000));
        let Some(manager) = &mut self.manager else { return };
        manager.pending.push_back((now, step));
        if !std::mem::replace(&mut manager.committing, true) {
            let takes = if now < manager.slow_until { slow } else { fast };
            let life = manager.life;
            self.after(takes, Event::Commit(life));
        }
    }

    /// Checks an end that the manager has decided.
    fn judge_end(&mut self, attempt: AttemptId, outcome: &Outcome) {
        let on_lost = self.decided.jobs[&attempt.task.job].spec.on_lost;
        let unknown = matches!(outcome.kind, OutcomeKind::Lost | OutcomeKind::Cancelled);
        // What was cancelled does not wait for a node that is lost.
        let says = |part| outcome.message.as_ref().is_some_and(|text| text.contains(part));
        let is_forgotten = says("was forgotten by");
        if is_forgotten {
            self.forgotten.insert(attempt);
        }
        let given_up = is_forgotten
            || outcome.kind == OutcomeKind::Cancelled && says("was lost: no heartbeat");
        if (on_lost == OnLost::Wait && !given_up) || !unknown {
            let runs = self.nodes.iter().any(|node| node.is_running(attempt));
            assert!(!runs, "the manager says that {attempt} has ended, but it runs: {outcome:?}");
        }
        if (on_lost == OnLost::Requeue || given_up) && unknown {
            // It ended without a report from its node, so the node's later report does not count.
            for node in &mut self.nodes {
                if let Some(truth) = node.truths.get_mut(&attempt) {
                    truth.disturbed = true;
                }
            }
        }
        if let Some(code @ 0..100) = outcome.exit_code {
            let exit = self.truths().find(|(id, _)| *id == attempt).and_then(|(_, t)| t.exit);
            assert_eq!(exit, Some(code), "{attempt} never exited with this code");
        }
    }

    pub(crate) fn commit(&mut self, life: Life) {
        let Some(manager) = self.manager_for(life, Event::Commit(life)) else { return };
        let all = manager.pending.len() as u64;
        let some = 1 + self.rng.below(all.max(1));
        let (slow, fast) = (self.rng.short(4_000), self.rng.short(10));
        let deliver = self.rng.short(5);
        let now = self.now;
        let Some(manager) = &mut self.manager else { return };
        for _ in 0..some {
            let Some((at, step)) = manager.pending.pop_front() else { break };
            self.store.apply(at, &step);
            manager.committed.push_back(step);
        }
        let more = !manager.pending.is_empty();
        manager.committing = more;
        let takes = if now < manager.slow_until { slow } else { fast };
        self.after(deliver, Event::Deliver(life));
        if more {
            self.after(takes, Event::Commit(life));
        }
    }

    pub(crate) fn deliver(&mut self, life: Life) {
        let Some(manager) = self.manager_for(life, Event::Deliver(life)) else { return };
        let committed = std::mem::take(&mut manager.committed);
        let effects = committed.into_iter().flat_map(|step| step.effects).collect();
        self.carry_out_effects(effects);
    }

    fn carry_out_effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Some(manager) = &mut self.manager else { return };
            let mono_ms = manager.now(self.now).mono_ms;
            match effect {
                Effect::Send { connection, mut message } => {
                    if let ToPeer::Acked(_, acked) = &mut message
                        && self.planted == Some(Planted::AckedTooEarly)
                    {
                        *acked += 1;
                    }
                    self.send_to(connection, message);
                }
                Effect::SessionOpened { epoch, .. } => {
                    manager.leases.open(mono_ms, epoch);
                    manager.watched.insert(epoch, None);
                    self.after_leases();
                }
                Effect::SessionClosed { epoch } => {
                    manager.leases.close(epoch);
                    if let Some(Some(stream)) = manager.watched.remove(&epoch) {
                        self.manager_closes_stream(stream);
                    }
                }
                // Nobody joins in this world: agents are trusted by their names.
                Effect::KeyEnrolled { .. }
                | Effect::KeyRevoked { .. }
                | Effect::ApiTokenCreated { .. }
                | Effect::ApiTokenRevoked(_) => {}
                Effect::ServiceTouched(_) => {}
                Effect::Answered { ticket, result } => {
                    if let Ok(Answer::EndedBefore { job }) = result {
                        let ended =
                            self.store.is_removed(job) || self.store.row(job).state.is_end();
                        assert!(
                            ended,
                            "job {job} has not ended, but the reply to its cancel says so"
                        );
                    }
                    if let Some(ask) = request_of(ticket) {
                        self.reply_to(ask, result);
                    }
                }
            }
        }
    }

    /// Returns the nodes as the manager sees them.
    pub(crate) fn node_views(&self) -> Vec<NodeView> {
        let Some(manager) = &self.manager else { return Vec::new() };
        manager.core.list_nodes(manager.now(self.now), None, 100)
    }

    pub(crate) fn service_detail(&self, service: &Name) -> Option<ServiceDetail> {
        let manager = self.manager.as_ref()?;
        manager.core.show_service(manager.now(self.now), service)
    }

    fn send_to(&mut self, connection: ConnectionId, message: ToPeer) {
        let is_first = matches!(message, ToPeer::Endpoints { all: true, .. });
        if is_first && self.planted == Some(Planted::EndpointsNotSent) {
            return;
        }
        if !self.send_down(connection.0, message)
            && let Some(manager) = &self.manager
        {
            let event = Event::ToCore(manager.life, Box::new(Input::ConnectionGone { connection }));
            self.after(1, event);
        }
    }

    fn after_core(&mut self) {
        self.judge_drains();
        let now = self.now;
        let Some(manager) = &mut self.manager else { return };
        let Some(at) = manager.core.next_wakeup() else { return };
        let at = at.saturating_sub(manager.mono_offset).max(now);
        if manager.core_wakes.is_none_or(|set| at < set || set < now) {
            manager.core_wakes = Some(at);
            let life = manager.life;
            self.at(at, Event::CoreWakes(life));
        }
    }

    fn after_leases(&mut self) {
        let now = self.now;
        let Some(manager) = &mut self.manager else { return };
        let Some(at) = manager.leases.next_wakeup() else { return };
        let at = at.saturating_sub(manager.mono_offset).max(now);
        if manager.leases_wake.is_none_or(|set| at < set || set < now) {
            manager.leases_wake = Some(at);
            let life = manager.life;
            self.at(at, Event::LeasesWake(life));
        }
    }

    pub(crate) fn leases_wake(&mut self, life: Life) {
        let now = self.now;
        let Some(manager) = self.manager_for(life, Event::LeasesWake(life)) else { return };
        manager.leases_wake = None;
        let mono_ms = manager.now(now).mono_ms;
        let mut changes = Vec::new();
        if manager.leases.next_wakeup().is_some_and(|at| at <= mono_ms) {
            manager.leases.tick(mono_ms, &mut changes);
        }
        for (epoch, change) in changes {
            self.tell_core(Input::HeartbeatChanged { epoch, change });
        }
        self.after_leases();
    }

    /// Checks that a lost node was really away, and not only the manager.
    fn judge_loss(&mut self, lost: &Name) {
        let Some(manager) = &self.manager else { return };
        let patience = self.plan.lease_ms + self.plan.lease_ms / 2;
        // With a short lease, a slow disk alone can make an agent wait too long.
        if self.plan.lease_ms < LEASE_MS_DEFAULT || self.now - manager.started_at < 3 * patience {
            return;
        }
        // Of two machines with one name the one that has it may be lost.
        let mut nodes = self.nodes.iter().filter(|node| node.name == *lost);
        let away = nodes.any(|node| node.agent.is_none() || self.now < node.trouble_at + patience);
        let is_doubled = self.nodes.iter().any(|node| node.is_stranger && node.name == *lost);
        if is_doubled {
            return;
        }
        assert!(away, "node {lost} is lost, and was there all the time");
    }

    /// Sends an input from the heartbeat thread to the core, in order.
    fn tell_core(&mut self, input: Input) {
        let at = self.now + self.rng.short(3);
        if let Some(manager) = &mut self.manager {
            manager.told_until = at.max(manager.told_until);
            let (life, at) = (manager.life, manager.told_until);
            self.at(at, Event::ToCore(life, Box::new(input)));
        }
    }

    pub(crate) fn core_hears(&mut self, life: Life, input: Input) {
        let event = Event::ToCore(life, Box::new(input.clone()));
        if self.manager_for(life, event).is_some() {
            self.feed_manager(input);
        }
    }

    /// Handles a message from an agent's connection.
    pub(crate) fn manager_receives(&mut self, conn: ConnId, message: ToManager) {
        let connection = ConnectionId(conn);
        match message {
            ToManager::Hello(hello) => {
                let caller = Caller { role: Role::Agent, name: hello.node.clone(), key: None };
                let hello = Box::new(hello);
                self.feed_manager(Input::AgentConnected { connection, caller, hello });
            }
            ToManager::Reports(epoch, reports) => {
                self.feed_manager(Input::AttemptsReported { connection, epoch, reports });
            }
            ToManager::Goodbye(epoch) => self.feed_manager(Input::AgentLeft { connection, epoch }),
            ToManager::EndpointsApplied { epoch, applied, drained } => {
                self.feed_manager(Input::EndpointsApplied { connection, epoch, applied, drained });
            }
            ToManager::PortsClosed { .. } | ToManager::VolumesRemoved { .. } => {}
            ToManager::LogSlice(..) | ToManager::Request(_) => {}
        }
    }

    /// Handles the end of a peer's connection. The core is not always told.
    pub(crate) fn manager_hears(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.manager_open) else { return };
        let (life, node) = (conn.manager, conn.node);
        let cut_until = self.nodes[node].cut_until(Direction::Up);
        if self.now < cut_until {
            return self.at(cut_until, Event::ManagerHears(id));
        }
        if self.manager_for(life, Event::ManagerHears(id)).is_none() {
            return;
        }
        self.conns.get_mut(&id).expect("it was there").manager_open = false;
        if self.rng.percent(95) {
            self.feed_manager(Input::ConnectionGone { connection: ConnectionId(id) });
        }
    }

    fn manager_closes_stream(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && std::mem::replace(&mut stream.manager_open, false)
        {
            self.send_beat(id, Event::StreamFails(id), Direction::Down);
        }
    }

    pub(crate) fn beat_arrives(&mut self, id: StreamId, sent: u64) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.manager_open) else {
            return;
        };
        let (life, epoch, now) = (stream.manager, stream.epoch, self.now);
        let Some(manager) = self.manager_for(life, Event::BeatArrives(id, sent)) else { return };
        let mono_ms = manager.now(now).mono_ms;
        let adopted = self.streams.get(&id).is_some_and(|stream| stream.adopted);
        let Some(manager) = &mut self.manager else { return };
        let known = match manager.watched.get(&epoch) {
            None => false,
            Some(_) if !manager.leases.watches(epoch) => false,
            Some(stream) => !adopted || *stream == Some(id),
        };
        if !known {
            return self.manager_closes_stream(id);
        }
        let older = manager.watched.insert(epoch, Some(id)).flatten().filter(|old| *old != id);
        let change = manager.leases.on_beat(mono_ms, epoch);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.adopted = true;
        }
        if let Some(older) = older {
            self.manager_closes_stream(older);
        }
        if let Some(change) = change {
            self.tell_core(Input::HeartbeatChanged { epoch, change });
        }
        self.send_beat(id, Event::AnswerArrives(id, sent), Direction::Down);
        self.after_leases();
    }

    /// Handles the end of a stream at the manager.
    pub(crate) fn stream_ends(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.manager_open) else {
            return;
        };
        let (life, epoch) = (stream.manager, stream.epoch);
        let Some(manager) = self.manager_for(life, Event::StreamEnds(id)) else { return };
        let mut change = None;
        if manager.watched.get(&epoch) == Some(&Some(id)) {
            manager.watched.insert(epoch, None);
            change = manager.leases.on_stream_closed(epoch);
        }
        self.streams.get_mut(&id).expect("it was there").manager_open = false;
        if let Some(change) = change {
            self.tell_core(Input::HeartbeatChanged { epoch, change });
        }
    }
}

fn forget_deadlines(state: &mut State) {
    for row in state.nodes.values_mut() {
        if let Some(drain) = &row.drain {
            let mut drain = Drain::clone(drain);
            drain.spec.deadline_ms = None;
            drain.spec.requeue = false;
            Arc::make_mut(row).drain = Some(Arc::new(drain));
        }
    }
}

fn forget_update(change: &mut Change) {
    if let Change::ServiceSaved { saved, .. } = change {
        Arc::make_mut(saved).update = None;
    }
}
