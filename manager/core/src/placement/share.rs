//! How queues share the cluster, and callers share a queue.
//!
//! A queue that uses less of the cluster for its weight comes first, and within it the caller who uses
//! less. What counts is the cores of the attempts that are active now: who has had nothing for a long
//! time gets no more than their share for that, and long tasks count for as long as they run.
//!
//! Cores come in whole tasks, so that shares can rarely be met exactly at a time: of ten places, weights
//! of 1 and 3 would get 2.5 and 7.5. Among those who are below their share, within a task, the one comes
//! first whose tasks have taken the least since it began to wait: its `pass` is the lowest, which each
//! start raises by what the task takes, divided by the weight. So the shares are met over time.
//!
//! Replicas of services come before everything, and count for nobody. Preemptible jobs come after all
//! others, and share what those leave by the same rules.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use podmesh_protocol::ids::Name;
use podmesh_protocol::queue::DEFAULT_QUEUE;
use podmesh_protocol::wait::TurnView;

use super::lane::{Lane, ShapeId};
use super::needs::QueueKey;
use super::queue::Queue;
use crate::ids::LaneId;
use crate::state::QueueRow;

/// The number of a share. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShareId(u64);

/// The share of the replicas of services.
pub(super) const REPLICAS: ShareId = ShareId(0);
/// The share of the queue that always exists.
pub(super) const DEFAULT: ShareId = ShareId(1);

/// A part of a core, divided by a weight of 1.
const UNIT_BITS: u32 = 16;

/// A queue, and what its jobs have of the cluster.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) row: QueueRow,
    /// How many attempts its jobs have.
    pub(super) active: u32,
    /// The cores of these attempts, in thousandths.
    pub(super) cpu_millis: u64,
    pass: u64,
    /// The pass of the lane that was last served. A lane that begins to wait has no lower one.
    lanes_pass: u64,
}

/// Why the jobs of a lane get no more attempts for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// The queue is paused.
    Paused,
    /// The queue has as many active tasks as it may have.
    QueueFull(u32),
    /// The caller has as many active tasks in the queue as they may have.
    CallerFull(u32),
}

impl Share {
    /// Returns what holds back a caller, who has so many attempts in it, if anything does.
    pub(super) fn holds(&self, active_of_caller: impl Fn() -> u32) -> Option<Held> {
        let over = |active: &dyn Fn() -> u32, max: Option<u32>| max.filter(|max| active() >= *max);
        if self.row.paused {
            return Some(Held::Paused);
        }
        let queue = over(&|| self.active, self.row.max_active).map(Held::QueueFull);
        let max = self.row.max_active_per_caller;
        let caller = || over(&active_of_caller, max).map(Held::CallerFull);
        queue.or_else(caller)
    }

    /// Returns how many more attempts a caller, who has so many in it, may have.
    pub(super) fn allowance(&self, active_of_caller: impl Fn() -> u32) -> u32 {
        let left = |max: Option<u32>, active: &dyn Fn() -> u32| {
            max.map_or(u32::MAX, |max| max.saturating_sub(active()))
        };
        let queue = left(self.row.max_active, &|| self.active);
        queue.min(left(self.row.max_active_per_caller, &active_of_caller))
    }

    /// Returns a part of the cluster for its weight.
    fn level(&self, cpu_millis: u64) -> u64 {
        (cpu_millis << UNIT_BITS) / u64::from(self.row.weight.max(1))
    }
}

/// The shares of all queues.
#[derive(Debug)]
pub(super) struct Shares {
    all: BTreeMap<ShareId, Share>,
    by_name: BTreeMap<Name, ShareId>,
    last: ShareId,
    /// The pass of the queue that was last served.
    pass: u64,
}

impl Default for Shares {
    fn default() -> Self {
        let all = [(REPLICAS, Share::default()), (DEFAULT, Share::default())];
        Self { all: all.into(), by_name: BTreeMap::new(), last: DEFAULT, pass: 0 }
    }
}

impl Shares {
    pub(super) fn get(&self, id: ShareId) -> Option<&Share> {
        self.all.get(&id)
    }

    /// Returns the share of a queue.
    pub(super) fn by_name(&self, queue: &Name) -> Option<ShareId> {
        if queue.as_str() == DEFAULT_QUEUE {
            return Some(DEFAULT);
        }
        self.by_name.get(queue).copied()
    }

    /// Adds a queue, or changes its settings.
    pub(super) fn set(&mut self, queue: &Name, row: QueueRow) {
        let id = self.by_name(queue).unwrap_or_else(|| {
            self.last.0 += 1;
            self.by_name.insert(queue.clone(), self.last);
            self.last
        });
        self.all.entry(id).or_default().row = row;
    }

    /// Removes a queue without jobs.
    pub(super) fn remove(&mut self, queue: &Name) {
        if let Some(id) = self.by_name.remove(queue) {
            self.all.remove(&id);
        }
    }

    /// Returns the numbers of all queues, without the replicas.
    #[cfg(any(test, feature = "invariants"))]
    pub(super) fn rows(&self) -> BTreeMap<&str, &QueueRow> {
        let named = self.by_name.iter().map(|(name, id)| (name.as_str(), *id));
        let all = named.chain([(DEFAULT_QUEUE, DEFAULT)]);
        all.filter_map(|(name, id)| Some((name, &self.get(id)?.row))).collect()
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (ShareId, &Share)> {
        self.all.iter().map(|(id, share)| (*id, share))
    }

    /// Records that a lane has begun to wait; `alone` if no other one of its queue waits.
    pub(super) fn begin(&mut self, lane: &mut Lane, alone: bool) {
        let Some(share) = self.all.get_mut(&lane.owner.share) else { return };
        lane.pass = lane.pass.max(share.lanes_pass);
        if alone {
            share.pass = share.pass.max(self.pass);
        }
    }

    /// Counts an attempt that has been assigned.
    pub(super) fn add(&mut self, lane: &mut Lane, cpu_millis: u32) {
        let cost = cost(cpu_millis);
        lane.active += 1;
        lane.cpu_millis += cost;
        let Some(share) = self.all.get_mut(&lane.owner.share) else { return };
        share.active += 1;
        share.cpu_millis += cost;
        share.lanes_pass = lane.pass;
        self.pass = share.pass;
        lane.pass = lane.pass.saturating_add(cost << UNIT_BITS);
        share.pass = share.pass.saturating_add(share.level(cost));
    }

    /// Counts an attempt no longer, because it has ended.
    pub(super) fn take_back(&mut self, lane: &mut Lane, cpu_millis: u32) {
        let cost = cost(cpu_millis);
        lane.active -= 1;
        lane.cpu_millis -= cost;
        if let Some(share) = self.all.get_mut(&lane.owner.share) {
            share.active -= 1;
            share.cpu_millis -= cost;
        }
    }
}

/// Returns what an attempt counts for. One without cores counts too.
fn cost(cpu_millis: u32) -> u64 {
    u64::from(cpu_millis.max(1))
}

/// The position of a lane among those that wait: the lowest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Whether it has jobs of users: replicas come first.
    is_user: bool,
    queue: Turn,
    share: ShareId,
    caller: Turn,
}

/// Who is next among queues, or among callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Has less than its share, within a task: the pass decides.
    Below { pass: u64 },
    /// Has its share: what it has now, for its weight, decides.
    Above { level: u64 },
}

impl Turn {
    /// `margin` is the least that one of them would have with its next task.
    fn of(level: u64, margin: u64, pass: u64) -> Self {
        if level < margin { Self::Below { pass } } else { Self::Above { level } }
    }
}

/// What the lanes of a queue that wait would have with their next tasks.
#[derive(Clone, Copy)]
struct Margin {
    /// The least that one lane would have.
    lanes: u64,
    /// The least that one of the next tasks takes.
    next: u64,
}

impl Queue {
    /// Sorts lanes that wait by their turns. Preemptible jobs share what the others leave.
    pub(super) fn sort_lanes(&self, lanes: &mut [LaneId]) {
        let is_last = |id: &LaneId| self.lanes.get(id).is_some_and(|lane| lane.owner.preemptible);
        lanes.sort_by_key(is_last);
        let (first, last) = lanes.split_at_mut(lanes.partition_point(|id| !is_last(id)));
        self.sort_equal(first);
        self.sort_equal(last);
    }

    fn sort_equal(&self, lanes: &mut [LaneId]) {
        let mut margins = BTreeMap::<ShareId, Margin>::new();
        for lane in lanes.iter().filter_map(|id| self.lanes.get(id)) {
            let next = cost(lane.first_needs().map_or(0, |needs| needs.resources.cpu_millis));
            let with_next = lane.cpu_millis + next;
            let margin = Margin { lanes: with_next, next };
            let least = margins.entry(lane.owner.share).or_insert(margin);
            least.lanes = least.lanes.min(with_next);
            least.next = least.next.min(next);
        }
        let users = margins.iter().filter(|(id, _)| **id != REPLICAS);
        let levels = users.filter_map(|(id, margin)| {
            let share = self.shares.get(*id)?;
            Some(share.level(share.cpu_millis + margin.next))
        });
        let margin = levels.min().unwrap_or(0);
        lanes.sort_by_cached_key(|id| {
            let lane = self.lanes.get(id)?;
            let share = self.shares.get(lane.owner.share)?;
            let callers = margins.get(&lane.owner.share).map_or(0, |margin| margin.lanes);
            Some(Rank {
                is_user: lane.owner.share != REPLICAS,
                queue: Turn::of(share.level(share.cpu_millis), margin, share.pass),
                share: lane.owner.share,
                caller: Turn::of(lane.cpu_millis, callers, lane.pass),
            })
        });
    }

    /// Fills `turns` with the lanes that wait and are not held back, in the order of their turns.
    pub(super) fn take_turns(&mut self) {
        let mut turns = core::mem::take(&mut self.turns);
        turns.clear();
        turns.extend(self.lanes.iter().filter(|(_, lane)| lane.waits()).map(|(id, _)| *id));
        turns.retain(|id| {
            let is_held = self.lanes.get(id).is_some_and(|lane| self.holds(lane).is_some());
            let Some(lane) = self.lanes.get_mut(id) else { return false };
            if !is_held {
                lane.held = false;
            } else if !lane.held {
                lane.hold();
            }
            !is_held
        });
        if turns.len() > 1 {
            self.sort_lanes(&mut turns);
        }
        self.turns = turns;
    }

    /// Returns whose turn it is, as seen by a job that waits for room; `None` if no other lane does.
    pub(crate) fn turn(&self, id: ShapeId, key: QueueKey) -> Option<TurnView> {
        let all = self.lanes.iter().filter(|(_, lane)| lane.waits() && self.holds(lane).is_none());
        let mut turns: Vec<LaneId> = all.map(|(id, _)| *id).collect();
        let lane = self.lanes.get(&id.lane)?;
        if turns.len() < 2 || !turns.contains(&id.lane) || lane.owner.share == REPLICAS {
            return None;
        }
        self.sort_lanes(&mut turns);
        let lanes = turns.iter().filter_map(|id| self.lanes.get(id));
        let lanes = lanes.filter(|other| other.owner.preemptible == lane.owner.preemptible);
        let users: BTreeSet<ShareId> = lanes.clone().map(|lane| lane.owner.share).collect();
        let users = users.iter().filter(|id| **id != REPLICAS);
        let shares: Vec<&Share> = users.filter_map(|id| self.shares.get(*id)).collect();
        let own = self.shares.get(lane.owner.share)?;
        let earlier = lane.shapes.values().flat_map(|shape| shape.waiting.range(..key));
        Some(TurnView {
            queue: String::new(),
            weight: own.row.weight,
            weights: shares.iter().map(|share| u64::from(share.row.weight)).sum(),
            queue_cpu_millis: own.cpu_millis,
            queues_cpu_millis: shares.iter().map(|share| share.cpu_millis).sum(),
            caller: lane.owner.caller.as_ref().map_or_else(String::new, ToString::to_string),
            caller_cpu_millis: lane.cpu_millis,
            callers: lanes.filter(|other| other.owner.share == lane.owner.share).count(),
            before: turns.iter().take_while(|other| **other != id.lane).count(),
            jobs_before: earlier.count(),
        })
    }

    /// Returns whether the next task of a lane that was just served may be placed before those of
    /// others.
    pub(super) fn keeps_turn(&self, id: ShapeId) -> bool {
        let Some(lane) = self.lanes.get(&id.lane) else { return false };
        if self.holds(lane).is_some() {
            return false;
        }
        let Some(at) = self.turns.iter().position(|other| *other == id.lane) else { return false };
        let rest = &self.turns[at..];
        if rest.len() == 1 {
            return true;
        }
        let mut rest = rest.to_vec();
        self.sort_lanes(&mut rest);
        rest.first() == Some(&id.lane)
    }
}
