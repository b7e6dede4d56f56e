//! Services while clocks jump, sessions end, and the manager restarts.

use super::*;

const HOUR_MS: u64 = 3_600_000;

impl Mesh {
    fn acknowledge(&mut self, node: &str, applied: u64, drained: u64) {
        let agent = &self.agents[node];
        let (connection, epoch) = (connection(agent.connection), agent.epoch.unwrap());
        self.feed(Input::EndpointsApplied { connection, epoch, applied, drained });
    }

    fn runs(&self, attempt: AttemptId) -> bool {
        self.agents.values().any(|agent| agent.running.contains(&attempt))
    }

    /// Returns the number of the last update that was sent and that nobody has read.
    fn last_update(&self) -> u64 {
        let numbers = self.inbox.iter().filter_map(|(_, message)| match message {
            ToPeer::Endpoints { update, .. } => Some(*update),
            _ => None,
        });
        numbers.max().unwrap()
    }
}

#[test]
fn a_pause_ends_on_time_although_the_wall_clock_goes_back() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.world.now.wall_ms = 24 * HOUR_MS;
    mesh.apply(web(1));
    mesh.play();
    for _ in 0..2 {
        let (node, attempt) = mesh.replica(1);
        mesh.end(&node, attempt, 3);
        mesh.play();
    }
    assert_eq!(mesh.show().replicas[0].restarts_in_ms, Some(1_000));
    mesh.world.now.wall_ms -= HOUR_MS;
    assert_eq!(mesh.show().replicas[0].restarts_in_ms, Some(1_000));
    mesh.pass(999);
    assert_eq!(mesh.status(), (ServiceState::Degraded, 0, 0));
    mesh.pass(1);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

#[test]
fn a_pause_begins_before_the_unhealthy_replica_has_ended() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.world.now.wall_ms = 24 * HOUR_MS;
    let mut spec = web(1);
    (spec.update.max_surge, spec.update.min_healthy) = (0, Some(0));
    mesh.apply(spec);
    mesh.play();
    let (node, attempt) = mesh.replica(1);
    mesh.end(&node, attempt, 3);
    mesh.play();
    mesh.acks = (true, false);
    let (node, attempt) = mesh.replica(1);
    mesh.report(&node, vec![(attempt, ReportFact::Health(Health::Unhealthy, "503".into()))]);
    mesh.play();
    assert!(mesh.runs(attempt), "it has connections");
    mesh.world.now.wall_ms += HOUR_MS;
    mesh.acks = (true, true);
    mesh.acknowledge(&node, 100, 100);
    mesh.play();
    assert_eq!(mesh.show().replicas[0].restarts_in_ms, Some(1_000));
    mesh.pass(999);
    assert_eq!(mesh.status(), (ServiceState::Degraded, 0, 0));
    mesh.pass(1);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

#[test]
fn an_update_has_its_time_although_the_wall_clock_jumps() {
    for back in [false, true] {
        let mut mesh = Mesh::new(&["a"]);
        mesh.world.now.wall_ms = 24 * HOUR_MS;
        mesh.apply(web(1));
        mesh.play();
        mesh.health.insert(2, Health::Starting);
        mesh.apply(web_with(1, "bad"));
        mesh.play();
        let wall_ms = &mut mesh.world.now.wall_ms;
        *wall_ms = if back { *wall_ms - HOUR_MS } else { *wall_ms + HOUR_MS };
        mesh.pass(299_000);
        assert_eq!(mesh.show().view.revision, 2, "it may still become healthy");
        mesh.pass(1_000);
        assert_eq!(mesh.show().view.revision, 1, "it goes back");
    }
}

#[test]
fn an_update_has_its_time_after_a_stop() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(web(1));
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(1, "new"));
    mesh.play();
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    mesh.pass(HOUR_MS);
    mesh.change(ServiceChange::Start).unwrap();
    mesh.play();
    mesh.pass(299_000);
    assert_eq!(mesh.show().view.revision, 2, "it may still become healthy");
    mesh.pass(1_000);
    assert_eq!(mesh.show().view.revision, 1, "it goes back");
}

#[test]
fn an_update_that_went_well_while_the_manager_was_away_is_kept() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(web(1));
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(1, "new"));
    mesh.play();
    let (_, attempt) = mesh.replica(1);
    mesh.world.now.wall_ms += HOUR_MS;
    mesh.world.restart();
    mesh.join("a", 11);
    mesh.play();
    mesh.report("a", vec![(attempt, ReportFact::Health(Health::Healthy, "200".into()))]);
    mesh.play();
    assert_eq!((mesh.show().view.revision, mesh.status()), (2, (ServiceState::Healthy, 1, 1)));
}

#[test]
fn an_update_whose_only_replica_ends_again_and_again_is_rolled_back() {
    let mut mesh = Mesh::new(&["a"]);
    let mut spec = web(1);
    (spec.update.max_surge, spec.update.min_healthy) = (0, Some(0));
    mesh.apply(spec.clone());
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    spec.run.command.push("bad".into());
    mesh.apply(spec);
    mesh.play();
    for _ in 0..30 {
        if let Some(attempt) = mesh.agents["a"].running.first().copied() {
            mesh.end("a", attempt, 3);
        }
        mesh.pass(10_000);
    }
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
    assert_eq!(mesh.show().view.revision, 1, "it goes back");
}

#[test]
fn a_rollback_that_does_not_become_healthy_ends_too() {
    let mut mesh = Mesh::new(&["a"]);
    let stops_first = |mut spec: ServiceSpec| {
        (spec.update.max_surge, spec.update.min_healthy) = (0, Some(0));
        spec
    };
    mesh.apply(stops_first(web(1)));
    mesh.play();
    mesh.health.extend([(1, Health::Starting), (2, Health::Starting)]);
    mesh.apply(stops_first(web_with(1, "bad")));
    mesh.play();
    mesh.pass(300_000);
    assert_eq!((mesh.show().view.revision, mesh.status().0), (1, ServiceState::RollingBack));
    mesh.pass(300_000);
    assert_eq!(mesh.status(), (ServiceState::Degraded, 0, 1), "those who wait can go on");
    let why = mesh.show().failed_update.unwrap();
    assert!(why.starts_with("revision 2: 0 of 1") && why.contains("; then revision 1: 0"), "{why}");
    let (node, attempt) = mesh.replica(1);
    mesh.report(&node, vec![(attempt, ReportFact::Health(Health::Healthy, "200".into()))]);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

#[test]
fn a_proxy_in_a_new_session_is_not_drained_of_what_was_removed_before() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(1));
    mesh.play();
    let (_, attempt) = mesh.replica(1);
    mesh.acks = (true, false);
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    assert!(mesh.runs(attempt), "it has connections");
    for (node, before, next) in [("a", 1, 11), ("b", 2, 12)] {
        mesh.feed(Input::ConnectionGone { connection: connection(before) });
        mesh.join(node, next);
    }
    // The first update of a session removes what earlier ones have removed, too.
    let first = mesh.last_update();
    mesh.play();
    mesh.acknowledge("a", first, first - 1);
    mesh.acknowledge("b", first, first);
    mesh.play();
    assert!(mesh.runs(attempt), "it still has connections");
    mesh.acknowledge("a", first, first);
    mesh.play();
    assert!(!mesh.runs(attempt));
}

#[test]
fn a_replica_that_a_user_cancels_gets_no_new_connections() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let (_, attempt) = mesh.replica(2);
    mesh.ask(Command::Cancel { job: attempt.task.job }).unwrap();
    let told = mesh.inbox.iter().any(|(_, message)| matches!(message, ToPeer::Endpoints { .. }));
    assert!(told, "before it has ended");
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
}

#[test]
fn an_unhealthy_replica_is_out_of_the_proxies_also_after_a_restart() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(web(2));
    mesh.play();
    let (node, attempt) = mesh.replica(2);
    // The manager dies before the proxies have learned of it.
    mesh.report(&node, vec![(attempt, ReportFact::Health(Health::Unhealthy, "503".into()))]);
    mesh.inbox.clear();
    mesh.world.restart();
    mesh.acks = (false, false);
    mesh.join("a", 11);
    mesh.join("b", 12);
    mesh.play();
    assert!(mesh.runs(attempt), "the proxies have not let it go");
    mesh.acks = (true, true);
    mesh.acknowledge("a", 100, 100);
    mesh.acknowledge("b", 100, 100);
    mesh.play();
    assert!(!mesh.runs(attempt));
}

#[test]
fn a_replica_that_has_done_its_work_does_not_keep_others_on_a_drained_node() {
    let mut mesh = Mesh::new(&["a", "b"]);
    let mut spec = web(2);
    spec.restart.when = RestartWhen::OnFailure;
    mesh.apply(spec);
    mesh.play();
    let (node, attempt) = mesh.replica(2);
    mesh.end(&node, attempt, 0);
    mesh.play();
    let (node, attempt) = mesh.replica(1);
    let by = name("ann");
    let drain = Command::ScheduleNode {
        by,
        node: name(&node),
        scheduling: Scheduling::Draining,
        drain: DrainSpec::default(),
    };
    mesh.ask(drain).unwrap();
    mesh.play();
    assert!(!mesh.runs(attempt), "its successor serves");
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
    mesh.change(ServiceChange::Scale(1)).unwrap();
    let (node, attempt) = mesh.replica(1);
    mesh.end(&node, attempt, 0);
    mesh.change(ServiceChange::Scale(2)).unwrap();
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 0, 0), "all have done their work");
}
