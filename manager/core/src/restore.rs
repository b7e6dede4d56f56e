//! Builds what is derived from the state after a start.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use podmesh_protocol::ids::JobId;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::time::Now;

use crate::access::Access;
use crate::bonds::Bonds;
use crate::ids::NodeIx;
use crate::jobs::Submissions;
use crate::maintenance::Windows;
use crate::measures::{Counted, Measures};
use crate::nodes::{Delivery, Nodes};
use crate::placement::Queue;
use crate::recorded::Recorded;
use crate::schedules::Schedules;
use crate::services::Services;
use crate::state::State;
use crate::timers::{Timer, Timers};
use crate::upstream::Dependents;
use crate::{Core, CoreConfig};

impl Core {
    /// Returns the core that continues from a state. No node has a session: each is suspect for
    /// the length of a lease, and then lost.
    ///
    /// The state must be the result of [`Change`](crate::state::Change)s. An attempt on a node that
    /// is not in the state is left out, with an error in the log.
    pub fn new(now: Now, config: CoreConfig, state: State) -> Self {
        let mut core = Self {
            config,
            access: Access::new(&state),
            state: Recorded::new(state),
            now,
            dispatch: BTreeMap::new(),
            submissions: Submissions::default(),
            nodes: Nodes::default(),
            services: Services::default(),
            schedules: Schedules::default(),
            windows: Windows::default(),
            dependents: Dependents::default(),
            queue: Queue::default(),
            bonds: Bonds::default(),
            volume_failures: BTreeMap::new(),
            timers: Timers::default(),
            backlog: VecDeque::new(),
            draining: BTreeSet::new(),
            dirty: Vec::new(),
            touched: BTreeSet::new(),
            measures: Measures::default(),
            #[cfg(feature = "planted-faults")]
            fault: None,
        };
        core.nodes.insert_all(core.state.nodes.values().cloned());
        let all: Vec<NodeIx> = core.nodes.iter().map(|(ix, _)| ix).collect();
        let lost_at = now.mono_ms.saturating_add(core.config.lease_ms);
        for ix in all {
            let deadline = Some((lost_at, Timer::NodeLost(ix)));
            core.nodes.set_deadline(&mut core.timers, ix, deadline);
            core.set_drain_timer(now, ix);
            core.set_window(ix);
        }
        for (queue, row) in &core.state.queues {
            core.queue.set_share(queue, row.clone());
        }
        core.restore_services(now);
        let jobs: Vec<JobId> = core.state.jobs.keys().copied().collect();
        for id in jobs {
            core.add_job(id);
            core.restore_tasks(now, id);
            core.count_restored(id);
            core.set_expiry(now, id);
        }
        core.restore_schedules();
        core.settle_bonds();
        core
    }

    /// Lets the totals know a job that is not new, so that its ended tasks are not counted again.
    pub(crate) fn count_restored(&mut self, id: JobId) {
        let (Some(job), Some(dispatch)) = (self.state.jobs.get(&id), self.dispatch.get_mut(&id))
        else {
            return;
        };
        let counted = Counted::of(job);
        dispatch.counted = Some(counted);
        self.measures.totals.add(counted);
    }

    fn restore_tasks(&mut self, now: Now, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(lane) = self.dispatch.get(&id).map(|dispatch| dispatch.shape.lane) else { return };
        for (index, active) in &job.active {
            let attempt = job.attempt_id(*index, active.number);
            let Some(ix) = self.nodes.by_name(&active.node) else {
                tracing::error!(%attempt, node = %active.node, "an attempt refers to a node that is not in the database: the attempt is ignored");
                continue;
            };
            let heard = active.state != AttemptState::Assigned;
            let delivery = Delivery { since_ms: now.mono_ms, sent_ms: None, heard, lane };
            let claims = active.claims.as_deref();
            let (spec, node) = (&job.spec, self.nodes.get_mut(ix));
            node.take(attempt.task, spec, &spec.resources, claims, delivery);
            self.queue.on_restored(lane, spec.resources.cpu_millis);
        }
        let retries = job.retries.iter().map(|(index, retry)| {
            let task = job.attempt_id(*index, retry.number).task;
            (task, retry.remaining_ms(now.wall_ms))
        });
        let retries: Vec<_> = retries.collect();
        if job.is_stopping() && !retries.is_empty() {
            self.draining.insert(id);
        }
        for (task, after_ms) in retries {
            self.queue_retry(now, task, after_ms);
        }
    }
}
