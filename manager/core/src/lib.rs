//! The manager's decisions, without side effects: inputs are facts, steps are plain values.
//!
//! ```text
//! let mut core = Core::new(now, config, state);
//! loop {
//!     // wait for an input; if none comes until `core.next_wakeup()`, take `Input::Tick`
//!     core.step(now, input, &mut step);
//!     // commit `step.changes` and `step.events`, then carry out `step.effects`; `step.clear()`
//! }
//! ```
//!
//! It is `no_std`: no clock, socket, file, thread, randomness or hash order. The same inputs at the
//! same times give the same steps. The modules:
//!
//! - [`input`] and [`step`]: the interface to the shell and the store
//! - [`state`]: everything durable, and the only way to change it
//! - `access`, `renewal`: join tokens and keys
//! - `jobs`: submitting, cancelling and retrying
//! - `requeue`: running ended tasks again, and cancelling the rest of a job by its rules
//! - `placement`: which task goes to which node
//! - `queues`: the queues that jobs wait in, and their limits
//! - `dead_letters`: the jobs that queues submit for tasks that have failed for good
//! - `bonds`, `volumes`: tasks that must run where their volume or their project is
//! - `nodes`, `sessions`: nodes, their sessions, and the attempts that an agent holds when a
//!   session begins
//! - `forget`: removing nodes that are gone for good
//! - `reports`: the reports of agents, and what follows the end of an attempt
//! - `timers`: what happens as time passes
//! - `scheduling`: nodes that are cordoned or drained, and their labels
//! - `maintenance`: nodes that are drained for a planned time
//! - `stopping`: attempts that are stopped although their jobs go on
//! - `schedules`: jobs that are submitted again and again, and jobs that start later
//! - `services`: replicas, kept running and replaced
//! - `upstream`: jobs that wait for other jobs
//! - `workflows`: jobs that are submitted together
//! - `retention`: removing what has been kept long enough
//! - `explain`: why tasks wait
//! - `restore`: what is derived from the state after a start
//! - [`lease`]: watching heartbeats, in a thread of its own
//!
//! `invariants` checks what must hold after every step.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod access;
mod bonds;
mod dead_letters;
mod explain;
#[cfg(not(feature = "planted-faults"))]
mod faults;
#[cfg(feature = "planted-faults")]
pub mod faults;
mod forget;
pub mod ids;
mod in_use;
pub mod input;
#[cfg(any(test, feature = "invariants"))]
mod invariants;
mod jobs;
pub mod lease;
mod maintenance;
pub mod measures;
mod nodes;
mod placement;
mod queues;
mod recorded;
mod renewal;
mod reports;
mod requeue;
mod restore;
mod retention;
pub mod schedules;
mod scheduling;
mod services;
mod sessions;
pub mod state;
pub mod step;
mod stopping;
#[cfg(test)]
mod tests;
mod timers;
mod upstream;
mod volumes;
mod workflows;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, EVENTS_PER_CHUNK_MAX};
use podmesh_protocol::node::NodeView;
use podmesh_protocol::place::Claims;
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::time::{Millis, Now};
use podmesh_protocol::version::VersionRange;

use crate::access::{Access, NewToken};
use crate::bonds::Bonds;
use crate::ids::NodeIx;
use crate::ids::Ticket;
use crate::input::{Command, Input};
use crate::jobs::{Dispatch, Submissions};
use crate::maintenance::Windows;
use crate::measures::Measures;
use crate::nodes::Nodes;
use crate::placement::Queue;
use crate::recorded::Recorded;
use crate::schedules::Schedules;
use crate::services::Services;
use crate::state::State;
use crate::step::{Answer, Effect, Step};
use crate::timers::Timers;
use crate::upstream::Dependents;

/// The durations and versions that the core uses. The `Welcome` tells agents the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// Milliseconds for which a node counts as alive after a heartbeat.
    pub lease_ms: u64,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds between the end of a node's lease and the first new attempt of a task that ran
    /// there.
    pub margin_ms: u64,
    /// The protocol versions that it speaks with agents: [`VersionRange::SPOKEN`] except in tests.
    pub versions: VersionRange,
}

/// The state of the cluster, and all decisions about it: jobs, queue, nodes, sessions, attempts.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    state: Recorded,
    /// The time of the last step.
    now: Now,
    /// The jobs of the state, as their tasks are handed out. Boxed, because nodes of the map are half
    /// empty.
    dispatch: BTreeMap<JobId, Box<Dispatch>>,
    submissions: Submissions,
    nodes: Nodes,
    access: Access,
    services: Services,
    schedules: Schedules,
    windows: Windows,
    /// The jobs that wait for others.
    dependents: Dependents,
    queue: Queue,
    bonds: Bonds,
    /// Why nodes could not remove volumes, when they last tried.
    volume_failures: BTreeMap<Name, String>,
    timers: Timers,
    /// Inputs, and parts of inputs, that did not fit into the last step, in order.
    backlog: VecDeque<Input>,
    /// Cancelled jobs that still have retries to drop. Each step drops a limited number.
    draining: BTreeSet<JobId>,
    /// Jobs that this step has changed. Their `dirty` flag is set.
    dirty: Vec<JobId>,
    /// Nodes that this step has messages for.
    touched: BTreeSet<NodeIx>,
    /// Without the length of the queue.
    measures: Measures,
    #[cfg(feature = "planted-faults")]
    fault: Option<faults::Fault>,
}

/// The most claims in one message: those of an attempt are up to 16 lists of 256 ids.
const CLAIMS_PER_MESSAGE: usize = 1;

/// The most events that one unit of work adds, not counting a resulting `JobEnded`.
const EVENTS_PER_UNIT: usize = 6;

impl Core {
    /// Activates a deliberate fault, which the simulator must find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: faults::Fault) {
        self.fault = Some(fault);
    }

    /// Processes one fact and appends the results to `out`, which must be [clear](Step::clear).
    ///
    /// A step has at most [`EVENTS_PER_CHUNK_MAX`] events. Work that does not fit is kept, in
    /// order, for the next step, and [`Core::next_wakeup`] then returns a time that is not in the
    /// future.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Step) {
        debug_assert!(out.is_empty(), "the last step has not been cleared");
        self.now = Now { mono_ms: now.mono_ms.max(self.now.mono_ms), wall_ms: now.wall_ms };
        let now = self.now;
        // Before the timers: the deadline of a drain that is over stops nothing.
        self.run_windows(now, out);
        self.run_timers(now, out);
        self.services.run_timers(now);
        self.drop_retries(out);
        self.release_jobs(now);
        self.run_schedules(now, out);
        if !matches!(input, Input::Tick) {
            self.backlog.push_back(input);
        }
        while self.has_room(out) {
            let Some(input) = self.backlog.pop_front() else { break };
            self.take(now, input, out);
        }
        self.reconcile_services(now, out);
        self.settle_dependents(now, out);
        self.place(now, out);
        self.settle_jobs(now, out);
        self.settle_bonds();
        self.flush_messages(out);
        self.state.number_events(out);
        self.flush_services(out);
    }

    /// Returns the nodes whose names sort after `after`: at most `limit`, and only as many as fit
    /// into one frame, but at least one if there is one and `limit` is not 0.
    pub fn list_nodes(&self, now: Now, after: Option<&Name>, limit: u32) -> Vec<NodeView> {
        let mut rows = self.nodes.page(now, after, limit);
        for row in &mut rows {
            row.enrolled = self.access.is_enrolled(&row.node);
        }
        rows
    }

    /// Returns the durable state after the last step.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the monotonic time at which an [`Input::Tick`] is due; `None` if there is nothing to
    /// do before the next input. If the time is not in the future, the last step has left work
    /// over: tick before any further input, so that this work does not grow.
    pub fn next_wakeup(&self) -> Option<Millis> {
        if !self.backlog.is_empty()
            || !self.draining.is_empty()
            || self.queue.has_work()
            || self.services.has_work()
            || self.schedules.has_work(self.now.wall_ms)
            || self.windows.next_wakeup().is_some_and(|at| at <= self.now.wall_ms)
        {
            return Some(self.now.mono_ms);
        }
        let others = self.queue.next_wakeup().into_iter().chain(self.services.next_wakeup());
        self.timers.first().into_iter().chain(others).min()
    }

    /// Returns the time of the wall clock at which an [`Input::Tick`] is due: a schedule is due, a job
    /// may start, or the maintenance of a node begins or ends. The wall clock may jump, so the shell must compare again and again.
    pub fn next_wakeup_wall(&self) -> Option<u64> {
        self.schedules.next_wakeup().into_iter().chain(self.windows.next_wakeup()).min()
    }

    fn take(&mut self, now: Now, input: Input, out: &mut Step) {
        match input {
            Input::Command(ticket, command) => self.on_command(now, ticket, command, out),
            Input::RetentionDue { age_ms, keep_ms, by } => {
                self.on_retention_due(age_ms, keep_ms, &by, out);
            }
            Input::AgentConnected { connection, caller, hello } => {
                self.on_agent_connected(now, connection, caller, hello, out);
            }
            Input::AttemptsReported { connection, epoch, reports } => {
                self.on_attempts_reported(now, connection, epoch, reports, out);
            }
            Input::AgentLeft { connection, epoch } => {
                self.on_agent_left(now, connection, epoch, out)
            }
            Input::EndpointsApplied { connection, epoch, applied, drained } => {
                self.on_endpoints_applied(connection, epoch, applied, drained);
            }
            Input::PortsClosed { connection, epoch, closed } => {
                self.on_ports_closed(connection, epoch, closed);
            }
            Input::VolumesRemoved { connection, epoch, removed, failed } => {
                self.on_volumes_removed(connection, epoch, removed, failed, out);
            }
            Input::ConnectionGone { connection } => self.on_connection_gone(now, connection, out),
            Input::HeartbeatChanged { epoch, change } => {
                self.on_heartbeat_changed(now, epoch, change, out);
            }
            Input::RenewedKeyUsed { key } => self.on_renewed_key_used(key, out),
            Input::ApiTokenUsed { id } => self.on_api_token_used(now, id, out),
            Input::ManagerKeyRotated { digest, by } => {
                out.events.push(EventFact::ManagerKeyRotated { key: digest, by });
            }
            Input::ConnectionsRefused { why, count } => {
                out.events.push(EventFact::ConnectionsRefused { message: why, count });
            }
            Input::Tick => {}
        }
    }

    fn on_command(&mut self, now: Now, ticket: Ticket, command: Command, out: &mut Step) {
        let result = match command {
            Command::Submit { by, submission, spec, upstream } => {
                return self.on_submit(now, ticket, by, submission, spec, &upstream, out);
            }
            Command::SubmitWorkflow { by, submission, workflow, positions } => {
                self.submit_workflow(now, by, submission, *workflow, &positions, out)
            }
            Command::CancelDownstream { job, done } => {
                return self.on_cancel_downstream(ticket, job, done, out);
            }
            Command::CancelWorkflow { workflow, jobs, done } => {
                return self.on_cancel_workflow(ticket, workflow, jobs, done, out);
            }
            Command::Cancel { job } => return self.on_cancel(ticket, job, out),
            Command::Requeue { by, job, ended, tasks, rest } => {
                self.requeue(now, by, job, ended, tasks, rest, out)
            }
            Command::ForgetNode { by, node, force } => {
                return self.on_forget_node(now, ticket, by, node, force, out);
            }
            Command::ApplyService { by, spec, back_to } => {
                self.apply_service(now, by, spec, back_to, out)
            }
            Command::ChangeService { by, service, change } => {
                self.change_service(now, by, &service, change, out)
            }
            Command::SaveSchedule { by, spec } => self.save_schedule(now, by, spec, out),
            Command::ChangeSchedule { by, schedule, change } => {
                self.change_schedule(now, by, &schedule, change, out)
            }
            Command::SetQueue { by, queue, change } => self.set_queue(by, queue, &change, out),
            Command::ChangeQueue { by, queue, action } => self.change_queue(by, queue, action, out),
            Command::ScheduleNode { by, node, scheduling, drain } => {
                self.schedule_node(now, by, &node, scheduling, drain, out)
            }
            Command::SetMaintenance { by, node, maintenance } => {
                self.set_maintenance(now, by, &node, maintenance, out)
            }
            Command::LabelNode { by, node, set, remove } => {
                self.label_node(by, &node, set, remove, out)
            }
            Command::RemoveVolume { by, volume, force } => {
                self.remove_volume(by, volume, force, out)
            }
            Command::RemoveJobs { jobs, by } => Ok(self.remove_jobs(jobs, by, out)),
            Command::CreateToken { by, secret_hash, role, ttl_ms, uses } => {
                let new = NewToken { by, secret_hash, role, ttl_ms, uses, api: false };
                self.create_token(now, new, out)
            }
            Command::CreateApiToken { by, secret_hash, role, ttl_ms } => {
                let new = NewToken { by, secret_hash, role, ttl_ms, uses: 1, api: true };
                self.create_token(now, new, out)
            }
            Command::RevokeToken { by, id } => self.revoke_token(&by, id, out),
            Command::RenewKey { old, new } => self.renew(now, old, new, out),
            Command::RevokeKey { by, kind, name } => self.revoke(now, &by, kind, &name, out),
            Command::Join { key, token, secret_hash, name } => {
                self.join(now, key, token, &secret_hash, name, out)
            }
        };
        answer(out, ticket, result);
    }

    /// Returns whether the events of one more unit of work fit into this step. Every changed job
    /// may still add a `JobEnded`.
    fn has_room(&self, out: &Step) -> bool {
        out.events.len() + self.dirty.len() + EVENTS_PER_UNIT <= EVENTS_PER_CHUNK_MAX
    }

    /// Sends the messages that this step has collected for each session: specs before the starts
    /// that need them, and starts before the stops of the same attempts.
    fn flush_messages(&mut self, out: &mut Step) {
        while let Some(ix) = self.touched.pop_first() {
            let Some(session) = &mut self.nodes.get_mut(ix).session else { continue };
            let (epoch, connection) = (session.epoch, session.connection);
            let outgoing = core::mem::take(&mut session.outgoing);
            let mut send = |message| out.effects.push(Effect::Send { connection, message });
            for id in outgoing.specs {
                if let Some(job) = self.state.jobs.get(&id) {
                    send(job.spec_message(epoch));
                }
            }
            for rows in outgoing.claims.chunks(CLAIMS_PER_MESSAGE) {
                let of = |attempt: &AttemptId| {
                    let active =
                        self.state.jobs.get(&attempt.task.job)?.active.get(&attempt.task.index)?;
                    Some((*attempt, Claims::clone(active.claims.as_deref()?)))
                };
                send(ToPeer::Claims { epoch, claims: rows.iter().filter_map(of).collect() });
            }
            for rows in outgoing.starts.chunks(BATCH_ROWS_MAX) {
                send(ToPeer::Starts(epoch, rows.to_vec()));
            }
            for rows in outgoing.stops.chunks(BATCH_ROWS_MAX) {
                send(ToPeer::Stops(epoch, rows.to_vec()));
            }
            for rows in outgoing.forget.chunks(BATCH_ROWS_MAX) {
                send(ToPeer::ForgetJobs(epoch, rows.to_vec()));
            }
            for rows in outgoing.remove_volumes.chunks(BATCH_ROWS_MAX) {
                send(ToPeer::RemoveVolumes { epoch, volumes: rows.to_vec() });
            }
        }
    }
}

/// Adds the answer to a command.
fn answer(out: &mut Step, ticket: Ticket, result: Result<Answer, ErrorReply>) {
    out.effects.push(Effect::Answered { ticket, result });
}
