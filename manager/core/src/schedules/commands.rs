//! What users ask of schedules.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::iter::successors;

use podmesh_calendar::{Calendar, CalendarError, Zone};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{SCHEDULE_NEXT_SHOWN, SCHEDULES_MAX};
use podmesh_protocol::schedule::{ScheduleSpec, When};
use podmesh_protocol::time::Now;

use super::runs::{Turn, job_spec};
use super::{Entry, calendar};
use crate::Core;
use crate::input::ScheduleChange;
use crate::state::Change;
use crate::state::{Schedule, ScheduleProgress, WaitingRun};
use crate::step::{Answer, Step};

/// Checks that the rule of a schedule can be read and comes at least once after a time. This may
/// take a second for a pattern that never comes, so it is not left to a step.
///
/// # Errors
/// What is wrong with it.
pub fn check_calendar(when: &When, now_ms: u64) -> Result<(), CalendarError> {
    match (calendar(when, now_ms)?.next_after(now_ms), when) {
        (None, When::Cron { pattern, .. }) => {
            Err(CalendarError::Never { pattern: pattern.clone() })
        }
        _ => Ok(()),
    }
}

impl Core {
    /// Adds a schedule, or changes its spec. With another rule, it counts from now on.
    pub(crate) fn save_schedule(
        &mut self,
        now: Now,
        by: Name,
        spec: Arc<ScheduleSpec>,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let invalid = |message: String| ErrorReply::new(ErrorCode::InvalidSpec, message);
        let mut spec = ScheduleSpec::clone(&spec);
        if let When::Cron { zone, .. } = &mut spec.when {
            *zone = Zone::new(zone).map_err(|error| invalid(error.to_string()))?.name().into();
        }
        self.may_save(&spec)?;
        self.may_wait_in_queue(&spec.job)?;
        let before = self.state.schedules.get(&spec.name);
        let same_rule = before.filter(|before| before.spec.when == spec.when);
        let anchor_ms = same_rule.map_or(now.wall_ms, |before| before.anchor_ms);
        let calendar =
            calendar(&spec.when, anchor_ms).map_err(|error| invalid(error.to_string()))?;
        // The variables that each run gets must have room.
        let made = job_spec(&spec, now.wall_ms);
        made.run.validate().map_err(|error| invalid(error.to_string()))?;
        let mut progress = before.map(|before| before.progress.clone()).unwrap_or_default();
        if same_rule.is_none() {
            // The new rule may have instants that the old one had, before the clock was set back.
            progress.last_ms = progress.last_ms.max(now.wall_ms);
        }
        let next_ms = next_instants(&calendar, &progress, now);
        if before.is_some_and(|before| *before.spec == spec) {
            return Ok(Answer::ScheduleSaved { added: false, changed: false, next_ms });
        }
        let (schedule, added) = (spec.name.clone(), before.is_none());
        out.events.push(if added {
            EventFact::ScheduleAdded { schedule: schedule.clone(), by: by.clone() }
        } else {
            let message = "changed".into();
            EventFact::ScheduleChanged { schedule: schedule.clone(), message, by: by.clone() }
        });
        let saved = Schedule { spec: Arc::new(spec), by, anchor_ms, progress };
        let due_ms = self.schedules.by_name.get(&schedule).and_then(|entry| entry.due_ms);
        self.schedules.by_name.insert(schedule.clone(), Entry { calendar, due_ms });
        self.schedules.set_due(&schedule, &saved);
        self.state.record(out, Change::ScheduleSaved { schedule, saved });
        Ok(Answer::ScheduleSaved { added, changed: true, next_ms })
    }

    fn may_save(&self, spec: &ScheduleSpec) -> Result<(), ErrorReply> {
        let (name, all) = (&spec.name, &self.state.schedules);
        if all.contains_key(name) {
            return Ok(());
        }
        if all.len() >= SCHEDULES_MAX {
            let message = format!(
                "there are {SCHEDULES_MAX} schedules, which is the limit (SCHEDULES_MAX): remove some (`podmesh schedule remove NAME`)"
            );
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        let alike = |other: &&Name| other.as_str().eq_ignore_ascii_case(name.as_str());
        if let Some(other) = all.keys().find(alike) {
            let message = format!(
                "there is a schedule `{other}`, whose name differs from `{name}` only in the case of its letters: choose another name"
            );
            return Err(ErrorReply::new(ErrorCode::Conflict, message));
        }
        Ok(())
    }

    /// Changes a schedule without another spec.
    pub(crate) fn change_schedule(
        &mut self,
        now: Now,
        by: Name,
        name: &Name,
        change: ScheduleChange,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let Some(saved) = self.state.schedules.get(name) else { return Err(no_schedule(name)) };
        let paused = match change {
            ScheduleChange::Remove => {
                self.remove_schedule(name, by, out);
                return Ok(Answer::ScheduleChanged { changed: true });
            }
            ScheduleChange::Run { submission } => {
                if let Some(job) = self.submissions.get(&submission) {
                    return Ok(Answer::ScheduleRan { job: Some(job) });
                }
                let mut turn = Turn::new(name, saved);
                let run = WaitingRun { instant_ms: now.wall_ms, submission: Some(submission) };
                let job = self.begin_run(now, &mut turn, run, out)?;
                self.save_turn(turn, out);
                return Ok(Answer::ScheduleRan { job });
            }
            ScheduleChange::Pause => true,
            ScheduleChange::Resume => false,
        };
        if saved.progress.paused == paused {
            return Ok(Answer::ScheduleChanged { changed: false });
        }
        let mut saved = saved.clone();
        saved.progress.paused = paused;
        if !paused {
            // The instants of the pause have passed for good.
            saved.progress.last_ms = saved.progress.last_ms.max(now.wall_ms);
        }
        let message = if paused { "paused" } else { "resumed" }.into();
        out.events.push(EventFact::ScheduleChanged { schedule: name.clone(), message, by });
        self.schedules.set_due(name, &saved);
        let (schedule, progress) = (name.clone(), saved.progress);
        let runs = Vec::new();
        self.state.record(out, Change::ScheduleAdvanced { schedule, progress, runs });
        Ok(Answer::ScheduleChanged { changed: true })
    }

    fn remove_schedule(&mut self, name: &Name, by: Name, out: &mut Step) {
        if let Some(entry) = self.schedules.by_name.remove(name)
            && let Some(at) = entry.due_ms
        {
            self.schedules.due.remove(&(at, name.clone()));
        }
        self.schedules.ended.remove(name);
        out.events.push(EventFact::ScheduleRemoved { schedule: name.clone(), by });
        self.state.record(out, Change::ScheduleRemoved(name.clone()));
    }
}

/// Returns the next instants of a schedule; none while it is paused.
pub(super) fn next_instants(
    calendar: &Calendar,
    progress: &ScheduleProgress,
    now: Now,
) -> Vec<u64> {
    if progress.paused {
        return Vec::new();
    }
    let first = calendar.next_after(progress.last_ms.max(now.wall_ms));
    successors(first, |last| calendar.next_after(*last)).take(SCHEDULE_NEXT_SHOWN).collect()
}

fn no_schedule(name: &Name) -> ErrorReply {
    let message = format!("there is no schedule `{name}`; `podmesh schedule list` shows all");
    ErrorReply::new(ErrorCode::NotFound, message)
}
