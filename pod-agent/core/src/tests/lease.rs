//! Leases: what happens without contact.

use podmesh_protocol::report::OutcomeKind;

use super::*;

#[test]
fn the_end_of_the_lease_kills_requeued_attempts_only() {
    let mut agent = Agent::in_session();
    let (waits, requeued) = (attempt(1, 1, 1), attempt(2, 1, 1));
    agent.run(waits);
    agent.run(requeued);
    agent.step(Input::SessionClosed);
    assert_eq!(agent.core.next_wakeup(), Some(1_000 + LEASE_MS));
    assert_eq!(agent.tick_at(999 + LEASE_MS).commands, []);
    assert_eq!(agent.tick_at(1_000 + LEASE_MS).commands, [stopped(requeued, 0)]);
    agent.end(requeued, signalled(9));
    let out = outcome(&agent.open_session(2, &[]));
    assert_eq!((out.kind, out.signal), (OutcomeKind::Lost, Some(9)));
    assert_eq!(out.message.unwrap(), "the lease ended without contact with the manager");
    assert_eq!(agent.core.hello_attempts(), [waits, requeued]);
}

#[test]
fn each_answer_extends_the_lease_from_when_its_heartbeat_was_sent() {
    let mut agent = Agent::in_session();
    agent.run(attempt(2, 1, 1));
    agent.now = 9_000;
    agent.step(Input::HeartbeatAnswered { epoch: Epoch(1), sent_mono_ms: 8_000 });
    agent.step(Input::HeartbeatAnswered { epoch: Epoch(1), sent_mono_ms: 7_000 });
    agent.step(Input::HeartbeatAnswered { epoch: Epoch(0), sent_mono_ms: 9_000 });
    assert_eq!(agent.core.next_wakeup(), Some(8_000 + LEASE_MS));
}

#[test]
fn an_answer_that_is_processed_late_still_counts() {
    let mut agent = Agent::in_session();
    agent.run(attempt(2, 1, 1));
    agent.now = 1_000 + LEASE_MS;
    let answered = Input::HeartbeatAnswered { epoch: Epoch(1), sent_mono_ms: 1_001 };
    assert_eq!(agent.step(answered).commands, []);
    assert_eq!(agent.tick_at(1_001 + LEASE_MS).commands.len(), 1);
}

#[test]
fn nothing_starts_after_the_lease_has_ended() {
    let mut agent = Agent::in_session();
    agent.now = 1_000 + LEASE_MS;
    assert!(agent.start(&[attempt(1, 1, 1)]).reconnect);
}

#[test]
fn the_end_of_the_lease_kills_a_cancelled_attempt_which_stays_cancelled() {
    let mut agent = Agent::in_session();
    let a = attempt(2, 1, 1);
    agent.run(a);
    agent.cancel(a);
    assert_eq!(agent.tick_at(1_000 + LEASE_MS).commands, [stopped(a, 0)]);
    let out = outcome(&agent.end(a, signalled(9)));
    assert_eq!(out.kind, OutcomeKind::Cancelled);
}

#[test]
fn found_attempts_have_a_lease_before_the_first_contact() {
    let mut agent = Agent::new();
    let a = attempt(2, 1, 1);
    agent.step(Input::AttemptsFound(vec![found(a, None)]));
    let until = agent.core.next_wakeup().unwrap();
    assert_eq!(until, 16_000);
    assert_eq!(agent.tick_at(until).commands, [stopped(a, 0)]);
}

#[test]
fn the_first_contact_sets_the_lease_of_the_manager() {
    let mut agent = Agent::new();
    let a = attempt(2, 1, 1);
    agent.step(Input::AttemptsFound(vec![found(a, None)]));
    let welcome = Box::new(Welcome { lease_ms: 4_000, ..agent.welcome(0, &[]) });
    agent.step(Input::SessionOpened { welcome, hello_sent_mono_ms: 1_000 });
    agent.step(Input::SessionClosed);
    assert_eq!(agent.core.next_wakeup(), Some(5_000), "not the default lease from the start");
    assert_eq!(agent.tick_at(5_000).commands, [stopped(a, 0)]);
}
