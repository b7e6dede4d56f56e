use super::*;

fn job(cpu_millis: u32, memory_bytes: u64) -> JobSpec {
    JobSpec { resources: Resources { cpu_millis, memory_bytes }, ..spec() }
}

fn node(name: &str, number: u64, cpu_millis: u32, memory_bytes: u64) -> Hello {
    Hello { capacity: Resources { cpu_millis, memory_bytes }, ..hello(name, number) }
}

fn label(key: &str, value: &str) -> BTreeMap<Name, String> {
    BTreeMap::from([(name(key), value.to_owned())])
}

#[test]
fn tasks_go_to_the_node_with_the_most_room_left() {
    let mut world = World::new();
    world.connect(node("a", 1, 2_000, GIB), 1);
    world.connect(node("b", 2, 4_000, GIB), 2);
    let step = world.submit(JobSpec { array: ArrayRange { first: 1, last: 9 }, ..job(1_000, 0) });
    let nodes: Vec<&str> = placed(&step).into_iter().map(|(_, node)| node).collect();
    // Cores left after each: b 3/4; then a 1/2 = b 2/4. Memory is equal, and b has an attempt.
    assert_eq!(nodes, ["b", "a", "b", "b", "a", "b"]);
    assert_eq!(world.counts(1), [3, 6, 0, 0, 0]);
}

#[test]
fn equal_nodes_are_ordered_by_memory_then_attempts_then_name() {
    let mut world = World::new();
    world.connect(node("c", 1, 4_000, 4 * GIB), 1);
    world.connect(node("b", 2, 4_000, 4 * GIB), 2);
    assert_eq!(placed(&world.submit(job(1_000, GIB))), [(at(1, 1, 1), "b")]);
    assert_eq!(placed(&world.submit(job(1_000, 0))), [(at(2, 1, 1), "c")]);
    // Cores are equal now, and c has more memory.
    assert_eq!(placed(&world.submit(job(1_000, 0))), [(at(3, 1, 1), "c")]);
}

#[test]
fn higher_priority_goes_first_then_the_order_of_arrival() {
    let mut world = World::new();
    for priority in [0, 5, -5, 5, 0] {
        world.submit(JobSpec { priority, ..job(1_000, 0) });
    }
    let step = world.connect(node("a", 1, 4_000, 0), 1);
    let jobs: Vec<u64> = placed(&step).iter().map(|(attempt, _)| attempt.task.job.0).collect();
    assert_eq!(jobs, [2, 4, 1, 5]);
}

#[test]
fn a_node_must_offer_the_runtime_and_have_the_labels() {
    let mut world = World::new();
    let mut docker = spec();
    docker.run.runtime = RuntimeSpec::from(podmesh_protocol::spec::DockerSpec {
        image: "busybox".into(),
        ..Default::default()
    });
    world.submit(docker);
    world.submit(JobSpec { require: label("gpu", "a100"), ..spec() });
    assert_eq!(placed(&world.connect(hello("a", 1), 1)), []);
    let other = Hello { labels: label("gpu", "h100"), ..hello("b", 2) };
    assert_eq!(placed(&world.connect(other, 2)), []);
    let docker = Hello { runtimes: vec![RuntimeKind::Docker.into()], ..hello("c", 3) };
    assert_eq!(placed(&world.connect(docker, 3)), [(at(1, 1, 1), "c")]);
    let gpu = Hello { labels: label("gpu", "a100"), ..hello("d", 4) };
    assert_eq!(placed(&world.connect(gpu, 4)), [(at(2, 1, 1), "d")]);
}

#[test]
fn a_node_can_offer_something_else_with_a_new_session() {
    let mut world = World::new();
    world.submit(job(8_000, 0));
    let epoch = world.join("a", 1);
    assert_eq!(world.counts(1), [1, 0, 0, 0, 0]);
    world.submit(array(4));
    let held = (1..=4).map(|index| at(2, index, 1)).collect();
    let larger = Hello { attempts: held, ..node("a", 1, 12_000, 0) };
    assert_eq!(placed(&world.connect(larger, 11)), [(at(1, 1, 1), "a")]);
    // It can also shrink below what runs there.
    let held = (1..=4).map(|index| at(2, index, 1)).chain([at(1, 1, 1)]).collect();
    let smaller = Hello { attempts: held, ..node("a", 1, 1_000, 0) };
    let step = world.connect(smaller, 12);
    assert!(welcome(&step).epoch > epoch && welcome(&step).stop.is_empty());
    assert_eq!(world.node("a").free.cpu_millis, 0);
    assert_eq!(placed(&world.submit(job(1, 0))), []);
}

#[test]
fn small_jobs_that_came_later_do_not_starve_a_large_one() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let b = world.join("b", 2);
    world.submit(array(8)); // Both are full: a has tasks 1, 3, 5, 7 and b the others.
    world.submit(job(4_000, 0));
    world.submit(array(100));
    let first = world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&first), [], "a is reserved for job 2");
    let step = world.report(2, b, vec![exited(1, at(1, 2, 1), 0)]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "b")], "b is not reserved");
    let step = world.report(1, a, vec![exited(2, at(1, 3, 1), 0), exited(3, at(1, 5, 1), 0)]);
    assert_eq!(placed(&step), []);
    assert_eq!(
        world.explain(3),
        ["node `a` has room, which is reserved for job 2, the first in line, for another 60 s"]
    );
    let step = world.report(1, a, vec![exited(4, at(1, 7, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
    // The node is free for all jobs again when job 2 has ended.
    let step = world.report(1, a, vec![exited(5, at(2, 1, 1), 0)]);
    assert_eq!(placed(&step).len(), 4);
}

#[test]
fn a_cancelled_job_gives_up_its_reservation() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(array(3));
    world.submit(job(4_000, 0));
    assert_eq!(placed(&world.submit(spec())), [], "one core is free, but reserved for job 2");
    assert_eq!(placed(&world.cancel(2)), [(at(3, 1, 1), "a")]);
    // A reserved node that is suspect does not keep a later job from another node.
    world.submit(job(4_000, 0));
    world.submit(spec());
    world.beat(a, HeartbeatChange::Late);
    assert_eq!(placed(&world.connect(node("b", 2, 2_000, 0), 2)), [(at(5, 1, 1), "b")]);
}

#[test]
fn an_earlier_job_may_use_the_room_that_is_reserved_for_a_later_one() {
    let mut world = World::new();
    world.join("a", 1);
    world.submit(array(3));
    world.submit(job(4_000, 0));
    let step = world.submit(JobSpec { priority: 1, ..spec() });
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
}

#[test]
fn a_job_that_fits_no_node_reserves_nothing() {
    let mut world = World::new();
    world.join("a", 1);
    world.submit(JobSpec { priority: 9, ..job(64_000, 0) });
    assert_eq!(placed(&world.submit(spec())), [(at(2, 1, 1), "a")]);
}

#[test]
fn jobs_with_the_same_needs_share_one_shape() {
    // Ten thousand jobs wait. The end of one task places the first of them.
    let mut world = World::new();
    let a = welcome(&world.connect(node("a", 1, 1_000, 0), 1)).epoch;
    let mut step = Step::default();
    for key in 0..10_000 {
        let submission = SubmissionId(Uuid::from_u128(key));
        let spec = Arc::new(spec());
        step.clear();
        let input = Input::Command(
            TICKET,
            Command::Submit { by: name("ann"), submission, spec, upstream: BTreeMap::new() },
        );
        world.core.step(world.now, input, &mut step);
        world.model.apply(world.now.mono_ms, &step);
    }
    assert_eq!(world.core.queue.shapes().count(), 1);
    let step = world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn the_highest_possible_task_index_is_placed() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let range = ArrayRange { first: u32::MAX - 1, last: u32::MAX };
    let step = world.submit(JobSpec { array: range, ..spec() });
    assert_eq!(starts(&step), [at(1, u32::MAX - 1, 1), at(1, u32::MAX, 1)]);
    let reports = vec![exited(1, at(1, u32::MAX, 1), 0), exited(2, at(1, u32::MAX - 1, 1), 0)];
    world.report(1, epoch, reports);
    assert_eq!(world.state(1), JobState::Succeeded);
}
