//! The jobs that have tasks to place, in lanes.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::{JobId, Name, TaskId};
use podmesh_protocol::time::Millis;

use super::candidate::{Candidate, Peers};
use super::lane::{Class, ClassId, Lane, Owner, QueuePosition, Shape, ShapeId};
use super::needs::{Constraint, Needs, QueueKey, ReplicaNeeds, Size};
use super::reservation::Reservation;
use super::share::{DEFAULT, Held, REPLICAS, Shares};
use crate::ids::{LaneId, NodeIx};
use crate::nodes::{Node, Nodes};
use crate::state::{Job, QueueRow};

/// The state outside of the queue that placement depends on.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) now_ms: Millis,
    pub(crate) nodes: &'a Nodes,
    pub(crate) jobs: &'a BTreeMap<JobId, Box<Job>>,
}

/// The jobs that have tasks to place, by lane.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(super) lanes: BTreeMap<LaneId, Lane>,
    by_owner: BTreeMap<Owner, LaneId>,
    last_lane: u64,
    pub(super) shares: Shares,
    /// The lanes that wait and are not held back, as they were in line when the queue was last asked
    /// for the next job.
    pub(super) turns: Vec<LaneId>,
    pub(super) classes: BTreeMap<ClassId, Class>,
    by_constraint: BTreeMap<Arc<Constraint>, ClassId>,
    last_class: u64,
    /// The classes that admit each node.
    pub(super) classes_of: BTreeMap<NodeIx, BTreeSet<ClassId>>,
    /// Nodes that have gained room since they were last checked.
    pub(super) open: BTreeSet<NodeIx>,
    pub(super) reservation: Option<Reservation>,
    /// Whether the reservation is for a job before the one that was last returned as next.
    pub(super) is_reserved: bool,
    /// The time until which a node is not reserved again, after a reservation that did not help.
    pub(super) rests: BTreeMap<NodeIx, Millis>,
}

/// What a lane has for the next turn.
enum Next {
    /// A job that may find room, and its shape.
    Job(QueueKey, ShapeId),
    /// No job that may find room.
    NoJob,
    /// A shape has stopped waiting, which may change whose turn it is.
    OtherTurns,
}

impl Queue {
    /// Adds a queue, or changes its settings.
    pub(crate) fn set_share(&mut self, queue: &Name, row: QueueRow) {
        self.shares.set(queue, row);
    }

    /// Removes a queue without jobs.
    pub(crate) fn remove_share(&mut self, queue: &Name) {
        self.shares.remove(queue);
    }

    /// Returns the shape of a job with these needs. [`Queue::release`] gives it back.
    pub(crate) fn intern(&mut self, job: &Job, needs: Needs, nodes: &Nodes) -> ShapeId {
        let owner = self.owner(job);
        let id = match self.by_owner.get(&owner) {
            Some(id) => *id,
            None => {
                self.last_lane += 1;
                let id = LaneId(self.last_lane);
                self.lanes.insert(id, Lane::new(id, owner.clone()));
                self.by_owner.insert(owner.clone(), id);
                id
            }
        };
        let used = self.lanes.get_mut(&id).and_then(|lane| lane.use_shape(&needs));
        if let Some(shape) = used {
            return shape;
        }
        let class = self.intern_class(&needs.constraint, nodes);
        let lane = self.lanes.entry(id).or_insert_with(|| Lane::new(id, owner));
        lane.add_shape(needs, class)
    }

    fn owner(&self, job: &Job) -> Owner {
        if job.spec.run.replica.is_some() {
            return Owner { share: REPLICAS, caller: None, preemptible: false };
        }
        let queue = job.spec.rules.queue.as_ref();
        let share = queue.and_then(|queue| self.shares.by_name(queue)).unwrap_or(DEFAULT);
        let preemptible = job.spec.rules.preemptible;
        Owner { share, caller: job.by.clone(), preemptible }
    }

    /// Returns whether the jobs with a shape are preemptible.
    pub(crate) fn is_preemptible(&self, id: ShapeId) -> bool {
        self.lanes.get(&id.lane).is_some_and(|lane| lane.owner.preemptible)
    }

    /// Returns the needs of the jobs with a shape.
    pub(crate) fn needs(&self, id: ShapeId) -> Option<&Needs> {
        self.lanes.get(&id.lane)?.shapes.get(&id).map(|shape| &*shape.needs)
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
        };
        for ix in &class.nodes {
            self.classes_of.entry(*ix).or_default().insert(id);
        }
        self.classes.insert(id, class);
        self.by_constraint.insert(constraint, id);
        id
    }

    pub(crate) fn release(&mut self, id: ShapeId) {
        let Some(lane) = self.lanes.get_mut(&id.lane) else { return };
        let Some(class_id) = lane.release(id) else { return };
        if lane.shapes.is_empty() {
            self.by_owner.remove(&lane.owner);
            self.lanes.remove(&id.lane);
        }
        let Some(class) = self.classes.get_mut(&class_id) else { return };
        class.shapes -= 1;
        if class.shapes == 0
            && let Some(class) = self.classes.remove(&class_id)
        {
            self.by_constraint.remove(&class.constraint);
            for ix in &class.nodes {
                if let Some(classes) = self.classes_of.get_mut(ix) {
                    classes.remove(&class_id);
                }
            }
        }
    }

    /// Adds a job that has tasks to place.
    pub(crate) fn add(&mut self, id: ShapeId, key: QueueKey) {
        let Some(lane) = self.lanes.get(&id.lane) else { return };
        let (share, waited) = (lane.owner.share, lane.waits());
        let alone = !waited
            && !self.lanes.values().any(|other| other.owner.share == share && other.waits());
        let Some(lane) = self.lanes.get_mut(&id.lane) else { return };
        if !waited {
            self.shares.begin(lane, alone);
        }
        lane.add(id, key);
    }

    /// Removes a job that has no more tasks to place.
    pub(crate) fn remove(&mut self, id: ShapeId, key: QueueKey) {
        if let Some(lane) = self.lanes.get_mut(&id.lane) {
            lane.remove(id, key);
        }
    }

    /// Sets the position of a shape, with the key of its current first job.
    pub(super) fn move_to(&mut self, id: ShapeId, position: fn(QueueKey) -> QueuePosition) {
        if let Some(lane) = self.lanes.get_mut(&id.lane) {
            lane.move_to(id, position);
        }
    }

    /// Returns whether the last step has left shapes or nodes to check.
    pub(crate) fn has_work(&self) -> bool {
        !self.open.is_empty()
            || self.lanes.values().any(|lane| !lane.heads.is_empty() && self.holds(lane).is_none())
    }

    /// Returns why the jobs of a shape's lane get no more attempts for now.
    pub(crate) fn held(&self, id: ShapeId) -> Option<Held> {
        self.holds(self.lanes.get(&id.lane)?)
    }

    pub(super) fn holds(&self, lane: &Lane) -> Option<Held> {
        self.shares.get(lane.owner.share)?.holds(|| self.active_of_caller(lane))
    }

    /// Returns how many more attempts the jobs of a shape's lane may have, as far as its queue limits
    /// them.
    pub(super) fn allowance(&self, id: ShapeId) -> u32 {
        let Some(lane) = self.lanes.get(&id.lane) else { return 0 };
        let Some(share) = self.shares.get(lane.owner.share) else { return 0 };
        share.allowance(|| self.active_of_caller(lane))
    }

    /// Returns how many attempts the caller of a lane has in its queue.
    fn active_of_caller(&self, lane: &Lane) -> u32 {
        let other = Owner { preemptible: !lane.owner.preemptible, ..lane.owner.clone() };
        let other = self.by_owner.get(&other).and_then(|id| self.lanes.get(id));
        lane.active + other.map_or(0, |other| other.active)
    }

    /// Returns how many jobs have tasks to place.
    pub(crate) fn waiting_jobs(&self) -> u64 {
        let shapes = self.lanes.values().flat_map(|lane| lane.shapes.values());
        shapes.map(|shape| shape.waiting.len() as u64).sum()
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (ShapeId, &super::lane::Shape)> {
        self.lanes.values().flat_map(|lane| lane.shapes.iter().map(|(id, shape)| (*id, shape)))
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
        for lane in self.lanes.values_mut() {
            for id in classes.iter() {
                let first = |lane: &Lane| {
                    lane.indexes.get(id)?.nowhere.first_fit(&capacity, None, |_| true)
                };
                while let Some((_, shape)) = first(lane) {
                    match lane.held {
                        true => lane.move_to(shape, QueuePosition::Head),
                        false => lane.move_to(shape, QueuePosition::NoRoom),
                    }
                }
            }
        }
        self.gain(ix);
        self.choose_again();
    }

    /// Returns the first job in line that may find room, and its shape.
    pub(super) fn next(&mut self, facts: &Facts) -> Option<(QueueKey, ShapeId)> {
        'turns: loop {
            self.take_turns();
            self.is_reserved = false;
            for at in 0..self.turns.len() {
                let Some(lane) = self.turns.get(at).copied() else { break };
                match self.next_in(lane, facts) {
                    Next::Job(key, id) => return Some((key, id)),
                    Next::NoJob => {}
                    Next::OtherTurns => continue 'turns,
                }
            }
            if !self.is_reserved {
                self.reservation = None;
            }
            self.open.clear();
            return None;
        }
    }

    /// Returns the first job of a lane that may find room, and its shape. Reserves a node for its
    /// first job that waits for room, if no lane before it has one.
    fn next_in(&mut self, lane: LaneId, facts: &Facts) -> Next {
        let Some(of) = self.lanes.get(&lane) else { return Next::NoJob };
        let head = of.heads.first().copied();
        let limit = head.map(|(key, _)| key);
        if let Some((key, id)) = of.no_room.first().copied()
            && limit.is_none_or(|limit| key < limit)
        {
            if !self.is_reserved && !self.renew_reservation(key, id, facts) {
                self.move_to(id, QueuePosition::Nowhere);
                return Next::OtherTurns;
            }
            self.is_reserved = true;
            if let Some((key, id)) = self.first_fit(lane, limit, facts) {
                self.move_to(id, QueuePosition::Woken);
                return Next::Job(key, id);
            }
        }
        head.map_or(Next::NoJob, |(key, id)| Next::Job(key, id))
    }

    /// Returns the first waiting job of a lane that fits an open node, if its key is less than
    /// `limit`.
    fn first_fit(
        &mut self,
        lane: LaneId,
        limit: Option<QueueKey>,
        facts: &Facts,
    ) -> Option<(QueueKey, ShapeId)> {
        let Self { lanes, classes_of, open, reservation, .. } = self;
        let Lane { indexes, shapes, owner, .. } = lanes.get(&lane)?;
        let mut first = None;
        for ix in open.iter() {
            let node = facts.nodes.get(*ix);
            let Some(free) = node.room() else { continue };
            let Some(admitting) = classes_of.get(ix) else { continue };
            let is_kept =
                |kept: &Reservation| kept.node == Some(*ix) && kept.is_kept_from(owner.preemptible);
            let kept = reservation.as_ref().filter(|kept| is_kept(kept));
            let kept = kept.map(|kept| (kept.shape.lane, kept.key, kept.needs()));
            let in_time = |size: &Size| node.leaves_time(size.lasts_ms, facts.now_ms);
            let search = |room: &Size, before: Option<QueueKey>| {
                let mut found = None;
                for index in admitting.iter().filter_map(|id| indexes.get(id)) {
                    let before = found.map_or(before, |(key, _)| Some(key));
                    found = index.no_room.first_fit(room, before, in_time).or(found);
                    let before = found.map_or(before, |(key, _)| Some(key));
                    let fits = |(key, id): &&(QueueKey, ShapeId)| {
                        before.is_none_or(|before| *key < before)
                            && shapes.get(id).is_some_and(|shape| {
                                let needs = &shape.needs;
                                let is_kept = kept.as_ref().is_some_and(|(of, first, kept)| {
                                    (*of != lane || first < key) && kept.shares(needs)
                                });
                                let size = needs.size();
                                size.fits(room)
                                    && in_time(&size)
                                    && node.takes(&needs.place)
                                    && !is_kept
                            })
                    };
                    found = index.picky.iter().find(fits).copied().or(found);
                }
                found
            };
            let before = first.map_or(limit, |(key, _)| Some(key));
            let mut found = search(&Size::lasting(free, u64::MAX), before);
            if let Some(kept) = reservation
                && is_kept(kept)
                && found.is_some_and(|(key, _)| kept.is_before(lane, key))
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
        let Some(shape) = self.shape(id) else { return BinaryHeap::new() };
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
        let shape = self.shape(id)?;
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
        let Self { lanes, reservation, is_reserved, .. } = self;
        let lane = lanes.get(&id.lane)?;
        let shape = lane.shapes.get(&id)?;
        let key = shape.waiting.first()?;
        let node = facts.nodes.get(ix);
        let peers = zones.peers(&shape.needs, key.job(), node);
        let candidate = Candidate::of(ix, node, &shape.needs, peers)?;
        if !node.leaves_time(shape.needs.size().lasts_ms, facts.now_ms) {
            return None;
        }
        if let Some(kept) = reservation
            && kept.node == Some(ix)
            && *is_reserved
            && kept.is_before(id.lane, *key)
            && kept.is_kept_from(lane.owner.preemptible)
        {
            if kept.keeps(&shape.needs) {
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
        self.lanes.get(&id.lane).is_some_and(|lane| lane.heads.contains(&(key, id)))
    }

    /// Records that a task of a job was assigned to a node.
    pub(super) fn on_assigned(&mut self, id: ShapeId, key: QueueKey, ix: NodeIx, task: TaskId) {
        let Some(lane) = self.lanes.get_mut(&id.lane) else { return };
        if let Some(shape) = lane.shapes.get_mut(&id) {
            shape.first_ms = None;
            let cpu_millis = shape.needs.resources.cpu_millis;
            self.shares.add(lane, cpu_millis);
        }
        if let Some(kept) = self.reservation.as_mut().filter(|_| self.is_reserved) {
            kept.on_assigned(id.lane, key, ix, task);
        }
    }

    /// Counts an attempt that was assigned before the manager started.
    pub(crate) fn on_restored(&mut self, id: LaneId, cpu_millis: u32) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            self.shares.add(lane, cpu_millis);
        }
    }

    /// Records that an attempt of a job in a lane has ended.
    pub(crate) fn on_ended(&mut self, id: LaneId, cpu_millis: u32) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            self.shares.take_back(lane, cpu_millis);
        }
    }

    pub(super) fn shape(&self, id: ShapeId) -> Option<&Shape> {
        self.lanes.get(&id.lane)?.shapes.get(&id)
    }

    pub(super) fn shape_mut(&mut self, id: ShapeId) -> Option<&mut Shape> {
        self.lanes.get_mut(&id.lane)?.shapes.get_mut(&id)
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
