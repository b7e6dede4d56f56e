//! What happens as time passes.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, TaskId};
use podmesh_protocol::limits::START_RESEND_MS;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::session::StopReason;
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::{Millis, Now};

use crate::Core;
use crate::faults::planted;
use crate::ids::NodeIx;
use crate::step::Step;

/// What a timer starts when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The first waiting retry of a job.
    Retries(JobId),
    /// The end of the time in which the tasks of a job must have an attempt.
    Expires(JobId),
    /// The end of the lease of a node without a session.
    NodeLost(NodeIx),
    /// The end of the margin after a node's lease.
    Requeue(NodeIx),
    /// Sending starts again that the node has not reacted to.
    Resend(NodeIx),
    /// The deadline of the drain of a node.
    DrainDue(NodeIx),
}

/// All timers, the earliest first.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Millis, Timer)>);

impl Timers {
    pub(crate) fn first(&self) -> Option<Millis> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Moves a timer from one time to another; `None` means not set.
    pub(crate) fn replace(&mut self, old: Option<Millis>, new: Option<Millis>, timer: Timer) {
        if let Some(at) = old {
            self.0.remove(&(at, timer));
        }
        if let Some(at) = new {
            self.0.insert((at, timer));
        }
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Millis, Timer)> {
        self.0.iter()
    }
}

impl Core {
    /// Runs the timers that are due, up to the step's limit. The others stay due.
    pub(crate) fn run_timers(&mut self, now: Now, out: &mut Step) {
        while let Some((at, timer)) = self.timers.0.first().copied()
            && at <= now.mono_ms
            && self.has_room(out)
        {
            match timer {
                Timer::Retries(job) => self.on_retries_due(now, job),
                Timer::Expires(job) => self.on_expired(job, out),
                Timer::NodeLost(ix) if self.was_stalled(now, at) => {
                    let again = now.mono_ms.saturating_add(self.config.lease_ms / 2);
                    let deadline = Some((again, Timer::NodeLost(ix)));
                    self.nodes.set_deadline(&mut self.timers, ix, deadline);
                }
                Timer::NodeLost(ix) => self.on_lease_ended(now, ix, out),
                Timer::Requeue(ix) => self.on_margin_ended(now, ix, out),
                Timer::Resend(ix) => self.on_resend_due(now, ix),
                Timer::DrainDue(ix) => self.on_drain_due(ix, out),
            }
        }
    }

    /// Returns whether a timer is so late that this process or its disk must have been stopped.
    /// Agents could not reconnect in that time, so they get more time.
    fn was_stalled(&self, now: Now, due_ms: Millis) -> bool {
        let late_ms = now.mono_ms.saturating_sub(due_ms);
        late_ms > self.config.heartbeat_ms && !planted!(self, StallNotForgiven)
    }

    /// Marks a node as lost: it has not been heard from for a whole lease.
    pub(crate) fn on_lease_ended(&mut self, now: Now, ix: NodeIx, out: &mut Step) {
        let mut margin = now.mono_ms.saturating_add(self.config.margin_ms);
        if planted!(self, NoMargin) {
            margin = now.mono_ms;
        }
        let lost = self.nodes.become_lost(ix);
        self.nodes.set_deadline(&mut self.timers, ix, Some((margin, Timer::Requeue(ix))));
        out.events.push(EventFact::NodeLost { node: lost });
    }

    /// Ends the attempts of a lost node that may now run elsewhere. Its agent has had the time to
    /// kill them.
    fn on_margin_ended(&mut self, now: Now, ix: NodeIx, out: &mut Step) {
        let node = self.nodes.get(ix);
        let all = planted!(self, WaitRequeued);
        let tasks: Vec<TaskId> = node
            .attempts
            .keys()
            .filter(|task| {
                let job = self.state.jobs.get(&task.job);
                // Cancelled attempts must end even if the node never returns.
                job.is_some_and(|job| {
                    job.spec.on_lost == OnLost::Requeue || job.is_stopping() || all
                })
            })
            .copied()
            .collect();
        let message = format!(
            "node `{}` was lost: no heartbeat for {} s, and {} s more for its agent to kill what ran there; what the attempt did is not known",
            node.row.node,
            seconds(self.config.lease_ms),
            seconds(self.config.margin_ms),
        );
        for task in tasks {
            if !self.has_room(out) {
                return; // The timer stays due.
            }
            let outcome = Outcome::new(OutcomeKind::Lost).with_message(message.as_str());
            self.end_attempt(now, task, outcome, out);
        }
        self.nodes.set_deadline(&mut self.timers, ix, None);
    }

    /// Checks the attempts of a lost node again, if its margin has ended.
    pub(crate) fn end_margin(&mut self, ix: NodeIx) {
        if self.nodes.deadline(ix).is_none() {
            let deadline = Some((self.now.mono_ms, Timer::Requeue(ix)));
            self.nodes.set_deadline(&mut self.timers, ix, deadline);
        }
    }

    /// Sends the starts again that a node has not reacted to, or stops if the job was cancelled.
    fn on_resend_due(&mut self, now: Now, ix: NodeIx) {
        let node = self.nodes.get_mut(ix);
        let mut next = None;
        if let Some(session) = &mut node.session {
            for (task, delivery) in &mut node.attempts {
                let (Some(sent_ms), false) = (delivery.sent_ms, delivery.heard) else { continue };
                let Some(job) = self.state.jobs.get(&task.job) else { continue };
                let Some(active) = job.active.get(&task.index) else { continue };
                let mut due = sent_ms.saturating_add(START_RESEND_MS);
                if due <= now.mono_ms {
                    delivery.sent_ms = Some(now.mono_ms);
                    due = now.mono_ms.saturating_add(START_RESEND_MS);
                    let attempt = job.attempt_id(task.index, active.number);
                    if job.is_stopping() || active.stop.is_some() {
                        session.outgoing.stops.push((attempt, StopReason::Cancelled));
                    } else {
                        session.outgoing.starts.push(attempt);
                        session.outgoing.claims.extend(active.claims.as_ref().map(|_| attempt));
                    }
                    self.touched.insert(ix);
                }
                next = Some(next.map_or(due, |next: Millis| next.min(due)));
            }
        }
        self.set_resend(ix, next);
    }

    /// Sets the timer for a start that was just sent to the node.
    pub(crate) fn expect_reaction(&mut self, now: Now, ix: NodeIx) {
        if self.nodes.get(ix).resend_ms.is_none() {
            self.set_resend(ix, Some(now.mono_ms.saturating_add(START_RESEND_MS)));
        }
    }

    pub(crate) fn set_resend(&mut self, ix: NodeIx, at: Option<Millis>) {
        let node = self.nodes.get_mut(ix);
        self.timers.replace(node.resend_ms, at, Timer::Resend(ix));
        node.resend_ms = at;
    }
}

/// Formats milliseconds as seconds for people: `15`, `0.3`.
pub(crate) fn seconds(ms: Millis) -> String {
    match ms % 1000 {
        0 => (ms / 1000).to_string(),
        _ => format!("{:.1}", ms as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn seconds_are_written_for_people() {
        assert_eq!([15_000, 300].map(seconds), ["15", "0.3"]);
    }
}
