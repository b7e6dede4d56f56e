//! Users of schedules, and what must hold for these: each instant is decided on once, whatever happens
//! to the manager and to its clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use podmesh_manager_core::input::{Command, ScheduleChange};
use podmesh_manager_core::state::{Change, ScheduleProgress, ScheduleRunRow};
use podmesh_manager_core::step::Step;
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::limits::SCHEDULE_MISSED_COUNTED;
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::schedule::{Overlap, RunResult, ScheduleSpec, When};
use podmesh_protocol::spec::{ArrayRange, JobSpec, Resources};
use uuid::Uuid;

use crate::faults::Planted;
use crate::store::Store;
use crate::world::{Event, World};

/// What users do with schedules.
#[derive(Debug, Default)]
pub(crate) struct ScheduleUsers {
    /// The last spec that they have written of each schedule.
    specs: Vec<ScheduleSpec>,
    /// How many runs they have asked for.
    by_hand: u128,
}

fn user() -> Name {
    "user".parse().expect("a name")
}

impl ScheduleUsers {
    /// Returns whether users have asked for a run with this key.
    pub(crate) fn have_asked(&self, submission: &SubmissionId) -> bool {
        (0..self.by_hand).any(|number| by_hand(number) == *submission)
    }
}

fn by_hand(number: u128) -> SubmissionId {
    SubmissionId(Uuid::from_u128(0xBEEF_0000 + number))
}

impl World {
    pub(crate) fn make_schedules(&mut self) {
        if self.rng.percent(60) {
            return;
        }
        for schedule in 0..self.rng.within(1, 2) {
            let name = format!("tick-{schedule}").parse().expect("a name");
            let spec = self.make_schedule(name);
            self.schedule_users.specs.push(spec);
        }
        self.after(1_500, Event::ScheduleUserActs);
    }

    fn make_schedule(&mut self, name: Name) -> ScheduleSpec {
        let small = Resources { cpu_millis: 500, memory_bytes: 0 };
        // Jobs that every node can run: they end when all faults have ended.
        let job = JobSpec {
            array: ArrayRange { first: 1, last: self.rng.within(1, 3) as u32 },
            resources: small,
            require: [].into(),
            place: PlaceRules::default().into(),
            ..self.make_spec()
        };
        let overlaps = [Overlap::Skip, Overlap::Queue, Overlap::Replace];
        ScheduleSpec {
            name,
            when: When::Every { every_ms: self.rng.within(1, 12) * 1_000 },
            overlap: overlaps[self.rng.below(3) as usize],
            catch_up_ms: self.rng.within(1, 40) * 1_000,
            job: Box::new(job),
        }
    }

    /// A user adds, changes, pauses or removes a schedule, or asks for a run.
    pub(crate) fn schedule_user_acts(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.within(500, 12_000);
        self.after(next, Event::ScheduleUserActs);
        let at = self.rng.below(self.schedule_users.specs.len() as u64) as usize;
        let schedule = self.schedule_users.specs[at].name.clone();
        let change = match self.rng.below(100) {
            0..40 => {
                if self.rng.percent(40) {
                    self.schedule_users.specs[at] = self.make_schedule(schedule);
                }
                let spec = self.schedule_users.specs[at].clone();
                assert_eq!(spec.validate(), Ok(()));
                let command = Command::SaveSchedule { by: user(), spec: Arc::new(spec) };
                return self.ask_service(command);
            }
            40..60 => {
                let submission = by_hand(self.schedule_users.by_hand);
                self.schedule_users.by_hand += 1;
                ScheduleChange::Run { submission }
            }
            60..72 => ScheduleChange::Pause,
            72..94 => ScheduleChange::Resume,
            _ => ScheduleChange::Remove,
        };
        self.ask_service(Command::ChangeSchedule { by: user(), schedule, change });
    }

    /// Removes all schedules, whose jobs would never end.
    pub(crate) fn users_remove_schedules(&mut self) {
        let all: Vec<Name> = self.decided.state.schedules.keys().cloned().collect();
        for schedule in all {
            let change = ScheduleChange::Remove;
            self.ask_service(Command::ChangeSchedule { by: user(), schedule, change });
        }
    }

    /// Changes what a step says of schedules as a planted mistake does.
    pub(crate) fn forget_runs(&self, step: &mut Step) {
        if self.planted == Some(Planted::RunNotStored) {
            step.changes.retain(|change| !matches!(change, Change::ScheduleAdvanced { .. }));
        }
        if self.planted == Some(Planted::MissedNotStored) {
            for change in &mut step.changes {
                if let Change::ScheduleAdvanced { runs, .. } = change {
                    runs.retain(|row| row.result != RunResult::Missed);
                }
            }
        }
    }
}

impl Store {
    /// Checks that every job of a schedule has come with a row of the history.
    pub(crate) fn check_runs(&self, step: &Step) {
        let mut jobs = BTreeSet::new();
        for change in &step.changes {
            match change {
                Change::JobInserted { job, spec, .. } if spec.scheduled.is_some() => {
                    jobs.insert(*job);
                }
                Change::ScheduleAdvanced { runs, .. } => {
                    runs.iter().filter_map(|row| row.job).for_each(|job| _ = jobs.remove(&job));
                }
                _ => {}
            }
        }
        assert!(jobs.is_empty(), "runs of schedules that are in no history: {jobs:?}");
    }

    /// Checks that every instant that has passed ran, was skipped, was missed, or waits, and that
    /// none does so twice.
    pub(crate) fn check_instants(
        &mut self,
        schedule: &Name,
        progress: &ScheduleProgress,
        rows: &[ScheduleRunRow],
    ) {
        let before = &self.state.schedules[schedule];
        let When::Every { every_ms } = before.spec.when else { panic!("only intervals") };
        let (old, waited) = (before.progress.last_ms, before.progress.waiting);
        let until = |ms: u64| ms.saturating_sub(before.anchor_ms) / every_ms;
        assert!(progress.last_ms >= old, "{schedule}: instants are decided on again");
        let passed = until(progress.last_ms) - until(old);
        let ended_wait = |row: &&ScheduleRunRow| {
            waited.is_some_and(|run| {
                run.instant_ms == row.instant_ms && run.submission.is_some() == row.by_hand
            })
        };
        // A request that comes twice is the same run.
        let same = waited.zip(progress.waiting).is_some_and(|(waited, waits)| {
            waited == waits || waited.submission.is_some() && waited.submission == waits.submission
        });
        if !same && waited.is_some() {
            assert!(rows.iter().any(|row| ended_wait(&row)), "{schedule}: {waited:?} is forgotten");
        }
        let by_rule = rows.iter().filter(|row| !row.by_hand && !ended_wait(row));
        let waits = progress.waiting.filter(|run| run.submission.is_none() && waited != Some(*run));
        let decided =
            by_rule.map(|row| u64::from(row.count)).sum::<u64>() + u64::from(waits.is_some());
        let resumes = before.progress.paused && !progress.paused;
        let counted = passed.min(SCHEDULE_MISSED_COUNTED.into());
        assert!(
            resumes && decided == 0 || decided == passed || passed > counted && decided >= counted,
            "{schedule}: {passed} instants have passed, and {decided} are decided: {rows:?}"
        );
        for row in rows {
            let (instant, job) = (row.instant_ms, row.job);
            if row.result != RunResult::Ran {
                continue;
            }
            let spec = job.and_then(|job: JobId| self.jobs.get(&job)).map(|job| &job.spec);
            let run = spec.and_then(|spec| spec.scheduled.as_deref());
            let is_its = run.is_some_and(|of| of.schedule == *schedule && of.instant_ms == instant);
            assert!(is_its, "{schedule}: {job:?} is not the run of {instant}");
            let is_new =
                row.by_hand || self.instants.entry(schedule.clone()).or_default().insert(instant);
            assert!(is_new, "{schedule}: the instant {instant} runs a second time");
        }
    }
}
