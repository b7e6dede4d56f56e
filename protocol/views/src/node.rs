//! Nodes, and what admins do with them, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_protocol::ids::Name;
use podmesh_protocol::node as wire;
use podmesh_protocol::spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::{InputError, moment};
use crate::json::{NodeState, RuntimeKind, Word, labels};
use crate::service::Scheduling;
use crate::time::rfc3339;

/// `podmesh nodes --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodesOutput {
    /// The nodes in order of name.
    pub nodes: Vec<NodeRow>,
}

/// A node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeRow {
    /// The node's name.
    pub node: String,
    /// Whether it is available.
    pub state: NodeState,
    /// The epoch of its current session.
    pub epoch: Option<u64>,
    /// The version of its agent.
    pub version: String,
    /// All resources that it offers.
    pub capacity: ResourcesRow,
    /// The resources that are free.
    pub free: ResourcesRow,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The runtimes that it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// The enabled runtimes that it cannot start at present, and why.
    pub withdrawn: BTreeMap<String, String>,
    /// Which limits of a job (`memory`, `cpus`) it does not enforce for commands, and why.
    pub unenforced: BTreeMap<String, String>,
    /// Which of its disks are nearly full, `logs` (of the output) or `data` (of its data folder), and
    /// how much was free when its agent found that.
    pub low_disks: BTreeMap<String, String>,
    /// The number of attempts that it has.
    pub attempts: u32,
    /// Milliseconds since it was last known to be alive; null if not since the manager started.
    pub seen_ms_ago: Option<u64>,
    /// Whether it joined with a key; otherwise its agent is on the manager's machine.
    pub enrolled: bool,
    /// What an admin lets it get.
    pub scheduling: Scheduling,
    /// Its named resources.
    pub resources: BTreeMap<String, NamedResourceRow>,
    /// Its drain, if it is being drained.
    pub drain: Option<DrainRow>,
    /// Its planned maintenance.
    pub maintenance: Option<MaintenanceRow>,
    /// Those of its labels that an admin has set. The others are its agent's.
    pub admin_labels: Vec<String>,
    /// The IP address at which other nodes reach the replicas on it; null if it has no proxy.
    pub address: Option<String>,
}

/// Cores and memory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ResourcesRow {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl From<&spec::Resources> for ResourcesRow {
    fn from(resources: &spec::Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

impl From<&wire::NodeView> for NodeRow {
    fn from(view: &wire::NodeView) -> Self {
        Self {
            node: view.node.to_string(),
            state: (&view.state).into(),
            epoch: view.epoch.map(|epoch| epoch.0),
            version: view.program_version.clone(),
            capacity: (&view.capacity).into(),
            free: (&view.free).into(),
            labels: labels(&view.labels),
            runtimes: view.runtimes.iter().map(Into::into).collect(),
            withdrawn: view
                .withdrawn
                .iter()
                .map(|(kind, why)| (kind.to_string(), why.clone()))
                .collect(),
            unenforced: view.unenforced.clone(),
            low_disks: view.low_disks.clone(),
            attempts: view.attempts,
            seen_ms_ago: view.seen_ms_ago,
            enrolled: view.enrolled,
            scheduling: (&view.scheduling).into(),
            resources: view
                .resources
                .iter()
                .map(|(name, resource)| (name.to_string(), resource.into()))
                .collect(),
            drain: view.drain.as_ref().map(DrainRow::from),
            maintenance: view.maintenance.as_ref().map(MaintenanceRow::from),
            admin_labels: view.admin_labels.iter().map(ToString::to_string).collect(),
            address: view.address.clone(),
        }
    }
}

/// `podmesh nodes cordon --output json`, and `uncordon` and `drain`
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeSchedulingOutput {
    /// The nodes, in the order of the arguments.
    pub nodes: Vec<ScheduledNode>,
}

/// What a node may get.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduledNode {
    /// The node.
    pub node: String,
    /// What it may get now.
    pub scheduling: Scheduling,
    /// How many attempts it has.
    pub attempts: u32,
    /// What the admin should know, in sentences.
    pub notes: Vec<String>,
}

impl ScheduledNode {
    /// Returns what people read.
    pub fn line(&self) -> String {
        let (node, word) = (&self.node, self.scheduling.word());
        match self.attempts {
            0 if self.scheduling.word() == "draining" => format!("{node}: drained"),
            1 => format!("{node}: {word}, has 1 attempt"),
            n => format!("{node}: {word}, has {n} attempts"),
        }
    }
}

/// How to drain a node. Without a body: wait until its tasks have ended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainInput {
    /// Milliseconds after which what still runs is stopped, with its grace.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Queue stopped tasks of jobs again, without using a retry; without `deadline_ms` they are stopped
    /// at once.
    #[serde(default)]
    pub requeue: bool,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
}

impl From<DrainInput> for wire::DrainSpec {
    fn from(input: DrainInput) -> Self {
        let DrainInput { deadline_ms, requeue, reason } = input;
        Self { deadline_ms, requeue, reason }
    }
}

/// A named resource of a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NamedResourceRow {
    /// How many there are.
    pub count: u64,
    /// Their ids, if they have some.
    pub ids: Vec<String>,
    /// How much of it attempts have, in thousandths.
    pub used_millis: u64,
    /// Ids that attempts still have and the agent offers no more.
    pub gone: Vec<String>,
}

impl From<&wire::ResourceView> for NamedResourceRow {
    fn from(view: &wire::ResourceView) -> Self {
        Self {
            count: view.offer.millis() / 1_000,
            ids: view.offer.ids.clone(),
            used_millis: view.used,
            gone: view.gone.clone(),
        }
    }
}

/// The drain of a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DrainRow {
    /// Who asked for it.
    pub by: String,
    /// When: milliseconds since 1970.
    pub since_wall_ms: u64,
    /// Why.
    pub reason: Option<String>,
    /// Whether stopped tasks of jobs are queued again.
    pub requeue: bool,
    /// Milliseconds until what still runs is stopped, 0 if it was told to; null if it is not stopped.
    pub stops_in_ms: Option<u64>,
    /// Jobs whose attempts the node still has: the first few.
    pub waits_for: Vec<u64>,
}

impl From<&wire::DrainView> for DrainRow {
    fn from(view: &wire::DrainView) -> Self {
        Self {
            by: view.by.to_string(),
            since_wall_ms: view.since_wall_ms,
            reason: view.spec.reason.clone(),
            requeue: view.spec.requeue,
            stops_in_ms: view.stops_in_ms,
            waits_for: view.waits_for.iter().map(|job| job.0).collect(),
        }
    }
}

/// The planned maintenance of a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MaintenanceRow {
    /// Who planned it.
    pub by: String,
    /// When it begins: RFC 3339.
    pub from: String,
    /// When it is over: RFC 3339.
    pub until: String,
    /// Whether it has begun: the node is drained.
    pub active: bool,
    /// Why.
    pub reason: Option<String>,
    /// Milliseconds after its begin at which what still runs is stopped; null: it is not, or with
    /// `requeue` at once.
    pub deadline_ms: Option<u64>,
    /// Whether stopped tasks of jobs are queued again.
    pub requeue: bool,
}

impl From<&wire::MaintenanceView> for MaintenanceRow {
    fn from(view: &wire::MaintenanceView) -> Self {
        let drain = &view.spec.drain;
        Self {
            by: view.by.to_string(),
            from: rfc3339(view.spec.from_ms),
            until: rfc3339(view.spec.until_ms()),
            active: view.active,
            reason: drain.reason.clone(),
            deadline_ms: drain.deadline_ms,
            requeue: drain.requeue,
        }
    }
}

/// A maintenance to plan.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceInput {
    /// When it begins: RFC 3339.
    pub from: String,
    /// How many milliseconds it takes.
    pub for_ms: u64,
    /// Milliseconds after its begin at which what still runs is stopped, with its grace.
    pub deadline_ms: Option<u64>,
    /// Queue stopped tasks of jobs again, without using a retry; without `deadline_ms` they are stopped
    /// at once.
    #[serde(default)]
    pub requeue: bool,
    /// Why, for people.
    pub reason: Option<String>,
}

impl TryFrom<MaintenanceInput> for wire::MaintenanceSpec {
    type Error = InputError;

    fn try_from(input: MaintenanceInput) -> Result<Self, InputError> {
        let MaintenanceInput { from, for_ms, deadline_ms, requeue, reason } = input;
        let from_ms = moment(&from).map_err(|_| InputError::From)?;
        Ok(Self { from_ms, for_ms, drain: wire::DrainSpec { deadline_ms, requeue, reason } })
    }
}

/// `podmesh nodes maintenance --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeMaintenanceOutput {
    /// The node.
    pub node: String,
    /// Whether anything has changed.
    pub changed: bool,
}

/// Labels to set on a node, and to take back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsInput {
    /// The labels to set, over those of the node's agent.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub set: BTreeMap<Name, String>,
    /// The labels to take back that an admin has set.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub remove: BTreeSet<Name>,
}

/// `podmesh nodes label --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct LabelledNode {
    /// The node.
    pub node: String,
    /// All its labels now.
    pub labels: BTreeMap<String, String>,
}

impl LabelledNode {
    /// Returns what is shown of a node after its labels have changed.
    pub fn new(node: &Name, labels: &BTreeMap<Name, String>) -> Self {
        let labels =
            labels.iter().map(|(label, value)| (label.to_string(), value.clone())).collect();
        Self { node: node.to_string(), labels }
    }
}
