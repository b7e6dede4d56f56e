//! What the core is told: facts of the past.

use std::sync::Arc;

use podmesh_protocol::ids::{AttemptId, Epoch, JobId};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::session::{StopReason, Welcome};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Millis;

use crate::step::JobContext;

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// What an earlier life of the agent left here, found before the first session.
    AttemptsFound(Vec<FoundAttempt>),
    /// The manager opened a session.
    SessionOpened {
        /// Its welcome.
        welcome: Box<Welcome>,
        /// When the hello was sent, on our monotonic clock: the lease runs from there.
        hello_sent_mono_ms: Millis,
    },
    /// The session's sockets are gone, or it was told to say hello again.
    SessionClosed,
    /// How the tasks of a job are run.
    JobSpecReceived {
        /// The session.
        epoch: Epoch,
        /// The job.
        context: Arc<JobContext>,
    },
    /// Attempts to start.
    StartsReceived {
        /// The session.
        epoch: Epoch,
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Attempts to stop.
    StopsReceived {
        /// The session.
        epoch: Epoch,
        /// Which, and why.
        stops: Vec<(AttemptId, StopReason)>,
    },
    /// Reports are on the manager's disk.
    ReportsAcked {
        /// The session.
        epoch: Epoch,
        /// All up to and with this one.
        acked: u64,
    },
    /// No more attempts of these jobs will come.
    JobsForgotten {
        /// The session.
        epoch: Epoch,
        /// Which.
        jobs: Vec<JobId>,
    },
    /// The manager answered a heartbeat.
    HeartbeatAnswered {
        /// The session.
        epoch: Epoch,
        /// When that heartbeat was sent, on our monotonic clock.
        sent_mono_ms: Millis,
    },
    /// The runtimes have news, in order.
    RuntimeReported(Vec<(AttemptId, RuntimeFact)>),
    /// The daemon is asked to end: what does not outlive it is stopped.
    ShutdownRequested,
    /// Time passed; due timers run. Every other input runs them too.
    Tick,
}

/// What a runtime says of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeFact {
    /// Something comes before the start: a pull, for instance. For people.
    Preparing(String),
    /// It runs.
    Started,
    /// It is over, and the last byte of its output is in the file. Of the kinds of outcome a
    /// runtime says `succeeded`, `failed` or `lost`: why it was stopped, the core knows.
    Ended(Outcome),
    /// Output of it was lost. For people.
    LogGap(String),
}

/// An attempt of an earlier life of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// How it ended; none: it goes on, and the runtime will say when it ends.
    pub ended: Option<Outcome>,
    /// Whether it runs already; where it does not, the runtime will say when it does.
    pub started: bool,
    /// Whether it survives the end of the agent (a container does, and a process that has a
    /// supervisor).
    pub outlives_agent: bool,
    /// What to do when the lease ends without contact, as it was written down at its start.
    pub on_lost: OnLost,
    /// Milliseconds for which it has run so far, for its timeout; 0 where that is not known.
    pub ran_ms: u64,
}
