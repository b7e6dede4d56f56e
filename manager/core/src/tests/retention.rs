use std::ops::RangeInclusive;

use podmesh_protocol::access::PublicKey;
use podmesh_protocol::client::PrincipalKind;

use super::restore::restart_and_compare;
use super::*;
use crate::state::Change;

const KEEP_MS: u64 = 1_000_000;

impl World {
    /// A user has jobs removed.
    pub(super) fn forget_jobs(&mut self, jobs: RangeInclusive<u64>) -> Step {
        let (jobs, by) = (jobs.map(JobId).collect(), Some(name("root")));
        self.give(Input::Command(TICKET, Command::RemoveJobs { jobs, by }))
    }

    pub(super) fn retain(&mut self, age_ms: u64, keep_ms: u64) -> Step {
        self.give(Input::RetentionDue { age_ms, keep_ms, by: name("manager") })
    }
}

#[test]
fn only_jobs_that_have_ended_are_removed() {
    let mut world = World::new();
    for _ in 0..3 {
        world.submit(spec());
    }
    world.cancel(1);
    world.cancel(3);
    let step = world.forget_jobs(0..=9);
    let removed = [JobId(1), JobId(3)];
    assert_eq!(step.changes, removed.map(Change::JobRemoved));
    assert_eq!(
        step.events,
        [EventFact::JobsForgotten { first: JobId(1), last: JobId(3), count: 2, by: name("root") }]
    );
    assert_eq!(
        step.effects,
        [Effect::Answered { ticket: TICKET, result: Ok(Answer::JobsRemoved { jobs: 2 }) }]
    );
    assert_eq!(world.state(2), JobState::Queued);

    // Jobs that have been kept long enough are removed without an event.
    world.cancel(2);
    let removal = Input::Command(TICKET, Command::RemoveJobs { jobs: vec![JobId(2)], by: None });
    let step = world.give(removal);
    assert_eq!((step.changes.len(), step.events.len()), (1, 0));
    let nothing = world.forget_jobs(10..=12);
    assert!(nothing.changes.is_empty() && nothing.events.is_empty());
}

#[test]
fn the_number_of_a_removed_job_is_not_reused() {
    let mut world = World::new();
    world.submit(spec());
    world.submit(spec());
    world.cancel(2);
    world.forget_jobs(2..=2);
    restart_and_compare(&mut world);
    let again = replies(&world.submit(spec()));
    assert_eq!(again, [Ok(Answer::Submitted { job: JobId(3), again: false })]);
}

#[test]
fn reports_on_a_removed_job_change_nothing() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(spec());
    let attempt = at(1, 1, 1);
    world.report(1, a, vec![exited(1, attempt, 0)]);
    world.forget_jobs(1..=1);
    let step = world.report(1, a, vec![exited(2, attempt, 1)]);
    assert!(step.changes.is_empty() && step.events.is_empty());
    let step = world.connect(Hello { attempts: vec![attempt], ..hello("a", 1) }, 2);
    assert_eq!(welcome(&step).stop, [attempt]);
}

#[test]
fn the_age_clock_is_saved() {
    let mut world = World::new();
    world.retain(7, 0);
    assert_eq!(world.model.state.age_ms, 7);
}

#[test]
fn a_node_that_has_been_lost_for_long_is_removed_with_its_key() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    let caller = Caller { role: Role::Agent, name: name("a"), key: Some(PublicKey([1; 32])) };
    let epoch = welcome(&world.connect_as(caller, hello("a", 1), 1)).epoch;
    world.retain(0, KEEP_MS);
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world.lose_all();
    world.retain(100, KEEP_MS);
    restart_and_compare(&mut world);
    world.lose_all();
    assert_eq!(world.retain(99 + KEEP_MS, KEEP_MS).changes.len(), 1, "the time is not over");
    let step = world.retain(100 + KEEP_MS, KEEP_MS);
    let [removed, forgotten] = &step.events[..] else { panic!("{step:?}") };
    assert_eq!(
        *removed,
        EventFact::KeyRevoked { role: Role::Agent.into(), name: name("a"), by: name("manager") }
    );
    assert_eq!(*forgotten, EventFact::NodeForgotten { node: name("a"), by: name("manager") });
    assert_eq!(world.core.nodes.len(), 0);
    assert!(!world.core.access.is_enrolled(&name("a")));
    // The revoked key was marked in the same step, and is kept as long again.
    restart_and_compare(&mut world);
    world.retain(99 + 2 * KEEP_MS, KEEP_MS);
    assert_eq!(world.core.state().keys.len(), 1);
    world.retain(100 + 2 * KEEP_MS, KEEP_MS);
    assert_eq!(world.core.state().keys.len(), 0);
    restart_and_compare(&mut world);
}

#[test]
fn a_node_that_comes_back_in_time_is_kept() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world.lose_all();
    world.retain(0, KEEP_MS);
    world.join("a", 2);
    world.retain(KEEP_MS, KEEP_MS);
    assert_eq!(world.core.nodes.len(), 1);
    assert_eq!(world.node_row("a").lost_age_ms, None);
}

#[test]
fn a_node_that_attempts_wait_for_is_kept() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let retried = RetryPolicy { retries: 1, backoff_ms: 0, ..spec().retry };
    world.submit(JobSpec { retry: retried, ..spec() });
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    world.give(Input::AgentLeft { connection: connection(1), epoch });
    world.lose_all();
    world.retain(0, 0);
    world.retain(KEEP_MS, 0);
    assert_eq!(world.core.nodes.len(), 1);
}

#[test]
fn valid_keys_are_kept() {
    let mut world = World::new();
    let token = world.token(Role::Operator, 2);
    world.try_join(1, token, "ann").unwrap();
    world.try_join(2, token, "bob").unwrap();
    world.revoke(PrincipalKind::User, "bob");
    for age_ms in [0, KEEP_MS, 2 * KEEP_MS] {
        world.retain(age_ms, KEEP_MS);
    }
    assert_eq!(world.core.state().keys.len(), 1);
}
