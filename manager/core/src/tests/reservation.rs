//! Tests of the node that is reserved for the first job in line.

use std::collections::BinaryHeap;

use super::*;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

fn cores(cpu_millis: u32) -> JobSpec {
    JobSpec { resources: Resources { cpu_millis, memory_bytes: 0 }, ..spec() }
}

/// Returns a task with this timeout, and without a grace period.
fn timed(cpu_millis: u32, timeout_ms: u64) -> JobSpec {
    let mut spec = cores(cpu_millis);
    spec.run.timeout_ms = Some(timeout_ms);
    spec.run.stop_grace_ms = 0;
    spec
}

/// Returns a world with a node of four cores, a task on it (job 1), and a waiting job that needs
/// all four cores (job 2).
fn blocked(first: JobSpec) -> (World, Epoch) {
    let mut world = World::new();
    let a = world.join("a", 1);
    assert_eq!(placed(&world.submit(first)), [(at(1, 1, 1), "a")]);
    world.report(1, a, vec![started(1, at(1, 1, 1))]);
    assert_eq!(placed(&world.submit(cores(4_000))), []);
    (world, a)
}

#[test]
fn a_task_that_ends_before_the_first_in_line_can_start_runs_on_the_reserved_node() {
    let (mut world, a) = blocked(timed(1_000, HOUR_MS / 2));
    assert_eq!(placed(&world.submit(cores(1_000))), [], "it may run for ever");
    assert_eq!(placed(&world.submit(timed(1_000, HOUR_MS))), [], "it may last too long");
    assert_eq!(placed(&world.submit(timed(1_000, HOUR_MS / 4))), [(at(5, 1, 1), "a")]);
    assert_eq!(
        world.explain(2),
        [
            "waits for room: 1 node fits, it is busy (most free: `a` with 2 cpus, 8.0 GiB)",
            "first in line: node `a` is reserved for it, and it starts there within 31 min"
        ]
    );
    assert_eq!(
        world.explain(3),
        [
            "node `a` has room, which is reserved for job 2, the first in line: it starts there within 31 min; a task whose timeout ends before that may run there now"
        ]
    );
    // The node stays reserved until then. The other jobs do not get it in between.
    world.pass(HOUR_MS / 4);
    let step = world.report(1, a, vec![exited(2, at(5, 1, 1), 0)]);
    assert_eq!(placed(&step), []);
    assert_eq!(placed(&world.submit(timed(1_000, HOUR_MS / 4))), [(at(6, 1, 1), "a")]);
    world.pass(HOUR_MS / 4);
    assert_eq!(placed(&world.submit(timed(1_000, 1))), [], "there is no time left");
    let ends = vec![exited(3, at(6, 1, 1), 0), exited(4, at(1, 1, 1), 0)];
    assert_eq!(placed(&world.report(1, a, ends)), [(at(2, 1, 1), "a")]);
}

#[test]
fn the_stop_grace_counts_as_run_time() {
    let (mut world, _) = blocked(timed(1_000, 10 * MINUTE_MS));
    let mut slow = timed(1_000, 9 * MINUTE_MS);
    slow.run.stop_grace_ms = 2 * MINUTE_MS;
    assert_eq!(placed(&world.submit(slow.clone())), []);
    slow.run.stop_grace_ms = MINUTE_MS / 2;
    assert_eq!(placed(&world.submit(slow)), [(at(4, 1, 1), "a")]);
}

#[test]
fn a_task_that_exceeds_its_timeout_gives_no_forecast() {
    let (mut world, _) = blocked(timed(1_000, 5_000));
    world.pass(9_999);
    assert_eq!(
        world.explain(2)[1],
        "first in line: node `a` is reserved for it, and it starts there within 1 s"
    );
    world.pass(1);
    assert_eq!(placed(&world.submit(timed(1_000, 1_000))), []);
    assert_eq!(world.explain(2)[1], "first in line: node `a` is reserved for it for another 50 s");
}

#[test]
fn without_timeouts_a_node_is_reserved_for_a_time_and_then_left_to_others() {
    let (mut world, a) = blocked(spec());
    assert_eq!(placed(&world.submit(array(100))), []);
    assert_eq!(world.explain(2)[1], "first in line: node `a` is reserved for it for another 60 s");
    assert_eq!(
        world.explain(3),
        ["node `a` has room, which is reserved for job 2, the first in line, for another 60 s"]
    );
    assert_eq!(world.core.queue.next_wakeup(), Some(world.now.mono_ms + MINUTE_MS));
    assert_eq!(placed(&world.pass(MINUTE_MS - 1)), []);
    let step = world.pass(1);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a"), (at(3, 2, 1), "a"), (at(3, 3, 1), "a")]);
    assert_eq!(
        world.explain(2)[1],
        "first in line, but no node is reserved for it for another 3 min: each node that fits was reserved recently, and is left to other jobs until then"
    );
    // Other jobs use it for three times as long.
    world.pass(3 * MINUTE_MS - 1);
    assert_eq!(placed(&world.report(1, a, vec![exited(2, at(3, 1, 1), 0)])), [(at(3, 4, 1), "a")]);
    // Then it is reserved again, and room that becomes free is left for the large job.
    world.pass(1);
    let ends = (3..).zip(2..=4).map(|(report, task)| exited(report, at(3, task, 1), 0)).collect();
    assert_eq!(placed(&world.report(1, a, ends)), []);
    assert_eq!(world.explain(2)[1], "first in line: node `a` is reserved for it for another 60 s");
    let step = world.report(1, a, vec![exited(6, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn a_start_that_is_too_far_away_does_not_extend_the_reservation() {
    let (mut world, _) = blocked(timed(1_000, 5 * HOUR_MS));
    world.submit(spec());
    // A task that ends before that start may still run.
    assert_eq!(placed(&world.submit(timed(1_000, 4 * HOUR_MS))), [(at(4, 1, 1), "a")]);
    assert_eq!(world.explain(2)[1], "first in line: node `a` is reserved for it for another 60 s");
    assert_eq!(placed(&world.pass(MINUTE_MS)), [(at(3, 1, 1), "a")]);
}

#[test]
fn later_jobs_may_use_room_that_the_first_in_line_does_not_need() {
    // The array uses three of four cores at a time. It cannot use the fourth.
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(JobSpec { array: ArrayRange { first: 1, last: 9 }, ..cores(3_000) });
    assert_eq!(placed(&world.submit(cores(600))), [(at(2, 1, 1), "a")]);
    assert_eq!(placed(&world.submit(cores(400))), [(at(3, 1, 1), "a")]);
    let step = world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(1, 2, 1), "a")]);
    // If the first job needs every core, later jobs get none.
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(array(3));
    world.submit(cores(2_000));
    assert_eq!(placed(&world.submit(cores(500))), []);
    let step = world.report(1, a, vec![exited(1, at(1, 2, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn later_jobs_may_use_cores_if_the_first_in_line_lacks_only_memory() {
    let with = |cpu_millis, gib| JobSpec {
        resources: Resources { cpu_millis, memory_bytes: gib * GIB },
        ..spec()
    };
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(with(1_000, 4));
    world.submit(with(1_000, 0));
    world.submit(with(1_000, 8));
    assert_eq!(placed(&world.submit(with(1_000, 1))), [], "job 3 lacks memory");
    assert_eq!(placed(&world.submit(with(1_000, 0))), [(at(5, 1, 1), "a")]);
    // The end of job 1 frees a core as well as memory.
    assert_eq!(placed(&world.submit(with(1_000, 0))), [(at(6, 1, 1), "a")]);
    let step = world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step)[0], (at(3, 1, 1), "a"));
}

#[test]
fn later_tasks_on_the_reserved_node_do_not_change_the_forecast() {
    let mut world = World::new();
    let a = welcome(&world.connect(
        Hello { capacity: Resources { cpu_millis: 8_000, memory_bytes: 0 }, ..hello("a", 1) },
        1,
    ))
    .epoch;
    world.submit(cores(6_000));
    world.submit(cores(4_000));
    // Both free cores may be used: when the task of six cores ends, there are four for job 2.
    assert_eq!(placed(&world.submit(cores(1_000))), [(at(3, 1, 1), "a")]);
    // The end of job 3 would not make room for job 2, so a later task may take its place.
    assert_eq!(placed(&world.submit(cores(1_000))), [(at(4, 1, 1), "a")]);
    world.report(1, a, vec![exited(1, at(3, 1, 1), 0)]);
    assert_eq!(placed(&world.submit(cores(1_000))), [(at(5, 1, 1), "a")]);
    let step = world.report(1, a, vec![exited(2, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn another_node_is_reserved_if_the_nearest_does_not_become_free() {
    let mut world = World::new();
    world.join("a", 1);
    let b = world.join("b", 2);
    // One core of a is used for ever. b is full, with tasks that end at some time.
    world.submit(cores(1_000));
    let step = world.submit(array(7));
    assert_eq!(placed(&step).len(), 7);
    world.submit(cores(4_000));
    assert_eq!(world.explain(3)[1], "first in line: node `a` is reserved for it for another 60 s");
    world.pass(MINUTE_MS);
    assert_eq!(world.explain(3)[1], "first in line: node `b` is reserved for it for another 60 s");
    let on_b = world.model.attempts().into_iter().filter(|(_, node)| *node == name("b"));
    let ends: Vec<_> =
        (1..).zip(on_b).map(|(report, (attempt, _))| exited(report, attempt, 0)).collect();
    world.submit(array(20));
    assert_eq!(placed(&world.report(2, b, ends)), [(at(3, 1, 1), "b")]);
}

/// Agents with four cores that end each task after a given time.
struct TimedAgents {
    world: World,
    epochs: Vec<Epoch>,
    reports: Vec<u64>,
    /// The end time, attempt and node of each running task, the earliest first.
    ends: BinaryHeap<std::cmp::Reverse<(u64, AttemptId, usize)>>,
}

impl TimedAgents {
    fn new(nodes: &[&str]) -> Self {
        let mut world = World::new();
        let epochs = (1..).zip(nodes).map(|(number, node)| world.join(node, number)).collect();
        Self { world, epochs, reports: vec![0; nodes.len()], ends: BinaryHeap::new() }
    }

    /// Starts the placed tasks. They run for the number of minutes in the variable `MINUTES` of
    /// their job, or for ever if it is not set.
    fn start(&mut self, step: &Step) {
        for (attempt, node) in placed(step) {
            let job = &self.world.core.state().jobs[&attempt.task.job];
            let minutes = job.spec.run.env.get("MINUTES").map(|m| m.parse::<u64>().unwrap());
            let node = usize::from(node.as_bytes()[0] - b'a');
            if let Some(minutes) = minutes {
                let end = self.world.now.mono_ms + minutes * MINUTE_MS;
                self.ends.push(std::cmp::Reverse((end, attempt, node)));
            }
        }
    }

    fn submit(&mut self, mut spec: JobSpec, minutes: Option<u64>) {
        spec.run.env.extend(minutes.map(|m| ("MINUTES".to_owned(), m.to_string())));
        let step = self.world.submit(spec);
        self.start(&step);
    }

    /// Lets time pass until `until_ms`, from one event to the next.
    fn run(&mut self, until_ms: u64) {
        loop {
            let end = self.ends.peek().map(|next| next.0.0);
            let wakeup = self.world.core.next_wakeup();
            let Some(next) = [end, wakeup].into_iter().flatten().min().filter(|at| *at <= until_ms)
            else {
                break;
            };
            self.world.now.mono_ms = next.max(self.world.now.mono_ms);
            let step = match self.ends.pop() {
                Some(std::cmp::Reverse((end, attempt, node))) if end <= next => {
                    self.reports[node] += 1;
                    let report = exited(self.reports[node], attempt, 0);
                    self.world.report(node as u64 + 1, self.epochs[node], vec![report])
                }
                other => {
                    self.ends.extend(other);
                    self.world.pass(0)
                }
            };
            self.start(&step);
        }
        self.world.now.mono_ms = until_ms;
    }

    fn now_ms(&self) -> u64 {
        self.world.now.mono_ms
    }

    /// Returns how many tasks of a job have succeeded.
    fn ended(&self, job: u64) -> u32 {
        self.world.counts(job)[2]
    }
}

#[test]
fn an_endless_supply_of_small_tasks_does_not_starve_a_large_one() {
    for nodes in [&["a"][..], &["a", "b", "c"]] {
        let mut agents = TimedAgents::new(nodes);
        // Tasks of 20 minutes and more, which start at different times and never run out.
        for minutes in [20, 23, 27, 31] {
            agents.submit(array(5_000), Some(minutes));
            agents.run(agents.now_ms() + 7 * MINUTE_MS);
        }
        agents.submit(JobSpec { priority: 1, ..cores(4_000) }, Some(1));
        let start = agents.now_ms();
        agents.run(start + 4 * HOUR_MS);
        assert_eq!(agents.ended(5), 1, "it ran within a few times the duration of the others");
    }
}

#[test]
fn a_task_that_never_ends_does_not_block_others() {
    let mut agents = TimedAgents::new(&["a"]);
    agents.submit(spec(), None);
    agents.submit(cores(4_000), Some(1));
    agents.submit(array(1_000_000), Some(10));
    let start = agents.now_ms();
    agents.run(start + 100 * HOUR_MS);
    // Three cores for 100 hours. They are reserved for a part of this time.
    let most = 3 * 100 * 6;
    assert!(agents.ended(3) >= most * 3 / 5, "{} of {most}", agents.ended(3));
    assert_eq!(agents.ended(2), 0);
}

#[test]
fn an_array_does_not_reserve_a_node_for_as_long_as_it_runs() {
    let mut agents = TimedAgents::new(&["a", "b"]);
    // One node has three and a half free cores, and the other has three.
    agents.submit(JobSpec { array: ArrayRange { first: 1, last: 3 }, ..cores(500) }, None);
    agents.submit(array(10_000), Some(1));
    // The array could use the half core if one of the half-core tasks ended.
    let start = agents.now_ms();
    agents.run(start + MINUTE_MS / 2);
    for job in 3..10 {
        agents.submit(cores(500), Some(1));
        assert!(job != 3 || agents.world.counts(job)[0] == 1, "it waits at first");
        let start = agents.now_ms();
        agents.run(start + 3 * MINUTE_MS);
        assert_eq!(agents.ended(job), 1, "job {job} waited too long");
        agents.run(start + 10 * MINUTE_MS);
    }
    assert_eq!(agents.world.state(2), JobState::Running);
}

#[test]
fn several_large_jobs_reserve_a_node_no_longer_than_one_does() {
    let (mut world, _) = blocked(spec());
    for gib in 1..4 {
        let mut other = cores(4_000);
        other.resources.memory_bytes = gib * GIB;
        world.submit(other);
    }
    world.submit(spec());
    for job in 2..4 {
        assert_eq!(placed(&world.pass(MINUTE_MS / 2 - 1)), []);
        assert_eq!(placed(&world.cancel(job)), []);
    }
    assert_eq!(placed(&world.pass(2)), [(at(6, 1, 1), "a")]);
}

#[test]
fn each_node_is_reserved_in_turn() {
    let mut world = World::new();
    for (number, node) in (1..).zip(["a", "b", "c", "d", "e", "f", "g"]) {
        world.join(node, number);
    }
    // Each node but g has a core that is used for ever. g is full.
    world.submit(array(6));
    assert_eq!(placed(&world.submit(cores(4_000))), [(at(2, 1, 1), "g")]);
    world.submit(cores(4_000));
    for node in ["a", "b", "c", "d", "e", "f", "g"] {
        let reserved = format!("first in line: node `{node}` is reserved for it for ");
        assert!(world.explain(3)[1].starts_with(&reserved), "{:?}", world.explain(3));
        let until = world.core.queue.next_wakeup().unwrap();
        world.pass(until - world.now.mono_ms);
    }
}

#[test]
fn after_a_restart_the_reservation_begins_again() {
    let (mut world, _) = blocked(timed(1_000, HOUR_MS / 2));
    world.submit(array(3));
    world.pass(HOUR_MS / 4);
    world.restart();
    let held = vec![at(1, 1, 1)];
    assert_eq!(placed(&world.connect(Hello { attempts: held, ..hello("a", 1) }, 2)), []);
    // How long the task has already run is not known. It ends no later than this.
    assert_eq!(
        world.explain(2)[1],
        "first in line: node `a` is reserved for it, and it starts there within 31 min"
    );
    assert_eq!(placed(&world.submit(timed(1_000, HOUR_MS / 4))), [(at(4, 1, 1), "a")]);
}

#[test]
fn a_job_with_higher_priority_becomes_the_first_in_line() {
    let (mut world, _) = blocked(spec());
    assert_eq!(placed(&world.submit(JobSpec { priority: 1, ..spec() })), [(at(3, 1, 1), "a")]);
    world.submit(JobSpec { priority: 1, ..cores(3_000) });
    assert_eq!(world.explain(4)[1], "first in line: node `a` is reserved for it for another 60 s");
    assert_eq!(world.explain(2).len(), 1);
    // The time that job 2 has already waited still counts.
    world.pass(20 * MINUTE_MS);
    world.cancel(4);
    world.pass(4 * MINUTE_MS);
    assert_eq!(world.explain(2)[1], "first in line: node `a` is reserved for it for another 6 min");
}
