//! The planned maintenance of nodes: it begins and ends once, also with restarts and a clock that jumps.

use podmesh_protocol::limits::END_MARGIN_MS;
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::report::OutcomeKind;

use super::*;
use crate::ids::NodeIx;

const HOUR: u64 = 3_600_000;

impl World {
    fn plan(&mut self, spec: Option<MaintenanceSpec>) -> Step {
        let (by, node) = (name("ann"), name("a"));
        self.give(Input::Command(TICKET, Command::SetMaintenance { by, node, maintenance: spec }))
    }

    /// Lets the wall clock say another time.
    fn set_clock(&mut self, wall_ms: u64) -> Step {
        self.now.wall_ms = wall_ms;
        self.give(Input::Tick)
    }

    fn admin_sets(&mut self, scheduling: Scheduling) -> Step {
        let (by, node, drain) = (name("bob"), name("a"), DrainSpec::default());
        self.give(Input::Command(TICKET, Command::ScheduleNode { by, node, scheduling, drain }))
    }

    fn gets(&self) -> Scheduling {
        self.node_row("a").scheduling
    }

    fn is_planned(&self) -> bool {
        self.node_row("a").maintenance.is_some()
    }
}

/// An hour from the start of the world, for an hour.
fn later() -> MaintenanceSpec {
    MaintenanceSpec { from_ms: HOUR, for_ms: HOUR, drain: DrainSpec::default() }
}

fn said(step: &Step) -> Vec<&str> {
    let found = step.events.iter().filter_map(|event| match event {
        EventFact::NodeMaintenance { message, .. } => Some(message.as_str()),
        _ => None,
    });
    found.collect()
}

const CHANGED: Result<Answer, ErrorReply> = Ok(Answer::MaintenanceSet { changed: true });
const SAME: Result<Answer, ErrorReply> = Ok(Answer::MaintenanceSet { changed: false });

/// A world with the node `a`, on which a task of job 1 runs, and a maintenance.
fn world(spec: MaintenanceSpec) -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec_of_job());
    assert_eq!(replies(&world.plan(Some(spec.clone()))), [CHANGED]);
    assert_eq!(replies(&world.plan(Some(spec))), [SAME]);
    (world, epoch)
}

fn spec_of_job() -> JobSpec {
    super::spec()
}

#[test]
fn a_node_is_drained_for_the_time_and_gets_new_work_afterwards() {
    let (mut world, epoch) = world(later());
    assert_eq!(world.core.next_wakeup_wall(), Some(HOUR));
    let view = world.node("a").maintenance.unwrap();
    assert_eq!((view.by, view.spec, view.active), (name("ann"), later(), false));
    assert_eq!(placed(&world.submit(spec())), [(at(2, 1, 1), "a")], "it has not begun");
    assert_eq!(said(&world.set_clock(HOUR - 1)), [""; 0]);
    let step = world.set_clock(HOUR);
    assert_eq!((said(&step), world.gets()), (vec!["begins"], Scheduling::Draining));
    assert!(world.node("a").maintenance.unwrap().active);
    assert_eq!(world.core.next_wakeup_wall(), Some(2 * HOUR));
    assert_eq!(placed(&world.submit(spec())), []);
    let reports = vec![exited(1, at(1, 1, 1), 0), exited(2, at(2, 1, 1), 0)];
    let step = world.report(1, epoch, reports);
    assert!(step.events.contains(&EventFact::NodeDrained { node: name("a") }));
    let step = world.set_clock(2 * HOUR);
    assert_eq!(said(&step), ["over"]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
    assert_eq!((world.gets(), world.is_planned()), (Scheduling::Open, false));
    assert_eq!(world.core.next_wakeup_wall(), None);
}

#[test]
fn what_runs_is_stopped_and_runs_again_if_that_was_asked_for() {
    let drain = DrainSpec { deadline_ms: Some(60_000), requeue: true, reason: None };
    let (mut world, epoch) = world(MaintenanceSpec { drain, ..later() });
    let step = world.set_clock(HOUR);
    assert_eq!(stops(&step), []);
    let step = world.pass(60_000);
    assert_eq!(stops(&step), [(at(1, 1, 1), StopReason::Cancelled)]);
    let stopped = Outcome::new(OutcomeKind::Cancelled);
    world.report(1, epoch, vec![ended(1, at(1, 1, 1), stopped)]);
    assert_eq!(world.counts(1), [1, 0, 0, 0, 0]);
    assert_eq!(placed(&world.set_clock(2 * HOUR)), [(at(1, 1, 2), "a")]);
}

#[test]
fn a_maintenance_that_is_over_stops_nothing_at_the_deadline_of_its_drain() {
    let drain = DrainSpec { deadline_ms: Some(60_000), requeue: false, reason: None };
    let (mut world, _) = world(MaintenanceSpec { for_ms: 50_000, drain, ..later() });
    world.set_clock(HOUR);
    // The manager is late: both are due.
    let step = world.pass(70_000);
    assert_eq!((said(&step), stops(&step)), (vec!["over"], vec![]));
}

#[test]
fn a_window_begins_once_whatever_the_clock_does() {
    let (mut world, _) = world(later());
    world.set_clock(HOUR);
    world.restart();
    assert_eq!(world.gets(), Scheduling::Draining);
    // The clock is set back, to before the begin, and comes again.
    assert_eq!(said(&world.set_clock(5_000)), [""; 0]);
    assert_eq!(said(&world.set_clock(HOUR)), [""; 0]);
    assert_eq!(world.gets(), Scheduling::Draining);
    // The manager was away at the end. The node comes back meanwhile.
    world.now.wall_ms = 3 * HOUR;
    world.restart();
    let step = world.give(Input::Tick);
    assert_eq!((said(&step), world.gets()), (vec!["over"], Scheduling::Open));
    assert_eq!(said(&world.set_clock(HOUR)), [""; 0], "and it does not begin again");
}

#[test]
fn a_window_that_passed_while_the_manager_was_away_is_missed() {
    let (mut world, _) = world(later());
    world.now.wall_ms = 2 * HOUR;
    world.restart();
    let step = world.give(Input::Tick);
    assert_eq!(said(&step), ["missed: the manager was away, or its clock was set ahead"]);
    assert_eq!((world.gets(), world.is_planned()), (Scheduling::Open, false));
}

#[test]
fn what_an_admin_does_meanwhile_stays() {
    for scheduling in [Scheduling::Open, Scheduling::Cordoned] {
        let (mut world, _) = world(later());
        world.set_clock(HOUR);
        let step = world.admin_sets(scheduling);
        assert_eq!(said(&step), ["over: bob has changed what the node may get"]);
        let after = world.set_clock(2 * HOUR);
        assert_eq!((said(&after), world.gets()), (vec![], scheduling));
    }
    // The same once more changes nothing.
    let (mut world, _) = world(later());
    world.set_clock(HOUR);
    world.admin_sets(Scheduling::Draining);
    world.set_clock(2 * HOUR);
    assert_eq!(world.gets(), Scheduling::Open);
}

#[test]
fn what_an_admin_did_before_is_there_again_afterwards() {
    let (mut world, _) = world(later());
    world.admin_sets(Scheduling::Cordoned);
    world.set_clock(HOUR);
    assert_eq!(world.gets(), Scheduling::Draining);
    world.set_clock(2 * HOUR);
    assert_eq!(world.gets(), Scheduling::Cordoned);
    // A node that is being drained goes on to be drained.
    world.admin_sets(Scheduling::Draining);
    world.plan(Some(MaintenanceSpec { from_ms: 3 * HOUR, ..later() }));
    let step = world.set_clock(3 * HOUR);
    assert_eq!(said(&step), ["not needed: the node is being drained already"]);
    world.set_clock(4 * HOUR);
    assert_eq!(world.gets(), Scheduling::Draining);
}

#[test]
fn what_is_planned_can_be_changed_and_taken_back() {
    let (mut world, _) = world(later());
    let other = MaintenanceSpec { from_ms: 3 * HOUR, ..later() };
    let step = world.plan(Some(other));
    let planned = "planned from 1970-01-01T03:00:00+00:00 until 1970-01-01T04:00:00+00:00";
    assert_eq!(said(&step), ["no longer planned", planned]);
    assert_eq!(said(&world.set_clock(HOUR)), [""; 0]);
    assert_eq!(replies(&world.plan(None)), [CHANGED]);
    assert_eq!(replies(&world.plan(None)), [SAME]);
    world.set_clock(3 * HOUR);
    assert_eq!(world.gets(), Scheduling::Open);
    // One that begins at once, and ends when it is taken back.
    let now = MaintenanceSpec { from_ms: 2 * HOUR, for_ms: 2 * HOUR, drain: DrainSpec::default() };
    assert_eq!(said(&world.plan(Some(now)))[1], "begins");
    assert_eq!(world.gets(), Scheduling::Draining);
    world.plan(None);
    assert_eq!((world.gets(), world.is_planned()), (Scheduling::Open, false));
    let says = |step: &Step| replies(step)[0].clone().unwrap_err().message;
    assert!(says(&world.plan(Some(later()))).contains("over already"));
    let far = MaintenanceSpec { from_ms: u64::MAX, ..later() };
    assert!(says(&world.plan(Some(far))).contains("366 days"));
}

#[test]
fn a_new_session_and_a_forgotten_node() {
    let (mut world, _) = world(later());
    world.restart();
    world.join("a", 2);
    assert!(world.is_planned());
    let epoch = world.node("a").epoch.unwrap();
    world.give(Input::AgentLeft { connection: connection(2), epoch });
    world.lose_all();
    world.forget("a", true);
    assert_eq!(world.core.next_wakeup_wall(), None);
    world.join("a", 3);
    assert!(!world.is_planned());
}

/// A task that ends after so long, stop grace and margin included.
fn lasting(ms: u64) -> JobSpec {
    let mut spec = spec();
    spec.run.timeout_ms = Some(ms - spec.run.stop_grace_ms - END_MARGIN_MS);
    spec
}

/// A world with the empty node `a`, and a maintenance in an hour.
fn empty(drain: DrainSpec) -> (World, Epoch) {
    let mut world = World::new();
    world.now.wall_ms = 24 * HOUR;
    let epoch = world.join("a", 1);
    let from_ms = world.now.wall_ms + HOUR;
    world.plan(Some(MaintenanceSpec { from_ms, for_ms: HOUR, drain }));
    (world, epoch)
}

#[test]
fn a_task_starts_only_if_it_is_over_before_the_maintenance() {
    let (mut world, _) = empty(DrainSpec::default());
    assert_eq!(placed(&world.submit(lasting(HOUR))), [(at(1, 1, 1), "a")]);
    assert_eq!(placed(&world.submit(lasting(HOUR + 1))), []);
    assert_eq!(
        world.explain(2),
        [
            "a task might not be over (--timeout, --stop-grace) when the maintenance of node `a` begins in 60 min; it can start there afterwards"
        ]
    );
    assert_eq!(placed(&world.submit(spec())), [(at(3, 1, 1), "a")], "it would wait for ever");
    world.pass(HOUR / 2);
    assert_eq!(placed(&world.submit(lasting(HOUR))), [], "the time has passed");
    assert_eq!(placed(&world.submit(lasting(HOUR / 2))), [(at(5, 1, 1), "a")]);
    world.restart();
    let attempts = vec![at(1, 1, 1), at(3, 1, 1), at(5, 1, 1)];
    let step = world.connect(Hello { attempts, ..hello("a", 1) }, 2);
    assert_eq!(placed(&step), []);
    let epoch = welcome(&step).epoch;
    let ends = [at(1, 1, 1), at(3, 1, 1), at(5, 1, 1)];
    world.report(2, epoch, (1..).zip(ends).map(|(n, end)| exited(n, end, 0)).collect());
    // Another node takes what this one does not.
    let step = world.connect(Hello { capacity: spec().resources, ..hello("b", 3) }, 3);
    assert_eq!(placed(&step), [(at(2, 1, 1), "b")]);
    assert!(world.explain(4)[0].contains("maintenance of node `a` begins in 30 min"));
    assert!(world.explain(4)[1].starts_with("waits for room: 1 node fits, it is busy"));
    assert_eq!(placed(&world.pass(HOUR / 2)), []);
    assert_eq!(placed(&world.pass(HOUR)), [(at(4, 1, 1), "a")], "the maintenance is over");
}

#[test]
fn a_maintenance_keeps_no_task_away_that_runs_again_elsewhere() {
    let (mut world, _) = empty(DrainSpec { requeue: true, ..DrainSpec::default() });
    assert_eq!(placed(&world.submit(lasting(2 * HOUR))), [(at(1, 1, 1), "a")]);
    let (mut world, _) = empty(DrainSpec { deadline_ms: Some(HOUR), ..DrainSpec::default() });
    assert_eq!(placed(&world.submit(lasting(2 * HOUR))), []);
    assert_eq!(placed(&world.plan(None)), [(at(1, 1, 1), "a")], "it is no longer planned");
}

#[test]
fn the_time_until_a_maintenance_follows_the_wall_clock() {
    let (mut world, _) = empty(DrainSpec::default());
    assert_eq!(placed(&world.submit(lasting(2 * HOUR))), []);
    let from_ms = world.now.wall_ms + HOUR;
    // As the clock is corrected, and jumps.
    world.set_clock(world.now.wall_ms + 20);
    assert_eq!(world.core.nodes.get(NodeIx(0)).closes_ms, Some(world.now.mono_ms + HOUR));
    assert_eq!(placed(&world.set_clock(from_ms - 2 * HOUR)), [(at(1, 1, 1), "a")]);
    world.set_clock(from_ms - HOUR / 2);
    assert_eq!(placed(&world.submit(lasting(HOUR))), []);
}

/// A job that needs a whole node.
fn whole(spec: JobSpec) -> JobSpec {
    JobSpec { resources: hello("a", 1).capacity, ..spec }
}

#[test]
fn a_node_is_not_reserved_for_a_task_that_could_not_be_over_in_time() {
    let (mut world, epoch) = empty(DrainSpec::default());
    world.submit(spec());
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    world.pass(HOUR / 2 - 10_000);
    assert_eq!(placed(&world.submit(whole(lasting(HOUR / 2)))), []);
    assert!(world.explain(2)[1].contains("node `a` is reserved for it"), "{:?}", world.explain(2));
    assert_eq!(placed(&world.submit(lasting(HOUR / 4))), [], "the node is reserved");
    let step = world.pass(10_001);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
    assert_eq!(
        world.explain(2),
        [
            "a task might not be over (--timeout, --stop-grace) when the maintenance of node `a` begins in 30 min; it can start there afterwards"
        ]
    );
}

#[test]
fn room_that_comes_too_late_before_a_maintenance_is_for_others() {
    let (mut world, epoch) = empty(DrainSpec::default());
    world.join("b", 2);
    world.submit(JobSpec { array: array(2).array, ..whole(spec()) });
    world.submit(whole(lasting(HOUR / 2)));
    world.submit(whole(lasting(HOUR / 4)));
    world.pass(HOUR * 2 / 3);
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(placed(&step), [(at(3, 1, 1), "a")]);
    assert_eq!(world.counts(2), [1, 0, 0, 0, 0]);
}
