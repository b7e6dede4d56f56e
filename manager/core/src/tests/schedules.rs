//! Schedules, and jobs that must not start before a time.

use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::schedule::{Overlap, RunResult, ScheduleSpec, When};
use podmesh_protocol::spec::JobRules;

use super::*;
use crate::input::{QueueAction, ScheduleChange};
use crate::state::{Change, ScheduleRunRow};

const MINUTE: u64 = 60_000;
/// 2026-11-26T12:00:00Z.
const NOON: u64 = 1_795_694_400_000;

fn every(text: &str, every_ms: u64) -> ScheduleSpec {
    ScheduleSpec {
        name: name(text),
        when: When::Every { every_ms },
        overlap: Overlap::Skip,
        catch_up_ms: MINUTE,
        job: Box::new(spec()),
    }
}

fn cron(text: &str, pattern: &str, zone: &str) -> ScheduleSpec {
    let when = When::Cron { pattern: pattern.into(), zone: zone.into() };
    ScheduleSpec { when, ..every(text, MINUTE) }
}

/// A world at noon with a node that has room for four tasks.
fn world() -> (World, Epoch) {
    let mut world = World::new();
    world.now.wall_ms = NOON;
    let epoch = world.join("a", 1);
    (world, epoch)
}

impl World {
    fn save(&mut self, spec: ScheduleSpec) -> Result<Answer, ErrorReply> {
        assert_eq!(spec.validate(), Ok(()));
        let command = Command::SaveSchedule { by: name("ann"), spec: Arc::new(spec) };
        let step = self.give(Input::Command(TICKET, command));
        replies(&step).remove(0)
    }

    fn change(&mut self, schedule: &str, change: ScheduleChange) -> Step {
        let (by, schedule) = (name("ann"), name(schedule));
        self.give(Input::Command(TICKET, Command::ChangeSchedule { by, schedule, change }))
    }

    /// Sets the wall clock, while almost no time passes.
    fn jump(&mut self, wall_ms: u64) -> Vec<Step> {
        self.now.mono_ms += 1;
        self.now.wall_ms = wall_ms;
        let mut steps = vec![self.give(Input::Tick)];
        steps.extend(self.drain());
        steps
    }

    fn wait(&mut self, ms: u64) -> Vec<Step> {
        let mut steps = vec![self.pass(ms)];
        steps.extend(self.drain());
        steps
    }
}

fn in_queue(queue: &str) -> ScheduleSpec {
    let mut spec = every("tick", MINUTE);
    spec.job.rules.queue = Some(name(queue));
    spec
}

#[test]
fn a_schedule_names_a_queue_that_exists_and_keeps_it() {
    let (mut world, _) = world();
    let error = world.save(in_queue("night")).unwrap_err();
    assert!(error.message.contains("there is no queue `night`"), "{error}");
    assert_eq!(world.core.state().schedules, [].into());
    world.set_queue("night", QueueChange::default());
    world.save(in_queue("night")).unwrap();
    let remove =
        |world: &mut World| replies(&world.change_queue("night", QueueAction::Remove)).remove(0);
    let error = remove(&mut world).unwrap_err();
    assert!(error.message.contains("the schedule `tick` submits jobs to the queue"), "{error}");
    world.save(in_queue("default")).unwrap();
    assert_eq!(remove(&mut world), Ok(Answer::QueueChanged { changed: true }));
}

/// The new rows of all histories: instant after noon in seconds, result, job, count.
fn rows(steps: &[Step]) -> Vec<(i64, RunResult, Option<u64>, u32)> {
    let rows = |change: &Change| match change {
        Change::ScheduleAdvanced { runs, .. } => runs.clone(),
        _ => Vec::new(),
    };
    let short = |row: ScheduleRunRow| {
        let after = row.instant_ms as i64 - NOON as i64;
        (after / 1000, row.result, row.job.map(|job| job.0), row.count)
    };
    steps.iter().flat_map(|step| &step.changes).flat_map(rows).map(short).collect()
}

fn events(steps: &[Step]) -> Vec<EventFact> {
    let about = |fact: &&EventFact| {
        matches!(
            fact,
            EventFact::ScheduleRan { .. }
                | EventFact::ScheduleSkipped { .. }
                | EventFact::ScheduleMissed { .. }
        )
    };
    steps.iter().flat_map(|step| &step.events).filter(about).cloned().collect()
}

#[test]
fn a_schedule_submits_its_job_when_it_is_due() {
    let (mut world, epoch) = world();
    let saved = world.save(every("backup", 15 * MINUTE)).unwrap();
    let next = (1..6).map(|n| NOON + n * 15 * MINUTE).collect();
    assert_eq!(saved, Answer::ScheduleSaved { added: true, changed: true, next_ms: next });
    assert_eq!(world.core.next_wakeup_wall(), Some(NOON + 15 * MINUTE));
    assert_eq!(rows(&world.wait(15 * MINUTE - 1)), []);

    let steps = world.wait(1);
    assert_eq!(rows(&steps), [(900, RunResult::Ran, Some(1), 1)]);
    let instant_ms = NOON + 15 * MINUTE;
    let (schedule, job) = (name("backup"), JobId(1));
    assert_eq!(events(&steps), [EventFact::ScheduleRan { schedule, instant_ms, job }]);
    assert_eq!(placed(&steps[0]), [(at(1, 1, 1), "a")], "its task starts in the same step");
    let spec = &world.core.state().jobs[&JobId(1)].spec;
    assert_eq!(spec.run.env["PODMESH_SCHEDULE"], "backup");
    assert_eq!(spec.run.env["PODMESH_SCHEDULE_TIME"], "2026-11-26T12:15:00+00:00");
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(rows(&world.wait(15 * MINUTE)), [(1_800, RunResult::Ran, Some(2), 1)]);
}

#[test]
fn a_run_is_skipped_while_the_last_one_goes_on() {
    let (mut world, epoch) = world();
    world.save(every("s", MINUTE)).unwrap();
    world.wait(MINUTE);
    let steps = world.wait(MINUTE);
    assert_eq!(rows(&steps), [(120, RunResult::Skipped, None, 1)]);
    let [EventFact::ScheduleSkipped { message, .. }] = &events(&steps)[..] else { panic!() };
    assert!(message.contains("job 1"), "{message}");
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert_eq!(rows(&world.wait(MINUTE)), [(180, RunResult::Ran, Some(2), 1)]);
}

#[test]
fn one_run_waits_for_the_end_of_the_last_one_also_over_a_restart() {
    let (mut world, _) = world();
    world.save(ScheduleSpec { overlap: Overlap::Queue, ..every("s", MINUTE) }).unwrap();
    world.wait(MINUTE);
    assert_eq!(rows(&world.wait(MINUTE)), []);
    assert_eq!(rows(&world.wait(MINUTE)), [(180, RunResult::Skipped, None, 1)]);
    world.restart();
    let epoch = world.join("a", 1);
    let mut steps = vec![world.cancel(1)];
    steps.push(world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]));
    steps.extend(world.drain());
    assert_eq!(rows(&steps), [(120, RunResult::Ran, Some(2), 1)]);
}

#[test]
fn a_run_replaces_the_last_one_and_starts_after_its_end() {
    let (mut world, epoch) = world();
    world.save(ScheduleSpec { overlap: Overlap::Replace, ..every("s", MINUTE) }).unwrap();
    world.wait(MINUTE);
    let steps = world.wait(MINUTE);
    assert_eq!(rows(&steps), []);
    assert_eq!(stops(&steps[0]), [(at(1, 1, 1), StopReason::Cancelled)]);
    let steps = world.wait(MINUTE);
    assert_eq!(rows(&steps), [(120, RunResult::Skipped, None, 1)], "the later one takes its place");
    let mut steps = vec![world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)])];
    assert_eq!(placed(&steps[0]), []);
    steps.extend(world.drain());
    assert_eq!(rows(&steps), [(180, RunResult::Ran, Some(2), 1)]);
    assert_eq!(world.state(1), JobState::Cancelled);
}

#[test]
fn after_a_pause_of_the_manager_only_the_last_run_is_caught_up() {
    let (mut world, _) = world();
    world.save(ScheduleSpec { catch_up_ms: 10 * MINUTE, ..every("wide", 15 * MINUTE) }).unwrap();
    world.save(every("narrow", 15 * MINUTE)).unwrap();
    world.now.wall_ms += 65 * MINUTE;
    world.restart();
    let steps = world.drain();
    let missed = RunResult::Missed;
    assert_eq!(
        rows(&steps),
        [(3_600, missed, None, 4), (2_700, missed, None, 3), (3_600, RunResult::Ran, Some(1), 1)]
    );
    let missed = events(&steps).into_iter().filter_map(|fact| match fact {
        EventFact::ScheduleMissed { schedule, count, .. } => Some((schedule.to_string(), count)),
        _ => None,
    });
    assert_eq!(missed.collect::<Vec<_>>(), [("narrow".into(), 4), ("wide".into(), 3)]);
}

#[test]
fn a_year_of_missed_seconds_is_bounded_work_and_one_event() {
    let (mut world, _) = world();
    world.save(cron("s", "* * * * * *", "Europe/Berlin")).unwrap();
    world.save(every("e", 1_000)).unwrap();
    let year = 365 * 24 * 60 * MINUTE;
    let steps = world.jump(NOON + year);
    let (last, ran) = (year as i64 / 1000, RunResult::Ran);
    let rows = rows(&steps);
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert_eq!(rows[0], (last - 1, RunResult::Missed, None, 999), "counted up to a limit");
    assert_eq!(rows[1], (last, ran, Some(1), 1));
    assert_eq!(rows[3], (last, ran, Some(2), 1));
}

#[test]
fn a_clock_that_is_set_back_runs_nothing_twice() {
    let (mut world, epoch) = world();
    world.save(every("s", MINUTE)).unwrap();
    assert_eq!(rows(&world.wait(MINUTE)).len(), 1);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(rows(&world.jump(NOON - 10 * MINUTE)), []);
    assert_eq!(rows(&world.wait(11 * MINUTE)), [], "this instant ran before the jump");
    world.restart();
    assert_eq!(rows(&world.drain()), []);
    assert_eq!(rows(&world.wait(MINUTE)), [(120, RunResult::Ran, Some(2), 1)]);

    // Another rule may have the same instants.
    world.cancel(2);
    world.jump(NOON);
    world.save(cron("s", "* * * * *", "UTC")).unwrap();
    assert_eq!(rows(&world.wait(2 * MINUTE)), []);
    assert_eq!(rows(&world.wait(MINUTE)).len(), 1);
}

#[test]
fn a_paused_schedule_runs_only_by_hand() {
    let (mut world, _) = world();
    world.save(every("s", MINUTE)).unwrap();
    let changed = |step: &Step| replies(step).remove(0);
    let paused = Ok(Answer::ScheduleChanged { changed: true });
    assert_eq!(changed(&world.change("s", ScheduleChange::Pause)), paused);
    let same = Ok(Answer::ScheduleChanged { changed: false });
    assert_eq!(changed(&world.change("s", ScheduleChange::Pause)), same);
    assert_eq!(rows(&world.wait(5 * MINUTE)), []);
    let submission = SubmissionId(Uuid::from_u128(99));
    let run = ScheduleChange::Run { submission };
    let step = world.change("s", run);
    assert_eq!(replies(&step), [Ok(Answer::ScheduleRan { job: Some(JobId(1)) })]);
    let again = world.change("s", run);
    assert_eq!(replies(&again), replies(&step), "the same request runs once");
    assert_eq!(rows(&[again]), []);
    let other = ScheduleChange::Run { submission: SubmissionId(Uuid::from_u128(98)) };
    let refused = changed(&world.change("s", other)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict, "{refused}");
    world.change("s", ScheduleChange::Resume);
    world.cancel(1);
    let rows = rows(&world.wait(MINUTE));
    assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), [360], "{rows:?}");
}

#[test]
fn wrong_schedules_are_refused() {
    let (mut world, _) = world();
    world.save(every("Backup", MINUTE)).unwrap();
    let said = world.save(every("backup", MINUTE)).unwrap_err();
    assert!(said.code == ErrorCode::Conflict && said.message.contains("Backup"), "{said}");
    let said = world.save(cron("a", "0 3 * *", "UTC")).unwrap_err();
    assert!(said.message.contains("five fields"), "{said}");
    let said = world.save(cron("a", "0 3 * * *", "Europe/Brelin")).unwrap_err();
    assert!(said.message.contains("Europe/Berlin"), "{said}");
    let never = crate::schedules::check_calendar(&cron("a", "0 0 30 2 *", "UTC").when, NOON);
    assert!(never.unwrap_err().to_string().contains("never comes"));
    let said = replies(&world.change("c", ScheduleChange::Pause)).remove(0).unwrap_err();
    assert_eq!(said.code, ErrorCode::NotFound);
}

#[test]
fn another_rule_counts_from_now_on_and_another_job_changes_no_instant() {
    let (mut world, _) = world();
    world.save(every("s", 10 * MINUTE)).unwrap();
    world.wait(4 * MINUTE);
    let mut other = every("s", 10 * MINUTE);
    other.job.priority = 3;
    let saved = |added, changed, next: u64| {
        let next_ms = (0..5).map(|n| next + n * 10 * MINUTE).collect();
        Ok(Answer::ScheduleSaved { added, changed, next_ms })
    };
    assert_eq!(world.save(other.clone()), saved(false, true, NOON + 10 * MINUTE));
    assert_eq!(world.save(other), saved(false, false, NOON + 10 * MINUTE));
    world.save(cron("s", "0 0 1 1 *", "europe/berlin")).unwrap();
    let detail = world.core.show_schedule(world.now, &name("s")).unwrap();
    assert_eq!(detail.view.zone.as_deref(), Some("Europe/Berlin"));
    assert_eq!(world.save(every("s", 10 * MINUTE)), saved(false, true, NOON + 14 * MINUTE));
}

#[test]
fn a_removed_schedule_leaves_its_jobs_and_a_new_one_knows_them() {
    let (mut world, _) = world();
    world.save(every("s", MINUTE)).unwrap();
    world.wait(MINUTE);
    let step = world.change("s", ScheduleChange::Remove);
    assert!(step.changes.contains(&Change::ScheduleRemoved(name("s"))));
    assert_eq!(world.core.next_wakeup_wall(), None);
    world.save(every("s", MINUTE)).unwrap();
    assert_eq!(rows(&world.wait(MINUTE)), [(120, RunResult::Skipped, None, 1)]);
}

#[test]
fn a_job_does_not_start_before_its_time_also_over_restarts_and_clock_jumps() {
    let (mut world, _) = world();
    let later = JobSpec { not_before_ms: Some(NOON + 60 * MINUTE), ..spec() };
    assert_eq!(placed(&world.submit(later.clone())), []);
    let said = world.explain(1);
    assert_eq!(said, ["not before 2026-11-26T13:00:00+00:00, which is in 60 min"]);
    world.restart();
    world.join("a", 1);
    assert_eq!(world.explain(1).len(), 1);
    world.jump(NOON - 60 * MINUTE);
    assert_eq!(world.wait(60 * MINUTE).iter().flat_map(placed).count(), 0);
    let steps = world.jump(NOON + 60 * MINUTE);
    assert_eq!(placed(&steps[0]), [(at(1, 1, 1), "a")]);

    world.submit(JobSpec { not_before_ms: Some(u64::MAX), ..spec() });
    world.cancel(2);
    assert_eq!(world.state(2), JobState::Cancelled);
    assert_eq!(world.core.next_wakeup_wall(), None);
    let past = world.submit(JobSpec { not_before_ms: Some(5), ..spec() });
    assert_eq!(placed(&past), [(at(3, 1, 1), "a")]);
}

#[test]
fn the_time_in_which_a_job_expires_begins_when_it_may_start() {
    let mut world = World::new();
    world.now.wall_ms = NOON;
    let rules = JobRules { expires_ms: Some(10 * MINUTE), ..JobRules::default() };
    world.submit(JobSpec {
        not_before_ms: Some(NOON + 60 * MINUTE),
        rules: rules.into(),
        ..spec()
    });
    // The clock is set back: it starts later.
    world.wait(30 * MINUTE);
    world.jump(NOON - 60 * MINUTE);
    world.wait(110 * MINUTE);
    world.restart();
    world.wait(10 * MINUTE);
    assert_eq!(world.state(1), JobState::Queued);
    world.wait(9 * MINUTE);
    world.restart();
    assert_eq!(world.state(1), JobState::Queued);
    world.wait(MINUTE);
    assert_eq!(world.state(1), JobState::Expired);
}

#[test]
fn schedules_that_are_due_together_run_in_bounded_steps() {
    let mut world = World::new();
    world.now.wall_ms = NOON;
    for n in 0..300 {
        world.save(every(&format!("s{n}"), MINUTE)).unwrap();
    }
    let steps = world.wait(MINUTE);
    assert!(steps.len() > 3, "{}", steps.len());
    assert_eq!(rows(&steps).len(), 300);
}
