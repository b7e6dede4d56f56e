use super::*;
use crate::jobs::SUBMISSIONS_REMEMBERED;
use crate::state::Closed;
use crate::state::{Change, JobRow};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, EVENTS_PER_CHUNK_MAX};
use podmesh_protocol::report::TaskCounts;

#[test]
fn a_submission_becomes_the_next_job() {
    let mut world = World::new();
    let spec = Arc::new(array(3));
    let submission = SubmissionId(Uuid::from_u128(5));
    let input = Input::Command(
        TICKET,
        Command::Submit {
            by: name("ann"),
            submission,
            spec: Arc::clone(&spec),
            upstream: BTreeMap::new(),
        },
    );
    let step = world.give(input.clone());
    let row = JobRow {
        job: JobId(1),
        state: JobState::Queued,
        closed: None,
        rest_cancelled: false,
        next_index: 1,
        counts: TaskCounts { queued: 3, ..TaskCounts::default() },
        attempts: 0,
        started_wall_ms: None,
        ended_wall_ms: None,
    };
    assert_eq!(
        step.changes,
        [
            Change::JobInserted {
                job: JobId(1),
                submission,
                spec,
                by: name("ann"),
                wall_ms: 5_000
            },
            Change::JobUpdated(row)
        ]
    );
    assert_eq!(
        step.events,
        [EventFact::JobSubmitted { job: JobId(1), name: name("work"), tasks: 3 }]
    );
    assert_eq!(step.first_revision, Some(Revision(1)));
    assert_eq!(replies(&step), [Ok(Answer::Submitted { job: JobId(1), again: false })]);

    let step = world.give(input);
    assert!(step.changes.is_empty() && step.events.is_empty());
    assert_eq!(replies(&step), [Ok(Answer::Submitted { job: JobId(1), again: true })]);
    assert_eq!(
        replies(&world.submit(array(1))),
        [Ok(Answer::Submitted { job: JobId(2), again: false })]
    );
}

#[test]
fn the_submission_of_an_ended_job_is_remembered_for_thousands_more() {
    let mut world = World::new();
    let again = |world: &mut World, key: u128| {
        let submission = SubmissionId(Uuid::from_u128(key));
        let spec = Arc::new(spec());
        let step = world.give(Input::Command(
            TICKET,
            Command::Submit { by: name("ann"), submission, spec, upstream: BTreeMap::new() },
        ));
        matches!(replies(&step).as_slice(), [Ok(Answer::Submitted { again: true, .. })])
    };
    world.submit(spec());
    world.cancel(1);
    assert_eq!(world.state(1), JobState::Cancelled);
    assert!(again(&mut world, 1));
    // The model would be slow for so many, so these inputs go directly to the core.
    let mut step = Step::default();
    for key in 0..SUBMISSIONS_REMEMBERED as u64 {
        let submission = SubmissionId(Uuid::from_u128(1_000 + u128::from(key)));
        let spec = Arc::new(spec());
        let submit = Input::Command(
            TICKET,
            Command::Submit { by: name("ann"), submission, spec, upstream: BTreeMap::new() },
        );
        let cancel = Input::Command(TICKET, Command::Cancel { job: JobId(2 + key) });
        for input in [submit, cancel] {
            step.clear();
            world.core.step(world.now, input, &mut step);
        }
    }
    world.core.check_invariants();
    assert_eq!(world.core.submissions.get(&SubmissionId(Uuid::from_u128(1))), None);
    assert_eq!(world.core.submissions.get(&SubmissionId(Uuid::from_u128(1_000))), Some(JobId(2)));
}

#[test]
fn queued_tasks_are_cancelled_at_once() {
    let mut world = World::new();
    world.submit(array(1_000_000));
    let step = world.cancel(1);
    assert_eq!(
        step.events,
        [
            EventFact::JobCancelRequested { job: JobId(1) },
            EventFact::JobEnded { job: JobId(1), state: JobState::Cancelled.into() }
        ]
    );
    let [Change::JobClosed(JobId(1), Closed::Cancelled), Change::JobUpdated(_)] =
        step.changes.as_slice()
    else {
        panic!("there is a row for a task that never started: {:?}", step.changes)
    };
    assert_eq!(replies(&step), [Ok(Answer::Cancelled { state: JobState::Cancelled })]);
    assert_eq!(world.counts(1), [0, 0, 0, 0, 1_000_000]);
    assert_eq!(world.model.job(JobId(1)).next_index, 1);
}

#[test]
fn running_tasks_are_stopped_and_the_job_ends_with_the_last_one() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(array(6));
    let step = world.cancel(1);
    let running = [at(1, 1, 1), at(1, 2, 1), at(1, 3, 1), at(1, 4, 1)];
    assert_eq!(stops(&step), running.map(|attempt| (attempt, StopReason::Cancelled)));
    assert_eq!(replies(&step), [Ok(Answer::Cancelled { state: JobState::Cancelling })]);
    assert_eq!(world.counts(1), [0, 4, 0, 0, 2]);

    let again = world.cancel(1);
    assert_eq!(replies(&again), [Ok(Answer::Cancelled { state: JobState::Cancelling })]);
    assert!(again.events.is_empty() && stops(&again).is_empty());

    let step = world.report(
        1,
        epoch,
        vec![
            exited(1, running[0], 0),
            ended(2, running[1], Outcome::new(podmesh_protocol::report::OutcomeKind::Cancelled)),
            exited(3, running[2], 143),
        ],
    );
    let kinds: Vec<_> = ends(&step).into_iter().map(|(_, outcome, _)| outcome.kind).collect();
    use podmesh_protocol::report::OutcomeKind::{Cancelled, Succeeded};
    assert_eq!(kinds, [Succeeded, Cancelled, Cancelled], "the state of each task");
    assert_eq!(ends(&step)[2].1.exit_code, Some(143));
    assert_eq!((world.state(1), world.counts(1)), (JobState::Cancelling, [0, 1, 1, 0, 4]));
    let step = world.report(1, epoch, vec![exited(4, running[3], 1)]);
    assert_eq!(
        step.events[1],
        EventFact::JobEnded { job: JobId(1), state: JobState::Cancelled.into() }
    );
    assert!(messages(&step).contains(&&ToPeer::ForgetJobs(epoch, vec![JobId(1)])));
}

#[test]
fn an_unknown_or_ended_job_cannot_be_cancelled() {
    let mut world = World::new();
    let said = |step: &Step| match replies(step).as_slice() {
        [Err(error)] => (error.code, error.message.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        said(&world.cancel(1)),
        (ErrorCode::NotFound, "there is no job 1: none has been submitted yet".into())
    );
    world.submit(spec());
    for job in [0, 2] {
        let message = format!("there is no job {job}; the last one is 1");
        assert_eq!(said(&world.cancel(job)), (ErrorCode::NotFound, message));
    }
    world.cancel(1);
    let step = world.cancel(1);
    let effect =
        Effect::Answered { ticket: TICKET, result: Ok(Answer::EndedBefore { job: JobId(1) }) };
    assert_eq!((step.changes.len(), step.effects), (0, vec![effect]));
}

#[test]
fn a_cancel_drops_waiting_retries_in_bounded_steps() {
    const TASKS: u32 = 6_000;
    let mut world = World::new();
    let mut tiny = array(TASKS);
    tiny.resources.cpu_millis = 1;
    tiny.retry.retries = 1;
    let mut large = hello("a", 1);
    large.capacity.cpu_millis = 10_000;
    let epoch = welcome(&world.connect(large, 1)).epoch;
    world.submit(tiny);
    world.drain();
    for (number, index) in (1..).zip(1..=TASKS) {
        let reports = vec![exited(number, at(1, index, 1), 1)];
        let input = Input::AttemptsReported { connection: connection(1), epoch, reports };
        let mut step = Step::default();
        world.core.step(world.now, input, &mut step);
        world.model.apply(world.now.mono_ms, &step);
    }
    assert_eq!(world.counts(1), [TASKS, 0, 0, 0, 0]);
    let mut steps = vec![world.cancel(1)];
    assert_eq!(world.state(1), JobState::Cancelling);
    steps.extend(world.drain());
    for step in &steps {
        assert!(step.changes.len() <= BATCH_ROWS_MAX + 1, "{}", step.changes.len());
    }
    assert_eq!((world.state(1), world.counts(1)), (JobState::Cancelled, [0, 0, 0, 0, TASKS]));
}

#[test]
fn a_large_array_is_assigned_in_bounded_steps() {
    let mut world = World::new();
    let mut tiny = array(1_000_000);
    tiny.resources.cpu_millis = 1;
    let mut large = hello("a", 1);
    large.capacity.cpu_millis = 1_000_000;
    world.connect(large, 1);
    let mut steps = vec![world.submit(tiny)];
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms), "there is more to do");
    steps.extend(world.drain());
    for step in &steps {
        assert!(step.events.len() <= EVENTS_PER_CHUNK_MAX);
        for message in messages(step) {
            if let ToPeer::Starts(_, attempts) = message {
                assert!(attempts.len() <= BATCH_ROWS_MAX);
            }
        }
    }
    let sent: Vec<AttemptId> = steps.iter().flat_map(starts).collect();
    let expected: Vec<AttemptId> = (1..=10_000).map(|index| at(1, index, 1)).collect();
    assert_eq!(sent, expected, "as many as a node may hold, once each, in order");
    assert_eq!(world.core.state().jobs[&JobId(1)].active.len(), 10_000);
    assert_eq!(world.core.next_wakeup(), world.core.nodes.iter().next().unwrap().1.resend_ms);
}

#[test]
fn work_that_does_not_fit_into_a_step_comes_next_in_order() {
    // Each end of a job of one task makes two events; 4,096 reports make 8,192.
    let mut world = World::new();
    let mut tiny = spec();
    tiny.resources.cpu_millis = 1;
    let mut large = hello("a", 1);
    large.capacity.cpu_millis = 10_000;
    let epoch = welcome(&world.connect(large, 1)).epoch;
    for _ in 0..4_096 {
        world.last_key += 1;
        let submission = SubmissionId(Uuid::from_u128(world.last_key));
        let spec = Arc::new(tiny.clone());
        let mut step = Step::default();
        let input = Input::Command(
            TICKET,
            Command::Submit { by: name("ann"), submission, spec, upstream: BTreeMap::new() },
        );
        world.core.step(world.now, input, &mut step);
        world.model.apply(world.now.mono_ms, &step);
    }
    let reports = (1..=4_096).map(|job| exited(job, at(job, 1, 1), 0)).collect();
    let mut steps = vec![world.report(1, epoch, reports)];
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms));
    // A later input does not overtake the rest of the previous one.
    steps.push(world.report(1, epoch, vec![exited(4_097, at(1, 1, 1), 0)]));
    steps.extend(world.drain());
    let acked: Vec<u64> = steps
        .iter()
        .flat_map(messages)
        .filter_map(|message| match message {
            ToPeer::Acked(_, acked) => Some(*acked),
            ToPeer::HelloAgain(_) => panic!("no gap"),
            _ => None,
        })
        .collect();
    assert!(acked.is_sorted() && acked.last() == Some(&4_097), "{acked:?}");
    assert!(world.model.ended());
}
