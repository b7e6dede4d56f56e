//! Which task goes to which node.
//!
//! Jobs wait in order of priority and arrival. Those that ask for the same (runtime, resources,
//! labels) share a [`Shape`]: once it finds no room, none of its jobs is looked at again before
//! a node of its gains room. The first job that has to wait for room keeps the node on which it
//! will fit soonest: later jobs get nothing there, so that small ones cannot starve a large one.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use podmesh_protocol::client::NodeState;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name, TaskId};
use podmesh_protocol::limits::ATTEMPTS_PER_NODE_MAX;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_protocol::time::Now;

use crate::Core;
use crate::faults::planted;
use crate::jobs::Live;
use crate::nodes::{Node, NodeIx, Nodes};
use crate::step::{Change, NodeRow, Step};

/// A job's place in the queue: higher priority first, then order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueKey(Reverse<i32>, JobId);

impl QueueKey {
    pub(crate) fn new(priority: i32, job: JobId) -> Self {
        Self(Reverse(priority), job)
    }

    pub(crate) fn job(self) -> JobId {
        self.1
    }
}

/// What a task asks of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Needs {
    pub(crate) runtime: RuntimeKind,
    pub(crate) resources: Resources,
    pub(crate) require: BTreeMap<Name, String>,
}

impl Needs {
    pub(crate) fn of(spec: &JobSpec) -> Self {
        Self {
            runtime: spec.run.runtime.kind(),
            resources: spec.resources,
            require: spec.require.clone(),
        }
    }

    /// Whether a node could take such a task if it were empty.
    pub(crate) fn suit(&self, node: &NodeRow) -> bool {
        node.runtimes.contains(&self.runtime)
            && self.resources.fits(&node.capacity)
            && self.require.iter().all(|(label, value)| node.labels.get(label) == Some(value))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShapeId(u64);

/// Jobs with the same needs.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) needs: Arc<Needs>,
    /// How many jobs have it, waiting or not.
    pub(crate) jobs: usize,
    /// The jobs that have tasks to place.
    pub(crate) waiting: BTreeSet<QueueKey>,
    /// The nodes that suit, alive or not.
    pub(crate) suited: BTreeSet<NodeIx>,
    filed: Filed,
}

/// Where a shape stands, with the key of its first job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filed {
    /// It has nothing to place.
    Idle,
    /// To be looked at.
    Head(QueueKey),
    /// No node has room for it.
    NoRoom(QueueKey),
    /// No node that is alive suits it.
    Nowhere(QueueKey),
}

/// What is kept free for the first job that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) key: QueueKey,
    pub(crate) node: NodeIx,
}

impl Reservation {
    /// The node that the job at `key` may not use.
    fn forbids(this: Option<Self>, key: QueueKey) -> Option<NodeIx> {
        this.filter(|reservation| reservation.key < key).map(|reservation| reservation.node)
    }
}

/// The jobs that have tasks to place, by shape.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    shapes: BTreeMap<ShapeId, Shape>,
    by_needs: BTreeMap<Arc<Needs>, ShapeId>,
    last_shape: u64,
    heads: BTreeSet<(QueueKey, ShapeId)>,
    no_room: BTreeSet<(QueueKey, ShapeId)>,
    reservation: Option<Reservation>,
    /// Nodes that have gained room since the last look.
    gained: BTreeSet<NodeIx>,
}

impl Queue {
    /// The shape of a job, which [`Queue::release`] gives back.
    pub(crate) fn intern(&mut self, spec: &JobSpec, nodes: &Nodes) -> ShapeId {
        let needs = Arc::new(Needs::of(spec));
        if let Some(id) = self.by_needs.get(&needs)
            && let Some(shape) = self.shapes.get_mut(id)
        {
            shape.jobs += 1;
            return *id;
        }
        self.last_shape += 1;
        let id = ShapeId(self.last_shape);
        let suited =
            nodes.iter().filter(|(_, node)| needs.suit(&node.row)).map(|(ix, _)| ix).collect();
        let shape = Shape {
            needs: Arc::clone(&needs),
            jobs: 1,
            waiting: BTreeSet::new(),
            suited,
            filed: Filed::Idle,
        };
        self.shapes.insert(id, shape);
        self.by_needs.insert(needs, id);
        id
    }

    pub(crate) fn release(&mut self, id: ShapeId) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        shape.jobs -= 1;
        if shape.jobs == 0
            && let Some(shape) = self.shapes.remove(&id)
        {
            self.by_needs.remove(&shape.needs);
        }
    }

    /// A job has tasks to place.
    pub(crate) fn add(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if shape.waiting.insert(key) && shape.waiting.first() == Some(&key) {
            // An earlier job may have a reservation that the later ones had to spare.
            self.file(id, Filed::Head);
        }
    }

    /// A job has no more tasks to place.
    pub(crate) fn remove(&mut self, id: ShapeId, key: QueueKey) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if !shape.waiting.remove(&key) {
            return;
        }
        match shape.filed {
            Filed::Idle => {}
            Filed::Head(_) => self.file(id, Filed::Head),
            Filed::NoRoom(_) => self.file(id, Filed::NoRoom),
            Filed::Nowhere(_) => self.file(id, Filed::Nowhere),
        }
    }

    /// Moves a shape to where it stands now, under the key of its present first job.
    fn file(&mut self, id: ShapeId, to: fn(QueueKey) -> Filed) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        let filed = shape.waiting.first().map_or(Filed::Idle, |key| to(*key));
        if filed == shape.filed {
            return;
        }
        match std::mem::replace(&mut shape.filed, filed) {
            Filed::Head(key) => _ = self.heads.remove(&(key, id)),
            Filed::NoRoom(key) => _ = self.no_room.remove(&(key, id)),
            Filed::Idle | Filed::Nowhere(_) => {}
        }
        match filed {
            Filed::Head(key) => _ = self.heads.insert((key, id)),
            Filed::NoRoom(key) => _ = self.no_room.insert((key, id)),
            Filed::Idle | Filed::Nowhere(_) => {}
        }
    }

    /// Whether some jobs have not been looked at.
    pub(crate) fn has_heads(&self) -> bool {
        !self.heads.is_empty()
    }

    pub(crate) fn reservation(&self) -> Option<Reservation> {
        self.reservation
    }

    pub(crate) fn shape(&self, id: ShapeId) -> Option<&Shape> {
        self.shapes.get(&id)
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (ShapeId, &Shape)> {
        self.shapes.iter().map(|(id, shape)| (*id, shape))
    }

    /// Every shape stands where it belongs; and where none is left to be looked at, none fits.
    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_filed(&self, nodes: &Nodes) {
        let (mut heads, mut no_room) = (BTreeSet::new(), BTreeSet::new());
        for (id, shape) in &self.shapes {
            let first = shape.waiting.first().copied();
            let forbidden = first.and_then(|key| Reservation::forbids(self.reservation, key));
            let fits = !shape.candidates(nodes, forbidden).is_empty();
            match shape.filed {
                Filed::Idle => assert_eq!(first, None),
                Filed::Head(key) => {
                    assert_eq!(first, Some(key));
                    heads.insert((key, *id));
                }
                Filed::NoRoom(key) => {
                    assert_eq!(first, Some(key));
                    assert!(!fits, "shape {id:?} fits, and is not looked at");
                    no_room.insert((key, *id));
                }
                Filed::Nowhere(key) => {
                    assert_eq!(first, Some(key));
                    assert!(shape.soonest(nodes).is_none(), "shape {id:?} suits a living node");
                }
            }
        }
        assert_eq!((&self.heads, &self.no_room), (&heads, &no_room));
        assert!(self.gained.is_empty());
        if let (Some(kept), Some((key, _))) = (self.reservation, no_room.first()) {
            assert_eq!(kept.key, *key, "the first job that waits has the reservation");
        }
        assert_eq!(self.reservation.is_some(), !no_room.is_empty());
    }

    /// Something on the node has ended.
    pub(crate) fn gain(&mut self, ix: NodeIx) {
        self.gained.insert(ix);
    }

    /// A node has a session, offers something else than before, or is alive again.
    pub(crate) fn node_changed(&mut self, ix: NodeIx, nodes: &Nodes) {
        let row = &nodes.get(ix).row;
        let mut look = Vec::new();
        for (id, shape) in &mut self.shapes {
            if shape.needs.suit(row) {
                shape.suited.insert(ix);
                look.push(*id);
            } else {
                shape.suited.remove(&ix);
            }
        }
        for id in look {
            self.file(id, Filed::Head);
        }
    }

    /// Looks again at the shapes that may now fit this node. Whether there were any.
    fn wake(&mut self, ix: NodeIx, nodes: &Nodes) -> bool {
        let node = nodes.get(ix);
        let woken: Vec<ShapeId> = self
            .no_room
            .iter()
            .filter(|(key, id)| {
                Reservation::forbids(self.reservation, *key) != Some(ix)
                    && self.shapes.get(id).is_some_and(|shape| {
                        node.has_room(&shape.needs.resources) && shape.suited.contains(&ix)
                    })
            })
            .map(|(_, id)| *id)
            .collect();
        for id in &woken {
            self.file(*id, Filed::Head);
        }
        !woken.is_empty()
    }

    /// Finds the first job that waits for room, and what is to be kept free for it.
    fn renew_reservation(&mut self, nodes: &Nodes) {
        loop {
            let mut renewed = None;
            while let Some((key, id)) = self.no_room.first().copied() {
                let node = self.shapes.get(&id).and_then(|shape| shape.soonest(nodes));
                if let Some(node) = node {
                    renewed = Some(Reservation { key, node });
                    break;
                }
                self.file(id, Filed::Nowhere);
            }
            let old = std::mem::replace(&mut self.reservation, renewed);
            // What was kept is so no more, or only for jobs that come later.
            let freed = old
                .filter(|old| renewed.is_none_or(|new| new.node != old.node || new.key > old.key));
            if !freed.is_some_and(|old| self.wake(old.node, nodes)) {
                return;
            }
        }
    }
}

impl Shape {
    /// The living node that is nearest to having room: of what it lacks most, it has most.
    fn soonest(&self, nodes: &Nodes) -> Option<NodeIx> {
        let needs = &self.needs.resources;
        let share = |free: u64, need: u64| match need {
            0 => SHARE,
            need => u128::from(free).saturating_mul(SHARE) / u128::from(need),
        };
        let nearness = |node: &Node| {
            let free = node.free();
            let slots =
                (ATTEMPTS_PER_NODE_MAX - node.attempts.len().min(ATTEMPTS_PER_NODE_MAX)) as u64;
            share(u64::from(free.cpu_millis), u64::from(needs.cpu_millis))
                .min(share(free.memory_bytes, needs.memory_bytes))
                .min(share(slots, 1))
        };
        self.suited
            .iter()
            .map(|ix| (*ix, nodes.get(*ix)))
            .filter(|(_, node)| node.state == NodeState::Alive)
            .max_by_key(|(_, node)| (nearness(node), Reverse(node.rank)))
            .map(|(ix, _)| ix)
    }

    /// The nodes with room for it now, those with the most room first.
    fn candidates(&self, nodes: &Nodes, forbidden: Option<NodeIx>) -> BinaryHeap<Candidate> {
        self.suited
            .iter()
            .filter(|ix| Some(**ix) != forbidden)
            .filter_map(|ix| Candidate::of(*ix, nodes.get(*ix), &self.needs.resources))
            .collect()
    }
}

/// One whole, in shares of what is needed.
const SHARE: u128 = 1 << 32;

/// A node that has room, with what would be left there. The greatest is the best.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    cpu: Fraction,
    memory: Fraction,
    attempts: Reverse<usize>,
    rank: Reverse<usize>,
    node: NodeIx,
}

impl Candidate {
    fn of(ix: NodeIx, node: &Node, needs: &Resources) -> Option<Self> {
        if !node.has_room(needs) {
            return None;
        }
        let (free, capacity) = (node.free(), &node.row.capacity);
        Some(Self {
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
        self.cpu
            .compare(&other.cpu)
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

/// A part of a whole; of nothing, nothing.
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

impl Core {
    /// Gives nodes what they have room for, as far as the step has room for it.
    pub(crate) fn place(&mut self, now: Now, out: &mut Step) {
        for ix in std::mem::take(&mut self.queue.gained) {
            self.queue.wake(ix, &self.nodes);
        }
        self.queue.renew_reservation(&self.nodes);
        // The candidates, and for which shape and without which node they are.
        let mut candidates = BinaryHeap::new();
        let mut are_for = None;
        while self.has_room(out) {
            let Some((key, id)) = self.queue.heads.first().copied() else { return };
            let Some(shape) = self.queue.shapes.get(&id) else { return };
            let forbidden = Reservation::forbids(self.queue.reservation, key);
            if are_for != Some((id, forbidden)) {
                candidates = shape.candidates(&self.nodes, forbidden);
                are_for = Some((id, forbidden));
            }
            let Some(best) = candidates.pop() else {
                self.queue.file(id, Filed::NoRoom);
                self.queue.renew_reservation(&self.nodes);
                are_for = None;
                continue;
            };
            let resources = shape.needs.resources;
            self.assign(now, key, best.node, out);
            candidates.extend(Candidate::of(best.node, self.nodes.get(best.node), &resources));
        }
    }

    /// Gives a node the next task of a job.
    fn assign(&mut self, now: Now, key: QueueKey, ix: NodeIx, out: &mut Step) {
        let Some(job) = self.jobs.get_mut(&key.job()) else { return };
        let Some((index, tried)) = job.pop_ready() else {
            // Cannot be; but a job that stayed at the head of the queue would hold up all.
            return self.queue.remove(job.shape, key);
        };
        let number = tried.number + 1;
        let attempt = job.attempt_id(index, number);
        job.counts.queued -= 1;
        job.counts.active += 1;
        job.started_wall_ms.get_or_insert(now.wall_ms);
        let node = self.nodes.get_mut(ix);
        debug_assert!(node.has_room(&job.spec.resources), "a node is never over-committed");
        let mut takes = job.spec.resources;
        if planted!(self, RoomNotBooked) {
            takes.cpu_millis = 0;
        }
        node.take(TaskId { job: job.id, index }, &takes);
        let name = node.row.node.clone();
        if let Some(session) = &mut node.session {
            if job.told.insert(ix, session.epoch) != Some(session.epoch) {
                session.outgoing.specs.push(job.id);
            }
            session.outgoing.starts.push(attempt);
            self.touched.insert(ix);
        }
        job.live.insert(
            index,
            Live {
                number,
                lost: tried.lost,
                node: ix,
                state: AttemptState::Assigned,
                sent_ms: Some(now.mono_ms),
                heard: false,
            },
        );
        if !job.has_ready() {
            self.queue.remove(job.shape, key);
        }
        out.changes.push(Change::AttemptInserted {
            attempt,
            node: name.clone(),
            wall_ms: now.wall_ms,
        });
        out.events.push(EventFact::AttemptAssigned(attempt, name));
        self.mark_dirty(key.job());
        self.expect_reaction(now, ix);
    }
}
