use podmesh_protocol::limits::{EVENTS_PER_CHUNK_MAX, NODES_MAX};
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::{ArrayRange, JobRules};

use super::*;
use crate::state::Change;

impl World {
    pub(super) fn forget(&mut self, node: &str, force: bool) -> Step {
        let command = Command::ForgetNode { by: name("root"), node: name(node), force };
        self.give(Input::Command(TICKET, command))
    }

    /// Waits until the lease and the margin of all disconnected nodes have ended.
    pub(super) fn lose_all(&mut self) {
        self.pass(LEASE_MS);
        self.drain();
        self.pass(MARGIN_MS);
        self.drain();
    }
}

fn refused(step: &Step) -> (ErrorCode, String) {
    assert!(step.changes.is_empty() && step.events.is_empty(), "{step:?}");
    match &replies(step)[..] {
        [Err(error)] => (error.code, error.message.clone()),
        other => panic!("{other:?}"),
    }
}

/// Returns a world with a disconnected node `a` of agent 7, and a running attempt that waits for
/// it.
fn away() -> World {
    let mut world = World::new();
    let epoch = welcome(&world.connect(hello_of(7, "a", 1), 1)).epoch;
    let retried = RetryPolicy { retries: 1, backoff_ms: 0, ..spec().retry };
    world.submit(JobSpec { retry: retried, ..spec() });
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world
}

#[test]
fn only_a_lost_node_can_be_forgotten() {
    let mut world = World::new();
    assert_eq!(refused(&world.forget("a", true)).0, ErrorCode::NotFound);
    let epoch = world.join("a", 1);
    let in_use = |world: &mut World, text: &str| {
        let (code, said) = refused(&world.forget("a", true));
        assert!(code == ErrorCode::NodeInUse && said.contains(text), "{said}");
    };
    in_use(&mut world, "is alive");
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    in_use(&mut world, "within its lease");
    world.pass(LEASE_MS);
    in_use(&mut world, "a moment ago");
    world.pass(MARGIN_MS);
    let step = world.forget("a", false);
    assert_eq!(replies(&step), [Ok(Answer::NodeForgotten { enrolled: false })]);
    assert_eq!(step.changes, [Change::NodeForgotten(name("a"))]);
    assert_eq!(step.events, [EventFact::NodeForgotten { node: name("a"), by: name("root") }]);
    super::restore::restart_and_compare(&mut world);
    assert_eq!(refused(&world.forget("a", false)).0, ErrorCode::NotFound);
    assert_eq!(world.core.next_wakeup(), None);
}

#[test]
fn a_node_is_forgotten_with_attempts_of_a_job_that_then_has_too_many_failures() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let rules = JobRules { max_failures: Some(1), ..JobRules::default() };
    let array = ArrayRange { first: 1, last: 3 };
    world.submit(JobSpec { array, rules: rules.into(), ..spec() });
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world.lose_all();
    let step = world.forget("a", true);
    assert_eq!(replies(&step), [Ok(Answer::NodeForgotten { enrolled: false })]);
    assert!(world.core.state().jobs.is_empty());
    assert_eq!(world.core.next_wakeup(), None);
}

#[test]
fn attempts_that_wait_for_a_node_end_only_with_force() {
    let mut world = away();
    world.lose_all();
    let (code, said) = refused(&world.forget("a", false));
    assert!(code == ErrorCode::NodeInUse && said.contains("--force"), "{said}");
    world.connect(hello_of(8, "b", 2), 2);
    let step = world.forget("a", true);
    let message = "node `a` was forgotten by root; what the attempt did is not known";
    let lost = Outcome::new(OutcomeKind::Lost).with_message(message);
    assert_eq!(ends(&step), [(at(1, 1, 1), lost, Some(0))]);
    assert_eq!(placed(&step), [(at(1, 1, 2), "b")]);
    assert_eq!(step.events[1], EventFact::NodeForgotten { node: name("a"), by: name("root") });

    // The agent comes back as a new node, and the attempt that it holds is no longer valid.
    let back = Hello { attempts: vec![at(1, 1, 1)], ..hello_of(7, "a", 1) };
    let step = world.connect(back, 3);
    assert_eq!((&welcome(&step).stop, &welcome(&step).keep), (&vec![at(1, 1, 1)], &vec![]));
    let epoch = welcome(&step).epoch;
    assert_eq!(ends(&world.report(3, epoch, vec![exited(2, at(1, 1, 1), 0)])), []);
    assert_eq!(world.counts(1), [0, 1, 0, 0, 0]);
}

#[test]
fn the_name_of_a_forgotten_node_is_free_for_another_agent() {
    let mut world = away();
    world.lose_all();
    assert_eq!(refusal(&world.connect(hello_of(8, "a", 2), 2)).0, ErrorCode::NameTaken);
    world.forget("a", true);
    let step = world.connect(hello_of(8, "a", 2), 2);
    assert_eq!((starts(&step), world.core.nodes.len()), (vec![at(1, 1, 2)], 1));
    // The previous agent cannot get the name back, whatever it holds.
    let back = Hello { attempts: vec![at(1, 1, 1)], ..hello_of(7, "a", 1) };
    assert_eq!(refusal(&world.connect(back, 3)).0, ErrorCode::NameTaken);
}

#[test]
fn a_node_with_more_attempts_than_a_step_holds_is_forgotten_step_by_step() {
    let mut world = World::new();
    let huge = Resources { cpu_millis: 1_000_000, memory_bytes: 0 };
    let epoch = welcome(&world.connect(Hello { capacity: huge, ..hello("a", 1) }, 1)).epoch;
    let tiny = Resources { cpu_millis: 1, memory_bytes: 0 };
    let tasks = EVENTS_PER_CHUNK_MAX as u32 + 100;
    world.submit(JobSpec { resources: tiny, ..array(tasks) });
    world.drain();
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world.lose_all();
    assert_eq!(world.counts(1), [0, tasks, 0, 0, 0]);
    let first = world.forget("a", true);
    assert_eq!(replies(&first), []);
    let rest: Vec<Step> = world.drain();
    let answered = rest.iter().flat_map(replies).collect::<Vec<_>>();
    assert_eq!(answered, [Ok(Answer::NodeForgotten { enrolled: false })]);
    assert_eq!(world.state(1), JobState::Failed);
}

#[test]
fn a_forgotten_node_does_not_count_for_the_limit() {
    let mut world = World::new();
    world.join("a", 1);
    let row = world.node_row("a").clone();
    let mut state = world.model.state.clone();
    let rows = (0..NODES_MAX).map(|n| NodeRow { node: name(&format!("n{n}")), ..row.clone() });
    state.nodes = rows.map(|row| (row.node.clone(), Arc::new(row))).collect();
    let step = |core: &mut Core, now: Now, input: Input| {
        let mut step = Step::default();
        core.step(now, input, &mut step);
        step
    };
    let mut now = world.now;
    let mut core = Core::new(now, config(), state);
    let hello = || {
        let hello = Box::new(hello("b", 2));
        Input::AgentConnected { connection: connection(2), caller: local(), hello }
    };
    let said = refusal(&step(&mut core, now, hello()));
    assert!(said.1.contains("NODES_MAX") && said.1.contains("nodes forget"), "{said:?}");
    for wait in [LEASE_MS, 0, 0, MARGIN_MS, 0, 0] {
        now.mono_ms += wait;
        step(&mut core, now, Input::Tick);
    }
    let command = Command::ForgetNode { by: name("root"), node: name("n7"), force: false };
    let done = step(&mut core, now, Input::Command(TICKET, command));
    assert_eq!(replies(&done), [Ok(Answer::NodeForgotten { enrolled: false })]);
    assert_eq!(welcome(&step(&mut core, now, hello())).epoch, Epoch(2));
    core.check_invariants();
}
