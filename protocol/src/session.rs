//! The messages between agents and the manager.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::{LogRead, LogSlice, Reply, Request};
use crate::error::ErrorReply;
use crate::ids::{AgentId, AttemptId, ClusterId, Epoch, InstanceId, JobId, Name};
use crate::place::{Claims, Offer};
use crate::report::Report;
use crate::service::ServiceEndpoints;
use crate::spec::{OnLost, Resources, RunSpec, RuntimeKind};
use crate::version::VersionRange;
use crate::word::MaybeKnown;

/// Everything that a peer sends to the manager's ROUTER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "messages are encoded at once, not kept")]
pub enum ToManager {
    /// An agent requests a session; the first message on its socket.
    Hello(Hello),
    /// Reports, in order of their numbers: at most
    /// [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX). On the wire `[epoch, [report, …]]`.
    Reports(Epoch, Vec<Report>),
    /// The agent ends the session and stops. It has reported everything before.
    Goodbye(Epoch),
    /// An agent's answer to [`ToPeer::LogRead`]: the manager's number of the read, and the result.
    LogSlice(u64, Result<LogSlice, ErrorReply>),
    /// The node's proxy has applied endpoints.
    EndpointsApplied {
        /// The session.
        epoch: Epoch,
        /// The last update that its proxy has applied.
        applied: u64,
        /// The last update whose removed replicas have no connection through this proxy any more.
        drained: u64,
    },
    /// The published ports that are not open on the node, and why: each at most
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes. Replaces what was said before in
    /// the session.
    PortsClosed {
        /// The session.
        epoch: Epoch,
        /// The reasons, by port. At most [`PORTS_CLOSED_MAX`](crate::limits::PORTS_CLOSED_MAX).
        closed: BTreeMap<u16, String>,
    },
    /// What has become of volumes that had to be removed.
    VolumesRemoved {
        /// The session.
        epoch: Epoch,
        /// Those that the node no longer has.
        removed: Vec<Name>,
        /// Those that could not be removed, and why: each at most
        /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
        failed: BTreeMap<Name, String>,
    },
    /// A request of a client.
    Request(Request),
}

/// Everything that the manager's ROUTER sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPeer {
    /// The agent's session begins.
    Welcome(Welcome),
    /// The agent gets no session at present; it retries later.
    Refused(ErrorReply),
    /// How the tasks of a job are run; sent once per session, before the first start of the job.
    JobSpec {
        /// The session.
        epoch: Epoch,
        /// The job.
        job: JobId,
        /// What to do when the lease ends without contact.
        on_lost: OnLost,
        /// The resources of one task.
        resources: Resources,
        /// How its tasks are run.
        run: RunSpec,
        /// The job's name, for labels.
        name: Name,
    },
    /// What attempts have of the named resources that the agent offers, sent before their starts: at
    /// most [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX).
    Claims {
        /// The session.
        epoch: Epoch,
        /// The attempts, with what they have.
        claims: Vec<(AttemptId, Claims)>,
    },
    /// Start these attempts. Known attempts are not started again. At most
    /// [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX). On the wire `[epoch, [attempt, …]]`.
    Starts(Epoch, Vec<AttemptId>),
    /// Stop these attempts. On the wire `[epoch, [[attempt, reason], …]]`.
    Stops(Epoch, Vec<(AttemptId, StopReason)>),
    /// Every report up to and including this number is on the manager's disk.
    Acked(Epoch, u64),
    /// No more attempts of these jobs will follow; the agent can drop their specs.
    ForgetJobs(Epoch, Vec<JobId>),
    /// The epoch of a message is not that of a live session: the agent must send `hello` again.
    HelloAgain(Epoch),
    /// The ready replicas of services, for the node's proxy. Sent only to agents with one.
    Endpoints {
        /// The session.
        epoch: Epoch,
        /// The number of the update: it only grows within a session.
        update: u64,
        /// Whether the proxy must forget all services that are not in this message.
        all: bool,
        /// The services that have changed.
        services: Vec<ServiceEndpoints>,
    },
    /// Remove these named volumes, with their data: at most
    /// [`BATCH_ROWS_MAX`](crate::limits::BATCH_ROWS_MAX). Sent again in every session until it is
    /// done.
    RemoveVolumes {
        /// The session.
        epoch: Epoch,
        /// The volumes.
        volumes: Vec<Name>,
    },
    /// Read a log for a client: the manager's number of the read, and what to read.
    LogRead(u64, LogRead),
    /// The reply to a client's request.
    Reply(Reply),
    /// A message was invalid, or this peer may not send it.
    Error(ErrorReply),
}

/// The first message of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest protocol version that the agent speaks.
    pub version: u16,
    /// The oldest protocol version that the agent speaks; `None` if it speaks only the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_oldest: Option<u16>,
    /// The node's name.
    pub node: Name,
    /// The id of the machine's boot, from `/proc/sys/kernel/random/boot_id`. If it changes, nothing
    /// from before is still running.
    pub boot_id: String,
    /// The id of this run of the agent process.
    pub agent_instance: InstanceId,
    /// The id of the agent's data directory; `None` from an older release, which does not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The cluster of the attempts that it holds; `None` for a fresh data directory.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// The version of its program, for display.
    pub program_version: String,
    /// All resources that the node offers.
    pub capacity: Resources,
    /// The node's labels.
    pub labels: BTreeMap<Name, String>,
    /// The runtimes that it can start. A manager that does not know one gives it no work for it.
    pub runtimes: Vec<MaybeKnown<RuntimeKind>>,
    /// The enabled runtimes that it cannot start at present, and why: each at most
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes. At most one entry per
    /// runtime.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub withdrawn: BTreeMap<MaybeKnown<RuntimeKind>, String>,
    /// Which limits of a job (`memory`, `cpus`) it does not enforce for commands, and why: each at
    /// most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unenforced: BTreeMap<String, String>,
    /// Which of its disks are nearly full, `logs` (of the output) or `data` (of its data folder, if
    /// that is another disk), and how much was free when the agent found that: each at most
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub low_disks: BTreeMap<String, String>,
    /// The IP address at which other nodes reach the replicas on this node; `None` if it runs no
    /// replicas with ports, and has no proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The named resources that it offers: at most
    /// [`RESOURCES_MAX`](crate::limits::RESOURCES_MAX).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<Name, Offer>,
    /// Every attempt that it holds: those that run, and those whose end has not been
    /// acknowledged. At most [`ATTEMPTS_PER_NODE_MAX`](crate::limits::ATTEMPTS_PER_NODE_MAX).
    pub attempts: Vec<AttemptId>,
}

impl Hello {
    /// Returns the protocol versions that the agent speaks.
    pub fn versions(&self) -> VersionRange {
        VersionRange::sent(self.version, self.version_oldest)
    }
}

/// The manager opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version of the session: the highest that both sides speak.
    pub version: u16,
    /// The session's number; every message of the session carries it.
    pub epoch: Epoch,
    /// The manager's cluster.
    pub cluster: ClusterId,
    /// Milliseconds for which the node counts as alive after a heartbeat.
    pub lease_ms: u64,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Every report of this agent instance up to and including this number is on the manager's
    /// disk.
    pub acked: u64,
    /// The held attempts that must be stopped and dropped without a report.
    pub stop: Vec<AttemptId>,
    /// The held attempts that continue; the specs of their jobs follow.
    pub keep: Vec<AttemptId>,
}

/// The reason why an attempt must be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A user cancelled it: stop with grace, and report its end.
    Cancelled,
    /// It is no longer valid, or never was: kill it at once, and drop it.
    Fenced,
}
