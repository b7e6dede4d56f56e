//! Random inputs in random order: nothing panics, no invariant breaks, and no report is lost or
//! sent twice.

use std::collections::BTreeSet;

use podmesh_protocol::report::OutcomeKind;
use proptest::prelude::*;

use super::*;

/// A random event. Numbers are small, so that events refer to the same attempts.
#[derive(Clone, Debug)]
enum Event {
    Open { acked: u64, stop: Vec<AttemptId> },
    Close,
    Specs { epoch_ago: u64, job: u64 },
    Starts { epoch_ago: u64, attempts: Vec<AttemptId> },
    Stops { epoch_ago: u64, stops: Vec<(AttemptId, StopReason)> },
    Ack { epoch_ago: u64, acked: u64 },
    Forget { epoch_ago: u64, job: u64 },
    Beat { epoch_ago: u64 },
    Facts(Vec<(AttemptId, RuntimeFact)>),
    Found(Vec<(AttemptId, bool)>),
    Pass(u64),
    ShutDown,
}

fn attempts() -> impl Strategy<Value = AttemptId> {
    (1..=5u64, 1..=2u32, 0..=3u32).prop_map(|(job, index, number)| attempt(job, index, number))
}

fn facts() -> impl Strategy<Value = RuntimeFact> {
    prop_oneof![
        1 => Just(RuntimeFact::Preparing("pull".into())),
        4 => Just(RuntimeFact::Started),
        6 => (0..3i32).prop_map(|code| RuntimeFact::Ended(Outcome::exited(code))),
        1 => Just(RuntimeFact::Ended(signalled(9))),
        1 => Just(RuntimeFact::LogGap("gap".into())),
        1 => (0..3u16).prop_map(|count| RuntimeFact::Listening((0..count).collect())),
        2 => any::<bool>().prop_map(|healthy| {
            let health = if healthy { Health::Healthy } else { Health::Unhealthy };
            RuntimeFact::Health(health, "check".into())
        }),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    let ago = || prop_oneof![9 => Just(0u64), 1 => 1..3u64];
    let list = |max| prop::collection::vec(attempts(), 0..max);
    let reason = prop_oneof![Just(StopReason::Cancelled), Just(StopReason::Fenced)];
    let acked = || prop_oneof![8 => 0..30u64, 1 => Just(u64::MAX)];
    prop_oneof![
        3 => (acked(), list(3)).prop_map(|(acked, stop)| Event::Open { acked, stop }),
        2 => Just(Event::Close),
        2 => (ago(), 1..=5u64).prop_map(|(epoch_ago, job)| Event::Specs { epoch_ago, job }),
        9 => (ago(), list(4)).prop_map(|(epoch_ago, attempts)| Event::Starts { epoch_ago, attempts }),
        3 => (ago(), prop::collection::vec((attempts(), reason), 0..3))
            .prop_map(|(epoch_ago, stops)| Event::Stops { epoch_ago, stops }),
        4 => (ago(), acked()).prop_map(|(epoch_ago, acked)| Event::Ack { epoch_ago, acked }),
        1 => (ago(), 1..=5u64).prop_map(|(epoch_ago, job)| Event::Forget { epoch_ago, job }),
        2 => ago().prop_map(|epoch_ago| Event::Beat { epoch_ago }),
        9 => prop::collection::vec((attempts(), facts()), 0..6).prop_map(Event::Facts),
        1 => prop::collection::vec((attempts(), any::<bool>()), 0..3).prop_map(Event::Found),
        3 => (0..20_000u64).prop_map(Event::Pass),
        1 => Just(Event::ShutDown),
    ]
}

impl Agent {
    fn happen(&mut self, event: Event) -> Step {
        let ago = |epoch_ago: u64| Epoch(self.epoch.saturating_sub(epoch_ago));
        let input = match event {
            Event::Open { acked, stop } => return self.open_session(acked, &stop),
            Event::Close => Input::SessionClosed,
            Event::Specs { epoch_ago, job } => {
                Input::JobSpecReceived { epoch: ago(epoch_ago), context: context(job) }
            }
            Event::Starts { epoch_ago, attempts } => {
                Input::StartsReceived { epoch: ago(epoch_ago), attempts }
            }
            Event::Stops { epoch_ago, stops } => {
                Input::StopsReceived { epoch: ago(epoch_ago), stops }
            }
            Event::Ack { epoch_ago, acked } => Input::ReportsAcked { epoch: ago(epoch_ago), acked },
            Event::Forget { epoch_ago, job } => {
                Input::JobsForgotten { epoch: ago(epoch_ago), jobs: vec![JobId(job)] }
            }
            Event::Beat { epoch_ago } => {
                Input::HeartbeatAnswered { epoch: ago(epoch_ago), sent_mono_ms: self.now }
            }
            Event::Facts(facts) => Input::RuntimeReported(facts),
            Event::Found(all) => {
                let over = |over: bool| over.then(|| Outcome::new(OutcomeKind::Lost));
                Input::AttemptsFound(
                    all.into_iter().map(|(a, ended)| found(a, over(ended))).collect(),
                )
            }
            Event::Pass(ms) => {
                self.now += ms;
                Input::Tick
            }
            Event::ShutDown => Input::ShutdownRequested,
        };
        self.step(input)
    }
}

proptest! {
    #[test]
    fn no_invariant_breaks(all in prop::collection::vec(events(), 0..60)) {
        let mut agent = Agent::new();
        for event in all {
            agent.happen(event);
        }
    }

    /// With a well-behaved runtime and manager, under disconnects, cancels, fences, ended leases
    /// and restarts of tasks: in the end every started attempt has ended, was reported once (or
    /// fenced) and was removed once, and no task ever had two running copies.
    #[test]
    fn every_started_attempt_ends_is_reported_and_is_removed(all in prop::collection::vec(events(), 0..80)) {
        let mut agent = Agent::in_session();
        let mut world = World::default();
        for event in all {
            let step = match event {
                // The runtime reports only attempts that it runs.
                Event::Facts(facts) => world.facts(&mut agent, facts),
                Event::Found(_) | Event::ShutDown => continue,
                Event::Ack { .. } => agent.ack(world.received),
                Event::Open { stop, .. } => {
                    world.fenced.extend(stop.iter().filter(|a| agent.core.goes_on(**a)));
                    agent.open_session(world.received, &stop)
                }
                event => agent.happen(event),
            };
            world.see(&step);
        }
        // Everything ends, and the manager acknowledges it.
        for _ in 0..9 {
            let running: Vec<_> = world.running.iter().copied().collect();
            for attempt in running {
                world.running.remove(&attempt);
                let step = agent.end(attempt, Outcome::exited(0));
                world.see(&step);
            }
            let step = agent.open_session(world.received, &[]);
            world.see(&step);
            let step = agent.ack(world.received);
            world.see(&step);
        }
        prop_assert_eq!(agent.core.hello_attempts(), []);
        prop_assert!(agent.core.outbox.is_empty());
        prop_assert!(world.to_remove.is_empty(), "{:?}", world.to_remove);
    }
}

/// The state of the runtime and the manager.
#[derive(Default)]
struct World {
    running: BTreeSet<AttemptId>,
    to_remove: BTreeSet<AttemptId>,
    fenced: BTreeSet<AttemptId>,
    reported_ended: BTreeSet<AttemptId>,
    received: u64,
}

impl World {
    fn facts(&mut self, agent: &mut Agent, facts: Vec<(AttemptId, RuntimeFact)>) -> Step {
        let mut reported = Vec::new();
        for (attempt, fact) in facts {
            if self.running.contains(&attempt) {
                if matches!(fact, RuntimeFact::Ended(_)) {
                    self.running.remove(&attempt);
                }
                reported.push((attempt, fact));
            }
        }
        agent.step(Input::RuntimeReported(reported))
    }

    fn see(&mut self, step: &Step) {
        for command in &step.commands {
            match command {
                Command::Start { attempt, .. } => {
                    let twice = self.running.iter().any(|a| a.task == attempt.task);
                    assert!(!twice, "two copies of {}", attempt.task);
                    self.running.insert(*attempt);
                    assert!(
                        self.to_remove.insert(*attempt),
                        "{attempt} started twice without removal"
                    );
                }
                Command::Stop { .. } => {}
                Command::SetOutputAside { attempt } => {
                    assert!(!self.running.contains(attempt), "{attempt} prints there");
                }
                Command::Remove { attempt } => {
                    assert!(!self.running.contains(attempt), "{attempt} removed while running");
                    assert!(self.to_remove.remove(attempt), "{attempt} removed twice");
                }
            }
        }
        for Report(number, attempt, fact) in rows(step) {
            assert!(number <= self.received + 1, "gap before report {number}");
            if number <= self.received {
                continue;
            }
            self.received = number;
            if let ReportFact::Ended(_) = fact {
                self.reported_ended.insert(attempt);
            } else if let ReportFact::Listening(_) | ReportFact::Health(..) = fact {
                let has_ended = self.reported_ended.contains(&attempt);
                assert!(!has_ended, "{fact:?} of {attempt}, which has ended");
            }
        }
    }
}
