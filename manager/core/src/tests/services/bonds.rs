//! Services with volumes, in projects, and that wait for others.

use podmesh_protocol::node::DrainSpec;
use podmesh_protocol::service::{DependsOn, Project, RestartPolicy, RestartWhen};
use podmesh_protocol::volume::VolumeView;

use super::super::property::with_volume;
use super::*;

/// A service that is a database with a volume.
fn db() -> ServiceSpec {
    let mut spec = ServiceSpec { name: name("db"), ports: Arc::default(), ..web(1) };
    spec.run.runtime = with_volume();
    spec
}

fn together(mut spec: ServiceSpec) -> ServiceSpec {
    let member = spec.name.clone();
    spec.project = Some(Project { name: name("shop"), member, together: true });
    spec
}

fn after(mut spec: ServiceSpec, service: &str, needs: DependsOn) -> ServiceSpec {
    spec.depends_on.insert(name(service), needs);
    spec
}

/// A service without a port. Its replicas take one core each.
fn plain(service: &str, replicas: u32) -> ServiceSpec {
    ServiceSpec { name: name(service), ports: Arc::default(), ..web(replicas) }
}

impl Mesh {
    fn detail(&self, service: &str) -> ServiceDetail {
        self.world.core.show_service(self.world.now, &name(service)).unwrap()
    }

    /// Returns the nodes of the replicas that run.
    fn nodes_of(&self, service: &str) -> Vec<String> {
        let detail = self.detail(service);
        let nodes = detail.replicas.iter().filter_map(|replica| replica.node.as_ref());
        nodes.map(ToString::to_string).collect()
    }

    fn schedule(&mut self, node: &str, scheduling: Scheduling) {
        let command = Command::ScheduleNode {
            by: name("ann"),
            node: name(node),
            scheduling,
            drain: DrainSpec::default(),
        };
        self.ask(command).unwrap();
        self.play();
    }

    fn lose(&mut self, node: &str) {
        let agent = &self.agents[node];
        let (gone, epoch) = (connection(agent.connection), agent.epoch.unwrap());
        self.feed(Input::ConnectionGone { connection: gone });
        for change in [HeartbeatChange::Closed, HeartbeatChange::LeaseExpired] {
            self.feed(Input::HeartbeatChanged { epoch, change });
        }
        self.agents.get_mut(node).unwrap().running.clear();
        self.pass(MARGIN_MS);
    }

    fn change_of(&mut self, service: &str, change: ServiceChange) -> Result<Answer, ErrorReply> {
        let result =
            self.ask(Command::ChangeService { by: name("ann"), service: name(service), change });
        self.play();
        result
    }

    fn volumes(&self) -> Vec<VolumeView> {
        self.world.core.list_volumes(None, 9)
    }

    fn remove_volume(&mut self, force: bool) -> Result<Answer, ErrorReply> {
        self.ask(Command::RemoveVolume { by: name("ann"), volume: name("data"), force })
    }

    fn waits(&self, service: &str) -> String {
        self.detail(service).waits_for.join("; ")
    }
}

#[test]
fn a_service_stays_on_the_node_of_its_volume() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    mesh.apply(db());
    mesh.play();
    let home = mesh.nodes_of("db").remove(0);
    let [VolumeView { node, services, .. }] = mesh.volumes().try_into().unwrap();
    assert_eq!((node.as_str(), services), (home.as_str(), [name("db")].into()));
    // Its next replicas go there too, one after the other.
    mesh.change_of("db", ServiceChange::Restart).unwrap();
    assert_eq!(mesh.nodes_of("db"), [home.as_str()]);
    assert_eq!(mesh.detail("db").view.existing, 1);
    // The node is gone: it waits, and says for what.
    mesh.lose(&home);
    assert_eq!(mesh.nodes_of("db"), Vec::<String>::new());
    let said = mesh.waits("db");
    assert!(said.contains(&format!("node `{home}`, which has its volume `data`")), "{said}");
    assert!(said.contains("is lost"), "{said}");
    mesh.world.restart();
    for (number, node) in (21..).zip(["a", "b", "c"]) {
        mesh.join(node, number);
    }
    mesh.play();
    assert_eq!(mesh.nodes_of("db"), [home], "it is back");
}

#[test]
fn two_replicas_never_write_to_a_volume_during_an_update() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(db());
    mesh.play();
    mesh.change_of("db", ServiceChange::Scale(1)).unwrap();
    let command = Command::ChangeService {
        by: name("ann"),
        service: name("db"),
        change: ServiceChange::Restart,
    };
    mesh.ask(command).unwrap();
    assert_eq!(mesh.detail("db").view.existing, 1, "the old one ends first");
    mesh.play();
    let detail = mesh.detail("db");
    assert_eq!((detail.view.revision, detail.view.state), (2, ServiceState::Healthy.into()));
    assert_eq!(detail.replicas.len(), 1);
}

#[test]
fn jobs_go_to_the_node_of_their_volume() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    mesh.apply(db());
    mesh.play();
    let home = mesh.nodes_of("db").remove(0);
    let mut job = array(3);
    job.run.runtime = with_volume();
    let step = mesh.world.submit(job);
    let nodes: Vec<&str> = placed(&step).into_iter().map(|(_, node)| node).collect();
    assert_eq!(nodes, [home.as_str(); 3]);
    let [view] = mesh.volumes().try_into().unwrap();
    assert_eq!(view.jobs.len(), 1);
}

#[test]
fn tasks_of_an_array_follow_the_first_one_to_its_volume() {
    let mut world = World::new();
    for (number, node) in (1..).zip(["a", "b"]) {
        let mut hello = hello(node, number);
        hello.runtimes.push(RuntimeKind::Docker.into());
        world.connect(hello, number);
    }
    let mut job = array(6);
    job.run.runtime = with_volume();
    let step = world.submit(job);
    let nodes: Vec<&str> = placed(&step).into_iter().map(|(_, node)| node).collect();
    assert_eq!(nodes.len(), 4, "only one node has room for them");
    assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
    let said = world.explain(1).join("; ");
    assert!(said.contains("its volume `data`") && said.contains("busy"), "{said}");
}

#[test]
fn a_volume_is_removed_by_its_node_when_nothing_uses_it() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(db());
    mesh.play();
    let error = mesh.remove_volume(false).unwrap_err();
    assert!(error.message.contains("used by service `db`"), "{error}");
    mesh.change_of("db", ServiceChange::Remove).unwrap();
    assert_eq!(mesh.remove_volume(false), Ok(Answer::VolumeRemoving { node: name("a") }));
    let asked = |mesh: &Mesh| {
        let asks = |message: &ToPeer| matches!(message, ToPeer::RemoveVolumes { volumes, .. } if *volumes == [name("data")]);
        mesh.inbox.iter().filter(|(_, message)| asks(message)).count()
    };
    assert_eq!(asked(&mesh), 1);
    let used =
        mesh.ask(Command::ApplyService { by: name("ann"), spec: Arc::new(db()), back_to: None });
    assert!(used.unwrap_err().message.contains("is being removed"));
    // The request is lost with the connection. The next session begins with it.
    mesh.inbox.clear();
    mesh.world.restart();
    mesh.join("a", 9);
    assert_eq!(asked(&mesh), 1);
    mesh.play();
    let (connection, epoch) = (connection(9), mesh.agents["a"].epoch.unwrap());
    let failed = [(name("data"), "in use".to_owned())].into();
    mesh.feed(Input::VolumesRemoved { connection, epoch, removed: vec![], failed });
    assert_eq!(mesh.volumes()[0].failed.as_deref(), Some("in use"));
    let removed = vec![name("data"), name("other")];
    mesh.feed(Input::VolumesRemoved { connection, epoch, removed, failed: [].into() });
    assert_eq!(mesh.volumes(), []);
    let (volume, node, by) = (name("data"), name("a"), name("ann"));
    assert!(mesh.events.contains(&EventFact::VolumeRemoved { volume, node, by }));
    mesh.apply(db());
    mesh.play();
    assert_eq!(mesh.detail("db").view.state, ServiceState::Healthy, "a new one");
}

#[test]
fn a_node_with_volumes_is_forgotten_only_by_force() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(db());
    mesh.play();
    let home = mesh.nodes_of("db").remove(0);
    mesh.change_of("db", ServiceChange::Stop).unwrap();
    mesh.lose(&home);
    let forget = |force| Command::ForgetNode { by: name("ann"), node: name(&home), force };
    let error = mesh.ask(forget(false)).unwrap_err();
    assert!(error.message.contains("has volumes (1: data)"), "{error}");
    let now = mesh.world.now.mono_ms;
    for age_ms in [now, now + 1_000] {
        let by = name("root");
        mesh.feed(Input::RetentionDue { age_ms, keep_ms: 1, by });
    }
    assert_eq!(mesh.volumes().len(), 1, "nor is it removed with time");
    mesh.ask(forget(true)).unwrap();
    assert_eq!(mesh.volumes(), []);
    mesh.change_of("db", ServiceChange::Start).unwrap();
    assert_eq!(mesh.nodes_of("db").len(), 1);
}

#[test]
fn services_of_a_project_run_on_one_node_and_move_together() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    mesh.apply(together(web(2)));
    mesh.apply(together(plain("cache", 1)));
    mesh.play();
    let mut nodes = mesh.nodes_of("web");
    nodes.extend(mesh.nodes_of("cache"));
    assert!(nodes.iter().all(|node| *node == nodes[0]) && nodes.len() == 3, "{nodes:?}");
    let home = nodes.remove(0);
    mesh.schedule(&home, Scheduling::Draining);
    let mut nodes = mesh.nodes_of("web");
    nodes.extend(mesh.nodes_of("cache"));
    assert!(nodes.iter().all(|node| *node == nodes[0]) && nodes.len() == 3, "{nodes:?}");
    assert_ne!(nodes[0], home);
    let second = nodes.remove(0);
    mesh.lose(&second);
    let mut nodes = mesh.nodes_of("web");
    nodes.extend(mesh.nodes_of("cache"));
    assert!(nodes.iter().all(|node| *node == nodes[0]) && nodes.len() == 3, "{nodes:?}");
    assert!(nodes[0] != home && nodes[0] != second);
    // After a restart they are still bound.
    mesh.world.restart();
    assert_eq!(mesh.world.core.home_of(&name("shop")), Some(name(&nodes[0])));
}

#[test]
fn a_project_runs_where_its_volume_is() {
    let mut mesh = Mesh::new(&["a", "b", "c"]);
    mesh.apply(together(db()));
    mesh.play();
    let home = mesh.nodes_of("db").remove(0);
    mesh.change_of("db", ServiceChange::Stop).unwrap();
    mesh.apply(together(web(4)));
    mesh.play();
    assert_eq!(mesh.nodes_of("web"), [home.as_str(); 4]);
    mesh.apply(together(plain("more", 1)));
    mesh.play();
    let said = mesh.waits("more");
    assert!(said.contains("where project `shop` runs") && said.contains("busy"), "{said}");
}

#[test]
fn a_service_that_joins_a_project_moves_to_it() {
    let mut mesh = Mesh::new(&["a", "b"]);
    mesh.apply(together(db()));
    mesh.play();
    let home = mesh.nodes_of("db").remove(0);
    let free = web(3);
    mesh.apply(free.clone());
    mesh.play();
    assert!(mesh.nodes_of("web").iter().any(|node| *node != home));
    mesh.apply(together(free));
    mesh.play();
    assert_eq!(mesh.nodes_of("web"), [home.as_str(); 3]);
}

#[test]
fn the_first_replica_waits_for_other_services() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(after(web(1), "db", DependsOn::Healthy));
    mesh.play();
    assert_eq!(mesh.waits("web"), "waits for service `db`, which does not exist");
    assert_eq!(mesh.show().replicas[0].state, ReplicaState::Waiting);
    // The time of its update does not run out meanwhile.
    mesh.pass(3_600_000);
    mesh.health.insert(1, Health::Starting);
    mesh.apply(plain("db", 1));
    mesh.play();
    assert_eq!(mesh.waits("web"), "waits for service `db`, which is not healthy yet");
    let attempt = mesh.detail("db").replicas[0].attempt.unwrap();
    mesh.health.clear();
    mesh.report("a", vec![(attempt, ReportFact::Health(Health::Healthy, "said".into()))]);
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
    // A later replica does not wait.
    mesh.change_of("db", ServiceChange::Stop).unwrap();
    let (node, attempt) = mesh.replica(1);
    mesh.end(&node, attempt, 1);
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
    // One that was stopped and started again does.
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    mesh.change(ServiceChange::Start).unwrap();
    mesh.play();
    assert_eq!(mesh.waits("web"), "waits for service `db`, which is stopped");
}

#[test]
fn a_service_waits_until_another_one_has_done_its_work() {
    let mut mesh = Mesh::new(&["a"]);
    let restart = RestartPolicy { when: RestartWhen::Never, ..RestartPolicy::default() };
    mesh.apply(ServiceSpec { restart, ..plain("migrate", 1) });
    mesh.apply(after(web(1), "migrate", DependsOn::Completed));
    mesh.play();
    assert_eq!(mesh.waits("web"), "waits for service `migrate`, which is not done yet");
    let attempt = mesh.detail("migrate").replicas[0].attempt.unwrap();
    mesh.end("a", attempt, 3);
    mesh.play();
    let said = mesh.waits("web");
    assert!(said.contains("migrate.1 has ended: exit code 3"), "{said}");
    mesh.change_of("migrate", ServiceChange::Restart).unwrap();
    let attempt = mesh.detail("migrate").replicas[0].attempt.unwrap();
    mesh.end("a", attempt, 0);
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 1, 1));
}

#[test]
fn services_cannot_wait_in_a_circle() {
    let mut mesh = Mesh::new(&["a"]);
    mesh.apply(after(plain("b", 1), "c", DependsOn::Started));
    mesh.apply(after(plain("c", 1), "d", DependsOn::Started));
    let spec = Arc::new(after(plain("d", 1), "b", DependsOn::Started));
    let circle = Command::ApplyService { by: name("ann"), spec, back_to: None };
    let error = mesh.ask(circle).unwrap_err();
    assert!(error.message.contains("would wait for itself"), "{error}");
    mesh.apply(plain("d", 1));
    mesh.play();
    for service in ["b", "c", "d"] {
        assert_eq!(mesh.detail(service).view.state, ServiceState::Healthy, "{service}");
    }
}

#[test]
fn services_that_wait_for_each_other_after_a_rollback_stop_nothing_else() {
    let mut mesh = Mesh::new(&["a"]);
    // What `web` goes back to waits for `db`, which may wait for `web` meanwhile.
    mesh.apply(plain("db", 1));
    mesh.apply(after(web(1), "db", DependsOn::Healthy));
    mesh.play();
    mesh.health.insert(2, Health::Starting);
    mesh.apply(web_with(1, "new"));
    mesh.play();
    mesh.change_of("db", ServiceChange::Stop).unwrap();
    mesh.apply(after(plain("db", 1), "web", DependsOn::Healthy));
    mesh.change_of("db", ServiceChange::Stop).unwrap();
    mesh.pass(300_000);
    assert_eq!(mesh.show().view.revision, 1, "it went back");
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    mesh.change(ServiceChange::Start).unwrap();
    mesh.change_of("db", ServiceChange::Start).unwrap();
    mesh.play();
    assert!(mesh.waits("web").contains("`db`") && mesh.waits("db").contains("`web`"));
    mesh.apply(plain("other", 1));
    mesh.play();
    assert_eq!(mesh.detail("other").view.state, ServiceState::Healthy);
}
