//! The requirements of a task on a node.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::cmp::Reverse;

use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::rare::Rare;
use podmesh_protocol::service::ServiceSpec;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_protocol::time::Millis;

use crate::nodes::Node;
use crate::state::NodeRow;

/// The position of a job in the queue: higher priority first, then order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueKey(Reverse<i32>, JobId);

impl QueueKey {
    /// Sorts after every job.
    pub(super) const LAST: Self = Self(Reverse(i32::MIN), JobId(u64::MAX));

    pub(crate) fn new(priority: i32, job: JobId) -> Self {
        Self(Reverse(priority), job)
    }

    pub(crate) fn job(self) -> JobId {
        self.1
    }
}

/// What a node must have, apart from its resources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Constraint {
    pub(crate) runtime: RuntimeKind,
    pub(crate) labels: BTreeMap<Name, String>,
    /// The nodes that it is [bound](crate::bonds) to. No node is two of them.
    pub(crate) nodes: BTreeSet<Name>,
}

impl Constraint {
    pub(crate) fn admits(&self, node: &NodeRow) -> bool {
        node.runtimes.contains(&self.runtime)
            && self.nodes.iter().all(|name| *name == node.node)
            && self.labels.iter().all(|(label, value)| node.label(label) == Some(value))
    }
}

/// The requirements of a task on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Needs {
    pub(crate) constraint: Constraint,
    pub(crate) resources: Resources,
    /// The longest time that the task can run, in milliseconds; `None` if it may run for ever.
    pub(crate) lasts_ms: Option<u64>,
    /// What the task is a replica of, if it is one: replicas are spread.
    pub(crate) replica: Option<ReplicaNeeds>,
    pub(crate) place: Rare<PlaceRules>,
}

/// What a replica must be spread over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReplicaNeeds {
    /// The service and its revision.
    pub(crate) of: (Name, u32),
    /// The label over whose values it is spread.
    pub(crate) spread: Option<Name>,
}

impl Needs {
    /// Returns the requirements of a task that is bound to these nodes.
    pub(crate) fn of(spec: &JobSpec, nodes: BTreeSet<Name>) -> Self {
        let (runtime, labels) = (spec.run.runtime.kind(), spec.require.clone());
        let constraint = Constraint { runtime, labels, nodes };
        let replica = spec.run.replica.as_ref().map(|replica| ReplicaNeeds {
            of: (replica.service.clone(), replica.revision),
            spread: replica.spread.clone(),
        });
        Self {
            constraint,
            resources: spec.resources,
            lasts_ms: lasts_ms(spec),
            replica,
            place: spec.place.clone(),
        }
    }

    /// Returns the requirements of any replica of a service, apart from being spread.
    pub(crate) fn of_service(spec: &ServiceSpec, nodes: BTreeSet<Name>) -> Self {
        let (runtime, labels) = (spec.run.runtime.kind(), spec.require.clone());
        let constraint = Constraint { runtime, labels, nodes };
        Self {
            constraint,
            resources: spec.resources,
            lasts_ms: None,
            replica: None,
            place: spec.place.clone(),
        }
    }

    /// Returns whether a node could take such a task if it were empty.
    pub(crate) fn suit(&self, node: &NodeRow) -> bool {
        self.resources.fits(&node.capacity)
            && self.constraint.admits(node)
            && self.place.resources.iter().all(|(name, millis)| {
                node.resources.get(name).is_some_and(|offer| offer.suits(*millis))
            })
    }

    /// Returns whether a node that gets work could take such a task if it were empty.
    pub(super) fn suit_now(&self, node: &Node, now_ms: Millis) -> bool {
        let in_time = node.leaves_time(self.size().lasts_ms, now_ms);
        node.is_open() && in_time && self.suit(&node.row)
    }

    /// Returns how many of the preferred labels a node has.
    pub(crate) fn preferred(&self, node: &NodeRow) -> usize {
        let prefer = self.place.prefer.iter();
        prefer.filter(|(label, value)| node.label(label) == Some(value)).count()
    }

    /// Returns whether a task needs named resources that one of `other` needs too.
    pub(super) fn shares(&self, other: &Self) -> bool {
        self.place.resources.keys().any(|name| other.place.resources.contains_key(name))
    }

    pub(super) fn size(&self) -> Size {
        Size { resources: self.resources, lasts_ms: self.lasts_ms.unwrap_or(u64::MAX) }
    }
}

/// Returns the longest time that a task of the job can run, including its stop, in milliseconds.
pub(super) fn lasts_ms(spec: &JobSpec) -> Option<u64> {
    spec.run.timeout_ms.map(|timeout_ms| timeout_ms.saturating_add(spec.run.stop_grace_ms))
}

/// How much a task needs, or how much a node can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    pub(super) resources: Resources,
    /// For how long, in milliseconds.
    pub(super) lasts_ms: u64,
}

impl Size {
    pub(super) const MAX: Self =
        Self::lasting(Resources { cpu_millis: u32::MAX, memory_bytes: u64::MAX }, u64::MAX);

    pub(super) const fn lasting(resources: Resources, lasts_ms: u64) -> Self {
        Self { resources, lasts_ms }
    }

    pub(super) fn fits(&self, room: &Self) -> bool {
        self.resources.fits(&room.resources) && self.lasts_ms <= room.lasts_ms
    }

    pub(super) fn least(&self, other: &Self) -> Self {
        Self {
            resources: least(self.resources, other.resources),
            lasts_ms: self.lasts_ms.min(other.lasts_ms),
        }
    }
}

/// Returns the lesser value of each resource.
pub(super) fn least(a: Resources, b: Resources) -> Resources {
    Resources {
        cpu_millis: a.cpu_millis.min(b.cpu_millis),
        memory_bytes: a.memory_bytes.min(b.memory_bytes),
    }
}
