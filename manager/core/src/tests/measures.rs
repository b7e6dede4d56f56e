use super::*;
use crate::measures::Durations;

/// Returns how often something took at most 1 ms, 1 s and 1 min, and the sum.
fn seen(durations: &Durations) -> ([u64; 3], u64) {
    let up_to = |interval: usize| durations.counts[..=interval].iter().sum();
    ([up_to(0), up_to(6), up_to(9)], durations.sum_ms)
}

#[test]
fn waits_and_starts_are_measured() {
    let mut world = World::new();
    world.submit(JobSpec {
        retry: RetryPolicy {
            retries: 1,
            backoff_ms: 5_000,
            backoff_ms_max: 5_000,
            ..RetryPolicy::default()
        },
        ..spec()
    });
    world.pass(700);
    let epoch = world.join("a", 1);
    assert_eq!(seen(&world.core.measures().waited), ([0, 1, 1], 700));

    world.pass(30);
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    world.pass(10_000);
    // A report that comes again counts once.
    world.report(1, epoch, vec![started(2, at(1, 1, 1)), exited(3, at(1, 1, 1), 1)]);
    assert_eq!(seen(&world.core.measures().dispatched), ([0, 1, 1], 30));

    // The pause before a retry is no wait.
    let step = world.pass(5_000);
    assert_eq!(placed(&step), [(at(1, 1, 2), "a")]);
    assert_eq!(seen(&world.core.measures().waited), ([1, 2, 2], 700));
}

#[test]
fn totals_follow_the_jobs_and_a_restart_counts_no_end_again() {
    let totals = |world: &World| world.core.measures().totals;
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(array(6));
    world.submit(array(2));
    assert_eq!((totals(&world).jobs_running, totals(&world).jobs_queued), (1, 1));
    assert_eq!((totals(&world).tasks_active, totals(&world).tasks_queued), (4, 4));
    world.cancel(2);
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0), exited(2, at(1, 2, 1), 7)]);
    let now = totals(&world);
    assert_eq!((now.tasks_succeeded, now.tasks_failed, now.tasks_cancelled), (1, 1, 2));
    assert_eq!((now.jobs_running, now.jobs_queued), (1, 0));
    world.restart();
    let now = totals(&world);
    assert_eq!((now.tasks_succeeded, now.tasks_failed, now.tasks_cancelled), (0, 0, 0));
    assert_eq!((now.tasks_active, now.tasks_queued), (4, 0));
    world.cancel(1);
    assert_eq!(totals(&world).jobs_cancelling, 1);
}

#[test]
fn a_requeued_job_counts_only_its_new_ends() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(array(2));
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 7), exited(2, at(1, 2, 1), 0)]);
    let ends = |world: &World| {
        let now = world.core.measures().totals;
        (now.tasks_succeeded, now.tasks_failed)
    };
    assert_eq!(ends(&world), (1, 1));
    world.requeue(1, false, |_| true);
    assert_eq!(ends(&world), (1, 1));
    world.report(1, epoch, vec![exited(3, at(1, 1, 2), 0)]);
    assert_eq!(ends(&world), (2, 1));
}

#[test]
fn the_queue_has_the_jobs_that_wait() {
    let waiting = |world: &World| world.core.measures().queue_jobs;
    let mut world = World::new();
    world.submit(spec());
    assert_eq!(waiting(&world), 1);
    world.join("a", 1);
    assert_eq!(waiting(&world), 0);
    world.submit(array(9));
    let huge = Resources { cpu_millis: 64_000, memory_bytes: 0 };
    world.submit(JobSpec { resources: huge, ..spec() });
    assert_eq!(waiting(&world), 2);
    world.cancel(2);
    assert_eq!(waiting(&world), 1);
}
