//! What containers share on a node: networks and named volumes, with a real engine.

use std::collections::HashMap;

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters as query;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::spec::VolumeMount;

use crate::support::*;

const UNTIL_GO: &str = "until test -e /tmp/go; do sleep 0.02; done";

/// A container that answers `text` to every connection on port 80, until [`exec`] creates `/tmp/go`.
fn answers(node: &TestNode, text: &str, networks: &[(&str, &[&str])]) -> JobContext {
    let script = format!(
        "(while true; do echo {text} | nc -l -p 80; done) & echo ready; {UNTIL_GO}; exit 0"
    );
    joins(node.script(&script), networks)
}

fn joins(mut job: JobContext, networks: &[(&str, &[&str])]) -> JobContext {
    let network = |(name, aliases): &(&str, &[&str])| {
        (name.parse().unwrap(), aliases.iter().map(|alias| (*alias).to_owned()).collect())
    };
    docker_spec(&mut job).networks = networks.iter().map(network).collect();
    job
}

/// Returns the networks of the node's agent, in order.
async fn networks(node: &TestNode) -> Vec<String> {
    let label = format!("podmesh.agent={}", node.agent);
    let filters = HashMap::from([("label".to_owned(), vec![label])]);
    let options = query::ListNetworksOptionsBuilder::default().filters(&filters).build();
    let listed = engine().list_networks(Some(options)).await.unwrap();
    let labels = listed.into_iter().filter_map(|network| network.labels);
    let mut names: Vec<String> =
        labels.filter_map(|mut labels| labels.remove("podmesh.network")).collect();
    names.sort();
    names
}

async fn until_networks(node: &TestNode, wanted: &[&str]) {
    within(async {
        while networks(node).await != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn containers_find_each_other_in_their_networks() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    agent.start(attempt(1), answers(&node, "from-db", &[("shop_back", &["db", "db-1"])]));
    agent.start(
        attempt(2),
        answers(&node, "from-web", &[("shop_back", &["web"]), ("shop_front", &["web"])]),
    );
    for index in [1, 2] {
        node.until_printed(attempt(index), "stdout", "ready").await;
    }
    assert_eq!(networks(&node).await, ["shop_back", "shop_front"]);
    // It does not retry by itself: the other container may not listen for a moment.
    let ask = |host: &str| {
        format!(
            "for i in $(seq 50); do nc -w 5 {host} 80 </dev/null && exit 0; sleep 0.1; done; exit 1"
        )
    };
    for (index, host, network, answer) in [
        (3, "db", "shop_back", "from-db\n"),
        (4, "db-1", "shop_back", "from-db\n"),
        (5, "web", "shop_front", "from-web\n"),
        (6, "web", "shop_back", "from-web\n"),
    ] {
        let job = joins(node.script(&ask(host)), &[(network, &[])]);
        assert_eq!(agent.run(attempt(index), job).await.exit_code, Some(0), "{host} in {network}");
        assert_eq!(node.text(attempt(index), "stdout"), answer);
        agent.runtime.remove(attempt(index));
    }
    let job =
        joins(node.script("nslookup db 127.0.0.11 && exit 0; exit 9"), &[("shop_front", &[])]);
    assert_ne!(agent.run(attempt(7), job).await.exit_code, Some(0), "`db` is in another network");
    agent.runtime.remove(attempt(7));
    // The last container of a network takes it along.
    exec(&engine(), &node.container_name(attempt(2)), "touch /tmp/go").await;
    agent.end(attempt(2)).await;
    agent.runtime.remove(attempt(2));
    until_networks(&node, &["shop_back"]).await;
    // Another run of the agent knows what is used.
    drop(agent);
    let mut agent = node.agent().await;
    assert_eq!(networks(&node).await, ["shop_back"]);
    exec(&engine(), &node.container_name(attempt(1)), "touch /tmp/go").await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(0));
    agent.runtime.remove(attempt(1));
    until_networks(&node, &[]).await;
}

#[tokio::test]
async fn networks_that_nothing_uses_are_removed_at_the_start_of_an_agent() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let agent = node.agent().await;
    agent.start(attempt(1), answers(&node, "x", &[("alone", &[])]));
    node.until_printed(attempt(1), "stdout", "ready").await;
    drop(agent);
    remove(&engine(), &node.container_name(attempt(1))).await;
    assert_eq!(networks(&node).await, ["alone"]);
    _ = node.agent().await;
    assert_eq!(networks(&node).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_is_removed_once_nothing_uses_it() {
    if !usable() {
        return;
    }
    let volume = TestVolume::new();
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let mut job = node.script(&format!("echo ready; {UNTIL_GO}"));
    let target = "/data".into();
    docker_spec(&mut job).volumes =
        vec![VolumeMount { volume: volume.0.clone(), target, read_only: false }];
    agent.start(attempt(1), job);
    node.until_printed(attempt(1), "stdout", "ready").await;
    let done = agent.runtime.remove_volumes(vec![volume.0.clone()]).await;
    assert!(done.failed[&volume.0].contains("in use"), "{done:?}");
    exec(&engine(), &node.container_name(attempt(1)), "touch /tmp/go").await;
    agent.end(attempt(1)).await;
    agent.runtime.remove(attempt(1));
    let never_made = "never-made".parse().unwrap();
    let done = agent.runtime.remove_volumes(vec![volume.0.clone(), never_made]).await;
    assert_eq!((done.removed.len(), done.failed.len()), (2, 0), "{done:?}");
    assert!(engine().inspect_volume(&volume.docker_name()).await.is_err());
}

#[tokio::test]
async fn a_volume_of_somebody_else_is_neither_used_nor_removed() {
    if !usable() {
        return;
    }
    let volume = TestVolume::new();
    let create = VolumeCreateRequest { name: Some(volume.docker_name()), ..Default::default() };
    engine().create_volume(create).await.unwrap();
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let mut job = node.script("true");
    let target = "/data".into();
    docker_spec(&mut job).volumes =
        vec![VolumeMount { volume: volume.0.clone(), target, read_only: false }];
    let said = agent.run(attempt(1), job).await.message.unwrap();
    assert!(said.contains("not from this cluster"), "{said}");
    let done = agent.runtime.remove_volumes(vec![volume.0.clone()]).await;
    assert!(done.failed[&volume.0].contains("not from this cluster"), "{done:?}");
    assert!(engine().inspect_volume(&volume.docker_name()).await.is_ok());
}
