//! What admins do with nodes.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_protocol::ids::Name;
use podmesh_protocol::node as wire;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::json::Word;
use crate::service::Scheduling;

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
