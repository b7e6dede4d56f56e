//! What an admin asks of a node, and what is shown of nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, JobId, Name};
use crate::limits::{DURATION_MS_MAX, MESSAGE_BYTES_MAX};
use crate::place::Offer;
use crate::spec::{Resources, RuntimeKind, SpecError, at_most, within};
use crate::word::MaybeKnown;

/// Whether a node is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has a session, and its heartbeats arrive.
    Alive,
    /// Its session ended or its heartbeat is late, and its lease has not ended. It gets no new
    /// work.
    Suspect,
    /// Its lease ended.
    Lost,
}

/// What an admin lets a node get.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// New work.
    #[default]
    Open,
    /// No new work. What it has stays.
    Cordoned,
    /// No new work. Its replicas move to other nodes, and its tasks of jobs end by themselves or at
    /// a deadline.
    Draining,
}

impl Scheduling {
    /// Returns whether the node may get new work.
    pub fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// A row of `nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node's name.
    pub node: Name,
    /// Whether it is available.
    pub state: MaybeKnown<NodeState>,
    /// The epoch of its current session.
    pub epoch: Option<Epoch>,
    /// The version of its agent's program, for display.
    pub program_version: String,
    /// All resources that it offers.
    pub capacity: Resources,
    /// The resources that are free.
    pub free: Resources,
    /// Its labels.
    pub labels: BTreeMap<Name, String>,
    /// Those of its labels that an admin has set. The others are its agent's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub admin_labels: BTreeSet<Name>,
    /// The runtimes that it can start.
    pub runtimes: Vec<MaybeKnown<RuntimeKind>>,
    /// The enabled runtimes that it cannot start at present, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub withdrawn: BTreeMap<MaybeKnown<RuntimeKind>, String>,
    /// Which limits of a job (`memory`, `cpus`) it does not enforce for commands, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unenforced: BTreeMap<String, String>,
    /// Which of its disks are nearly full, `logs` (of the output) or `data` (of its data folder, if
    /// that is another disk), and how much was free when the agent found that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub low_disks: BTreeMap<String, String>,
    /// The number of attempts that it has.
    pub attempts: u32,
    /// Milliseconds since it was last known to be alive, by the manager's monotonic clock. `None`
    /// if not since the manager started.
    pub seen_ms_ago: Option<u64>,
    /// Whether it joined with a key; otherwise its agent is on the manager's machine.
    #[serde(default)]
    pub enrolled: bool,
    /// What an admin lets it get.
    #[serde(default, skip_serializing_if = "MaybeKnown::is_default")]
    pub scheduling: MaybeKnown<Scheduling>,
    /// Its named resources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<Name, ResourceView>,
    /// Its drain, if it is being drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainView>,
    /// Its planned maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceView>,
    /// The IP address at which other nodes reach the replicas on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// How a node is drained. The default waits for its tasks without an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainSpec {
    /// The time in milliseconds after which what still runs is stopped, with its grace. `None`:
    /// never, or at once with `requeue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Whether stopped tasks of jobs are queued again, which uses none of their retries. Otherwise
    /// the attempt has failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requeue: bool,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl DrainSpec {
    /// Returns whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the milliseconds until what still runs is stopped; `None` if it never is.
    pub fn stops_after_ms(&self) -> Option<u64> {
        self.deadline_ms.or(self.requeue.then_some(0))
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If the deadline is over [`DURATION_MS_MAX`], or the reason is empty or over
    /// [`MESSAGE_BYTES_MAX`].
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(deadline_ms) = self.deadline_ms {
            let times = 0..=i128::from(DURATION_MS_MAX);
            within("deadline (ms)", deadline_ms, times, Some("DURATION_MS_MAX"))?;
        }
        let Some(reason) = &self.reason else { return Ok(()) };
        if reason.trim().is_empty() {
            return Err(SpecError::Text { field: "reason", why: "is empty".into() });
        }
        at_most("reason", reason.len(), "bytes", MESSAGE_BYTES_MAX, "MESSAGE_BYTES_MAX")
    }
}

/// A planned maintenance of a node: it is drained from a time on, and may get again what it could
/// before when the time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceSpec {
    /// Its begin: milliseconds since 1970 by the manager's clock.
    pub from_ms: u64,
    /// How many milliseconds it takes: 1 to [`DURATION_MS_MAX`].
    pub for_ms: u64,
    /// How the node is drained.
    #[serde(default, skip_serializing_if = "DrainSpec::is_default")]
    pub drain: DrainSpec,
}

impl MaintenanceSpec {
    /// Returns its end.
    pub fn until_ms(&self) -> u64 {
        self.from_ms.saturating_add(self.for_ms)
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If the time is over a limit, or the drain is as in [`DrainSpec::validate`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let times = 1..=i128::from(DURATION_MS_MAX);
        within("for (ms)", self.for_ms, times, Some("DURATION_MS_MAX"))?;
        self.drain.validate()
    }
}

/// The planned maintenance of a node, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceView {
    /// Who planned it.
    pub by: Name,
    /// What is planned.
    pub spec: MaintenanceSpec,
    /// Whether it has begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub active: bool,
}

/// A named resource of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceView {
    /// What the agent offers.
    pub offer: Offer,
    /// How much of it attempts have, in thousandths.
    pub used: u64,
    /// Ids that attempts still have and the agent offers no more. They are not given again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// How far the drain of a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Who asked for it.
    pub by: Name,
    /// When: milliseconds since 1970, for display.
    pub since_wall_ms: u64,
    /// How.
    pub spec: DrainSpec,
    /// Milliseconds until what still runs is stopped, 0 if it was told to; `None` if it is not
    /// stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_in_ms: Option<u64>,
    /// Jobs whose attempts the node still has: the first
    /// [`DRAIN_JOBS_SHOWN`](crate::limits::DRAIN_JOBS_SHOWN).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<JobId>,
}
