//! The waiting jobs of one caller in one queue, preemptible or not, grouped by their needs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::Name;
use podmesh_protocol::time::Millis;

use super::fit_index::FitIndex;
use super::needs::{Constraint, Needs, QueueKey};
use super::share::ShareId;
use crate::ids::{LaneId, NodeIx};

/// The number of a shape in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShapeId {
    pub(crate) lane: LaneId,
    pub(super) number: u64,
}

/// Jobs with the same needs.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) needs: Arc<Needs>,
    pub(super) class: ClassId,
    /// The number of jobs with this shape, waiting or not.
    pub(crate) jobs: usize,
    /// The jobs that have tasks to place.
    pub(crate) waiting: BTreeSet<QueueKey>,
    /// The time since which one of these jobs has been the first that waits for room, without a
    /// task placed.
    pub(super) first_ms: Option<Millis>,
    pub(super) position: QueuePosition,
}

/// What a shape waits for, with the key of its first job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueuePosition {
    /// It has no tasks to place.
    Idle,
    /// All nodes must be checked for room.
    Head(QueueKey),
    /// The open nodes must be checked for room. The others have none.
    Woken(QueueKey),
    /// No node has room for it, apart from open ones that have not been checked.
    NoRoom(QueueKey),
    /// No node that is alive is suitable.
    Nowhere(QueueKey),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClassId(pub(super) u64);

/// Shapes with the same constraint, in any lane. They differ only in size.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) constraint: Arc<Constraint>,
    /// The number of shapes in the class.
    pub(super) shapes: usize,
    /// The nodes that the constraint admits, alive or not, large enough or not.
    pub(super) nodes: BTreeSet<NodeIx>,
}

/// The shapes of one class in one lane that wait for nodes.
#[derive(Debug, Default)]
pub(super) struct ClassIndex {
    /// The number of shapes of the class in the lane, waiting or not.
    shapes: usize,
    /// The shapes at [`QueuePosition::NoRoom`].
    pub(super) no_room: FitIndex,
    /// The same, of shapes for which cores and memory alone do not decide. They are few.
    pub(super) picky: BTreeSet<(QueueKey, ShapeId)>,
    /// The shapes at [`QueuePosition::Nowhere`].
    pub(super) nowhere: FitIndex,
}

/// Whose jobs a lane has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    /// The queue.
    pub(super) share: ShareId,
    /// Who submitted the jobs; `None` for replicas, and for jobs that an older version of podmesh
    /// accepted.
    pub(super) caller: Option<Name>,
    /// Whether the jobs make room for those that are not preemptible.
    pub(super) preemptible: bool,
}

/// The jobs of one caller in one queue, preemptible or not.
#[derive(Debug)]
pub(super) struct Lane {
    id: LaneId,
    pub(super) owner: Owner,
    pub(super) shapes: BTreeMap<ShapeId, Shape>,
    by_needs: BTreeMap<Arc<Needs>, ShapeId>,
    last_shape: u64,
    pub(super) indexes: BTreeMap<ClassId, ClassIndex>,
    /// The shapes to check, at [`QueuePosition::Head`] or [`QueuePosition::Woken`].
    pub(super) heads: BTreeSet<(QueueKey, ShapeId)>,
    /// The shapes at [`QueuePosition::NoRoom`].
    pub(super) no_room: BTreeSet<(QueueKey, ShapeId)>,
    /// How many attempts its jobs have.
    pub(super) active: u32,
    /// The cores of these attempts, in thousandths.
    pub(super) cpu_millis: u64,
    /// What its attempts have taken since it began, as a ticket for the next one: see
    /// [`share`](super::share).
    pub(super) pass: u64,
    /// Whether a pause or a limit holds it back. No shape then is known to have no room.
    pub(super) held: bool,
}

impl Lane {
    pub(super) fn new(id: LaneId, owner: Owner) -> Self {
        Self {
            id,
            owner,
            shapes: BTreeMap::new(),
            by_needs: BTreeMap::new(),
            last_shape: 0,
            indexes: BTreeMap::new(),
            heads: BTreeSet::new(),
            no_room: BTreeSet::new(),
            active: 0,
            cpu_millis: 0,
            pass: 0,
            held: false,
        }
    }

    /// Returns the shape with these needs, now with one more job, if there is one.
    pub(super) fn use_shape(&mut self, needs: &Needs) -> Option<ShapeId> {
        let id = *self.by_needs.get(needs)?;
        self.shapes.get_mut(&id)?.jobs += 1;
        Some(id)
    }

    pub(super) fn add_shape(&mut self, needs: Needs, class: ClassId) -> ShapeId {
        self.last_shape += 1;
        let id = ShapeId { lane: self.id, number: self.last_shape };
        let needs = Arc::new(needs);
        let shape = Shape {
            needs: Arc::clone(&needs),
            class,
            jobs: 1,
            waiting: BTreeSet::new(),
            first_ms: None,
            position: QueuePosition::Idle,
        };
        self.shapes.insert(id, shape);
        self.by_needs.insert(needs, id);
        self.indexes.entry(class).or_default().shapes += 1;
        id
    }

    /// Gives a shape back, which is idle if no job has it any longer. Returns its class if it is
    /// gone.
    pub(super) fn release(&mut self, id: ShapeId) -> Option<ClassId> {
        let shape = self.shapes.get_mut(&id)?;
        shape.jobs -= 1;
        if shape.jobs > 0 {
            return None;
        }
        let shape = self.shapes.remove(&id)?;
        self.by_needs.remove(&shape.needs);
        if let Some(index) = self.indexes.get_mut(&shape.class) {
            index.shapes -= 1;
            if index.shapes == 0 {
                self.indexes.remove(&shape.class);
            }
        }
        Some(shape.class)
    }

    /// Returns whether a task of it may find room, now or when a node gains some.
    pub(super) fn waits(&self) -> bool {
        !self.heads.is_empty() || !self.no_room.is_empty()
    }

    /// Returns the needs of the first job in line.
    pub(super) fn first_needs(&self) -> Option<&Needs> {
        let (_, id) = self.heads.first().into_iter().chain(self.no_room.first()).min()?;
        self.shapes.get(id).map(|shape| &*shape.needs)
    }

    /// Holds the lane back. Nodes that gain room meanwhile are not checked for it, so that later all
    /// nodes must be.
    pub(super) fn hold(&mut self) {
        self.held = true;
        let shapes = self.no_room.iter().chain(&self.heads).map(|(_, id)| *id);
        for id in shapes.collect::<Vec<_>>() {
            self.move_to(id, QueuePosition::Head);
        }
    }

    /// Adds a job that has tasks to place.
    pub(super) fn add(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if shape.waiting.insert(key) && shape.waiting.first() == Some(&key) {
            // An earlier job may use room that was reserved and that later jobs could not use.
            self.move_to(id, QueuePosition::Head);
        }
    }

    /// Removes a job that has no more tasks to place.
    pub(super) fn remove(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if !shape.waiting.remove(&key) {
            return;
        }
        if shape.waiting.is_empty() {
            // It would keep a node. Shapes live as long as their jobs, such as replicas.
            shape.waiting = BTreeSet::new();
        }
        match shape.position {
            QueuePosition::Idle => {}
            QueuePosition::Head(_) => self.move_to(id, QueuePosition::Head),
            QueuePosition::Woken(_) => self.move_to(id, QueuePosition::Woken),
            QueuePosition::NoRoom(_) => self.move_to(id, QueuePosition::NoRoom),
            QueuePosition::Nowhere(_) => self.move_to(id, QueuePosition::Nowhere),
        }
    }

    /// Sets the position of a shape, with the key of its current first job.
    pub(super) fn move_to(&mut self, id: ShapeId, position: fn(QueueKey) -> QueuePosition) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        let Some(index) = self.indexes.get_mut(&shape.class) else { return };
        let to = shape.waiting.first().map_or(QueuePosition::Idle, |key| position(*key));
        let from = core::mem::replace(&mut shape.position, to);
        if from == to {
            return;
        }
        match from {
            QueuePosition::Idle => {}
            QueuePosition::Head(key) | QueuePosition::Woken(key) => {
                self.heads.remove(&(key, id));
            }
            QueuePosition::NoRoom(key) => {
                self.no_room.remove(&(key, id));
                index.no_room.remove(id);
                index.picky.remove(&(key, id));
            }
            QueuePosition::Nowhere(_) => index.nowhere.remove(id),
        }
        match to {
            QueuePosition::Idle => shape.first_ms = None,
            QueuePosition::Head(key) | QueuePosition::Woken(key) => {
                self.heads.insert((key, id));
            }
            QueuePosition::NoRoom(key) => {
                self.no_room.insert((key, id));
                if shape.needs.place.is_picky() {
                    index.picky.insert((key, id));
                } else {
                    index.no_room.insert(id, key, shape.needs.size());
                }
            }
            QueuePosition::Nowhere(key) => index.nowhere.insert(id, key, shape.needs.size()),
        }
    }
}
