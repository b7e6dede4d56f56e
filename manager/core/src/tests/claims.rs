//! Named resources, preferences, spreading, and nodes for one task alone.

use super::*;
use podmesh_protocol::place::{Claims, Offer, PlaceRules};

/// A node with these ids of `gpu`, and three of `license`.
fn offering(node: &str, number: u64, ids: &[&str]) -> Hello {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let resources = [
        (name("gpu"), Offer { count: 0, ids }),
        (name("license"), Offer { count: 3, ids: Vec::new() }),
    ];
    Hello { resources: resources.into(), ..hello(node, number) }
}

fn needing(resource: &str, millis: u32) -> JobSpec {
    let resources = [(name(resource), millis)].into();
    let small = Resources { cpu_millis: 100, memory_bytes: 0 };
    JobSpec {
        resources: small,
        place: PlaceRules { resources, ..PlaceRules::default() }.into(),
        ..spec()
    }
}

fn sent(step: &Step) -> Vec<(AttemptId, Claims)> {
    let of = |message: &ToPeer| match message {
        ToPeer::Claims { claims, .. } => claims.clone(),
        _ => Vec::new(),
    };
    messages(step).into_iter().flat_map(of).collect()
}

/// Returns the ids that an attempt was given.
fn ids(step: &Step, attempt: AttemptId) -> Vec<String> {
    let all = sent(step);
    let claims = &all.iter().find(|(of, _)| *of == attempt).unwrap().1;
    claims.values().flat_map(|claim| claim.ids.clone()).collect()
}

#[test]
fn an_index_belongs_to_one_attempt_and_is_told_before_the_start() {
    let mut world = World::new();
    let epoch = welcome(&world.connect(offering("a", 1, &["x", "y"]), 1)).epoch;
    let step = world.submit(JobSpec { array: array(3).array, ..needing("gpu", 1_000) });
    assert_eq!(
        (ids(&step, at(1, 1, 1)), ids(&step, at(1, 2, 1))),
        (vec!["x".into()], vec!["y".into()])
    );
    let position = |of: fn(&ToPeer) -> bool| messages(&step).into_iter().position(of).unwrap();
    let claims = messages(&step).into_iter().rposition(|m| matches!(m, ToPeer::Claims { .. }));
    assert!(claims.unwrap() < position(|message| matches!(message, ToPeer::Starts(..))));
    assert_eq!(world.counts(1), [1, 2, 0, 0, 0]);
    assert!(world.explain(1)[0].contains("waits for 1 of `gpu`"), "{:?}", world.explain(1));
    assert_eq!(world.node("a").resources[&name("gpu")].used, 2_000);
    let step = world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(ids(&step, at(1, 3, 1)), ["x"]);
}

#[test]
fn what_attempts_have_is_known_after_a_restart_and_sent_again() {
    let mut world = World::new();
    world.connect(offering("a", 1, &["x", "y"]), 1);
    world.submit(needing("gpu", 1_000));
    world.restart();
    let step = world.connect(offering("a", 1, &["x", "y"]), 2);
    assert_eq!(ids(&step, at(1, 1, 1)), ["x"], "with the start that the agent lacks");
    assert_eq!(ids(&world.submit(needing("gpu", 500)), at(2, 1, 1)), ["y"]);
    assert_eq!(ids(&world.submit(needing("gpu", 500)), at(3, 1, 1)), ["y"]);
    world.submit(needing("gpu", 100));
    assert_eq!(world.counts(4), [1, 0, 0, 0, 0]);
}

#[test]
fn an_index_that_vanishes_while_it_is_held_is_not_given_again() {
    let mut world = World::new();
    world.connect(offering("a", 1, &["x"]), 1);
    let mut without = offering("a", 1, &["y"]);
    world.submit(needing("gpu", 1_000));
    world.report(1, Epoch(1), vec![started(1, at(1, 1, 1))]);
    without.attempts = vec![at(1, 1, 1)];
    let epoch = welcome(&world.connect(without, 2)).epoch;
    assert_eq!(world.node("a").resources[&name("gpu")].gone, ["x"]);
    assert_eq!(world.counts(1), [0, 1, 0, 0, 0], "the attempt goes on");
    assert_eq!(ids(&world.submit(needing("gpu", 1_000)), at(2, 1, 1)), ["y"]);
    world.submit(needing("gpu", 1_000));
    world.report(2, epoch, vec![exited(2, at(1, 1, 1), 0)]);
    assert_eq!(world.counts(3), [1, 0, 0, 0, 0], "`x` is not given again");
    assert!(world.node("a").resources[&name("gpu")].gone.is_empty());
}

#[test]
fn a_number_is_counted_and_has_no_parts() {
    let mut world = World::new();
    world.connect(offering("a", 1, &[]), 1);
    world.submit(JobSpec { array: array(4).array, ..needing("license", 1_000) });
    assert_eq!(world.counts(1), [1, 3, 0, 0, 0]);
    world.submit(needing("license", 500));
    assert!(world.explain(2)[0].contains("parts can only be had"), "{:?}", world.explain(2));
    world.submit(needing("license", 4_000));
    assert!(
        world.explain(3)[0].contains("the most that a node has is 3"),
        "{:?}",
        world.explain(3)
    );
    world.submit(needing("tape", 1_000));
    assert!(world.explain(4)[0].contains("offers `tape`"), "{:?}", world.explain(4));
}

#[test]
fn jobs_without_named_resources_pass_those_that_wait_for_them() {
    let mut world = World::new();
    world.connect(offering("a", 1, &["x"]), 1);
    world.submit(needing("gpu", 1_000));
    world.submit(needing("gpu", 1_000));
    world.submit(spec());
    assert_eq!((world.counts(2), world.counts(3)), ([1, 0, 0, 0, 0], [0, 1, 0, 0, 0]));
}

#[test]
fn small_tasks_do_not_starve_one_that_needs_several() {
    let mut world = World::new();
    let epoch = welcome(&world.connect(offering("a", 1, &["x", "y"]), 1)).epoch;
    world.submit(needing("gpu", 1_000));
    world.submit(needing("gpu", 1_000));
    world.submit(needing("gpu", 2_000));
    world.submit(JobSpec { array: array(5).array, ..needing("gpu", 1_000) });
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!(world.counts(4), [5, 0, 0, 0, 0], "`x` is kept for job 3");
    let step = world.report(1, epoch, vec![exited(2, at(2, 1, 1), 0)]);
    assert_eq!(ids(&step, at(3, 1, 1)), ["x", "y"]);
}

#[test]
fn an_exclusive_task_has_its_node_for_itself() {
    let alone =
        || JobSpec { place: PlaceRules { exclusive: true, ..Default::default() }.into(), ..spec() };
    let mut world = World::new();
    let epoch = world.join("a", 1);
    world.submit(spec());
    world.submit(alone());
    assert_eq!(world.counts(2), [1, 0, 0, 0, 0]);
    assert!(world.explain(2)[0].contains("a node for itself"), "{:?}", world.explain(2));
    world.submit(spec());
    assert_eq!(world.counts(3), [1, 0, 0, 0, 0], "the node is kept for job 2");
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 0)]);
    assert_eq!((world.counts(2), world.counts(3)), ([0, 1, 0, 0, 0], [1, 0, 0, 0, 0]));
    world.restart();
    let again = Hello { attempts: vec![at(2, 1, 1)], ..hello("a", 1) };
    let epoch = welcome(&world.connect(again, 2)).epoch;
    assert_eq!(world.counts(3), [1, 0, 0, 0, 0]);
    world.report(2, epoch, vec![exited(2, at(2, 1, 1), 0)]);
    assert_eq!(world.counts(3), [0, 1, 0, 0, 0]);
}

#[test]
fn a_preference_ranks_nodes_and_keeps_nobody_waiting() {
    let mut world = World::new();
    let zone = |zone: &str| -> BTreeMap<Name, String> { [(name("zone"), zone.into())].into() };
    for (number, node) in (1..).zip(["a", "b"]) {
        world.connect(Hello { labels: zone(node), ..hello(node, number) }, number);
    }
    let place = PlaceRules { prefer: zone("b"), ..PlaceRules::default() };
    let step = world.submit(JobSpec { place: place.into(), ..array(6) });
    let nodes: Vec<&str> = placed(&step).into_iter().map(|(_, node)| node).collect();
    assert_eq!(nodes, ["b", "b", "b", "b", "a", "a"]);
}

#[test]
fn the_tasks_of_a_job_are_spread_over_the_values_of_a_label() {
    let mut world = World::new();
    for (number, node) in (1..).zip(["a1", "a2", "a3", "b1"]) {
        let labels = [(name("zone"), node[..1].to_owned())].into();
        world.connect(Hello { labels, ..hello(node, number) }, number);
    }
    let place = PlaceRules { spread: Some(name("zone")), ..PlaceRules::default() };
    let step = world.submit(JobSpec { place: place.into(), ..array(6) });
    let in_b = placed(&step).into_iter().filter(|(_, node)| *node == "b1").count();
    assert_eq!(in_b, 3);
}
