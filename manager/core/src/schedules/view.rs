//! What users see of schedules.

use alloc::vec::Vec;
use core::ops::Bound;

use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{FRAME_BYTES_MAX, PAGE_ROWS_MAX};
use podmesh_protocol::schedule::{ScheduleDetail, ScheduleView, When};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::time::Now;

use super::commands::next_instants;
use crate::Core;
use crate::state::Schedule;

/// The most bytes of a row: its names, its pattern and its numbers.
const ROW_BYTES_MAX: usize = 1024;

impl Core {
    /// Returns the schedules whose names sort after `after`: at most `limit`, and only as many as fit
    /// into one frame.
    pub fn list_schedules(&self, after: Option<&Name>, limit: u32) -> Vec<ScheduleView> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.state.schedules.range::<Name, _>((start, Bound::Unbounded));
        let limit = (limit.min(PAGE_ROWS_MAX) as usize).min(FRAME_BYTES_MAX / 2 / ROW_BYTES_MAX);
        rows.map(|(name, saved)| self.view_schedule(name, saved)).take(limit).collect()
    }

    /// Returns a schedule with its next instants; `None` if there is none.
    pub fn show_schedule(&self, now: Now, name: &Name) -> Option<ScheduleDetail> {
        let saved = self.state.schedules.get(name)?;
        let entry = self.schedules.by_name.get(name);
        let next = entry.map(|entry| next_instants(&entry.calendar, &saved.progress, now));
        Some(ScheduleDetail {
            view: self.view_schedule(name, saved),
            overlap: saved.spec.overlap.into(),
            catch_up_ms: saved.spec.catch_up_ms,
            job: JobSpec::clone(&saved.spec.job),
            next_ms: next.unwrap_or_default(),
        })
    }

    fn view_schedule(&self, name: &Name, saved: &Schedule) -> ScheduleView {
        let (cron, zone, every_ms) = match saved.spec.when.clone() {
            When::Cron { pattern, zone } => (Some(pattern), Some(zone), None),
            When::Every { every_ms } => (None, None, Some(every_ms)),
        };
        let active = self.schedules.jobs.get(name).map_or(0, |jobs| jobs.len());
        let progress = &saved.progress;
        ScheduleView {
            schedule: name.clone(),
            cron,
            zone,
            every_ms,
            by: saved.by.clone(),
            paused: progress.paused,
            next_wall_ms: self.schedules.by_name.get(name).and_then(|entry| entry.due_ms),
            last_wall_ms: progress.last_run.map(|(instant_ms, _)| instant_ms),
            last_job: progress.last_run.map(|(_, job)| job),
            active: u32::try_from(active).unwrap_or(u32::MAX),
            waiting: progress.waiting.is_some(),
            ran: progress.ran,
            skipped: progress.skipped,
            missed: progress.missed,
        }
    }
}
