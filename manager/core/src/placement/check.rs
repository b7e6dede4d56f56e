//! Invariants of the queue that hold after every step, checked in tests.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::fit_index::FitIndex;
use super::needs::{QueueKey, Size};
use super::queue::{Class, ClassId, Facts, Queue, QueuePosition, Shape, ShapeId};
use crate::ids::NodeIx;

/// An entry of a [`FitIndex`].
type Entry = (ShapeId, QueueKey, Size);

impl Queue {
    /// Checks that every shape has the right position, and that none waits although there is room.
    pub(crate) fn check(&self, facts: &Facts) {
        let (mut heads, mut no_room) = (BTreeSet::new(), BTreeSet::new());
        let mut indexes = BTreeMap::<ClassId, [Vec<Entry>; 2]>::new();
        for (id, shape) in &self.shapes {
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
                    self.check_no_room(key, shape, class, facts);
                    Some(key)
                }
                QueuePosition::NoRoom(key) => {
                    no_room.insert((key, *id));
                    if shape.needs.place.is_picky() {
                        assert!(class.picky.contains(&(key, *id)), "shape {id:?} is picky");
                    } else {
                        without_room.push((*id, key, shape.needs.size()));
                    }
                    self.check_no_room(key, shape, class, facts);
                    Some(key)
                }
                QueuePosition::Nowhere(key) => {
                    without_node.push((*id, key, shape.needs.size()));
                    let mut nodes = class.nodes.iter().map(|ix| facts.nodes.get(*ix));
                    let suits = nodes.any(|node| node.is_open() && shape.needs.suit(&node.row));
                    assert!(!suits, "shape {id:?} suits a node that is alive");
                    Some(key)
                }
            };
            assert_eq!(key, shape.waiting.first().copied(), "shape {id:?}: its first job");
        }
        assert_eq!((&self.heads, &self.no_room), (&heads, &no_room));
        assert_eq!(self.classes.len(), indexes.len(), "every class has a shape");
        for (id, class) in &self.classes {
            let all = facts.nodes.iter();
            let admitted = all.filter(|(_, node)| class.constraint.admits(&node.row));
            let admitted: BTreeSet<NodeIx> = admitted.map(|(ix, _)| ix).collect();
            assert_eq!(class.nodes, admitted, "class {id:?}: the nodes that it admits");
            let entries = |index: &FitIndex| index.entries().collect::<Vec<_>>();
            let found = [entries(&class.no_room), entries(&class.nowhere)];
            assert_eq!(found, indexes[id], "class {id:?}: the shapes that wait");
        }
        for (ix, classes) in &self.classes_of {
            let all = self.classes.iter();
            let admitting = all.filter(|(_, class)| class.nodes.contains(ix)).map(|(id, _)| *id);
            assert_eq!(*classes, admitting.collect(), "the classes that admit {ix:?}");
        }
        if !self.has_work() {
            let kept = self.reservation.as_ref().map(|kept| (kept.key, kept.shape));
            assert_eq!(
                kept,
                self.no_room.first().copied(),
                "the reservation is for the first job that waits"
            );
            assert!(
                self.next_wakeup().is_none_or(|at| at > facts.now_ms),
                "the reservation has not expired"
            );
        }
    }

    /// Checks that no node has room for the shape, apart from open nodes and from room that is
    /// reserved for an earlier job.
    fn check_no_room(&self, key: QueueKey, shape: &Shape, class: &Class, facts: &Facts) {
        for ix in class.nodes.difference(&self.open) {
            let node = facts.nodes.get(*ix);
            if !node.has_room(&shape.needs.resources) || !node.takes(&shape.needs.place) {
                continue;
            }
            let kept = self.reservation.clone().filter(|kept| kept.node == Some(*ix));
            let Some(mut kept) = kept.filter(|kept| kept.key < key) else {
                unreachable!("{shape:?} waits although {ix:?} has room");
            };
            if kept.keeps(key, &shape.needs) {
                continue;
            }
            let size = shape.needs.size();
            let allowed = kept.rooms_for_later(node, facts).into_iter().flatten();
            assert!(!allowed.clone().any(|room| size.fits(&room)), "{size:?} fits {allowed:?}");
        }
    }
}
