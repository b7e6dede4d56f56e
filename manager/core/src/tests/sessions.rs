use super::*;
use crate::state::{Change, NodeRow};
use podmesh_protocol::limits::{ATTEMPTS_PER_NODE_MAX, LABELS_MAX, MESSAGE_BYTES_MAX};
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::word::MaybeKnown;

fn connection_gone(world: &mut World, number: u64) -> Step {
    world.give(Input::ConnectionGone { connection: connection(number) })
}

#[test]
fn a_hello_opens_a_session() {
    let mut world = World::new();
    let hello = hello("a", 1);
    let step = world.connect(hello.clone(), 1);
    let row = NodeRow {
        drain: None,
        maintenance: None,
        admin_labels: BTreeMap::new(),
        resources: BTreeMap::new(),
        node: name("a"),
        boot_id: hello.boot_id,
        agent_instance: hello.agent_instance,
        program_version: hello.program_version,
        capacity: hello.capacity,
        labels: hello.labels,
        runtimes: vec![RuntimeKind::Process],
        epoch: Epoch(1),
        agent_id: hello.agent_id,
        lost_age_ms: None,
        scheduling: Default::default(),
        address: None,
    };
    assert_eq!(step.changes, [Change::EpochTaken(Epoch(1)), Change::NodeSaved(Arc::new(row))]);
    assert_eq!(
        step.events,
        [EventFact::NodeConnected { node: name("a"), instance: hello.agent_instance }]
    );
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        epoch: Epoch(1),
        cluster: CLUSTER,
        lease_ms: LEASE_MS,
        heartbeat_ms: 1_000,
        acked: 0,
        stop: vec![],
        keep: vec![],
    };
    assert_eq!(
        step.effects,
        [
            Effect::SessionOpened { epoch: Epoch(1), node: name("a"), connection: connection(1) },
            Effect::Send { connection: connection(1), message: ToPeer::Welcome(welcome) }
        ]
    );
    assert_eq!(node_state(&mut world, "a"), NodeState::Alive);
}

#[test]
fn a_refused_agent_is_told_why() {
    let mut world = World::new();
    world.join("a", 1);
    let mut refused = |change: &dyn Fn(&mut Hello), number: u64| {
        let mut hello = hello("b", 2);
        change(&mut hello);
        refusal(&world.connect(hello, number))
    };
    let labels: BTreeMap<Name, String> =
        (0..=LABELS_MAX).map(|n| (name(&format!("l{n}")), String::new())).collect();
    let many = vec![at(1, 1, 1); ATTEMPTS_PER_NODE_MAX + 1];
    type Case<'a> = (ErrorCode, &'a str, &'a dyn Fn(&mut Hello));
    let full: BTreeMap<String, String> =
        (0..=LABELS_MAX).map(|n| (format!("disk-{n}"), String::new())).collect();
    let long = "x".repeat(MESSAGE_BYTES_MAX + 1);
    let cases: [Case<'_>; 14] = [
        (ErrorCode::UnsupportedVersion, "speaks version 9", &|h| h.version = 9),
        (ErrorCode::WrongCluster, "--data-dir", &|h| {
            h.cluster = Some(ClusterId(Uuid::from_u128(1)));
        }),
        (ErrorCode::NameTaken, "--name", &|h| h.node = name("a")),
        (ErrorCode::BadMessage, "LABELS_MAX", &|h| h.labels = labels.clone()),
        (ErrorCode::BadMessage, "control", &|h| {
            h.labels.insert(name("a"), "\n".into());
        }),
        (ErrorCode::BadMessage, "CPU_MILLIS_MAX", &|h| h.capacity.cpu_millis = 0),
        (ErrorCode::BadMessage, "MEMORY_BYTES_MAX", &|h| h.capacity.memory_bytes = u64::MAX),
        (ErrorCode::BadMessage, "ATTEMPTS_PER_NODE_MAX", &|h| h.attempts = many.clone()),
        (ErrorCode::BadMessage, "1.1#1 is named twice", &|h| h.attempts = vec![at(1, 1, 1); 2]),
        (ErrorCode::BadMessage, "runtime is named twice", &|h| {
            h.runtimes = vec![RuntimeKind::Noop.into(); 2];
        }),
        (ErrorCode::BadMessage, "NAME_BYTES_MAX", &|h| h.boot_id = "x".repeat(129)),
        (ErrorCode::BadMessage, "low disks", &|h| h.low_disks = full.clone()),
        (ErrorCode::BadMessage, "NAME_BYTES_MAX", &|h| {
            h.low_disks.insert("x".repeat(129), String::new());
        }),
        (ErrorCode::BadMessage, "MESSAGE_BYTES_MAX", &|h| {
            h.low_disks.insert("logs".into(), long.clone());
        }),
    ];
    for (code, text, change) in cases {
        let (found, message) = refused(change, 2);
        assert!(found == code && message.contains(text), "{found:?} {message:?}, not {text:?}");
    }
    // A connection can have only one session.
    let (code, message) = refused(&|_| {}, 1);
    assert!(code == ErrorCode::BadMessage && message.contains("as node `a`"), "{message}");
    // A hello without a cluster comes from a fresh data directory.
    world.connect(Hello { cluster: None, ..hello("b", 2) }, 2);
    assert_eq!(node_state(&mut world, "b"), NodeState::Alive);
}

#[test]
fn the_same_agent_replaces_its_session_at_any_time() {
    let mut world = World::new();
    let old = world.join("a", 1);
    let step = world.connect(hello("a", 1), 2);
    assert_eq!(step.effects[0], Effect::SessionClosed { epoch: old });
    assert_eq!(welcome(&step).epoch, Epoch(2));
    // Late news about the heartbeat or connection of the previous session has no effect.
    assert!(world.beat(old, HeartbeatChange::LeaseExpired).is_empty());
    assert!(connection_gone(&mut world, 1).is_empty());
    assert_eq!(node_state(&mut world, "a"), NodeState::Alive);
}

#[test]
fn another_agent_gets_the_name_if_the_first_one_is_suspect() {
    for (change, taken) in [
        (HeartbeatChange::Closed, false),
        (HeartbeatChange::Late, false),
        (HeartbeatChange::Resumed, true),
    ] {
        let mut world = World::new();
        let epoch = world.join("a", 1);
        world.beat(epoch, change);
        let step = world.connect(hello("a", 2), 2);
        if taken {
            assert_eq!(refusal(&step).0, ErrorCode::NameTaken);
        } else {
            assert_eq!(welcome(&step).epoch, Epoch(2));
        }
    }
}

#[test]
fn a_name_with_active_attempts_belongs_to_its_agent() {
    let mut world = World::new();
    let epoch = welcome(&world.connect(hello_of(7, "a", 1), 1)).epoch;
    world.submit(spec());
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    let refused = |world: &mut World| {
        // Another agent, and one of an older release, which gives no ID.
        for other in [hello_of(8, "a", 2), hello("a", 2)] {
            let (code, said) = refusal(&world.connect(other, 2));
            assert_eq!(code, ErrorCode::NameTaken);
            assert!(said.contains("podmesh nodes forget a") && said.contains("--name"), "{said}");
        }
    };
    world.beat(epoch, HeartbeatChange::Closed);
    refused(&mut world);
    world.beat(epoch, HeartbeatChange::LeaseExpired);
    world.pass(MARGIN_MS);
    refused(&mut world);
    world.restart();
    refused(&mut world);
    let back = Hello { attempts: vec![at(1, 1, 1)], ..hello_of(7, "a", 3) };
    assert_eq!(welcome(&world.connect(back, 3)).keep, [at(1, 1, 1)]);
    assert_eq!(refusal(&world.connect(hello_of(8, "a", 2), 2)).0, ErrorCode::NameTaken, "alive");
}

#[test]
fn a_name_without_attempts_goes_to_another_agent_once_it_confirms_its_session() {
    let mut world = World::new();
    let epoch = welcome(&world.connect(hello_of(7, "a", 1), 1)).epoch;
    world.beat(epoch, HeartbeatChange::Closed);
    world.submit(spec());
    // A delayed hello of an agent gets no work, because that would give it the name.
    let epoch = welcome(&world.connect(hello_of(8, "a", 2), 2)).epoch;
    assert_eq!(node_state(&mut world, "a"), NodeState::Suspect);
    let step = world.connect(hello_of(7, "a", 3), 3);
    assert_eq!((starts(&step), welcome(&step).epoch.0), (vec![], epoch.0 + 1));
    let step = world.beat(Epoch(epoch.0 + 1), HeartbeatChange::Begun);
    assert_eq!((starts(&step), world.node_row("a").epoch.0), (vec![at(1, 1, 1)], epoch.0 + 1));
    assert_eq!(node_state(&mut world, "a"), NodeState::Alive);
}

#[test]
fn a_node_without_a_known_agent_takes_the_first_agent_that_gives_its_id() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec());
    world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    world.restart();
    let held = Hello { attempts: vec![at(1, 1, 1)], ..hello_of(7, "a", 2) };
    let step = world.connect(held, 2);
    assert_eq!(welcome(&step).keep, [at(1, 1, 1)]);
    world.beat(Epoch(2), HeartbeatChange::Closed);
    assert_eq!(refusal(&world.connect(hello_of(8, "a", 3), 3)).0, ErrorCode::NameTaken);
}

#[test]
fn a_suspect_node_gets_nothing_new_and_recovers() {
    for (change, why) in [
        (HeartbeatChange::Closed, "its heartbeat connection was closed"),
        (HeartbeatChange::Late, "no heartbeat for 3 s"),
    ] {
        let mut world = World::new();
        let epoch = world.join("a", 1);
        let step = world.beat(epoch, change);
        assert_eq!(step.events, [EventFact::NodeSuspect { node: name("a"), message: why.into() }]);
        assert!(world.beat(epoch, HeartbeatChange::Late).is_empty(), "reported once");
        assert_eq!(placed(&world.submit(spec())), []);
        let step = world.beat(epoch, HeartbeatChange::Resumed);
        assert_eq!(step.events[0], EventFact::NodeRecovered { node: name("a") });
        assert_eq!(placed(&step), [(at(1, 1, 1), "a")]);
        assert!(world.beat(epoch, HeartbeatChange::Resumed).is_empty());
    }
}

#[test]
fn a_node_without_a_connection_needs_a_new_session() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let step = connection_gone(&mut world, 1);
    assert_eq!(
        step.events,
        [EventFact::NodeSuspect { node: name("a"), message: "its connection is gone".into() }]
    );
    world.beat(epoch, HeartbeatChange::Late);
    assert!(world.beat(epoch, HeartbeatChange::Resumed).is_empty());
    assert_eq!(node_state(&mut world, "a"), NodeState::Suspect);
    world.connect(hello("a", 1), 2);
    assert_eq!(node_state(&mut world, "a"), NodeState::Alive);
    assert!(connection_gone(&mut world, 77).is_empty(), "a client");
}

#[test]
fn attempts_of_a_lost_node_that_may_run_elsewhere_end_after_the_margin() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(JobSpec { on_lost: OnLost::Requeue, ..spec() });
    world.submit(spec());
    world.report(1, a, vec![started(1, at(1, 1, 1)), started(2, at(2, 1, 1))]);
    world.join("b", 2);
    let step = world.beat(a, HeartbeatChange::LeaseExpired);
    assert_eq!(step.events, [EventFact::NodeLost { node: name("a") }]);
    assert_eq!(step.effects, [Effect::SessionClosed { epoch: a }]);
    assert_eq!(world.node("a").free.cpu_millis, 2_000, "its attempts may still run");
    assert_eq!(world.core.next_wakeup(), Some(world.now.mono_ms + MARGIN_MS));
    let stale = world.report(1, a, vec![exited(3, at(1, 1, 1), 0)]);
    assert_eq!(messages(&stale), [&ToPeer::HelloAgain(a)]);
    assert!(world.pass(MARGIN_MS - 1).is_empty());
    let step = world.pass(1);
    let message = "node `a` was lost: no heartbeat for 15 s, and 5 s more for its agent to kill what ran there; what the attempt did is not known";
    let lost = Outcome::new(OutcomeKind::Lost).with_message(message);
    assert_eq!(ends(&step), [(at(1, 1, 1), lost, Some(0))]);
    assert_eq!(placed(&step), [(at(1, 1, 2), "b")]);
    assert_eq!(world.counts(2), [0, 1, 0, 0, 0], "job 2 waits for its node");

    // The node returns with both attempts: the requeued one is stopped, the other one continues.
    let back = Hello { attempts: vec![at(1, 1, 1), at(2, 1, 1)], ..hello("a", 1) };
    let step = world.connect(back, 3);
    let welcome = welcome(&step);
    assert_eq!((&welcome.stop, &welcome.keep), (&vec![at(1, 1, 1)], &vec![at(2, 1, 1)]));
    assert_eq!(welcome.acked, 2);
    assert_eq!(starts(&step), []);
    let specs: Vec<JobId> = messages(&step)
        .into_iter()
        .filter_map(|message| match message {
            ToPeer::JobSpec { job, .. } => Some(*job),
            _ => None,
        })
        .collect();
    assert_eq!(specs, [JobId(2)]);
    let (epoch, reports) =
        (welcome.epoch, vec![exited(3, at(1, 1, 1), 0), exited(4, at(2, 1, 1), 0)]);
    let step = world.report(3, epoch, reports);
    assert_eq!(ends(&step), [(at(2, 1, 1), Outcome::exited(0), None)]);
}

#[test]
fn a_node_that_returns_within_the_margin_keeps_its_attempts() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(JobSpec { on_lost: OnLost::Requeue, ..spec() });
    world.beat(a, HeartbeatChange::LeaseExpired);
    world.pass(MARGIN_MS - 1);
    let step = world.connect(Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) }, 2);
    assert_eq!(welcome(&step).keep, [at(1, 1, 1)]);
    assert!(world.pass(MARGIN_MS).is_empty());
    assert_eq!(world.counts(1), [0, 1, 0, 0, 0]);
}

#[test]
fn a_goodbye_ends_the_session_and_the_lease_still_runs() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(JobSpec { on_lost: OnLost::Requeue, ..spec() });
    let step = world.give(Input::AgentLeft { connection: connection(1), epoch: a });
    assert_eq!(
        step.events,
        [EventFact::NodeSuspect { node: name("a"), message: "its agent was stopped".into() }]
    );
    assert_eq!(step.effects, [Effect::SessionClosed { epoch: a }]);
    assert!(world.pass(LEASE_MS - 1).is_empty());
    assert_eq!(world.pass(1).events, [EventFact::NodeLost { node: name("a") }]);
    assert_eq!(ends(&world.pass(MARGIN_MS)).len(), 1);
    assert_eq!(world.core.next_wakeup(), None);
    assert_eq!(world.node("a").seen_ms_ago, Some(LEASE_MS + MARGIN_MS));
}

/// Returns a world with five attempts on node `a`: of job 1 one assigned, one preparing and one
/// running, and two of the cancelled job 2.
fn before_a_new_session() -> World {
    let mut world = World::new();
    let a = world.join("a", 1);
    let small = |tasks| JobSpec {
        resources: Resources { cpu_millis: 100, memory_bytes: 0 },
        on_lost: OnLost::Wait,
        ..array(tasks)
    };
    world.submit(small(3));
    world.submit(small(2));
    let preparing = Report(1, at(1, 2, 1), ReportFact::Preparing(String::new()));
    world.report(1, a, vec![preparing, started(2, at(1, 3, 1)), started(3, at(2, 2, 1))]);
    world.cancel(2);
    world
}

#[test]
fn attempts_that_an_agent_does_not_hold_are_started_again_or_end() {
    // The same agent process, and a new one after no reboot.
    for number in [1, 2] {
        let mut world = before_a_new_session();
        let old = world.core.nodes.by_name(&name("a")).unwrap();
        let old = world.core.nodes.get(old).row.epoch;
        world.beat(old, HeartbeatChange::Closed);
        let step = world.connect(hello("a", number), 9);
        assert_eq!(ends(&step), [], "a hello may be a delayed one");
        assert_eq!(starts(&step), [at(1, 1, 1), at(1, 2, 1)], "under the same numbers");
        assert_eq!(welcome(&step).acked, if number == 1 { 3 } else { 0 });
        let step = world.beat(Epoch(2), HeartbeatChange::Begun);
        let why = "the agent of node `a` no longer holds it; what the attempt did is not known";
        let lost = Outcome::new(OutcomeKind::Lost).with_message(why);
        let unstarted =
            Outcome::new(OutcomeKind::Cancelled).with_message("cancelled before its start");
        let cancelled = Outcome { kind: OutcomeKind::Cancelled, ..lost.clone() };
        assert_eq!(
            ends(&step),
            [
                (at(1, 3, 1), lost, None),
                (at(2, 1, 1), unstarted, None),
                (at(2, 2, 1), cancelled, None)
            ]
        );
        assert_eq!(world.state(2), JobState::Cancelled);
    }
}

#[test]
fn attempts_that_an_agent_does_not_hold_after_a_reboot_end() {
    let mut world = before_a_new_session();
    world.beat(Epoch(1), HeartbeatChange::Closed);
    let reboot = Hello { boot_id: "boot-2".into(), ..hello("a", 2) };
    let step = world.connect(reboot.clone(), 9);
    assert_eq!((ends(&step), starts(&step)), (vec![], vec![]));
    assert_eq!(world.node_row("a").boot_id, "boot-1", "until the hello is confirmed");
    // The welcome was lost. The second hello still shows the reboot.
    let step = world.connect(reboot, 10);
    assert_eq!((ends(&step), starts(&step)), (vec![], vec![]));
    let step = world.beat(Epoch(3), HeartbeatChange::Begun);
    assert_eq!(world.node_row("a").boot_id, "boot-2");
    assert_eq!(ends(&step).len(), 5);
    let message = ends(&step)[0].1.message.clone().unwrap();
    assert!(message.starts_with("the machine of node `a` was restarted"), "{message}");
    assert_eq!((starts(&step), world.state(1)), (vec![], JobState::Failed));
}

#[test]
fn a_delayed_hello_ends_no_attempts() {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(JobSpec { retry: RetryPolicy { retries: 1, ..spec().retry }, ..spec() });
    world.report(1, a, vec![started(1, at(1, 1, 1))]);
    // The agent gave this connection up before it received the attempt.
    let late = world.connect(hello("a", 1), 2);
    assert_eq!((ends(&late), starts(&late)), (vec![], vec![]));
    world.give(Input::ConnectionGone { connection: connection(2) });
    assert_eq!(ends(&world.pass(5_000)), []);
    let step = world.connect(Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) }, 3);
    assert_eq!(welcome(&step).keep, [at(1, 1, 1)]);
    let step = world.report(3, Epoch(3), vec![exited(2, at(1, 1, 1), 0)]);
    assert_eq!((ends(&step).len(), world.state(1)), (1, JobState::Succeeded));
}

/// Returns a world with a cancelled job. The connected agent does not know the job's attempt,
/// because it does not offer the runtime.
fn cancelled_without_its_runtime(boot: &str) -> World {
    let mut world = World::new();
    let a = world.join("a", 1);
    world.submit(spec());
    world.report(1, a, vec![started(1, at(1, 1, 1))]);
    world.beat(a, HeartbeatChange::Closed);
    let without = Hello { runtimes: vec![], boot_id: boot.into(), ..hello("a", 2) };
    let epoch = welcome(&world.connect(without, 2)).epoch;
    assert_eq!(stops(&world.cancel(1)), [(at(1, 1, 1), StopReason::Cancelled)]);
    world.beat(epoch, HeartbeatChange::Closed);
    world
}

#[test]
fn attempts_of_a_runtime_that_an_agent_does_not_offer_now_stay_active() {
    // Without a reboot, and after one: the attempt may have ended with a code before it.
    for boot in ["boot-1", "boot-2"] {
        let mut world = World::new();
        let a = world.join("a", 1);
        world.submit(array(2));
        world.report(1, a, vec![started(1, at(1, 1, 1))]);
        world.beat(a, HeartbeatChange::Closed);
        let without = Hello { runtimes: vec![], boot_id: boot.into(), ..hello("a", 2) };
        let step = world.connect(without, 2);
        assert_eq!(starts(&step), []);
        assert_eq!(ends(&world.beat(Epoch(2), HeartbeatChange::Begun)), []);
        assert_eq!(ends(&world.pass(60_000)), []);
        // After a cancel, each session sends the agent the stop.
        let mut other = cancelled_without_its_runtime(boot);
        let again = Hello { runtimes: vec![], boot_id: boot.into(), ..hello("a", 3) };
        let step = other.connect(again, 3);
        assert_eq!(stops(&step), [(at(1, 1, 1), StopReason::Cancelled)]);
        let epoch = welcome(&step).epoch;
        let lost = Outcome::new(OutcomeKind::Lost);
        other.report(3, epoch, vec![ended(1, at(1, 1, 1), lost)]);
        assert_eq!(other.state(1), JobState::Cancelled);

        let held = vec![at(1, 1, 1)];
        let with = Hello { attempts: held.clone(), boot_id: boot.into(), ..hello("a", 2) };
        let step = world.connect(with, 3);
        assert_eq!((welcome(&step).keep.clone(), starts(&step)), (held, vec![at(1, 2, 1)]));
    }
}

#[test]
fn held_attempts_of_a_cancelled_job_are_kept_and_stopped() {
    let mut world = before_a_new_session();
    let held = vec![at(2, 2, 1), at(2, 1, 1), at(1, 1, 1), at(1, 2, 1), at(1, 3, 1), at(7, 1, 1)];
    let step = world.connect(Hello { attempts: held, ..hello("a", 1) }, 9);
    assert_eq!(welcome(&step).keep.len(), 5);
    assert_eq!(welcome(&step).stop, [at(7, 1, 1)]);
    let cancelled = StopReason::Cancelled;
    assert_eq!(stops(&step), [(at(2, 1, 1), cancelled), (at(2, 2, 1), cancelled)]);
    assert_eq!((ends(&step), starts(&step)), (vec![], vec![]));
}

#[test]
fn ten_thousand_missing_attempts_end_in_bounded_steps() {
    let mut world = World::new();
    let capacity = Resources { cpu_millis: 10_000, memory_bytes: 0 };
    let a = welcome(&world.connect(Hello { capacity, ..hello("a", 1) }, 1)).epoch;
    let mut tiny = array(10_000);
    tiny.resources.cpu_millis = 1;
    world.submit(tiny);
    world.drain();
    world.beat(a, HeartbeatChange::Closed);
    let reboot = Hello { boot_id: "boot-2".into(), capacity, ..hello("a", 2) };
    let step = world.connect(reboot, 2);
    assert_eq!((welcome(&step).epoch, ends(&step)), (Epoch(2), vec![]));
    let mut steps = vec![world.beat(Epoch(2), HeartbeatChange::Begun)];
    steps.extend(world.drain());
    assert_eq!(steps.iter().map(|step| ends(step).len()).collect::<Vec<_>>(), [4090, 4090, 1820]);
    assert_eq!(world.state(1), JobState::Failed);
}

#[test]
fn a_cancelled_job_ends_even_if_its_node_never_returns() {
    // Cancelled before the end of the margin, and long after it.
    for late in [false, true] {
        let mut world = World::new();
        let a = world.join("a", 1);
        world.submit(spec());
        world.report(1, a, vec![started(1, at(1, 1, 1))]);
        world.beat(a, HeartbeatChange::LeaseExpired);
        if late {
            world.pass(MARGIN_MS);
            assert_eq!(world.state(1), JobState::Running, "it waits for its node");
            world.pass(3_600_000);
        }
        world.cancel(1);
        world.pass(if late { 0 } else { MARGIN_MS });
        assert_eq!(world.state(1), JobState::Cancelled);
        // If the node returns, its agent is told to stop the attempt.
        let step = world.connect(Hello { attempts: vec![at(1, 1, 1)], ..hello("a", 1) }, 2);
        assert_eq!(welcome(&step).stop, [at(1, 1, 1)]);
    }
}

#[test]
fn a_runtime_that_is_withdrawn_or_offered_again_is_an_event() {
    let mut world = World::new();
    let withdrawn = [(RuntimeKind::Process.into(), "no room".to_owned())];
    let full = || Hello { runtimes: vec![], withdrawn: withdrawn.clone().into(), ..hello("a", 1) };
    let fact = EventFact::RuntimeWithdrawn {
        node: name("a"),
        runtime: RuntimeKind::Process.into(),
        message: "no room".into(),
    };
    let step = world.connect(full(), 1);
    assert!(step.events.contains(&fact), "{step:?}");
    assert_eq!(world.node("a").withdrawn, withdrawn.clone().into());
    world.submit(spec());
    assert_eq!(world.state(1), JobState::Queued);
    // It is reported once.
    assert!(!world.connect(full(), 2).events.contains(&fact));
    let step = world.connect(hello("a", 1), 3);
    assert!(step.events.contains(&EventFact::RuntimeOffered {
        node: name("a"),
        runtime: RuntimeKind::Process.into()
    }));
    assert_eq!(placed(&step), [(at(1, 1, 1), "a")]);
}

#[test]
fn a_runtime_of_a_later_version_gets_no_work_and_is_no_error() {
    let mut world = World::new();
    let wasm = || MaybeKnown::Unknown("wasm".into());
    let later = Hello {
        runtimes: vec![RuntimeKind::Process.into(), wasm()],
        withdrawn: [(MaybeKnown::Unknown("vm".into()), "no room".to_owned())].into(),
        ..hello("a", 1)
    };
    let step = world.connect(later, 1);
    assert_eq!(welcome(&step).epoch, Epoch(1));
    let node = world.node("a");
    assert_eq!((node.runtimes, node.withdrawn), (vec![RuntimeKind::Process.into()], [].into()));
    assert_eq!(placed(&world.submit(spec())), [(at(1, 1, 1), "a")]);
    let twice = Hello { runtimes: vec![wasm(), wasm()], ..hello("b", 2) };
    assert_eq!(refusal(&world.connect(twice, 2)).0, ErrorCode::BadMessage);
}
