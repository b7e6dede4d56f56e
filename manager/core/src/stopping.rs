//! Attempts that are stopped although their jobs go on: those of a node whose drain has a deadline, and
//! those that make room (see [`preempt`](crate::placement)).
//!
//! That an attempt is stopped is durable. The agent is told again in each session until it reports the
//! end, also if the drain is over by then.

use alloc::vec::Vec;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::session::StopReason;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::ids::NodeIx;
use crate::state::Change;
use crate::state::Stop;
use crate::step::Step;
use crate::timers::Timer;

impl Core {
    /// Stops an attempt of a job that goes on. Does nothing if it is stopped already.
    pub(crate) fn stop_attempt(&mut self, task: TaskId, stop: Stop, why: &str, out: &mut Step) {
        let Some(job) = self.state.jobs.get(&task.job) else { return };
        let Some(active) = job.active.get(&task.index) else { return };
        if job.is_stopping() || active.stop.is_some() {
            return;
        }
        let attempt = job.attempt_id(task.index, active.number);
        if let Some(ix) = self.nodes.by_name(&active.node)
            && let Some(session) = &mut self.nodes.get_mut(ix).session
        {
            session.outgoing.stops.push((attempt, StopReason::Cancelled));
            self.touched.insert(ix);
        }
        self.state.record(out, Change::AttemptStopping { attempt, stop });
        out.events.push(EventFact::AttemptStopping { attempt, message: why.into() });
    }

    /// Sets the timer for the deadline of a drain, if there is one.
    pub(crate) fn set_drain_timer(&mut self, now: Now, ix: NodeIx) {
        let node = self.nodes.get_mut(ix);
        let due_ms = node.row.drain.as_deref().and_then(|drain| {
            let after_ms = drain.spec.stops_after_ms()?;
            let due = drain.since_wall_ms.saturating_add(after_ms);
            // Never longer than the whole time, also if the wall clock went back meanwhile.
            let left_ms = due.saturating_sub(now.wall_ms).min(after_ms);
            Some(now.mono_ms.saturating_add(left_ms))
        });
        self.timers.replace(node.drain_due_ms, due_ms, Timer::DrainDue(ix));
        node.drain_due_ms = due_ms;
    }

    pub(crate) fn stop_drain_timer(&mut self, ix: NodeIx) {
        let node = self.nodes.get_mut(ix);
        self.timers.replace(node.drain_due_ms.take(), None, Timer::DrainDue(ix));
    }

    /// Stops what a node still has at the deadline of its drain. Replicas leave without a successor:
    /// out of the proxies first, and with the time of their connections.
    pub(crate) fn on_drain_due(&mut self, ix: NodeIx, out: &mut Step) {
        let node = self.nodes.get(ix);
        let requeue = node.row.drain.as_ref().is_some_and(|drain| drain.spec.requeue);
        let (stop, why) = match requeue {
            true => (Stop::Requeue, "its node is drained: the task runs again elsewhere"),
            false => (Stop::Fail, "its node is drained, and the deadline is over"),
        };
        let tasks: Vec<TaskId> = node.attempts.keys().copied().collect();
        for task in tasks {
            if !self.has_room(out) {
                return; // The timer stays due.
            }
            let Some(job) = self.state.jobs.get(&task.job) else { continue };
            if job.spec.run.replica.is_none() {
                self.stop_attempt(task, stop, why, out);
            } else {
                self.retire_replica(task.job);
            }
        }
        self.stop_drain_timer(ix);
    }
}
