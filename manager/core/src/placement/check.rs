//! Invariants of the queue that hold after every step, checked in tests.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use podmesh_protocol::ids::Name;
use podmesh_protocol::queue::DEFAULT_QUEUE;

use super::fit_index::FitIndex;
use super::lane::{Class, ClassId, Lane, QueuePosition, Shape, ShapeId};
use super::needs::{QueueKey, Size};
use super::queue::{Facts, Queue};
use super::reservation::Reservation;
use super::share::ShareId;
use crate::ids::{LaneId, NodeIx};
use crate::state::QueueRow;

/// An entry of a [`FitIndex`].
type Entry = (ShapeId, QueueKey, Size);

impl Queue {
    /// Checks that every shape has the right position, and that none waits although there is room.
    pub(crate) fn check(&self, facts: &Facts) {
        let mut shapes = BTreeMap::<ClassId, usize>::new();
        let mut turns = Vec::new();
        for (id, lane) in &self.lanes {
            assert!(!lane.shapes.is_empty(), "lane {id:?} has a shape");
            for shape in lane.shapes.values() {
                *shapes.entry(shape.class).or_default() += 1;
            }
            self.check_lane(lane, facts);
            if lane.waits() && self.holds(lane).is_none() {
                turns.push(*id);
            }
        }
        let all = self.classes.iter().map(|(id, class)| (*id, class.shapes));
        assert_eq!(all.collect::<BTreeMap<_, _>>(), shapes, "every class has a shape");
        for (id, class) in &self.classes {
            let all = facts.nodes.iter();
            let admitted = all.filter(|(_, node)| class.constraint.admits(&node.row));
            let admitted: BTreeSet<NodeIx> = admitted.map(|(ix, _)| ix).collect();
            assert_eq!(class.nodes, admitted, "class {id:?}: the nodes that it admits");
        }
        for (ix, classes) in &self.classes_of {
            let all = self.classes.iter();
            let admitting = all.filter(|(_, class)| class.nodes.contains(ix)).map(|(id, _)| *id);
            assert_eq!(*classes, admitting.collect(), "the classes that admit {ix:?}");
        }
        if !self.has_work() {
            let kept = self.reservation.as_ref().map(|kept| (kept.key, kept.shape));
            self.sort_lanes(&mut turns);
            let waiting = |id: &LaneId| self.lanes[id].no_room.first().copied();
            assert_eq!(
                kept,
                turns.iter().find_map(waiting),
                "the reservation is for the first job that waits"
            );
            assert!(
                self.next_wakeup().is_none_or(|at| at > facts.now_ms),
                "the reservation has not expired"
            );
        }
    }

    /// Checks the settings of the queues, and that every attempt is counted.
    pub(crate) fn check_shares(&self, rows: &BTreeMap<Name, QueueRow>) {
        let mut all: BTreeMap<_, _> = rows.iter().map(|(name, row)| (name.as_str(), row)).collect();
        let unset = QueueRow::default();
        all.entry(DEFAULT_QUEUE).or_insert(&unset);
        assert_eq!(self.shares.rows(), all, "the queues");
        let mut used = BTreeMap::<ShareId, (u32, u64)>::new();
        for lane in self.lanes.values() {
            let share = used.entry(lane.owner.share).or_default();
            *share = (share.0 + lane.active, share.1 + lane.cpu_millis);
        }
        for (id, share) in self.shares.iter() {
            let used = used.remove(&id).unwrap_or_default();
            assert_eq!((share.active, share.cpu_millis), used, "share {id:?}: its attempts");
        }
        assert!(used.is_empty(), "every lane has a share");
    }

    /// Returns how many attempts each lane counts, and their cores.
    pub(crate) fn usage(&self) -> BTreeMap<LaneId, (u32, u64)> {
        self.lanes.iter().map(|(id, lane)| (*id, (lane.active, lane.cpu_millis))).collect()
    }

    fn check_lane(&self, lane: &Lane, facts: &Facts) {
        let (mut heads, mut no_room) = (BTreeSet::new(), BTreeSet::new());
        let mut indexes = BTreeMap::<ClassId, [Vec<Entry>; 2]>::new();
        for (id, shape) in &lane.shapes {
            let [without_room, without_node] = indexes.entry(shape.class).or_default();
            let class = &self.classes[&shape.class];
            assert_eq!(*class.constraint, shape.needs.constraint, "shape {id:?}: its class");
            let key = match shape.position {
                QueuePosition::Idle => None,
                QueuePosition::Head(key) => {
                    heads.insert((key, *id));
                    Some(key)
                }
                QueuePosition::Woken(key) => {
                    heads.insert((key, *id));
                    assert!(!lane.held, "shape {id:?} is held back");
                    self.check_no_room(*id, key, shape, class, facts);
                    Some(key)
                }
                QueuePosition::NoRoom(key) => {
                    no_room.insert((key, *id));
                    if shape.needs.place.is_picky() {
                        let picky = &lane.indexes[&shape.class].picky;
                        assert!(picky.contains(&(key, *id)), "shape {id:?} is picky");
                    } else {
                        without_room.push((*id, key, shape.needs.size()));
                    }
                    assert!(!lane.held, "shape {id:?} is held back");
                    self.check_no_room(*id, key, shape, class, facts);
                    Some(key)
                }
                QueuePosition::Nowhere(key) => {
                    without_node.push((*id, key, shape.needs.size()));
                    let mut nodes = class.nodes.iter().map(|ix| facts.nodes.get(*ix));
                    let suits = nodes.any(|node| shape.needs.suit_now(node, facts.now_ms));
                    assert!(!suits, "shape {id:?} suits a node that is alive");
                    Some(key)
                }
            };
            assert_eq!(key, shape.waiting.first().copied(), "shape {id:?}: its first job");
        }
        assert_eq!((&lane.heads, &lane.no_room), (&heads, &no_room));
        assert!(lane.indexes.keys().eq(indexes.keys()), "the classes of a lane");
        for (id, index) in &lane.indexes {
            let entries = |index: &FitIndex| index.entries().collect::<Vec<_>>();
            let found = [entries(&index.no_room), entries(&index.nowhere)];
            assert_eq!(found, indexes[id], "class {id:?}: the shapes that wait");
        }
    }

    /// Checks that no node has room for the shape, apart from open nodes and from room that is
    /// reserved for an earlier job.
    fn check_no_room(
        &self,
        id: ShapeId,
        key: QueueKey,
        shape: &Shape,
        class: &Class,
        facts: &Facts,
    ) {
        for ix in class.nodes.difference(&self.open) {
            let node = facts.nodes.get(*ix);
            let size = shape.needs.size();
            if !node.has_room(&shape.needs.resources)
                || !node.takes(&shape.needs.place)
                || !node.leaves_time(size.lasts_ms, facts.now_ms)
            {
                continue;
            }
            let preemptible = self.is_preemptible(id);
            let is_kept = |kept: &Reservation| {
                kept.node == Some(*ix)
                    && kept.is_before(id.lane, key)
                    && kept.is_kept_from(preemptible)
            };
            let Some(mut kept) = self.reservation.clone().filter(is_kept) else {
                unreachable!("{shape:?} waits although {ix:?} has room");
            };
            if kept.keeps(&shape.needs) {
                continue;
            }
            let allowed = kept.rooms_for_later(node, facts).into_iter().flatten();
            assert!(!allowed.clone().any(|room| size.fits(&room)), "{size:?} fits {allowed:?}");
        }
    }
}
