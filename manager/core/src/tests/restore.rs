use super::*;
use podmesh_protocol::report::AttemptState;

use crate::nodes::Node;
use crate::state::Retry;

/// Restarts the manager, and checks that what it derives from the state is the same as before.
pub(super) fn restart_and_compare(world: &mut World) {
    let used = |core: &Core| -> Vec<_> {
        let used = |node: &Node| (node.used_cpu_millis, node.used_memory_bytes);
        core.nodes.iter().map(|(_, node)| (node.row.clone(), used(node))).collect()
    };
    let before = used(&world.core);
    world.restart();
    assert_eq!(used(&world.core), before);
}

#[test]
fn a_restart_brings_back_what_was_committed() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let mut retried = array(20);
    retried.retry.retries = 2;
    world.submit(retried);
    world.submit(spec());
    world.report(1, a, vec![started(1, at(1, 1, 1)), exited(2, at(1, 2, 1), 5)]);
    world.submit(array(3));
    world.cancel(3);
    restart_and_compare(&mut world);
    let state = world.core.state();
    assert_eq!(state.jobs.len(), 2);
    let job = &state.jobs[&JobId(1)];
    assert_eq!((job.active.len(), job.next_index, job.counts.queued), (4, 6, 16));
    assert_eq!(job.active[&1].state, AttemptState::Running);
    assert_eq!(job.retries.keys().collect::<Vec<_>>(), [&2]);
    let waiting = &world.core.dispatch[&JobId(1)].waiting;
    assert_eq!(waiting.first(), Some(&(world.now.mono_ms + 1_000, 2)));

    // Nothing is sent until there is a session. Then tasks that wait for a retry come first.
    let step = world.give(Input::Tick);
    assert!(step.is_empty(), "{step:?}");
    assert_eq!(node_state(&mut world, "a"), NodeState::Suspect);
    assert_eq!(world.explain(2), ["node `a` is suspect"]);
    let held = vec![at(1, 1, 1), at(1, 3, 1), at(1, 4, 1), at(1, 5, 1)];
    let step = world.connect(Hello { attempts: held.clone(), ..hello("a", 1) }, 2);
    assert_eq!(welcome(&step).keep, held);
    assert_eq!((welcome(&step).epoch, welcome(&step).acked), (Epoch(2), 0));
    assert_eq!(step.first_revision, Some(world.core.state().last_revision));
    // The agent continues with the reports that are not acknowledged, and they are all accepted.
    world.now.mono_ms += 1_000;
    let reports = vec![exited(3, at(1, 1, 1), 0), exited(4, at(1, 3, 1), 0)];
    let step = world.report(2, Epoch(2), reports);
    assert_eq!(ends(&step).len(), 2);
    assert_eq!(placed(&step), [(at(1, 2, 2), "a"), (at(1, 6, 1), "a")]);
    let step = world.report(2, Epoch(2), vec![exited(9, at(1, 4, 1), 0)]);
    assert_eq!(messages(&step).last(), Some(&&ToPeer::HelloAgain(Epoch(2))));
}

#[test]
fn a_node_that_does_not_come_back_is_lost_a_lease_after_the_start() {
    let mut world = World::new();
    world.join("a", 1);
    world.submit(JobSpec { on_lost: OnLost::Requeue, ..spec() });
    world.submit(spec());
    restart_and_compare(&mut world);
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms + LEASE_MS));
    assert_eq!(world.pass(LEASE_MS).events, [EventFact::NodeLost { node: name("a") }]);
    let step = world.pass(MARGIN_MS);
    assert_eq!(ends(&step).len(), 1);
    assert_eq!((world.counts(1), world.counts(2)), ([1, 0, 0, 0, 0], [0, 1, 0, 0, 0]));
}

#[test]
fn a_cancel_continues_after_a_restart() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let mut retried = array(8);
    retried.retry.retries = 1;
    world.submit(retried);
    let reports = (1..=2).map(|n| exited(n, at(1, n as u32, 1), 1)).collect();
    world.report(1, a, reports);
    // Simulates that the manager ended between the cancel and the rest of its work.
    let job = &world.core.state().jobs[&JobId(1)];
    assert_eq!((job.retries.len(), job.active.len()), (2, 4));
    let retry: Retry = job.retries[&2].clone();
    world.cancel(1);
    restart_and_compare(&mut world);
    let mut state = world.model.state.clone();
    let job = state.jobs.get_mut(&JobId(1)).unwrap();
    job.counts.queued = 1;
    job.counts.cancelled -= 1;
    job.retries.insert(2, retry);
    let mut core = Core::new(world.now, config(), state);
    core.check_invariants();
    assert_eq!(core.next_wakeup(), Some(world.now.mono_ms));
    let mut step = Step::default();
    core.step(world.now, Input::Tick, &mut step);
    core.check_invariants();
    assert_eq!(step.changes[0], crate::state::Change::RetryDropped { attempt: at(1, 2, 1) });
    let step = world.connect(Hello { attempts: vec![at(1, 3, 1)], ..hello("a", 2) }, 2);
    assert_eq!(stops(&step), [(at(1, 3, 1), StopReason::Cancelled)]);
}

#[test]
fn the_same_submission_is_known_after_a_restart() {
    let mut world = World::new();
    world.submit(spec());
    world.restart();
    world.last_key = 0;
    let step = world.submit(spec());
    assert_eq!(replies(&step), [Ok(Answer::Submitted { job: JobId(1), again: true })]);
}

#[test]
fn a_manager_that_was_paused_loses_no_node_when_it_resumes() {
    let mut world = World::new();
    world.join("a", 1);
    restart_and_compare(&mut world);
    assert_eq!(world.pass(LEASE_MS + 30_000).events, [], "no agent could reconnect in that time");
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms + LEASE_MS / 2));
    assert_eq!(world.pass(LEASE_MS / 2).events, [EventFact::NodeLost { node: name("a") }]);
}
