//! Which task goes to which node.
//!
//! Jobs wait in lanes, for each caller in each queue, which take turns: see [`share`]. In a lane
//! they wait in order of priority and arrival. Jobs of a lane with the same [`Needs`] share a
//! [`Shape`](lane::Shape): if there is no room for one of them, there is none for the others. A
//! shape without room is tried again when a node gains room for it; [`fit_index`] finds it among
//! many. A node is reserved for the first job that waits for room: see [`reservation`]. Tasks that are
//! preemptible may be stopped there: see [`preempt`].

mod candidate;
#[cfg(any(test, feature = "invariants"))]
mod check;
mod fit_index;
mod lane;
mod needs;
mod preempt;
mod queue;
mod reservation;
mod share;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::limits::{AVOID_MS_MAX, BATCH_ROWS_MAX};
use podmesh_protocol::time::{Millis, Now};

use self::lane::QueuePosition;
pub(crate) use self::lane::ShapeId;
pub(crate) use self::needs::{Constraint, Needs, QueueKey};
pub(crate) use self::queue::{Facts, Queue};
pub(crate) use self::reservation::ReservationView;
pub(crate) use self::share::Held;
use crate::Core;
use crate::faults::planted;
use crate::ids::NodeIx;
use crate::nodes::Delivery;
use crate::state::Change;
use crate::step::Step;

/// How soon a task that waits for another node looks for room; then after twice as long each time.
const AVOID_LOOK_MS: Millis = 2_000;

impl Core {
    /// Returns the facts that the queue needs, as of the last step.
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { now_ms: self.now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs }
    }

    /// Places tasks on the nodes that have room for them, up to the step's limit.
    pub(crate) fn place(&mut self, now: Now, out: &mut Step) {
        let mut held = 0;
        while self.has_room(out) && held < BATCH_ROWS_MAX {
            self.settle_bonds();
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
            let next = self.queue.next(&facts);
            if next.is_none_or(|(_, id)| self.queue.is_preemptible(id)) {
                self.preempt(now, out);
            }
            match next {
                Some((key, id)) => self.place_job(now, key, id, &mut held, out),
                None if self.queue.has_work() => {}
                None => return,
            }
        }
    }

    /// Places tasks of the first job of a shape, until it has no more tasks or there is no room.
    /// Counts the tasks that are held back.
    fn place_job(
        &mut self,
        now: Now,
        key: QueueKey,
        id: ShapeId,
        held: &mut usize,
        out: &mut Step,
    ) {
        let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
        let mut candidates = self.queue.candidates(id, &facts);
        while self.has_room(out) && self.queue.is_head(id, key) {
            let Some(mut best) = candidates.pop() else {
                return self.queue.move_to(id, QueuePosition::NoRoom);
            };
            if self.avoids(key.job(), best.node) {
                let mut avoided = Vec::new();
                while let Some(next) = candidates.pop() {
                    avoided.push(mem::replace(&mut best, next));
                    if !self.avoids(key.job(), best.node) {
                        break;
                    }
                }
                let none = self.avoids(key.job(), best.node);
                candidates.extend(avoided);
                if none && self.hold_back(now, key, id) {
                    candidates.push(best);
                    *held += 1;
                    if *held >= BATCH_ROWS_MAX {
                        return;
                    }
                    continue;
                }
            }
            self.assign(now, key, best.node, out);
            self.settle_bonds();
            if !self.queue.keeps_turn(id) && !planted!(self, TurnsIgnored) {
                return;
            }
            let facts = Facts { now_ms: now.mono_ms, nodes: &self.nodes, jobs: &self.state.jobs };
            if self.queue.is_head(id, key) && self.queue.spreads_tasks(id) {
                // Each task changes how many are near the others.
                candidates = self.queue.candidates(id, &facts);
                continue;
            }
            candidates.extend(self.queue.candidate(id, best.node, &facts));
        }
    }

    /// Returns whether the next task of a job should not go to a node while another one has room.
    fn avoids(&self, id: JobId, ix: NodeIx) -> bool {
        let next = self.dispatch.get(&id).and_then(|dispatch| dispatch.ready.first_key_value());
        let retry = next.and_then(|(index, _)| self.state.jobs.get(&id)?.retries.get(index));
        retry.is_some_and(|retry| retry.past.avoid.contains(&self.nodes.get(ix).row.node))
    }

    /// Lets the next task of a job wait for another node than those where it failed, if one that is
    /// alive suits, and the task has not waited too long. Returns whether it waits.
    fn hold_back(&mut self, now: Now, key: QueueKey, id: ShapeId) -> bool {
        let Some(job) = self.state.jobs.get(&key.job()) else { return false };
        let Some(dispatch) = self.dispatch.get_mut(&key.job()) else { return false };
        let Some((&index, _)) = dispatch.ready.first_key_value() else { return false };
        let Some(retry) = job.retries.get(&index) else { return false };
        if job.spec.run.replica.is_some() {
            return false;
        }
        let Some(needs) = self.queue.needs(id) else { return false };
        let others = self.nodes.iter().any(|(_, node)| {
            needs.suit_now(node, now.mono_ms) && !retry.past.avoid.contains(&node.row.node)
        });
        let since = *dispatch.held.entry(index).or_insert(now.mono_ms);
        let until = since.saturating_add(AVOID_MS_MAX);
        if !others || now.mono_ms >= until {
            return false;
        }
        dispatch.ready.remove(&index);
        let pause = now.mono_ms.saturating_sub(since).max(AVOID_LOOK_MS);
        let at = now.mono_ms.saturating_add(pause).min(until);
        dispatch.waiting.insert((at, index));
        dispatch.refresh_timer(key.job(), &mut self.timers);
        if !dispatch.has_ready(job) {
            self.queue.remove(dispatch.shape, key);
        }
        true
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
        let claims = match job.spec.place.resources.is_empty() {
            true => None,
            false => node.in_use.claims(&node.row.resources, &job.spec.place).map(Box::new),
        };
        let booked = claims.as_deref().filter(|_| !planted!(self, ClaimsNotBooked));
        let sent_ms = Some(now.mono_ms);
        let lane = dispatch.shape.lane;
        let delivery = Delivery { since_ms: now.mono_ms, sent_ms, heard: false, lane };
        node.take(attempt.task, &job.spec, &takes, booked, delivery);
        self.queue.on_assigned(dispatch.shape, key, ix, attempt.task);
        let name = node.row.node.clone();
        if let Some(session) = &mut node.session {
            if dispatch.tell(ix, session.epoch) {
                session.outgoing.specs.push(id);
            }
            session.outgoing.starts.push(attempt);
            session.outgoing.claims.extend(claims.as_ref().map(|_| attempt));
            self.touched.insert(ix);
        }
        let (node, wall_ms) = (name.clone(), now.wall_ms);
        let change = Change::AttemptInserted { attempt, node, wall_ms, claims };
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
