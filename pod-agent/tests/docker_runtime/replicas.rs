//! Replicas in containers: published ports, health, and both after a restart of the agent.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use bollard::models::{ContainerConfig, HealthConfig};
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::service::{Health, HealthCheck, HealthSpec, PortSpec, ReplicaSpec};
use podmesh_protocol::spec::NetworkMode;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::pull::Registry;
use crate::support::*;

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// Serves the files of a folder once `/tmp/listen` exists.
const SERVER: &str = "mkdir /www; echo fine >/www/health; \
     until [ -e /tmp/listen ]; do sleep 0.02; done; exec httpd -f -p 8080 -h /www";

fn replica(health: Option<HealthSpec>) -> Option<Box<ReplicaSpec>> {
    let port = PortSpec { container: Some(8080), ..PortSpec::default() };
    Some(Box::new(ReplicaSpec {
        service: "web".parse().unwrap(),
        revision: 7,
        number: 3,
        spread: None,
        ports: Arc::new([("http".parse().unwrap(), port)].into()),
        health: health.map(Arc::new),
    }))
}

fn quick(check: HealthCheck) -> HealthSpec {
    HealthSpec { interval_ms: 50, ..HealthSpec::new(check) }
}

fn http(path: &str) -> HealthSpec {
    let port = "http".parse().unwrap();
    let path = path.into();
    quick(HealthCheck::Http { port, path, status: None, headers: Default::default() })
}

impl Agent {
    async fn listening(&mut self, index: u32) -> Vec<u16> {
        let is_it =
            |fact: &RuntimeFact| matches!(fact, RuntimeFact::Listening(_) | RuntimeFact::Ended(_));
        match self.until(attempt(index), is_it).await {
            RuntimeFact::Listening(ports) => ports,
            other => panic!("{other:?}"),
        }
    }

    fn begin_checks(&mut self, index: u32, ran_ms: u64) {
        let id = attempt(index);
        let place = self.runtime.place(id).unwrap();
        self.checks.begin(id, self.ports.get(id).unwrap(), place, ran_ms);
    }

    /// Waits for this health, and returns the text.
    async fn health(&mut self, index: u32, wanted: Health) -> String {
        let is_it =
            |fact: &RuntimeFact| matches!(fact, RuntimeFact::Health(it, _) if *it == wanted);
        match self.until(attempt(index), is_it).await {
            RuntimeFact::Health(_, text) => text,
            _ => unreachable!("only its health matches"),
        }
    }

    /// Returns the reported changes of health.
    fn changes(&self, index: u32) -> Vec<Health> {
        let health = |fact: &RuntimeFact| match fact {
            RuntimeFact::Health(health, _) => Some(*health),
            _ => None,
        };
        self.heard(attempt(index)).iter().filter_map(health).collect()
    }
}

fn server(node: &TestNode, health: Option<HealthSpec>) -> podmesh_agent_core::step::JobContext {
    let mut job = node.script(SERVER);
    job.run.replica = replica(health);
    job
}

async fn listen(node: &TestNode, index: u32) {
    exec(&engine(), &node.container_name(attempt(index)), "touch /tmp/listen").await;
}

#[tokio::test]
async fn a_port_is_published_on_the_node_and_the_default_check_sees_when_it_is_open() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    agent.ports.set_address(LOOPBACK.into());
    agent.start(attempt(1), server(&node, None));
    let ports = agent.listening(1).await;
    let [port] = ports[..] else { panic!("{ports:?}") };
    assert!((20_000..30_000).contains(&port), "{port}");
    agent.begin_checks(1, 0);
    // Docker's forwarder accepts connections for a program that does not listen.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(agent.changes(1), []);
    listen(&node, 1).await;
    agent.health(1, Health::Healthy).await;
    let at = SocketAddr::new(LOOPBACK.into(), port);
    TcpStream::connect(at).await.unwrap();
    assert!(TcpListener::bind(at).is_err(), "it is not published there");
    TcpListener::bind((IpAddr::from([127, 0, 0, 2]), port)).unwrap();

    // The agent is killed, and the next one knows the port and looks at the health anew.
    drop(agent);
    let mut agent = node.agent().await;
    let found = agent.found[0].clone();
    let held = found.replica.unwrap();
    let expected =
        Replica { spec: *replica(None).unwrap(), address: LOOPBACK.into(), ports: vec![port] };
    assert_eq!(*held, expected);
    let place = agent.runtime.place(attempt(1)).unwrap();
    agent.checks.begin(attempt(1), held, place, found.ran_ms);
    agent.health(1, Health::Healthy).await;
    assert_eq!(agent.changes(1), [Health::Healthy]);
}

#[tokio::test]
async fn an_http_check_needs_an_answer_of_the_program() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    for (index, path) in [(1, "/health"), (2, "/nothing")] {
        let check = HealthSpec { start_period_ms: 0, ..http(path) };
        agent.start(attempt(index), server(&node, Some(check)));
        agent.listening(index).await;
        listen(&node, index).await;
        agent.begin_checks(index, 0);
    }
    assert_eq!(agent.health(1, Health::Healthy).await, "status 200");
    assert_eq!(agent.health(2, Health::Unhealthy).await, "status 404");
}

#[tokio::test]
async fn a_command_runs_in_the_container() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let command = |script: &str| HealthSpec {
        start_period_ms: 0,
        failures: 2,
        timeout_ms: 10_000,
        ..quick(HealthCheck::Command(["sh", "-c", script].map(str::to_owned).to_vec()))
    };
    let checks = [
        command("echo $PODMESH_SERVICE $PODMESH_REPLICA $PODMESH_REVISION; hostname >/dev/null"),
        command("echo 'no disk' >&2; exit 3"),
        command("sleep 1000 & echo left >&2"),
        quick(HealthCheck::Command(vec!["nosuch".into()])),
        command("head -c 30000000 /dev/zero; echo; echo done"),
    ];
    for (index, check) in (1..).zip(checks) {
        let mut job = node.script("exec sleep 1000");
        job.run.replica = replica(Some(HealthSpec { start_period_ms: 0, ..check }));
        agent.start(attempt(index), job);
        agent.listening(index).await;
        agent.begin_checks(index, 0);
    }
    assert_eq!(agent.health(1, Health::Healthy).await, "web 3 7");
    assert_eq!(agent.health(2, Health::Unhealthy).await, "exit code 3: no disk");
    let said = agent.health(4, Health::Unhealthy).await;
    assert!(said.contains("nosuch"), "{said}");
    // Either the engine notices the exit in time, or it is a timeout. Nothing hangs.
    agent.until(attempt(3), |fact| matches!(fact, RuntimeFact::Health(..))).await;
    assert_eq!(agent.health(5, Health::Healthy).await, "done");
}

#[tokio::test]
async fn a_command_that_does_not_end_fails_and_is_not_started_again_beside_itself() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script = "echo started >>/tmp/starts; exec sleep 1000";
    let check = HealthCheck::Command(["sh", "-c", script].map(str::to_owned).to_vec());
    let check = HealthSpec { timeout_ms: 200, start_period_ms: 0, ..quick(check) };
    let mut job = node.script("exec sleep 1000");
    job.run.replica = replica(Some(check));
    agent.start(attempt(1), job);
    agent.listening(1).await;
    agent.begin_checks(1, 0);
    agent.health(1, Health::Unhealthy).await;
    agent.checks.end(attempt(1));
    // At most one of them runs, whether or not the others could be killed.
    let container = node.container_name(attempt(1));
    let docker = engine();
    exec(&docker, &container, "ps | grep -c '[s]leep 1000' >/proc/1/fd/1").await;
    let counted = || node.text(attempt(1), "stdout");
    until(|| counted().ends_with('\n')).await;
    let running: u32 = counted().trim().parse().unwrap();
    assert!((1..=2).contains(&running), "{running}, with the container's own");
}

#[tokio::test]
async fn the_health_check_of_an_image_is_followed_unless_the_spec_has_one() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let image = image_with_health_check(&mut node, "test -e /tmp/good && echo is good").await;
    let mut agent = node.agent().await;
    for (index, health) in [(1, None), (2, Some(quick(HealthCheck::None)))] {
        let mut job = job(&image, &["sh", "-c", "exec sleep 1000"]);
        job.run.replica = replica(health);
        agent.start(attempt(index), job);
        agent.listening(index).await;
        agent.begin_checks(index, 0);
    }
    assert_eq!(agent.health(2, Health::Healthy).await, "it has started");
    let container = node.container_name(attempt(1));
    let docker = engine();
    exec(&docker, &container, "touch /tmp/good").await;
    assert_eq!(agent.health(1, Health::Healthy).await, "is good");
    exec(&docker, &container, "rm /tmp/good").await;
    agent.health(1, Health::Unhealthy).await;
    // The engine makes no checks of its own where the spec has one.
    let found = docker.inspect_container(&node.container_name(attempt(2)), None).await.unwrap();
    assert!(found.state.unwrap().health.is_none_or(|health| health.log.is_none()));
}

/// Makes an image with a health check, which ends with the node. Returns its name.
async fn image_with_health_check(node: &mut TestNode, script: &str) -> String {
    let docker = engine();
    let body = bollard::models::ContainerCreateBody {
        image: Some(node.image.name.clone()),
        cmd: Some(vec!["true".into()]),
        ..Default::default()
    };
    let made = docker.create_container(None, body).await.unwrap();
    let _container = ForeignContainer(made.id.clone());
    let second = 1_000_000_000;
    let config = ContainerConfig {
        healthcheck: Some(HealthConfig {
            test: Some(vec!["CMD-SHELL".into(), script.into()]),
            interval: Some(second / 2),
            timeout: Some(10 * second),
            retries: Some(2),
            start_period: Some(0),
            ..HealthConfig::default()
        }),
        ..ContainerConfig::default()
    };
    let name = format!("{}-checked", node.image.name.split(':').next().unwrap());
    let options = bollard::query_parameters::CommitContainerOptionsBuilder::default()
        .container(&made.id)
        .repo(&name)
        .tag("1")
        .build();
    docker.commit_container(options, config).await.unwrap();
    node.owned_image(format!("{name}:1"))
}

#[tokio::test]
async fn a_port_that_is_taken_before_the_start_is_replaced_by_another_one() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let first = loop {
        let first = 10_000 + (uuid::Uuid::new_v4().as_u128() % 9_000) as u16;
        if (first..first + 3).all(|port| TcpListener::bind(("0.0.0.0", port)).is_ok()) {
            break first;
        }
    };
    node.policy.replica_ports = Some(format!("{first}-{}", first + 2).parse().unwrap());
    let mut agent = node.agent().await;
    agent.ports.set_address(LOOPBACK.into());
    // Another container has one of the ports from the beginning.
    let docker = engine();
    let _other = publish(&docker, &node, first).await;
    // The port is taken while the image is pulled, which takes a while.
    let registry = Registry::start().await;
    let image = node.owned_image(format!("{}/test/image", registry.address));
    let mut job = job(&image, &["sleep", "1000"]);
    job.run.replica = replica(None);
    agent.start(attempt(1), job);
    let is_pulling = |fact: &RuntimeFact| !matches!(fact, RuntimeFact::Started);
    agent.until(attempt(1), is_pulling).await;
    let before = agent.ports.get(attempt(1)).unwrap().ports[0];
    let _listener = TcpListener::bind(("127.0.0.1", before)).unwrap();
    let after = agent.listening(1).await[0];
    let mut ports = [before, after];
    ports.sort_unstable();
    assert_eq!(ports, [first + 1, first + 2]);
    assert_eq!(node.containers().await.len(), 1);
    // None is left.
    let outcome = agent.run(attempt(2), server(&node, None)).await;
    assert_eq!(outcome.kind, OutcomeKind::NotStarted);
    let said = outcome.message.unwrap();
    assert!(said.contains("test-node") && said.contains("replica_ports"), "{said}");
}

/// Publishes a port of a container that is not the agent's.
async fn publish(docker: &bollard::Docker, node: &TestNode, port: u16) -> ForeignContainer {
    let binding = bollard::models::PortBinding {
        host_ip: Some("127.0.0.1".into()),
        host_port: Some(port.to_string()),
    };
    let body = bollard::models::ContainerCreateBody {
        image: Some(node.image.name.clone()),
        cmd: Some(["sleep", "1000"].map(str::to_owned).to_vec()),
        exposed_ports: Some(vec!["80/tcp".into()]),
        host_config: Some(bollard::models::HostConfig {
            port_bindings: Some([("80/tcp".to_owned(), Some(vec![binding]))].into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let made = docker.create_container(None, body).await.unwrap();
    let container = ForeignContainer(made.id.clone());
    docker.start_container(&made.id, None).await.unwrap();
    container
}

#[tokio::test]
async fn a_container_in_the_host_network_listens_on_its_own_port() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.policy.allow_host_network = true;
    let mut agent = node.agent().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let mut job = node.script(&format!("exec httpd -f -p {port} -h /"));
    docker_spec(&mut job).network = NetworkMode::Host;
    job.run.replica = replica(None);
    for spec in job
        .run
        .replica
        .iter_mut()
        .flat_map(|replica| Arc::make_mut(&mut replica.ports).values_mut())
    {
        spec.container = Some(port);
    }
    let outcome = agent.run(attempt(1), job.clone()).await;
    assert_eq!(outcome.kind, OutcomeKind::NotStarted);
    assert!(outcome.message.unwrap().contains(&format!("port {port} is in use")));
    drop(free);
    agent.start(attempt(2), job.clone());
    assert_eq!(agent.listening(2).await, [port]);
    agent.begin_checks(2, 0);
    agent.health(2, Health::Healthy).await;

    docker_spec(&mut job).network = NetworkMode::None;
    let outcome = agent.run(attempt(3), job).await;
    assert_eq!(outcome.kind, OutcomeKind::Failed);
    assert!(outcome.message.unwrap().contains("network \"none\""));
}

#[tokio::test]
async fn other_machines_reach_a_port_at_the_address_of_the_node() {
    if !usable() {
        return;
    }
    // Not a loopback address, so that the engine forwards by its rules for the network.
    let Some(address) = podmesh_wire::machine::addresses().into_iter().find(IpAddr::is_ipv4) else {
        return;
    };
    let node = TestNode::new();
    let mut agent = node.agent().await;
    agent.ports.set_address(address);
    agent.start(attempt(1), server(&node, Some(http("/health"))));
    let port = agent.listening(1).await[0];
    listen(&node, 1).await;
    agent.begin_checks(1, 0);
    agent.health(1, Health::Healthy).await;
    let mut stream = TcpStream::connect((address, port)).await.unwrap();
    let request = b"GET /health HTTP/1.0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("fine\n"), "{answer}");
}
