//! The reports of agents about attempts, and what follows the end of an attempt.

use alloc::string::String;
use alloc::vec::Vec;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, TaskId};
use podmesh_protocol::limits::MESSAGE_BYTES_MAX;
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::report::{AttemptState, Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::faults::planted;
use crate::ids::ConnectionId;
use crate::ids::NodeIx;
use crate::input::Input;
use crate::state::Change;
use crate::state::{ActiveAttempt, ReplicaStatus, Stop};
use crate::step::{Effect, Step};

impl Core {
    /// Processes reports in the order of their numbers. Skips reports that were processed before.
    /// If one is missing, the agent must say hello again, and then sends it.
    pub(crate) fn on_attempts_reported(
        &mut self,
        now: Now,
        connection: ConnectionId,
        epoch: Epoch,
        reports: Vec<Report>,
        out: &mut Step,
    ) {
        let mut of = self.nodes.by_session(connection, epoch);
        if planted!(self, SessionsNotFenced) && of.is_none() {
            of = reports.first().and_then(|Report(_, AttemptId { task, .. }, _)| {
                self.nodes.by_name(&self.state.jobs.get(&task.job)?.active.get(&task.index)?.node)
            });
        }
        let Some(ix) = of else {
            let message = ToPeer::HelloAgain(epoch);
            return out.effects.push(Effect::Send { connection, message });
        };
        if !self.confirm_hello(now, ix, out) {
            let rest = Input::AttemptsReported { connection, epoch, reports };
            return self.backlog.push_front(rest);
        }
        let mut gap = false;
        let mut left = reports.into_iter();
        while let Some(number) = left.as_slice().first().map(|report| report.0) {
            let acked = self.nodes.get(ix).acked;
            if acked.is_some_and(|acked| number <= acked) {
                left.next();
                continue;
            }
            if acked.is_some_and(|acked| number - acked > 1) {
                gap = true;
                break;
            }
            if !self.has_room(out) {
                let reports = left.collect();
                let rest = Input::AttemptsReported { connection, epoch, reports };
                self.backlog.push_front(rest);
                break;
            }
            if let Some(Report(_, attempt, fact)) = left.next() {
                self.on_report(now, ix, attempt, fact, out);
            }
            self.nodes.get_mut(ix).acked = Some(number);
        }
        if let Some(acked) = self.nodes.get(ix).acked {
            let message = ToPeer::Acked(epoch, acked);
            out.effects.push(Effect::Send { connection, message });
        }
        if gap {
            out.effects.push(Effect::Send { connection, message: ToPeer::HelloAgain(epoch) });
        }
    }

    /// Processes one report. Ignores it if the attempt is not active on this node.
    fn on_report(
        &mut self,
        now: Now,
        ix: NodeIx,
        attempt: AttemptId,
        fact: ReportFact,
        out: &mut Step,
    ) {
        let task = attempt.task;
        let unfenced = planted!(self, AttemptsNotFenced);
        let node = self.nodes.get_mut(ix);
        let active = self.state.jobs.get(&task.job).and_then(|job| job.active.get(&task.index));
        let Some(active) = active.filter(|active| {
            (active.number == attempt.number && active.node == node.row.node) || unfenced
        }) else {
            return;
        };
        let delivery = node.attempts.get_mut(&task);
        if let Some(delivery) = delivery {
            delivery.heard = true;
            if fact == ReportFact::Started && active.state != AttemptState::Running {
                let assigned_ms = core::mem::replace(&mut delivery.since_ms, now.mono_ms);
                self.measures.note_start(now.mono_ms, assigned_ms);
            }
        }
        let wall_ms = now.wall_ms;
        match fact {
            ReportFact::Preparing(text) => {
                let state = AttemptState::Preparing;
                match active.state {
                    AttemptState::Assigned => {
                        let change = Change::AttemptAdvanced { attempt, state, wall_ms };
                        self.state.record(out, change);
                    }
                    AttemptState::Preparing => {}
                    AttemptState::Running | AttemptState::Ended => return,
                }
                out.events.push(EventFact::AttemptPreparing { attempt, message: cut(text) });
            }
            ReportFact::Started => {
                let state = AttemptState::Running;
                if active.state != state {
                    self.state.record(out, Change::AttemptAdvanced { attempt, state, wall_ms });
                    out.events.push(EventFact::AttemptStarted { attempt });
                    self.replica_touched(task.job);
                }
            }
            ReportFact::Ended(outcome) => self.end_attempt(now, task, outcome, out),
            ReportFact::LogGap(text) => {
                out.events.push(EventFact::LogGap { attempt, message: cut(text) })
            }
            ReportFact::Listening(ports) => {
                let listening = ports.clone();
                let change = |status: &mut ReplicaStatus| status.listening = ports;
                if let Some((replica, _)) = self.replica_reported(attempt, change, out) {
                    let fact = EventFact::ReplicaListening { replica, attempt, ports: listening };
                    out.events.push(fact);
                }
            }
            ReportFact::Health(health, text) => {
                let before = active.replica().health;
                let change = |status: &mut ReplicaStatus| {
                    (status.health, status.message) = (health, cut(text));
                };
                if let Some((replica, status)) = self.replica_reported(attempt, change, out)
                    && health != before
                {
                    let message = status.message;
                    out.events.push(EventFact::ReplicaHealth {
                        replica,
                        attempt,
                        health: health.into(),
                        message,
                    });
                }
            }
        }
    }

    /// Ends the active attempt of a task. The task then has ended or is tried again.
    pub(crate) fn end_attempt(
        &mut self,
        now: Now,
        task: TaskId,
        mut outcome: Outcome,
        out: &mut Step,
    ) {
        let Some(job) = self.state.jobs.get(&task.job) else { return };
        let Some(active) = job.active.get(&task.index) else { return };
        let attempt = job.attempt_id(task.index, active.number);
        let reported = outcome.kind;
        let runs_again = job.runs_again(active, reported) && !planted!(self, StopUsesRetry);
        outcome.kind =
            if runs_again { OutcomeKind::Cancelled } else { job.recorded_kind(reported) };
        outcome.message = outcome.message.map(cut).or_else(|| {
            let stopped = reported == OutcomeKind::Cancelled && !job.is_stopping();
            stopped.then(|| why_stopped(active).into())
        });
        let retry_after_ms =
            if runs_again { Some(0) } else { job.retry_after_ms(active, &outcome) };
        let ends = retry_after_ms.is_none();
        let failure = if ends { self.failure(job, attempt, active, &outcome) } else { None };
        let mut drained = None;
        if let Some(ix) = self.nodes.by_name(&active.node) {
            let node = self.nodes.get_mut(ix);
            let lane = node.give_back(task, &job.spec, active.claims.as_deref());
            let is_drained =
                node.attempts.is_empty() && node.row.scheduling == Scheduling::Draining;
            drained = is_drained.then(|| node.row.node.clone());
            self.queue.gain(ix);
            if let Some(lane) = lane.filter(|_| !planted!(self, QueueEndNotCounted)) {
                self.queue.on_ended(lane, job.spec.resources.cpu_millis);
            }
        }
        let is_limited = job.spec.rules.max_active.is_some();
        let (ended, wall_ms, kind) = (outcome.clone(), now.wall_ms, outcome.kind);
        let change = Change::AttemptEnded { attempt, outcome: ended, wall_ms, retry_after_ms };
        self.state.record(out, change);
        if let Some(after_ms) = retry_after_ms {
            self.queue_retry(now, task, after_ms);
        }
        self.note_replica_end(now, task.job, &outcome, ends, out);
        out.events.push(EventFact::AttemptEnded {
            attempt,
            outcome: outcome.into(),
            retry_after_ms,
        });
        out.events.extend(drained.map(|node| EventFact::NodeDrained { node }));
        if is_limited {
            self.offer(task.job);
        }
        if kind == OutcomeKind::Succeeded {
            self.release_task(task, out);
        }
        if ends {
            self.check_failures(task.job, kind, out);
        }
        if let Some(failure) = failure {
            self.submit_dead_letter(now, failure, out);
        }
        self.mark_dirty(task.job);
    }
}

fn why_stopped(active: &ActiveAttempt) -> &'static str {
    match active.stop {
        Some(Stop::Requeue) => "stopped so that its task runs elsewhere",
        Some(Stop::Preempt) => "stopped to make room for a job that is not preemptible",
        Some(Stop::Fail) => "stopped because its node is drained, and the deadline is over",
        None => "its agent stopped it although the job was not cancelled",
    }
}

/// Cuts a text for people at its limit.
pub(crate) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
    text
}
