//! Jobs that wait for other jobs, and workflows.

use podmesh_protocol::spec::JobRules;
use podmesh_protocol::workflow::{Condition, Dependency, WorkflowJob, WorkflowSpec};

use super::*;
use crate::state::Change;

fn after(spec: JobSpec, upstream: &[(u64, Condition)]) -> JobSpec {
    let after =
        upstream.iter().map(|(job, when)| Dependency { job: JobId(*job), when: *when }).collect();
    JobSpec { after, ..spec }
}

/// A world with a node `a` of four cores, and a job of so many tasks, which has its number.
fn with(tasks: u32) -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(array(tasks));
    (world, epoch)
}

fn workflow(jobs: &[(&str, &[(&str, Condition)])]) -> Box<WorkflowSpec> {
    let jobs = jobs.iter().map(|(job, after)| WorkflowJob {
        spec: JobSpec { name: name(job), ..spec() },
        after: after.iter().map(|(job, when)| Dependency { job: name(job), when: *when }).collect(),
    });
    Box::new(WorkflowSpec { name: name("flow"), jobs: jobs.collect() })
}

fn submit(world: &mut World, key: u128, workflow: Box<WorkflowSpec>) -> Step {
    let submission = SubmissionId(Uuid::from_u128(key));
    let positions = workflow.check().unwrap();
    let by = name("ann");
    let command = Command::SubmitWorkflow { by, submission, workflow, positions };
    world.give(Input::Command(TICKET, command))
}

#[test]
fn a_job_starts_when_its_upstream_job_has_ended_as_asked() {
    use Condition::{Ended, Failed, Succeeded};
    for (when, code, starts, said) in [
        (Succeeded, 0, true, ""),
        (Succeeded, 1, false, "upstream 1 failed: `podmesh requeue 1` runs it again"),
        (Failed, 1, true, ""),
        (Failed, 0, false, "upstream 1 succeeded, and this one runs only after a failure"),
        (Ended, 0, true, ""),
        (Ended, 1, true, ""),
    ] {
        let (mut world, epoch) = with(1);
        let step = world.submit(after(spec(), &[(1, when)]));
        assert_eq!(placed(&step), []);
        assert!(world.explain(2)[0].starts_with("waits for job 1 to "), "{:?}", world.explain(2));
        world.restart();
        assert_eq!(world.explain(2).len(), 1);
        world.connect(Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) }, 2);
        let epoch = Epoch(epoch.0 + 1);
        let step = world.report(2, epoch, vec![exited(1, at(1, 1, 1), code)]);
        world.beat(epoch, HeartbeatChange::Begun);
        let steps: Vec<Step> = [step].into_iter().chain(world.drain()).collect();
        let next: Vec<AttemptId> = steps.iter().flat_map(starts_of).collect();
        let expected = if starts { vec![at(2, 1, 1)] } else { Vec::new() };
        assert_eq!(world.counts(2)[1], u32::from(starts), "{when} {code} {next:?} {expected:?}");
        let reasons = world.explain(2);
        assert!(reasons.first().map_or("", String::as_str).starts_with(said), "{reasons:?}");
        world.restart();
        assert_eq!(world.explain(2).len(), usize::from(!starts));
    }
}

fn starts_of(step: &Step) -> Vec<AttemptId> {
    placed(step).into_iter().map(|(attempt, _)| attempt).collect()
}

#[test]
fn a_cancelled_job_counts_as_failed() {
    let (mut world, epoch) = with(1);
    world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    world.submit(after(spec(), &[(1, Condition::Failed)]));
    world.cancel(1);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 143)]);
    assert!(world.explain(2)[0].starts_with("upstream 1 was cancelled"), "{:?}", world.explain(2));
    assert_eq!(world.counts(3)[1], 1);
}

#[test]
fn the_end_of_a_job_comes_before_the_start_of_the_next() {
    let (mut world, epoch) = with(1);
    world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    let ended = step.events.iter().position(|event| matches!(event, EventFact::JobEnded { .. }));
    let assigned = step.events.iter().position(|e| matches!(e, EventFact::AttemptAssigned { .. }));
    assert!(ended.unwrap() < assigned.unwrap(), "{:?}", step.events);
}

#[test]
fn a_job_that_has_ended_is_an_upstream_job_too() {
    let (mut world, epoch) = with(1);
    world.submit(array(3));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0), exited(2, at(2, 2, 1), 0)]);
    let reports = vec![exited(3, at(2, 1, 1), 1), exited(4, at(2, 3, 1), 0)];
    world.report(1, epoch, reports);
    let step = world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    assert_eq!(starts_of(&step), [at(3, 1, 1)]);
    let step = world.submit(after(spec(), &[(2, Condition::Succeeded), (1, Condition::Ended)]));
    assert_eq!(starts_of(&step), []);
    assert!(world.explain(4)[0].starts_with("upstream 2 failed"));
    let step = world.submit(after(array(3), &[(2, Condition::Each)]));
    assert_eq!(starts_of(&step), [at(5, 2, 1), at(5, 3, 1)]);
    world.restart();
    // Nobody can wait for what is not there.
    let by = name("ann");
    let submission = SubmissionId(Uuid::from_u128(99));
    let spec = Arc::new(after(self::spec(), &[(77, Condition::Ended)]));
    let command = Command::Submit { by, submission, spec, upstream: BTreeMap::new() };
    let step = world.give(Input::Command(TICKET, command));
    assert_eq!(replies(&step), [Ok(Answer::ReadAgain)]);
    assert!(step.changes.is_empty());
}

#[test]
fn index_by_index() {
    let (mut world, epoch) = with(4);
    world.submit(after(array(4), &[(1, Condition::Each)]));
    assert_eq!(world.explain(2), ["waits for job 1, index by index"]);
    let step = world.report(1, epoch, vec![exited(1, at(1, 3, 1), 0)]);
    assert_eq!(starts_of(&step), [at(2, 3, 1)]);
    world.restart();
    let held = vec![at(1, 1, 1), at(1, 2, 1), at(1, 4, 1), at(2, 3, 1)];
    world.connect(Hello { attempts: held, ..hello("a", 1) }, 2);
    let epoch = Epoch(epoch.0 + 1);
    world.beat(epoch, HeartbeatChange::Begun);
    world.report(2, epoch, vec![exited(2, at(2, 3, 1), 0), exited(3, at(1, 1, 1), 1)]);
    assert_eq!(world.counts(2), [3, 0, 1, 0, 0], "a failure releases nothing");
    // A submission while the upstream job runs knows what has succeeded before.
    world.submit(after(array(4), &[(1, Condition::Each)]));
    assert_eq!(world.counts(3), [3, 1, 0, 0, 0]);
    let step = world.report(2, epoch, vec![exited(4, at(1, 2, 1), 0), exited(5, at(1, 4, 1), 0)]);
    assert_eq!(starts_of(&step).len(), 3, "{:?}", starts_of(&step));
    assert_eq!(world.state(1), JobState::Failed);
    assert!(world.explain(2)[0].starts_with("upstream 1 failed: tasks wait for those"));
    let reports = [at(2, 2, 1), at(2, 4, 1), at(3, 3, 1), at(3, 2, 1)];
    let reports = (6..).zip(reports).map(|(number, attempt)| exited(number, attempt, 0));
    world.report(2, epoch, reports.collect());
    let step = world.requeue(1, false, |_| true);
    assert_eq!(starts_of(&step), [at(1, 1, 2)]);
    assert_eq!(world.explain(2), ["waits for job 1, index by index"]);
    world.restart();
    let held = vec![at(1, 1, 2), at(3, 4, 1)];
    world.connect(Hello { attempts: held, ..hello("a", 1) }, 3);
    let epoch = Epoch(epoch.0 + 1);
    world.beat(epoch, HeartbeatChange::Begun);
    let step = world.report(3, epoch, vec![exited(10, at(1, 1, 2), 0)]);
    assert_eq!(starts_of(&step), [at(2, 1, 1), at(3, 1, 1)]);
    assert!(world.explain(2).is_empty());
}

#[test]
fn both_jobs_have_the_same_indexes() {
    let (mut world, _) = with(4);
    let step = world.submit(after(array(3), &[(1, Condition::Each)]));
    let error = replies(&step)[0].clone().unwrap_err();
    assert!(error.code == ErrorCode::InvalidSpec && error.message.contains("1 to 4"), "{error:?}");
    assert!(step.changes.is_empty());
}

#[test]
fn a_requeue_lets_the_others_wait_again() {
    let (mut world, epoch) = with(1);
    world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    world.submit(after(spec(), &[(2, Condition::Succeeded)]));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    assert!(world.explain(2)[0].starts_with("upstream 1 failed"));
    assert_eq!(world.explain(3), ["waits for job 2 to succeed"]);
    world.requeue(1, false, |_| true);
    assert_eq!(world.explain(2), ["waits for job 1 to succeed"]);
    let step = world.report(1, epoch, vec![exited(2, at(1, 1, 2), 0)]);
    assert_eq!(starts_of(&step), [at(2, 1, 1)]);
    let step = world.report(1, epoch, vec![exited(3, at(2, 1, 1), 0)]);
    assert_eq!(starts_of(&step), [at(3, 1, 1)]);
}

#[test]
fn a_cancelled_job_that_is_requeued_waits_as_the_others_are_now() {
    let (mut world, epoch) = with(1);
    world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    world.cancel(2);
    assert_eq!(world.state(2), JobState::Cancelled);
    world.requeue(2, true, |_| false);
    assert_eq!(world.explain(2), ["waits for job 1 to succeed"]);
    world.cancel(2);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    let step = world.requeue(2, true, |_| false);
    assert_eq!(starts_of(&step), [at(2, 1, 1)]);
}

/// A workflow in which each job waits for the one before it.
fn chain(jobs: usize, when: Condition) -> Box<WorkflowSpec> {
    let jobs = (0..jobs).map(|at| {
        let before = at.checked_sub(1).map(|before| name(&format!("j{before}")));
        WorkflowJob {
            spec: JobSpec { name: name(&format!("j{at}")), ..spec() },
            after: before.into_iter().map(|job| Dependency { job, when }).collect(),
        }
    });
    Box::new(WorkflowSpec { name: name("chain"), jobs: jobs.collect() })
}

#[test]
fn what_is_downstream_is_cancelled_with_it() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let jobs = 3_000;
    submit(&mut world, u128::MAX, chain(jobs, Condition::Ended));
    world.drain();
    world.submit(spec());
    let command = Command::CancelDownstream { job: JobId(1), done: 0 };
    let first = world.give(Input::Command(TICKET, command));
    assert!(replies(&first).is_empty(), "it takes several steps");
    let steps = world.drain();
    let answers: Vec<_> = steps.iter().flat_map(replies).collect();
    let others = u32::try_from(jobs).unwrap() - 1;
    assert_eq!(answers, [Ok(Answer::JobsCancelled { jobs: others })]);
    assert_eq!(world.state(jobs as u64), JobState::Cancelled);
    assert_eq!((world.counts(1)[1], world.counts(3_001)[1]), (1, 1), "not the job itself");
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(starts_of(&step), []);
}

#[test]
fn a_job_that_is_waited_for_is_not_removed() {
    let (mut world, epoch) = with(1);
    world.submit(after(spec(), &[(1, Condition::Succeeded)]));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    let remove = |world: &mut World| {
        let command = Command::RemoveJobs { jobs: vec![JobId(1)], by: None };
        replies(&world.give(Input::Command(TICKET, command))).remove(0)
    };
    assert_eq!(remove(&mut world), Ok(Answer::JobsRemoved { jobs: 0 }));
    world.cancel(2);
    assert_eq!(remove(&mut world), Ok(Answer::JobsRemoved { jobs: 1 }));
}

#[test]
fn a_job_does_not_expire_while_it_waits_for_another() {
    let (mut world, epoch) = with(1);
    let rules = JobRules { expires_ms: Some(10_000), ..JobRules::default() };
    let limited =
        JobSpec { rules: rules.into(), require: [(name("x"), "y".into())].into(), ..spec() };
    world.submit(after(limited, &[(1, Condition::Ended)]));
    world.pass(60_000);
    assert_eq!(world.state(2), JobState::Queued);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    world.pass(9_000);
    world.restart();
    assert_eq!(world.state(2), JobState::Queued);
    world.pass(1_000);
    assert_eq!(world.state(2), JobState::Expired);
}

#[test]
fn a_workflow_is_submitted_together_and_once() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec());
    let jobs: &[(&str, &[(&str, Condition)])] = &[
        // In the file, a job may wait for a later one.
        ("last", &[("left", Condition::Succeeded), ("right", Condition::Ended)]),
        ("first", &[]),
        ("left", &[("first", Condition::Succeeded)]),
        ("right", &[("first", Condition::Failed)]),
    ];
    let step = submit(&mut world, 500, workflow(jobs));
    assert_eq!(replies(&step), [Ok(Answer::Submitted { job: JobId(2), again: false })]);
    assert_eq!(starts_of(&step), [at(3, 1, 1)]);
    let again = submit(&mut world, 500, workflow(jobs));
    assert_eq!(replies(&again), [Ok(Answer::Submitted { job: JobId(2), again: true })]);
    assert!(again.changes.is_empty());
    let part = world.core.state().jobs[&JobId(4)].spec.workflow.clone().unwrap();
    assert_eq!((part.workflow, part.name, part.jobs), (JobId(2), name("flow"), 4));
    world.report(1, epoch, vec![exited(1, at(3, 1, 1), 0)]);
    assert_eq!(world.counts(4)[1], 1);
    assert!(world.explain(5)[0].starts_with("upstream 3 succeeded"));
    world.cancel(5);
    let step = world.report(1, epoch, vec![exited(2, at(4, 1, 1), 0)]);
    assert_eq!(starts_of(&step), [at(2, 1, 1)]);
}

#[test]
fn a_workflow_that_names_an_unknown_queue_is_refused_as_a_whole() {
    let mut world = World::new();
    let mut workflow = workflow(&[("first", &[]), ("last", &[("first", Condition::Ended)])]);
    workflow.jobs[1].spec.rules.queue = Some(name("night"));
    let step = submit(&mut world, 1, workflow);
    let error = replies(&step)[0].clone().unwrap_err();
    assert!(error.message.contains("there is no queue `night`"), "{error}");
    assert!(step.changes.is_empty());
}

#[test]
fn a_large_workflow_is_one_step() {
    let mut world = World::new();
    world.join("a", 1);
    let step = submit(&mut world, 1, chain(10_000, Condition::Succeeded));
    let inserted = step.changes.iter().filter(|c| matches!(c, Change::JobInserted { .. }));
    assert_eq!((inserted.count(), world.core.state().jobs.len()), (10_000, 10_000));
    world.drain();
    assert_eq!(world.counts(1)[1], 1);
}

#[test]
fn a_workflow_is_cancelled_as_a_whole_and_nothing_starts_by_that() {
    let mut world = World::new();
    world.join("a", 1);
    let step = submit(&mut world, u128::MAX, chain(1_500, Condition::Failed));
    assert_eq!(starts_of(&step).len(), 1);
    // A job of somebody else that comes after one of them goes on.
    world.submit(after(spec(), &[(1_500, Condition::Ended)]));
    let command = Command::CancelWorkflow { workflow: JobId(1), jobs: 1_500, done: 0 };
    let mut steps = vec![world.give(Input::Command(TICKET, command.clone()))];
    steps.extend(world.drain());
    let answers: Vec<_> = steps.iter().flat_map(replies).collect();
    assert_eq!(answers, [Ok(Answer::JobsCancelled { jobs: 1_500 })]);
    let started: Vec<u64> =
        steps.iter().flat_map(starts_of).map(|attempt| attempt.task.job.0).collect();
    assert!(started.iter().all(|job| *job > 1_500), "{started:?}");
    assert!(world.core.state().jobs.values().all(|job| job.id > JobId(1_500) || job.is_stopping()));
    let step = world.give(Input::Command(TICKET, command));
    assert_eq!(replies(&step), [Ok(Answer::JobsCancelled { jobs: 0 })]);
}

#[test]
fn nothing_starts_if_the_manager_ends_while_it_cancels_a_workflow() {
    let mut world = World::new();
    let mut workflow = chain(3_000, Condition::Failed);
    // The first job waits as well, so that it ends as soon as it is cancelled.
    workflow.jobs[0].spec.require = [(name("x"), "y".into())].into();
    submit(&mut world, u128::MAX, workflow);
    world.drain();
    let command = Command::CancelWorkflow { workflow: JobId(1), jobs: 3_000, done: 0 };
    let step = world.give(Input::Command(TICKET, command));
    assert!(replies(&step).is_empty(), "it takes several steps");
    world.restart();
    let step = world.connect(hello("a", 1), 1);
    let steps: Vec<Step> = [step].into_iter().chain(world.drain()).collect();
    assert_eq!(steps.iter().flat_map(starts_of).collect::<Vec<_>>(), []);
    assert_eq!(world.state(1), JobState::Queued, "what others wait for is cancelled last");
}
