//! Schedules.

use podmesh_protocol::schedule::{self, ScheduleDetail, ScheduleRunView, ScheduleView};
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::{SpecOutput, Word, words};
use crate::time::rfc3339;

words! {
    /// What happens if the last run has not ended when the next one is due.
    Overlap = schedule::Overlap {
        /// The new run is skipped.
        Skip "skip",
        /// The new run waits until the last one has ended.
        Queue "queue",
        /// The last run is cancelled, and the new one starts when it has ended.
        Replace "replace",
    }
    /// What became of an instant of a schedule.
    RunResult = schedule::RunResult {
        /// Its job was submitted.
        Ran "ran",
        /// It did not run because of an earlier run, or because its job could not be submitted.
        Skipped "skipped",
        /// It was too late.
        Missed "missed",
    }
}

/// `podmesh schedule list`
#[derive(Debug, Serialize, JsonSchema)]
pub struct SchedulesOutput {
    /// The schedules, by name.
    pub schedules: Vec<ScheduleRow>,
}

/// A schedule.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleRow {
    /// Its name.
    pub schedule: String,
    /// Its cron pattern, if it has one.
    pub cron: Option<String>,
    /// The time zone of the pattern.
    pub zone: Option<String>,
    /// Its interval, if it has one.
    pub every_ms: Option<u64>,
    /// Who added it, or changed it last.
    pub by: String,
    /// Whether it is paused.
    pub paused: bool,
    /// When it is due next, in RFC 3339; not given if it is paused.
    pub next: Option<String>,
    /// The instant of its last run, in RFC 3339.
    pub last: Option<String>,
    /// The job of its last run.
    pub last_job: Option<u64>,
    /// How many of its jobs have not ended.
    pub active: u32,
    /// Whether a run waits until the last one has ended.
    pub waiting: bool,
    /// How many runs have started.
    pub ran: u64,
    /// How many runs were skipped.
    pub skipped: u64,
    /// How many runs were missed.
    pub missed: u64,
}

/// `podmesh schedule show`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleOutput {
    /// The schedule as in the list.
    #[serde(flatten)]
    pub row: ScheduleRow,
    /// What happens if its last run has not ended.
    pub overlap: Overlap,
    /// How many milliseconds late a run may start.
    pub catch_up_ms: u64,
    /// Its next instants, in RFC 3339.
    pub next_instants: Vec<String>,
    /// The name of its jobs.
    pub name: String,
    /// The priority of its jobs.
    pub priority: i32,
    /// The spec of its jobs.
    pub spec: SpecOutput,
}

/// `podmesh schedule history`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleHistoryOutput {
    /// What became of the last instants, newest first.
    pub runs: Vec<ScheduleRunRow>,
}

/// What became of an instant of a schedule, or of several together.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleRunRow {
    /// Counts up in each schedule.
    pub number: u64,
    /// The instant, or the last of several, in RFC 3339.
    pub instant: String,
    /// When it was decided, in RFC 3339.
    pub decided: String,
    /// What became of it.
    pub result: RunResult,
    /// The job, if it ran.
    pub job: Option<u64>,
    /// How many instants the row stands for. 1000 of a cron pattern may be more.
    pub count: u32,
    /// Why it did not run.
    pub message: Option<String>,
}

/// `podmesh schedule add`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleSavedOutput {
    /// The schedule.
    pub schedule: String,
    /// Whether there was none with the name.
    pub added: bool,
    /// Whether anything has changed.
    pub changed: bool,
    /// The next instants, in RFC 3339.
    pub next_instants: Vec<String>,
}

/// `podmesh schedule pause`, and `resume` and `remove`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleChangedOutput {
    /// The schedule.
    pub schedule: String,
    /// Whether anything has changed.
    pub changed: bool,
}

/// `podmesh schedule run`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScheduleRanOutput {
    /// The schedule.
    pub schedule: String,
    /// The job; not given if it starts when the last run has ended.
    pub job: Option<u64>,
}

impl From<&ScheduleView> for ScheduleRow {
    fn from(view: &ScheduleView) -> Self {
        Self {
            schedule: view.schedule.to_string(),
            cron: view.cron.clone(),
            zone: view.zone.clone(),
            every_ms: view.every_ms,
            by: view.by.to_string(),
            paused: view.paused,
            next: view.next_wall_ms.map(rfc3339),
            last: view.last_wall_ms.map(rfc3339),
            last_job: view.last_job.map(|job| job.0),
            active: view.active,
            waiting: view.waiting,
            ran: view.ran,
            skipped: view.skipped,
            missed: view.missed,
        }
    }
}

impl From<&ScheduleDetail> for ScheduleOutput {
    fn from(detail: &ScheduleDetail) -> Self {
        Self {
            row: (&detail.view).into(),
            overlap: (&detail.overlap).into(),
            catch_up_ms: detail.catch_up_ms,
            next_instants: instants(&detail.next_ms),
            name: detail.job.name.to_string(),
            priority: detail.job.priority,
            spec: (&detail.job).into(),
        }
    }
}

impl From<&ScheduleRunView> for ScheduleRunRow {
    fn from(view: &ScheduleRunView) -> Self {
        Self {
            number: view.number,
            instant: rfc3339(view.instant_ms),
            decided: rfc3339(view.wall_ms),
            result: (&view.result).into(),
            job: view.job.map(|job| job.0),
            count: view.count,
            message: view.message.clone(),
        }
    }
}

/// Returns times in RFC 3339.
pub fn instants(times: &[u64]) -> Vec<String> {
    times.iter().map(|ms| rfc3339(*ms)).collect()
}
