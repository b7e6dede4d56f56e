//! Schedules: jobs that are submitted again and again, and jobs that must not start before a time.
//!
//! Both follow the wall clock, which may jump. Each schedule holds the last instant that was decided
//! on: what is to become of it is recorded in the same step as its job. So no instant runs twice, also
//! if the clock is set back, and after a jump ahead or a pause of the manager it is known which
//! instants passed. [`podmesh_calendar`] says when a rule is due.
//!
//! - `commands`: what users ask for
//! - `runs`: what becomes of an instant
//! - `view`: what users see

mod commands;
mod runs;
mod view;

use alloc::collections::{BTreeMap, BTreeSet};

use podmesh_calendar::{Calendar, CalendarError, Zone};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::BATCH_ROWS_MAX;
use podmesh_protocol::schedule::When;
use podmesh_protocol::time::Now;

pub use self::commands::check_calendar;

use crate::Core;
use crate::state::{Job, Schedule};
use crate::step::Step;

/// The most schedules that a step decides on: each may have many missed instants to count.
const SCHEDULES_PER_STEP: usize = 64;

/// What is derived from the state about schedules.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    by_name: BTreeMap<Name, Entry>,
    /// When schedules are due, the earliest first, by the wall clock.
    due: BTreeSet<(u64, Name)>,
    /// The jobs of schedules that have not ended. A schedule with the name may be gone.
    jobs: BTreeMap<Name, BTreeSet<JobId>>,
    /// Schedules whose last job has ended.
    ended: BTreeSet<Name>,
    /// The jobs that must not start yet, by the time at which they may.
    held: BTreeSet<(u64, JobId)>,
}

#[derive(Debug)]
struct Entry {
    calendar: Calendar,
    /// When it is due. `due` has the same time.
    due_ms: Option<u64>,
}

/// Returns the calendar of a schedule whose rule was set at `anchor_ms`.
fn calendar(when: &When, anchor_ms: u64) -> Result<Calendar, CalendarError> {
    match when {
        When::Every { every_ms } => Ok(Calendar::every(*every_ms, anchor_ms)),
        When::Cron { pattern, zone } => Calendar::cron(pattern, Zone::new(zone)?),
    }
}

impl Schedules {
    /// Adds a job of the state. Returns whether it must not start yet.
    pub(crate) fn add_job(&mut self, job: &Job, wall_ms: u64) -> bool {
        if let Some(run) = &job.spec.scheduled {
            self.jobs.entry(run.schedule.clone()).or_default().insert(job.id);
        }
        match job.spec.not_before_ms {
            Some(at) if at > wall_ms && job.attempts == 0 && !job.is_stopping() => {
                self.held.insert((at, job.id));
                true
            }
            _ => false,
        }
    }

    /// Removes a job that has ended.
    pub(crate) fn remove_job(&mut self, job: &Job) {
        if let Some(run) = &job.spec.scheduled
            && let Some(jobs) = self.jobs.get_mut(&run.schedule)
        {
            jobs.remove(&job.id);
            if jobs.is_empty() {
                self.jobs.remove(&run.schedule);
                self.ended.insert(run.schedule.clone());
            }
        }
        if let Some(at) = job.spec.not_before_ms {
            self.held.remove(&(at, job.id));
        }
    }

    /// Returns whether the last step, at this time of the wall clock, has left work over.
    pub(crate) fn has_work(&self, wall_ms: u64) -> bool {
        !self.ended.is_empty() || self.next_wakeup().is_some_and(|at| at <= wall_ms)
    }

    pub(crate) fn next_wakeup(&self) -> Option<u64> {
        let due = self.due.first().map(|(at, _)| *at);
        due.into_iter().chain(self.held.first().map(|(at, _)| *at)).min()
    }

    /// Sets when a schedule is due, after its rule or its progress has changed.
    fn set_due(&mut self, name: &Name, saved: &Schedule) {
        let Some(entry) = self.by_name.get_mut(name) else { return };
        let progress = &saved.progress;
        let next = if progress.paused { None } else { entry.calendar.next_after(progress.last_ms) };
        if let Some(at) = core::mem::replace(&mut entry.due_ms, next) {
            self.due.remove(&(at, name.clone()));
        }
        if let Some(at) = next {
            self.due.insert((at, name.clone()));
        }
    }
}

impl Core {
    /// Builds what is derived about schedules after a start. The jobs have been added.
    pub(crate) fn restore_schedules(&mut self) {
        for (name, saved) in &self.state.schedules {
            match calendar(&saved.spec.when, saved.anchor_ms) {
                Ok(calendar) => {
                    let entry = Entry { calendar, due_ms: None };
                    self.schedules.by_name.insert(name.clone(), entry);
                    self.schedules.set_due(name, saved);
                }
                // An older version knew the zone.
                Err(error) => {
                    tracing::error!(schedule = %name, %error, "a schedule starts no runs")
                }
            }
            if saved.progress.waiting.is_some() && !self.schedules.jobs.contains_key(name) {
                self.schedules.ended.insert(name.clone());
            }
        }
    }

    /// Puts the jobs into the queue that may start now, up to a limit. The others stay due.
    pub(crate) fn release_jobs(&mut self, now: Now) {
        for _ in 0..BATCH_ROWS_MAX {
            let Some((at, id)) = self.schedules.held.first().copied() else { return };
            if at > now.wall_ms {
                return;
            }
            self.schedules.held.pop_first();
            let Some(job) = self.state.jobs.get(&id) else { continue };
            let Some(dispatch) = self.dispatch.get_mut(&id) else { continue };
            dispatch.too_early = false;
            dispatch.since_ms = now.mono_ms;
            if dispatch.has_ready(job) {
                self.queue.add(dispatch.shape, job.key());
            }
            self.set_expiry(now, id);
        }
    }

    /// Decides on the schedules that are due, up to the step's limit. The others stay due.
    pub(crate) fn run_schedules(&mut self, now: Now, out: &mut Step) {
        for _ in 0..SCHEDULES_PER_STEP {
            if !self.has_room(out) {
                return;
            }
            if let Some(name) = self.schedules.ended.pop_first() {
                self.start_waiting_run(now, &name, out);
                continue;
            }
            match self.schedules.due.first() {
                Some((at, name)) if *at <= now.wall_ms => {
                    let name = name.clone();
                    self.on_schedule_due(now, &name, out);
                }
                _ => return,
            }
        }
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_schedules(&self) {
        let mut due = BTreeSet::new();
        assert!(self.schedules.by_name.keys().eq(self.state.schedules.keys()), "schedules");
        for (name, saved) in &self.state.schedules {
            let entry = &self.schedules.by_name[name];
            let progress = &saved.progress;
            let next = entry.calendar.next_after(progress.last_ms).filter(|_| !progress.paused);
            assert_eq!(entry.due_ms, next, "schedule {name}: when it is due");
            due.extend(next.map(|at| (at, name.clone())));
            assert_eq!(*name, saved.spec.name);
            let is_free = !self.schedules.jobs.contains_key(name);
            assert!(
                progress.waiting.is_none() || !is_free || self.schedules.ended.contains(name),
                "schedule {name}: a run waits for nothing"
            );
        }
        assert_eq!(self.schedules.due, due, "due schedules");
        let mut jobs: BTreeMap<Name, BTreeSet<JobId>> = BTreeMap::new();
        let mut held = BTreeSet::new();
        for (id, job) in &self.state.jobs {
            if let Some(run) = &job.spec.scheduled {
                jobs.entry(run.schedule.clone()).or_default().insert(*id);
            }
            if self.dispatch[id].too_early {
                assert!(job.attempts == 0, "job {id} is held and has had attempts");
                held.extend(job.spec.not_before_ms.map(|at| (at, *id)));
            }
        }
        assert_eq!(self.schedules.jobs, jobs, "jobs of schedules");
        assert_eq!(self.schedules.held, held, "jobs that must not start yet");
    }
}
