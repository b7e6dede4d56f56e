//! The agent's side.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::super::connect::find;
use super::super::link::{Ack, Proxy, ProxySettings};
use super::super::wanted::{Endpoints, Wanted};
use super::*;
use crate::companion::CompanionCommand;
use crate::config::IngressConfig;
use crate::policy::{IngressAddress, PortRanges};
use crate::ports::REPLICA_PORTS_DEFAULT;
use crate::proxy::PortTroubles;
use crate::service_names::ServiceNames;

fn settings(node: &Node) -> ProxySettings {
    ProxySettings {
        // Only the test starts a proxy.
        command: CompanionCommand {
            program: "/nonexistent".into(),
            arg0: "podmesh".into(),
            args: Vec::new(),
        },
        data_dir: node.dir.path().to_owned(),
        agent_id: node.agent,
        stop_with_agent: false,
        ingress: ingress("127.0.0.1".parse().unwrap()),
        names: Arc::new(ServiceNames::new(IngressAddress::All)),
        replica_ports: Some(REPLICA_PORTS_DEFAULT),
    }
}

fn ingress(address: IngressAddress) -> IngressConfig {
    IngressConfig { address, ports: PortRanges::default() }
}

fn endpoints(session: u64, update: u64, services: Vec<ServiceEndpoints>) -> Endpoints {
    Endpoints { session, update, all: update == 1, services }
}

async fn acked(acks: &mut UnboundedReceiver<Ack>, session: u64, applied: u64, drained: u64) {
    let wanted = Ack { session, applied, drained };
    let mut last = None;
    while last != Some(wanted) {
        last = timeout(LIMIT, acks.recv()).await.unwrap_or_else(|_| panic!("{last:?}"));
    }
}

#[tokio::test]
async fn without_a_port_updates_are_acknowledged_without_a_proxy() {
    let node = Node::new();
    let (proxy, mut acks) = Proxy::open(settings(&node));
    let gone = ServiceEndpoints { service: "web".parse().unwrap(), ports: Vec::new() };
    proxy.apply(endpoints(1, 1, Vec::new()));
    acked(&mut acks, 1, 1, 1).await;
    proxy.apply(endpoints(1, 2, vec![gone]));
    acked(&mut acks, 1, 2, 2).await;
    // A port that must not be opened needs no proxy either.
    proxy.apply(endpoints(1, 3, vec![service("web", 81, &[]), service("other", 20_001, &[])]));
    acked(&mut acks, 1, 3, 3).await;
    let troubles = proxy.troubles().borrow().clone();
    assert_eq!(troubles.len(), 2, "{troubles:?}");
    assert!(troubles[&20_001].contains("replica_ports"), "{troubles:?}");
    assert!(troubles[&81].contains("80, 443, 1024-65535"), "{troubles:?}");
    proxy.apply(endpoints(2, 1, Vec::new()));
    acked(&mut acks, 2, 1, 1).await;
    assert!(proxy.troubles().borrow().is_empty());
    proxy.close().await;
}

#[tokio::test]
async fn a_proxy_that_cannot_be_started_is_a_trouble_and_gets_everything_when_it_is_there() {
    let node = Node::new();
    let (link, mut acks) = Proxy::open(settings(&node));
    let (server, port) = (Server::echo().await, free_port());
    link.apply(endpoints(1, 1, vec![service("web", port, &[server])]));
    let mut troubles = link.troubles();
    let cannot =
        |all: &PortTroubles| all.get(&port).is_some_and(|why| why.contains("/nonexistent"));
    timeout(LIMIT, troubles.wait_for(cannot)).await.unwrap().unwrap();
    link.apply(endpoints(1, 2, vec![service("other", free_port(), &[])]));
    let first = node.proxy(LIMITS).await;
    acked(&mut acks, 1, 2, 2).await;
    assert!(link.troubles().borrow().is_empty());
    let client = || async move {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        greeting(&mut client).await.unwrap()
    };
    assert_eq!(client().await, server.port());

    // If it dies, the next one gets everything again.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = node.proxy(LIMITS).await;
    link.apply(endpoints(1, 3, Vec::new()));
    acked(&mut acks, 1, 3, 3).await;
    assert_eq!(client().await, server.port());
    link.close().await;
    assert!(!second.is_finished(), "it outlives the agent");
    second.abort();
}

#[tokio::test]
async fn the_next_link_finds_the_proxy_and_hears_nothing_about_earlier_sessions() {
    let node = Node::new();
    let proxy = node.proxy(LIMITS).await;
    let (server, port) = (Server::echo().await, free_port());
    let (first, mut acks) = Proxy::open(settings(&node));
    first.apply(endpoints(1, 1, vec![service("web", port, &[server])]));
    acked(&mut acks, 1, 1, 1).await;
    first.close().await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    greeting(&mut client).await.unwrap();

    let (second, mut acks) = Proxy::open(settings(&node));
    second.apply(endpoints(1, 5, Vec::new()));
    let first_ack = timeout(LIMIT, acks.recv()).await.unwrap().unwrap();
    assert_eq!(first_ack, Ack { session: 1, applied: 5, drained: 5 });
    // All services are gone. The connection drains.
    second.apply(Endpoints { all: true, ..endpoints(1, 6, Vec::new()) });
    acked(&mut acks, 1, 6, 5).await;
    drop(client);
    acked(&mut acks, 1, 6, 6).await;
    second.close().await;
    proxy.abort();
}

#[tokio::test]
async fn the_proxy_of_the_previous_run_ends_if_it_is_switched_off() {
    let node = Node::new();
    let proxy = node.proxy(LIMITS).await;
    let off = ProxySettings { ingress: ingress(IngressAddress::Off), ..settings(&node) };
    let (link, mut acks) = Proxy::open(off);
    timeout(LIMIT, proxy).await.unwrap().unwrap().unwrap();
    link.apply(endpoints(1, 1, vec![service("web", free_port(), &[])]));
    acked(&mut acks, 1, 1, 1).await;
    assert!(link.troubles().borrow().is_empty());
}

#[tokio::test]
async fn a_link_that_stops_its_proxy_waits_until_the_ports_are_closed() {
    let node = Node::new();
    let proxy = node.proxy(LIMITS).await;
    let port = free_port();
    let (link, mut acks) = Proxy::open(ProxySettings { stop_with_agent: true, ..settings(&node) });
    link.apply(endpoints(1, 1, vec![service("web", port, &[])]));
    acked(&mut acks, 1, 1, 1).await;
    link.close().await;
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    timeout(LIMIT, proxy).await.unwrap().unwrap().unwrap();
    assert!(find(&settings(&node)).await.unwrap().is_none());
}

#[test]
fn everything_is_sent_in_messages_of_bounded_length() {
    let mut wanted = Wanted::new(ingress(IngressAddress::All), Some(REPLICA_PORTS_DEFAULT));
    assert!(wanted.in_full().is_empty(), "nothing is known yet");
    let many: Vec<SocketAddr> = (1..=1_000).map(|port| ([10, 0, 0, 1], port).into()).collect();
    let services: Vec<_> = (0..20).map(|n| service(&format!("s{n}"), 1024 + n, &many)).collect();
    for (number, service) in (1..).zip(services) {
        wanted.apply(GENERATION, number, number == 1, vec![service]);
    }
    let updates = wanted.in_full();
    assert!(updates.len() > 1);
    for (index, update) in updates.iter().enumerate() {
        let mut bytes = Vec::new();
        put(&mut bytes, &ToProxy::Endpoints(update.clone())).unwrap();
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        assert_eq!(update.all, index == 0);
        assert_eq!(update.number, if index + 1 == updates.len() { 20 } else { 0 });
    }
    assert_eq!(updates.iter().map(|update| update.services.len()).sum::<usize>(), 20);
}
