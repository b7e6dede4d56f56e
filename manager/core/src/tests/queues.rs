//! Tests of queues: how they share the cluster, and their limits.

use std::collections::BTreeMap;

use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::spec::JobRules;

use super::*;
use crate::input::QueueAction;

impl World {
    pub(super) fn set_queue(&mut self, queue: &str, change: QueueChange) -> Step {
        let (by, queue) = (name("root"), name(queue));
        self.give(Input::Command(TICKET, Command::SetQueue { by, queue, change }))
    }

    pub(super) fn change_queue(&mut self, queue: &str, action: QueueAction) -> Step {
        let (by, queue) = (name("root"), name(queue));
        self.give(Input::Command(TICKET, Command::ChangeQueue { by, queue, action }))
    }
}

fn weight(weight: u32) -> QueueChange {
    QueueChange { weight: Some(weight), ..QueueChange::default() }
}

/// A job of a queue, whose tasks take one core.
fn queued(queue: &str, tasks: u32) -> JobSpec {
    let queue = Some(name(queue));
    JobSpec { rules: JobRules { queue, ..JobRules::default() }.into(), ..array(tasks) }
}

/// A node that ends its attempts in the order in which they started.
struct Worker {
    epoch: Epoch,
    running: std::collections::VecDeque<AttemptId>,
    last_report: u64,
    /// How many attempts of each job have ended.
    done: BTreeMap<JobId, u32>,
    /// Whether what the core does is checked. That takes long with thousands of tasks.
    is_checked: bool,
}

impl Worker {
    fn join(world: &mut World, cores: u32) -> Self {
        let mut hello = hello("a", 1);
        hello.capacity.cpu_millis = cores * 1_000;
        let step = world.connect(hello, 1);
        let epoch = welcome(&step).epoch;
        Self {
            epoch,
            running: Default::default(),
            last_report: 0,
            done: BTreeMap::new(),
            is_checked: true,
        }
    }

    fn take(&mut self, step: &Step) {
        self.running.extend(starts(step));
    }

    /// Ends the attempt that started first.
    fn end_one(&mut self, world: &mut World) {
        let attempt = self.running.pop_front().expect("an attempt runs");
        *self.done.entry(attempt.task.job).or_default() += 1;
        self.last_report += 1;
        let reports = vec![exited(self.last_report, attempt, 0)];
        if !self.is_checked {
            let (connection, epoch) = (connection(1), self.epoch);
            let mut step = Step::default();
            let input = Input::AttemptsReported { connection, epoch, reports };
            world.core.step(world.now, input, &mut step);
            return self.take(&step);
        }
        let step = world.report(1, self.epoch, reports);
        self.take(&step);
        for step in world.drain() {
            self.take(&step);
        }
    }

    /// Returns how many attempts of a job run.
    fn running(&self, job: u64) -> usize {
        self.running.iter().filter(|attempt| attempt.task.job == JobId(job)).count()
    }
}

/// Runs 10,000 tasks of two queues with weights 1 and 3, and checks that each gets its share of what
/// runs, within 2 % over time and within a task at any time.
fn check_shares(cores: u32) {
    let mut world = World::new();
    world.set_queue("small", weight(1));
    world.set_queue("large", weight(3));
    let mut worker = Worker::join(&mut world, cores);
    world.change_queue("small", QueueAction::Pause);
    world.change_queue("large", QueueAction::Pause);
    world.submit_as("ann", queued("small", 10_000));
    world.submit_as("bob", queued("large", 10_000));
    let step = world.change_queue("small", QueueAction::Resume);
    worker.take(&step);
    worker.take(&world.change_queue("large", QueueAction::Resume));
    while worker.running.len() < cores as usize {
        for step in world.drain() {
            worker.take(&step);
        }
    }
    worker.is_checked = false;
    // The first queue had the cluster for itself: give it time to share.
    for _ in 0..cores {
        worker.end_one(&mut world);
    }
    worker.done.clear();
    for _ in 0..10_000 {
        worker.end_one(&mut world);
        let (small, large) = (worker.running(1) as f64, worker.running(2) as f64);
        let share = f64::from(cores) / 4.0;
        assert!((small - share).abs() <= 1.0, "{small} and {large} of {cores} run");
    }
    let part = f64::from(worker.done[&JobId(1)]) / 10_000.0;
    assert!((part - 0.25).abs() < 0.02, "the share of {cores} cores is {part}");
}

#[test]
fn queues_share_the_cluster_by_weight() {
    // Cores that can be divided by 4, and those that cannot.
    for cores in [4, 10, 15, 64] {
        check_shares(cores);
    }
}

#[test]
fn callers_share_a_queue_fairly_and_each_orders_own_jobs_by_priority() {
    let mut world = World::new();
    let mut worker = Worker::join(&mut world, 4);
    worker.take(&world.submit_as("ann", array(100)));
    assert_eq!(worker.running(1), 4);
    worker.take(&world.submit_as("ann", JobSpec { priority: 5, ..array(100) }));
    worker.take(&world.submit_as("bob", array(100)));
    for _ in 0..8 {
        worker.end_one(&mut world);
    }
    assert_eq!([1, 2, 3].map(|job| worker.running(job)), [0, 2, 2], "ann's first job waits");
    assert_eq!(
        world.explain(1)[1],
        "share: the queue `default` has 100 % of the cpus of the queues that wait (4 cpus), and 100 % by its weight (1 of 1); `ann` has 2 cpus of them, and 2 callers wait in the queue; 1 other caller comes first; then 1 earlier job of `ann`"
    );
}

#[test]
fn a_priority_does_not_take_the_share_of_others() {
    let mut world = World::new();
    let mut worker = Worker::join(&mut world, 4);
    worker.take(&world.submit_as("ann", array(100)));
    worker.take(&world.submit_as("bob", JobSpec { priority: 1_000, ..array(100) }));
    for _ in 0..40 {
        worker.end_one(&mut world);
    }
    assert_eq!([1, 2].map(|job| worker.running(job)), [2, 2]);
}

#[test]
fn long_tasks_count_for_as_long_as_they_run() {
    let mut world = World::new();
    let mut worker = Worker::join(&mut world, 8);
    worker.take(&world.submit_as("ann", array(4)));
    worker.take(&world.submit_as("bob", array(1_000)));
    assert_eq!([1, 2].map(|job| worker.running(job)), [4, 4]);
    // Ann's tasks run on and on. More of them get no more than her half.
    worker.take(&world.submit_as("ann", array(100)));
    for _ in 0..100 {
        let short = worker.running.iter().position(|at| at.task.job != JobId(1)).unwrap();
        worker.running.rotate_left(short);
        worker.end_one(&mut world);
        assert_eq!(worker.running(2), 4);
    }
}

#[test]
fn large_tasks_count_by_their_cores() {
    let mut world = World::new();
    let mut worker = Worker::join(&mut world, 16);
    let large =
        JobSpec { resources: Resources { cpu_millis: 4_000, memory_bytes: 0 }, ..array(1_000) };
    worker.take(&world.submit_as("ann", array(1_000)));
    worker.take(&world.submit_as("bob", large));
    for _ in 0..200 {
        worker.end_one(&mut world);
    }
    let cores = [worker.running(1), 4 * worker.running(2)];
    assert!(cores[0].abs_diff(8) <= 4 && cores[1].abs_diff(8) <= 4, "{cores:?}");
}

#[test]
fn a_queue_and_each_caller_in_it_have_limits() {
    let mut world = World::new();
    let limits = QueueChange {
        max_active: Some(3),
        max_active_per_caller: Some(2),
        ..QueueChange::default()
    };
    world.set_queue("night", limits);
    let mut worker = Worker::join(&mut world, 8);
    worker.take(&world.submit_as("ann", queued("night", 10)));
    assert_eq!(worker.running(1), 2);
    assert_eq!(
        world.explain(1),
        [
            "2 of 2 tasks of its caller are active in the queue `night` (--max-active-per-caller): the next one starts when one of them has ended"
        ]
    );
    worker.take(&world.submit_as("bob", queued("night", 10)));
    assert_eq!(worker.running(2), 1);
    assert_eq!(
        world.explain(2),
        [
            "3 of 3 tasks of the queue `night` are active (--max-active): the next one starts when one of them has ended"
        ]
    );
    worker.take(&world.submit_as("ann", array(2)));
    assert_eq!(worker.running(3), 2, "the limits are of the queue");
    for _ in 0..6 {
        worker.end_one(&mut world);
        let [ann, bob] = [1, 2].map(|job| worker.running(job));
        assert!(ann <= 2 && bob <= 2 && ann + bob == 3, "{ann} and {bob}");
    }
    // A higher limit, and none.
    let max_active = Some(5);
    worker.take(&world.set_queue("night", QueueChange { max_active, ..QueueChange::default() }));
    assert_eq!([1, 2].map(|job| worker.running(job)), [2, 2]);
    let max_active_per_caller = Some(0);
    let change = QueueChange { max_active_per_caller, ..QueueChange::default() };
    worker.take(&world.set_queue("night", change));
    assert_eq!(worker.running(1) + worker.running(2), 5);
}

#[test]
fn a_queue_at_its_limit_uses_room_that_others_left_meanwhile() {
    let mut world = World::new();
    world.set_queue("one", QueueChange { max_active: Some(1), ..QueueChange::default() });
    let a = world.join("a", 1);
    let whole = |mut spec: JobSpec| {
        spec.resources.cpu_millis = 4_000;
        spec
    };
    world.submit_as("ann", whole(spec()));
    world.submit_as("bob", whole(queued("one", 1)));
    let b = world.join("b", 2);
    assert_eq!(world.counts(2), [0, 1, 0, 0, 0], "on the other node");
    world.submit_as("bob", whole(queued("one", 1)));
    // The node gains room while the queue is at its limit, and nobody else wants it.
    world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(world.counts(3), [1, 0, 0, 0, 0]);
    let step = world.report(2, b, vec![exited(1, at(2, 1, 1), 0)]);
    assert_eq!(placed(&step).len(), 1);
}

#[test]
fn a_paused_queue_starts_nothing_and_keeps_no_room() {
    let mut world = World::new();
    world.set_queue("night", weight(1_000));
    let a = world.join("a", 1);
    world.submit_as("ann", queued("night", 3));
    world.change_queue("night", QueueAction::Pause);
    world.report(1, a, vec![exited(1, at(1, 1, 1), 0)]);
    world.submit_as("ann", queued("night", 1));
    assert_eq!(world.counts(2), [1, 0, 0, 0, 0]);
    assert_eq!(
        world.explain(2),
        ["the queue `night` is paused: an admin resumes it (`podmesh queue resume night`)"]
    );
    assert_eq!(world.counts(1), [0, 2, 1, 0, 0], "what runs goes on");
    let same = Ok(Answer::QueueChanged { changed: false });
    assert_eq!(replies(&world.change_queue("night", QueueAction::Pause)), [same]);
    // The first in line of a paused queue reserves no node.
    let whole = Resources { cpu_millis: 4_000, memory_bytes: 0 };
    world.submit_as("ann", JobSpec { resources: whole, ..queued("night", 1) });
    let step = world.submit_as("bob", array(2));
    assert_eq!(placed(&step).len(), 2);
    world.restart();
    assert!(world.core.state().queues[&name("night")].paused);
    let attempts = vec![at(1, 2, 1), at(1, 3, 1), at(4, 1, 1), at(4, 2, 1)];
    let step = world.connect(Hello { attempts, ..hello("a", 1) }, 3);
    let epoch = welcome(&step).epoch;
    let step = world.report(3, epoch, vec![exited(2, at(1, 2, 1), 0)]);
    assert_eq!(placed(&step), []);
    let step = world.change_queue("night", QueueAction::Resume);
    assert_eq!(placed(&step), [(at(2, 1, 1), "a")]);
}

#[test]
fn what_is_wrong_with_a_queue_is_said() {
    let mut world = World::new();
    world.join("a", 1);
    let says = |step: &Step| replies(step)[0].clone().unwrap_err().message;
    let step = world.submit_as("ann", queued("night", 1));
    assert_eq!(
        says(&step),
        "there is no queue `night`; the queues are: default (an admin adds one with `podmesh queue set night`)"
    );
    let added = Ok(Answer::QueueSaved { added: true, changed: true });
    assert_eq!(replies(&world.set_queue("night", weight(2))), [added]);
    let same = Ok(Answer::QueueSaved { added: false, changed: false });
    assert_eq!(replies(&world.set_queue("night", weight(2))), [same]);
    assert!(says(&world.set_queue("Night", weight(2))).contains("only in the case"));
    assert!(says(&world.change_queue("day", QueueAction::Pause)).contains("default, night"));
    assert!(
        says(&world.change_queue("default", QueueAction::Remove)).contains("cannot be removed")
    );
    world.submit_as("ann", queued("night", 6));
    assert_eq!(
        says(&world.change_queue("night", QueueAction::Remove)),
        "the queue `night` has a job that has not ended (tasks that wait: 2, active ones: 4): cancel what is left or wait for its end; `podmesh queue pause night` lets no more tasks start"
    );
    let detail = world.core.show_queue(&name("night")).unwrap();
    assert_eq!((detail.view.jobs, detail.view.queued, detail.view.active), (1, 2, 4));
    assert_eq!(detail.callers[0].caller, Some(name("ann")));
    world.cancel(1);
    let reports = (1..=4).map(|index| exited(u64::from(index), at(1, index, 1), 0)).collect();
    world.report(1, Epoch(1), reports);
    let removed = Ok(Answer::QueueChanged { changed: true });
    assert_eq!(replies(&world.change_queue("night", QueueAction::Remove)), [removed]);
    let rows = world.core.list_queues(None, 10);
    assert_eq!(rows.iter().map(|row| row.queue.as_str()).collect::<Vec<_>>(), ["default"]);
    // A task of it cannot run again: its queue is gone.
    assert!(says(&world.requeue(1, true, |_| true)).contains("no queue `night`"));
}

/// Lets the first caller or queue have the cluster for itself for a while. Returns how many of the next
/// 60 tasks are those of one that comes later.
fn share_of_a_newcomer(first: JobSpec, later: JobSpec) -> u32 {
    let mut world = World::new();
    world.set_queue("night", weight(1));
    // Cores that two cannot share evenly: the third is for both by turns.
    let mut worker = Worker::join(&mut world, 3);
    worker.take(&world.submit_as("ann", first));
    for _ in 0..100 {
        worker.end_one(&mut world);
    }
    worker.take(&world.submit_as("bob", later));
    for _ in 0..3 {
        worker.end_one(&mut world);
    }
    worker.done.clear();
    for _ in 0..60 {
        worker.end_one(&mut world);
    }
    worker.done[&JobId(2)]
}

#[test]
fn nobody_saves_up_while_others_use_the_cluster() {
    let between_callers = share_of_a_newcomer(array(1_000), array(1_000));
    let between_queues = share_of_a_newcomer(array(1_000), queued("night", 1_000));
    for share in [between_callers, between_queues] {
        assert!(share.abs_diff(30) <= 1, "{share} of 60");
    }
}

/// Returns a task that needs so many cores, in the queue `night`.
fn large(cpu_millis: u32) -> JobSpec {
    JobSpec { resources: Resources { cpu_millis, memory_bytes: 0 }, ..queued("night", 1) }
}

#[test]
fn room_that_comes_while_a_queue_is_paused_is_used_afterwards() {
    let mut world = World::new();
    world.set_queue("night", weight(1));
    let a = world.join("a", 1);
    world.submit_as("ann", array(3));
    let elsewhere = JobSpec { require: [(name("zone"), "b".into())].into(), ..large(1_000) };
    world.submit_as("ann", elsewhere);
    world.submit_as("ann", large(4_000));
    assert!(world.explain(3)[0].starts_with("waits for room"), "{:?}", world.explain(3));
    world.change_queue("night", QueueAction::Pause);
    let ends = (1..=3).map(|index| exited(u64::from(index), at(1, index, 1), 0)).collect();
    assert_eq!(placed(&world.report(1, a, ends)), []);
    let labels = [(name("zone"), "b".to_owned())].into();
    assert_eq!(placed(&world.connect(Hello { labels, ..hello("b", 2) }, 2)), []);
    let step = world.change_queue("night", QueueAction::Resume);
    assert_eq!(placed(&step), [(at(2, 1, 1), "b"), (at(3, 1, 1), "a")]);
}

#[test]
fn a_caller_keeps_the_turn_when_the_first_job_has_no_node_any_more() {
    let mut world = World::new();
    let labels = [(name("zone"), "a".to_owned())].into();
    world.connect(Hello { labels, ..hello("a", 1) }, 1);
    world.join("b", 2);
    let whole = || JobSpec { resources: hello("a", 1).capacity, ..spec() };
    world.submit_as("carol", JobSpec { array: array(2).array, ..whole() });
    let here = JobSpec { require: [(name("zone"), "a".into())].into(), ..whole() };
    world.submit_as("ann", here);
    world.submit_as("ann", whole());
    world.submit_as("bob", whole());
    assert!(world.explain(2).last().unwrap().contains("node `a` is reserved for it"));
    let (by, node, drain) = (name("root"), name("a"), Default::default());
    let scheduling = podmesh_protocol::node::Scheduling::Cordoned;
    world.give(Input::Command(TICKET, Command::ScheduleNode { by, node, scheduling, drain }));
    assert!(world.explain(3).last().unwrap().contains("node `b` is reserved for it"));
}
