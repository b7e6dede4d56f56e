//! The jobs that have tasks to place, grouped by their needs.

use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{JobId, Name, TaskId};
use podmesh_protocol::time::Millis;

use super::candidate::{Candidate, Peers};
use super::fit_index::FitIndex;
use super::needs::{Constraint, Needs, QueueKey, ReplicaNeeds, Size};
use super::reservation::Reservation;
use crate::ids::NodeIx;
use crate::nodes::{Node, Nodes};
use crate::state::Job;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShapeId(pub(super) u64);

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
pub(super) struct ClassId(u64);

/// Shapes with the same constraint. They differ only in size.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) constraint: Arc<Constraint>,
    /// The number of shapes in the class.
    shapes: usize,
    /// The nodes that the constraint admits, alive or not, large enough or not.
    pub(super) nodes: BTreeSet<NodeIx>,
    /// The shapes at [`QueuePosition::NoRoom`].
    pub(super) no_room: FitIndex,
    /// The same, of shapes for which cores and memory alone do not decide. They are few.
    pub(super) picky: BTreeSet<(QueueKey, ShapeId)>,
    /// The shapes at [`QueuePosition::Nowhere`].
    pub(super) nowhere: FitIndex,
}

/// The state outside of the queue that placement depends on.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) now_ms: Millis,
    pub(crate) nodes: &'a Nodes,
    pub(crate) jobs: &'a BTreeMap<JobId, Job>,
}

/// The jobs that have tasks to place, by shape.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(super) shapes: BTreeMap<ShapeId, Shape>,
    by_needs: BTreeMap<Arc<Needs>, ShapeId>,
    last_shape: u64,
    pub(super) classes: BTreeMap<ClassId, Class>,
    by_constraint: BTreeMap<Arc<Constraint>, ClassId>,
    last_class: u64,
    /// The classes that admit each node.
    pub(super) classes_of: BTreeMap<NodeIx, BTreeSet<ClassId>>,
    /// The shapes to check, at [`QueuePosition::Head`] or [`QueuePosition::Woken`].
    pub(super) heads: BTreeSet<(QueueKey, ShapeId)>,
    /// The shapes at [`QueuePosition::NoRoom`].
    pub(super) no_room: BTreeSet<(QueueKey, ShapeId)>,
    /// Nodes that have gained room since they were last checked.
    pub(super) open: BTreeSet<NodeIx>,
    pub(super) reservation: Option<Reservation>,
    /// The time until which a node is not reserved again, after a reservation that did not help.
    pub(super) rests: BTreeMap<NodeIx, Millis>,
}

impl Queue {
    /// Returns the shape of a job with these needs. [`Queue::release`] gives it back.
    pub(crate) fn intern(&mut self, needs: Needs, nodes: &Nodes) -> ShapeId {
        let needs = Arc::new(needs);
        if let Some(id) = self.by_needs.get(&needs)
            && let Some(shape) = self.shapes.get_mut(id)
        {
            shape.jobs += 1;
            return *id;
        }
        let class = self.intern_class(&needs.constraint, nodes);
        self.last_shape += 1;
        let id = ShapeId(self.last_shape);
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
        id
    }

    /// Returns the needs of the jobs with a shape.
    pub(crate) fn needs(&self, id: ShapeId) -> Option<&Needs> {
        self.shapes.get(&id).map(|shape| &*shape.needs)
    }

    fn intern_class(&mut self, constraint: &Constraint, nodes: &Nodes) -> ClassId {
        if let Some(id) = self.by_constraint.get(constraint)
            && let Some(class) = self.classes.get_mut(id)
        {
            class.shapes += 1;
            return *id;
        }
        self.last_class += 1;
        let id = ClassId(self.last_class);
        let constraint = Arc::new(constraint.clone());
        let admitted = nodes.iter().filter(|(_, node)| constraint.admits(&node.row));
        let class = Class {
            constraint: Arc::clone(&constraint),
            shapes: 1,
            nodes: admitted.map(|(ix, _)| ix).collect(),
            no_room: FitIndex::default(),
            picky: BTreeSet::new(),
            nowhere: FitIndex::default(),
        };
        for ix in &class.nodes {
            self.classes_of.entry(*ix).or_default().insert(id);
        }
        self.classes.insert(id, class);
        self.by_constraint.insert(constraint, id);
        id
    }

    pub(crate) fn release(&mut self, id: ShapeId) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        shape.jobs -= 1;
        if shape.jobs > 0 {
            return;
        }
        let Some(shape) = self.shapes.remove(&id) else { return };
        self.by_needs.remove(&shape.needs);
        let Some(class) = self.classes.get_mut(&shape.class) else { return };
        class.shapes -= 1;
        if class.shapes == 0
            && let Some(class) = self.classes.remove(&shape.class)
        {
            self.by_constraint.remove(&class.constraint);
            for ix in &class.nodes {
                if let Some(classes) = self.classes_of.get_mut(ix) {
                    classes.remove(&shape.class);
                }
            }
        }
    }

    /// Adds a job that has tasks to place.
    pub(crate) fn add(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if shape.waiting.insert(key) && shape.waiting.first() == Some(&key) {
            // An earlier job may use room that was reserved and that later jobs could not use.
            self.move_to(id, QueuePosition::Head);
        }
    }

    /// Removes a job that has no more tasks to place.
    pub(crate) fn remove(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if !shape.waiting.remove(&key) {
            return;
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
        let Some(class) = self.classes.get_mut(&shape.class) else { return };
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
                class.no_room.remove(id);
                class.picky.remove(&(key, id));
            }
            QueuePosition::Nowhere(_) => class.nowhere.remove(id),
        }
        match to {
            QueuePosition::Idle => shape.first_ms = None,
            QueuePosition::Head(key) | QueuePosition::Woken(key) => {
                self.heads.insert((key, id));
            }
            QueuePosition::NoRoom(key) => {
                self.no_room.insert((key, id));
                if shape.needs.place.is_picky() {
                    class.picky.insert((key, id));
                } else {
                    class.no_room.insert(id, key, shape.needs.size());
                }
            }
            QueuePosition::Nowhere(key) => class.nowhere.insert(id, key, shape.needs.size()),
        }
    }

    /// Returns whether the last step has left shapes or nodes to check.
    pub(crate) fn has_work(&self) -> bool {
        !self.heads.is_empty() || !self.open.is_empty()
    }

    /// Returns how many jobs have tasks to place.
    pub(crate) fn waiting_jobs(&self) -> u64 {
        self.shapes.values().map(|shape| shape.waiting.len() as u64).sum()
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (ShapeId, &Shape)> {
        self.shapes.iter().map(|(id, shape)| (*id, shape))
    }

    /// Records that an attempt on the node has ended or that the node has changed.
    pub(crate) fn gain(&mut self, ix: NodeIx) {
        self.open.insert(ix);
        if let Some(kept) = &mut self.reservation
            && kept.node == Some(ix)
        {
            kept.forget_forecast();
        }
    }

    /// Updates the queue after a node has got a session, offers something else, or is alive again.
    pub(crate) fn node_changed(&mut self, ix: NodeIx, nodes: &Nodes) {
        let row = &nodes.get(ix).row;
        let classes = self.classes_of.entry(ix).or_default();
        for (id, class) in &mut self.classes {
            if class.constraint.admits(row) {
                class.nodes.insert(ix);
                classes.insert(*id);
            } else if class.nodes.remove(&ix) {
                classes.remove(id);
            }
        }
        let capacity = Size::lasting(row.capacity, u64::MAX);
        for id in classes.clone() {
            let first = |queue: &Self| queue.classes.get(&id)?.nowhere.first_fit(&capacity, None);
            while let Some((_, shape)) = first(self) {
                self.move_to(shape, QueuePosition::NoRoom);
            }
        }
        self.gain(ix);
        self.choose_again();
    }

    /// Returns the first job in line that may find room, and its shape.
    pub(super) fn next(&mut self, facts: &Facts) -> Option<(QueueKey, ShapeId)> {
        loop {
            let head = self.heads.first().copied();
            let limit = head.map(|(key, _)| key);
            match self.no_room.first().copied() {
                Some((key, id)) if limit.is_none_or(|limit| key < limit) => {
                    if !self.renew_reservation(key, id, facts) {
                        self.move_to(id, QueuePosition::Nowhere);
                        continue;
                    }
                    if let Some((key, id)) = self.first_fit(limit, facts) {
                        self.move_to(id, QueuePosition::Woken);
                        return Some((key, id));
                    }
                }
                None if head.is_none() => self.reservation = None,
                _ => {}
            }
            if head.is_none() {
                self.open.clear();
            }
            return head;
        }
    }

    /// Returns the first waiting job that fits an open node, if its key is less than `limit`.
    fn first_fit(&mut self, limit: Option<QueueKey>, facts: &Facts) -> Option<(QueueKey, ShapeId)> {
        let Self { classes, classes_of, open, reservation, shapes, .. } = self;
        let mut first = None;
        for ix in open.iter() {
            let node = facts.nodes.get(*ix);
            let Some(free) = node.room() else { continue };
            let Some(admitting) = classes_of.get(ix) else { continue };
            let kept = reservation.as_ref().filter(|kept| kept.node == Some(*ix));
            let kept = kept.map(|kept| (kept.key, kept.needs()));
            let search = |room: &Size, before: Option<QueueKey>| {
                let mut found = None;
                for class in admitting.iter().filter_map(|id| classes.get(id)) {
                    let before = found.map_or(before, |(key, _)| Some(key));
                    found = class.no_room.first_fit(room, before).or(found);
                    let before = found.map_or(before, |(key, _)| Some(key));
                    let fits = |(key, id): &&(QueueKey, ShapeId)| {
                        before.is_none_or(|before| *key < before)
                            && shapes.get(id).is_some_and(|shape| {
                                let needs = &shape.needs;
                                let is_kept = kept
                                    .as_ref()
                                    .is_some_and(|(first, kept)| first < key && kept.shares(needs));
                                needs.size().fits(room) && node.takes(&needs.place) && !is_kept
                            })
                    };
                    found = class.picky.iter().find(fits).copied().or(found);
                }
                found
            };
            let before = first.map_or(limit, |(key, _)| Some(key));
            let mut found = search(&Size::lasting(free, u64::MAX), before);
            if let Some(kept) = reservation
                && kept.node == Some(*ix)
                && found.is_some_and(|(key, _)| key > kept.key)
            {
                found = None;
                for room in kept.rooms_for_later(node, facts).into_iter().flatten() {
                    let before = found.map_or(before, |(key, _)| Some(key));
                    found = search(&room, before).or(found);
                }
            }
            first = found.or(first);
        }
        first
    }

    /// Returns the nodes with room for the first job of a shape that [`Queue::next`] has returned.
    pub(super) fn candidates(&mut self, id: ShapeId, facts: &Facts) -> BinaryHeap<Candidate> {
        let Some(shape) = self.shapes.get(&id) else { return BinaryHeap::new() };
        let Some(class) = self.classes.get(&shape.class) else { return BinaryHeap::new() };
        let nodes: Vec<NodeIx> = match shape.position {
            QueuePosition::Woken(_) => self.open.intersection(&class.nodes).copied().collect(),
            _ => class.nodes.iter().copied().collect(),
        };
        let needs = Arc::clone(&shape.needs);
        let Some(key) = shape.waiting.first().copied() else { return BinaryHeap::new() };
        let zones = Zones::of(&needs, key.job(), facts.nodes);
        nodes.into_iter().filter_map(|ix| self.candidate_in(id, ix, &zones, facts)).collect()
    }

    /// Returns a node as a candidate if it has room and the first job of a shape may use it.
    pub(super) fn candidate(
        &mut self,
        id: ShapeId,
        ix: NodeIx,
        facts: &Facts,
    ) -> Option<Candidate> {
        let shape = self.shapes.get(&id)?;
        let (needs, key) = (Arc::clone(&shape.needs), *shape.waiting.first()?);
        let zones = Zones::of(&needs, key.job(), facts.nodes);
        self.candidate_in(id, ix, &zones, facts)
    }

    fn candidate_in(
        &mut self,
        id: ShapeId,
        ix: NodeIx,
        zones: &Zones<'_>,
        facts: &Facts,
    ) -> Option<Candidate> {
        let Self { shapes, no_room, reservation, .. } = self;
        let shape = shapes.get(&id)?;
        let key = shape.waiting.first()?;
        let node = facts.nodes.get(ix);
        let peers = zones.peers(&shape.needs, key.job(), node);
        let candidate = Candidate::of(ix, node, &shape.needs, peers)?;
        if let Some(kept) = reservation
            && kept.node == Some(ix)
            && no_room.first().is_some_and(|(first, _)| first < key)
        {
            if kept.keeps(*key, &shape.needs) {
                return None;
            }
            let size = shape.needs.size();
            let rooms = kept.rooms_for_later(node, facts);
            rooms.iter().flatten().find(|room| size.fits(room))?;
        }
        Some(candidate)
    }

    /// Returns whether the tasks of each job of a shape are spread.
    pub(super) fn spreads_tasks(&self, id: ShapeId) -> bool {
        self.needs(id).is_some_and(|needs| needs.place.spread.is_some())
    }

    /// Returns whether the job at `key` is the first of its shape and must be checked.
    pub(super) fn is_head(&self, id: ShapeId, key: QueueKey) -> bool {
        self.heads.contains(&(key, id))
    }

    /// Records that a task of a job was assigned to a node.
    pub(super) fn on_assigned(&mut self, id: ShapeId, key: QueueKey, ix: NodeIx, task: TaskId) {
        if let Some(shape) = self.shapes.get_mut(&id) {
            shape.first_ms = None;
        }
        if let Some(kept) = &mut self.reservation {
            kept.on_assigned(key, ix, task);
        }
    }
}

/// How many replicas of a revision, or tasks of a job, are on the nodes with each value of the label to
/// spread over.
struct Zones<'a>(BTreeMap<Option<&'a String>, u32>);

impl<'a> Zones<'a> {
    fn of(needs: &Needs, job: JobId, nodes: &'a Nodes) -> Self {
        let mut zones = BTreeMap::new();
        if let Some(label) = spread_of(needs) {
            for (_, node) in nodes.iter() {
                let here = match &needs.replica {
                    Some(replica) => node.replicas.get(&replica.of).copied().unwrap_or(0),
                    None => tasks_of(job, node),
                };
                *zones.entry(node.row.label(label)).or_default() += here;
            }
        }
        Self(zones)
    }

    fn peers(&self, needs: &Needs, job: JobId, node: &Node) -> Peers {
        let label = spread_of(needs);
        let zone = label.and_then(|label| self.0.get(&node.row.label(label)).copied());
        let zone = zone.unwrap_or(0);
        match &needs.replica {
            Some(ReplicaNeeds { of, .. }) => {
                let of_service = (of.0.clone(), 0)..=(of.0.clone(), u32::MAX);
                Peers {
                    zone,
                    same: node.replicas.get(of).copied().unwrap_or(0),
                    all: node.replicas.range(of_service).map(|(_, count)| count).sum(),
                }
            }
            None if label.is_some() => Peers { zone, same: tasks_of(job, node), all: 0 },
            None => Peers::default(),
        }
    }
}

/// Returns the label over whose values the tasks of a job, or the replicas of a service, are spread.
fn spread_of(needs: &Needs) -> Option<&Name> {
    match &needs.replica {
        Some(replica) => replica.spread.as_ref(),
        None => needs.place.spread.as_ref(),
    }
}

/// Returns how many tasks of a job a node has.
fn tasks_of(job: JobId, node: &Node) -> u32 {
    let all = TaskId { job, index: 0 }..=TaskId { job, index: u32::MAX };
    u32::try_from(node.attempts.range(all).count()).unwrap_or(u32::MAX)
}
