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

use std::mem;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::time::Now;

pub(crate) use self::needs::{Constraint, Needs, QueueKey};
use self::queue::QueuePosition;
pub(crate) use self::queue::{Facts, Queue, ShapeId};
pub(crate) use self::reservation::ReservationView;
use crate::Core;
use crate::faults::planted;
use crate::jobs::{ActiveAttempt, Job};
use crate::nodes::NodeIx;
use crate::step::{Change, Step};

impl Core {
    /// Returns the facts that the queue needs, as of the last step.
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { now_ms: self.now.mono_ms, nodes: &self.nodes, jobs: &self.jobs }
    }

    /// Places tasks on the nodes that have room for them, up to the step's limit.
    pub(crate) fn place(&mut self, now: Now, out: &mut Step) {
        while self.has_room(out) {
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.jobs };
            let Some((key, id)) = self.queue.next(&facts) else { return };
            self.place_job(now, key, id, out);
        }
    }

    /// Places tasks of the first job of a shape, until it has no more tasks or there is no room.
    fn place_job(&mut self, now: Now, key: QueueKey, id: ShapeId, out: &mut Step) {
        let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.jobs };
        let mut candidates = self.queue.candidates(id, &facts);
        while self.has_room(out) && self.queue.is_head(id, key) {
            let Some(mut best) = candidates.pop() else {
                return self.queue.move_to(id, QueuePosition::NoRoom);
            };
            let avoids = self.jobs.get(&key.job()).and_then(Job::next_avoids);
            if avoids == Some(best.node)
                && let Some(next) = candidates.pop()
            {
                candidates.push(mem::replace(&mut best, next));
            }
            self.assign(now, key, best.node, out);
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.jobs };
            candidates.extend(self.queue.candidate(id, best.node, &facts));
        }
    }

    /// Assigns the next task of a job to a node.
    fn assign(&mut self, now: Now, key: QueueKey, ix: NodeIx, out: &mut Step) {
        let Some(job) = self.jobs.get_mut(&key.job()) else { return };
        let Some((index, retry)) = job.pop_ready() else {
            // This cannot happen, but a job that stayed at the head would block the whole queue.
            return self.queue.remove(job.shape, key);
        };
        let number = retry.number + 1;
        let attempt = job.attempt_id(index, number);
        job.counts.queued -= 1;
        job.counts.active += 1;
        job.attempts += 1;
        job.started_wall_ms.get_or_insert(now.wall_ms);
        let node = self.nodes.get_mut(ix);
        debug_assert!(node.has_room(&job.spec.resources), "a node is never over-committed");
        let mut takes = job.spec.resources;
        if planted!(self, RoomNotBooked) {
            takes.cpu_millis = 0;
        }
        let task = TaskId { job: job.id, index };
        node.take(task, &takes);
        self.queue.on_assigned(job.shape, key, ix, task);
        let name = node.row.node.clone();
        if let Some(session) = &mut node.session {
            if job.told.insert(ix, session.epoch) != Some(session.epoch) {
                session.outgoing.specs.push(job.id);
            }
            session.outgoing.starts.push(attempt);
            self.touched.insert(ix);
        }
        job.active.insert(
            index,
            ActiveAttempt {
                number,
                lost: retry.lost,
                node: ix,
                state: AttemptState::Assigned,
                since_ms: now.mono_ms,
                sent_ms: Some(now.mono_ms),
                heard: false,
            },
        );
        if !job.has_ready() {
            self.queue.remove(job.shape, key);
        }
        out.changes.push(Change::AttemptInserted {
            attempt,
            node: name.clone(),
            wall_ms: now.wall_ms,
        });
        out.events.push(EventFact::AttemptAssigned(attempt, name));
        self.mark_dirty(key.job());
        self.expect_reaction(now, ix);
    }
}
