//! Invariants that hold after every step, checked in tests.

use alloc::collections::{BTreeMap, BTreeSet};

use podmesh_protocol::ids::TaskId;
use podmesh_protocol::limits::ATTEMPTS_PER_NODE_MAX;
use podmesh_protocol::node::{NodeState, Scheduling};
use podmesh_protocol::report::{AttemptState, JobState};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Millis;

use crate::Core;
use crate::ids::NodeIx;
use crate::in_use::InUse;
use crate::jobs::Dispatch;
use crate::nodes::{Node, Preemptible};
use crate::state::Job;
use crate::timers::Timer;

impl Core {
    /// Panics if parts of the core contradict each other.
    pub fn check_invariants(&self) {
        assert!(self.dirty.is_empty(), "every changed job was saved");
        assert!(self.touched.is_empty(), "every message was sent");
        self.access.check_invariants(&self.state);
        let mut timers = BTreeSet::new();
        let mut by_node: BTreeMap<Option<NodeIx>, BTreeSet<TaskId>> = BTreeMap::new();
        assert!(self.dispatch.keys().eq(self.state.jobs.keys()), "every job is handed out");
        for (id, job) in &self.state.jobs {
            assert_eq!(*id, job.id);
            assert!(*id <= self.state.last_job, "job {id}: its number");
            assert_eq!(self.submissions.get(&job.submission), Some(*id));
            assert!(!self.submissions.has_ended(&job.submission), "job {id}: its submission");
            self.check_job(job, &self.dispatch[id], &mut timers);
            for (index, active) in &job.active {
                let ix = self.nodes.by_name(&active.node);
                assert!(ix.is_some(), "an active attempt is on node {}", active.node);
                let tasks = by_node.entry(ix).or_default();
                tasks.insert(TaskId { job: *id, index: *index });
            }
        }
        assert!(
            self.nodes.iter().map(|(_, node)| &node.row).eq(self.state.nodes.values()),
            "nodes"
        );
        for (ix, node) in self.nodes.iter() {
            let attempts = by_node.remove(&Some(ix)).unwrap_or_default();
            assert!(node.attempts.keys().eq(&attempts), "node {}: its attempts", node.row.node);
            self.check_node(ix, node, &mut timers);
        }
        assert!(by_node.is_empty(), "every active attempt is on a known node");
        let (by_epoch, by_connection) = self.nodes.sessions();
        let sessions = self.nodes.iter().filter(|(_, node)| node.session.is_some()).count();
        assert_eq!((by_epoch.len(), by_connection.len()), (sessions, sessions), "sessions");
        assert_eq!(self.timers.iter().copied().collect::<BTreeSet<_>>(), timers, "timers");
        self.check_queue();
        self.check_queues();
        self.check_measures();
        self.check_bonds();
        self.check_services();
        self.check_schedules();
        self.check_windows();
        self.check_dependents();
    }

    fn check_job(&self, job: &Job, dispatch: &Dispatch, timers: &mut BTreeSet<(Millis, Timer)>) {
        let id = job.id;
        let counts = &job.counts;
        assert!(!job.is_over(), "job {id} has ended and is still here");
        assert!(!dispatch.dirty);
        assert_eq!(counts.total(), job.spec.array.tasks(), "job {id}: all tasks");
        assert_eq!(counts.active as usize, job.active.len(), "job {id}: active tasks");
        let retrying = job.retries.len();
        assert_eq!(
            u64::from(counts.queued),
            job.fresh() + retrying as u64,
            "job {id}: queued tasks"
        );
        let stopped = job.is_stopping() || (job.closed.is_some() && job.rest_cancelled);
        assert!(job.closed.is_none() || stopped, "job {id}: closed");
        let mut seen = BTreeSet::new();
        for index in dispatch.waiting.iter().map(|(_, index)| index).chain(dispatch.ready.keys()) {
            assert!(seen.insert(*index), "task {id}.{index} waits once");
        }
        assert!(job.retries.keys().eq(&seen), "job {id}: the tasks that wait for a retry");
        assert!(dispatch.held.keys().all(|index| seen.contains(index)), "job {id}: held tasks");
        let max = job.spec.rules.max_active.unwrap_or(u32::MAX);
        assert!(counts.active <= max, "job {id}: active tasks");
        timers.extend(dispatch.expires.map(|at| (at, Timer::Expires(id))));
        for retry in job.retries.values() {
            assert!(retry.number > 0 && retry.past.losses.free(OnLost::Requeue) <= retry.number);
        }
        for (index, active) in &job.active {
            assert!(seen.insert(*index), "task {id}.{index} is active or waits");
            let lost = active.past.losses.free(OnLost::Requeue);
            assert!(active.number > lost, "task {id}.{index}: losses");
            assert_ne!(active.state, AttemptState::Ended);
        }
        for index in seen {
            assert!(job.spec.array.contains(index) && u64::from(index) < job.next_index);
        }
        let draining = job.is_stopping() && retrying > 0;
        assert_eq!(self.draining.contains(&id), draining, "job {id}: retries to drop");
        assert_eq!(dispatch.timer, dispatch.waiting.first().map(|(due, _)| *due));
        timers.extend(dispatch.timer.map(|at| (at, Timer::Retries(id))));
        let started =
            job.state() != JobState::Queued || job.next_index == u64::from(job.spec.array.first);
        assert!(started, "job {id} has had attempts and is queued");
    }

    fn check_node(&self, ix: NodeIx, node: &Node, timers: &mut BTreeSet<(Millis, Timer)>) {
        let name = &node.row.node;
        let needs = |task: &TaskId| &self.state.jobs[&task.job].spec.resources;
        let resources = node.attempts.keys().map(needs);
        let cpu: u64 = resources.clone().map(|needs| u64::from(needs.cpu_millis)).sum();
        let memory: u64 = resources.map(|needs| needs.memory_bytes).sum();
        let used = (node.used_cpu_millis, node.used_memory_bytes);
        assert_eq!(used, (cpu, memory), "node {name}: used resources");
        let (mut in_use, mut exclusive) = (InUse::default(), 0);
        let mut preemptible = Preemptible::default();
        for task in node.attempts.keys() {
            let job = &self.state.jobs[&task.job];
            job.active[&task.index].claims.iter().for_each(|claims| in_use.take(claims));
            exclusive += u32::from(job.spec.place.exclusive);
            if job.spec.rules.preemptible {
                preemptible.attempts += 1;
                preemptible.cpu_millis += u64::from(job.spec.resources.cpu_millis);
                preemptible.memory_bytes += job.spec.resources.memory_bytes;
            }
        }
        assert_eq!(node.preemptible, preemptible, "node {name}: what is preemptible");
        assert_eq!((&node.in_use, node.exclusive), (&in_use, exclusive), "node {name}: claims");
        assert!(exclusive == 0 || node.attempts.len() == 1, "node {name}: for itself");
        assert!(node.attempts.len() <= ATTEMPTS_PER_NODE_MAX);
        let epoch = node.session.as_ref().map(|session| session.epoch);
        if let Some(session) = &node.session {
            assert!(session.epoch <= self.state.last_epoch);
            assert_eq!(node.row.epoch, session.epoch);
            assert_eq!(self.nodes.by_session(session.connection, session.epoch), Some(ix));
            assert!(
                !(session.connection_gone && node.state == NodeState::Alive),
                "node {name}: connection"
            );
        }
        let deadline = self.nodes.deadline(ix);
        match (node.state, deadline) {
            (NodeState::Alive, None) => {
                assert!(epoch.is_some(), "node {name} is alive without a session")
            }
            (NodeState::Suspect, None) => assert!(epoch.is_some(), "node {name} has no deadline"),
            (NodeState::Suspect, Some((_, Timer::NodeLost(of)))) => {
                assert!(epoch.is_none() && of == ix, "node {name} has a deadline and a session");
            }
            (NodeState::Lost, None) => assert!(epoch.is_none()),
            (NodeState::Lost, Some((_, Timer::Requeue(of)))) => {
                assert!(epoch.is_none() && of == ix)
            }
            (state, deadline) => unreachable!("node {name} is {state:?} with {deadline:?}"),
        }
        timers.extend(deadline);
        assert!(
            node.resend_ms.is_none() || epoch.is_some(),
            "node {name}: a resend timer without a session"
        );
        timers.extend(node.resend_ms.map(|at| (at, Timer::Resend(ix))));
        timers.extend(node.drain_due_ms.map(|at| (at, Timer::DrainDue(ix))));
        let is_draining = node.row.scheduling == Scheduling::Draining;
        assert!(
            is_draining || (node.row.drain.is_none() && node.drain_due_ms.is_none()),
            "node {name}: its drain"
        );
        let awaited = epoch.is_some()
            && node.attempts.values().any(|delivery| delivery.sent_ms.is_some() && !delivery.heard);
        assert!(
            !awaited || node.resend_ms.is_some(),
            "node {name}: a start without a resend timer"
        );
    }

    fn check_queue(&self) {
        let mut jobs = BTreeMap::new();
        for (id, dispatch) in &self.dispatch {
            let job = &self.state.jobs[id];
            let (count, waiting) = jobs.entry(dispatch.shape).or_insert((0, BTreeSet::new()));
            *count += 1;
            if dispatch.has_ready(job) {
                waiting.insert(job.key());
            }
        }
        for (id, shape) in self.queue.shapes() {
            let (count, waiting) = jobs.remove(&id).unwrap_or_default();
            assert_eq!((shape.jobs, &shape.waiting), (count, &waiting), "shape {id:?}: its jobs");
        }
        assert!(jobs.is_empty(), "every job has a shape");
        self.queue.check(&self.facts());
    }
}
