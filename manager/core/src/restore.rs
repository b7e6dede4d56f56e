//! Rebuilds the core from the store after a start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use podmesh_protocol::ids::{AttemptId, TaskId};
use podmesh_protocol::report::{AttemptState, JobState};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Now;

use crate::access::Access;
use crate::jobs::{ActiveAttempt, Job, RetryState, Submissions};
use crate::nodes::{NodeIx, Nodes};
use crate::placement::Queue;
use crate::step::{Losses, RestoredJob, Snapshot};
use crate::timers::{Timer, Timers};
use crate::{Core, CoreConfig};

impl Core {
    /// Returns the core in the state that its committed changes describe. No node has a session:
    /// each is suspect for the length of a lease, and then lost.
    ///
    /// The snapshot must be the result of [`Change`](crate::step::Change)s. A row that refers to a
    /// job or node that is not in the snapshot is left out, with an error in the log.
    pub fn new(now: Now, config: CoreConfig, snapshot: Snapshot) -> Self {
        let mut core = Self {
            config,
            cluster: snapshot.cluster,
            last_job: snapshot.last_job,
            last_epoch: snapshot.last_epoch,
            last_revision: snapshot.last_revision,
            now,
            jobs: BTreeMap::new(),
            submissions: Submissions::default(),
            nodes: Nodes::default(),
            access: Access::restore(snapshot.tokens, snapshot.last_token, snapshot.keys),
            queue: Queue::default(),
            timers: Timers::default(),
            backlog: VecDeque::new(),
            draining: BTreeSet::new(),
            dirty: Vec::new(),
            touched: BTreeSet::new(),
            #[cfg(feature = "planted-faults")]
            fault: None,
        };
        core.nodes.insert_all(snapshot.nodes);
        let all: Vec<NodeIx> = core.nodes.iter().map(|(ix, _)| ix).collect();
        let lost_at = now.mono_ms.saturating_add(core.config.lease_ms);
        for ix in all {
            let deadline = Some((lost_at, Timer::NodeLost(ix)));
            core.nodes.set_deadline(&mut core.timers, ix, deadline);
        }
        for job in snapshot.jobs {
            core.restore_job(job);
        }
        for (attempt, node, state) in snapshot.attempts {
            let Some(ix) = core.nodes.by_name(&node) else {
                tracing::error!(%attempt, %node, "an attempt refers to a node that is not in the database: the attempt is ignored");
                continue;
            };
            core.restore_attempt(attempt, ix, state);
        }
        for (attempt, after_ms) in snapshot.retries {
            if !core.jobs.contains_key(&attempt.task.job) {
                tracing::error!(%attempt, "a retry refers to a job that is not in the database: the retry is ignored");
            }
            let retry = RetryState { number: attempt.number, lost: 0, avoid: None };
            core.queue_retry(now, attempt.task, retry, after_ms);
        }
        core.restore_losses(&snapshot.losses);
        let retrying = |job: &&Job| !job.waiting.is_empty() || !job.ready.is_empty();
        for job in core.jobs.values().filter(retrying).filter(|job| job.cancelling) {
            core.draining.insert(job.id);
        }
        core
    }

    /// Restores how many attempts of each task have used no retry: those that were not started and,
    /// in jobs with [`OnLost::Requeue`], those that were lost.
    fn restore_losses(&mut self, losses: &[Losses]) {
        // A map, because both the losses and the tasks can be many.
        let losses: BTreeMap<TaskId, &Losses> =
            losses.iter().map(|losses| (losses.task, losses)).collect();
        if losses.is_empty() {
            return;
        }
        for job in self.jobs.values_mut() {
            let (id, requeues) = (job.id, job.spec.on_lost == OnLost::Requeue);
            let count = |index| match losses.get(&TaskId { job: id, index }) {
                Some(losses) if requeues => losses.not_started + losses.lost,
                Some(losses) => losses.not_started,
                None => 0,
            };
            for (index, active) in &mut job.active {
                active.lost = count(*index).min(active.number - 1);
            }
            for ((_, index), retry) in &mut job.waiting {
                retry.lost = count(*index).min(retry.number);
            }
            for (index, retry) in &mut job.ready {
                retry.lost = count(*index).min(retry.number);
            }
        }
    }

    fn restore_job(&mut self, restored: RestoredJob) {
        let RestoredJob { submission, spec, row } = restored;
        let job = Job {
            id: row.job,
            submission,
            shape: self.queue.intern(&spec, &self.nodes),
            cancelling: row.state == JobState::Cancelling,
            next_index: row.next_index,
            counts: row.counts,
            attempts: row.attempts,
            started_wall_ms: row.started_wall_ms,
            active: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ready: BTreeMap::new(),
            told: BTreeMap::new(),
            timer: None,
            dirty: false,
            spec,
        };
        self.submissions.insert(submission, row.job);
        if job.has_ready() {
            self.queue.add(job.shape, job.key());
        }
        self.jobs.insert(row.job, job);
    }

    fn restore_attempt(&mut self, attempt: AttemptId, ix: NodeIx, state: AttemptState) {
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else {
            tracing::error!(%attempt, "an attempt refers to a job that is not in the database: the attempt is ignored");
            return;
        };
        self.nodes.get_mut(ix).take(attempt.task, &job.spec.resources);
        let active = ActiveAttempt {
            number: attempt.number,
            lost: 0,
            node: ix,
            state,
            since_ms: self.now.mono_ms,
            sent_ms: None,
            heard: state != AttemptState::Assigned,
        };
        job.active.insert(attempt.task.index, active);
    }
}
