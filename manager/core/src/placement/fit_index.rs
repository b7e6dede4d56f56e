//! Finds the first shape in line that fits some room, without checking every shape.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::lane::ShapeId;
use super::needs::{QueueKey, Size};

/// The least number of leaves.
const LEAVES_MIN: usize = 8;

/// Shapes in a binary tree. Each inner node holds the earliest key and the least size of all shapes
/// below it, so that a search can skip a part of the tree that is too large or too late.
#[derive(Debug, Default)]
pub(super) struct FitIndex {
    /// The root is at 1, the children of `n` are at `2n` and `2n + 1`, and the leaves are the
    /// second half.
    bounds: Vec<Bound>,
    /// The shape at each leaf.
    shapes: Vec<Option<ShapeId>>,
    /// The leaf of each shape.
    leaves: BTreeMap<ShapeId, usize>,
    vacant: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    key: QueueKey,
    size: Size,
}

impl Bound {
    /// The bound of an empty leaf. It fits no room, because the resources of nodes have limits.
    const VACANT: Self = Self { key: QueueKey::LAST, size: Size::MAX };
}

impl FitIndex {
    /// Adds or updates a shape.
    pub(super) fn insert(&mut self, id: ShapeId, key: QueueKey, size: Size) {
        let leaf = match self.leaves.get(&id) {
            Some(leaf) => *leaf,
            None => {
                if self.vacant.is_empty() {
                    self.resize((2 * self.shapes.len()).max(LEAVES_MIN));
                }
                let Some(leaf) = self.vacant.pop() else { return };
                self.leaves.insert(id, leaf);
                self.shapes[leaf] = Some(id);
                leaf
            }
        };
        self.set(leaf, Bound { key, size });
    }

    pub(super) fn remove(&mut self, id: ShapeId) {
        let Some(leaf) = self.leaves.remove(&id) else { return };
        self.shapes[leaf] = None;
        self.vacant.push(leaf);
        self.set(leaf, Bound::VACANT);
        if self.shapes.len() > LEAVES_MIN && self.leaves.len() < self.shapes.len() / 4 {
            self.resize(self.shapes.len() / 2);
        }
    }

    /// Returns the first shape in line that fits a room and is `admitted`, if its key is less than
    /// `before`.
    pub(super) fn first_fit(
        &self,
        room: &Size,
        before: Option<QueueKey>,
        admitted: impl Fn(&Size) -> bool,
    ) -> Option<(QueueKey, ShapeId)> {
        let mut found = (before.unwrap_or(QueueKey::LAST), None);
        if !self.shapes.is_empty() {
            self.descend(1, room, &admitted, &mut found);
        }
        found.1.map(|id| (found.0, id))
    }

    fn descend(
        &self,
        at: usize,
        room: &Size,
        admitted: &impl Fn(&Size) -> bool,
        found: &mut (QueueKey, Option<ShapeId>),
    ) {
        let bound = &self.bounds[at];
        if bound.key >= found.0 || !bound.size.fits(room) {
            return;
        }
        if let Some(leaf) = at.checked_sub(self.shapes.len()) {
            if admitted(&bound.size) {
                *found = (bound.key, self.shapes[leaf]);
            }
            return;
        }
        let (left, right) = (2 * at, 2 * at + 1);
        let left_first = self.bounds[left].key <= self.bounds[right].key;
        let (first, second) = if left_first { (left, right) } else { (right, left) };
        self.descend(first, room, admitted, found);
        self.descend(second, room, admitted, found);
    }

    fn set(&mut self, leaf: usize, bound: Bound) {
        let mut at = leaf + self.shapes.len();
        self.bounds[at] = bound;
        while at > 1 {
            at /= 2;
            let bound = self.bound_of_children(at);
            if self.bounds[at] == bound {
                return;
            }
            self.bounds[at] = bound;
        }
    }

    fn bound_of_children(&self, at: usize) -> Bound {
        let (left, right) = (&self.bounds[2 * at], &self.bounds[2 * at + 1]);
        Bound { key: left.key.min(right.key), size: left.size.least(&right.size) }
    }

    /// Rebuilds the tree with `leaves` leaves, sorted by size: shapes of the same size are then
    /// together, and are skipped together.
    fn resize(&mut self, leaves: usize) {
        let of = |(id, leaf): (&ShapeId, &usize)| (self.bounds[leaf + self.shapes.len()], *id);
        let mut entries: Vec<(Bound, ShapeId)> = self.leaves.iter().map(of).collect();
        entries.sort_by_key(|(bound, id)| (bound.size, *id));
        self.bounds = vec![Bound::VACANT; 2 * leaves];
        self.shapes = vec![None; leaves];
        self.vacant = (entries.len()..leaves).rev().collect();
        for (leaf, (bound, id)) in entries.into_iter().enumerate() {
            self.bounds[leaves + leaf] = bound;
            self.shapes[leaf] = Some(id);
            self.leaves.insert(id, leaf);
        }
        for at in (1..leaves).rev() {
            self.bounds[at] = self.bound_of_children(at);
        }
    }

    /// Returns all entries.
    #[cfg(any(test, feature = "invariants"))]
    pub(super) fn entries(&self) -> impl Iterator<Item = (ShapeId, QueueKey, Size)> {
        self.leaves.iter().map(|(id, leaf)| {
            let bound = &self.bounds[leaf + self.shapes.len()];
            (*id, bound.key, bound.size)
        })
    }
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::ids::JobId;
    use podmesh_protocol::spec::Resources;
    use proptest::prelude::*;

    use super::*;
    use crate::ids::LaneId;

    fn size(cpu_millis: u32, memory_bytes: u64, lasts_ms: u64) -> Size {
        Size::lasting(Resources { cpu_millis, memory_bytes }, lasts_ms)
    }

    proptest! {
        #[test]
        fn the_index_finds_the_same_shape_as_a_linear_search(
            // A shape, and its position in line and size; `None` removes it.
            ops in prop::collection::vec(
                (0..60u64, prop::option::weighted(0.7, (-2..3i32, 0..8u32, 0..8u64, 0..8u64))),
                1..300,
            ),
            rooms in prop::collection::vec((0..9u32, 0..9u64, 0..9u64), 1..20),
        ) {
            let mut index = FitIndex::default();
            let mut all = BTreeMap::new();
            for (number, (id, entry)) in (1..).zip(ops) {
                let id = ShapeId { lane: LaneId(1), number: id };
                if let Some((priority, cpu, memory, lasts)) = entry {
                    let entry = (QueueKey::new(priority, JobId(number)), size(cpu, memory, lasts));
                    all.insert(id, entry);
                    index.insert(id, entry.0, entry.1);
                } else {
                    all.remove(&id);
                    index.remove(id);
                }
                let entries: Vec<_> = all.iter().map(|(id, (key, size))| (*id, *key, *size)).collect();
                prop_assert_eq!(index.entries().collect::<Vec<_>>(), entries);
            }
            for (cpu, memory, lasts) in rooms {
                let room = size(cpu, memory, lasts);
                let fitting = all.iter().filter(|(_, (_, size))| size.fits(&room));
                let first = fitting.map(|(id, (key, _))| (*key, *id)).min();
                prop_assert_eq!(index.first_fit(&room, None, |_| true), first);
                let before = QueueKey::new(0, JobId(0));
                let first = first.filter(|(key, _)| *key < before);
                prop_assert_eq!(index.first_fit(&room, Some(before), |_| true), first);
                let is_odd = |size: &Size| size.lasts_ms % 2 == 1;
                let odd = all.iter().filter(|(_, (_, size))| size.fits(&room) && is_odd(size));
                let first = odd.map(|(id, (key, _))| (*key, *id)).min();
                prop_assert_eq!(index.first_fit(&room, None, is_odd), first);
            }
        }
    }
}
