//! Which task goes to which node.
//!
//! Jobs wait in order of priority and arrival. Jobs with the same [`Needs`] share a
//! [`Shape`](queue::Shape): if there is no room for one of them, there is none for the others. A
//! shape without room is tried again when a node gains room for it; [`fit_index`] finds it among
//! many. A node is reserved for the first job that waits for room: see [`reservation`].

mod candidate;
#[cfg(any(test, feature = "invariants"))]
mod check;
mod fit_index;
mod needs;
mod queue;
mod reservation;

use core::mem;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::time::Now;

pub(crate) use self::needs::{Constraint, Needs, QueueKey};
use self::queue::QueuePosition;
pub(crate) use self::queue::{Facts, Queue, ShapeId};
pub(crate) use self::reservation::ReservationView;
use crate::Core;
use crate::faults::planted;
use crate::nodes::{Delivery, NodeIx};
use crate::step::{Change, Step};

impl Core {
    /// Returns the facts that the queue needs, as of the last step.
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { now_ms: self.now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs }
    }

    /// Places tasks on the nodes that have room for them, up to the step's limit.
    pub(crate) fn place(&mut self, now: Now, out: &mut Step) {
        while self.has_room(out) {
            self.settle_bonds();
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
            let Some((key, id)) = self.queue.next(&facts) else { return };
            self.place_job(now, key, id, out);
        }
    }

    /// Places tasks of the first job of a shape, until it has no more tasks or there is no room.
    fn place_job(&mut self, now: Now, key: QueueKey, id: ShapeId, out: &mut Step) {
        let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
        let mut candidates = self.queue.candidates(id, &facts);
        while self.has_room(out) && self.queue.is_head(id, key) {
            let Some(mut best) = candidates.pop() else {
                return self.queue.move_to(id, QueuePosition::NoRoom);
            };
            if self.avoids(key.job(), best.node)
                && let Some(next) = candidates.pop()
            {
                candidates.push(mem::replace(&mut best, next));
            }
            self.assign(now, key, best.node, out);
            self.settle_bonds();
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
            candidates.extend(self.queue.candidate(id, best.node, &facts));
        }
    }

    /// Returns whether the next task of a job should not go to a node while another one has room.
    fn avoids(&self, id: JobId, ix: NodeIx) -> bool {
        let next = self.dispatch.get(&id).and_then(|dispatch| dispatch.ready.first_key_value());
        let retry = next.and_then(|(index, _)| self.state.jobs.get(&id)?.retries.get(index));
        let avoid = retry.and_then(|retry| retry.avoid.as_ref());
        avoid.is_some_and(|avoid| *avoid == self.nodes.get(ix).row.node)
    }

    /// Assigns the next task of a job to a node.
    fn assign(&mut self, now: Now, key: QueueKey, ix: NodeIx, out: &mut Step) {
        let id = key.job();
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        let Some((index, number, since_ms)) = dispatch.pop_ready(job) else {
            // This cannot happen, but a job that stayed at the head would block the whole queue.
            return self.queue.remove(dispatch.shape, key);
        };
        let attempt = job.attempt_id(index, number);
        let node = self.nodes.get_mut(ix);
        debug_assert!(node.has_room(&job.spec.resources), "a node is never over-committed");
        let mut takes = job.spec.resources;
        if planted!(self, RoomNotBooked) {
            takes.cpu_millis = 0;
        }
        let sent_ms = Some(now.mono_ms);
        let delivery = Delivery { since_ms: now.mono_ms, sent_ms, heard: false };
        node.take(attempt.task, &job.spec, &takes, delivery);
        self.queue.on_assigned(dispatch.shape, key, ix, attempt.task);
        let name = node.row.node.clone();
        if let Some(session) = &mut node.session {
            if dispatch.told.insert(ix, session.epoch) != Some(session.epoch) {
                session.outgoing.specs.push(id);
            }
            session.outgoing.starts.push(attempt);
            self.touched.insert(ix);
        }
        let change = Change::AttemptInserted { attempt, node: name.clone(), wall_ms: now.wall_ms };
        self.state.record(out, change);
        if !self.state.jobs.get(&id).is_some_and(|job| dispatch.has_ready(job)) {
            self.queue.remove(dispatch.shape, key);
        }
        out.events.push(EventFact::AttemptAssigned { attempt, node: name });
        self.measures.note_wait(now.mono_ms, since_ms);
        self.mark_dirty(id);
        self.expect_reaction(now, ix);
        self.place_volumes(now, id, ix, out);
        self.mark_project_of(id);
    }
}
