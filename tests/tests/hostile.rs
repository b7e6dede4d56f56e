//! Bytes that no honest peer sends, to a running manager: they get an error and do no harm.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use podmesh_protocol::client::{Request, RequestBody};
use podmesh_protocol::codec::{decode, encode};
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::ids::{AttemptId, Epoch, JobId};
use podmesh_protocol::limits::CONNECTIONS_PER_KEY_MAX;
use podmesh_protocol::report::{Outcome, Report, ReportFact};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::PATIENCE;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

async fn ask(socket: &mut DealerSocket, bytes: Vec<u8>) -> ToPeer {
    socket.send(ZmqMessage::from(bytes)).await.unwrap();
    let answer = timeout(PATIENCE, socket.recv()).await.unwrap().unwrap();
    decode(answer.get(0).unwrap()).unwrap()
}

#[tokio::test]
async fn truncated_invalid_stale_and_random_messages_are_answered_with_an_error() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mut socket = DealerSocket::new();
    let control = mesh.data_dir().join("run/control.sock");
    socket.connect(&format!("ipc://{}", control.display())).await.unwrap();
    let info = ToManager::Request(Request { version: 1, id: 7, body: RequestBody::Info });
    let good = encode(&info).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect()
    };
    let mut bad =
        vec![good[..good.len() - 1].to_vec(), vec![], vec![0xc1], b"GET / HTTP/1.1".to_vec()];
    bad.extend((0..100).map(|length| random(length * 37)));
    for bytes in bad {
        let answer = ask(&mut socket, bytes.clone()).await;
        let ToPeer::Error(error) = answer else { unreachable!("{answer:?} to {bytes:?}") };
        assert_eq!(error.code, ErrorCode::BadMessage, "{error}");
    }
    let other = ToManager::Request(Request { version: 999, id: 8, body: RequestBody::Info });
    let ToPeer::Reply(reply) = ask(&mut socket, encode(&other).unwrap()).await else {
        unreachable!()
    };
    assert_eq!(reply.result.unwrap_err().code, ErrorCode::UnsupportedVersion);
    // Reports of a session that does not exist change nothing, and get an error.
    let attempt = AttemptId::new(JobId(1), 1, 1);
    let report = Report(1, attempt, ReportFact::Ended(Outcome::exited(0)));
    let stale = encode(&ToManager::Reports(Epoch(99), vec![report])).unwrap();
    assert_eq!(ask(&mut socket, stale).await, ToPeer::HelloAgain(Epoch(99)));
    let goodbye = encode(&ToManager::Goodbye(Epoch(1))).unwrap();
    assert_eq!(ask(&mut socket, goodbye).await, ToPeer::HelloAgain(Epoch(1)));
    // The same socket and everybody else continue undisturbed.
    let ToPeer::Reply(reply) = ask(&mut socket, good).await else { unreachable!() };
    assert_eq!(reply.id, 7);
    assert_eq!(mesh.ok(&["run", "--", "echo", "unharmed"]), "unharmed\n");
}

#[test]
fn invalid_heartbeats_end_only_their_own_stream() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n........".as_slice(),
        &[0; 20],
        b"PMHB\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\x01",
    ] {
        let socket = mesh.data_dir().join("run/heartbeats.sock");
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Reset or closed: either way the stream has ended without an answer.
        _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert_eq!(mesh.ok(&["run", "--", "echo", "unharmed"]), "unharmed\n");
    assert_eq!(mesh.nodes()[0]["state"], "alive");
}

/// Opens idle connections of strangers, from several loopback addresses.
fn idle_strangers(mesh: &Mesh, count: u32) -> Vec<TcpStream> {
    let to: SocketAddr = mesh.address().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connect = |number: u32| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let from = Ipv4Addr::from(0x7f00_0100 + number % 16);
        socket.bind((from, 0).into()).unwrap();
        runtime.block_on(socket.connect(to)).ok()?.into_std().ok()
    };
    (0..count).filter_map(connect).collect()
}

#[test]
fn strangers_do_not_take_the_last_open_files() {
    // Fewer than a shell's default, and few enough for strangers to use them all.
    let mut mesh = Mesh::new(PODMESH).manager_open_files(160);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let connected = || mesh.ok(&["events"]).matches("node a connected").count();
    let strangers = idle_strangers(&mesh, 500);
    for _ in 0..5 {
        assert_eq!(mesh.ok(&["run", "--", "echo", "unharmed"]), "unharmed\n");
    }
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    drop(strangers);
    let again = idle_strangers(&mesh, 500);
    assert_eq!(mesh.ok(&["run", "--", "echo", "unharmed"]), "unharmed\n");
    assert_eq!(connected(), 1, "the agent never lost its session");
    assert!(mesh.ok(&["events"]).contains("HANDSHAKES"), "the strangers were reported");
    drop(again);
}

#[tokio::test]
async fn members_on_the_network_do_not_take_the_last_open_files() {
    let mut mesh = Mesh::new(PODMESH).manager_open_files(160);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let mut routes = Vec::new();
    for number in 0..4 {
        let name = format!("viewer-{number}");
        let dir = mesh.folder().join(&name);
        std::fs::create_dir(&dir).unwrap();
        let token = mesh.token("viewer").parse().unwrap();
        let enrolment = Enrolment::join(&dir, &token, &name.parse().unwrap()).await.unwrap();
        routes.push(enrolment.route(&dir, None).unwrap());
    }
    let mut held = Vec::new();
    for route in &routes {
        // As many as one key may have. All of them together are more than the files allow.
        for _ in 0..CONNECTIONS_PER_KEY_MAX {
            held.extend(PeerSocket::connect(route).await.ok());
        }
    }
    let refused = routes.len() * CONNECTIONS_PER_KEY_MAX - held.len();
    assert!(refused > 100, "only {refused} connections were refused");
    for _ in 0..5 {
        assert_eq!(mesh.ok(&["run", "--", "echo", "unharmed"]), "unharmed\n");
    }
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    let events = mesh.ok(&["events"]);
    assert_eq!(events.matches("node a connected").count(), 1, "{events}");
    assert!(events.contains("the limit on open files"), "{events}");
}
