//! Nodes that are drained, with and without a deadline, and labels that admins give.

use super::*;
use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::report::OutcomeKind;

fn until(deadline_ms: Option<u64>, requeue: bool) -> DrainSpec {
    DrainSpec { deadline_ms, requeue, reason: Some("new disks".into()) }
}

impl World {
    fn drains(&mut self, node: &str, drain: DrainSpec) -> (Step, u32, Vec<String>) {
        self.schedules(node, Scheduling::Draining, drain)
    }

    fn schedules(
        &mut self,
        node: &str,
        scheduling: Scheduling,
        drain: DrainSpec,
    ) -> (Step, u32, Vec<String>) {
        let (by, node) = (name("ann"), name(node));
        let command = Command::ScheduleNode { by, node, scheduling, drain };
        let step = self.give(Input::Command(TICKET, command));
        match replies(&step).as_slice() {
            [Ok(Answer::NodeScheduled { attempts, notes })] => {
                (step.clone(), *attempts, notes.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    fn labels(
        &mut self,
        node: &str,
        set: &[(&str, &str)],
        remove: &[&str],
    ) -> Result<Answer, ErrorReply> {
        let set = set.iter().map(|(label, value)| (name(label), (*value).to_owned())).collect();
        let remove = remove.iter().map(|label| name(label)).collect();
        let command = Command::LabelNode { by: name("ann"), node: name(node), set, remove };
        replies(&self.give(Input::Command(TICKET, command))).remove(0)
    }
}

fn drained(step: &Step) -> bool {
    step.events.iter().any(|event| matches!(event, EventFact::NodeDrained { .. }))
}

fn cancelled(number: u64, attempt: AttemptId) -> Report {
    ended(number, attempt, Outcome::new(OutcomeKind::Cancelled))
}

/// A world with a node `a` that runs a task of job 1, which has no retries.
fn busy() -> (World, Epoch) {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec());
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    (world, epoch)
}

#[test]
fn a_drain_without_a_deadline_waits_and_says_when_it_is_done() {
    let (mut world, epoch) = busy();
    let (step, attempts, notes) = world.drains("a", DrainSpec::default());
    assert!(!drained(&step) && attempts == 1);
    assert!(notes[0].contains("no other node takes new work"), "{notes:?}");
    let view = world.node("a").drain.unwrap();
    assert_eq!((view.by, view.waits_for, view.stops_in_ms), (name("ann"), vec![JobId(1)], None));
    assert_eq!(stops(&world.pass(1_000_000_000)), []);
    let step = world.report(1, epoch, vec![exited(2, at(1, 1, 1), 0)]);
    assert!(drained(&step) && world.node("a").attempts == 0);
    world.submit(spec());
    assert_eq!(world.counts(2), [1, 0, 0, 0, 0], "a drained node gets nothing");
    let (_, _, notes) = world.drains("a", DrainSpec::default());
    assert!(notes[0].contains("is being drained already"), "{notes:?}");
    let (step, ..) = world.schedules("a", Scheduling::Open, DrainSpec::default());
    assert_eq!((placed(&step).len(), &world.node("a").drain), (1, &None));
}

#[test]
fn an_empty_node_is_drained_at_once() {
    let mut world = World::new();
    world.join("a", 1);
    assert!(drained(&world.drains("a", DrainSpec::default()).0));
}

#[test]
fn at_the_deadline_an_attempt_is_stopped_and_its_task_runs_elsewhere_without_a_retry() {
    let (mut world, epoch) = busy();
    world.drains("a", until(Some(10_000), true));
    world.join("b", 2);
    assert_eq!(world.node("a").drain.unwrap().stops_in_ms, Some(10_000));
    assert_eq!(stops(&world.pass(9_999)), []);
    let step = world.pass(1);
    assert_eq!(stops(&step), [(at(1, 1, 1), StopReason::Cancelled)]);
    assert_eq!(world.node("a").drain.unwrap().stops_in_ms, Some(0));
    let step = world.report(1, epoch, vec![cancelled(2, at(1, 1, 1))]);
    let (_, outcome, retry) = ends(&step).remove(0);
    assert_eq!((outcome.kind, retry), (OutcomeKind::Cancelled, Some(0)));
    assert!(outcome.message.unwrap().contains("elsewhere") && drained(&step));
    assert_eq!(placed(&step), [(at(1, 1, 2), "b")]);
    // It used no retry: the job has none, and a failure is final only now.
    let job = &world.core.state().jobs[&JobId(1)];
    assert_eq!(job.active[&1].past.losses.stopped, 1);
}

#[test]
fn without_requeue_an_attempt_that_is_stopped_at_the_deadline_has_failed() {
    for (retries, state) in [(0, JobState::Failed), (1, JobState::Running)] {
        let mut world = World::new();
        let epoch = world.join("a", 1);
        world
            .submit(JobSpec { retry: RetryPolicy { retries, ..RetryPolicy::default() }, ..spec() });
        world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
        world.drains("a", until(Some(5_000), false));
        assert_eq!(stops(&world.pass(5_000)).len(), 1);
        let step = world.report(1, epoch, vec![cancelled(2, at(1, 1, 1))]);
        let (_, outcome, _) = ends(&step).remove(0);
        assert_eq!(outcome.kind, OutcomeKind::Failed);
        assert!(outcome.message.unwrap().contains("deadline"));
        assert_eq!(world.state(1), state);
    }
}

#[test]
fn requeue_without_a_deadline_stops_at_once() {
    let (mut world, _) = busy();
    world.drains("a", until(None, true));
    assert_eq!(stops(&world.pass(0)), [(at(1, 1, 1), StopReason::Cancelled)]);
}

#[test]
fn what_ends_by_itself_after_the_stop_keeps_its_outcome() {
    for (code, state) in [(0, JobState::Succeeded), (3, JobState::Failed)] {
        let (mut world, epoch) = busy();
        world.drains("a", until(Some(0), true));
        world.pass(0);
        world.report(1, epoch, vec![exited(2, at(1, 1, 1), code)]);
        assert_eq!(world.state(1), state);
    }
}

#[test]
fn a_stop_holds_when_the_drain_is_over_and_after_a_restart() {
    let (mut world, _) = busy();
    world.drains("a", until(Some(1_000), true));
    world.pass(1_000);
    world.schedules("a", Scheduling::Open, DrainSpec::default());
    world.restart();
    let mut again = hello("a", 1);
    again.attempts = vec![at(1, 1, 1)];
    let step = world.connect(again, 2);
    let epoch = welcome(&step).epoch;
    assert_eq!(stops(&step), [(at(1, 1, 1), StopReason::Cancelled)], "the agent is told again");
    let step = world.report(2, epoch, vec![cancelled(2, at(1, 1, 1))]);
    assert_eq!(placed(&step), [(at(1, 1, 2), "a")]);
}

#[test]
fn the_deadline_counts_on_over_a_restart_and_over_jumps_of_the_wall_clock() {
    let (mut world, _) = busy();
    world.drains("a", until(Some(10_000), true));
    world.now.wall_ms += 1_000_000;
    assert_eq!(stops(&world.give(Input::Tick)), [], "a jump is no time");
    world.now.wall_ms -= 1_000_000 - 4_000;
    world.restart();
    assert_eq!(world.node("a").drain.unwrap().stops_in_ms, Some(6_000));
    world.now.wall_ms = 0;
    world.restart();
    assert_eq!(world.node("a").drain.unwrap().stops_in_ms, Some(10_000), "never longer");
}

#[test]
fn a_drain_outlives_sessions_and_restarts() {
    let (mut world, _) = busy();
    world.drains("a", until(Some(10_000), true));
    world.restart();
    let again = Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) };
    world.connect(again, 2);
    let drain = world.node("a").drain.unwrap();
    assert_eq!(
        (drain.spec.reason.as_deref(), drain.stops_in_ms),
        (Some("new disks"), Some(10_000))
    );
    assert_eq!(stops(&world.pass(10_000)).len(), 1);
}

#[test]
fn a_second_drain_replaces_the_first() {
    let (mut world, _) = busy();
    world.drains("a", until(Some(1_000), false));
    let (_, _, notes) = world.drains("a", until(Some(60_000), true));
    assert!(notes[0].contains("being drained already, as ann asked"), "{notes:?}");
    assert_eq!(stops(&world.pass(1_000)), []);
    assert_eq!(stops(&world.pass(59_000)).len(), 1);
    assert!(world.core.state().jobs[&JobId(1)].active[&1].stop.is_some());
}

#[test]
fn an_attempt_that_never_reached_its_node_is_requeued_too() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec());
    world.drains("a", until(Some(0), true));
    assert_eq!(stops(&world.pass(0)).len(), 1);
    let lost = Outcome::new(OutcomeKind::Lost);
    world.report(1, epoch, vec![ended(1, at(1, 1, 1), lost)]);
    assert_eq!(world.counts(1), [1, 0, 0, 0, 0]);
}

#[test]
fn a_job_that_is_cancelled_after_the_stop_stays_cancelled() {
    let (mut world, epoch) = busy();
    world.drains("a", until(Some(0), true));
    world.pass(0);
    world.cancel(1);
    world.report(1, epoch, vec![cancelled(2, at(1, 1, 1))]);
    assert_eq!(world.state(1), JobState::Cancelled);
}

#[test]
fn admins_give_labels_over_those_of_the_agent() {
    let mut world = World::new();
    let own = Hello { labels: [(name("zone"), "a".into())].into(), ..hello("a", 1) };
    world.connect(own.clone(), 1);
    let wants = |zone: &str| JobSpec { require: [(name("zone"), zone.into())].into(), ..spec() };
    world.submit(wants("b"));
    assert_eq!(world.counts(1), [1, 0, 0, 0, 0]);
    let labels = world.labels("a", &[("zone", "b"), ("old", "1")], &[]).unwrap();
    let zone = |zone: &str| [(name("zone"), zone.to_owned())];
    assert_eq!(
        labels,
        Answer::NodeLabelled {
            labels: [(name("old"), "1".into())].into_iter().chain(zone("b")).collect()
        }
    );
    assert_eq!(world.counts(1), [0, 1, 0, 0, 0], "what waits is placed at once");
    assert_eq!(world.node("a").admin_labels, [name("old"), name("zone")].into());
    world.restart();
    world.connect(own, 1);
    assert_eq!(world.node("a").labels[&name("zone")], "b", "they outlive sessions and restarts");
    world.submit(wants("a"));
    assert_eq!(world.counts(2), [1, 0, 0, 0, 0]);
    world.labels("a", &[], &["zone", "old"]).unwrap();
    assert_eq!(world.node("a").labels, zone("a").into());
    assert_eq!(world.labels("a", &[], &["zone"]).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(world.labels("a", &[], &["none"]).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.labels("z", &[], &[]).unwrap_err().code, ErrorCode::NotFound);
}
