//! Tests of dead-letter jobs: exactly one for each task that has failed for good.

use podmesh_protocol::limits::{DEAD_LETTERS_PER_JOB, ENV_BYTES_MAX};
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::JobRules;

use super::*;
use crate::input::QueueAction;
use crate::state::Change;

/// A job that waits in a queue.
fn queued(queue: &str, spec: JobSpec) -> JobSpec {
    let queue = Some(name(queue));
    JobSpec { rules: JobRules { queue, ..JobRules::default() }.into(), ..spec }
}

fn letter(spec: JobSpec) -> QueueChange {
    QueueChange { dead_letter: Some(Box::new(spec)), ..QueueChange::default() }
}

/// The job of the tests, which never has room: it needs more cores than there are.
fn alarm() -> JobSpec {
    let resources = Resources { cpu_millis: 64_000, memory_bytes: 0 };
    JobSpec { name: name("alarm"), resources, ..spec() }
}

/// A world with one node and the queue `night`, which has a dead-letter job.
fn world() -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.set_queue("night", letter(alarm()));
    (world, epoch)
}

/// Returns the dead-letter jobs that a step has inserted.
fn letters(step: &Step) -> Vec<(JobId, &JobSpec, &Name)> {
    let found = step.changes.iter().filter_map(|change| match change {
        Change::JobInserted { job, spec, by, .. } if spec.dead_letter.is_some() => {
            Some((*job, &**spec, by))
        }
        _ => None,
    });
    found.collect()
}

fn skipped(step: &Step) -> Vec<&str> {
    let found = step.events.iter().filter_map(|event| match event {
        EventFact::DeadLetterSkipped { message, .. } => Some(message.as_str()),
        _ => None,
    });
    found.collect()
}

#[test]
fn a_task_that_fails_for_good_has_a_job_that_knows_it() {
    let (mut world, epoch) = world();
    let retry = RetryPolicy { retries: 1, backoff_ms: 0, ..RetryPolicy::default() };
    world.submit_as("bob", queued("night", JobSpec { retry, ..array(2) }));
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 3), exited(2, at(1, 2, 1), 0)]);
    assert_eq!(letters(&step), [], "it has a retry left");
    world.pass(1);
    let outcome = Outcome::exited(3).with_message("no\0 luck");
    let step = world.report(1, epoch, vec![ended(3, at(1, 1, 2), outcome)]);
    let found = letters(&step);
    let [(JobId(2), spec, by)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((*by, spec.name.as_str()), (&name("bob"), "alarm"));
    let of = spec.dead_letter.as_deref().unwrap();
    assert_eq!((&of.queue, of.attempt), (&name("night"), at(1, 1, 2)));
    let told = [
        ("QUEUE", "night"),
        ("JOB", "1"),
        ("JOB_NAME", "work"),
        ("TASK", "1.1"),
        ("ATTEMPT", "2"),
        ("NODE", "a"),
        ("EXIT_CODE", "3"),
        ("REASON", "failed, exit code 3: no luck"),
    ];
    let told = told.map(|(name, value)| (format!("PODMESH_FAILED_{name}"), value.to_owned()));
    assert_eq!(spec.run.env, told.into());
    let submitted = EventFact::DeadLetterSubmitted {
        attempt: at(1, 1, 2),
        queue: name("night"),
        dead_letter: JobId(2),
    };
    assert!(step.events.contains(&submitted), "{:?}", step.events);
    assert_eq!(world.state(1), JobState::Failed);

    // A restart, and the report again: there is no second one.
    world.restart();
    let step = world.connect(hello("a", 2), 2);
    let epoch = welcome(&step).epoch;
    let step = world.report(2, epoch, vec![exited(1, at(1, 1, 2), 3)]);
    assert_eq!(letters(&step), []);
    assert_eq!(world.core.state().last_job, JobId(2));

    // Requeued, it fails again, and has another one.
    world.requeue(1, false, |_| true);
    let step = world.report(2, epoch, vec![exited(2, at(1, 1, 3), 4)]);
    assert_eq!(letters(&step), [], "retries count anew");
    world.pass(1);
    let step = world.report(2, epoch, vec![exited(3, at(1, 1, 4), 4)]);
    assert_eq!(letters(&step)[0].1.dead_letter.as_deref().unwrap().attempt, at(1, 1, 4));
}

#[test]
fn what_was_cancelled_or_waits_in_another_queue_has_none() {
    let (mut world, epoch) = world();
    world.submit(queued("night", spec()));
    world.cancel(1);
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert_eq!((letters(&step), world.state(1)), (vec![], JobState::Cancelled));
    world.submit(spec());
    let step = world.report(1, epoch, vec![exited(2, at(2, 1, 1), 1)]);
    assert_eq!((letters(&step), world.state(2)), (vec![], JobState::Failed));
    // The default queue can have one too. A lost task has failed.
    world.set_queue("default", letter(alarm()));
    world.submit(spec());
    let lost = Outcome::new(OutcomeKind::Lost);
    let step = world.report(1, epoch, vec![ended(3, at(3, 1, 1), lost)]);
    assert_eq!(letters(&step)[0].1.run.env["PODMESH_FAILED_REASON"], "was lost");
    let no_dead_letter = true;
    world.set_queue("default", QueueChange { no_dead_letter, ..QueueChange::default() });
    world.submit(spec());
    let step = world.report(1, epoch, vec![exited(4, at(5, 1, 1), 1)]);
    assert_eq!((letters(&step), world.state(5)), (vec![], JobState::Failed));
}

#[test]
fn a_dead_letter_job_that_fails_has_none() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.set_queue("night", letter(queued("night", spec())));
    world.submit(queued("night", spec()));
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
    let step = world.report(1, epoch, vec![exited(2, at(2, 1, 1), 1)]);
    assert_eq!((letters(&step), world.state(2)), (vec![], JobState::Failed));
}

#[test]
fn many_failures_of_a_job_have_few() {
    let (mut world, epoch) = world();
    let small = Resources { cpu_millis: 10, memory_bytes: 0 };
    world.submit(queued("night", JobSpec { resources: small, ..array(100) }));
    let (mut found, mut said) = (0, Vec::new());
    for index in 1..=100 {
        let step = world.report(1, epoch, vec![exited(u64::from(index), at(1, index, 1), 1)]);
        found += letters(&step).len();
        said.extend(skipped(&step).into_iter().map(str::to_owned));
    }
    assert_eq!(found, DEAD_LETTERS_PER_JOB as usize);
    let [said] = said.as_slice() else { panic!("{said:?}") };
    assert!(said.contains("10 failed tasks of job 1 have one"), "{said}");
}

#[test]
fn what_cannot_be_submitted_is_an_event() {
    let mut world = World::new();
    let runtimes = [RuntimeKind::Process, RuntimeKind::Docker].map(Into::into).into();
    let epoch = welcome(&world.connect(Hello { runtimes, ..hello("a", 1) }, 1)).epoch;
    // As when there are too many jobs: the volume that it needs is being removed.
    let mut uses = spec();
    uses.run.runtime = super::property::with_volume();
    world.set_queue("night", letter(uses.clone()));
    world.submit(queued("night", spec()));
    world.submit(uses);
    world.report(1, epoch, vec![exited(1, at(2, 1, 1), 0)]);
    let (by, volume) = (name("root"), name("data"));
    world.give(Input::Command(TICKET, Command::RemoveVolume { by, volume, force: false }));
    let step = world.report(1, epoch, vec![exited(2, at(1, 1, 1), 1)]);
    assert_eq!((letters(&step), world.state(1)), (vec![], JobState::Failed));
    let said = skipped(&step);
    assert!(said.len() == 1 && said[0].contains("volume `data` is being removed"), "{said:?}");
}

#[test]
fn a_queue_stays_while_a_dead_letter_job_names_it() {
    let mut world = World::new();
    world.set_queue("alarms", QueueChange::default());
    world.set_queue("night", letter(queued("alarms", spec())));
    let step = world.change_queue("alarms", QueueAction::Remove);
    let refused = replies(&step)[0].clone().unwrap_err().message;
    assert!(refused.contains("the dead-letter job of the queue `night`"), "{refused}");
}

#[test]
fn a_dead_letter_job_that_could_never_be_submitted_is_refused() {
    let mut world = World::new();
    let says = |step: &Step| replies(step)[0].clone().unwrap_err();
    let error = says(&world.set_queue("night", letter(queued("day", spec()))));
    assert!(error.message.contains("there is no queue `day`"), "{error}");
    let mut full = spec();
    full.run.env.insert("A".into(), "x".repeat(ENV_BYTES_MAX - 100));
    assert_eq!(full.validate(), Ok(()));
    let error = says(&world.set_queue("night", letter(full)));
    assert_eq!(error.code, ErrorCode::InvalidSpec);
    assert!(error.message.contains("ENV_BYTES_MAX"), "{error}");
    // Its own queue comes with it.
    let added = Ok(Answer::QueueSaved { added: true, changed: true });
    assert_eq!(replies(&world.set_queue("night", letter(queued("night", spec())))), [added]);
    let detail = world.core.show_queue(&name("night")).unwrap();
    assert_eq!(detail.view.dead_letter, Some(name("work")));
    assert_eq!(detail.dead_letter.as_deref(), Some(&queued("night", spec())));
    let removed = Ok(Answer::QueueChanged { changed: true });
    assert_eq!(replies(&world.change_queue("night", QueueAction::Remove)), [removed]);
}
