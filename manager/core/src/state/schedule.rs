//! A schedule: its spec, and how far it has come.

use alloc::sync::Arc;

use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::schedule::ScheduleSpec;
use serde::{Deserialize, Serialize};

/// A schedule. Its runs are jobs, with the schedule in their specs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// The current spec.
    pub spec: Arc<ScheduleSpec>,
    /// Who added or changed it last.
    pub by: Name,
    /// When its rule was set, by the wall clock. Intervals count from then.
    pub anchor_ms: u64,
    /// How far it has come.
    pub progress: ScheduleProgress,
}

/// How far a schedule has come. Times are of the wall clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleProgress {
    /// Whether it is paused.
    pub paused: bool,
    /// What is to become of the instants up to this time is decided. None of them runs again, also
    /// if the clock is set back.
    pub last_ms: u64,
    /// The run that starts when the jobs of the schedule have ended.
    pub waiting: Option<WaitingRun>,
    /// The instant of the last run that has started, with its job.
    pub last_run: Option<(u64, JobId)>,
    /// The number of the last row of its history.
    pub last_row: u64,
    /// How many runs have started.
    pub ran: u64,
    /// How many runs were skipped.
    pub skipped: u64,
    /// How many runs were missed.
    pub missed: u64,
}

/// A run that waits until the last one has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRun {
    /// Its instant.
    pub instant_ms: u64,
    /// The idempotency key, if somebody asked for it.
    pub submission: Option<SubmissionId>,
}
