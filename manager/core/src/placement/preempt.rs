//! Stops tasks that are preemptible, so that one that is not has room.
//!
//! The first job that waits for room reserves a node: see [`reservation`](super::reservation). If it is
//! not preemptible, preemptible tasks may run there until it would have room without them. Then their
//! attempts are stopped, the last started first. No attempt is stopped without which a task would have room anyway, and none
//! where stopping all of them would not help. Their tasks are queued again when the agent reports the
//! end.

use alloc::format;
use alloc::vec::Vec;

use podmesh_protocol::ids::{JobId, TaskId};
use podmesh_protocol::limits::{ATTEMPTS_PER_NODE_MAX, END_MARGIN_MS};
use podmesh_protocol::place::Claims;
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::time::{Millis, Now};

use super::lane::Lane;
use super::needs::Needs;
use super::queue::{Facts, Queue};
use crate::Core;
use crate::faults::planted;
use crate::ids::NodeIx;
use crate::in_use::InUse;
use crate::nodes::Node;
use crate::state::Stop;
use crate::step::Step;

/// What a node would have if some of its attempts had ended.
struct Room<'a> {
    node: &'a Node,
    cpu_millis: u64,
    memory_bytes: u64,
    attempts: usize,
    exclusive: u32,
    in_use: InUse,
}

/// What an attempt has of its node.
struct Part<'a> {
    since_ms: Millis,
    task: TaskId,
    spec: &'a JobSpec,
    claims: Option<&'a Claims>,
}

impl<'a> Room<'a> {
    fn of(node: &'a Node) -> Self {
        Self {
            node,
            cpu_millis: node.used_cpu_millis,
            memory_bytes: node.used_memory_bytes,
            attempts: node.attempts.len(),
            exclusive: node.exclusive,
            in_use: node.in_use.clone(),
        }
    }

    fn give_back(&mut self, part: &Part) {
        self.cpu_millis -= u64::from(part.spec.resources.cpu_millis);
        self.memory_bytes -= part.spec.resources.memory_bytes;
        self.attempts -= 1;
        self.exclusive -= u32::from(part.spec.place.exclusive);
        part.claims.iter().for_each(|claims| self.in_use.give_back(claims));
    }

    fn take_again(&mut self, part: &Part) {
        self.cpu_millis += u64::from(part.spec.resources.cpu_millis);
        self.memory_bytes += part.spec.resources.memory_bytes;
        self.attempts += 1;
        self.exclusive += u32::from(part.spec.place.exclusive);
        part.claims.iter().for_each(|claims| self.in_use.take(claims));
    }

    fn fits(&self, needs: &Needs) -> bool {
        let (row, place) = (&self.node.row, &needs.place);
        self.exclusive == 0
            && self.attempts < ATTEMPTS_PER_NODE_MAX
            && (!place.exclusive || self.attempts == 0)
            && self.cpu_millis + u64::from(needs.resources.cpu_millis)
                <= u64::from(row.capacity.cpu_millis)
            && self.memory_bytes + needs.resources.memory_bytes <= row.capacity.memory_bytes
            && self.in_use.has_room(&row.resources, place)
    }

    /// Takes what a task needs, for which there is room.
    fn take(&mut self, needs: &Needs) {
        self.cpu_millis += u64::from(needs.resources.cpu_millis);
        self.memory_bytes += needs.resources.memory_bytes;
        self.attempts += 1;
        self.exclusive += u32::from(needs.place.exclusive);
        let claims = self.in_use.claims(&self.node.row.resources, &needs.place);
        claims.iter().for_each(|claims| self.in_use.take(claims));
    }
}

/// Returns the attempts of a node to stop, so that as many of `tasks` tasks as possible have room.
/// `is_preemptible` says which ones may be.
fn choose(
    node: &Node,
    needs: &Needs,
    tasks: u64,
    is_preemptible: impl Fn(&JobSpec) -> bool,
    facts: &Facts,
) -> Vec<TaskId> {
    let mut room = Room::of(node);
    let mut parts = Vec::new();
    for (task, delivery) in &node.attempts {
        let Some(job) = facts.jobs.get(&task.job) else { continue };
        let Some(active) = job.active.get(&task.index) else { continue };
        let part = Part {
            since_ms: delivery.since_ms,
            task: *task,
            spec: &job.spec,
            claims: active.claims.as_deref(),
        };
        if job.is_stopping() || active.stop.is_some() {
            room.give_back(&part);
        } else if is_preemptible(&job.spec) {
            parts.push(part);
        }
    }
    parts.sort_unstable_by_key(|part| (part.since_ms, part.task));
    let mut chosen = Vec::new();
    for _ in 0..tasks {
        let mut picked = Vec::new();
        while !room.fits(needs) {
            // The last started one has the least work to lose.
            let Some(part) = parts.pop() else { return chosen };
            room.give_back(&part);
            picked.push(part);
        }
        // A later pick may have made an earlier one needless.
        for at in (0..picked.len()).rev() {
            room.take_again(&picked[at]);
            if room.fits(needs) {
                parts.push(picked.remove(at));
            } else {
                room.give_back(&picked[at]);
            }
        }
        chosen.extend(picked.iter().map(|part| part.task));
        room.take(needs);
    }
    chosen
}

impl Queue {
    /// Returns whether jobs that are not preemptible wait for room.
    pub(crate) fn others_wait(&self) -> bool {
        let waits = |lane: &Lane| lane.waits() && self.holds(lane).is_none();
        self.lanes.values().any(|lane| !lane.owner.preemptible && waits(lane))
    }

    /// Returns the job and the node of the reservation, if preemptible attempts there may have to be
    /// stopped.
    fn preempts(&self, facts: &Facts) -> Option<(JobId, NodeIx)> {
        let kept = self.reservation.as_ref()?;
        let ix = kept.node.filter(|_| self.is_reserved && !kept.preempted && !kept.preemptible)?;
        let has_any = facts.nodes.get(ix).preemptible.attempts > 0;
        (has_any || kept.clearing).then_some((kept.key.job(), ix))
    }

    /// Notes that all attempts on the reserved node that must make room have been stopped; `clearing`
    /// if there are some. The node is reserved at least until then.
    fn preempted(&mut self, clearing: bool, until_ms: Millis) {
        let Some(kept) = &mut self.reservation else { return };
        kept.preempted = true;
        kept.until_ms = kept.until_ms.max(until_ms);
        if core::mem::replace(&mut kept.clearing, clearing) && !clearing {
            // Preemptible tasks may use the room again.
            self.open.extend(kept.node);
        }
    }
}

impl Core {
    /// Stops preemptible attempts on the node that is reserved for the first job in line, if that
    /// gives it room.
    pub(crate) fn preempt(&mut self, now: Now, out: &mut Step) {
        let facts = self.facts();
        let Some((id, ix)) = self.queue.preempts(&facts) else { return };
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get(&id) else { return };
        let Some(needs) = self.queue.needs(dispatch.shape) else { return };
        let tasks = dispatch.ready_tasks(job).min(self.queue.allowance(dispatch.shape).into());
        let any = planted!(self, PreemptsAny);
        let may_stop = |spec: &JobSpec| spec.rules.preemptible || any;
        let chosen = choose(self.nodes.get(ix), needs, tasks, may_stop, &facts);
        let why = format!(
            "job {id}, which is not preemptible, needs its room: the task runs again later"
        );
        for task in chosen {
            if !self.has_room(out) {
                return; // The next step goes on.
            }
            self.stop_attempt(task, Stop::Preempt, &why, out);
        }
        let making_room = self.nodes.get(ix).attempts.keys().filter_map(|task| {
            let job = self.state.jobs.get(&task.job)?;
            let stops = job.active.get(&task.index)?.stop == Some(Stop::Preempt);
            stops.then_some(job.spec.run.stop_grace_ms)
        });
        let grace_ms = making_room.max();
        let end_ms = grace_ms.map(|grace_ms| grace_ms.saturating_add(END_MARGIN_MS));
        let until_ms = end_ms.map_or(0, |end_ms| now.mono_ms.saturating_add(end_ms));
        self.queue.preempted(grace_ms.is_some(), until_ms);
    }
}
