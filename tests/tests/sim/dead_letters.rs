//! Dead-letter jobs: one for each task that has failed for good, in the same commit.

use std::collections::BTreeSet;

use podmesh_manager_core::state::{Change, QueueRow, failed};
use podmesh_manager_core::step::Step;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::limits::DEAD_LETTERS_PER_JOB;
use podmesh_protocol::queue::DEFAULT_QUEUE;

use crate::store::Store;

/// The attempts of a step with which tasks failed for good, and whose dead-letter jobs have not come.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(BTreeSet<AttemptId>);

impl DeadLetters {
    /// Looks at a change before the store applies it.
    pub(crate) fn note(&mut self, store: &Store, change: &Change) {
        match change {
            Change::AttemptEnded { attempt, outcome, retry_after_ms: None, .. }
                if failed(outcome.kind) && store.wants_dead_letter(*attempt) =>
            {
                self.0.insert(*attempt);
            }
            Change::JobInserted { job, spec, .. } => {
                let letter = spec.dead_letter.as_deref();
                let due = letter.is_none_or(|letter| self.0.remove(&letter.attempt));
                assert!(due, "job {job} is a dead-letter job of a task that has not failed now");
            }
            _ => {}
        }
    }

    /// Checks that none is missing at the end of a step.
    pub(crate) fn check(&self, step: &Step) {
        assert!(self.0.is_empty(), "no dead-letter job for {:?}: {step:?}", self.0);
    }
}

impl Store {
    fn wants_dead_letter(&self, attempt: AttemptId) -> bool {
        let job = &self.state.jobs[&attempt.task.job];
        let own = job.spec.rules.queue.as_ref().map_or(DEFAULT_QUEUE, |queue| queue.as_str());
        let mut queues = self.state.queues.iter();
        let has_one =
            |(queue, row): (&Name, &QueueRow)| queue.as_str() == own && row.dead_letter.is_some();
        job.spec.dead_letter.is_none()
            && job.spec.run.replica.is_none()
            && job.counts.failed < DEAD_LETTERS_PER_JOB
            && queues.any(has_one)
    }
}
