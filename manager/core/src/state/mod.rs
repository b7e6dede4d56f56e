//! Everything durable that still matters, as one value.
//!
//! [`State::apply`] is the only way in which it changes. The core applies each [`Change`] when it
//! decides it. The store writes the same changes as rows, and loading the rows gives an equal
//! state, after any history. Everything else in the core (the queue, sessions, leases, timers) is
//! derived from the state, and is built anew after a start.

mod change;
mod index_set;
mod job;
mod rows;
mod schedule;
mod service;
mod upstream;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::ids::{ClusterId, Epoch, JobId, Name, Revision};
#[cfg(any(test, feature = "invariants"))]
use podmesh_protocol::queue::DEFAULT_QUEUE;
use serde::{Deserialize, Serialize};

pub use self::change::Change;
pub use self::index_set::IndexSet;
pub use self::job::{ActiveAttempt, Closed, EndedTask, Job, Losses, Past, Retry, Stop, failed};
pub use self::rows::{
    Drain, JobRow, KeyRow, Maintenance, NodeRow, QueueRow, ScheduleRunRow, TokenRow, VolumeRow,
};
pub use self::schedule::{Schedule, ScheduleProgress, WaitingRun};
pub use self::service::{Failures, ReplicaStatus, Service, ServicePhase, Update};
pub use self::upstream::{Dependency, Progress, Upstream, UpstreamFact};

/// The version of the serialized forms of [`State`] and [`Change`].
const VERSION: u32 = 1;

/// A [`State`] or [`Change`]s for another process, with the version of their form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    version: u32,
    value: T,
}

impl<T> Versioned<T> {
    /// Wraps a value of this version.
    pub fn new(value: T) -> Self {
        Self { version: VERSION, value }
    }

    /// Returns the value.
    ///
    /// # Errors
    /// The version, if it is not the one that this program knows.
    pub fn into_value(self) -> Result<T, u32> {
        if self.version == VERSION { Ok(self.value) } else { Err(self.version) }
    }
}

/// The durable state of a manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The cluster of this manager.
    pub cluster: ClusterId,
    /// The highest job number that was given out; 0 if there was none.
    pub last_job: JobId,
    /// The epoch of the last session; 0 if there was none.
    pub last_epoch: Epoch,
    /// The revision of the last event; 0 if there was none.
    pub last_revision: Revision,
    /// The number of the last join token; 0 if there was none.
    pub last_token: TokenId,
    /// The last saved time of the [age clock](crate::input::Input::RetentionDue), in milliseconds.
    pub age_ms: u64,
    /// The jobs that have not ended. Boxed, because nodes of the map are half empty.
    pub jobs: BTreeMap<JobId, Box<Job>>,
    /// The services.
    pub services: BTreeMap<Name, Arc<Service>>,
    /// The schedules.
    #[serde(default)]
    pub schedules: BTreeMap<Name, Schedule>,
    /// The queues whose settings somebody has changed.
    #[serde(default)]
    pub queues: BTreeMap<Name, QueueRow>,
    /// The named volumes.
    #[serde(default)]
    pub volumes: BTreeMap<Name, VolumeRow>,
    /// The known nodes.
    pub nodes: BTreeMap<Name, Arc<NodeRow>>,
    /// The join tokens.
    pub tokens: BTreeMap<TokenId, TokenRow>,
    /// Every key that has joined and was not removed.
    pub keys: BTreeMap<PublicKey, KeyRow>,
}

impl State {
    /// Returns the state of a new manager.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            last_job: JobId(0),
            last_epoch: Epoch(0),
            last_revision: Revision(0),
            last_token: TokenId(0),
            age_ms: 0,
            jobs: BTreeMap::new(),
            services: BTreeMap::new(),
            schedules: BTreeMap::new(),
            queues: BTreeMap::new(),
            volumes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Applies one change. A change of something that does not exist has no effect: the core
    /// decides no such changes, and the store refuses them.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::JobInserted { job, submission, spec, by, wall_ms } => {
                self.last_job = self.last_job.max(*job);
                let new = Job::new(*job, *submission, Arc::clone(spec), by.clone(), *wall_ms);
                self.jobs.insert(*job, Box::new(new));
            }
            Change::JobClosed(job, closed) => self.change(*job, |job| job.close(*closed)),
            Change::JobReopened(job) => _ = self.jobs.insert(job.id, job.clone()),
            Change::TaskRequeued { job, task } => self.change(*job, |job| job.requeue(task)),
            Change::RestRequeued { job, wall_ms } => {
                self.change(*job, |job| job.requeue_rest(*wall_ms));
            }
            Change::DependencyChanged { job, upstream, progress, starts_wall_ms } => {
                self.change(*job, |job| {
                    job.change_dependency(*upstream, *progress, *starts_wall_ms)
                });
            }
            Change::TasksReleased { job, upstream, tasks } => {
                self.change(*job, |job| job.release_tasks(*upstream, *tasks));
            }
            Change::JobUpdated(row) if row.state.is_end() => _ = self.jobs.remove(&row.job),
            // The changes of its tasks have made the job what this row says.
            Change::JobUpdated(row) => {
                debug_assert_eq!(
                    self.jobs.get(&row.job).map(|job| job.row(None)).as_ref(),
                    Some(row)
                );
            }
            Change::JobRemoved(job) => _ = self.jobs.remove(job),
            Change::AttemptInserted { attempt, node, wall_ms, claims } => {
                self.change(attempt.task.job, |job| {
                    job.insert(*attempt, node.clone(), *wall_ms, claims.clone());
                });
            }
            Change::AttemptAdvanced { attempt, state, .. } => {
                self.change(attempt.task.job, |job| job.advance(*attempt, *state));
            }
            Change::AttemptStopping { attempt, stop } => {
                self.change(attempt.task.job, |job| job.stop(*attempt, *stop));
            }
            Change::AttemptEnded { attempt, outcome, wall_ms, retry_after_ms } => {
                self.change(attempt.task.job, |job| {
                    job.end(*attempt, outcome.kind, *wall_ms, *retry_after_ms);
                });
            }
            Change::RetryDropped { attempt } => {
                self.change(attempt.task.job, |job| job.drop_retry(*attempt));
            }
            Change::ReplicaChanged { attempt, status } => {
                self.change(attempt.task.job, |job| job.set_status(*attempt, status));
            }
            Change::ServiceSaved { service, saved } => {
                self.services.insert(service.clone(), Arc::clone(saved));
            }
            Change::ServiceRemoved(service) => _ = self.services.remove(service),
            // The state has only the current revision; the history is in the database.
            Change::RevisionSaved { .. } | Change::RevisionEnded { .. } => {}
            Change::ScheduleSaved { schedule, saved } => {
                self.schedules.insert(schedule.clone(), saved.clone());
            }
            Change::ScheduleAdvanced { schedule, progress, .. } => {
                if let Some(saved) = self.schedules.get_mut(schedule) {
                    saved.progress = progress.clone();
                }
            }
            Change::ScheduleRemoved(schedule) => _ = self.schedules.remove(schedule),
            Change::QueueSaved { queue, row } => {
                self.queues.insert(queue.clone(), row.clone());
            }
            Change::QueueRemoved(queue) => _ = self.queues.remove(queue),
            Change::VolumeSaved { volume, row } => {
                self.volumes.insert(volume.clone(), row.clone());
            }
            Change::VolumeRemoved(volume) => _ = self.volumes.remove(volume),
            Change::NodeSaved(row) => _ = self.nodes.insert(row.node.clone(), Arc::clone(row)),
            Change::NodeForgotten(node) => _ = self.nodes.remove(node),
            Change::EpochTaken(epoch) => self.last_epoch = self.last_epoch.max(*epoch),
            Change::TokenSaved(row) => {
                self.last_token = self.last_token.max(row.id);
                self.tokens.insert(row.id, row.clone());
            }
            Change::TokenRemoved(id) => _ = self.tokens.remove(id),
            Change::KeySaved(row) => _ = self.keys.insert(row.key, row.clone()),
            Change::KeyRemoved(key) => _ = self.keys.remove(key),
            Change::AgeSaved(age_ms) => self.age_ms = *age_ms,
        }
    }

    /// Panics if no task of a job may start now because of its queue.
    #[cfg(any(test, feature = "invariants"))]
    pub fn check_start(&self, id: JobId) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.spec.run.replica.is_none()) else {
            return;
        };
        let of =
            |job: &Job| job.spec.rules.queue.as_ref().map_or(DEFAULT_QUEUE, Name::as_str).into();
        let queue: alloc::string::String = of(job);
        let Some((_, row)) = self.queues.iter().find(|(name, _)| name.as_str() == queue) else {
            return;
        };
        assert!(!row.paused, "job {id}: a task starts although the queue {queue} is paused");
        let others = self.jobs.values().filter(|job| job.spec.run.replica.is_none());
        let others = others.filter(|job| of(job) == queue);
        let active: u32 = others.clone().map(|job| job.counts.active).sum();
        assert!(row.max_active.is_none_or(|max| active < max), "job {id}: {queue} is full");
        let own =
            others.filter(|other| other.by == job.by).map(|job| job.counts.active).sum::<u32>();
        let max = row.max_active_per_caller;
        assert!(max.is_none_or(|max| own < max), "job {id}: its caller has enough of {queue}");
    }

    fn change(&mut self, job: JobId, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get_mut(&job) {
            change(job);
        }
    }
}
