//! Why the tasks of a job wait.

use alloc::boxed::Box;
use alloc::vec::Vec;

use podmesh_calendar::Zone;
use podmesh_protocol::ids::{JobId, TaskId};
use podmesh_protocol::limits::ATTEMPTS_PER_NODE_MAX;
use podmesh_protocol::node::{NodeState, Scheduling};
use podmesh_protocol::place::Offer;
use podmesh_protocol::time::Now;
use podmesh_protocol::wait::{FreestNode, TurnView, WaitReason};
use podmesh_protocol::workflow::Condition;

use crate::Core;
use crate::ids::NodeIx;
use crate::jobs::Dispatch;
use crate::nodes::Node;
use crate::placement::{Constraint, Held, Needs, ReservationView};
use crate::queues::queue_of;
use crate::state::{Job, Progress, Stop};

/// The most nodes, or upstream jobs, to name one by one. Of the others only the number is given.
const NODES_NAMED: usize = 5;

/// The conditions, in the order in which they are explained.
const CONDITIONS: [Condition; 4] =
    [Condition::Succeeded, Condition::Each, Condition::Failed, Condition::Ended];

/// Adds what a job waits for: first what has ended in another way than asked.
fn explain_upstream(job: &Job, reasons: &mut Vec<WaitReason>) {
    let blocked = job.unmet().filter_map(|(upstream, dependency)| match dependency.progress {
        Progress::Blocked(ended) => Some((upstream, ended, dependency.when)),
        Progress::Waiting | Progress::Met => None,
    });
    let named = blocked.clone().take(NODES_NAMED);
    reasons.extend(named.map(|(job, ended, when)| WaitReason::Blocked { job, ended, when }));
    let jobs = blocked.count().saturating_sub(NODES_NAMED);
    if jobs > 0 {
        reasons.push(WaitReason::MoreBlocked { jobs });
    }
    for when in CONDITIONS {
        let waiting = job.unmet().filter(|(_, dependency)| {
            dependency.progress == Progress::Waiting && dependency.when == when
        });
        let jobs: Vec<JobId> = waiting.clone().take(NODES_NAMED).map(|(job, _)| job).collect();
        if !jobs.is_empty() {
            let more = waiting.count() - jobs.len();
            reasons.push(WaitReason::Upstream { jobs, more, when });
        }
    }
}

impl Core {
    /// Returns why the queued tasks of a job wait; nothing for a job without queued tasks.
    pub fn explain(&self, now: Now, id: JobId) -> Vec<WaitReason> {
        let Some(job) = self.state.jobs.get(&id) else { return Vec::new() };
        let Some(dispatch) = self.dispatch.get(&id) else { return Vec::new() };
        if job.counts.queued == 0 || job.is_stopping() {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        if let (true, Some(at_ms)) = (dispatch.too_early, job.spec.not_before_ms) {
            let (at, left_ms) = (Zone::utc().format(at_ms), at_ms.saturating_sub(now.wall_ms));
            reasons.push(WaitReason::NotBefore { at, left_ms });
        }
        if dispatch.unmet > 0 {
            explain_upstream(job, &mut reasons);
        }
        let held = dispatch.held.len();
        let backing_off =
            dispatch.waiting.iter().filter(|(_, index)| !dispatch.held.contains_key(index));
        if let Some((due, _)) = backing_off.clone().next() {
            let next_ms = due.saturating_sub(now.mono_ms);
            reasons.push(WaitReason::Retry { tasks: backing_off.count(), next_ms });
        }
        if held > 0 {
            reasons.push(WaitReason::Elsewhere { tasks: held });
        }
        if !job.may_have_more() {
            reasons.push(WaitReason::MaxActive { tasks: job.counts.active });
        }
        if dispatch.has_ready(job) {
            let held = self.queue.held(dispatch.shape);
            let queue = || queue_of(&job.spec).into();
            reasons.extend(held.map(|held| match held {
                Held::Paused => WaitReason::QueuePaused { queue: queue() },
                Held::QueueFull(tasks) => WaitReason::QueueFull { queue: queue(), tasks },
                Held::CallerFull(tasks) => WaitReason::CallerFull { queue: queue(), tasks },
            }));
            if held.is_none() {
                self.explain_placement(job, dispatch, &mut reasons);
            }
        }
        reasons
    }

    fn explain_placement(&self, job: &Job, dispatch: &Dispatch, reasons: &mut Vec<WaitReason>) {
        if self.nodes.len() == 0 {
            return reasons.push(WaitReason::NoNodes);
        }
        let bonds = self.bonds_of(&job.spec);
        let is_torn = bonds.len() > 1;
        reasons.extend(bonds.into_iter().map(|(node, to)| WaitReason::Bound { node, to }));
        if is_torn {
            return;
        }
        let needs = self.needs_of(&job.spec);
        let suited: Vec<(NodeIx, &Node)> =
            self.nodes.iter().filter(|(_, node)| needs.suit(&node.row)).collect();
        if suited.is_empty() {
            return reasons.push(self.explain_unsuited(&needs));
        }
        let away = suited.iter().filter(|(_, node)| node.state != NodeState::Alive);
        reasons.extend(away.clone().take(NODES_NAMED).map(|(_, node)| WaitReason::NodeAway {
            node: node.row.node.clone(),
            lost: node.state == NodeState::Lost,
        }));
        let more = away.count().saturating_sub(NODES_NAMED);
        if more > 0 {
            reasons.push(WaitReason::MoreNodesAway { nodes: more });
        }
        let closed = |scheduling: Scheduling| {
            let nodes = suited.iter().filter(|(_, node)| node.state == NodeState::Alive);
            nodes.filter(|(_, node)| node.row.scheduling == scheduling).count()
        };
        let (cordoned, draining) = (closed(Scheduling::Cordoned), closed(Scheduling::Draining));
        if cordoned + draining > 0 {
            reasons.push(WaitReason::NodesClosed { cordoned, draining });
        }
        let lasts_ms = needs.lasts_ms.unwrap_or(u64::MAX);
        let (alive, closing): (Vec<_>, Vec<_>) = suited
            .into_iter()
            .filter(|(_, node)| node.is_open())
            .partition(|(_, node)| node.leaves_time(lasts_ms, self.now.mono_ms));
        reasons.extend(self.explain_maintenance(&closing));
        if alive.is_empty() {
            return;
        }
        let reservation = self.queue.reservation(&self.facts());
        let lane = dispatch.shape.lane;
        let earlier = reservation.as_ref().filter(|kept| kept.is_before(lane, job.key()));
        reasons.push(self.explain_room(job, &alive, earlier));
        if let Some(turn) = self.queue.turn(dispatch.shape, job.key()) {
            let queue = queue_of(&job.spec).into();
            reasons.push(WaitReason::Turn(Box::new(TurnView { queue, ..turn })));
        }
        if job.spec.rules.preemptible && self.queue.others_wait() {
            reasons.push(WaitReason::Preemptible);
        }
        if let Some(kept) = reservation.filter(|kept| kept.key == job.key()) {
            let node = kept.node.map(|ix| self.nodes.get(ix));
            reasons.extend(node.and_then(|node| self.explain_stops(node)));
            reasons.push(WaitReason::FirstInLine {
                reserved: kept.node.map(|ix| self.nodes.get(ix).row.node.clone()),
                left_ms: kept.left_ms,
                starts: kept.starts,
            });
        }
    }

    /// Returns which of the nodes whose maintenance begins too soon for a task is the first.
    fn explain_maintenance(&self, closing: &[(NodeIx, &Node)]) -> Option<WaitReason> {
        let first = closing.iter().min_by_key(|(_, node)| (node.closes_ms, node.rank));
        first.map(|(_, node)| WaitReason::Maintenance {
            nodes: closing.len(),
            node: node.row.node.clone(),
            left_ms: node.closes_ms.unwrap_or(0).saturating_sub(self.now.mono_ms),
        })
    }

    /// Returns how many tasks of a node make room, if any do.
    fn explain_stops(&self, node: &Node) -> Option<WaitReason> {
        let makes_room = |task: &&TaskId| {
            let job = self.state.jobs.get(&task.job);
            let active = job.and_then(|job| job.active.get(&task.index));
            active.is_some_and(|active| active.stop == Some(Stop::Preempt))
        };
        let tasks = node.attempts.keys().filter(makes_room).count();
        (tasks > 0).then(|| WaitReason::MakingRoom { node: node.row.node.clone(), tasks })
    }

    /// Returns why no node suits. There is at least one node.
    pub(crate) fn explain_unsuited(&self, needs: &Needs) -> WaitReason {
        let nodes = self.nodes.len();
        let Constraint { runtime, labels, nodes: bound } = &needs.constraint;
        let all = self.nodes.iter().map(|(_, node)| node);
        let all = all.filter(|node| bound.iter().all(|name| *name == node.row.node));
        let fit: Vec<&Node> = all.filter(|node| node.row.runtimes.contains(runtime)).collect();
        if fit.is_empty() {
            return WaitReason::NoNodeWithRuntime { runtime: *runtime, nodes };
        }
        for (label, value) in labels {
            if !fit.iter().any(|node| node.row.label(label) == Some(value)) {
                let (label, value) = (label.clone(), value.clone());
                return WaitReason::NoNodeWithLabel { label, value, runtime: *runtime, nodes };
            }
        }
        let labelled: Vec<&Node> =
            fit.into_iter().filter(|node| needs.constraint.admits(&node.row)).collect();
        let Some(largest) = labelled.iter().max_by_key(|node| node.row.capacity.cpu_millis) else {
            return WaitReason::NoNodeWithLabels { labels: labels.clone(), nodes };
        };
        let wanted = needs.resources;
        if wanted.cpu_millis > largest.row.capacity.cpu_millis {
            return WaitReason::TooManyCpus {
                wanted_millis: wanted.cpu_millis,
                largest: largest.row.node.clone(),
                largest_millis: largest.row.capacity.cpu_millis,
            };
        }
        match labelled.iter().max_by_key(|node| node.row.capacity.memory_bytes) {
            Some(largest) if wanted.memory_bytes > largest.row.capacity.memory_bytes => {
                WaitReason::TooMuchMemory {
                    wanted_bytes: wanted.memory_bytes,
                    largest: largest.row.node.clone(),
                    largest_bytes: largest.row.capacity.memory_bytes,
                }
            }
            _ => match Self::lacking_offer(needs, &labelled) {
                Some(reason) => reason,
                None => WaitReason::TooLarge { wanted },
            },
        }
    }

    /// Returns the first named resource of which no node offers enough.
    fn lacking_offer(needs: &Needs, nodes: &[&Node]) -> Option<WaitReason> {
        needs.place.resources.iter().find_map(|(name, millis)| {
            let offers = nodes.iter().filter_map(|node| node.row.resources.get(name));
            if offers.clone().any(|offer| offer.suits(*millis)) {
                return None;
            }
            let most_millis = offers.map(Offer::millis).max().unwrap_or(0);
            Some(WaitReason::TooFew { resource: name.clone(), wanted_millis: *millis, most_millis })
        })
    }

    /// Returns why nodes with enough cores and memory do not take a task: what else it needs is in
    /// use.
    fn explain_picky(job: &Job, with_room: &[&(NodeIx, &Node)]) -> Option<WaitReason> {
        let rules = &job.spec.place;
        let (_, first) = with_room.first()?;
        let nodes = with_room.len();
        if with_room.iter().any(|(_, node)| node.takes(rules)) {
            return None;
        }
        Some(match first.in_use.lacking(&first.row.resources, rules) {
            Some((resource, wanted_millis)) => {
                WaitReason::InUse { resource: resource.clone(), wanted_millis, nodes }
            }
            None => WaitReason::NotEmpty { nodes },
        })
    }

    /// Returns why none of the suitable nodes that are alive takes a task. There is at least one.
    fn explain_room(
        &self,
        job: &Job,
        alive: &[(NodeIx, &Node)],
        reservation: Option<&ReservationView>,
    ) -> WaitReason {
        let with_room: Vec<&(NodeIx, &Node)> =
            alive.iter().filter(|(_, node)| node.has_room(&job.spec.resources)).collect();
        if job.spec.place.is_picky()
            && let Some(reason) = Self::explain_picky(job, &with_room)
        {
            return reason;
        }
        match (with_room.as_slice(), reservation) {
            ([(ix, node)], Some(kept)) if kept.node == Some(*ix) => WaitReason::Reserved {
                node: node.row.node.clone(),
                first: kept.key.job(),
                left_ms: kept.left_ms,
                starts: kept.starts,
            },
            ([], _) => {
                let most = alive.iter().map(|(_, node)| node).max_by_key(|node| {
                    let free = node.free();
                    (free.cpu_millis, free.memory_bytes, core::cmp::Reverse(node.rank))
                });
                let freest = most.map(|node| FreestNode {
                    node: node.row.node.clone(),
                    free: node.free(),
                    full: node.attempts.len() >= ATTEMPTS_PER_NODE_MAX,
                });
                WaitReason::Busy { nodes: alive.len(), freest }
            }
            _ => WaitReason::PlacedNext,
        }
    }
}
