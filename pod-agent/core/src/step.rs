//! The core's decisions: plain values for the shell to carry out.

use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::place::Claims;
use podmesh_protocol::session::ToManager;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec};

/// The result of one call of [`Core::step`](crate::Core::step).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Commands for the runtimes, in this order.
    pub commands: Vec<Command>,
    /// Messages to send in the current session, in this order.
    pub messages: Vec<ToManager>,
    /// Close the session's sockets and send a new hello.
    pub reconnect: bool,
    /// The daemon may exit: every attempt that had to end has ended, and all reports are
    /// acknowledged or the wait for them is over.
    pub may_exit: bool,
}

impl Step {
    /// Clears everything but keeps the allocated memory.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.messages.clear();
        self.reconnect = false;
        self.may_exit = false;
    }
}

/// A command for a runtime. No command waits; the runtime reports the result as a
/// [`RuntimeFact`](crate::input::RuntimeFact).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start an attempt. The runtime always reports its end.
    Start {
        /// The attempt.
        attempt: AttemptId,
        /// Its job.
        context: Arc<JobContext>,
    },
    /// Stop an attempt: SIGTERM, then SIGKILL after the grace. Its end is reported as usual. An
    /// attempt that has already ended is left alone.
    Stop {
        /// The attempt.
        attempt: AttemptId,
        /// Grace in milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// Remove what is left of an attempt, except its logs. The manager knows its end.
    Remove {
        /// The attempt.
        attempt: AttemptId,
    },
    /// What is in the folder of its output is of another attempt, which had its number before:
    /// move it aside.
    SetOutputAside {
        /// Which.
        attempt: AttemptId,
    },
}

/// An agent's view of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobContext {
    /// The job's id.
    pub job: JobId,
    /// The job's name.
    pub name: Name,
    /// What to do when the lease ends without contact.
    pub on_lost: OnLost,
    /// Resources of one task.
    pub resources: Resources,
    /// How to run its tasks.
    pub run: RunSpec,
    /// What the attempt has of the named resources of the node.
    pub claims: Claims,
}
