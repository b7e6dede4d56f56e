//! The front against unidentified peers, hostile input, and revoked keys.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::time::Duration;

use podmesh_protocol::access::{JoinToken, KeyDigest, Role, TokenId, TokenSecret};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::{Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{Epoch, Revision};
use podmesh_protocol::limits::{HANDSHAKE_MS_MAX, HANDSHAKES_PER_ADDRESS_MAX};
use podmesh_protocol::session::ToManager;
use podmesh_wire::WireError;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::{ENROLMENT_FILE, Enrolment, EnrolmentError, KEY_FILE};
use podmesh_wire::guard::zmtp::ready_frame;
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use podmesh_wire::key::{KeyPair, digest_of};
use podmesh_wire::publish::Subscriber;
use podmesh_wire::route::Route;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use support::{PATIENCE, SECRET, TestManager, route};

/// Sends a goodbye and waits for it to arrive: the manager works.
async fn is_well(manager: &mut TestManager) {
    for route in manager.routes() {
        let (_receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
        sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
        manager.next_goodbye().await;
    }
}

/// Waits until the other end has closed the stream. Returns what it sent before.
async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap() {
            Ok(0) | Err(_) => return said,
            Ok(count) => said.extend(&buffer[..count]),
        }
    }
}

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn giant(flags: u8, length: u64) -> Vec<u8> {
    [&[flags][..], &length.to_be_bytes()].concat()
}

#[tokio::test]
async fn hostile_bytes_end_only_their_own_connection() {
    let mut manager = TestManager::start().await;
    for length in [1 << 33, 1 << 47, 1 << 62, u64::MAX] {
        for flags in [0b010, 0b110] {
            let bytes = [greeting(), giant(flags, length)].concat();
            // Over the network without a key: no TLS handshake, no access.
            let mut stranger = TcpStream::connect(manager.address).await.unwrap();
            stranger.write_all(&bytes).await.unwrap();
            closed(&mut stranger).await;
            // On this machine: the guard.
            let mut neighbour =
                UnixStream::connect(manager.local.path().join("control.sock")).await.unwrap();
            neighbour.write_all(&bytes).await.unwrap();
            closed(&mut neighbour).await;
            // And after a handshake.
            let mut neighbour =
                UnixStream::connect(manager.local.path().join("control.sock")).await.unwrap();
            let bytes =
                [greeting(), ready_frame("DEALER", b"chosen"), giant(flags, length)].concat();
            neighbour.write_all(&bytes).await.unwrap();
            closed(&mut neighbour).await;
        }
    }
    manager.gate.refused_for("over the limit").await;
    is_well(&mut manager).await;
}

#[tokio::test]
async fn a_peer_cannot_choose_its_identity() {
    let mut manager = TestManager::start().await;
    let path = manager.local.path().join("control.sock");
    let mut peers = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        // A goodbye of session 1, as a message of one frame.
        let goodbye = podmesh_protocol::codec::encode(&ToManager::Goodbye(Epoch(1))).unwrap();
        let message = [&[0, goodbye.len() as u8][..], &goodbye].concat();
        let bytes = [greeting(), ready_frame("DEALER", b"mine"), message].concat();
        stream.write_all(&bytes).await.unwrap();
        peers.push(manager.next_goodbye().await);
        streams.push(stream);
    }
    assert_ne!(peers[0], peers[1]);
    assert!(peers.iter().all(|peer| **peer != *b"mine" && peer.len() == 16), "{peers:?}");
}

#[tokio::test]
async fn a_socket_of_another_type_is_disconnected() {
    let mut manager = TestManager::start().await;
    for (socket, kind) in
        [("control.sock", "ROUTER"), ("control.sock", "SUB"), ("publications.sock", "DEALER")]
    {
        let mut stream = UnixStream::connect(manager.local.path().join(socket)).await.unwrap();
        let bytes = [greeting(), ready_frame(kind, b"")].concat();
        stream.write_all(&bytes).await.unwrap();
        closed(&mut stream).await;
        manager.gate.refused_for(&format!("wrong type: {kind}")).await;
    }
    is_well(&mut manager).await;
}

#[tokio::test]
async fn an_unknown_key_gets_an_error() {
    let mut manager = TestManager::start().await;
    let stranger = route(manager.address, KeyPair::generate().unwrap(), manager.key);
    let error = PeerSocket::connect(&stranger).await.err().unwrap();
    let WireError::Refused { error: ErrorReply { message, .. }, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(message.contains("not known"), "{error}");
    assert!(stranger.heartbeats().await.is_err());
    is_well(&mut manager).await;
}

#[tokio::test]
async fn a_manager_with_another_key_is_an_error() {
    let manager = TestManager::start().await;
    let other = KeyPair::generate().unwrap().public();
    let wrong = route(manager.address, KeyPair::generate().unwrap(), other);
    let error = PeerSocket::connect(&wrong).await.err().unwrap();
    assert!(matches!(error, WireError::WrongKey { .. }), "{error:?}");
    assert!(error.to_string().contains("join again"), "{error}");
}

#[tokio::test]
async fn a_peer_that_connected_before_knows_the_next_key() {
    let mut manager = TestManager::start().await;
    is_well(&mut manager).await;
    let mut keys = support::test_keys();
    std::mem::swap(&mut keys.current, &mut manager.keys.next);
    manager.shown.replace(&keys).unwrap();
    is_well(&mut manager).await;
    // Now the key after it is known, and the first one is not any longer.
    std::mem::swap(&mut keys.current, &mut manager.keys.current);
    manager.shown.replace(&keys).unwrap();
    let error = PeerSocket::connect(&manager.remote).await.err().unwrap();
    assert!(matches!(error, WireError::WrongKey { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_a_manager_is_recognized() {
    let listener = tokio::net::TcpListener::bind(support::ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let other = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        closed(&mut stream).await;
    });
    let key = KeyPair::generate().unwrap();
    let manager = key.public();
    let error = PeerSocket::connect(&route(address, key, manager)).await.err().unwrap();
    assert!(matches!(error, WireError::NotAManager { .. }), "{error:?}");
    other.await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_is_disconnected_and_cannot_reconnect() {
    let mut manager = TestManager::start().await;
    let key = KeyPair::generate().unwrap();
    manager.gate.keys.lock().unwrap().push((key.public(), Role::Viewer));
    let public = key.public();
    let route = route(manager.address, key, manager.key);
    let (mut receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    let peer = manager.next_goodbye().await;

    manager.gate.keys.lock().unwrap().retain(|(known, _)| *known != public);
    let who = podmesh_wire::front::Who::Key(public);
    for (of, _, cut) in manager.gate.cuts.lock().unwrap().iter() {
        if *of == who {
            cut.abort();
        }
    }
    let error = timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap_err();
    assert!(matches!(error, WireError::Disconnected), "{error:?}");
    manager.gone(&peer).await;
    // The earlier handshake does not help.
    let error = PeerSocket::connect(&route).await.err().unwrap();
    assert!(matches!(error, WireError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn after_joining_with_a_token_only_the_folder_is_needed() {
    let mut manager = TestManager::start().await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("agent");
    let name = "n1".parse().unwrap();
    let nobody = tokio::net::TcpListener::bind(support::ANY_PORT).await.unwrap();
    let closed = nobody.local_addr().unwrap();
    drop(nobody);
    let token = JoinToken {
        addresses: vec![closed.to_string(), manager.address.to_string()],
        manager: digest_of(&manager.key),
        id: TokenId(1),
        secret: TokenSecret([8; 16]),
    };
    let error = Enrolment::join(&dir, &token, &name).await.unwrap_err();
    assert!(error.to_string().contains("no such token"), "{error}");
    assert!(matches!(Enrolment::load(&dir), Err(EnrolmentError::None { .. })));

    let wrong = JoinToken { manager: KeyDigest([1; 32]), secret: SECRET, ..token.clone() };
    let error = Enrolment::join(&dir, &wrong, &name).await.unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");

    let token = JoinToken { secret: SECRET, ..token };
    let joined = Enrolment::join(&dir, &token, &name).await.unwrap();
    // The address at which it was found is now the first.
    assert_eq!(joined.addresses[0], manager.address.to_string());
    assert_eq!(Enrolment::load(&dir).unwrap(), joined);
    for file in [KEY_FILE, ENROLMENT_FILE] {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(dir.join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
    }
    let route = joined.route(&dir, None).unwrap();
    let (_receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    manager.next_goodbye().await;
}

#[tokio::test]
async fn heartbeats_arrive_with_their_sender() {
    let mut manager = TestManager::start().await;
    for (route, role) in manager.routes().into_iter().zip([Role::Operator, Role::Admin]) {
        let mut stream = route.heartbeats().await.unwrap();
        let beat = Beat { epoch: Epoch(4), sequence: 1 };
        write_beat(&mut stream, &beat).await.unwrap();
        assert_eq!(timeout(PATIENCE, read_beat(&mut stream)).await.unwrap().unwrap(), beat);
        // Its end is noticed at once.
        drop(stream);
        for expected in [Some(beat), None] {
            let (caller, received) =
                timeout(PATIENCE, manager.heartbeats.recv()).await.unwrap().unwrap();
            assert_eq!((caller.role, received), (role, expected));
        }
    }
}

#[tokio::test]
async fn an_agent_can_only_subscribe_to_the_topic_manager() {
    let mut manager = TestManager::start().await;
    let key = KeyPair::generate().unwrap();
    manager.gate.keys.lock().unwrap().push((key.public(), Role::Agent));
    let route = route(manager.address, key, manager.key);
    let mut subscriber = Subscriber::connect(&route, &[TOPIC_MANAGER]).await.unwrap();
    let beacon = Published::Manager {
        instance: podmesh_protocol::ids::InstanceId(uuid::Uuid::nil()),
        revision: Revision(1),
        stopping: false,
    };
    let received = timeout(PATIENCE, async {
        loop {
            manager.publisher.publish(TOPIC_MANAGER, &beacon).await.unwrap();
            tokio::select! {
                received = subscriber.recv() => return received.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
    });
    assert_eq!(received.await.unwrap(), beacon);

    let mut curious = Subscriber::connect(&route, &[TOPIC_EVENTS]).await.unwrap();
    let error = timeout(PATIENCE, curious.recv()).await.unwrap().unwrap_err();
    assert!(matches!(error, WireError::Disconnected), "{error:?}");
    manager.gate.refused_for("not an allowed subscription").await;
}

#[tokio::test]
async fn a_silent_peer_is_disconnected_and_others_connect_meanwhile() {
    let mut manager = TestManager::start().await;
    let mut idle = Vec::new();
    while idle.len() < HANDSHAKES_PER_ADDRESS_MAX + 1 {
        idle.push(TcpStream::connect(manager.address).await.unwrap());
    }
    manager.gate.refused_for("HANDSHAKES_PER_ADDRESS_MAX").await;
    // Peers that connected before, or are on this machine, do not notice.
    let local = Route::Local(manager.local.path().into());
    let (_receiver, mut sender) = PeerSocket::connect(&local).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    manager.next_goodbye().await;
    for mut stream in idle {
        closed(&mut stream).await;
    }
    manager.gate.refused_for("took longer").await;
    is_well(&mut manager).await;
    assert!(Duration::from_millis(HANDSHAKE_MS_MAX) < PATIENCE);
}
