//! The parts of the state that are stored as rows.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::{PublicKey, Role, TokenId};
use podmesh_protocol::ids::{AgentId, Epoch, InstanceId, JobId, Name};
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::place::Offer;
use podmesh_protocol::queue::QUEUE_WEIGHT_DEFAULT;
use podmesh_protocol::report::{JobState, TaskCounts};
use podmesh_protocol::schedule::RunResult;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use serde::{Deserialize, Serialize};

use super::Closed;

/// The part of a job that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// The job.
    pub job: JobId,
    /// Its state.
    pub state: JobState,
    /// Why the rest of it was cancelled, if it was.
    pub closed: Option<Closed>,
    /// The index of the first task that has had no attempt. The tasks after it have had none
    /// either.
    pub next_index: u64,
    /// Whether these tasks are cancelled, all of them.
    pub rest_cancelled: bool,
    /// How many of its tasks are in each state.
    pub counts: TaskCounts,
    /// The number of attempts that its tasks have had.
    pub attempts: u64,
    /// The time at which its first attempt was assigned, for display.
    pub started_wall_ms: Option<u64>,
    /// The time at which it ended, for display.
    pub ended_wall_ms: Option<u64>,
}

/// The stored part of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub node: Name,
    /// Identifies the current boot of the machine.
    pub boot_id: String,
    /// Identifies the current run of the agent.
    pub agent_instance: InstanceId,
    /// The version of the agent's program.
    pub program_version: String,
    /// The resources that it offers in total.
    pub capacity: Resources,
    /// The labels of its agent.
    pub labels: BTreeMap<Name, String>,
    /// The runtimes that it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// The epoch of its last session.
    pub epoch: Epoch,
    /// The agent that the name belongs to; `None` if the next agent that gives an ID gets it.
    pub agent_id: Option<AgentId>,
    /// The time of the [age clock](crate::input::Input::RetentionDue) when it was first found lost;
    /// `None` since its last session.
    pub lost_age_ms: Option<u64>,
    /// What an admin lets it get.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// The IP address at which other nodes reach its replicas, as of its last session.
    #[serde(default)]
    pub address: Option<String>,
    /// How it is drained; `None` if it is not, or since an older version of podmesh.
    #[serde(default)]
    pub drain: Option<Arc<Drain>>,
    /// Its planned maintenance.
    #[serde(default)]
    pub maintenance: Option<Arc<Maintenance>>,
    /// The labels that admins have given it. They are over those of its agent.
    #[serde(default)]
    pub admin_labels: BTreeMap<Name, String>,
    /// The named resources that it offers, as of its last session.
    #[serde(default)]
    pub resources: BTreeMap<Name, Offer>,
}

impl NodeRow {
    /// Returns the value of a label.
    pub fn label(&self, label: &Name) -> Option<&String> {
        self.admin_labels.get(label).or_else(|| self.labels.get(label))
    }
}

/// The drain of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who asked for it.
    pub by: Name,
    /// When, by the wall clock. The deadline counts from then.
    pub since_wall_ms: u64,
    /// How.
    pub spec: DrainSpec,
}

/// The planned maintenance of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Who planned it.
    pub by: Name,
    /// What is planned.
    pub spec: MaintenanceSpec,
    /// What the node could get before it began; `None` if it has not begun. The node is drained until
    /// it is over.
    pub before: Option<Scheduling>,
}

impl Maintenance {
    /// Returns when it begins or, if it has begun, ends, by the wall clock.
    pub fn due_ms(&self) -> u64 {
        if self.before.is_some() { self.spec.until_ms() } else { self.spec.from_ms }
    }
}

/// A row of the history of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRunRow {
    /// Its number, which is the next one of the schedule.
    pub number: u64,
    /// The instant, or the last of several.
    pub instant_ms: u64,
    /// Whether somebody asked for the run. Other instants are unique in their schedule.
    pub by_hand: bool,
    /// When it was decided, by the wall clock.
    pub wall_ms: u64,
    /// What became of it.
    pub result: RunResult,
    /// The job, if it ran.
    pub job: Option<JobId>,
    /// How many instants it stands for.
    pub count: u32,
    /// Why it did not run.
    pub message: Option<String>,
}

/// The settings of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRow {
    /// What it gets of the cluster, compared with other queues. Not 0.
    pub weight: u32,
    /// At most so many of its tasks are active at a time.
    pub max_active: Option<u32>,
    /// At most so many tasks of each caller are active in it at a time.
    pub max_active_per_caller: Option<u32>,
    /// Whether it is paused.
    pub paused: bool,
    /// Who changed it last.
    pub by: Option<Name>,
    /// The job that is submitted when a task of the queue has failed for good.
    #[serde(default)]
    pub dead_letter: Option<Arc<JobSpec>>,
}

impl Default for QueueRow {
    fn default() -> Self {
        Self {
            weight: QUEUE_WEIGHT_DEFAULT,
            max_active: None,
            max_active_per_caller: None,
            paused: false,
            by: None,
            dead_letter: None,
        }
    }
}

/// A stored named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// The node that has it.
    pub node: Name,
    /// The time at which a task was first given it, for display.
    pub created_wall_ms: u64,
    /// Who asked to remove it; `None` if nobody did.
    pub removed_by: Option<Name>,
}

/// A stored join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its number.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// The role of those who join with it.
    pub role: Role,
    /// The time at which it expires, by the manager's clock.
    pub expires_wall_ms: u64,
    /// How many more times it can be used.
    pub uses_left: u32,
    /// The admin who created it.
    pub created_by: Name,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether it is an API token. Nobody can join with such a token.
    #[serde(default)]
    pub api: bool,
    /// When an API token was last used, by the manager's clock.
    #[serde(default)]
    pub used_wall_ms: Option<u64>,
}

/// A stored key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The key.
    pub key: PublicKey,
    /// The role of its owner.
    pub role: Role,
    /// The name of its owner. No two valid keys of nodes have the same name, and no two of users.
    pub name: Name,
    /// The token that it joined with.
    pub token: TokenId,
    /// The time at which it joined, for display.
    pub enrolled_wall_ms: u64,
    /// Whether it was revoked. A revoked key never becomes valid again.
    pub revoked: bool,
    /// The key of the same owner that it replaces as soon as it is used.
    pub renews: Option<PublicKey>,
    /// The time of the [age clock](crate::input::Input::RetentionDue) when it was first found
    /// revoked.
    pub revoked_age_ms: Option<u64>,
}
