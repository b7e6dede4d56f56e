//! Reports: their numbers, contents and acknowledgement.

use podmesh_protocol::report::OutcomeKind;

use super::*;

#[test]
fn reports_are_numbered_and_kept_until_acknowledged() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.start(&[a]);
    let started = agent.tell(a, RuntimeFact::Started);
    assert_eq!(rows(&started), [Report(1, a, ReportFact::Started)]);
    let ended = agent.end(a, Outcome::exited(0));
    let outcome = Outcome { ran_ms: 1, ..Outcome::exited(0) };
    assert_eq!(rows(&ended), [Report(2, a, ReportFact::Ended(outcome.clone()))]);
    assert_eq!(agent.ack(1).commands, []);
    agent.step(Input::SessionClosed);
    let again = agent.open_session(1, &[]);
    assert_eq!(rows(&again), [Report(2, a, ReportFact::Ended(outcome))]);
    assert_eq!(agent.ack(2).commands, [removed(a)]);
    assert_eq!(agent.ack(2), Step::default());
}

#[test]
fn unsent_reports_of_an_attempt_are_merged() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.start(&[a]);
    agent.step(Input::SessionClosed);
    for text in ["pulling 1 %", "pulling 50 %"] {
        agent.tell(a, RuntimeFact::Preparing(text.into()));
    }
    agent.tell(a, RuntimeFact::LogGap("12 bytes".into()));
    agent.tell(a, RuntimeFact::Started);
    agent.end(a, Outcome { ran_ms: 42, ..Outcome::exited(1) });
    let step = agent.open_session(0, &[]);
    let expected = [
        Report(1, a, ReportFact::LogGap("12 bytes".into())),
        Report(2, a, ReportFact::Ended(Outcome { ran_ms: 42, ..Outcome::exited(1) })),
    ];
    assert_eq!(rows(&step), expected);
}

#[test]
fn progress_before_the_start_is_reported() {
    let mut agent = Agent::in_session();
    let a = attempt(4, 1, 1);
    agent.start(&[a]);
    let step = agent.tell(a, RuntimeFact::Preparing("x".repeat(3000)));
    let Report(1, _, ReportFact::Preparing(text)) = &rows(&step)[0] else { panic!("{step:?}") };
    assert_eq!(text.len(), 2048, "truncated");
}

#[test]
fn an_acknowledgement_of_a_number_never_sent_does_not_affect_later_numbers() {
    let mut agent = Agent::in_session();
    let (a, b) = (attempt(1, 1, 1), attempt(1, 2, 1));
    agent.run(a);
    agent.ack(u64::MAX);
    let step = agent.end(a, Outcome::exited(0));
    assert_eq!(rows(&step)[0].0, 2);
    agent.start(&[b]);
    assert_eq!(rows(&agent.tell(b, RuntimeFact::Started))[0].0, 3);
}

#[test]
fn a_cancelled_attempt_is_reported_as_cancelled_with_its_exit_code() {
    let mut agent = Agent::in_session();
    let (a, b, c) = (attempt(1, 1, 1), attempt(1, 2, 1), attempt(1, 3, 1));
    for attempt in [a, b, c] {
        agent.run(attempt);
    }
    assert_eq!(agent.cancel(a).commands, [stopped(a, GRACE_MS)]);
    assert_eq!(agent.cancel(a).commands, [], "stopped only once");
    let out = outcome(&agent.end(a, signalled(15)));
    assert_eq!((out.kind, out.signal), (OutcomeKind::Cancelled, Some(15)));
    agent.ack(4);

    agent.cancel(b);
    let out = outcome(&agent.end(b, Outcome::exited(0)));
    assert_eq!((out.kind, out.exit_code), (OutcomeKind::Cancelled, Some(0)));

    let out = outcome(&agent.end(c, Outcome::exited(0)));
    assert_eq!(agent.cancel(c).commands, [], "it had already ended");
    assert_eq!(out.kind, OutcomeKind::Succeeded);
}

#[test]
fn a_cancelled_attempt_can_be_fenced() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.run(a);
    agent.cancel(a);
    assert_eq!(agent.stop(a, StopReason::Fenced).commands, [stopped(a, 0)]);
    let step = agent.end(a, signalled(9));
    assert_eq!((rows(&step).len(), step.commands.as_slice()), (0, &[removed(a)][..]));
}

#[test]
fn an_attempt_is_stopped_when_its_timeout_expires() {
    let mut agent = Agent::in_session();
    let a = attempt(3, 1, 1);
    agent.now = 5_000;
    agent.step(Input::HeartbeatAnswered { epoch: Epoch(1), sent_mono_ms: 100_000 });
    agent.run(a);
    assert_eq!(agent.core.next_wakeup(), Some(35_000));
    assert_eq!(agent.tick_at(34_999).commands, []);
    assert_eq!(agent.tick_at(35_000).commands, [stopped(a, GRACE_MS)]);
    let out = outcome(&agent.end(a, signalled(15)));
    assert_eq!((out.kind, out.signal), (OutcomeKind::TimedOut, Some(15)));
    assert_eq!(out.message.unwrap(), "stopped because its timeout of 30 s expired");
}

#[test]
fn an_attempt_that_ends_in_time_is_not_stopped() {
    let mut agent = Agent::in_session();
    let a = attempt(3, 1, 1);
    agent.run(a);
    agent.end(a, Outcome::exited(0));
    assert_eq!(agent.tick_at(1_000 + TIMEOUT_MS).commands, []);
}

#[test]
fn a_second_end_is_not_reported() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.run(a);
    agent.end(a, Outcome::exited(0));
    assert_eq!(agent.end(a, Outcome::exited(1)), Step::default());
    assert_eq!(agent.tell(a, RuntimeFact::Started), Step::default());
}

#[test]
fn a_stop_of_an_unknown_attempt_is_answered() {
    let mut agent = Agent::in_session();
    let step = agent.cancel(attempt(1, 7, 1));
    assert_eq!(step.commands, []);
    let outcome = outcome(&step);
    assert_eq!(outcome.kind, OutcomeKind::Lost);
    assert!(outcome.message.unwrap().contains("does not have this attempt"));
    // Reported once, and forgotten when acknowledged.
    let last = rows(&step).last().unwrap().0;
    agent.ack(last);
    assert_eq!(agent.core.hello_attempts(), []);
}

fn reported(step: &Step) -> Vec<ReportFact> {
    rows(step).into_iter().map(|Report(_, _, fact)| fact).collect()
}

fn healthy(text: &str) -> ReportFact {
    ReportFact::Health(Health::Healthy, text.into())
}

#[test]
fn the_ports_and_the_health_of_a_replica_are_reported() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.run(a);
    let step = agent.tell(a, RuntimeFact::Listening(vec![20_001, 20_000]));
    assert_eq!(reported(&step), [ReportFact::Listening(vec![20_001, 20_000])]);
    let step = agent.tell(a, RuntimeFact::Health(Health::Healthy, "status 200".into()));
    assert_eq!(reported(&step), [healthy("status 200")]);
    // Once it is stopped, its health changes for no other reason.
    agent.ack(3);
    agent.cancel(a);
    let step = agent.tell(a, RuntimeFact::Health(Health::Unhealthy, "refused".into()));
    assert_eq!(reported(&step), []);
}

#[test]
fn an_unsent_health_is_replaced_and_an_end_takes_it_back() {
    let mut agent = Agent::in_session();
    let (a, b) = (attempt(1, 1, 1), attempt(1, 2, 1));
    agent.run(a);
    agent.run(b);
    agent.step(Input::SessionClosed);
    for attempt in [a, b] {
        agent.tell(attempt, RuntimeFact::Listening(vec![20_000]));
        agent.tell(attempt, RuntimeFact::Health(Health::Unhealthy, "refused".into()));
        agent.tell(attempt, RuntimeFact::Health(Health::Healthy, "connected".into()));
    }
    agent.end(b, Outcome::exited(0));
    let step = agent.open_session(2, &[]);
    let ended = ReportFact::Ended(Outcome { ran_ms: 1, ..Outcome::exited(0) });
    let expected = [ReportFact::Listening(vec![20_000]), healthy("connected"), ended];
    assert_eq!(reported(&step), expected);
}

#[test]
fn nothing_is_said_about_the_ports_or_the_health_of_what_has_not_started() {
    let mut agent = Agent::in_session();
    let a = attempt(1, 1, 1);
    agent.start(&[a]);
    agent.tell(a, RuntimeFact::Listening(vec![20_000]));
    let step = agent.tell(a, RuntimeFact::Health(Health::Healthy, String::new()));
    assert_eq!((reported(&step), agent.core.outbox.is_empty()), (vec![], true));
}

#[test]
fn the_ports_of_an_adopted_replica_are_reported_after_its_start() {
    let mut agent = Agent::new();
    let (a, b, c) = (attempt(4, 1, 1), attempt(4, 2, 1), attempt(4, 3, 1));
    let replica = |ports| {
        let spec = ReplicaSpec {
            service: "web".parse().unwrap(),
            revision: 1,
            number: 1,
            spread: None,
            ports: Arc::default(),
            health: None,
        };
        Some(Arc::new(Replica { spec, address: [10, 0, 0, 1].into(), ports }))
    };
    let ended = Some(Outcome::exited(0));
    agent.step(Input::AttemptsFound(vec![
        FoundAttempt { replica: replica(vec![20_000, 20_001]), ..found(a, None) },
        FoundAttempt { replica: replica(vec![]), ..found(b, None) },
        FoundAttempt { replica: replica(vec![20_002]), ..found(c, ended) },
    ]));
    let step = agent.open_session(0, &[]);
    let expected = [
        Report(1, a, ReportFact::Started),
        Report(2, a, ReportFact::Listening(vec![20_000, 20_001])),
        Report(3, b, ReportFact::Started),
        Report(4, c, ReportFact::Ended(Outcome::exited(0))),
    ];
    assert_eq!(rows(&step), expected);
}
