use super::*;
use crate::state::Change;
use podmesh_protocol::limits::{MESSAGE_BYTES_MAX, RETRIES_MAX, START_RESEND_MS};
use podmesh_protocol::report::{AttemptState, OutcomeKind};

/// Returns a world with node `a` (connection and instance 1) and one job.
fn with(spec: JobSpec) -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec);
    (world, epoch)
}

#[test]
fn a_task_goes_from_assigned_to_its_end() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let step = world.submit(spec());
    let attempt = at(1, 1, 1);
    let job_spec = ToPeer::JobSpec {
        epoch,
        job: JobId(1),
        on_lost: OnLost::Wait,
        resources: spec().resources,
        run: spec().run,
        name: name("work"),
    };
    assert_eq!(messages(&step)[..], [&job_spec, &ToPeer::Starts(epoch, vec![attempt])]);
    assert_eq!(
        step.events,
        [
            EventFact::JobSubmitted { job: JobId(1), name: name("work"), tasks: 1 },
            EventFact::AttemptAssigned { attempt, node: name("a") }
        ]
    );
    assert_eq!((world.state(1), world.counts(1)), (JobState::Running, [0, 1, 0, 0, 0]));

    let preparing = |number| Report(number, attempt, ReportFact::Preparing("pulling".into()));
    let step = world.report(1, epoch, vec![preparing(1), preparing(2), started(3, attempt)]);
    let advanced = |state| Change::AttemptAdvanced { attempt, state, wall_ms: 5_000 };
    let (preparing, running) = (AttemptState::Preparing, AttemptState::Running);
    assert_eq!(step.changes, [advanced(preparing), advanced(running)]);
    let said = EventFact::AttemptPreparing { attempt, message: "pulling".into() };
    assert_eq!(step.events, [said.clone(), said, EventFact::AttemptStarted { attempt }]);
    assert_eq!(messages(&step), [&ToPeer::Acked(epoch, 3)]);

    let outcome = Outcome::exited(0);
    let gap = Report(4, attempt, ReportFact::LogGap("12 bytes".into()));
    let step = world.report(1, epoch, vec![gap, exited(5, attempt, 0)]);
    assert_eq!(
        step.events,
        [
            EventFact::LogGap { attempt, message: "12 bytes".into() },
            EventFact::AttemptEnded {
                attempt,
                outcome: outcome.clone().into(),
                retry_after_ms: None
            },
            EventFact::JobEnded { job: JobId(1), state: JobState::Succeeded.into() },
        ]
    );
    assert_eq!(
        step.changes[0],
        Change::AttemptEnded { attempt, outcome, wall_ms: 5_000, retry_after_ms: None }
    );
    assert_eq!(
        messages(&step),
        [&ToPeer::Acked(epoch, 5), &ToPeer::ForgetJobs(epoch, vec![JobId(1)])]
    );
    assert_eq!(world.node("a").free, world.node("a").capacity);
}

#[test]
fn known_reports_are_skipped_and_after_a_gap_the_agent_must_say_hello_again() {
    let (mut world, epoch) = with(array(3));
    world.report(1, epoch, vec![started(1, at(1, 1, 1)), started(2, at(1, 2, 1))]);
    let step = world.report(1, epoch, vec![exited(2, at(1, 2, 1), 0), started(3, at(1, 3, 1))]);
    assert_eq!(step.events, [EventFact::AttemptStarted { attempt: at(1, 3, 1) }]);
    let step = world.report(1, epoch, vec![exited(4, at(1, 1, 1), 0), exited(6, at(1, 2, 1), 0)]);
    assert_eq!(ends(&step).len(), 1);
    assert_eq!(messages(&step), [&ToPeer::Acked(epoch, 4), &ToPeer::HelloAgain(epoch)]);
}

#[test]
fn a_stale_session_changes_nothing() {
    let (mut world, epoch) = with(spec());
    let attempt = at(1, 1, 1);
    for (number, said) in [(1, Epoch(99)), (2, epoch), (1, Epoch(0))] {
        let step = world.report(number, said, vec![exited(1, attempt, 0)]);
        assert!(step.changes.is_empty() && step.events.is_empty());
        assert_eq!(messages(&step), [&ToPeer::HelloAgain(said)]);
        let step = world.give(Input::AgentLeft { connection: connection(number), epoch: said });
        assert_eq!(messages(&step), [&ToPeer::HelloAgain(said)]);
    }
    assert_eq!(world.node("a").state, NodeState::Alive);
}

#[test]
fn a_report_for_the_wrong_node_or_attempt_is_ignored_and_acknowledged() {
    let (mut world, _) = with(spec());
    let other = world.join("b", 2);
    let reports =
        vec![exited(1, at(1, 1, 1), 0), exited(2, at(1, 1, 2), 0), exited(3, at(8, 1, 1), 0)];
    let step = world.report(2, other, reports);
    assert!(step.changes.is_empty() && step.events.is_empty());
    assert_eq!(messages(&step), [&ToPeer::Acked(other, 3)]);
    assert_eq!(world.counts(1), [0, 1, 0, 0, 0]);
}

#[test]
fn a_failure_is_retried_with_growing_waits() {
    let mut spec = spec();
    spec.retry = RetryPolicy { retries: 4, backoff_ms: 1_000, backoff_ms_max: 5_000, ..spec.retry };
    let (mut world, epoch) = with(spec);
    for (attempt, wait) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 5_000)] {
        let number = u64::from(attempt);
        let step = world.report(1, epoch, vec![exited(number, at(1, 1, attempt), 3)]);
        assert_eq!(ends(&step), [(at(1, 1, attempt), Outcome::exited(3), Some(wait))]);
        assert_eq!(world.counts(1), [1, 0, 0, 0, 0]);
        assert_eq!(placed(&world.pass(wait - 1)), []);
        assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms + 1));
        assert_eq!(placed(&world.pass(1)), [(at(1, 1, attempt + 1), "a")]);
    }
    let timed_out = Outcome::new(OutcomeKind::TimedOut);
    let step = world.report(1, epoch, vec![ended(5, at(1, 1, 5), timed_out.clone())]);
    assert_eq!(ends(&step), [(at(1, 1, 5), timed_out, None)]);
    assert_eq!((world.state(1), world.counts(1)), (JobState::Failed, [0, 0, 0, 1, 0]));
}

#[test]
fn a_loss_uses_a_retry_only_with_on_lost_wait() {
    for (on_lost, retried) in [(OnLost::Wait, None), (OnLost::Requeue, Some(0))] {
        let (mut world, epoch) = with(JobSpec { on_lost, ..spec() });
        let lost = Outcome::new(OutcomeKind::Lost);
        let step = world.report(1, epoch, vec![ended(1, at(1, 1, 1), lost.clone())]);
        assert_eq!(ends(&step), [(at(1, 1, 1), lost, retried)]);
    }
    // After two losses there is still one retry for a failure.
    let mut spec = JobSpec { on_lost: OnLost::Requeue, ..spec() };
    spec.retry.retries = 1;
    let (mut world, epoch) = with(spec);
    let lost = || Outcome::new(OutcomeKind::Lost);
    world.report(1, epoch, vec![ended(1, at(1, 1, 1), lost())]);
    world.report(1, epoch, vec![ended(2, at(1, 1, 2), lost())]);
    let step = world.report(1, epoch, vec![exited(3, at(1, 1, 3), 1)]);
    assert_eq!(ends(&step)[0].2, Some(1_000), "the first backoff");
    // The same after a restart of the manager.
    world.restart();
    world.now.mono_ms += 1_000;
    let epoch = world.join("a", 1);
    let step = world.report(1, epoch, vec![exited(4, at(1, 1, 4), 1)]);
    assert_eq!(ends(&step), [(at(1, 1, 4), Outcome::exited(1), None)]);
}

#[test]
fn a_task_fails_after_too_many_losses() {
    let (mut world, epoch) = with(JobSpec { on_lost: OnLost::Requeue, ..spec() });
    for number in 1..=RETRIES_MAX {
        let lost = Outcome::new(OutcomeKind::Lost);
        let step = world.report(1, epoch, vec![ended(number.into(), at(1, 1, number), lost)]);
        assert_eq!(ends(&step)[0].2, Some(0));
    }
    let number = RETRIES_MAX + 1;
    let lost = Outcome::new(OutcomeKind::Lost);
    world.report(1, epoch, vec![ended(number.into(), at(1, 1, number), lost)]);
    assert_eq!(world.state(1), JobState::Failed);
}

#[test]
fn an_attempt_that_ends_as_cancelled_without_a_cancel_has_failed() {
    let (mut world, epoch) = with(spec());
    let cancelled = Outcome::new(OutcomeKind::Cancelled);
    let step = world.report(1, epoch, vec![ended(1, at(1, 1, 1), cancelled)]);
    let expected = Outcome::new(OutcomeKind::Failed)
        .with_message("its agent stopped it although the job was not cancelled");
    assert_eq!(ends(&step), [(at(1, 1, 1), expected, None)]);
    assert_eq!(world.state(1), JobState::Failed);
}

#[test]
fn long_texts_are_cut() {
    let (mut world, epoch) = with(spec());
    let long = "é".repeat(MESSAGE_BYTES_MAX);
    let outcome = Outcome { message: Some(long.clone()), ..Outcome::exited(1) };
    let preparing = Report(1, at(1, 1, 1), ReportFact::Preparing(long.clone()));
    let gap = Report(2, at(1, 1, 1), ReportFact::LogGap(long));
    let step = world.report(1, epoch, vec![preparing, gap, ended(3, at(1, 1, 1), outcome)]);
    let cut = "é".repeat(MESSAGE_BYTES_MAX / 2);
    assert_eq!(
        step.events[..2],
        [
            EventFact::AttemptPreparing { attempt: at(1, 1, 1), message: cut.clone() },
            EventFact::LogGap { attempt: at(1, 1, 1), message: cut.clone() }
        ]
    );
    assert_eq!(ends(&step)[0].1.message, Some(cut));
}

#[test]
fn a_start_without_any_report_is_sent_again() {
    let (mut world, epoch) = with(array(2));
    world.now.mono_ms += 1_000;
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms + START_RESEND_MS - 1_000));
    let step = world.pass(START_RESEND_MS - 1_001);
    assert!(step.is_empty());
    let step = world.pass(1);
    assert_eq!(messages(&step), [&ToPeer::Starts(epoch, vec![at(1, 2, 1)])], "without the spec");
    assert!(step.changes.is_empty() && step.events.is_empty());
    let step = world.pass(START_RESEND_MS);
    assert_eq!(starts(&step), [at(1, 2, 1)]);
    world.report(1, epoch, vec![started(2, at(1, 2, 1))]);
    assert!(world.pass(START_RESEND_MS).is_empty());
    assert_eq!(world.core.next_wakeup(), None);
}

#[test]
fn after_a_cancel_a_start_without_any_report_is_stopped_again() {
    let (mut world, _) = with(spec());
    world.cancel(1);
    let step = world.pass(START_RESEND_MS);
    assert_eq!((starts(&step), stops(&step)), (vec![], vec![(at(1, 1, 1), StopReason::Cancelled)]));
}

#[test]
fn a_job_fails_if_one_of_its_tasks_fails() {
    let (mut world, epoch) = with(array(3));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0), exited(2, at(1, 2, 1), 9)]);
    assert_eq!(world.state(1), JobState::Running);
    let step = world.report(1, epoch, vec![exited(3, at(1, 3, 1), 0)]);
    assert_eq!(
        step.events[1],
        EventFact::JobEnded { job: JobId(1), state: JobState::Failed.into() }
    );
    assert_eq!(world.counts(1), [0, 0, 2, 1, 0]);
}

#[test]
fn an_attempt_that_cannot_start_uses_no_retry_and_is_repeated_after_a_short_time() {
    let mut spec = spec();
    spec.retry.retries = 1;
    let (mut world, epoch) = with(spec);
    let not_started = || Outcome::not_started("no room");
    for (number, wait) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        let attempt = at(1, 1, number);
        let report = ended(number.into(), attempt, not_started());
        let step = world.report(1, epoch, vec![report]);
        assert_eq!(ends(&step), [(attempt, not_started(), Some(wait))]);
        assert_eq!(placed(&world.pass(wait)), [(at(1, 1, number + 1), "a")]);
    }
    // The one retry is still there, also after a restart of the manager.
    world.restart();
    let epoch = world.join("a", 1);
    let step = world.report(1, epoch, vec![exited(4, at(1, 1, 4), 3)]);
    assert_eq!(ends(&step), [(at(1, 1, 4), Outcome::exited(3), Some(1_000))]);
    world.pass(1_000);
    let step = world.report(1, epoch, vec![exited(5, at(1, 1, 5), 3)]);
    assert_eq!(ends(&step), [(at(1, 1, 5), Outcome::exited(3), None)]);
}

#[test]
fn a_task_that_its_node_cannot_start_goes_to_another_node_while_that_has_room() {
    let (mut world, epoch) = with(spec());
    let not_started = || Outcome::not_started("a path does not answer");
    let b = world.join("b", 2);
    // Without this rule it would go to `a`, the first of two equal nodes.
    world.report(1, epoch, vec![ended(1, at(1, 1, 1), not_started())]);
    assert_eq!(placed(&world.pass(1_000)), [(at(1, 1, 2), "b")]);
    // Without room elsewhere it goes to the same node again.
    world.report(2, b, vec![ended(1, at(1, 1, 2), not_started())]);
    let large = Resources { cpu_millis: 4000, memory_bytes: 0 };
    let step = world.submit(JobSpec { resources: large, ..spec() });
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
    assert_eq!(placed(&world.pass(2_000)), [(at(1, 1, 3), "b")]);
}
