//! The inputs of the core: facts about what has happened.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, Epoch, JobId};
use podmesh_protocol::place::Claims;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::service::Health;
use podmesh_protocol::session::{StopReason, Welcome};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Millis;

use crate::replica::Replica;
use crate::step::JobContext;

/// An input of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The attempts that the agent left here before its restart, found before the first session.
    AttemptsFound(Vec<FoundAttempt>),
    /// The manager opened a session.
    SessionOpened {
        /// The manager's welcome.
        welcome: Box<Welcome>,
        /// When the hello was sent, on our monotonic clock. The lease starts then.
        hello_sent_mono_ms: Millis,
    },
    /// The session's connection is lost, or the manager asked for a new hello.
    SessionClosed,
    /// How the tasks of a job are run.
    JobSpecReceived {
        /// The session.
        epoch: Epoch,
        /// The job.
        context: Arc<JobContext>,
    },
    /// What attempts that are to be started have of named resources.
    ClaimsReceived {
        /// The session.
        epoch: Epoch,
        /// The attempts, with what they have.
        claims: Vec<(AttemptId, Claims)>,
    },
    /// Attempts to start.
    StartsReceived {
        /// The session.
        epoch: Epoch,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Attempts to stop.
    StopsReceived {
        /// The session.
        epoch: Epoch,
        /// The attempts, each with its reason.
        stops: Vec<(AttemptId, StopReason)>,
    },
    /// Reports are on the manager's disk.
    ReportsAcked {
        /// The session.
        epoch: Epoch,
        /// The last acknowledged number: all reports up to and including it.
        acked: u64,
    },
    /// No more attempts of these jobs will come.
    JobsForgotten {
        /// The session.
        epoch: Epoch,
        /// The jobs.
        jobs: Vec<JobId>,
    },
    /// The manager answered a heartbeat.
    HeartbeatAnswered {
        /// The session.
        epoch: Epoch,
        /// When that heartbeat was sent, on our monotonic clock.
        sent_mono_ms: Millis,
    },
    /// The runtimes reported facts, in this order.
    RuntimeReported(Vec<(AttemptId, RuntimeFact)>),
    /// The daemon was asked to shut down: attempts that do not outlive it are stopped.
    ShutdownRequested,
    /// Time passed. Runs the timers that are due, as every other input does too.
    Tick,
}

/// A fact that a runtime reports about an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeFact {
    /// Progress before the start, such as an image pull. For people.
    Preparing(String),
    /// It is running.
    Started,
    /// It has ended, and the last byte of its output is in the file. A runtime uses only the
    /// outcomes `succeeded`, `failed`, `lost`, `not_started`, and `timed_out` if it keeps timeouts
    /// while no agent runs. The core knows every other reason why an attempt was stopped.
    Ended(Outcome),
    /// Some of its output was lost. For people.
    LogGap(String),
    /// It is a replica that listens on these ports of the node, in the order of the names in its
    /// spec. Once per start, after [`RuntimeFact::Started`]; not for a replica without ports.
    Listening(Vec<u16>),
    /// Its health has become known, or has changed. The text is for people.
    Health(Health, String),
}

/// An attempt that was found when the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAttempt {
    /// Its id.
    pub attempt: AttemptId,
    /// Its outcome; `None` if it has not ended: the runtime will report its end.
    pub ended: Option<Outcome>,
    /// Whether it is running; if not, the runtime will report its start.
    pub started: bool,
    /// Whether it survives the end of the agent, as a container or a supervised process does.
    pub outlives_agent: bool,
    /// What to do when the lease ends without contact, as recorded when it was started.
    pub on_lost: OnLost,
    /// How many milliseconds it has run so far, for its timeout; 0 if unknown.
    pub ran_ms: u64,
    /// What it is a replica of, if it is one.
    pub replica: Option<Arc<Replica>>,
}
