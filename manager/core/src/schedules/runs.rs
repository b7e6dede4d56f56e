//! What becomes of the instants of a schedule.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_calendar::Zone;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::SCHEDULE_MISSED_COUNTED;
use podmesh_protocol::schedule::{Overlap, RunResult, ScheduleSpec, ScheduledRun, When};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::state::{Change, ScheduleRunRow};
use crate::state::{Schedule, WaitingRun};
use crate::step::Step;

/// A schedule while it is decided on, with the new rows of its history.
pub(super) struct Turn {
    name: Name,
    saved: Schedule,
    rows: Vec<ScheduleRunRow>,
}

impl Turn {
    pub(super) fn new(name: &Name, saved: &Schedule) -> Self {
        Self { name: name.clone(), saved: saved.clone(), rows: Vec::new() }
    }

    fn row(&mut self, now: Now, run: WaitingRun, result: RunResult) -> &mut ScheduleRunRow {
        let progress = &mut self.saved.progress;
        progress.last_row += 1;
        let row = ScheduleRunRow {
            number: progress.last_row,
            instant_ms: run.instant_ms,
            by_hand: run.submission.is_some(),
            wall_ms: now.wall_ms,
            result,
            job: None,
            count: 1,
            message: None,
        };
        self.rows.push(row);
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    fn skip(&mut self, now: Now, run: WaitingRun, message: String, out: &mut Step) {
        self.saved.progress.skipped += 1;
        self.row(now, run, RunResult::Skipped).message = Some(message.clone());
        let (schedule, instant_ms) = (self.name.clone(), run.instant_ms);
        out.events.push(EventFact::ScheduleSkipped { schedule, instant_ms, message });
    }

    fn miss(&mut self, now: Now, instant_ms: u64, count: u32, out: &mut Step) {
        self.saved.progress.missed += u64::from(count);
        let run = WaitingRun { instant_ms, submission: None };
        self.row(now, run, RunResult::Missed).count = count;
        let schedule = self.name.clone();
        out.events.push(EventFact::ScheduleMissed { schedule, instant_ms, count });
    }
}

impl Core {
    /// Decides on the instants of a schedule that have passed: the last one runs if it is not too
    /// late, and the others are missed.
    pub(super) fn on_schedule_due(&mut self, now: Now, name: &Name, out: &mut Step) {
        let Some(saved) = self.state.schedules.get(name) else { return };
        let Some(entry) = self.schedules.by_name.get(name) else { return };
        let last_ms = saved.progress.last_ms;
        let Some(due) = entry.calendar.due(last_ms, now.wall_ms, SCHEDULE_MISSED_COUNTED) else {
            return self.schedules.set_due(name, saved);
        };
        let before = entry.calendar.last_until(due.latest_ms - 1).unwrap_or(last_ms);
        let mut turn = Turn::new(name, saved);
        turn.saved.progress.last_ms = due.latest_ms;
        let late_ms = now.wall_ms - due.latest_ms;
        if late_ms > turn.saved.spec.catch_up_ms {
            turn.miss(now, due.latest_ms, due.count, out);
        } else {
            if due.count > 1 {
                turn.miss(now, before, due.count - 1, out);
            }
            let run = WaitingRun { instant_ms: due.latest_ms, submission: None };
            if let Err(error) = self.begin_run(now, &mut turn, run, out) {
                turn.skip(now, run, error.message, out);
            }
        }
        self.save_turn(turn, out);
    }

    /// Starts the run that has waited for the end of the last one, if there is one.
    pub(super) fn start_waiting_run(&mut self, now: Now, name: &Name, out: &mut Step) {
        let Some(saved) = self.state.schedules.get(name) else { return };
        let Some(run) = saved.progress.waiting else { return };
        if self.schedules.jobs.contains_key(name) {
            return;
        }
        let mut turn = Turn::new(name, saved);
        turn.saved.progress.waiting = None;
        if let Err(error) = self.start_run(now, &mut turn, run, out) {
            turn.skip(now, run, error.message, out);
        }
        self.save_turn(turn, out);
    }

    /// Starts a run, or lets it wait, as the rule for overlaps says. Returns its job if it has
    /// started.
    ///
    /// # Errors
    /// Why there is no such run.
    pub(super) fn begin_run(
        &mut self,
        now: Now,
        turn: &mut Turn,
        run: WaitingRun,
        out: &mut Step,
    ) -> Result<Option<JobId>, ErrorReply> {
        let jobs = self.schedules.jobs.get(&turn.name);
        let first = jobs.and_then(|jobs| jobs.first().copied());
        let waiting = turn.saved.progress.waiting;
        if first.is_none() && waiting.is_none() {
            return self.start_run(now, turn, run, out).map(Some);
        }
        let last = first.map_or_else(|| "the last run".to_owned(), |job| format!("job {job}"));
        let is_resent =
            |waits: WaitingRun| waits.submission == run.submission && run.submission.is_some();
        let conflict = |message: String| Err(ErrorReply::new(ErrorCode::Conflict, message));
        match (turn.saved.spec.overlap, waiting) {
            (Overlap::Skip, _) => {
                conflict(format!("{last} of the last run has not ended (overlap: skip)"))
            }
            (Overlap::Queue, Some(waits)) if !is_resent(waits) => {
                conflict(format!("a run already waits for the end of {last} (overlap: queue)"))
            }
            (Overlap::Queue, _) => {
                turn.saved.progress.waiting = Some(run);
                Ok(None)
            }
            (Overlap::Replace, _) => {
                if let Some(waits) = waiting.filter(|waits| !is_resent(*waits)) {
                    let message = "a later run takes its place (overlap: replace)".into();
                    turn.skip(now, waits, message, out);
                }
                turn.saved.progress.waiting = Some(run);
                let jobs = self.schedules.jobs.get(&turn.name).cloned().unwrap_or_default();
                for job in jobs {
                    if self.state.jobs.get(&job).is_some_and(|job| !job.is_stopping()) {
                        self.cancel_job(job, out);
                    }
                }
                Ok(None)
            }
        }
    }

    /// Submits the job of a run.
    fn start_run(
        &mut self,
        now: Now,
        turn: &mut Turn,
        run: WaitingRun,
        out: &mut Step,
    ) -> Result<JobId, ErrorReply> {
        let spec = job_spec(&turn.saved.spec, run.instant_ms);
        self.may_insert(&spec)?;
        let by = turn.saved.by.clone();
        let job = self.insert_own_job(now, run.submission, Arc::new(spec), by, out);
        let (schedule, instant_ms) = (turn.name.clone(), run.instant_ms);
        out.events.push(EventFact::ScheduleRan { schedule, instant_ms, job });
        turn.saved.progress.ran += 1;
        turn.saved.progress.last_run = Some((instant_ms, job));
        turn.row(now, run, RunResult::Ran).job = Some(job);
        Ok(job)
    }

    pub(super) fn save_turn(&mut self, turn: Turn, out: &mut Step) {
        let Turn { name, saved, rows } = turn;
        self.schedules.set_due(&name, &saved);
        let progress = saved.progress;
        self.state.record(out, Change::ScheduleAdvanced { schedule: name, progress, runs: rows });
    }
}

/// Returns the spec of the job of a run.
pub(super) fn job_spec(spec: &ScheduleSpec, instant_ms: u64) -> JobSpec {
    let zone = match &spec.when {
        When::Cron { zone, .. } => Zone::new(zone).unwrap_or_else(|_| Zone::utc()),
        When::Every { .. } => Zone::utc(),
    };
    let schedule = spec.name.clone();
    let mut job = JobSpec::clone(&spec.job);
    job.run.env.insert("PODMESH_SCHEDULE".into(), schedule.as_str().into());
    job.run.env.insert("PODMESH_SCHEDULE_TIME".into(), zone.format(instant_ms));
    job.scheduled = Some(Box::new(ScheduledRun { schedule, instant_ms }));
    job
}
