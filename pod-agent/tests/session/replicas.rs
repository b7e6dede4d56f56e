//! Replicas of services: their ports and their health.

use podmesh_protocol::service::{
    Health, HealthCheck, HealthSpec, PortEndpoints, PortSpec, ServiceEndpoints,
};
use tokio::net::TcpListener;

use super::*;

/// Prints its variables, and does nothing. The test listens in its place.
const IDLE: &str = "echo $PODMESH_PORT_A $PODMESH_PORT_B_2 $PODMESH_SERVICE $PODMESH_REPLICA $PODMESH_REVISION; \
     exec sleep 1000";

fn replica(ports: &[&str], health: Option<HealthSpec>) -> Option<Box<ReplicaSpec>> {
    let ports = ports.iter().map(|name| (name.parse().unwrap(), PortSpec::default()));
    Some(Box::new(ReplicaSpec {
        service: "web".parse().unwrap(),
        revision: 7,
        number: 3,
        spread: None,
        ports: Arc::new(ports.collect()),
        health: health.map(Arc::new),
    }))
}

/// Returns a check whose results show soon.
fn quick(check: HealthCheck) -> HealthSpec {
    HealthSpec { interval_ms: 20, ..HealthSpec::new(check) }
}

impl Manager {
    /// Returns the next facts about the attempt, this many, and acknowledges them.
    async fn facts(&mut self, count: usize) -> Vec<ReportFact> {
        let mut facts = Vec::new();
        while facts.len() < count {
            let reports = self.reports().await;
            let last = reports.last().map_or(0, |report| report.0);
            self.send(ToPeer::Acked(self.epoch, last)).await;
            facts.extend(reports.into_iter().map(|Report(_, _, fact)| fact));
        }
        facts
    }

    /// Returns the ports of the attempt, which has started.
    async fn listening(&mut self) -> Vec<u16> {
        match self.facts(2).await.as_slice() {
            [ReportFact::Started, ReportFact::Listening(ports)] => ports.clone(),
            facts => panic!("{facts:?}"),
        }
    }

    async fn health(&mut self) -> (Health, String) {
        match self.facts(1).await.as_slice() {
            [ReportFact::Health(health, text)] => (*health, text.clone()),
            facts => panic!("{facts:?}"),
        }
    }
}

async fn listener(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).await.unwrap()
}

fn on_loopback(config: &mut AgentConfig) {
    config.address = Some([127, 0, 0, 1].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_gets_ports_and_its_health_is_reported_also_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start_with(dir.path(), &manager.address, on_loopback);
    assert_eq!(manager.session().await.address.as_deref(), Some("127.0.0.1"));
    let check = quick(HealthCheck::Tcp { port: "b-2".parse().unwrap() });
    let spec = replica(&["b-2", "a"], Some(check));
    manager.start_with(ATTEMPT, RuntimeSpec::Process, IDLE, spec).await;
    let ports = manager.listening().await;
    let [a, b] = ports[..] else { panic!("{ports:?}") };
    assert!(a != b && ports.iter().all(|port| (20_000..30_000).contains(port)), "{ports:?}");
    let said = format!("{a} {b} web 3 7\n");
    let slice = manager.read_log(0, 30_000).await;
    assert_eq!(String::from_utf8_lossy(&slice.bytes), said);

    let open = listener(b).await;
    assert_eq!(manager.health().await.0, Health::Healthy);
    drop(open);
    let (health, text) = manager.health().await;
    assert_eq!(health, Health::Unhealthy);
    assert!(text.contains("refused"), "{text}");
    let open = listener(b).await;
    assert_eq!(manager.health().await.0, Health::Healthy);

    // Like a kill of the agent: the next one knows the ports, and does not say `starting`.
    agent.abort(dir.path()).await;
    drop(open);
    let agent = Agent::start_with(dir.path(), &manager.address, on_loopback);
    assert_eq!(manager.session().await.attempts, [ATTEMPT]);
    assert_eq!(manager.listening().await, ports);
    // It has run for less than its start period, so that only a success counts.
    let open = listener(b).await;
    assert_eq!(manager.health().await.0, Health::Healthy);

    // Checks go on without a manager.
    let address = Arc::clone(&manager.address);
    let epoch = manager.epoch;
    drop(manager);
    tokio::time::timeout(LIMIT, open.accept()).await.unwrap().unwrap();
    drop(open);
    let mut manager = Manager::at(address).await;
    manager.epoch = epoch;
    manager.session().await;
    // The last report before may not have been acknowledged, and comes again.
    while !matches!(manager.facts(1).await.last(), Some(ReportFact::Health(Health::Unhealthy, _))) {
    }
    drop(agent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_end_when_a_replica_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start_with(dir.path(), &manager.address, on_loopback);
    manager.session().await;
    let check = quick(HealthCheck::Tcp { port: "a".parse().unwrap() });
    let script = "trap 'until test -e go; do sleep 0.01; done; exit 5' TERM; echo ready; \
                  while :; do sleep 0.01; done";
    let spec = replica(&["a"], Some(check));
    manager.start_with(ATTEMPT, RuntimeSpec::Process, script, spec).await;
    let ports = manager.listening().await;
    let open = listener(ports[0]).await;
    assert_eq!(manager.health().await.0, Health::Healthy);
    manager.read_log(0, 30_000).await;
    manager.send(ToPeer::Stops(manager.epoch, vec![(ATTEMPT, StopReason::Cancelled)])).await;
    // Some checks may have been made before.
    let mut checks = 0;
    while tokio::time::timeout(Duration::from_millis(300), open.accept()).await.is_ok() {
        checks += 1;
        assert!(checks < 1_000, "checks go on");
    }
    drop(open);
    std::fs::write(dir.path().join("agent/work/0/folder/go"), "").unwrap();
    let (_, outcome) = manager.end().await;
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Cancelled, Some(5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_owner_does_not_allow_ports_takes_only_replicas_without() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let _agent = Agent::start_with(dir.path(), &manager.address, |config| {
        config.policy.replica_ports = None;
    });
    manager.session().await;
    manager.start_with(ATTEMPT, RuntimeSpec::Process, IDLE, replica(&["a"], None)).await;
    let (number, outcome) = manager.end().await;
    assert_eq!(outcome.kind, OutcomeKind::NotStarted);
    let said = outcome.message.unwrap();
    assert!(said.contains("replica_ports = \"off\" in agent.toml"), "{said}");
    manager.send(ToPeer::Acked(manager.epoch, number)).await;

    let next = AttemptId { number: 2, ..ATTEMPT };
    manager.start_with(next, RuntimeSpec::Process, IDLE, replica(&[], None)).await;
    let facts = manager.facts(2).await;
    let healthy = ReportFact::Health(Health::Healthy, "it has started".into());
    assert_eq!(facts, [ReportFact::Started, healthy]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_decides_about_the_health_of_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start_with(dir.path(), &manager.address, on_loopback);
    manager.session().await;
    let script = "test -e good || { echo 'not good'; exit 3; }; echo \"$PODMESH_SERVICE is good\"";
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let spec = replica(&[], Some(quick(HealthCheck::Command(command))));
    manager.start_with(ATTEMPT, RuntimeSpec::Process, IDLE, spec).await;
    assert_eq!(manager.facts(1).await, [ReportFact::Started]);
    let good = dir.path().join("agent/work/0/folder/good");
    std::fs::write(&good, "").unwrap();
    assert_eq!(manager.health().await, (Health::Healthy, "web is good".into()));
    std::fs::remove_file(&good).unwrap();
    assert_eq!(manager.health().await, (Health::Unhealthy, "exit code 3: not good".into()));
    // The next agent goes on with it.
    agent.abort(dir.path()).await;
    let _agent = Agent::start_with(dir.path(), &manager.address, on_loopback);
    manager.session().await;
    std::fs::write(&good, "").unwrap();
    let mut facts = manager.facts(1).await;
    facts.extend(manager.facts(2 - facts.len()).await);
    let healthy = ReportFact::Health(Health::Healthy, "web is good".into());
    assert_eq!(facts, [ReportFact::Started, healthy]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_knows_the_services_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new().await;
    let agent = Agent::start_with(dir.path(), &manager.address, |config| {
        on_loopback(config);
        config.ingress.address = "127.0.0.9".parse().unwrap();
    });
    manager.session().await;
    let port = |port: &str, publish| PortEndpoints {
        port: port.parse().unwrap(),
        publish,
        proxy_protocol: false,
        endpoints: Vec::new(),
    };
    // The second port is not open, because it is one for replicas.
    let ports = vec![port("http", 18_080), port("admin", 20_000)];
    let db = ServiceEndpoints { service: "my-db".parse().unwrap(), ports };
    let epoch = manager.epoch;
    manager.send(ToPeer::Endpoints { epoch, update: 1, all: true, services: vec![db] }).await;
    let script = "echo $PODMESH_SERVICE_MY_DB; exec sleep 1000";
    manager.start_with(ATTEMPT, RuntimeSpec::Process, script, None).await;
    let slice = manager.read_log(0, 30_000).await;
    assert_eq!(String::from_utf8_lossy(&slice.bytes), "127.0.0.9:18080\n");
    drop(agent);
}
