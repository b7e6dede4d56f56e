//! The messages between agents and the manager.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::{LogRead, LogSlice, Reply, Request};
use crate::error::ErrorReply;
use crate::ids::{AttemptId, ClusterId, Epoch, InstanceId, JobId, Name};
use crate::report::Report;
use crate::spec::{OnLost, Resources, RunSpec, RuntimeKind};

/// Everything that a peer sends to the manager's ROUTER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToManager {
    /// An agent asks for a session; the first message on its socket.
    Hello(Hello),
    /// Reports, in order of their numbers: at most
    /// [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX). On the wire `[epoch, [report, …]]`.
    Reports(Epoch, Vec<Report>),
    /// The agent ends the session and stops; what it still held, it has reported.
    Goodbye(Epoch),
    /// An agent's answer to [`ToPeer::LogRead`]: the manager's number of the read, and the result.
    LogSlice(u64, Result<LogSlice, ErrorReply>),
    /// A client asks.
    Request(Request),
}

/// Everything that the manager's ROUTER sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPeer {
    /// The agent's session begins.
    Welcome(Welcome),
    /// The agent gets no session, for now; it tries again later.
    Refused(ErrorReply),
    /// How the tasks of a job are run; sent once a session, before the first start of the job.
    JobSpec {
        /// The session.
        epoch: Epoch,
        /// The job.
        job: JobId,
        /// What to do when the lease ends without contact.
        on_lost: OnLost,
        /// What one task takes.
        resources: Resources,
        /// How its tasks are run.
        run: RunSpec,
        /// The job's name, for labels.
        name: Name,
    },
    /// Start these attempts; one that is known already is not started again. At most
    /// [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX). On the wire `[epoch, [attempt, …]]`.
    Starts(Epoch, Vec<AttemptId>),
    /// Stop these attempts. On the wire `[epoch, [[attempt, reason], …]]`.
    Stops(Epoch, Vec<(AttemptId, StopReason)>),
    /// Every report up to and with this number is on the manager's disk.
    Acked(Epoch, u64),
    /// No more attempts of these jobs will come; their specs can be forgotten.
    ForgetJobs(Epoch, Vec<JobId>),
    /// The epoch of a message is not that of a live session: say hello again.
    HelloAgain(Epoch),
    /// Read a log for a client: the manager's number of the read, and what to read.
    LogRead(u64, LogRead),
    /// The answer to a client's request.
    Reply(Reply),
    /// A message could not be understood, or may not be sent by this peer.
    Error(ErrorReply),
}

/// An agent introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol that it speaks: [`PROTOCOL_VERSION`](crate::limits::PROTOCOL_VERSION).
    pub version: u16,
    /// The node's name.
    pub node: Name,
    /// The life of the machine, from `/proc/sys/kernel/random/boot_id`: another one than before
    /// means that nothing of before still runs.
    pub boot_id: String,
    /// The life of the agent process.
    pub agent_instance: InstanceId,
    /// The cluster whose attempts it holds; none on a fresh data directory.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// The version of its program, for display.
    pub program_version: String,
    /// What the node offers in all.
    pub capacity: Resources,
    /// The node's labels.
    pub labels: BTreeMap<Name, String>,
    /// What it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// What it cannot start now though it is set up to, and why: each at most
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes. At most one of each runtime.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub withdrawn: BTreeMap<RuntimeKind, String>,
    /// Every attempt that it holds: those that run, and those whose end has not been
    /// acknowledged. At most [`ATTEMPTS_PER_NODE_MAX`](crate::limits::ATTEMPTS_PER_NODE_MAX).
    pub attempts: Vec<AttemptId>,
}

/// The manager opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol that the manager speaks.
    pub version: u16,
    /// The session's number; every message of the session carries it.
    pub epoch: Epoch,
    /// Whose manager it is.
    pub cluster: ClusterId,
    /// Milliseconds for which the node counts as alive after a heartbeat.
    pub lease_ms: u64,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Every report of this agent instance up to and with this number is on the manager's disk.
    pub acked: u64,
    /// Of the attempts held, those that are to be stopped and forgotten, without a report.
    pub stop: Vec<AttemptId>,
    /// Of the attempts held, those that go on; the specs of their jobs follow.
    pub keep: Vec<AttemptId>,
}

/// Why an attempt is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A user cancelled it: stop with grace, and report its end.
    Cancelled,
    /// It no longer counts, or never did: kill it at once, and forget it.
    Fenced,
}
