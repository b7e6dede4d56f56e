//! What a job waits for: other jobs.

use alloc::collections::BTreeMap;

use podmesh_protocol::ids::JobId;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::workflow::Condition;
use serde::{Deserialize, Serialize};

use super::index_set::IndexSet;

/// The jobs that a job waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The dependencies, by the upstream job.
    pub dependencies: BTreeMap<JobId, Dependency>,
    /// The tasks before the job's `next_index` that have had no attempt: others were released before
    /// them. Only a job that waits for tasks of another one has any.
    pub skipped: IndexSet,
}

/// A dependency of a job on another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// How the upstream job must end.
    pub when: Condition,
    /// How far that has come.
    pub progress: Progress,
    /// With [`Condition::Each`], as long as it is not met: the upstream tasks that have succeeded.
    pub released: IndexSet,
}

/// How far a dependency has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The upstream job has not ended.
    Waiting,
    /// The condition was met. That stays so.
    Met,
    /// The upstream job has ended in this other way. If it goes on, so does the wait.
    Blocked(JobState),
}

impl Progress {
    /// Returns the progress of a dependency whose upstream job has ended.
    pub fn after(when: Condition, end: JobState) -> Self {
        if when.is_met_by(end) { Self::Met } else { Self::Blocked(end) }
    }
}

impl Dependency {
    /// Returns whether it is met.
    pub fn is_met(&self) -> bool {
        self.progress == Progress::Met
    }

    /// Returns whether it holds single tasks back.
    pub(crate) fn holds_tasks(&self) -> bool {
        self.when == Condition::Each && !self.is_met()
    }
}

impl Upstream {
    /// Returns the dependencies of a new job; `None` if it has none.
    pub fn of(spec: &JobSpec) -> Option<Self> {
        let dependencies = spec.after.iter().map(|dependency| {
            let new = Dependency {
                when: dependency.when,
                progress: Progress::Waiting,
                released: IndexSet::default(),
            };
            (dependency.job, new)
        });
        let new = Self { dependencies: dependencies.collect(), skipped: IndexSet::default() };
        (!new.dependencies.is_empty()).then_some(new)
    }

    /// Brings the dependencies that are not met up to what is known of their upstream jobs.
    pub fn update(&mut self, facts: &BTreeMap<JobId, UpstreamFact>) {
        for (upstream, dependency) in &mut self.dependencies {
            let Some(fact) = facts.get(upstream).filter(|_| !dependency.is_met()) else { continue };
            dependency.progress = match fact.ended {
                None => Progress::Waiting,
                Some(ended) => Progress::after(dependency.when, ended),
            };
            dependency.released = match dependency.holds_tasks() {
                true => fact.succeeded.clone(),
                false => IndexSet::default(),
            };
        }
    }

    /// Returns the dependencies that are not met.
    pub fn unmet(&self) -> impl Iterator<Item = (JobId, &Dependency)> + Clone {
        let all = self.dependencies.iter().map(|(job, dependency)| (*job, dependency));
        all.filter(|(_, dependency)| !dependency.is_met())
    }

    /// Returns the tasks without an attempt that may have one, of a job whose first task in order
    /// without one is `next_index`; `None` if that is all of them, in order.
    pub(crate) fn open_tasks(&self, array: ArrayRange, next_index: u64) -> Option<IndexSet> {
        let each = |dependency: &Dependency| dependency.when == Condition::Each;
        if !self.dependencies.values().any(each) {
            return None;
        }
        let mut open = self.skipped.clone();
        if let Ok(first) = u32::try_from(next_index) {
            open.insert(ArrayRange { first, last: array.last });
        }
        for (_, dependency) in self.unmet().filter(|(_, dependency)| each(dependency)) {
            open = open.intersection(&dependency.released);
        }
        Some(open)
    }

    pub(super) fn change(&mut self, upstream: JobId, progress: Progress) {
        if let Some(dependency) = self.dependencies.get_mut(&upstream) {
            dependency.progress = progress;
            if progress == Progress::Met {
                dependency.released = IndexSet::default();
            }
        }
    }

    pub(super) fn release(&mut self, upstream: JobId, tasks: ArrayRange) {
        if let Some(dependency) = self.dependencies.get_mut(&upstream) {
            dependency.released.insert(tasks);
        }
    }
}

/// What the database has of a job that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamFact {
    /// Its tasks.
    pub array: ArrayRange,
    /// Whether it is a replica of a service.
    pub is_replica: bool,
    /// How it has ended, if it has.
    pub ended: Option<JobState>,
    /// The tasks that have succeeded, if its tasks are waited for.
    pub succeeded: IndexSet,
}
