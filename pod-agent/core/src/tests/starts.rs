//! Starts, fencing, adoption and shutdown.

use podmesh_protocol::place::{Claim, Offer};
use podmesh_protocol::report::OutcomeKind;

use super::*;

#[test]
fn a_known_attempt_is_not_started_again() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 2);
    agent.run(a);
    assert_eq!(agent.start(&[a]), Step::default());
    assert_eq!(agent.start(&[attempt(1, 1, 1)]), Step::default(), "an older attempt");
    let ended = rows(&agent.end(a, Outcome::exited(0)))[0].0;
    assert_eq!(agent.start(&[a]), Step::default(), "ended, not acknowledged");
    assert_eq!(agent.ack(ended).commands, [removed(a)]);
    assert!(agent.core.hello_attempts().is_empty());
}

#[test]
fn a_start_of_an_unknown_job_requests_a_new_session() {
    let mut agent = Agent::in_session();
    let step = agent.start(&[attempt(9, 1, 1)]);
    assert!(step.reconnect && step.commands.is_empty());
    assert_eq!(agent.start(&[attempt(1, 1, 1)]), Step::default(), "the session has ended");
    agent.open_session(0, &[]);
    assert_eq!(agent.start(&[attempt(1, 1, 1)]).commands, [started(attempt(1, 1, 1))]);
}

#[test]
fn a_forgotten_job_is_unknown() {
    let mut agent = Agent::in_session();
    agent.step(Input::JobsForgotten { epoch: Epoch(1), jobs: vec![JobId(1)] });
    assert!(agent.start(&[attempt(1, 1, 1)]).reconnect);
}

#[test]
fn a_newer_attempt_waits_for_the_older_one_to_end() {
    let mut agent = Agent::in_session();
    let (old, new) = (attempt(1, 1, 1), attempt(1, 1, 2));
    agent.run(old);
    assert_eq!(agent.start(&[new]).commands, [stopped(old, 0)]);
    assert!(agent.core.goes_on(new));
    let step = agent.end(old, signalled(9));
    assert_eq!(step.commands, [removed(old), started(new)]);
    assert_eq!(rows(&step), [], "nothing is reported about a fenced attempt");
    assert_eq!(agent.core.hello_attempts(), [new]);
}

#[test]
fn an_attempt_that_waits_for_its_start_can_be_cancelled() {
    let mut agent = Agent::in_session();
    let (old, new) = (attempt(1, 1, 1), attempt(1, 1, 2));
    agent.run(old);
    agent.start(&[new]);
    let step = agent.cancel(new);
    assert_eq!((outcome(&step).kind, outcome(&step).ran_ms), (OutcomeKind::Cancelled, 0));
    assert_eq!(agent.end(old, signalled(9)).commands, [removed(old)]);
    let step = agent.ack(2);
    assert_eq!(step.commands, [], "no runtime ever had it");
    assert!(agent.core.hello_attempts().is_empty());
}

#[test]
fn a_newer_attempt_discards_the_unacknowledged_end_of_the_older_one() {
    let mut agent = Agent::in_session();
    let (old, new) = (attempt(1, 1, 1), attempt(1, 1, 2));
    agent.run(old);
    agent.end(old, Outcome::exited(1));
    assert_eq!(agent.start(&[new]).commands, [removed(old), started(new)]);
    assert_eq!(agent.ack(2).commands, []);
}

#[test]
fn messages_of_another_session_are_ignored() {
    let mut agent = Agent::in_session();
    agent.run(attempt(1, 1, 1));
    agent.epoch = 7;
    assert_eq!(agent.start(&[attempt(1, 2, 1)]), Step::default());
    assert_eq!(agent.cancel(attempt(1, 1, 1)), Step::default());
    let epoch = Epoch(7);
    let context = context(1);
    assert_eq!(agent.step(Input::JobSpecReceived { epoch, context }), Step::default());
}

#[test]
fn a_welcome_fences_the_attempts_that_it_lists_and_leaves_the_rest() {
    let mut agent = Agent::in_session();
    let (a, b, c) = (attempt(1, 1, 1), attempt(1, 2, 1), attempt(1, 3, 1));
    for attempt in [a, b, c] {
        agent.run(attempt);
    }
    agent.step(Input::SessionClosed);
    agent.end(c, Outcome::exited(0));
    let step = agent.open_session(3, &[a, c]);
    assert_eq!(step.commands, [stopped(a, 0), removed(c)]);
    assert_eq!(step.messages, []);
    assert_eq!(agent.end(a, signalled(9)).commands, [removed(a)]);
    assert_eq!(agent.core.hello_attempts(), [b]);
}

/// A manager whose database was restored gives out again what it has forgotten.
#[test]
fn a_number_that_the_manager_has_forgotten_stands_for_no_second_attempt() {
    let mut agent = Agent::in_session();
    let (runs, over) = (attempt(1, 1, 1), attempt(1, 2, 1));
    agent.run(runs);
    agent.run(over);
    agent.step(Input::SessionClosed);
    agent.end(over, Outcome::exited(0));
    let step = agent.open_session(0, &[runs, over]);
    assert_eq!(step.commands, [stopped(runs, 0), removed(over)]);
    assert_eq!(step.messages, [], "its old end must not end a new attempt");
    let aside = |attempt| Command::SetOutputAside { attempt };
    let step = agent.start(&[over, runs]);
    assert_eq!(step.commands, [aside(over)]);
    assert_eq!(outcome(&step).kind, OutcomeKind::NotStarted);
    // What is being killed is not named: it would count as the new attempt.
    assert_eq!(agent.core.hello_attempts(), [over]);
    agent.open_session(9, &[]);
    assert_eq!(agent.start(&[runs]), Step::default(), "it is being killed");
    assert_eq!(agent.end(runs, signalled(9)).commands, [removed(runs)]);
    let step = agent.start(&[runs]);
    assert_eq!(step.commands, [aside(runs)]);
    assert_eq!(outcome(&step).kind, OutcomeKind::NotStarted);
    // The next one is another attempt.
    let next = attempt(1, 1, 2);
    assert_eq!(agent.ack(99).commands, []);
    assert_eq!(agent.start(&[next]).commands, [started(next)]);
}

/// What was sent to the manager before its restore must not count for the new attempt either.
#[test]
fn reports_that_were_sent_but_not_acknowledged_are_withdrawn_with_their_attempt() {
    let mut agent = Agent::in_session();
    let (runs, over, other) = (attempt(1, 1, 1), attempt(1, 2, 1), attempt(1, 3, 1));
    for attempt in [runs, over, other] {
        agent.start(&[attempt]);
        agent.tell(attempt, RuntimeFact::Started);
    }
    agent.end(over, Outcome::exited(0));
    agent.step(Input::SessionClosed);
    let step = agent.open_session(0, &[runs, over]);
    assert_eq!(step.commands, [stopped(runs, 0), removed(over)]);
    assert_eq!(rows(&step), [Report(1, other, ReportFact::Started)]);
}

#[test]
fn found_attempts_are_adopted() {
    let mut agent = Agent::new();
    let (runs, over) = (attempt(4, 1, 1), attempt(1, 1, 1));
    let lost = Outcome::new(OutcomeKind::Lost).with_message("the agent was restarted");
    agent.step(Input::AttemptsFound(vec![found(runs, None), found(over, Some(lost.clone()))]));
    assert_eq!(agent.core.hello_attempts(), [over, runs]);
    let step = agent.open_session(0, &[]);
    let expected = [Report(1, runs, ReportFact::Started), Report(2, over, ReportFact::Ended(lost))];
    assert_eq!(rows(&step), expected);
    assert_eq!(agent.start(&[runs]), Step::default());
    assert_eq!(agent.ack(2).commands, [removed(over)]);
    let step = agent.end(runs, Outcome::exited(3));
    assert_eq!(outcome(&step).exit_code, Some(3));
}

#[test]
fn the_newer_of_two_found_attempts_of_a_task_counts() {
    let mut agent = Agent::new();
    let (old, new) = (attempt(4, 1, 1), attempt(4, 1, 2));
    for order in [[old, new], [new, old]] {
        let found = order.map(|attempt| found(attempt, None)).to_vec();
        let step = agent.step(Input::AttemptsFound(found));
        assert_eq!(step.commands, [stopped(old, 0)]);
        agent = Agent::new();
    }
}

#[test]
fn an_attempt_found_before_its_start_is_reported_when_it_starts() {
    let mut agent = Agent::new();
    let a = attempt(3, 1, 1);
    agent.step(Input::AttemptsFound(vec![FoundAttempt { started: false, ..found(a, None) }]));
    assert_eq!(agent.open_session(0, &[]).messages, []);
    assert_eq!(agent.core.next_wakeup(), Some(16_000), "no timeout before the start");
    agent.now = 2_000;
    let step = agent.step(Input::RuntimeReported(vec![(a, RuntimeFact::Started)]));
    let started = Report(1, a, ReportFact::Started);
    assert_eq!(step.messages, [ToManager::Reports(Epoch(1), vec![started])]);
}

#[test]
fn a_timeout_includes_the_time_before_the_restart() {
    let mut agent = Agent::new();
    let a = attempt(3, 1, 1);
    agent.step(Input::AttemptsFound(vec![FoundAttempt { ran_ms: 29_000, ..found(a, None) }]));
    agent.open_session(0, &[]);
    assert_eq!(agent.core.next_wakeup(), Some(2_000));
    assert_eq!(agent.tick_at(2_000).commands, [stopped(a, GRACE_MS)]);
}

#[test]
fn the_daemon_exits_when_its_processes_have_ended_and_are_reported() {
    let mut agent = Agent::in_session();
    let (process, container) = (attempt(1, 1, 1), attempt(4, 1, 1));
    agent.run(process);
    agent.run(container);
    let step = agent.step(Input::ShutdownRequested);
    assert_eq!(
        (step.commands.as_slice(), step.may_exit),
        (&[stopped(process, GRACE_MS)][..], false)
    );
    assert_eq!(agent.start(&[attempt(1, 9, 1)]), Step::default());

    let step = agent.end(process, signalled(15));
    assert!(!step.may_exit);
    let lost = outcome(&step);
    assert_eq!((lost.kind, lost.signal), (OutcomeKind::Lost, Some(15)));
    assert_eq!(lost.message.as_deref(), Some("the agent was stopped"));

    let step = agent.ack(3);
    assert_eq!(step.commands, [removed(process)]);
    assert_eq!(step.messages, [ToManager::Goodbye(Epoch(1))]);
    assert!(step.may_exit);
    assert_eq!(agent.step(Input::Tick), Step::default());
    assert_eq!(agent.core.next_wakeup(), None);
}

#[test]
fn the_daemon_exits_without_stopping_supervised_processes() {
    let config = CoreConfig { processes_outlive: true, ..CONFIG };
    let mut agent = Agent { core: Core::new(config), ..Agent::new() };
    agent.open_session(0, &[]);
    let process = attempt(1, 1, 1);
    agent.run(process);
    agent.ack(1);
    let step = agent.step(Input::ShutdownRequested);
    assert_eq!((step.commands, step.may_exit), (vec![], true));
    assert_eq!(step.messages, [ToManager::Goodbye(Epoch(1))]);
}

#[test]
fn the_daemon_stops_waiting_for_the_manager_after_a_limit() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.run(a);
    agent.step(Input::SessionClosed);
    agent.step(Input::ShutdownRequested);
    agent.now = 9_000;
    assert!(!agent.end(a, signalled(15)).may_exit);
    assert_eq!(agent.core.next_wakeup(), Some(9_000 + GOODBYE_MS));
    assert!(!agent.tick_at(9_000 + GOODBYE_MS - 1).may_exit);
    let step = agent.tick_at(9_000 + GOODBYE_MS);
    assert!(step.may_exit && step.messages.is_empty());
}

#[test]
fn an_idle_daemon_exits_at_once() {
    let mut agent = Agent::new();
    assert!(agent.step(Input::ShutdownRequested).may_exit);
}

#[test]
fn a_task_learns_which_named_resources_it_has() {
    let mut agent = Agent::in_session();
    let name = |text: &str| text.parse::<podmesh_protocol::ids::Name>().unwrap();
    let ids = ["GPU-x", "GPU-y"].map(str::to_owned);
    agent.core.set_offers([(name("gpu"), Offer { count: 0, ids: ids.into() })].into());
    let claim = |millis, ids: &[&str]| Claim {
        millis,
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    };
    let (a, b) = (attempt(1, 1, 1), attempt(1, 2, 1));
    let claims = vec![
        (a, [(name("gpu"), claim(500, &["GPU-y"])), (name("a-license"), claim(2_000, &[]))].into()),
        (b, [(name("gpu"), claim(1_000, &["GPU-gone"]))].into()),
    ];
    agent.step(Input::ClaimsReceived { epoch: Epoch(1), claims });
    let step = agent.start(&[a, b]);
    let [Command::Start { attempt, context }] = &step.commands[..] else {
        unreachable!("{:?}", step.commands)
    };
    assert_eq!(*attempt, a);
    let env = [
        ("CUDA_VISIBLE_DEVICES", "GPU-y"),
        ("PODMESH_A_LICENSE", "2"),
        ("PODMESH_GPU", "1"),
        ("PODMESH_GPU_IDS", "GPU-y"),
    ];
    assert_eq!(context.run.env, env.map(|(key, value)| (key.into(), value.into())).into());
    let said = outcome(&step);
    assert_eq!(said.kind, OutcomeKind::NotStarted, "the manager thinks of another place for it");
    assert!(said.message.as_ref().unwrap().contains("GPU-gone"), "{said:?}");
}
