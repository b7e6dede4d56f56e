//! The state of each attempt that the core holds.

use alloc::borrow::ToOwned as _;
use alloc::sync::Arc;

use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, RuntimeKind};
use podmesh_protocol::time::Millis;

use crate::config::CoreConfig;
use crate::outbox::ReportKey;
use crate::step::JobContext;

/// Grace in milliseconds for an adopted attempt whose job is not known yet: the default of a job.
const GRACE_UNKNOWN_JOB_MS: u64 = 10_000;

/// An attempt that the core holds: it runs, or the manager has not acknowledged its end.
#[derive(Debug)]
pub(crate) struct AttemptEntry {
    pub(crate) phase: Phase,
    pub(crate) unsent: Unsent,
}

impl AttemptEntry {
    /// Returns whether the attempt is fenced: it no longer counts, and is being killed.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(&self.phase, Phase::Active(active) if active.is_fenced())
    }
}

/// The phase of an attempt.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Starts when the older attempt of its task, which is being killed, has ended.
    Waiting(Arc<JobContext>),
    /// Handed to a runtime, and not ended.
    Active(ActiveAttempt),
    /// Ended; its end is in the outbox.
    Ended {
        /// Whether a runtime has remains to remove.
        remove: bool,
    },
}

/// The reports of an attempt that can still be withdrawn.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    pub(crate) preparing: Option<ReportKey>,
    pub(crate) started: Option<ReportKey>,
    pub(crate) log_gap: Option<ReportKey>,
    pub(crate) listening: Option<ReportKey>,
    pub(crate) health: Option<ReportKey>,
    pub(crate) ended: Option<ReportKey>,
}

impl Unsent {
    pub(crate) fn keys(&self) -> impl Iterator<Item = ReportKey> {
        let Self { preparing, started, log_gap, listening, health, ended } = *self;
        [preparing, started, log_gap, listening, health, ended].into_iter().flatten()
    }
}

/// An attempt that was handed to a runtime and has not ended.
#[derive(Debug)]
pub(crate) struct ActiveAttempt {
    /// `None` for an adopted attempt whose job is not known yet.
    pub(crate) context: Option<Arc<JobContext>>,
    pub(crate) on_lost: OnLost,
    pub(crate) outlives_agent: bool,
    /// When it was first seen running, and for how many milliseconds it had already run by then.
    pub(crate) started: Option<(Millis, u64)>,
    pub(crate) timeout_at: Option<Millis>,
    pub(crate) stop: Option<Stop>,
}

/// A stop that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) cause: StopCause,
    /// Whether the attempt is killed without grace.
    pub(crate) at_once: bool,
}

/// Why an attempt is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// A user cancelled it.
    Cancelled,
    /// Its timeout expired.
    TimedOut,
    /// The lease ended.
    LeaseEnded,
    /// The agent shuts down.
    Shutdown,
    /// The attempt no longer counts; its end is not reported.
    Fenced,
}

impl ActiveAttempt {
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
        self.context.as_ref().map_or(GRACE_UNKNOWN_JOB_MS, |context| context.run.stop_grace_ms)
    }

    /// Returns when the timeout expires; `None` without a timeout, or while the job or the start
    /// is not known.
    pub(crate) fn due(&self) -> Option<Millis> {
        let timeout_ms = self.context.as_ref()?.run.timeout_ms?;
        let (since, ran_before_ms) = self.started?;
        Some(since.saturating_add(timeout_ms.saturating_sub(ran_before_ms)))
    }

    /// Returns the outcome to report; `None` for a fenced attempt.
    pub(crate) fn outcome(&self, mut outcome: Outcome) -> Option<Outcome> {
        if self.started.is_some() {
            // 0 means that it never ran.
            outcome.ran_ms = outcome.ran_ms.max(1);
        }
        let Some(stop) = self.stop else { return Some(outcome) };
        let (kind, message) = match stop.cause {
            StopCause::Fenced => return None,
            StopCause::Cancelled => (OutcomeKind::Cancelled, None),
            StopCause::TimedOut => {
                let timeout_ms = self.context.as_ref().and_then(|c| c.run.timeout_ms);
                return Some(outcome.timed_out(timeout_ms.unwrap_or_default()));
            }
            StopCause::LeaseEnded => (OutcomeKind::Lost, Some(LEASE_ENDED.to_owned())),
            StopCause::Shutdown => (OutcomeKind::Lost, Some(AGENT_STOPPED.to_owned())),
        };
        outcome.kind = kind;
        outcome.message = message.or(outcome.message);
        Some(outcome)
    }
}

/// Message of an attempt that was killed because the lease ended.
pub(crate) const LEASE_ENDED: &str = "the lease ended without contact with the manager";
/// Message of an attempt that was stopped because the agent stopped.
pub(crate) const AGENT_STOPPED: &str = "the agent was stopped";
