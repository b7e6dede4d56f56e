//! What the core counts for metrics, since the start of the manager. Nothing is decided on it.

use podmesh_protocol::report::{JobState, TaskCounts};
use podmesh_protocol::time::Millis;

use crate::Core;
use crate::state::Job;

/// The upper ends of all but the last interval of [`Durations`], in milliseconds.
pub const BOUNDS_MS: [u64; 15] = [
    1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 60_000, 300_000, 1_800_000, 3_600_000,
    21_600_000, 86_400_000,
];

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How often it took at most the bound with the same index, and more than the one before. The
    /// last number is for all longer times.
    pub counts: [u64; BOUNDS_MS.len() + 1],
    /// The sum of all times, in milliseconds.
    pub sum_ms: u64,
}

impl Durations {
    fn add(&mut self, ms: u64) {
        let interval = BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.counts[interval] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}

/// Jobs that have not ended, and their tasks; and the tasks that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs of which no task has started.
    pub jobs_queued: u64,
    /// Jobs of which tasks have started.
    pub jobs_running: u64,
    /// Jobs that were cancelled and have attempts that have not ended.
    pub jobs_cancelling: u64,
    /// Tasks that wait for room, or for their next attempt.
    pub tasks_queued: u64,
    /// Tasks that a node has an attempt of.
    pub tasks_active: u64,
    /// Tasks that have succeeded since the start.
    pub tasks_succeeded: u64,
    /// Tasks that have failed since the start.
    pub tasks_failed: u64,
    /// Tasks that were cancelled since the start.
    pub tasks_cancelled: u64,
}

/// A job as it is part of [`Totals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    state: JobState,
    counts: TaskCounts,
}

impl Counted {
    pub(crate) fn of(job: &Job) -> Self {
        Self { state: job.state(), counts: job.counts }
    }
}

impl Totals {
    fn jobs(&mut self, state: JobState) -> Option<&mut u64> {
        match state {
            JobState::Queued => Some(&mut self.jobs_queued),
            JobState::Running => Some(&mut self.jobs_running),
            JobState::Cancelling => Some(&mut self.jobs_cancelling),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Expired => {
                None
            }
        }
    }

    /// Adds a job. Its tasks that have ended are not counted: they may have ended before the start.
    pub(crate) fn add(&mut self, job: Counted) {
        if let Some(jobs) = self.jobs(job.state) {
            *jobs += 1;
            self.tasks_queued += u64::from(job.counts.queued);
            self.tasks_active += u64::from(job.counts.active);
        }
    }

    fn remove(&mut self, job: Counted) {
        if let Some(jobs) = self.jobs(job.state) {
            *jobs -= 1;
            self.tasks_queued -= u64::from(job.counts.queued);
            self.tasks_active -= u64::from(job.counts.active);
        }
    }

    /// Replaces a job by what has become of it, and counts the tasks that have ended meanwhile.
    pub(crate) fn replace(&mut self, before: Option<Counted>, now: Counted) {
        if let Some(before) = before {
            self.remove(before);
        }
        self.add(now);
        let before = before.map(|before| before.counts).unwrap_or_default();
        let more = |now: u32, before: u32| u64::from(now.saturating_sub(before));
        self.tasks_succeeded += more(now.counts.succeeded, before.succeeded);
        self.tasks_failed += more(now.counts.failed, before.failed);
        self.tasks_cancelled += more(now.counts.cancelled, before.cancelled);
    }
}

/// What the core counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Jobs and tasks.
    pub totals: Totals,
    /// How long tasks waited until an attempt was assigned, without the pause before a retry. What
    /// waited before the start of the manager counts from the start.
    pub waited: Durations,
    /// How long it took from the assignment of an attempt to the report that it has started. What
    /// was assigned before the start of the manager counts from the start.
    pub dispatched: Durations,
    /// Jobs with tasks that wait for a node.
    pub queue_jobs: u64,
}

impl Measures {
    /// Notes that a task which may be placed since `since` was given an attempt.
    pub(crate) fn note_wait(&mut self, now_ms: Millis, since: Millis) {
        self.waited.add(now_ms.saturating_sub(since));
    }

    /// Notes that an attempt which was assigned at `since` has started.
    pub(crate) fn note_start(&mut self, now_ms: Millis, since: Millis) {
        self.dispatched.add(now_ms.saturating_sub(since));
    }
}

impl Core {
    /// Returns what the core has counted.
    pub fn measures(&self) -> Measures {
        Measures { queue_jobs: self.queue.waiting_jobs(), ..self.measures }
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Core {
    pub(crate) fn check_measures(&self) {
        let mut totals = Totals::default();
        for (id, dispatch) in &self.dispatch {
            let job = Counted::of(&self.state.jobs[id]);
            assert_eq!(dispatch.counted, Some(job), "job {id}: as it is counted");
            totals.add(job);
        }
        let Totals { tasks_succeeded, tasks_failed, tasks_cancelled, .. } = self.measures.totals;
        let expected = Totals { tasks_succeeded, tasks_failed, tasks_cancelled, ..totals };
        assert_eq!(self.measures.totals, expected, "the totals");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_up_to_its_bound() {
        let mut durations = Durations::default();
        for ms in [0, 1, 2, 5, 6, 86_400_000, 86_400_001, u64::MAX] {
            durations.add(ms);
        }
        assert_eq!(durations.counts[..3], [2, 2, 1]);
        assert_eq!(durations.counts[14..], [1, 2]);
        assert_eq!(durations.counts.iter().sum::<u64>(), 8);
        assert_eq!(durations.sum_ms, u64::MAX);
    }
}
