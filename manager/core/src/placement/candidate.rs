//! The nodes that a task may go to, ordered so that the best one is the greatest.

use core::cmp::{Ordering, Reverse};

use super::needs::Needs;
use crate::ids::NodeIx;
use crate::nodes::Node;

/// How many replicas of the same service are near, or tasks of the same job if it is spread. All zero
/// for other tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peers {
    /// Those of the same revision on all nodes with the same value of the label to spread over.
    pub(super) zone: u32,
    /// Those of the same revision on the node.
    pub(super) same: u32,
    /// Those of any revision on the node.
    pub(super) all: u32,
}

/// A node that has room for a task, with the resources that it would have left. The greatest is the
/// best.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// How many of the preferred labels it has.
    preferred: usize,
    peers: Reverse<Peers>,
    cpu: Fraction,
    memory: Fraction,
    attempts: Reverse<usize>,
    rank: Reverse<usize>,
    pub(super) node: NodeIx,
}

impl Candidate {
    pub(super) fn of(ix: NodeIx, node: &Node, all: &Needs, peers: Peers) -> Option<Self> {
        let needs = &all.resources;
        if !node.has_room(needs) || (all.place.is_picky() && !node.takes(&all.place)) {
            return None;
        }
        let (free, capacity) = (node.free(), &node.row.capacity);
        Some(Self {
            preferred: all.preferred(&node.row),
            peers: Reverse(peers),
            cpu: Fraction {
                part: u64::from(free.cpu_millis - needs.cpu_millis),
                whole: u64::from(capacity.cpu_millis),
            },
            memory: Fraction {
                part: free.memory_bytes - needs.memory_bytes,
                whole: capacity.memory_bytes,
            },
            attempts: Reverse(node.attempts.len()),
            rank: Reverse(node.rank),
            node: ix,
        })
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.preferred
            .cmp(&other.preferred)
            .then_with(|| self.peers.cmp(&other.peers))
            .then_with(|| self.cpu.compare(&other.cpu))
            .then_with(|| self.memory.compare(&other.memory))
            .then_with(|| self.attempts.cmp(&other.attempts))
            .then_with(|| self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A part of a whole. The part of a whole of 0 is 0.
#[derive(Debug, PartialEq, Eq)]
struct Fraction {
    part: u64,
    whole: u64,
}

impl Fraction {
    fn compare(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u128::from(a.part) * u128::from(b.whole.max(1));
        cross(self, other).cmp(&cross(other, self))
    }
}
