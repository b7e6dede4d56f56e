//! What the core decides: plain values, for the shell to carry out.

use std::sync::Arc;

use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::session::ToManager;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec};

/// The outcome of one call of [`Core::step`](crate::Core::step).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What the runtimes are to do, in this order.
    pub commands: Vec<Command>,
    /// What is to be sent in the current session, in this order.
    pub messages: Vec<ToManager>,
    /// Drop the session's sockets and say hello anew.
    pub reconnect: bool,
    /// Everything that had to end before the daemon may end has ended and is reported.
    pub may_exit: bool,
}

impl Step {
    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.messages.clear();
        self.reconnect = false;
        self.may_exit = false;
    }
}

/// What a runtime is to do. None of them waits: what came of it is told as a
/// [`RuntimeFact`](crate::input::RuntimeFact).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start an attempt. Its end is told in any case.
    Start {
        /// Which.
        attempt: AttemptId,
        /// How.
        context: Arc<JobContext>,
    },
    /// Stop an attempt: TERM, and after the grace KILL. Its end is told as of any other; one that
    /// is over already is left alone.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// The manager knows how it ended: remove what is left of it, its logs excepted.
    Remove {
        /// Which.
        attempt: AttemptId,
    },
}

/// What an agent knows of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobContext {
    /// Which.
    pub job: JobId,
    /// Its name.
    pub name: Name,
    /// What to do when the lease ends without contact.
    pub on_lost: OnLost,
    /// What one task takes.
    pub resources: Resources,
    /// How its tasks are run.
    pub run: RunSpec,
}
