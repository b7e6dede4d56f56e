//! Tasks that run again, nodes that are avoided, and jobs that end by their rules.

use super::*;
use podmesh_protocol::limits::AVOID_MS_MAX;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::JobRules;

/// A world with a node `a` of four cores, and a job.
fn with(spec: JobSpec) -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec);
    (world, epoch)
}

fn rules(max_failures: Option<u32>, max_active: Option<u32>, expires_ms: Option<u64>) -> JobRules {
    JobRules { max_failures, max_active, expires_ms, ..JobRules::default() }
}

fn retrying(retries: u32) -> RetryPolicy {
    RetryPolicy { retries, backoff_ms: 0, ..RetryPolicy::default() }
}

fn requeued(step: &Step) -> u32 {
    match replies(step).as_slice() {
        [Ok(Answer::Requeued { tasks })] => *tasks,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_named_exit_codes_are_retried() {
    let codes = |text: &str| Some(text.parse().unwrap());
    let signal = Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) };
    let timed_out = Outcome::new(OutcomeKind::TimedOut);
    for (on, not_on, outcome, is_retried) in [
        (codes("1,75"), None, Outcome::exited(75), true),
        (codes("1,75"), None, Outcome::exited(2), false),
        (codes("1-10"), None, Outcome::exited(7), true),
        (codes("137"), None, signal.clone(), true),
        (codes("1"), None, signal, false),
        (codes("124"), None, timed_out.clone(), true),
        (codes("1"), None, timed_out, false),
        (codes("1"), None, Outcome::new(OutcomeKind::Lost), true),
        (None, codes("2"), Outcome::exited(2), false),
        (None, codes("2"), Outcome::exited(1), true),
    ] {
        let retry = RetryPolicy { on, not_on, ..retrying(3) };
        let (mut world, epoch) = with(JobSpec { retry, ..spec() });
        let step = world.report(1, epoch, vec![ended(1, at(1, 1, 1), outcome.clone())]);
        assert_eq!(ends(&step)[0].2.is_some(), is_retried, "{outcome:?}");
    }
}

#[test]
fn a_job_ends_when_too_many_tasks_have_failed() {
    let (mut world, epoch) = with(JobSpec { rules: rules(Some(2), None, None).into(), ..array(9) });
    assert_eq!(world.counts(1), [5, 4, 0, 0, 0]);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Running, [4, 4, 0, 1, 0]));
    let step = world.report(1, epoch, vec![exited(2, at(1, 2, 1), 1)]);
    let said = step.events.iter().find_map(|event| match event {
        EventFact::JobEndedEarly { message, .. } => Some(message.as_str()),
        _ => None,
    });
    assert!(said.unwrap().contains("2 tasks have failed (--max-failures)"), "{said:?}");
    assert_eq!(stops(&step).len(), 3, "what runs is stopped");
    assert_eq!(world.state(1), JobState::Cancelling);
    let left = [at(1, 3, 1), at(1, 4, 1), at(1, 5, 1)];
    let reports = (3..).zip(left).map(|(number, attempt)| exited(number, attempt, 143));
    world.report(1, epoch, reports.collect());
    assert_eq!((world.state(1), world.counts(1)), (JobState::Failed, [0, 0, 0, 2, 7]));
    // The last task that fails ends the job in any case.
    let (mut world, epoch) = with(JobSpec { rules: rules(Some(1), None, None).into(), ..spec() });
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert!(!step.events.iter().any(|event| matches!(event, EventFact::JobEndedEarly { .. })));
    assert_eq!(world.state(1), JobState::Failed);
}

#[test]
fn a_job_has_no_more_active_tasks_than_it_may() {
    let (mut world, epoch) = with(JobSpec { rules: rules(None, Some(2), None).into(), ..array(5) });
    world.submit(spec());
    assert_eq!(world.counts(1), [3, 2, 0, 0, 0]);
    assert_eq!(world.counts(2), [0, 1, 0, 0, 0], "the next job has the room");
    assert_eq!(world.explain(1), ["2 of 2 tasks are active (--max-active)"]);
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(1, 3, 1), "a")]);
    world.restart();
    assert_eq!(world.counts(1), [2, 2, 1, 0, 0]);
    world.connect(Hello { attempts: vec![at(1, 2, 1), at(1, 3, 1)], ..hello("a", 1) }, 2);
    assert_eq!(world.counts(1), [2, 2, 1, 0, 0]);
}

#[test]
fn tasks_without_an_attempt_in_time_expire() {
    let limited = JobSpec { rules: rules(None, Some(1), Some(60_000)).into(), ..array(3) };
    let (mut world, epoch) = with(limited);
    world.pass(30_000);
    world.restart();
    world.connect(Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) }, 2);
    world.beat(Epoch(epoch.0 + 1), HeartbeatChange::Begun);
    assert_eq!(world.pass(29_999).events, []);
    let step = world.pass(1);
    let facts: Vec<&EventFact> = step.events.iter().collect();
    assert!(
        matches!(facts.as_slice(), [EventFact::JobEndedEarly { message, .. }]
            if message.starts_with("expired: 2 tasks")),
        "{facts:?}"
    );
    assert_eq!((world.state(1), world.counts(1)), (JobState::Running, [0, 1, 0, 0, 2]));
    world.report(2, Epoch(epoch.0 + 1), vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Expired, [0, 0, 1, 0, 2]));

    // The time begins again when they are requeued.
    assert_eq!(requeued(&world.requeue(1, true, |_| true)), 2);
    assert_eq!(world.counts(1), [1, 1, 1, 0, 0]);
    world.pass(59_999);
    assert_eq!(world.counts(1), [1, 1, 1, 0, 0]);
    world.pass(1);
    assert_eq!(world.counts(1), [0, 1, 1, 0, 1]);
    // One that never had an attempt ends at once.
    let mut world = World::new();
    world.submit(JobSpec { rules: rules(None, None, Some(5)).into(), ..array(3) });
    let step = world.pass(5);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Expired, [0, 0, 0, 0, 3]));
    assert!(
        step.events
            .contains(&EventFact::JobEnded { job: JobId(1), state: JobState::Expired.into() })
    );
}

#[test]
fn a_retry_goes_to_a_node_where_the_task_has_not_failed() {
    let (mut world, first) = with(JobSpec { retry: retrying(3), ..array(8) });
    assert_eq!(world.counts(1), [4, 4, 0, 0, 0]);
    // All of `b` is in use, too: a task that failed on `a` waits for it.
    let second = world.join("b", 2);
    assert_eq!(world.counts(1), [0, 8, 0, 0, 0]);
    let step = world.report(1, first, vec![exited(1, at(1, 1, 1), 1)]);
    assert_eq!(placed(&step), []);
    let said = world.explain(1);
    assert!(said[0].starts_with("1 task waits for room on another node"), "{said:?}");
    assert_eq!(world.pass(2_000).events, []);
    world.report(2, second, vec![exited(1, at(1, 5, 1), 0)]);
    assert_eq!(placed(&world.pass(2_000)), [(at(1, 1, 2), "b")]);
    // After a failure on both, either will do; a restart changes nothing of that.
    let step = world.report(2, second, vec![exited(2, at(1, 1, 2), 1)]);
    assert_eq!(placed(&step).len(), 1);
    let step = world.report(1, first, vec![exited(2, at(1, 2, 1), 1)]);
    assert_eq!(placed(&step), []);
    // It does not wait for ever.
    let step = world.pass(AVOID_MS_MAX - 1);
    assert_eq!(placed(&step), []);
    assert_eq!(placed(&world.pass(1)), [(at(1, 2, 2), "a")]);
}

#[test]
fn a_node_is_avoided_after_a_restart_of_the_manager() {
    let retry = RetryPolicy { backoff_ms: 1_000, ..retrying(3) };
    let (mut world, first) = with(JobSpec { retry, ..spec() });
    world.report(1, first, vec![exited(1, at(1, 1, 1), 1)]);
    world.restart();
    let first = welcome(&world.connect(hello("a", 1), 3)).epoch;
    let second = world.join("b", 2);
    world.beat(first, HeartbeatChange::Begun);
    world.beat(second, HeartbeatChange::Begun);
    assert_eq!(placed(&world.pass(1_000)), [(at(1, 1, 2), "b")]);
}

#[test]
fn failed_tasks_of_an_ended_job_run_again_in_the_same_job() {
    let (mut world, epoch) = with(JobSpec { retry: retrying(1), ..array(2) });
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1), exited(2, at(1, 2, 1), 0)]);
    world.report(1, epoch, vec![exited(3, at(1, 1, 2), 1)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Failed, [0, 0, 1, 1, 0]));
    assert!(world.core.state().jobs.is_empty());

    let step = world.requeue(1, true, |_| true);
    assert_eq!(requeued(&step), 1);
    assert_eq!(placed(&step), [(at(1, 1, 3), "a")], "the numbers go on");
    let by = name("ann");
    assert!(step.events.contains(&EventFact::JobRequeued { job: JobId(1), tasks: 1, by }));
    assert_eq!((world.state(1), world.counts(1)), (JobState::Running, [0, 1, 1, 0, 0]));
    // Its retries count anew.
    let step = world.report(1, epoch, vec![exited(4, at(1, 1, 3), 1)]);
    assert_eq!(placed(&step), [(at(1, 1, 4), "a")]);
    let step = world.report(1, epoch, vec![exited(5, at(1, 1, 4), 1)]);
    assert_eq!((ends(&step)[0].2, world.state(1)), (None, JobState::Failed));
    // Once more, after a restart of the manager.
    world.restart();
    let epoch = welcome(&world.connect(hello("a", 1), 2)).epoch;
    world.beat(epoch, HeartbeatChange::Begun);
    assert_eq!(placed(&world.requeue(1, true, |_| true)), [(at(1, 1, 5), "a")]);
    world.report(2, epoch, vec![exited(6, at(1, 1, 5), 0)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Succeeded, [0, 0, 2, 0, 0]));
    // Its submission is still known.
    world.last_key = 0;
    let step = world.submit(JobSpec { retry: retrying(1), ..array(2) });
    assert_eq!(replies(&step), [Ok(Answer::Submitted { job: JobId(1), again: true })]);
}

#[test]
fn failed_tasks_of_a_running_job_run_again_and_others_are_left_alone() {
    let (mut world, epoch) = with(array(4));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1), exited(2, at(1, 2, 1), 0)]);
    let (_, stale) = world.model.ended_tasks(JobId(1));
    assert_eq!(requeued(&world.requeue(1, false, |_| true)), 1);
    assert_eq!(world.counts(1), [0, 3, 1, 0, 0]);
    // The task runs by now.
    let (by, job) = (name("ann"), JobId(1));
    let command = Command::Requeue { by, job, ended: None, tasks: stale, rest: true };
    assert_eq!(requeued(&world.give(Input::Command(TICKET, command))), 0);
    world.cancel(1);
    let step = world.requeue(1, true, |_| true);
    assert!(matches!(&replies(&step)[..], [Err(error)] if error.code == ErrorCode::Conflict));
}

#[test]
fn cancelled_tasks_run_again_with_or_without_those_that_had_no_attempt() {
    let (mut world, epoch) = with(array(6));
    world.cancel(1);
    let reports = (1..=4).map(|n| exited(u64::from(n), at(1, n, 1), 143));
    world.report(1, epoch, reports.collect());
    assert_eq!((world.state(1), world.counts(1)), (JobState::Cancelled, [0, 0, 0, 0, 6]));
    assert_eq!(requeued(&world.requeue(1, false, |index| index == 2)), 1);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Running, [0, 1, 0, 0, 5]));
    world.report(1, epoch, vec![exited(5, at(1, 2, 2), 0)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Cancelled, [0, 0, 1, 0, 5]));
    let step = world.requeue(1, true, |index| index == 3);
    assert_eq!(requeued(&step), 3);
    assert_eq!(placed(&step), [(at(1, 3, 2), "a"), (at(1, 5, 1), "a"), (at(1, 6, 1), "a")]);
    assert_eq!(world.counts(1), [0, 3, 1, 0, 2]);
}

#[test]
fn an_unknown_job_is_left_to_the_shell() {
    let mut world = World::new();
    let (by, job) = (name("ann"), JobId(3));
    let command = Command::Requeue { by, job, ended: None, tasks: Vec::new(), rest: true };
    let step = world.give(Input::Command(TICKET, command));
    assert_eq!(replies(&step), [Ok(Answer::EndedBefore { job })]);
}
