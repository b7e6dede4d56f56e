//! Reserves a node for the first job in line, so that small jobs cannot starve a large one.
//!
//! The first job that waits for room reserves the node that is nearest to having it. Tasks of later
//! jobs run there only if they do not delay this job: they end before it is certain to start, or
//! they use room that it does not need. Preemptible tasks run there until they must make room for it.
//!
//! If the timeouts of the running tasks say when the job can start at the latest, and that is not
//! too far away, the node is reserved until then. Otherwise it is reserved for a minute, or for a
//! quarter of the time that the job has been first, if that is longer. Then the node is left to
//! other jobs for three times as long, and another node is reserved. So a job that has waited long
//! enough reserves a node for longer than any task runs, and a task that never ends blocks no job
//! for ever.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use podmesh_protocol::ids::TaskId;
use podmesh_protocol::limits::{
    ATTEMPTS_PER_NODE_MAX, END_MARGIN_MS, RESERVATION_AHEAD_MS, RESERVATION_MS_MIN,
};
use podmesh_protocol::spec::Resources;
use podmesh_protocol::time::Millis;

use super::lane::{Shape, ShapeId};
use super::needs::{Needs, QueueKey, Size, lasts_ms, least};
use super::queue::{Facts, Queue};
use crate::ids::{LaneId, NodeIx};
use crate::nodes::Node;

/// The reservation lasts for the time that the job has been first, divided by this number, but for
/// [`RESERVATION_MS_MIN`] at least.
const WAITED_PART: u64 = 4;
/// After a reservation the node is left to others for this many times as long.
const REST: u64 = 3;

/// The reservation for the first job that waits for room.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    pub(crate) key: QueueKey,
    pub(super) shape: ShapeId,
    needs: Arc<Needs>,
    /// The reserved node; `None` if every suitable node was reserved before and is now left to
    /// others.
    pub(crate) node: Option<NodeIx>,
    since_ms: Millis,
    /// When the reservation ends, unless the task is known to start soon after that.
    pub(super) until_ms: Millis,
    /// Whether the reservation was extended to the latest start of the task.
    extended: bool,
    /// Tasks of later jobs that were assigned to the node since then.
    beside: BTreeSet<TaskId>,
    /// The forecast since the last end of an attempt on the node, if one was needed.
    forecast: Option<Forecast>,
    /// Whether the job is preemptible.
    pub(super) preemptible: bool,
    /// Whether all attempts have been stopped that must make room, of those on the node now.
    pub(super) preempted: bool,
    /// Whether attempts there are making room.
    pub(super) clearing: bool,
}

/// When the task can start on the node that is reserved for it.
#[derive(Clone, Copy, Debug)]
struct Forecast {
    /// The latest start; `None` if it is not known.
    starts_by_ms: Option<Millis>,
    /// The resources that the end of any attempt frees at least.
    least: Option<Resources>,
}

impl Forecast {
    fn of(needs: &Resources, node: &Node, beside: &BTreeSet<TaskId>, facts: &Facts) -> Self {
        let mut least_end: Option<Resources> = None;
        let mut ends = Vec::new();
        for (task, delivery) in &node.attempts {
            let Some(job) = facts.jobs.get(&task.job) else { continue };
            let takes = job.spec.resources;
            // The end of a task that came later frees only what was free before.
            if !beside.contains(task) {
                least_end = Some(least_end.map_or(takes, |other| least(other, takes)));
            }
            if let Some(lasts_ms) = lasts_ms(&job.spec) {
                let end_ms =
                    delivery.since_ms.saturating_add(lasts_ms).saturating_add(END_MARGIN_MS);
                // A task that should have ended by now may never end.
                if end_ms > facts.now_ms {
                    ends.push((end_ms, takes));
                }
            }
        }
        ends.sort_unstable();
        let capacity = &node.row.capacity;
        let mut cpu_millis = node.used_cpu_millis + u64::from(needs.cpu_millis);
        let mut memory_bytes = node.used_memory_bytes + needs.memory_bytes;
        let starts_by_ms = ends.into_iter().find_map(|(end_ms, takes)| {
            cpu_millis = cpu_millis.saturating_sub(u64::from(takes.cpu_millis));
            memory_bytes = memory_bytes.saturating_sub(takes.memory_bytes);
            let fits = cpu_millis <= u64::from(capacity.cpu_millis)
                && memory_bytes <= capacity.memory_bytes;
            fits.then_some(end_ms)
        });
        Self { starts_by_ms, least: least_end }
    }
}

impl Reservation {
    /// Returns the rooms for later tasks. Such a task may run on the reserved node if it fits one
    /// of them.
    pub(super) fn rooms_for_later(&mut self, node: &Node, facts: &Facts) -> [Option<Size>; 2] {
        let (needs, known) = (&whole_if_exclusive(&self.needs, node), !self.needs.place.is_picky());
        let forecast = self.forecast.get_or_insert_with(|| {
            self.beside.retain(|task| node.attempts.contains_key(task));
            Forecast::of(needs, node, &self.beside, facts)
        });
        let free = node.free();
        let before_it = forecast.starts_by_ms.filter(|_| known).map(|at| {
            let lasts_ms = at.saturating_sub(facts.now_ms.saturating_add(END_MARGIN_MS));
            Size::lasting(free, lasts_ms)
        });
        // Whichever attempt ends first, using this much does not take room from the task.
        let unneeded = forecast.least.map(|least| {
            let cpu = (free.cpu_millis + least.cpu_millis).saturating_sub(needs.cpu_millis);
            let memory =
                (free.memory_bytes + least.memory_bytes).saturating_sub(needs.memory_bytes);
            let cpu_millis = cpu.min(free.cpu_millis);
            let resources = Resources { cpu_millis, memory_bytes: memory.min(free.memory_bytes) };
            Size::lasting(resources, u64::MAX)
        });
        [before_it, unneeded]
    }

    pub(super) fn needs(&self) -> Arc<Needs> {
        Arc::clone(&self.needs)
    }

    /// Returns whether the node is kept from a later task, whatever cores and memory it needs: it
    /// would take named resources that the task waits for.
    pub(super) fn keeps(&self, needs: &Needs) -> bool {
        self.needs.shares(needs)
    }

    /// Returns whether the job of the reservation comes before another one. If they are of different
    /// lanes, it does: the reservation is for the first job of all that waits for room.
    pub(super) fn is_before(&self, lane: LaneId, key: QueueKey) -> bool {
        self.shape.lane != lane || self.key < key
    }

    /// Returns whether the node is kept from tasks that come later. From preemptible ones it is not
    /// before they have to make room for this job.
    pub(super) fn is_kept_from(&self, preemptible: bool) -> bool {
        !preemptible || self.preemptible || self.clearing
    }

    /// Discards the forecast, because an attempt on the node has ended.
    pub(super) fn forget_forecast(&mut self) {
        self.forecast = None;
        self.preempted = false;
    }

    /// Records that a task of the job at `key` of a lane was assigned to a node.
    pub(super) fn on_assigned(&mut self, lane: LaneId, key: QueueKey, node: NodeIx, task: TaskId) {
        if self.node == Some(node) && self.is_before(lane, key) {
            self.beside.insert(task);
        }
    }

    /// Returns when the task starts on the reserved node at the latest, if that is known.
    fn starts_by_ms(&self, facts: &Facts) -> Option<Millis> {
        let node = facts.nodes.get(self.node?);
        // Cores and memory do not say when named resources are free.
        let forecast = Forecast::of(&self.needs.resources, node, &self.beside, facts);
        forecast.starts_by_ms.filter(|_| !self.needs.place.is_picky())
    }

    /// Extends the reservation to the start of the task, if that is known and near enough.
    fn extend(&mut self, waited_ms: u64, facts: &Facts) {
        let ahead_ms = facts.now_ms.saturating_add(waited_ms.max(RESERVATION_AHEAD_MS));
        if !self.extended
            && let Some(starts_by_ms) = self.starts_by_ms(facts)
            && (self.until_ms..=ahead_ms).contains(&starts_by_ms)
        {
            self.until_ms = starts_by_ms;
            self.extended = true;
        }
    }
}

/// Returns what a task takes of a node: all of it, if the task has it for itself.
fn whole_if_exclusive(needs: &Needs, node: &Node) -> Resources {
    if needs.place.exclusive { node.row.capacity } else { needs.resources }
}

/// A reservation, as shown to people.
#[derive(Debug)]
pub(crate) struct ReservationView {
    pub(crate) key: QueueKey,
    lane: LaneId,
    /// The reserved node; `None` if no node is reserved for now.
    pub(crate) node: Option<NodeIx>,
    /// The milliseconds until the reservation ends or the task starts.
    pub(crate) left_ms: u64,
    /// Whether the task is certain to start there by then.
    pub(crate) starts: bool,
}

impl ReservationView {
    /// Returns whether the job of the reservation comes before another one.
    pub(crate) fn is_before(&self, lane: LaneId, key: QueueKey) -> bool {
        self.lane != lane || self.key < key
    }
}

/// The node to reserve for a job.
enum Choice {
    Node(NodeIx),
    /// No node before this time: all suitable ones were reserved recently.
    NoneBefore(Millis),
    /// No node that is alive is suitable.
    Nowhere,
}

impl Queue {
    /// Reserves a node for the job at `key`, which is the first that waits for room. Returns false
    /// if no node that is alive suits it.
    pub(super) fn renew_reservation(&mut self, key: QueueKey, id: ShapeId, facts: &Facts) -> bool {
        let now_ms = facts.now_ms;
        let Some(shape) = self.shape_mut(id) else { return false };
        let first_ms = *shape.first_ms.get_or_insert(now_ms);
        let waited_ms = now_ms.saturating_sub(first_ms);
        let mut old = self.reservation.take();
        if let Some(kept) = &mut old
            && kept.shape == id
            && kept.node.is_none_or(|ix| self.suits(id, ix, facts))
        {
            // The next job with the same needs takes it over.
            kept.preempted &= kept.key == key;
            kept.key = key;
            if now_ms >= kept.until_ms {
                kept.extend(waited_ms, facts);
            }
            if now_ms < kept.until_ms {
                self.reservation = old;
                return true;
            }
        }
        let old = old.and_then(|old| Some((old.node?, old)));
        if let Some((ix, old)) = &old {
            self.open.insert(*ix);
            if now_ms >= old.until_ms {
                let rest_ms = REST.saturating_mul(old.until_ms.saturating_sub(old.since_ms));
                self.rests.insert(*ix, now_ms.saturating_add(rest_ms));
            }
        }
        let Some(shape) = self.shape(id) else { return false };
        let needs = Arc::clone(&shape.needs);
        let preemptible = self.is_preemptible(id);
        let choice = self.choose_node(id, shape, first_ms, facts);
        let (node, since_ms, until_ms, extended) = match (choice, old) {
            // The same node, now for another job: its time continues.
            (Choice::Node(ix), Some((node, old))) if ix == node => {
                (Some(ix), old.since_ms, old.until_ms, old.extended)
            }
            (Choice::Node(ix), _) => {
                let keep_ms = (waited_ms / WAITED_PART).max(RESERVATION_MS_MIN);
                (Some(ix), now_ms, now_ms.saturating_add(keep_ms), false)
            }
            (Choice::NoneBefore(at), _) => (None, now_ms, at, false),
            (Choice::Nowhere, _) => return false,
        };
        self.reservation = Some(Reservation {
            key,
            shape: id,
            needs,
            node,
            since_ms,
            until_ms,
            extended,
            beside: BTreeSet::new(),
            forecast: None,
            preemptible,
            preempted: false,
            clearing: false,
        });
        true
    }

    /// Returns whether a node gets work and could take a task of the shape if it were empty.
    fn suits(&self, id: ShapeId, ix: NodeIx, facts: &Facts) -> bool {
        let node = facts.nodes.get(ix);
        self.shape(id).is_some_and(|shape| shape.needs.suit_now(node, facts.now_ms))
    }

    /// Returns the node that is nearest to having room. Nodes whose reservation since `first_ms`
    /// did not help come after all others, the one that was reserved first before the rest.
    fn choose_node(&self, id: ShapeId, shape: &Shape, first_ms: Millis, facts: &Facts) -> Choice {
        let Some(class) = self.classes.get(&shape.class) else { return Choice::Nowhere };
        let preemptible = self.is_preemptible(id);
        let (mut best, mut next_ms) = (None, None);
        for ix in &class.nodes {
            let node = facts.nodes.get(*ix);
            if !shape.needs.suit_now(node, facts.now_ms) {
                continue;
            }
            let rests_until_ms = self.rests.get(ix).copied().unwrap_or(0);
            if rests_until_ms > facts.now_ms {
                let next = next_ms.unwrap_or(rests_until_ms);
                next_ms = Some(rests_until_ms.min(next));
                continue;
            }
            let needs = whole_if_exclusive(&shape.needs, node);
            let free = if preemptible { node.free() } else { node.free_without_preemptible() };
            let in_vain_ms = if rests_until_ms > first_ms { rests_until_ms } else { 0 };
            let rank = (Reverse(in_vain_ms), nearness(node, free, &needs), Reverse(node.rank));
            best = best.max(Some((rank, *ix)));
        }
        match (best, next_ms) {
            (Some((_, ix)), _) => Choice::Node(ix),
            (None, Some(at)) => Choice::NoneBefore(at),
            (None, None) => Choice::Nowhere,
        }
    }

    /// Returns when the reservation must be renewed.
    pub(crate) fn next_wakeup(&self) -> Option<Millis> {
        self.reservation.as_ref().map(|kept| kept.until_ms)
    }

    /// Returns the reservation, as shown to people.
    pub(crate) fn reservation(&self, facts: &Facts) -> Option<ReservationView> {
        let mut kept = self.reservation.clone()?;
        let first_ms = self.shape(kept.shape)?.first_ms.unwrap_or(facts.now_ms);
        kept.extend(facts.now_ms.saturating_sub(first_ms), facts);
        let starts_by_ms = kept.starts_by_ms(facts).filter(|at| *at <= kept.until_ms);
        let left_ms = starts_by_ms.unwrap_or(kept.until_ms).saturating_sub(facts.now_ms);
        Some(ReservationView {
            key: kept.key,
            lane: kept.shape.lane,
            node: kept.node,
            left_ms,
            starts: starts_by_ms.is_some(),
        })
    }

    /// Ends a reservation without a node, because a node may now be available.
    pub(super) fn choose_again(&mut self) {
        if let Some(kept) = &mut self.reservation
            && kept.node.is_none()
        {
            kept.until_ms = 0;
        }
    }
}

/// The share that means all of what is needed.
const SHARE: u128 = 1 << 32;

/// Returns how near a node is to having room: the smallest share of a needed resource that is free.
fn nearness(node: &Node, free: Resources, needs: &Resources) -> u128 {
    let share = |free: u64, need: u64| match need {
        0 => SHARE,
        need => u128::from(free).saturating_mul(SHARE) / u128::from(need),
    };
    let slots = (ATTEMPTS_PER_NODE_MAX - node.attempts.len().min(ATTEMPTS_PER_NODE_MAX)) as u64;
    share(u64::from(free.cpu_millis), u64::from(needs.cpu_millis))
        .min(share(free.memory_bytes, needs.memory_bytes))
        .min(share(slots, 1))
}
