//! What the manager counts for metrics as it works, since its start. `api::metrics` makes the page.

use std::sync::atomic::{AtomicU64, Ordering};

use podmesh_metrics::OUTCOMES;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::report::JobState;

/// The words of the final states of jobs.
pub(crate) const JOB_ENDS: [&str; 4] = ["succeeded", "failed", "cancelled", "expired"];

/// Returns the position of a final state in [`JOB_ENDS`].
pub(crate) fn job_end(state: JobState) -> Option<usize> {
    match state {
        JobState::Queued | JobState::Running | JobState::Cancelling => None,
        JobState::Succeeded => Some(0),
        JobState::Failed => Some(1),
        JobState::Cancelled => Some(2),
        JobState::Expired => Some(3),
    }
}

/// The words of what becomes of the runs of schedules.
pub(crate) const RUN_RESULTS: [&str; 3] = ["ran", "skipped", "missed"];

/// Counts committed events.
#[derive(Debug, Default)]
pub(crate) struct EventCounts {
    pub(crate) jobs_submitted: AtomicU64,
    /// In the order of [`JOB_ENDS`].
    pub(crate) jobs_ended: [AtomicU64; JOB_ENDS.len()],
    pub(crate) attempts_assigned: AtomicU64,
    pub(crate) attempts_started: AtomicU64,
    /// In the order of [`OUTCOMES`].
    pub(crate) attempts_ended: [AtomicU64; OUTCOMES.len()],
    /// In the order of [`RUN_RESULTS`].
    pub(crate) schedule_runs: [AtomicU64; RUN_RESULTS.len()],
    pub(crate) log_gaps: AtomicU64,
    pub(crate) nodes_lost: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) joins_refused: AtomicU64,
}

impl EventCounts {
    /// Counts an event.
    pub(crate) fn count(&self, fact: &EventFact) {
        let (counter, more) = match fact {
            EventFact::JobSubmitted { .. } => (Some(&self.jobs_submitted), 1),
            EventFact::JobEnded { state, .. } => {
                (at(&self.jobs_ended, state.known().and_then(|state| job_end(*state))), 1)
            }
            EventFact::AttemptAssigned { .. } => (Some(&self.attempts_assigned), 1),
            EventFact::AttemptStarted { .. } => (Some(&self.attempts_started), 1),
            EventFact::AttemptEnded { outcome, .. } => {
                let position = OUTCOMES.iter().position(|(kind, _)| outcome.kind == *kind);
                (at(&self.attempts_ended, position), 1)
            }
            EventFact::ScheduleRan { .. } => (Some(&self.schedule_runs[0]), 1),
            EventFact::ScheduleSkipped { .. } => (Some(&self.schedule_runs[1]), 1),
            EventFact::ScheduleMissed { count, .. } => {
                (Some(&self.schedule_runs[2]), u64::from(*count))
            }
            EventFact::LogGap { .. } => (Some(&self.log_gaps), 1),
            EventFact::NodeLost { .. } => (Some(&self.nodes_lost), 1),
            EventFact::ConnectionsRefused { count, .. } => {
                (Some(&self.connections_refused), u64::from(*count))
            }
            EventFact::JoinsRefused { count, .. } => (Some(&self.joins_refused), u64::from(*count)),
            _ => return,
        };
        if let Some(counter) = counter {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

fn at(counters: &[AtomicU64], position: Option<usize>) -> Option<&AtomicU64> {
    counters.get(position?)
}

/// Returns the value of a counter.
pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::{AttemptId, JobId, Name};
    use podmesh_protocol::report::Outcome;

    use super::*;

    #[test]
    fn events_are_counted_by_their_words() {
        let counts = EventCounts::default();
        let attempt = AttemptId::new(JobId(1), 1, 1);
        for (kind, _) in OUTCOMES.iter().skip(1) {
            let outcome = Outcome::new(*kind).into();
            counts.count(&EventFact::AttemptEnded { attempt, outcome, retry_after_ms: None });
        }
        for _ in 0..2 {
            counts.count(&EventFact::JobEnded { job: JobId(1), state: JobState::Failed.into() });
            counts.count(&EventFact::ConnectionsRefused { message: String::new(), count: 7 });
        }
        assert_eq!(counts.attempts_ended.each_ref().map(read), [0, 1, 1, 1, 1, 1]);
        assert_eq!(counts.jobs_ended.each_ref().map(read), [0, 2, 0, 0]);
        assert_eq!(read(&counts.connections_refused), 14);
        for (kind, word) in OUTCOMES {
            assert_eq!(serde_json::json!(kind), word);
        }
        for (at, word) in JOB_ENDS.iter().enumerate() {
            let state = serde_json::from_value(serde_json::json!(word)).unwrap();
            assert_eq!(job_end(state), Some(at), "{word}");
        }
        for (at, word) in RUN_RESULTS.iter().enumerate() {
            let schedule: Name = "nightly".parse().unwrap();
            let (instant_ms, message) = (0, String::new());
            counts.count(&match *word {
                "ran" => EventFact::ScheduleRan { schedule, instant_ms, job: JobId(1) },
                "skipped" => EventFact::ScheduleSkipped { schedule, instant_ms, message },
                _ => EventFact::ScheduleMissed { schedule, instant_ms, count: 5 },
            });
            assert_eq!(read(&counts.schedule_runs[at]), if *word == "missed" { 5 } else { 1 });
        }
    }
}
