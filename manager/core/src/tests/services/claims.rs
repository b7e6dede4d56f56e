//! Services whose replicas have named resources, preferences, or a node for themselves.

use podmesh_protocol::place::{Claims, Offer, PlaceRules};

use super::*;

/// A mesh of nodes that each offer these GPUs.
fn mesh(nodes: &[&str], ids: &[&str]) -> Mesh {
    let mut mesh = Mesh::new(&[]);
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    mesh.offers = [(name("gpu"), Offer { count: 0, ids })].into();
    for (number, node) in (1..).zip(nodes) {
        mesh.join(node, number);
    }
    mesh.play();
    mesh
}

/// The service with replicas that each need this much of `gpu`.
fn needing(spec: ServiceSpec, millis: u32) -> ServiceSpec {
    let resources = [(name("gpu"), millis)].into();
    let small = Resources { cpu_millis: 10, memory_bytes: 0 };
    ServiceSpec {
        resources: small,
        place: PlaceRules { resources, ..PlaceRules::default() }.into(),
        ..spec
    }
}

impl Mesh {
    /// Returns what every replica has of named resources, in the order of their attempts.
    fn claims(&self) -> Vec<Claims> {
        let jobs = self.world.core.state().jobs.values();
        let active = jobs.flat_map(|job| job.active.values());
        active.filter_map(|active| active.claims.as_deref().cloned()).collect()
    }

    fn gpus(&self) -> Vec<String> {
        let claims = self.claims();
        claims.iter().flat_map(|claims| claims[&name("gpu")].ids.clone()).collect()
    }

    fn used(&self, node: &str) -> u64 {
        self.world.node(node).resources[&name("gpu")].used
    }
}

#[test]
fn replicas_keep_their_ids_until_they_end() {
    let mut mesh = mesh(&["a"], &["x", "y", "z"]);
    mesh.apply(needing(web(2), 1_000));
    mesh.play();
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!((mesh.gpus(), mesh.used("a")), (vec!["x".into(), "y".into()], 2_000));
    mesh.world.restart();
    mesh.join("a", 2);
    mesh.play();
    assert_eq!((mesh.gpus(), mesh.used("a")), (vec!["x".into(), "y".into()], 2_000));
    let (node, attempt) = mesh.replica(1);
    mesh.end(&node, attempt, 1);
    mesh.play();
    assert_eq!((mesh.gpus(), mesh.used("a")), (vec!["y".into(), "x".into()], 2_000));
    mesh.change(ServiceChange::Stop).unwrap();
    mesh.play();
    mesh.pass(2_000);
    assert_eq!((mesh.gpus(), mesh.used("a")), (vec![], 0));
}

#[test]
fn a_change_of_resources_replaces_replicas_and_waits_for_room_with_a_reason() {
    let mut mesh = mesh(&["a"], &["x", "y"]);
    assert_eq!(mesh.apply(needing(web(2), 500)), (1, true));
    mesh.play();
    assert_eq!(mesh.gpus(), ["x", "x"]);
    // One of the new revision takes `y`. The next one has no room before an old one has gone.
    assert_eq!(mesh.apply(needing(web(2), 1_000)), (2, true));
    mesh.play();
    let waits = mesh.show().waits_for;
    assert!(waits[0].contains("waits for 1 of `gpu`"), "{waits:?}");
    assert_eq!(mesh.show().view.healthy, 1);
    mesh.pass(2_000);
    // `x` is still shared by nobody but one old replica, which must stay healthy.
    assert_eq!(mesh.status(), (ServiceState::Updating, 1, 3));
    mesh.pass(300_000);
    assert_eq!(mesh.show().view.revision, 1, "rolled back");
    mesh.pass(2_000);
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!(mesh.used("a"), 1_000);
}

#[test]
fn an_update_without_surge_hands_ids_over() {
    let mut mesh = mesh(&["a"], &["x", "y"]);
    let mut spec = needing(web(2), 1_000);
    (spec.update.max_surge, spec.update.min_healthy) = (0, Some(1));
    mesh.apply(spec.clone());
    mesh.play();
    spec.run.command.push("new".into());
    mesh.apply(spec);
    mesh.play();
    for _ in 0..4 {
        mesh.pass(2_000);
    }
    assert_eq!(mesh.status(), (ServiceState::Healthy, 2, 2));
    assert_eq!((mesh.show().view.revision, mesh.used("a")), (2, 2_000));
}

#[test]
fn a_plan_says_where_replicas_go_and_what_they_lack() {
    let mesh = mesh(&["a", "b"], &["x", "y"]);
    let plan = |spec: &ServiceSpec| mesh.world.core.plan_service(&Arc::new(spec.clone()));
    let nodes = |a: u32, b: u32| [(name("a"), a), (name("b"), b)].into();
    let found = plan(&needing(web(5), 1_000));
    assert_eq!((found.placements, found.waiting), (nodes(2, 2), 1));
    assert!(found.waits_for[0].contains("waits for 1 of `gpu`"), "{:?}", found.waits_for);
    assert_eq!(plan(&needing(web(8), 500)).placements, nodes(4, 4));
    let found = plan(&needing(web(1), 3_000));
    assert!(found.waits_for[0].contains("the most that a node has is 2"), "{:?}", found.waits_for);
    let alone = PlaceRules { exclusive: true, ..PlaceRules::default() };
    let found = plan(&ServiceSpec { place: alone.into(), ..web(3) });
    assert_eq!((found.placements, found.waiting), (nodes(1, 1), 1));
    assert!(found.waits_for[0].contains("a node for itself"), "{:?}", found.waits_for);
}

#[test]
fn an_exclusive_replica_is_alone_and_a_preferred_node_is_tried_first() {
    let mut mesh = mesh(&["a", "b"], &[]);
    let alone = PlaceRules { exclusive: true, ..PlaceRules::default() };
    mesh.apply(ServiceSpec { place: alone.into(), ..web(1) });
    mesh.play();
    mesh.world.submit(JobSpec { array: array(8).array, ..spec() });
    let shares = |node: &str| mesh.world.node(node).attempts;
    assert_eq!((shares("a"), shares("b")), (1, 4), "only `b` takes tasks");

    let mut mesh = mesh_with_disks();
    let fast = PlaceRules { prefer: [(name("disk"), "b".into())].into(), ..PlaceRules::default() };
    let wanted = ServiceSpec { place: fast.into(), ..web(3) };
    let plan = mesh.world.core.plan_service(&Arc::new(wanted.clone()));
    assert_eq!(plan.placements, [(name("b"), 3)].into());
    mesh.apply(wanted);
    mesh.play();
    assert_eq!(mesh.agents["b"].running.len(), 3);
}

/// A mesh of two nodes, each with its own name as the label `disk`.
fn mesh_with_disks() -> Mesh {
    let mut mesh = Mesh::new(&[]);
    for (number, node) in (1..).zip(["a", "b"]) {
        mesh.labels = [(name("disk"), node.into())].into();
        mesh.join(node, number);
    }
    mesh.play();
    mesh
}
