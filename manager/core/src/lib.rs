//! The manager's decisions, pure: inputs are facts of the past, steps are plain values.
//!
//! ```text
//! let mut core = Core::new(now, config, snapshot);
//! loop {
//!     // wait for an input, or until `core.next_wakeup()`, and then for `Input::Tick`
//!     core.step(now, input, &mut step);
//!     // commit `step.changes` and `step.events`, then carry out `step.effects`; `step.clear()`
//! }
//! ```
//!
//! No clock, no socket, no file, no thread, no randomness, no hash order: the same inputs at the
//! same times give the same steps. Where things stand:
//!
//! - [`input`] and [`step`]: the seam, all that the shell and the store see
//! - `jobs`: the queue's entries; submitting and cancelling
//! - `placement`: which task goes to which node
//! - `nodes`, `sessions`: nodes, their sessions, and what a new session makes of what is held
//! - `reports`: what agents say, and what follows the end of an attempt
//! - `timers`: what happens as time passes
//! - `explain`: why tasks wait, for people
//! - `restore`: the core after a start
//! - [`lease`]: the heartbeats' side, used by a thread of its own
//!
//! What every step keeps is written down as code in `invariants`.

mod access;
mod explain;
#[cfg(not(feature = "planted-faults"))]
mod faults;
#[cfg(feature = "planted-faults")]
pub mod faults;
pub mod input;
#[cfg(any(test, feature = "invariants"))]
mod invariants;
mod jobs;
pub mod lease;
mod nodes;
mod placement;
mod renewal;
mod reports;
mod restore;
mod sessions;
pub mod step;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use podmesh_protocol::client::{Reply, ReplyBody};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::ids::{ClusterId, Epoch, JobId, Revision};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, EVENTS_PER_CHUNK_MAX};
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::time::{Millis, Now};

use crate::access::Access;
use crate::input::{Input, Peer};
use crate::jobs::{Job, Submissions};
use crate::nodes::{NodeIx, Nodes};
use crate::placement::Queue;
use crate::step::{Effect, Step};
use crate::timers::Timers;

/// The figures that the core goes by, and that it tells agents in the `Welcome`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// Milliseconds for which a node counts as alive after a heartbeat.
    pub lease_ms: u64,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds between the end of a lease and the first new attempt of what ran there.
    pub margin_ms: u64,
}

/// The manager's decisions: jobs, queue, nodes, sessions, attempts.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    cluster: ClusterId,
    last_job: JobId,
    last_epoch: Epoch,
    last_revision: Revision,
    /// The moment of the last step.
    now: Now,
    /// The jobs that have not ended.
    jobs: BTreeMap<JobId, Job>,
    submissions: Submissions,
    nodes: Nodes,
    access: Access,
    queue: Queue,
    timers: Timers,
    /// Inputs, and rests of inputs, for which the last step had no room, in order.
    backlog: VecDeque<Input>,
    /// Cancelled jobs with tasks that wait for a retry: these are dropped bit by bit.
    draining: BTreeSet<JobId>,
    /// Jobs that have changed in this step; each has its `dirty` set.
    dirty: Vec<JobId>,
    /// Nodes that are sent something in this step.
    touched: BTreeSet<NodeIx>,
    #[cfg(feature = "planted-faults")]
    fault: Option<faults::Fault>,
}

/// Events that one unit of work may add, the `JobEnded` that may come of it not counted.
const EVENTS_PER_UNIT: usize = 4;

impl Core {
    /// Makes a mistake from now on, for the simulator to find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: faults::Fault) {
        self.fault = Some(fault);
    }

    /// Takes one fact, and appends what follows from it to `out`, which must be
    /// [clear](Step::clear).
    ///
    /// A step has at most [`EVENTS_PER_CHUNK_MAX`] events. What does not fit is kept, in order,
    /// for the next step, and [`Core::next_wakeup`] then is not in the future.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Step) {
        debug_assert!(out.is_empty(), "the last step has not been cleared");
        self.now = Now { mono_ms: now.mono_ms.max(self.now.mono_ms), wall_ms: now.wall_ms };
        let now = self.now;
        self.run_timers(now, out);
        self.drop_retries(out);
        if !matches!(input, Input::Tick) {
            self.backlog.push_back(input);
        }
        while self.has_room(out) {
            let Some(input) = self.backlog.pop_front() else { break };
            self.take(now, input, out);
        }
        self.place(now, out);
        self.settle_jobs(now, out);
        self.flush_messages(out);
        if !out.events.is_empty() {
            out.first_revision = Some(Revision(self.last_revision.0 + 1));
            self.last_revision.0 += out.events.len() as u64;
        }
    }

    /// The monotonic moment at which a [`Input::Tick`] is due; none: nothing is to be done before
    /// the next input. Where it is not in the future, work is left over from the last step: tick
    /// before any further input, so that what is left over does not grow.
    pub fn next_wakeup(&self) -> Option<Millis> {
        if !self.backlog.is_empty() || !self.draining.is_empty() || self.queue.has_heads() {
            return Some(self.now.mono_ms);
        }
        self.timers.first()
    }

    fn take(&mut self, now: Now, input: Input, out: &mut Step) {
        match input {
            Input::JobSubmitted { peer, request, submission, spec } => {
                self.on_job_submitted(now, peer, request, submission, spec, out);
            }
            Input::CancelRequested { peer, request, job } => {
                self.on_cancel_requested(peer, request, job, out);
            }
            Input::ExplanationRequested { question, job } => {
                let waits_for = self.explain(now, job);
                out.effects.push(Effect::Explained { question, waits_for });
            }
            Input::NodesRequested { peer, request, after, limit } => {
                let mut rows = self.nodes.page(now, after.as_ref(), limit);
                for row in &mut rows {
                    row.enrolled = self.access.is_enrolled(&row.node);
                }
                reply(out, peer, request, Ok(ReplyBody::Nodes(rows)));
            }
            Input::AgentConnected { peer, caller, hello } => {
                self.on_agent_connected(now, peer, caller, hello, out);
            }
            Input::AttemptsReported { peer, epoch, reports } => {
                self.on_attempts_reported(now, peer, epoch, reports, out);
            }
            Input::AgentLeft { peer, epoch } => self.on_agent_left(now, peer, epoch, out),
            Input::PeerGone { peer } => self.on_peer_gone(now, &peer, out),
            Input::HeartbeatChanged { epoch, change } => {
                self.on_heartbeat_changed(now, epoch, change, out);
            }
            Input::Access(input) => self.on_access(now, input, out),
            Input::Tick => {}
        }
    }

    /// Whether one more unit of work fits the events of this step. Every changed job may still
    /// add a `JobEnded`.
    fn has_room(&self, out: &Step) -> bool {
        out.events.len() + self.dirty.len() + EVENTS_PER_UNIT <= EVENTS_PER_CHUNK_MAX
    }

    /// Sends what this step has gathered for each session: specs before the starts that need
    /// them, starts before the stops that may concern them.
    fn flush_messages(&mut self, out: &mut Step) {
        while let Some(ix) = self.touched.pop_first() {
            let Some(session) = &mut self.nodes.get_mut(ix).session else { continue };
            let (epoch, peer) = (session.epoch, session.peer.clone());
            let outgoing = std::mem::take(&mut session.outgoing);
            let mut send = |message| out.effects.push(Effect::Send { peer: peer.clone(), message });
            for id in outgoing.specs {
                if let Some(job) = self.jobs.get(&id) {
                    send(job.spec_message(epoch));
                }
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
        }
    }
}

/// Answers a request.
fn reply(out: &mut Step, peer: Peer, request: u64, result: Result<ReplyBody, ErrorReply>) {
    let message = ToPeer::Reply(Reply { id: request, result });
    out.effects.push(Effect::Send { peer, message });
}
