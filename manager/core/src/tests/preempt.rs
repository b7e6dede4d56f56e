//! Preemptible tasks, which make room for others.

use podmesh_protocol::place::{Offer, PlaceRules};
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::JobRules;

use super::*;

/// A job whose tasks take so many cores and make room for others.
fn preemptible(tasks: u32, cores: u32) -> JobSpec {
    let rules = JobRules { preemptible: true, ..JobRules::default() };
    JobSpec { rules: rules.into(), ..taking(tasks, cores) }
}

fn taking(tasks: u32, cores: u32) -> JobSpec {
    let resources = Resources { cpu_millis: cores * 1_000, memory_bytes: 0 };
    JobSpec { resources, ..array(tasks) }
}

fn stopped(step: &Step) -> Vec<AttemptId> {
    stops(step).into_iter().map(|(attempt, _)| attempt).collect()
}

fn cancelled(number: u64, attempt: AttemptId) -> Report {
    ended(number, attempt, Outcome::new(OutcomeKind::Cancelled))
}

/// Reports that an attempt has started, a millisecond after the report before.
fn start(world: &mut World, epoch: Epoch, number: u64, attempt: AttemptId) {
    world.pass(1);
    world.report(1, epoch, vec![started(number, attempt)]);
}

#[test]
fn a_stopped_task_makes_room_and_runs_again_without_a_retry() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(preemptible(1, 4));
    start(&mut world, epoch, 1, at(1, 1, 1));
    let step = world.submit_as("bob", taking(1, 2));
    assert_eq!(stops(&step), [(at(1, 1, 1), StopReason::Cancelled)]);
    let told = step.events.iter().any(|event| {
        matches!(event, EventFact::AttemptStopping { message, .. } if message.contains("job 2"))
    });
    assert!(told, "{:?}", step.events);
    assert_eq!(stops(&world.give(Input::Tick)), [], "once");
    let step = world.report(1, epoch, vec![cancelled(2, at(1, 1, 1))]);
    let (_, outcome, retry) = ends(&step).remove(0);
    assert_eq!((outcome.kind, retry), (OutcomeKind::Cancelled, Some(0)));
    assert!(outcome.message.unwrap().contains("make room"));
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")], "the other job has the room");
    let step = world.report(1, epoch, vec![exited(3, at(2, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(1, 1, 2), "a")]);
    let losses = world.core.state().jobs[&JobId(1)].active[&1].past.losses;
    assert_eq!((losses.stopped, losses.free(OnLost::Wait)), (1, 1));
}

#[test]
fn the_last_started_are_stopped_and_no_more_than_needed() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(preemptible(4, 1));
    for (number, index) in [(1, 3), (2, 1), (3, 4), (4, 2)] {
        start(&mut world, epoch, number, at(1, index, 1));
    }
    let mut found = stopped(&world.submit(taking(1, 2)));
    found.sort_unstable();
    assert_eq!(found, [at(1, 2, 1), at(1, 4, 1)]);
    // One of them ends, which is not enough yet.
    let step = world.report(1, epoch, vec![cancelled(5, at(1, 2, 1))]);
    assert_eq!((placed(&step), stopped(&step)), (vec![], vec![]));
    let step = world.report(1, epoch, vec![cancelled(6, at(1, 4, 1))]);
    assert_eq!((placed(&step), stopped(&step)), (vec![(at(2, 1, 1), "a")], vec![]));
}

#[test]
fn a_pick_that_a_later_one_makes_needless_goes_on() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(preemptible(1, 3));
    start(&mut world, epoch, 1, at(1, 1, 1));
    world.submit(preemptible(1, 1));
    start(&mut world, epoch, 2, at(2, 1, 1));
    assert_eq!(stopped(&world.submit(taking(1, 3))), [at(1, 1, 1)]);
}

#[test]
fn all_tasks_of_an_array_get_room_at_once_within_their_limits() {
    for (max_active, expected) in [(None, 3), (Some(2), 2)] {
        let mut world = World::new();
        world.join("a", 1);
        world.submit(preemptible(4, 1));
        let rules = JobRules { max_active, ..JobRules::default() };
        assert_eq!(
            stopped(&world.submit(JobSpec { rules: rules.into(), ..taking(3, 1) })).len(),
            expected
        );
    }
    // One that runs counts in the limit of the job, and of the queue.
    let limit = Some(2);
    for (of_job, of_queue) in [(limit, None), (None, limit)] {
        let mut world = World::new();
        world.join("a", 1);
        let max_active_per_caller = of_queue;
        world.set_queue("default", QueueChange { max_active_per_caller, ..QueueChange::default() });
        for by in ["bob", "eve"] {
            world.submit_as(by, preemptible(2, 1));
        }
        let rules = JobRules { max_active: of_job, ..JobRules::default() };
        world.join("b", 2);
        world.submit_as("dan", taking(1, 3));
        let step = world.submit_as("ann", JobSpec { rules: rules.into(), ..taking(4, 1) });
        assert_eq!((placed(&step).len(), stopped(&step).len()), (1, 1), "{of_job:?} {of_queue:?}");
    }
}

#[test]
fn a_caller_has_one_limit_for_both_kinds_of_jobs() {
    let mut world = World::new();
    let change = QueueChange { max_active_per_caller: Some(2), ..QueueChange::default() };
    world.set_queue("default", change);
    world.join("a", 1);
    world.submit(preemptible(1, 1));
    assert_eq!(placed(&world.submit(taking(2, 1))).len(), 1);
    assert!(world.explain(2)[0].contains("2 of 2 tasks of its caller"), "{:?}", world.explain(2));
}

#[test]
fn nothing_is_stopped_where_it_would_not_help_or_for_a_preemptible_job() {
    let mut world = World::new();
    world.join("a", 1);
    world.submit(taking(1, 3));
    world.submit(preemptible(1, 1));
    assert_eq!(stopped(&world.submit(taking(1, 2))), []);
    assert_eq!(stopped(&world.submit_as("bob", preemptible(1, 1))), []);
    assert_eq!(stopped(&world.pass(1_000_000)), []);
}

#[test]
fn the_node_with_the_most_to_gain_is_chosen() {
    let mut world = World::new();
    world.join("a", 1);
    let step = world.submit(taking(1, 3));
    assert_eq!(placed(&step), [(at(1, 1, 1), "a")]);
    world.join("b", 2);
    assert_eq!(placed(&world.submit(preemptible(1, 4))), [(at(2, 1, 1), "b")]);
    // Node a has more that is free, and b more that can be freed.
    assert_eq!(stopped(&world.submit(taking(1, 2))), [at(2, 1, 1)]);
}

#[test]
fn preemptible_jobs_wait_for_all_others() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit_as("eve", taking(1, 4));
    let first = JobSpec { priority: 9, ..preemptible(1, 4) };
    world.submit_as("bob", first);
    world.submit_as("ann", taking(1, 4));
    let why = world.explain(2).join("\n");
    assert!(why.contains("preemptible"), "{why}");
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
    let step = world.report(1, epoch, vec![exited(2, at(3, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn who_has_the_named_resource_is_stopped_however_long_it_runs() {
    let mut world = World::new();
    let mut hello = hello("a", 1);
    let offer = Offer { count: 0, ids: vec!["x".into()] };
    hello.resources.insert(name("gpu"), offer);
    let step = world.connect(hello, 1);
    let epoch = welcome(&step).epoch;
    let gpu = || PlaceRules { resources: [(name("gpu"), 1_000)].into(), ..PlaceRules::default() };
    world.submit(JobSpec { place: gpu().into(), ..preemptible(1, 1) });
    start(&mut world, epoch, 1, at(1, 1, 1));
    world.submit(preemptible(2, 1));
    start(&mut world, epoch, 2, at(2, 1, 1));
    assert_eq!(
        stopped(&world.submit(JobSpec { place: gpu().into(), ..taking(1, 1) })),
        [at(1, 1, 1)]
    );
    // A job that needs the node for itself needs all of it.
    let place = PlaceRules { exclusive: true, ..PlaceRules::default() };
    world.cancel(3);
    let mut found = stopped(&world.submit(JobSpec { place: place.into(), ..taking(1, 1) }));
    found.sort_unstable();
    assert_eq!(found, [at(2, 1, 1), at(2, 2, 1)], "the other one stops already");
}

#[test]
fn a_stop_for_room_holds_after_a_restart_and_nothing_else_is_stopped() {
    let mut world = World::new();
    world.join("a", 1);
    world.submit(preemptible(4, 1));
    let found = stopped(&world.submit(taking(1, 1)));
    assert_eq!(found.len(), 1);
    world.restart();
    let mut again = hello("a", 1);
    again.attempts = (1..=4).map(|index| at(1, index, 1)).collect();
    let step = world.connect(again, 2);
    assert_eq!(stopped(&step), found);
    assert_eq!(stopped(&world.pass(1)), []);
}

#[test]
fn preemptible_tasks_use_a_reserved_node_until_they_must_make_room() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(taking(1, 2));
    world.submit(taking(1, 4));
    assert_eq!(placed(&world.submit(taking(1, 1))), [], "the node is kept for job 2");
    let step = world.submit(preemptible(3, 1));
    assert_eq!((placed(&step).len(), stopped(&step)), (2, vec![]));
    // With the end of the first job, it helps job 2 if they stop.
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    let mut found = stopped(&step);
    found.sort_unstable();
    assert_eq!((placed(&step), found), (vec![], vec![at(4, 1, 1), at(4, 2, 1)]));
    let why = world.explain(2).join("\n");
    assert!(why.contains("2 preemptible tasks on node `a` are stopped"), "{why}");
    // What has become free is not given to the same tasks again.
    let step = world.report(1, epoch, vec![cancelled(2, at(4, 1, 1))]);
    assert_eq!((placed(&step), stopped(&step)), (vec![], vec![]));
    let step = world.report(1, epoch, vec![cancelled(3, at(4, 2, 1))]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn the_node_stays_reserved_for_as_long_as_room_is_made() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.join("b", 2);
    let hour = 3_600_000;
    for _ in 0..2 {
        let mut slow = preemptible(1, 4);
        slow.run.stop_grace_ms = hour;
        world.submit(slow);
    }
    assert_eq!(stopped(&world.submit(taking(1, 4))), [at(1, 1, 1)]);
    let step = world.pass(hour / 2);
    assert!(!stopped(&step).contains(&at(2, 1, 1)), "the other node is left alone");
    let step = world.report(1, epoch, vec![cancelled(1, at(1, 1, 1))]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
}

#[test]
fn what_is_left_of_the_room_that_was_made_is_used_again() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(taking(1, 1));
    world.submit(preemptible(1, 3));
    assert_eq!(stopped(&world.submit(taking(2, 2))), [at(2, 1, 1)]);
    world.submit(preemptible(1, 1));
    // The second task of job 3 still waits, for the end of the others. Job 2 was done just in time.
    let step = world.report(1, epoch, vec![exited(1, at(2, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a"), (at(4, 1, 1), "a")]);
}

#[test]
fn a_cancelled_job_gives_the_room_that_was_made_for_it_back() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(preemptible(2, 2));
    assert_eq!(stopped(&world.submit(taking(1, 4))).len(), 2);
    let step = world.report(1, epoch, vec![cancelled(1, at(1, 1, 1))]);
    assert_eq!(placed(&step), []);
    let step = world.cancel(2);
    assert_eq!(placed(&step), [(at(1, 1, 2), "a")]);
}
