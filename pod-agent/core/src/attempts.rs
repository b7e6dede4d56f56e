//! What the core knows of the attempts that it holds.

use std::sync::Arc;

use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, RuntimeKind};
use podmesh_protocol::time::Millis;

use crate::core::CoreConfig;
use crate::outbox::Place;
use crate::step::JobContext;

/// Milliseconds of grace for an attempt of an earlier life whose job has not been told yet: the
/// default of a job.
const GRACE_UNTOLD_MS: u64 = 10_000;

/// One attempt that is held: it runs, or the manager has not acknowledged its end.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) phase: Phase,
    pub(crate) unsent: Unsent,
}

/// Where an attempt stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It starts when the older attempt of its task, which is being killed, is over.
    Waiting(Arc<JobContext>),
    /// A runtime has it.
    Live(Live),
    /// It is over, and its end is in the outbox.
    Ended {
        /// Whether a runtime has something of it to remove.
        remove: bool,
    },
}

/// The reports of an attempt that may still be taken back.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    pub(crate) preparing: Option<Place>,
    pub(crate) started: Option<Place>,
    pub(crate) log_gap: Option<Place>,
    pub(crate) ended: Option<Place>,
}

impl Unsent {
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        [self.preparing, self.started, self.log_gap, self.ended].into_iter().flatten()
    }
}

/// An attempt that a runtime has.
#[derive(Debug)]
pub(crate) struct Live {
    /// None for one of an earlier life whose job has not been told yet.
    pub(crate) context: Option<Arc<JobContext>>,
    pub(crate) on_lost: OnLost,
    pub(crate) outlives_agent: bool,
    /// Since when it is known to run, and for how long it had run before.
    pub(crate) started: Option<(Millis, u64)>,
    pub(crate) timeout_at: Option<Millis>,
    pub(crate) stop: Option<Stop>,
}

/// That an attempt is being stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) cause: StopCause,
    /// Whether it is killed without grace.
    pub(crate) at_once: bool,
}

/// Why an attempt is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// A user cancelled it.
    Cancelled,
    /// Its time was up.
    TimedOut,
    /// The lease ended.
    LeaseEnded,
    /// The agent ends.
    Shutdown,
    /// It no longer counts; its end is not reported.
    Fenced,
}

impl Live {
    pub(crate) fn new(config: &CoreConfig, context: Arc<JobContext>) -> Self {
        let outlives_agent = match context.run.runtime.kind() {
            RuntimeKind::Docker => true,
            RuntimeKind::Process => config.processes_outlive,
            RuntimeKind::Noop => false,
        };
        Self {
            on_lost: context.on_lost,
            outlives_agent,
            context: Some(context),
            started: None,
            timeout_at: None,
            stop: None,
        }
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.stop.is_some_and(|stop| stop.cause == StopCause::Fenced)
    }

    pub(crate) fn grace_ms(&self) -> u64 {
        self.context.as_ref().map_or(GRACE_UNTOLD_MS, |context| context.run.stop_grace_ms)
    }

    /// When its time is up, as far as that is known.
    pub(crate) fn due(&self) -> Option<Millis> {
        let timeout_ms = self.context.as_ref()?.run.timeout_ms?;
        let (since, ran_before_ms) = self.started?;
        Some(since.saturating_add(timeout_ms.saturating_sub(ran_before_ms)))
    }

    /// What is reported of its end; nothing of one that no longer counts.
    pub(crate) fn outcome(&self, mut outcome: Outcome) -> Option<Outcome> {
        if self.started.is_some() {
            // 0 says that it never ran.
            outcome.ran_ms = outcome.ran_ms.max(1);
        }
        let Some(stop) = self.stop else { return Some(outcome) };
        let (kind, message) = match stop.cause {
            StopCause::Fenced => return None,
            StopCause::Cancelled => (OutcomeKind::Cancelled, None),
            StopCause::TimedOut => (OutcomeKind::TimedOut, self.timeout_message()),
            StopCause::LeaseEnded => (OutcomeKind::Lost, Some(LEASE_ENDED.to_owned())),
            StopCause::Shutdown => (OutcomeKind::Lost, Some(AGENT_STOPPED.to_owned())),
        };
        outcome.kind = kind;
        outcome.message = message.or(outcome.message);
        Some(outcome)
    }

    fn timeout_message(&self) -> Option<String> {
        let timeout_ms = self.context.as_ref()?.run.timeout_ms?;
        let (seconds, rest_ms) = (timeout_ms / 1000, timeout_ms % 1000);
        let fraction = if rest_ms == 0 { String::new() } else { format!(".{rest_ms:03}") };
        Some(format!("stopped because its timeout of {seconds}{fraction} s was over"))
    }
}

/// What is said of an attempt that was killed because the lease ended.
pub(crate) const LEASE_ENDED: &str = "the lease ended without contact with the manager";
/// What is said of an attempt that was stopped with the agent.
pub(crate) const AGENT_STOPPED: &str = "the agent was stopped";
