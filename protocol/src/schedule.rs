//! Schedules: rules that submit a job again and again.

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{JobId, Name, SubmissionId};
use crate::limits::{CRON_BYTES_MAX, DURATION_MS_MAX, SCHEDULE_MS_MIN, ZONE_BYTES_MAX};
use crate::spec::{JobSpec, SpecError, at_most, no_nul, within};
use crate::word::MaybeKnown;

/// A schedule: when it is due, and the job that it submits then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSpec {
    /// Its name. No two schedules have the same one, whatever the case of its letters.
    pub name: Name,
    /// When it is due.
    pub when: When,
    /// What happens if its last run has not ended when the next one is due.
    #[serde(default)]
    pub overlap: Overlap,
    /// How many milliseconds late a run may start, at least
    /// [`SCHEDULE_MS_MIN`](crate::limits::SCHEDULE_MS_MIN). Later than that, it is missed.
    #[serde(default = "catch_up_default")]
    pub catch_up_ms: u64,
    /// The job of each run.
    pub job: Box<JobSpec>,
}

/// When a schedule is due: its instants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// At regular intervals from the moment on at which the schedule was added.
    Every {
        /// Milliseconds between two instants, at least
        /// [`SCHEDULE_MS_MIN`](crate::limits::SCHEDULE_MS_MIN).
        every_ms: u64,
    },
    /// At the wall times that match a pattern.
    Cron {
        /// Five fields, or six with seconds first.
        pattern: String,
        /// The IANA name of the time zone.
        zone: String,
    },
}

/// What happens if the last run of a schedule has not ended when the next one is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The new run is skipped.
    #[default]
    Skip,
    /// The new run waits until the last one has ended. At most one waits; further ones are skipped.
    Queue,
    /// The last run is cancelled, and the new one starts when it has ended.
    Replace,
}

impl ScheduleSpec {
    /// The default of [`ScheduleSpec::catch_up_ms`].
    pub const CATCH_UP_MS_DEFAULT: u64 = 60_000;

    /// Checks every rule and limit except those of the calendar: whether the pattern can be read,
    /// and whether the zone exists.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        let limits = i128::from(SCHEDULE_MS_MIN)..=i128::from(DURATION_MS_MAX);
        match &self.when {
            When::Every { every_ms } => {
                within("every (ms)", *every_ms, limits.clone(), Some("DURATION_MS_MAX"))?;
            }
            When::Cron { pattern, zone } => {
                no_nul("cron", pattern)?;
                at_most("cron", pattern.len(), "bytes", CRON_BYTES_MAX, "CRON_BYTES_MAX")?;
                at_most("tz", zone.len(), "bytes", ZONE_BYTES_MAX, "ZONE_BYTES_MAX")?;
            }
        }
        within("catch-up (ms)", self.catch_up_ms, limits, Some("DURATION_MS_MAX"))?;
        if self.job.not_before_ms.is_some() {
            let why = "is a time for a single job: a schedule says itself when its jobs start";
            return Err(SpecError::Text { field: "at", why: why.into() });
        }
        if !self.job.after.is_empty() {
            let why = "is for single jobs: the runs of a schedule wait for no other job";
            return Err(SpecError::Text { field: "after", why: why.into() });
        }
        self.job.validate()
    }
}

fn catch_up_default() -> u64 {
    ScheduleSpec::CATCH_UP_MS_DEFAULT
}

/// The run of a schedule that a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledRun {
    /// The schedule.
    pub schedule: Name,
    /// The instant of the run: milliseconds since 1970 by the manager's clock. For a run that
    /// somebody asked for, the time of the request.
    pub instant_ms: u64,
}

/// A request of a client about schedules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleRequest {
    /// Adds a schedule, or changes the one with the name. → [`ScheduleReply::Saved`]
    Save {
        /// The schedule.
        spec: Box<ScheduleSpec>,
    },
    /// The schedules, by name. → [`ScheduleReply::List`]
    List {
        /// Only schedules whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// One schedule, with its next instants. → [`ScheduleReply::Schedule`]
    Show {
        /// The schedule.
        schedule: Name,
    },
    /// What became of the last instants of a schedule, newest first. → [`ScheduleReply::History`]
    History {
        /// The schedule.
        schedule: Name,
        /// Only rows with a smaller number, for the next page.
        #[serde(default)]
        before: Option<u64>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Lets a schedule start no runs. Instants that pass meanwhile are not made up for. →
    /// [`ScheduleReply::Changed`]
    Pause {
        /// The schedule.
        schedule: Name,
    },
    /// Ends a pause. → [`ScheduleReply::Changed`]
    Resume {
        /// The schedule.
        schedule: Name,
    },
    /// Starts a run now, also while the schedule is paused. → [`ScheduleReply::Ran`]
    Run {
        /// The schedule.
        schedule: Name,
        /// The idempotency key.
        submission: SubmissionId,
    },
    /// Removes a schedule with its history. Its jobs stay. → [`ScheduleReply::Changed`]
    Remove {
        /// The schedule.
        schedule: Name,
    },
}

impl ScheduleRequest {
    /// Returns the required role.
    pub fn needs(&self) -> Role {
        match self {
            Self::List { .. } | Self::Show { .. } | Self::History { .. } => Role::Viewer,
            Self::Save { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Run { .. }
            | Self::Remove { .. } => Role::Operator,
        }
    }
}

/// The reply to a [`ScheduleRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleReply {
    /// To [`ScheduleRequest::Save`].
    Saved {
        /// Whether there was no schedule with the name.
        added: bool,
        /// Whether anything has changed.
        changed: bool,
        /// The next instants: milliseconds since 1970 by the manager's clock.
        next_ms: Vec<u64>,
    },
    /// To [`ScheduleRequest::List`].
    List(Vec<ScheduleView>),
    /// To [`ScheduleRequest::Show`].
    Schedule(Box<ScheduleDetail>),
    /// To [`ScheduleRequest::History`].
    History(Vec<ScheduleRunView>),
    /// To [`ScheduleRequest::Pause`], [`ScheduleRequest::Resume`] and [`ScheduleRequest::Remove`].
    Changed {
        /// Whether anything has changed.
        changed: bool,
    },
    /// To [`ScheduleRequest::Run`].
    Ran {
        /// The job; `None` if it starts when the last run has ended.
        job: Option<JobId>,
    },
}

/// A row of the list of schedules. All times are milliseconds since 1970 by the manager's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleView {
    /// The schedule.
    pub schedule: Name,
    /// Its cron pattern, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The time zone of the pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its interval, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// Who added it, or changed it last.
    pub by: Name,
    /// Whether it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// When it is due next; `None` if it is paused, or never due again.
    pub next_wall_ms: Option<u64>,
    /// The instant of its last run.
    pub last_wall_ms: Option<u64>,
    /// The job of its last run.
    pub last_job: Option<JobId>,
    /// How many of its jobs have not ended.
    pub active: u32,
    /// Whether a run waits until the last one has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// How many runs have started.
    pub ran: u64,
    /// How many runs were skipped.
    pub skipped: u64,
    /// How many runs were missed.
    pub missed: u64,
}

/// Everything about a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleDetail {
    /// Its row.
    pub view: ScheduleView,
    /// What happens if its last run has not ended.
    pub overlap: MaybeKnown<Overlap>,
    /// How late a run may start.
    pub catch_up_ms: u64,
    /// The job of each run.
    pub job: JobSpec,
    /// Its next instants: up to [`SCHEDULE_NEXT_SHOWN`](crate::limits::SCHEDULE_NEXT_SHOWN).
    pub next_ms: Vec<u64>,
}

/// What became of instants of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRunView {
    /// Counts up in each schedule.
    pub number: u64,
    /// The instant, or the last of several: milliseconds since 1970 by the manager's clock.
    pub instant_ms: u64,
    /// When it was decided; likewise.
    pub wall_ms: u64,
    /// What became of it.
    pub result: MaybeKnown<RunResult>,
    /// The job, if it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// How many instants the row stands for. A large number is a minimum.
    pub count: u32,
    /// Why it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What became of an instant of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// Its job was submitted.
    Ran,
    /// It did not run because of an earlier run, or because its job could not be submitted.
    Skipped,
    /// It was too late.
    Missed,
}
