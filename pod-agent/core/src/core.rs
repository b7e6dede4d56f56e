//! The core: what it holds, and what each input does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_protocol::ids::{AttemptId, Epoch, JobId, TaskId};
use podmesh_protocol::limits::{ATTEMPTS_PER_NODE_MAX, LEASE_MS_DEFAULT};
use podmesh_protocol::report::{Outcome, OutcomeKind, ReportFact};
use podmesh_protocol::session::{StopReason, ToManager, Welcome};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::{Millis, Now};

use crate::attempts::{AGENT_STOPPED, Held, LEASE_ENDED, Live, Phase, Stop, StopCause, Unsent};
use crate::faults::planted;
use crate::input::{FoundAttempt, Input, RuntimeFact};
use crate::outbox::Outbox;
use crate::step::{Command, JobContext, Step};

/// What is said of an attempt that is to be stopped and is not here.
const NOT_HELD: &str = "its agent does not hold it";

/// What does not change in the life of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// Milliseconds that the end of the daemon waits for the manager's acknowledgement, once
    /// everything that had to end has ended.
    pub goodbye_wait_ms: u64,
    /// Whether processes go on when the daemon ends, as containers do: they have a supervisor.
    pub processes_outlive: bool,
}

/// The agent's decisions: which attempts run, what is reported of them, and when they are stopped.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    /// The session; messages of another one are ignored.
    pub(crate) epoch: Option<Epoch>,
    lease_ms: u64,
    /// When the lease ends without further contact; none: it has ended, or never began.
    lease_until: Option<Millis>,
    /// The jobs of which the current session told.
    jobs: BTreeMap<JobId, Arc<JobContext>>,
    pub(crate) attempts: BTreeMap<AttemptId, Held>,
    /// The attempts whose time will be up, and when.
    pub(crate) timeouts: BTreeSet<(Millis, AttemptId)>,
    pub(crate) outbox: Outbox,
    shutdown: Option<Shutdown>,
    #[cfg(feature = "planted-faults")]
    fault: Option<crate::faults::Fault>,
}

/// The daemon is asked to end.
#[derive(Debug, Default)]
struct Shutdown {
    /// Until when acknowledgements are waited for; none while attempts have to end first.
    until: Option<Millis>,
    /// Whether the daemon was told that it may end. Nothing is decided after.
    done: bool,
}

impl Core {
    /// A core that holds nothing.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            epoch: None,
            lease_ms: LEASE_MS_DEFAULT,
            lease_until: None,
            jobs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            outbox: Outbox::default(),
            shutdown: None,
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// Makes a mistake from now on, for the simulator to find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: crate::faults::Fault) {
        self.fault = Some(fault);
    }

    /// Every attempt that is held, for the hello: those that run, and those whose end is not
    /// acknowledged.
    pub fn hello_attempts(&self) -> Vec<AttemptId> {
        self.attempts.keys().copied().collect()
    }

    /// Whether the attempt is held.
    pub fn holds(&self, attempt: &AttemptId) -> bool {
        self.attempts.contains_key(attempt)
    }

    /// Whether the attempt is held and not over: more output may come.
    pub fn goes_on(&self, attempt: AttemptId) -> bool {
        let held = self.attempts.get(&attempt);
        held.is_some_and(|held| !matches!(held.phase, Phase::Ended { .. }))
    }

    /// When the lease ends without further contact; none: it has ended, or never began.
    pub fn lease_until(&self) -> Option<Millis> {
        self.lease_until
    }

    /// When [`Input::Tick`] is due, if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Millis> {
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        let goodbye = match &self.shutdown {
            Some(Shutdown { done: true, .. }) => return None,
            Some(shutdown) => shutdown.until,
            None => None,
        };
        [timeout, self.lease_until, goodbye].into_iter().flatten().min()
    }

    /// Takes a fact in, and adds what follows from it to `out`.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Step) {
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.done) {
            return;
        }
        let now = now.mono_ms;
        // A contact that was made counts, also when the timer that it moves is looked at late.
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
            if planted!(self, ForgottenWhenSent) {
                self.acked(u64::MAX, out);
            }
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
                if planted!(self, OutboxLost) {
                    self.acked(u64::MAX, out);
                }
                self.leave_session();
            }
            Input::JobSpecReceived { epoch, context } if self.is_current(epoch) => {
                self.job_told(context);
            }
            Input::StartsReceived { epoch, attempts } if self.is_current(epoch) => {
                self.starts(attempts, out);
            }
            Input::StopsReceived { epoch, stops } if self.is_current(epoch) => {
                for (attempt, reason) in stops {
                    match reason {
                        StopReason::Cancelled if !self.attempts.contains_key(&attempt) => {
                            self.answer_for(attempt);
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
            // Of a session that is over: the new one tells all that counts.
            Input::JobSpecReceived { .. }
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
        for FoundAttempt { attempt, ended, started, outlives_agent, on_lost, ran_ms } in found {
            let forgotten = planted!(self, NotAdopted) && ended.is_none();
            if let Some(Held { phase: Phase::Ended { remove }, .. }) =
                self.attempts.get_mut(&attempt)
            {
                // Its end was told before its runtime was there.
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
                    // Whether that was ever reported, nobody here knows any more.
                    unsent.started = Some(self.outbox.push(attempt, ReportFact::Started));
                }
                Phase::Live(Live {
                    context: None,
                    on_lost,
                    outlives_agent,
                    started: started.then_some((now, ran_ms)),
                    timeout_at: None,
                    stop: None,
                })
            };
            self.attempts.insert(attempt, Held { phase, unsent });
            if let Some(newest) = self.of_task(attempt.task).last() {
                self.fence_older(newest, out);
            }
        }
        // When the last contact was, nobody knows: there is to be one within a lease from now.
        if self.lease_until.is_none() && self.epoch.is_none() && !self.attempts.is_empty() {
            self.lease_until = Some(now.saturating_add(self.lease_ms));
        }
    }

    fn session_opened(&mut self, welcome: &Welcome, hello_sent: Millis, out: &mut Step) {
        self.epoch = Some(welcome.epoch);
        self.lease_ms = welcome.lease_ms;
        // What was assumed before, of the default lease, may be longer than the manager waits.
        self.lease_until = None;
        self.extend_lease(hello_sent);
        self.jobs.clear();
        self.outbox.session_changed();
        self.acked(welcome.acked, out);
        for attempt in &welcome.stop {
            self.fence(*attempt, out);
        }
    }

    fn leave_session(&mut self) {
        self.epoch = None;
        self.outbox.session_changed();
    }

    fn extend_lease(&mut self, contact: Millis) {
        let until = contact.saturating_add(self.lease_ms);
        self.lease_until = Some(self.lease_until.map_or(until, |before| before.max(until)));
    }

    fn job_told(&mut self, context: Arc<JobContext>) {
        let job = context.job;
        let of_job = AttemptId::new(job, 0, 0)..=AttemptId::new(job, u32::MAX, u32::MAX);
        for (attempt, held) in self.attempts.range_mut(of_job) {
            if let Phase::Live(live) = &mut held.phase
                && live.context.is_none()
            {
                live.context = Some(Arc::clone(&context));
                live.timeout_at = live.due();
                self.timeouts.extend(live.timeout_at.map(|at| (at, *attempt)));
            }
        }
        self.jobs.insert(job, context);
    }

    fn starts(&mut self, attempts: Vec<AttemptId>, out: &mut Step) {
        for attempt in attempts {
            let newest = self.of_task(attempt.task).last();
            // Known already, or fenced already; or the agent ends, and the manager will see.
            if newest.is_some_and(|newest| newest >= attempt) || self.shutdown.is_some() {
                continue;
            }
            // After the lease the manager may have given the task to another node meanwhile.
            // Without the job there is nothing to start. A new session settles both.
            let context = self.jobs.get(&attempt.task.job).cloned();
            let (Some(context), Some(_)) = (context, self.lease_until) else {
                tracing::warn!(%attempt, "cannot start what this session did not tell of");
                self.leave_session();
                out.reconnect = true;
                return;
            };
            if self.attempts.len() >= ATTEMPTS_PER_NODE_MAX {
                tracing::error!(
                    %attempt,
                    "not started: {ATTEMPTS_PER_NODE_MAX} attempts are held (ATTEMPTS_PER_NODE_MAX)"
                );
                continue;
            }
            self.fence_older(attempt, out);
            let awaits = self.of_task(attempt.task).next().is_some();
            let phase = if awaits && !planted!(self, OlderNotAwaited) {
                Phase::Waiting(context)
            } else {
                out.commands.push(Command::Start { attempt, context: Arc::clone(&context) });
                Phase::Live(Live::new(&self.config, context))
            };
            self.attempts.insert(attempt, Held { phase, unsent: Unsent::default() });
        }
    }

    /// The attempts of a task that are held, the oldest first.
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

    /// It no longer counts: kill it at once, and report nothing of it.
    fn fence(&mut self, attempt: AttemptId, out: &mut Step) {
        let Some(held) = self.attempts.get_mut(&attempt) else { return };
        for place in std::mem::take(&mut held.unsent).places() {
            self.outbox.take_back(place);
        }
        let remove = match &held.phase {
            Phase::Live(live) if planted!(self, FencedRunsOn) => {
                self.timeouts.retain(|(_, of)| *of != attempt || live.timeout_at.is_none());
                false
            }
            Phase::Live(_) => return self.stop(attempt, StopCause::Fenced, out),
            Phase::Waiting(_) => false,
            Phase::Ended { remove } => *remove,
        };
        self.attempts.remove(&attempt);
        if remove {
            out.commands.push(Command::Remove { attempt });
        }
    }

    /// Stops what runs. A second cause changes the first only when it fences, or kills.
    fn stop(&mut self, attempt: AttemptId, cause: StopCause, out: &mut Step) {
        let Some(Held { phase: Phase::Live(live), .. }) = self.attempts.get_mut(&attempt) else {
            return;
        };
        let at_once = matches!(cause, StopCause::Fenced | StopCause::LeaseEnded);
        let before = live.stop;
        live.stop = Some(match before {
            Some(stop) if cause != StopCause::Fenced => {
                Stop { at_once: stop.at_once || at_once, ..stop }
            }
            _ => Stop { cause, at_once },
        });
        if before.is_none_or(|stop| at_once && !stop.at_once) {
            let grace_ms = if at_once { 0 } else { live.grace_ms() };
            out.commands.push(Command::Stop { attempt, grace_ms });
        }
    }

    /// The manager waits for the end of an attempt that is not here: it would wait for ever.
    fn answer_for(&mut self, attempt: AttemptId) {
        // Older ones of the task are over first; the manager asks again.
        if self.of_task(attempt.task).next().is_some() {
            return;
        }
        let outcome = Outcome::new(OutcomeKind::Lost).with_message(NOT_HELD);
        let ended = Some(self.outbox.push(attempt, ReportFact::Ended(outcome)));
        let unsent = Unsent { ended, ..Unsent::default() };
        self.attempts.insert(attempt, Held { phase: Phase::Ended { remove: false }, unsent });
    }

    /// Stops what runs, and ends what waits for its start.
    fn stop_or_end(&mut self, attempt: AttemptId, cause: StopCause, out: &mut Step) {
        let Some(Held { phase: Phase::Waiting(context), .. }) = self.attempts.get(&attempt) else {
            return self.stop(attempt, cause, out);
        };
        let mut live = Live::new(&self.config, Arc::clone(context));
        live.stop = Some(Stop { cause, at_once: true });
        let outcome = live.outcome(Outcome::new(OutcomeKind::Lost));
        self.end(attempt, outcome, false);
    }

    fn runtime_reported(
        &mut self,
        now: Millis,
        attempt: AttemptId,
        fact: RuntimeFact,
        out: &mut Step,
    ) {
        let Some(held) = self.attempts.get_mut(&attempt) else { return };
        let Phase::Live(live) = &mut held.phase else { return };
        let unsent = &mut held.unsent;
        // Of one that no longer counts, only the end matters.
        let is_fenced = live.is_fenced();
        match fact {
            RuntimeFact::Preparing(_) | RuntimeFact::LogGap(_) if is_fenced => {}
            RuntimeFact::Preparing(text) => {
                unsent.preparing.into_iter().for_each(|place| self.outbox.take_back(place));
                unsent.preparing = Some(self.outbox.push(attempt, ReportFact::Preparing(text)));
            }
            RuntimeFact::LogGap(text) => {
                unsent.log_gap.into_iter().for_each(|place| self.outbox.take_back(place));
                unsent.log_gap = Some(self.outbox.push(attempt, ReportFact::LogGap(text)));
            }
            RuntimeFact::Started if live.started.is_some() => {}
            RuntimeFact::Started => {
                live.started = Some((now, 0));
                live.timeout_at = live.due();
                self.timeouts.extend(live.timeout_at.map(|at| (at, attempt)));
                if !is_fenced {
                    unsent.preparing.take().into_iter().for_each(|p| self.outbox.take_back(p));
                    unsent.started = Some(self.outbox.push(attempt, ReportFact::Started));
                }
            }
            RuntimeFact::Ended(outcome) => {
                let outcome = live.outcome(outcome);
                self.end(attempt, outcome, true);
                if !self.attempts.contains_key(&attempt) {
                    out.commands.push(Command::Remove { attempt });
                    self.start_waiting(attempt.task, out);
                }
            }
        }
    }

    /// An attempt is over: reported, or forgotten where it no longer counts.
    fn end(&mut self, attempt: AttemptId, outcome: Option<Outcome>, remove: bool) {
        let Some(held) = self.attempts.get_mut(&attempt) else { return };
        if let Phase::Live(Live { timeout_at: Some(at), .. }) = held.phase {
            self.timeouts.remove(&(at, attempt));
        }
        let Some(outcome) = outcome else {
            self.attempts.remove(&attempt);
            return;
        };
        // That it ran, its outcome tells.
        for place in [held.unsent.preparing.take(), held.unsent.started.take()] {
            place.into_iter().for_each(|place| self.outbox.take_back(place));
        }
        held.unsent.ended = Some(self.outbox.push(attempt, ReportFact::Ended(outcome)));
        held.phase = Phase::Ended { remove };
    }

    /// Starts the attempt that waited for the older ones of its task, when the last one is gone.
    fn start_waiting(&mut self, task: TaskId, out: &mut Step) {
        let mut of_task = self.of_task(task);
        let (Some(attempt), None) = (of_task.next(), of_task.next()) else { return };
        drop(of_task);
        let Some(held) = self.attempts.get_mut(&attempt) else { return };
        if let Phase::Waiting(context) = &held.phase {
            let context = Arc::clone(context);
            held.phase = Phase::Live(Live::new(&self.config, Arc::clone(&context)));
            out.commands.push(Command::Start { attempt, context });
        }
    }

    fn acked(&mut self, number: u64, out: &mut Step) {
        for attempt in self.outbox.acked(number) {
            if let Some(Held { phase: Phase::Ended { remove }, .. }) = self.attempts.get(&attempt) {
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
            if let Some(Held { phase: Phase::Live(live), .. }) = self.attempts.get_mut(&attempt) {
                live.timeout_at = None;
            }
            self.stop(attempt, StopCause::TimedOut, out);
        }
        if self.lease_until.is_some_and(|until| until <= now) {
            self.lease_until = None;
            let endangered: Vec<_> = self
                .attempts
                .iter()
                .filter(|_| !planted!(self, LeaseIgnored))
                .filter(|(_, held)| match &held.phase {
                    Phase::Live(live) => live.on_lost == OnLost::Requeue,
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
            .filter(|(_, held)| match &held.phase {
                Phase::Live(live) => !live.outlives_agent,
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
        let must_end =
            |held: &Held| matches!(&held.phase, Phase::Live(live) if !live.outlives_agent);
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
