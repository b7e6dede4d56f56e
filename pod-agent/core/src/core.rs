//! The core: its state, and how each input changes it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Name, TaskId};
use podmesh_protocol::limits::{ATTEMPTS_PER_NODE_MAX, LEASE_MS_DEFAULT};
use podmesh_protocol::place::{Claims, Offer};
use podmesh_protocol::report::{Outcome, OutcomeKind, ReportFact};
use podmesh_protocol::session::{StopReason, ToManager, Welcome};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::{Millis, Now};

use crate::attempts::{
    AGENT_STOPPED, ActiveAttempt, AttemptEntry, LEASE_ENDED, Phase, Stop, StopCause, Unsent,
};
use crate::claims::with_claims;
use crate::config::CoreConfig;
use crate::faults::planted;
use crate::input::{FoundAttempt, Input, RuntimeFact};
use crate::outbox::Outbox;
use crate::step::{Command, JobContext, Step};

/// Message of an attempt that the manager asks to stop and that this agent does not have.
const NOT_HELD: &str = "the agent does not have this attempt";
/// Message of an attempt whose number another attempt on this agent has used.
const SPENT: &str =
    "its agent had another attempt with this number, which the manager no longer knows";

/// The agent's decisions: which attempts run, what is reported about them, when they are stopped.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    /// The current session; messages of other sessions are ignored.
    pub(crate) epoch: Option<Epoch>,
    lease_ms: u64,
    /// When the lease ends without further contact; `None` if it has ended or never began.
    lease_until: Option<Millis>,
    /// The jobs that the manager described in the current session.
    jobs: BTreeMap<JobId, Arc<JobContext>>,
    /// The named resources that the node offers.
    offers: BTreeMap<Name, Offer>,
    /// What attempts whose start has not come yet have of them, in the current session.
    claims: BTreeMap<AttemptId, Claims>,
    pub(crate) attempts: BTreeMap<AttemptId, AttemptEntry>,
    /// Attempts that the manager did not know when the session began. After the restore of a
    /// backup it may use their numbers again. The agent does not start those, so that each number
    /// stands for one attempt here.
    spent: BTreeSet<AttemptId>,
    /// The attempts with a timeout, by when it expires.
    pub(crate) timeouts: BTreeSet<(Millis, AttemptId)>,
    pub(crate) outbox: Outbox,
    shutdown: Option<Shutdown>,
    #[cfg(feature = "planted-faults")]
    fault: Option<crate::faults::Fault>,
}

/// A shutdown that was requested.
#[derive(Debug, Default)]
struct Shutdown {
    /// When to stop waiting for acknowledgements; `None` while attempts still have to end.
    until: Option<Millis>,
    /// Whether the daemon was told that it may exit. The core ignores all input after that.
    done: bool,
}

impl Core {
    /// Creates a core that holds no attempts.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            epoch: None,
            lease_ms: LEASE_MS_DEFAULT,
            lease_until: None,
            jobs: BTreeMap::new(),
            offers: BTreeMap::new(),
            claims: BTreeMap::new(),
            attempts: BTreeMap::new(),
            spent: BTreeSet::new(),
            timeouts: BTreeSet::new(),
            outbox: Outbox::default(),
            shutdown: None,
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// Plants a fault for the simulator to find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: crate::faults::Fault) {
        self.fault = Some(fault);
    }

    /// Returns the held attempts for the hello: those that run, and those whose end is not
    /// acknowledged. Fenced attempts, which are being killed, are left out.
    pub fn hello_attempts(&self) -> Vec<AttemptId> {
        let counting = self.attempts.iter().filter(|(_, held)| !held.is_fenced());
        counting.map(|(attempt, _)| *attempt).collect()
    }

    /// Returns every held attempt, also the fenced ones that are being killed.
    pub fn held_attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.attempts.keys().copied()
    }

    /// Returns whether the attempt is held.
    pub fn holds(&self, attempt: &AttemptId) -> bool {
        self.attempts.contains_key(attempt)
    }

    /// Returns whether the attempt is held and has not ended, so that more output may come.
    pub fn goes_on(&self, attempt: AttemptId) -> bool {
        let entry = self.attempts.get(&attempt);
        entry.is_some_and(|entry| !matches!(entry.phase, Phase::Ended { .. }))
    }

    /// Returns when the lease ends without further contact; `None` if it has ended or never began.
    pub fn lease_until(&self) -> Option<Millis> {
        self.lease_until
    }

    /// Returns when [`Input::Tick`] is due if no other input comes first.
    pub fn next_wakeup(&self) -> Option<Millis> {
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        let goodbye = match &self.shutdown {
            Some(Shutdown { done: true, .. }) => return None,
            Some(shutdown) => shutdown.until,
            None => None,
        };
        [timeout, self.lease_until, goodbye].into_iter().flatten().min()
    }

    /// Sets the named resources that the node offers, before the first session.
    pub fn set_offers(&mut self, offers: BTreeMap<Name, Offer>) {
        self.offers = offers;
    }

    /// Processes an input and adds the resulting actions to `out`.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Step) {
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.done) {
            return;
        }
        let now = now.mono_ms;
        // A contact extends the lease before timers run, even when it is processed late.
        let is_contact =
            matches!(input, Input::SessionOpened { .. } | Input::HeartbeatAnswered { .. });
        if !is_contact {
            self.run_timers(now, out);
        }
        self.take(now, input, out);
        if is_contact {
            self.run_timers(now, out);
        }
        if let Some(epoch) = self.epoch {
            self.outbox.fill(epoch, &mut out.messages);
        }
        self.leave_if_done(now, out);
    }

    fn take(&mut self, now: Millis, input: Input, out: &mut Step) {
        match input {
            Input::AttemptsFound(found) => self.attempts_found(now, found, out),
            Input::SessionOpened { welcome, hello_sent_mono_ms } => {
                self.session_opened(&welcome, hello_sent_mono_ms, out);
            }
            Input::SessionClosed => {
                self.leave_session();
            }
            Input::JobSpecReceived { epoch, context } if self.is_current(epoch) => {
                self.job_received(context);
            }
            Input::ClaimsReceived { epoch, claims } if self.is_current(epoch) => {
                self.claims.extend(claims);
            }
            Input::StartsReceived { epoch, attempts } if self.is_current(epoch) => {
                self.starts(attempts, out);
            }
            Input::StopsReceived { epoch, stops } if self.is_current(epoch) => {
                for (attempt, reason) in stops {
                    match reason {
                        StopReason::Cancelled if !self.attempts.contains_key(&attempt) => {
                            let lost = Outcome::new(OutcomeKind::Lost);
                            self.answer_for(attempt, lost.with_message(NOT_HELD));
                        }
                        StopReason::Cancelled => {
                            self.stop_or_end(attempt, StopCause::Cancelled, out);
                        }
                        StopReason::Fenced => self.fence(attempt, out),
                    }
                }
            }
            Input::ReportsAcked { epoch, acked } if self.is_current(epoch) => {
                self.acked(acked, out);
            }
            Input::JobsForgotten { epoch, jobs } if self.is_current(epoch) => {
                for job in jobs {
                    self.jobs.remove(&job);
                }
            }
            Input::HeartbeatAnswered { epoch, sent_mono_ms } if self.is_current(epoch) => {
                self.extend_lease(sent_mono_ms);
            }
            Input::RuntimeReported(facts) => {
                for (attempt, fact) in facts {
                    self.runtime_reported(now, attempt, fact, out);
                }
            }
            Input::ShutdownRequested => self.shut_down(out),
            // Messages of an earlier session: the new session sends everything that matters.
            Input::JobSpecReceived { .. }
            | Input::ClaimsReceived { .. }
            | Input::StartsReceived { .. }
            | Input::StopsReceived { .. }
            | Input::ReportsAcked { .. }
            | Input::JobsForgotten { .. }
            | Input::HeartbeatAnswered { .. }
            | Input::Tick => {}
        }
    }

    fn is_current(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    fn attempts_found(&mut self, now: Millis, found: Vec<FoundAttempt>, out: &mut Step) {
        for FoundAttempt { attempt, ended, started, outlives_agent, on_lost, ran_ms, replica } in
            found
        {
            let forgotten = planted!(self, NotAdopted) && ended.is_none();
            if let Some(AttemptEntry { phase: Phase::Ended { remove }, .. }) =
                self.attempts.get_mut(&attempt)
            {
                // Its end was reported before its runtime was available.
                *remove = true;
            }
            if self.attempts.contains_key(&attempt) || forgotten {
                continue;
            }
            let mut unsent = Unsent::default();
            let phase = if let Some(outcome) = ended {
                unsent.ended = Some(self.outbox.push(attempt, ReportFact::Ended(outcome)));
                Phase::Ended { remove: true }
            } else {
                if started {
                    // It is unknown whether the start was ever reported.
                    unsent.started = Some(self.outbox.push(attempt, ReportFact::Started));
                    let ports = replica.map(|replica| replica.ports.clone()).unwrap_or_default();
                    if !ports.is_empty() {
                        let listening = ReportFact::Listening(ports);
                        unsent.listening = Some(self.outbox.push(attempt, listening));
                    }
                }
                Phase::Active(ActiveAttempt {
                    context: None,
                    on_lost,
                    outlives_agent,
                    started: started.then_some((now, ran_ms)),
                    timeout_at: None,
                    stop: None,
                })
            };
            self.attempts.insert(attempt, AttemptEntry { phase, unsent });
            if let Some(newest) = self.of_task(attempt.task).last() {
                self.fence_older(newest, out);
            }
        }
        // The time of the last contact is unknown, so the lease runs from now.
        if self.lease_until.is_none() && self.epoch.is_none() && !self.attempts.is_empty() {
            self.lease_until = Some(now.saturating_add(self.lease_ms));
        }
    }

    fn session_opened(&mut self, welcome: &Welcome, hello_sent: Millis, out: &mut Step) {
        self.epoch = Some(welcome.epoch);
        self.lease_ms = welcome.lease_ms;
        // A deadline assumed from the default lease may be later than the manager's.
        self.lease_until = None;
        self.extend_lease(hello_sent);
        self.jobs.clear();
        let ended = self.outbox.session_opened(welcome.acked);
        self.forget(ended, out);
        for attempt in &welcome.stop {
            self.fence(*attempt, out);
        }
        let fenced = self.attempts.iter().filter(|(_, held)| held.is_fenced());
        self.spent = fenced.map(|(attempt, _)| attempt).chain(&welcome.stop).copied().collect();
    }

    fn leave_session(&mut self) {
        self.claims.clear();
        self.epoch = None;
    }

    fn extend_lease(&mut self, contact: Millis) {
        let until = contact.saturating_add(self.lease_ms);
        self.lease_until = Some(self.lease_until.map_or(until, |before| before.max(until)));
    }

    fn job_received(&mut self, context: Arc<JobContext>) {
        let job = context.job;
        let of_job = AttemptId::new(job, 0, 0)..=AttemptId::new(job, u32::MAX, u32::MAX);
        for (attempt, entry) in self.attempts.range_mut(of_job) {
            if let Phase::Active(active) = &mut entry.phase
                && active.context.is_none()
            {
                active.context = Some(Arc::clone(&context));
                active.timeout_at = active.due();
                self.timeouts.extend(active.timeout_at.map(|at| (at, *attempt)));
            }
        }
        self.jobs.insert(job, context);
    }

    fn starts(&mut self, attempts: Vec<AttemptId>, out: &mut Step) {
        for attempt in attempts {
            let claims = self.claims.remove(&attempt);
            let newest = self.of_task(attempt.task).last();
            // Already known or fenced, or the agent is shutting down, which the manager will see.
            if newest.is_some_and(|newest| newest >= attempt) || self.shutdown.is_some() {
                continue;
            }
            // If the lease has ended, the manager may have given the task to another node. If the
            // job is unknown, it cannot be started. A new session settles both.
            let context = self.jobs.get(&attempt.task.job).cloned();
            let (Some(context), Some(_)) = (context, self.lease_until) else {
                tracing::warn!(
                    %attempt,
                    "cannot start an attempt without its job and a lease: reconnecting"
                );
                self.leave_session();
                out.reconnect = true;
                return;
            };
            if self.spent.contains(&attempt) {
                out.commands.push(Command::SetOutputAside { attempt });
                self.answer_for(attempt, Outcome::not_started(SPENT));
                continue;
            }
            if self.attempts.len() >= ATTEMPTS_PER_NODE_MAX {
                tracing::error!(
                    %attempt,
                    "not started: {ATTEMPTS_PER_NODE_MAX} attempts are held (ATTEMPTS_PER_NODE_MAX)"
                );
                continue;
            }
            let context = match claims.map(|claims| with_claims(&context, claims, &self.offers)) {
                None => context,
                Some(Ok(context)) => context,
                Some(Err(why)) => {
                    self.answer_for(attempt, Outcome::not_started(why));
                    continue;
                }
            };
            self.fence_older(attempt, out);
            let awaits = self.of_task(attempt.task).next().is_some();
            let phase = if awaits && !planted!(self, OlderNotAwaited) {
                Phase::Waiting(context)
            } else {
                out.commands.push(Command::Start { attempt, context: Arc::clone(&context) });
                Phase::Active(ActiveAttempt::new(&self.config, context))
            };
            self.attempts.insert(attempt, AttemptEntry { phase, unsent: Unsent::default() });
        }
    }

    /// Returns the held attempts of a task, oldest first.
    fn of_task(&self, task: TaskId) -> impl DoubleEndedIterator<Item = AttemptId> {
        let first = AttemptId { task, number: 0 };
        let last = AttemptId { task, number: u32::MAX };
        self.attempts.range(first..=last).map(|(attempt, _)| *attempt)
    }

    fn fence_older(&mut self, newest: AttemptId, out: &mut Step) {
        let older: Vec<_> = self.of_task(newest.task).filter(|a| *a < newest).collect();
        for attempt in older {
            self.fence(attempt, out);
        }
    }

    /// Kills an attempt that no longer counts at once, and reports nothing about it.
    fn fence(&mut self, attempt: AttemptId, out: &mut Step) {
        let Some(entry) = self.attempts.get_mut(&attempt) else { return };
        for key in core::mem::take(&mut entry.unsent).keys() {
            self.outbox.take_back(key);
        }
        let remove = match &entry.phase {
            Phase::Active(active) if planted!(self, FencedRunsOn) => {
                self.timeouts.retain(|(_, of)| *of != attempt || active.timeout_at.is_none());
                false
            }
            Phase::Active(_) => return self.stop(attempt, StopCause::Fenced, out),
            Phase::Waiting(_) => false,
            Phase::Ended { remove } => *remove,
        };
        self.attempts.remove(&attempt);
        if remove {
            out.commands.push(Command::Remove { attempt });
        }
    }

    /// Stops a running attempt. A later cause replaces an earlier one only when it fences; it can
    /// also turn a stop with grace into a kill.
    fn stop(&mut self, attempt: AttemptId, cause: StopCause, out: &mut Step) {
        let Some(AttemptEntry { phase: Phase::Active(active), .. }) =
            self.attempts.get_mut(&attempt)
        else {
            return;
        };
        let at_once = matches!(cause, StopCause::Fenced | StopCause::LeaseEnded);
        let before = active.stop;
        active.stop = Some(match before {
            Some(stop) if cause != StopCause::Fenced => {
                Stop { at_once: stop.at_once || at_once, ..stop }
            }
            _ => Stop { cause, at_once },
        });
        if before.is_none_or(|stop| at_once && !stop.at_once) {
            let grace_ms = if at_once { 0 } else { active.grace_ms() };
            out.commands.push(Command::Stop { attempt, grace_ms });
        }
    }

    /// Reports an outcome for an attempt that is not held, because the manager would wait for its
    /// end for ever.
    fn answer_for(&mut self, attempt: AttemptId, outcome: Outcome) {
        // Other attempts of the task end first; the manager asks again.
        if self.of_task(attempt.task).next().is_some() {
            return;
        }
        let ended = Some(self.outbox.push(attempt, ReportFact::Ended(outcome)));
        let unsent = Unsent { ended, ..Unsent::default() };
        self.attempts
            .insert(attempt, AttemptEntry { phase: Phase::Ended { remove: false }, unsent });
    }

    /// Stops a running attempt, or ends one that waits for its start.
    fn stop_or_end(&mut self, attempt: AttemptId, cause: StopCause, out: &mut Step) {
        let Some(AttemptEntry { phase: Phase::Waiting(context), .. }) = self.attempts.get(&attempt)
        else {
            return self.stop(attempt, cause, out);
        };
        let mut active = ActiveAttempt::new(&self.config, Arc::clone(context));
        active.stop = Some(Stop { cause, at_once: true });
        let outcome = active.outcome(Outcome::new(OutcomeKind::Lost));
        self.end(attempt, outcome, false);
    }

    fn runtime_reported(
        &mut self,
        now: Millis,
        attempt: AttemptId,
        fact: RuntimeFact,
        out: &mut Step,
    ) {
        let Some(entry) = self.attempts.get_mut(&attempt) else { return };
        let Phase::Active(active) = &mut entry.phase else { return };
        let unsent = &mut entry.unsent;
        // Only the end of a fenced attempt matters.
        let is_fenced = active.is_fenced();
        match fact {
            RuntimeFact::Preparing(_) | RuntimeFact::LogGap(_) if is_fenced => {}
            RuntimeFact::Preparing(text) => {
                unsent.preparing.into_iter().for_each(|key| self.outbox.take_back(key));
                unsent.preparing = Some(self.outbox.push(attempt, ReportFact::Preparing(text)));
            }
            RuntimeFact::LogGap(text) => {
                unsent.log_gap.into_iter().for_each(|key| self.outbox.take_back(key));
                unsent.log_gap = Some(self.outbox.push(attempt, ReportFact::LogGap(text)));
            }
            RuntimeFact::Started if active.started.is_some() => {}
            RuntimeFact::Started => {
                active.started = Some((now, 0));
                active.timeout_at = active.due();
                self.timeouts.extend(active.timeout_at.map(|at| (at, attempt)));
                if !is_fenced {
                    unsent.preparing.take().into_iter().for_each(|p| self.outbox.take_back(p));
                    unsent.started = Some(self.outbox.push(attempt, ReportFact::Started));
                }
            }
            // Only a replica that runs and goes on has endpoints.
            RuntimeFact::Listening(_) | RuntimeFact::Health(..)
                if active.started.is_none() || active.stop.is_some() => {}
            RuntimeFact::Listening(ports) => {
                unsent.listening.into_iter().for_each(|key| self.outbox.take_back(key));
                unsent.listening = Some(self.outbox.push(attempt, ReportFact::Listening(ports)));
            }
            RuntimeFact::Health(health, text) => {
                unsent.health.into_iter().for_each(|key| self.outbox.take_back(key));
                unsent.health = Some(self.outbox.push(attempt, ReportFact::Health(health, text)));
            }
            RuntimeFact::Ended(outcome) => {
                let outcome = active.outcome(outcome);
                self.end(attempt, outcome, true);
                if !self.attempts.contains_key(&attempt) {
                    out.commands.push(Command::Remove { attempt });
                    self.start_waiting(attempt.task, out);
                }
            }
        }
    }

    /// Ends an attempt: reports its outcome, or forgets it if there is none to report.
    fn end(&mut self, attempt: AttemptId, outcome: Option<Outcome>, remove: bool) {
        let Some(entry) = self.attempts.get_mut(&attempt) else { return };
        if let Phase::Active(ActiveAttempt { timeout_at: Some(at), .. }) = entry.phase {
            self.timeouts.remove(&(at, attempt));
        }
        let Some(outcome) = outcome else {
            self.attempts.remove(&attempt);
            return;
        };
        // The outcome also tells that it ran. Where and how well it ran no longer matters.
        let Unsent { preparing, started, listening, health, .. } = &mut entry.unsent;
        for key in [preparing, started, listening, health] {
            key.take().into_iter().for_each(|key| self.outbox.take_back(key));
        }
        entry.unsent.ended = Some(self.outbox.push(attempt, ReportFact::Ended(outcome)));
        entry.phase = Phase::Ended { remove };
    }

    /// Starts a waiting attempt once no older attempt of its task is left.
    fn start_waiting(&mut self, task: TaskId, out: &mut Step) {
        let mut of_task = self.of_task(task);
        let (Some(attempt), None) = (of_task.next(), of_task.next()) else { return };
        drop(of_task);
        let Some(entry) = self.attempts.get_mut(&attempt) else { return };
        if let Phase::Waiting(context) = &entry.phase {
            let context = Arc::clone(context);
            entry.phase = Phase::Active(ActiveAttempt::new(&self.config, Arc::clone(&context)));
            out.commands.push(Command::Start { attempt, context });
        }
    }

    fn acked(&mut self, number: u64, out: &mut Step) {
        let ended = self.outbox.acked(number);
        self.forget(ended, out);
    }

    /// Forgets attempts whose end the manager knows.
    fn forget(&mut self, ended: Vec<AttemptId>, out: &mut Step) {
        for attempt in ended {
            if let Some(AttemptEntry { phase: Phase::Ended { remove }, .. }) =
                self.attempts.get(&attempt)
            {
                if *remove {
                    out.commands.push(Command::Remove { attempt });
                }
                self.attempts.remove(&attempt);
            }
        }
    }

    fn run_timers(&mut self, now: Millis, out: &mut Step) {
        while let Some((at, attempt)) = self.timeouts.first().copied()
            && at <= now
        {
            self.timeouts.pop_first();
            if let Some(AttemptEntry { phase: Phase::Active(active), .. }) =
                self.attempts.get_mut(&attempt)
            {
                active.timeout_at = None;
            }
            self.stop(attempt, StopCause::TimedOut, out);
        }
        if self.lease_until.is_some_and(|until| until <= now) {
            self.lease_until = None;
            let endangered: Vec<_> = self
                .attempts
                .iter()
                .filter(|(_, entry)| match &entry.phase {
                    Phase::Active(active) => active.on_lost == OnLost::Requeue,
                    Phase::Waiting(context) => context.on_lost == OnLost::Requeue,
                    Phase::Ended { .. } => false,
                })
                .map(|(attempt, _)| *attempt)
                .collect();
            if !endangered.is_empty() {
                tracing::warn!(attempts = endangered.len(), "{LEASE_ENDED}: killing attempts");
            }
            for attempt in endangered {
                self.stop_or_end(attempt, StopCause::LeaseEnded, out);
            }
        }
    }

    fn shut_down(&mut self, out: &mut Step) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(Shutdown::default());
        tracing::debug!("{AGENT_STOPPED}");
        let ending: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, entry)| match &entry.phase {
                Phase::Active(active) => !active.outlives_agent,
                Phase::Waiting(_) => true,
                Phase::Ended { .. } => false,
            })
            .map(|(attempt, _)| *attempt)
            .collect();
        for attempt in ending {
            self.stop_or_end(attempt, StopCause::Shutdown, out);
        }
    }

    fn leave_if_done(&mut self, now: Millis, out: &mut Step) {
        let Some(shutdown) = &mut self.shutdown else { return };
        let must_end = |entry: &AttemptEntry| matches!(&entry.phase, Phase::Active(active) if !active.outlives_agent);
        if self.attempts.values().any(must_end) {
            return;
        }
        let goodbye_wait_ms = self.config.goodbye_wait_ms;
        let until = *shutdown.until.get_or_insert(now.saturating_add(goodbye_wait_ms));
        if self.outbox.is_empty() || now >= until {
            shutdown.done = true;
            out.messages.extend(self.epoch.map(ToManager::Goodbye));
            out.may_exit = true;
        }
    }
}
