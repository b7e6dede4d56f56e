//! What clients and replicas see.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[tokio::test]
async fn connections_are_spread_over_the_endpoints() {
    let servers = [Server::echo().await, Server::echo().await, Server::echo().await];
    let rig = Rig::new(&servers).await;
    let mut clients = Vec::new();
    let mut spread = BTreeMap::new();
    for _ in 0..9 {
        let mut client = rig.client().await;
        *spread.entry(greeting(&mut client).await.unwrap()).or_insert(0) += 1;
        clients.push(client);
    }
    assert!(spread.len() == 3 && spread.values().all(|count| *count == 3), "{spread:?}");
}

#[tokio::test]
async fn another_endpoint_serves_if_the_first_refuses() {
    let server = Server::echo().await;
    let rig = Rig::new(&[nobody().await, server, nobody().await]).await;
    for _ in 0..20 {
        assert_eq!(rig.visit().await.unwrap().1, server.port());
    }
}

#[tokio::test]
async fn a_client_is_reset_if_no_endpoint_can_be_reached() {
    let mut rig = Rig::new(&[nobody().await, nobody().await]).await;
    let error = rig.visit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    rig.agent.apply(update(2, vec![service("web", rig.port, &[])])).await;
    let error = rig.visit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let counters = rig.agent.status(|status| status.counters.failed == 2).await.counters;
    assert_eq!((counters.accepted, counters.refused, counters.open), (2, 0, 0));
}

#[tokio::test]
async fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let server = Server::new().await;
    let rig = Rig::new(&[server.address]).await;
    let mut client = rig.client().await;
    let mut replica = server.accept().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut replica).await.unwrap(), b"question");
    replica.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    timeout(LIMIT, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"answer");
    drop(replica);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn a_replica_that_has_finished_sending_still_gets_the_rest() {
    let server = Server::new().await;
    let rig = Rig::new(&[server.address]).await;
    let mut client = rig.client().await;
    let mut replica = server.accept().await;
    replica.write_all(b"answer").await.unwrap();
    replica.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"answer");
    client.write_all(b"question").await.unwrap();
    drop(client);
    assert_eq!(read_to_end(&mut replica).await.unwrap(), b"question");
}

#[tokio::test]
async fn a_replica_that_breaks_off_is_not_taken_for_one_that_has_finished() {
    let server = Server::new().await;
    let mut rig = Rig::new(&[server.address]).await;
    let mut client = rig.client().await;
    let mut replica = server.accept().await;
    replica.write_all(b"half an ans").await.unwrap();
    let mut half = [0; 11];
    timeout(LIMIT, client.read_exact(&mut half)).await.unwrap().unwrap();
    replica.set_zero_linger().unwrap();
    drop(replica);
    let error = read_to_end(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    rig.agent.status(|status| status.counters.open == 0 && status.counters.bytes == 11).await;
}

#[tokio::test]
async fn a_client_that_breaks_after_it_has_finished_sending_is_noticed() {
    let server = Server::new().await;
    let rig = Rig::new(&[server.address]).await;
    let mut client = rig.client().await;
    let mut replica = server.accept().await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut replica).await.unwrap(), b"");
    client.set_zero_linger().unwrap();
    drop(client);
    // The replica sends nothing, and reads no more: only an error can tell.
    let ready = timeout(LIMIT, replica.ready(tokio::io::Interest::ERROR)).await.unwrap().unwrap();
    assert!(ready.is_error(), "{ready:?}");
}

#[tokio::test]
async fn bytes_arrive_unchanged_in_both_directions_at_once() {
    let server = Server::echo().await;
    let rig = Rig::new(&[server]).await;
    let mut client = rig.client().await;
    greeting(&mut client).await.unwrap();
    let sent: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut reader, mut writer) = client.split();
    let send = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let receive = async { timeout(LIMIT, reader.read_to_end(&mut received)).await.unwrap() };
    let ((), result) = tokio::join!(send, receive);
    result.unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
}

#[tokio::test]
async fn a_replica_that_asks_for_it_learns_the_client_s_address() {
    let server = Server::new().await;
    let mut rig = Rig::new(&[]).await;
    let mut asked = service("web", rig.port, &[server.address]);
    asked.ports[0].proxy_protocol = true;
    rig.agent.apply(update(2, vec![asked])).await;
    let mut client = rig.client().await;
    let mut replica = server.accept().await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let (from, to) = (client.local_addr().unwrap().port(), rig.port);
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    expected.extend([127, 0, 0, 1, 127, 0, 0, 1]);
    expected.extend(from.to_be_bytes());
    expected.extend(to.to_be_bytes());
    expected.extend(b"hello");
    assert_eq!(read_to_end(&mut replica).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_cannot_take_more_than_the_limit() {
    const LIMIT: usize = 400;
    podmesh_wire::machine::raise_open_files();
    let server = Server::echo().await;
    let limits = Limits { total: LIMIT + 100, service: LIMIT };
    let mut rig = Rig::with(limits, &[server]).await;
    let mut served = Vec::new();
    for _ in 0..10_000 {
        match rig.visit().await {
            Ok((client, _)) => served.push(client),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(served.len(), LIMIT);
    let refused = (10_000 - LIMIT) as u64;
    rig.agent.status(|status| status.counters.refused == refused).await;
    // Those that were served are not affected, and their end makes room.
    for client in &mut served {
        client.write_u16(7).await.unwrap();
        assert_eq!(greeting(client).await.unwrap(), 7);
    }
    served.clear();
    rig.agent.status(|status| status.counters.open == 0).await;
    rig.visit().await.unwrap();
}

#[tokio::test]
async fn a_removed_endpoint_keeps_its_connections_and_gets_no_others() {
    let (old, new) = (Server::echo().await, Server::echo().await);
    let mut rig = Rig::new(&[old]).await;
    let mut long = rig.client().await;
    assert_eq!(greeting(&mut long).await.unwrap(), old.port());
    let status = rig.agent.apply(update(2, vec![service("web", rig.port, &[new])])).await;
    assert_eq!((status.applied, status.drained), (2, 1));
    for _ in 0..5 {
        assert_eq!(rig.visit().await.unwrap().1, new.port());
    }
    long.write_u16(5).await.unwrap();
    assert_eq!(greeting(&mut long).await.unwrap(), 5);
    // An update without a removal changes nothing about it.
    let status = rig.agent.apply(update(3, vec![service("web", rig.port, &[new])])).await;
    assert_eq!((status.applied, status.drained), (3, 1));
    drop(long);
    rig.agent.status(|status| status.drained == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_lose_no_connection() {
    let servers = [Server::echo().await, Server::echo().await, Server::echo().await];
    let mut rig = Rig::new(&servers[..2]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let (stop, port) = (Arc::clone(&stop), rig.port);
        lanes.push(tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                greeting(&mut client).await.unwrap();
                client.write_all(b"what is sent comes back").await.unwrap();
                client.shutdown().await.unwrap();
                let back = read_to_end(&mut client).await.unwrap();
                assert_eq!(back, b"what is sent comes back");
                count += 1;
            }
            count
        }));
    }
    for number in 2..300 {
        let one = servers[usize::try_from(number).unwrap() % 3];
        let other = servers[usize::try_from(number + 1).unwrap() % 3];
        rig.agent.apply(update(number, vec![service("web", rig.port, &[one, other])])).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut count = 0;
    for lane in lanes {
        count += lane.await.unwrap();
    }
    assert!(count > 100, "{count} connections");
    rig.agent.status(|status| status.drained == 299).await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_opened_when_it_is_free() {
    let server = Server::echo().await;
    let mut rig = Rig::new(&[server]).await;
    let other = Server::new().await;
    let taken = other.address.port();
    let services = vec![service("web", taken, &[server])];
    let status = rig.agent.apply(update(2, services)).await;
    let trouble = status.troubles[&taken].clone();
    assert!(trouble.contains("another program listens"), "{trouble}");
    // Its previous port is closed.
    let error = TcpStream::connect(("127.0.0.1", rig.port)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(other);
    rig.agent.status(|status| status.troubles.is_empty()).await;
    rig.port = taken;
    assert_eq!(rig.visit().await.unwrap().1, server.port());
}
