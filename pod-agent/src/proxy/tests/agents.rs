//! Agents that come and go.

use super::*;

#[tokio::test]
async fn the_last_endpoints_are_served_while_no_agent_is_connected() {
    let server = Server::echo().await;
    let mut rig = Rig::new(&[server]).await;
    let mut long = rig.client().await;
    greeting(&mut long).await.unwrap();
    // When the proxy has closed its side, it knows that the agent is gone.
    rig.agent.writer.shutdown().await.unwrap();
    while rig.agent.hear().await.is_some() {}
    rig.visit().await.unwrap();
    long.write_u16(9).await.unwrap();
    assert_eq!(greeting(&mut long).await.unwrap(), 9);
    assert!(!rig.proxy.is_finished());
    // The next agent learns the state.
    let status = rig.node.agent().await.status(|_| true).await;
    assert_eq!((status.generation, status.applied, status.drained), (Some(GENERATION), 1, 1));
}

#[tokio::test]
async fn an_agent_that_was_replaced_is_ignored() {
    let server = Server::echo().await;
    let mut rig = Rig::new(&[server]).await;
    let mut next = rig.node.agent().await;
    rig.agent.say(&ToProxy::Endpoints(update(2, Vec::new()))).await;
    rig.agent.say(&ToProxy::End).await;
    let generation = Generation { session: 2, ..GENERATION };
    let status = Update { generation, ..update(3, vec![service("web", rig.port, &[server])]) };
    let status = next.apply(status).await;
    assert_eq!((status.generation, status.applied), (Some(generation), 3));
    rig.visit().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_be_served_is_told_why() {
    let rig = Rig::new(&[Server::echo().await]).await;
    for (change, says) in [
        ((|hello| hello.agent = Uuid::nil()) as fn(&mut Hello), "another agent"),
        (|hello| (hello.version, hello.version_oldest) = (VERSION + 2, VERSION + 1), "versions"),
        (|hello| (hello.version, hello.version_oldest) = (0, 0), "versions"),
    ] {
        let mut hello = rig.node.hello();
        change(&mut hello);
        let mut agent = rig.node.connect(hello).await;
        let Some(ToAgent::Refused { message }) = agent.hear().await else { panic!("welcome") };
        assert!(message.contains(says), "{message}");
        assert!(agent.hear().await.is_none());
    }
    // A newer agent that supports this version is served.
    let hello = Hello { version: VERSION + 1, ..rig.node.hello() };
    let mut agent = rig.node.connect(hello).await;
    assert!(matches!(agent.hear().await, Some(ToAgent::Welcome { version: VERSION, .. })));
    rig.visit().await.unwrap();
}

#[tokio::test]
async fn the_proxy_ends_when_it_is_told_to() {
    let server = Server::echo().await;
    let mut rig = Rig::new(&[server]).await;
    rig.agent.say(&ToProxy::End).await;
    timeout(LIMIT, &mut rig.proxy).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
    let run_dir = RunDir::open(rig.node.dir.path(), Kind::Proxy).unwrap();
    assert!(run_dir.connect().is_err());
    assert_eq!(fs::read_to_string(run_dir.lock_path()).unwrap(), "");
}

#[tokio::test]
async fn the_proxy_ends_with_its_agent_if_requested() {
    let node = Node::new();
    let proxy = node.proxy(LIMITS).await;
    let agent = node.connect(Hello { stop_with_agent: true, ..node.hello() }).await;
    // The next agent decides anew.
    let mut next = node.connect(node.hello()).await;
    assert!(matches!(next.hear().await, Some(ToAgent::Welcome { .. })));
    drop(agent);
    next.apply(update(1, vec![service("web", free_port(), &[])])).await;
    assert!(!proxy.is_finished());
    drop(next);
    let mut last = node.connect(Hello { stop_with_agent: true, ..node.hello() }).await;
    assert!(matches!(last.hear().await, Some(ToAgent::Welcome { .. })));
    drop(last);
    timeout(LIMIT, proxy).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_proxy_without_ports_ends() {
    let node = Node::new();
    let proxy = node.proxy(LIMITS).await;
    let agent = node.agent().await;
    timeout(LIMIT, proxy).await.unwrap().unwrap().unwrap();
    drop(agent);
}

#[tokio::test]
async fn another_listen_address_moves_the_listeners_and_not_the_connections() {
    let server = Server::echo().await;
    let rig = Rig::new(&[server]).await;
    let mut long = rig.client().await;
    greeting(&mut long).await.unwrap();
    let hello = Hello { listen: vec!["127.0.0.2".parse().unwrap()], ..rig.node.hello() };
    let mut agent = rig.node.connect(hello).await;
    assert!(matches!(agent.hear().await, Some(ToAgent::Welcome { .. })));
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
    let mut moved = TcpStream::connect(("127.0.0.2", rig.port)).await.unwrap();
    assert_eq!(greeting(&mut moved).await.unwrap(), server.port());
    long.write_u16(3).await.unwrap();
    assert_eq!(greeting(&mut long).await.unwrap(), 3);
}

#[tokio::test]
async fn several_listen_addresses_are_open_together() {
    let server = Server::echo().await;
    let rig = Rig::new(&[server]).await;
    let listen = ["127.0.0.2", "127.0.0.3"].map(|address| address.parse().unwrap()).to_vec();
    let mut agent = rig.node.connect(Hello { listen, ..rig.node.hello() }).await;
    assert!(matches!(agent.hear().await, Some(ToAgent::Welcome { .. })));
    for address in ["127.0.0.2", "127.0.0.3"] {
        let mut client = TcpStream::connect((address, rig.port)).await.unwrap();
        assert_eq!(greeting(&mut client).await.unwrap(), server.port());
    }
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
}

#[tokio::test]
async fn there_is_one_proxy() {
    let node = Node::new();
    let first = node.proxy(LIMITS).await;
    // The second one says that it is ready, and returns, because the first one serves.
    let second = node.proxy(LIMITS).await;
    timeout(LIMIT, second).await.unwrap().unwrap().unwrap();
    assert!(!first.is_finished());
    first.abort();
}
