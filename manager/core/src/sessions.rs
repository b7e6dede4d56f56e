//! Sessions: how they begin and end, and what happens to the attempts of a node when one begins.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::string::ToString as _;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::Caller;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, Name};
use podmesh_protocol::limits::{
    ATTEMPTS_PER_NODE_MAX, LABELS_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, NODES_MAX,
};
use podmesh_protocol::node::{NodeState, Scheduling};
use podmesh_protocol::place::validate_offers;
use podmesh_protocol::report::{AttemptState, Outcome, OutcomeKind};
use podmesh_protocol::session::{Hello, StopReason, ToPeer, Welcome};
use podmesh_protocol::spec::{RuntimeKind, validate_label_value};
use podmesh_protocol::time::Now;
use podmesh_protocol::version::NoCommonVersion;
use podmesh_protocol::word::MaybeKnown;

use crate::Core;
use crate::faults::planted;
use crate::ids::ConnectionId;
use crate::ids::NodeIx;
use crate::input::{HeartbeatChange, Input};
use crate::lease::late_after_ms;
use crate::nodes::PendingHello;
use crate::state::{Change, NodeRow};
use crate::step::{Effect, Step};
use crate::timers::{Timer, seconds};

/// A hello that is accepted.
struct Admitted {
    /// The protocol version of the session.
    version: u16,
    /// The agent's node, if it is known.
    known: Option<NodeIx>,
    /// The attempts that the agent holds.
    held: BTreeSet<AttemptId>,
}

impl Core {
    pub(crate) fn on_agent_connected(
        &mut self,
        now: Now,
        connection: ConnectionId,
        caller: Caller,
        hello: Box<Hello>,
        out: &mut Step,
    ) {
        let admitted =
            self.may_say_hello(&caller, &hello).and_then(|()| self.admit(connection, &hello));
        let Admitted { version, known, held } = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                tracing::info!(node = %hello.node, %error, "the session of an agent was refused");
                let message = ToPeer::Refused(error);
                return out.effects.push(Effect::Send { connection, message });
            }
        };
        let missing =
            known.map_or_else(VecDeque::new, |ix| self.missing_attempts(ix, &hello, &held));
        let boot_id = hello.boot_id.clone();
        let ix = self.open_session(known, connection, *hello, out);
        if let Some(session) = &mut self.nodes.get_mut(ix).session {
            session.pending_hello = Some(PendingHello { boot_id, missing });
        }
        self.welcome(now, ix, version, &held, out);
        if planted!(self, LateHelloCounts) {
            self.confirm_hello(now, ix, out);
        }
    }

    /// Applies the effects of a hello after the agent has shown that it received the welcome.
    /// Returns false if the step had no room for all of them. It must then be called again.
    pub(crate) fn confirm_hello(&mut self, now: Now, ix: NodeIx, out: &mut Step) -> bool {
        let node = self.nodes.get_mut(ix);
        let Some(session) = &mut node.session else { return true };
        let Some(PendingHello { boot_id, mut missing }) = session.pending_hello.take() else {
            return true;
        };
        while let Some((attempt, outcome)) = missing.pop_front() {
            if !self.has_room(out) {
                missing.push_front((attempt, outcome));
                if let Some(session) = &mut self.nodes.get_mut(ix).session {
                    session.pending_hello = Some(PendingHello { boot_id, missing });
                }
                return false;
            }
            // Something else may have ended it in the meantime.
            let active = self.state.jobs.get(&attempt.task.job).and_then(|job| {
                job.active.get(&attempt.task.index).filter(|active| active.number == attempt.number)
            });
            if active.is_some_and(|active| active.node == self.nodes.get(ix).row.node) {
                self.end_attempt(now, attempt.task, outcome, out);
            }
        }
        let row = &self.nodes.get(ix).row;
        if row.boot_id != boot_id {
            let row = NodeRow { boot_id, ..NodeRow::clone(row) };
            self.save_node(ix, row, out);
        }
        true
    }

    /// Checks whether an agent may have a session.
    fn admit(&self, connection: ConnectionId, hello: &Hello) -> Result<Admitted, ErrorReply> {
        let refuse = |code, message: String| Err(ErrorReply::new(code, message));
        let (theirs, manager) = (hello.versions(), self.config.versions);
        let Some(version) = manager.common(theirs) else {
            return Err(NoCommonVersion { peer: "the agent", theirs, manager }.into());
        };
        if let Some(cluster) = hello.cluster
            && cluster != self.state.cluster
        {
            let message = format!(
                "the data directory of agent `{}` belongs to cluster {cluster}, but this manager belongs to {}: connect the agent to its own manager, or give it a fresh data directory (--data-dir)",
                hello.node, self.state.cluster
            );
            return refuse(ErrorCode::WrongCluster, message);
        }
        let held = match validate(hello) {
            Ok(held) => held,
            Err(why) => return refuse(ErrorCode::BadMessage, format!("hello: {why}")),
        };
        if let Some(other) = self.nodes.by_connection(connection) {
            let other = &self.nodes.get(other).row.node;
            if *other != hello.node {
                let message = format!(
                    "hello: this connection already has a session as node `{other}`, and cannot have one as `{}`",
                    hello.node
                );
                return refuse(ErrorCode::BadMessage, message);
            }
        }
        let Some(ix) = self.nodes.by_name(&hello.node) else {
            if self.nodes.len() >= NODES_MAX {
                let message = format!(
                    "the manager knows {NODES_MAX} nodes, which is the limit (NODES_MAX): forget some that are gone for good (`podmesh nodes forget NAME`)"
                );
                return refuse(ErrorCode::Overloaded, message);
            }
            return Ok(Admitted { version, known: None, held });
        };
        let node = self.nodes.get(ix);
        let name = &hello.node;
        if node.state == NodeState::Alive && node.row.agent_instance != hello.agent_instance {
            let message = format!(
                "another agent that is alive uses the name `{name}`: stop it, or choose another name for this one (--name)"
            );
            return refuse(ErrorCode::NameTaken, message);
        }
        let is_another = node.is_another(hello.agent_id) && !planted!(self, NamesNotKept);
        if is_another && !node.attempts.is_empty() {
            let attempts = node.attempts.len();
            let message = format!(
                "the name `{name}` belongs to another agent whose attempts ({attempts}) may still run: start that agent again with its own data directory, or choose another name for this one (--name); if that agent is gone for good, `podmesh nodes forget {name}` frees the name"
            );
            return refuse(ErrorCode::NameTaken, message);
        }
        Ok(Admitted { version, known: Some(ix), held })
    }

    /// Returns the attempts that a node should hold but no longer does, with their outcomes. Leaves
    /// out attempts that are not known to have started, unless the machine was restarted or the job
    /// is cancelled: their starts are sent again. Also leaves out attempts of runtimes that the
    /// agent does not offer now: they may still run, or the runtime may know their exit code, even
    /// after a restart of the machine.
    fn missing_attempts(
        &self,
        ix: NodeIx,
        hello: &Hello,
        held: &BTreeSet<AttemptId>,
    ) -> VecDeque<(AttemptId, Outcome)> {
        let node = self.nodes.get(ix);
        let rebooted = node.row.boot_id != hello.boot_id;
        let mut missing = VecDeque::new();
        for task in node.attempts.keys() {
            let Some(job) = self.state.jobs.get(&task.job) else { continue };
            let Some(active) = job.active.get(&task.index) else { continue };
            let attempt = job.attempt_id(task.index, active.number);
            let kind = job.spec.run.runtime.kind();
            let unseen = !hello.runtimes.contains(&MaybeKnown::Known(kind));
            if held.contains(&attempt) || unseen {
                continue;
            }
            let lost = |why: &str| {
                let message = format!("{why}; what the attempt did is not known");
                Outcome::new(OutcomeKind::Lost).with_message(message)
            };
            let outcome = if rebooted {
                lost(&format!("the machine of node `{}` was restarted", hello.node))
            } else if active.state == AttemptState::Running {
                lost(&format!("the agent of node `{}` no longer holds it", hello.node))
            } else if job.is_stopping() || active.stop.is_some() {
                Outcome::new(OutcomeKind::Cancelled).with_message("cancelled before its start")
            } else {
                continue;
            };
            missing.push_back((attempt, outcome));
        }
        missing
    }

    /// Gives a node a new session, which replaces its old one if there is one.
    fn open_session(
        &mut self,
        known: Option<NodeIx>,
        connection: ConnectionId,
        hello: Hello,
        out: &mut Step,
    ) -> NodeIx {
        let epoch = Epoch(self.state.last_epoch.0 + 1);
        let instance = hello.agent_instance;
        let before = known.map(|ix| &*self.nodes.get(ix).row);
        let row = NodeRow {
            node: hello.node,
            boot_id: hello.boot_id,
            agent_instance: instance,
            program_version: hello.program_version,
            capacity: hello.capacity,
            labels: hello.labels,
            // It gets no work for runtimes of a later version.
            runtimes: hello.runtimes.iter().filter_map(MaybeKnown::known).copied().collect(),
            epoch,
            agent_id: hello.agent_id,
            lost_age_ms: None,
            scheduling: before.map_or_else(Scheduling::default, |row| row.scheduling),
            drain: before.and_then(|row| row.drain.clone()),
            maintenance: before.and_then(|row| row.maintenance.clone()),
            admin_labels: before.map_or_else(BTreeMap::new, |row| row.admin_labels.clone()),
            address: hello.address,
            resources: hello.resources,
        };
        self.state.record(out, Change::EpochTaken(epoch));
        out.events.push(EventFact::NodeConnected { node: row.node.clone(), instance });
        let withdrawn: BTreeMap<RuntimeKind, String> = hello
            .withdrawn
            .into_iter()
            .filter_map(|(runtime, why)| Some((*runtime.known()?, why)))
            .collect();
        let before = known.map(|ix| &self.nodes.get(ix).withdrawn);
        for (runtime, why) in &withdrawn {
            if before.and_then(|before| before.get(runtime)) != Some(why) {
                let fact = EventFact::RuntimeWithdrawn {
                    node: row.node.clone(),
                    runtime: (*runtime).into(),
                    message: why.clone(),
                };
                out.events.push(fact);
            }
        }
        for runtime in before.into_iter().flat_map(BTreeMap::keys) {
            if row.runtimes.contains(runtime) {
                let (node, runtime) = (row.node.clone(), (*runtime).into());
                out.events.push(EventFact::RuntimeOffered { node, runtime });
            }
        }
        let is_new_owner = known.is_some_and(|ix| self.nodes.get(ix).is_another(row.agent_id));
        let ix = match known {
            Some(ix) => {
                if let Some(old) = self.nodes.close_session(ix) {
                    out.effects.push(Effect::SessionClosed { epoch: old.epoch });
                }
                let node = self.nodes.get_mut(ix);
                if node.row.agent_instance != instance {
                    node.acked = None;
                }
                // The new boot ID is saved only once the hello is confirmed.
                let row = NodeRow { boot_id: node.row.boot_id.clone(), ..row };
                self.save_node(ix, row, out);
                ix
            }
            None => {
                let row = Arc::new(row);
                self.state.record(out, Change::NodeSaved(Arc::clone(&row)));
                self.nodes.insert(row)
            }
        };
        let node = self.nodes.get_mut(ix);
        (node.withdrawn, node.unenforced) = (withdrawn, hello.unenforced);
        node.low_disks = hello.low_disks;
        self.nodes.open_session(ix, epoch, connection);
        if is_new_owner {
            // Its first heartbeat makes it alive. A delayed hello of the previous owner must not
            // get work, because that would keep the name from the current one.
            self.nodes.get_mut(ix).state = NodeState::Suspect;
        }
        self.nodes.set_deadline(&mut self.timers, ix, None);
        self.set_resend(ix, None);
        self.queue.node_changed(ix, &self.nodes);
        ix
    }

    /// Saves the row of a known node.
    pub(crate) fn save_node(&mut self, ix: NodeIx, row: NodeRow, out: &mut Step) {
        let row = Arc::new(row);
        self.nodes.get_mut(ix).row = Arc::clone(&row);
        self.state.record(out, Change::NodeSaved(row));
    }

    /// Tells the agent which attempts to keep and which to stop, and sends the starts that it
    /// lacks.
    fn welcome(
        &mut self,
        now: Now,
        ix: NodeIx,
        version: u16,
        held: &BTreeSet<AttemptId>,
        out: &mut Step,
    ) {
        let mut keep = Vec::new();
        let mut restarted = false;
        let strays_kept = planted!(self, StraysKept);
        let starts_forgotten = planted!(self, StartsForgotten);
        let node = self.nodes.get_mut(ix);
        let Some(session) = &mut node.session else { return };
        let pending_hello =
            session.pending_hello.iter().flat_map(|pending_hello| &pending_hello.missing);
        let missing: BTreeSet<AttemptId> = pending_hello.map(|(attempt, _)| *attempt).collect();
        for (task, delivery) in &mut node.attempts {
            let Some(job) = self.state.jobs.get(&task.job) else { continue };
            let has_runtime = node.row.runtimes.contains(&job.spec.run.runtime.kind());
            let Some(active) = job.active.get(&task.index) else { continue };
            let cancelling = job.is_stopping() || active.stop.is_some();
            let attempt = AttemptId { task: *task, number: active.number };
            delivery.heard = held.contains(&attempt);
            if delivery.heard {
                delivery.sent_ms = None;
                keep.push(attempt);
                if cancelling {
                    session.outgoing.stops.push((attempt, StopReason::Cancelled));
                }
            } else if starts_forgotten || missing.contains(&attempt) || !has_runtime {
                delivery.sent_ms = None;
                if cancelling && !has_runtime {
                    // If the agent knows that it does not hold the attempt, it reports that.
                    session.outgoing.stops.push((attempt, StopReason::Cancelled));
                }
            } else {
                delivery.sent_ms = Some(now.mono_ms);
                session.outgoing.starts.push(attempt);
                session.outgoing.claims.extend(active.claims.as_ref().map(|_| attempt));
                restarted = true;
            }
            if let Some(dispatch) = self.dispatch.get_mut(&task.job)
                && dispatch.tell(ix, session.epoch)
            {
                session.outgoing.specs.push(task.job);
            }
        }
        self.touched.insert(ix);
        let kept: BTreeSet<&AttemptId> = keep.iter().collect();
        let is_stray = |attempt: &&AttemptId| !kept.contains(attempt) && !strays_kept;
        let stop = held.iter().filter(is_stray).copied().collect();
        let welcome = Welcome {
            version,
            epoch: session.epoch,
            cluster: self.state.cluster,
            lease_ms: self.config.lease_ms,
            heartbeat_ms: self.config.heartbeat_ms,
            acked: node.acked.unwrap_or(0),
            stop,
            keep,
        };
        let connection = session.connection;
        out.effects.push(Effect::SessionOpened {
            epoch: session.epoch,
            node: node.row.node.clone(),
            connection,
        });
        out.effects.push(Effect::Send { connection, message: ToPeer::Welcome(welcome) });
        if restarted {
            self.expect_reaction(now, ix);
        }
        self.ask_for_removals(ix);
    }

    /// Handles the orderly end of a session by its agent. Containers may continue: the lease runs.
    pub(crate) fn on_agent_left(
        &mut self,
        now: Now,
        connection: ConnectionId,
        epoch: Epoch,
        out: &mut Step,
    ) {
        let Some(ix) = self.nodes.by_session(connection, epoch) else {
            let message = ToPeer::HelloAgain(epoch);
            return out.effects.push(Effect::Send { connection, message });
        };
        self.leave(now, ix, "its agent was stopped", out);
    }

    /// Ends the session of a node whose attempts may continue until the end of its lease.
    fn leave(&mut self, now: Now, ix: NodeIx, why: &str, out: &mut Step) {
        let Some(session) = self.nodes.close_session(ix) else { return };
        out.effects.push(Effect::SessionClosed { epoch: session.epoch });
        self.set_resend(ix, None);
        let lost_at = now.mono_ms.saturating_add(self.config.lease_ms);
        self.nodes.set_deadline(&mut self.timers, ix, Some((lost_at, Timer::NodeLost(ix))));
        if let Some(name) = self.nodes.become_suspect(ix, now.mono_ms) {
            out.events.push(EventFact::NodeSuspect { node: name, message: why.into() });
        }
    }

    /// Handles a connection that can no longer be reached. An agent then needs a new session. Until it
    /// asks for one, its heartbeats may continue, but nothing new is placed on its node.
    pub(crate) fn on_connection_gone(
        &mut self,
        now: Now,
        connection: ConnectionId,
        out: &mut Step,
    ) {
        let Some(ix) = self.nodes.by_connection(connection) else { return };
        if let Some(session) = &mut self.nodes.get_mut(ix).session {
            session.connection_gone = true;
        }
        if let Some(name) = self.nodes.become_suspect(ix, now.mono_ms) {
            let why = "its connection is gone".into();
            out.events.push(EventFact::NodeSuspect { node: name, message: why });
        }
    }

    pub(crate) fn on_heartbeat_changed(
        &mut self,
        now: Now,
        epoch: Epoch,
        change: HeartbeatChange,
        out: &mut Step,
    ) {
        let Some(ix) = self.nodes.by_epoch(epoch) else { return };
        match change {
            HeartbeatChange::Begun => {
                if !self.confirm_hello(now, ix, out) {
                    // The input goes back to the front of the backlog.
                    self.backlog.push_front(Input::HeartbeatChanged { epoch, change });
                    return;
                }
                self.on_heartbeat_changed(now, epoch, HeartbeatChange::Resumed, out);
            }
            HeartbeatChange::Closed => {
                if let Some(name) = self.nodes.become_suspect(ix, now.mono_ms) {
                    let why = "its heartbeat connection was closed".into();
                    out.events.push(EventFact::NodeSuspect { node: name, message: why });
                }
            }
            HeartbeatChange::Late => {
                let late_ms = late_after_ms(self.config.heartbeat_ms);
                let seen_ms = now.mono_ms.saturating_sub(late_ms);
                if let Some(name) = self.nodes.become_suspect(ix, seen_ms) {
                    let why = format!("no heartbeat for {} s", seconds(late_ms));
                    out.events.push(EventFact::NodeSuspect { node: name, message: why });
                }
            }
            HeartbeatChange::Resumed => {
                let node = self.nodes.get_mut(ix);
                let reachable =
                    node.session.as_ref().is_some_and(|session| !session.connection_gone);
                if node.state == NodeState::Suspect && reachable {
                    let node = self.nodes.become_alive(ix);
                    out.events.push(EventFact::NodeRecovered { node });
                    self.queue.node_changed(ix, &self.nodes);
                }
            }
            HeartbeatChange::LeaseExpired => {
                self.nodes.become_suspect(ix, now.mono_ms.saturating_sub(self.config.lease_ms));
                self.nodes.close_session(ix);
                out.effects.push(Effect::SessionClosed { epoch });
                self.set_resend(ix, None);
                self.on_lease_ended(now, ix, out);
            }
        }
    }

    /// Ends the session of a node whose key was revoked. Its lease runs on, because until its end
    /// the agent may not know of the revocation and may continue.
    pub(crate) fn end_session_of(&mut self, now: Now, node: &Name, out: &mut Step) {
        if let Some(ix) = self.nodes.by_name(node) {
            self.leave(now, ix, "its key was revoked", out);
        }
    }
}

/// Checks the limits of a hello. Returns the attempts that it names, or what is wrong.
fn validate(hello: &Hello) -> Result<BTreeSet<AttemptId>, String> {
    let at_most = |what: &str, found: usize, max: usize, limit: &str| {
        if found <= max {
            return Ok(());
        }
        Err(format!("{found} {what} are over the limit of {max} ({limit})"))
    };
    at_most("bytes of boot id", hello.boot_id.len(), NAME_BYTES_MAX, "NAME_BYTES_MAX")?;
    let version = hello.program_version.len();
    at_most("bytes of program version", version, NAME_BYTES_MAX, "NAME_BYTES_MAX")?;
    at_most("labels", hello.labels.len(), LABELS_MAX, "LABELS_MAX")?;
    for value in hello.labels.values() {
        validate_label_value("labels", value).map_err(|error| error.to_string())?;
    }
    hello.capacity.validate().map_err(|error| format!("capacity: {error}"))?;
    validate_offers(&hello.resources).map_err(|error| error.to_string())?;
    let runtimes: BTreeSet<_> = hello.runtimes.iter().collect();
    if runtimes.len() != hello.runtimes.len() {
        return Err("a runtime is named twice".into());
    }
    at_most("unenforced limits", hello.unenforced.len(), LABELS_MAX, "LABELS_MAX")?;
    at_most("low disks", hello.low_disks.len(), LABELS_MAX, "LABELS_MAX")?;
    for what in hello.unenforced.keys().chain(hello.low_disks.keys()) {
        at_most("bytes of a limit's name", what.len(), NAME_BYTES_MAX, "NAME_BYTES_MAX")?;
    }
    let reasons = hello.withdrawn.values().chain(hello.unenforced.values());
    for why in reasons.chain(hello.low_disks.values()) {
        at_most("bytes of a reason", why.len(), MESSAGE_BYTES_MAX, "MESSAGE_BYTES_MAX")?;
    }
    if let Some(address) = &hello.address
        && address.parse::<core::net::IpAddr>().is_err()
    {
        return Err(format!("`{}` is not an IP address", address.escape_debug()));
    }
    at_most("attempts", hello.attempts.len(), ATTEMPTS_PER_NODE_MAX, "ATTEMPTS_PER_NODE_MAX")?;
    let mut held = BTreeSet::new();
    for attempt in &hello.attempts {
        if !held.insert(*attempt) {
            return Err(format!("attempt {attempt} is named twice"));
        }
    }
    Ok(held)
}
