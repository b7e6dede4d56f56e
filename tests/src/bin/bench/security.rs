//! The cost of TLS and the guard, compared with plain sockets on loopback.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podmesh_protocol::access::{Caller, JoinRequest, PublicKey, Role};
use podmesh_protocol::codec::{decode, encode};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{AttemptId, ClusterId, Epoch, JobId, Name};
use podmesh_protocol::report::{Report, ReportFact};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::mesh::Mesh;
use podmesh_wire::Service;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::control::{ManagerSocket, PeerSocket};
use podmesh_wire::front::{Admission, Front, FrontConfig, Gate, Who};
use podmesh_wire::key::KeyPair;
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::route::{Credentials, Duplex, Route};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use zeromq::{DealerSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::rig::{Rig, job};
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5_000;
const ONE_WAY: u64 = 200_000;
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    dispatch(table);
    let runtime = Runtime::new().unwrap();
    let (plain_rate, mut plain) = runtime.block_on(plain());
    let (rate, mut secured) = runtime.block_on(secured());
    let name = "messages/s, agent to manager, TLS and guard against plain TCP";
    table.ratio(name, rate, plain_rate, "/s", "");
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let ours = percentile(&mut secured, share).as_secs_f64() * 1e6;
        let theirs = percentile(&mut plain, share).as_secs_f64() * 1e6;
        table.figure(
            &format!("round trip, TLS and guard minus plain TCP, {name}"),
            format!("{ours:.0} µs - {theirs:.0} µs = {:.0} µs", ours - theirs),
            "100 µs",
        );
    }
}

/// Measures no-op tasks with agents over TLS and with agents over unix sockets.
fn dispatch(table: &mut Table) {
    let rate = |local: bool| {
        let mut mesh = Mesh::new(std::env::current_exe().unwrap());
        mesh.start_manager();
        for name in ["a", "b"] {
            if local {
                mesh.spawn_local_agent(name, &FLAGS);
            } else {
                mesh.spawn_agent(name, &FLAGS);
            }
            mesh.wait_for_node(name, "alive");
        }
        let rig = Rig::of(mesh);
        rig.rate(job(RuntimeSpec::Noop, &[], 10_000));
        median((0..3).map(|_| rig.rate(job(RuntimeSpec::Noop, &[], 100_000))).collect())
    };
    let (mut tls, mut unix) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        tls.push(rate(false));
        unix.push(rate(true));
    }
    let name = "no-op tasks/s, agents over TLS against unix sockets";
    table.ratio(name, median(tls), median(unix), "/s", "0.8");
}

/// Returns a typical small message of an agent.
fn message() -> ToManager {
    let report = |n| Report(n, AttemptId::new(JobId(1), 1, 1), ReportFact::Started);
    ToManager::Reports(Epoch(1), (0..16).map(report).collect())
}

/// Measures messages per second one way, and the times of round trips, with plain ZeroMQ.
async fn plain() -> (f64, Vec<Duration>) {
    let mut router = RouterSocket::new();
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let mut dealer = DealerSocket::new();
    dealer.connect(&endpoint.to_string()).await.unwrap();
    let answer = encode(&ToPeer::HelloAgain(Epoch(1))).unwrap();
    let server = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let received = router.recv().await.unwrap();
            decode::<ToManager>(received.get(1).unwrap()).unwrap();
            let mut reply = ZmqMessage::from(received.get(0).unwrap().clone());
            reply.push_back(answer.clone().into());
            router.send(reply).await.unwrap();
        }
        for _ in 0..ONE_WAY {
            let received = router.recv().await.unwrap();
            decode::<ToManager>(received.get(1).unwrap()).unwrap();
        }
    });
    let message = message();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        dealer.send(ZmqMessage::from(encode(&message).unwrap())).await.unwrap();
        dealer.recv().await.unwrap();
        times.push(began.elapsed());
    }
    let began = Instant::now();
    for _ in 0..ONE_WAY {
        dealer.send(ZmqMessage::from(encode(&message).unwrap())).await.unwrap();
    }
    server.await.unwrap();
    (per_second(began), times)
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
fn per_second(began: Instant) -> f64 {
    ONE_WAY as f64 / began.elapsed().as_secs_f64()
}

/// Measures the same through the front, the guard and TLS.
async fn secured() -> (f64, Vec<Duration>) {
    let folder = tempfile::tempdir().unwrap();
    let keys = ManagerKeys::load_or_create(folder.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let (front, inner) = Front::bind(FrontConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        keys: ShownKeys::new(&keys).unwrap(),
        local_dir: folder.path().join("local"),
        group: None,
        private_dir: folder.path().join("private"),
    })
    .unwrap();
    let addresses = vec![ManagerAddress::from(front.address())];
    let socket = ManagerSocket::bind(inner.control).await.unwrap();
    let (mut receiver, mut sender) = socket.split();
    let running = tokio::spawn(front.run(Arc::new(OpenGate::default())));
    let credentials = Arc::new(Credentials::new(key, keys.digests().into()));
    let route = Route::Remote { addresses, credentials };
    let (mut peer_receiver, mut peer_sender) = PeerSocket::connect(&route).await.unwrap().split();
    let server = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let received = receiver.recv().await.unwrap();
            sender.send(&received.peer, &ToPeer::HelloAgain(Epoch(1))).await.unwrap();
        }
        for _ in 0..ONE_WAY {
            receiver.recv().await.unwrap();
        }
    });
    let message = message();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        peer_sender.send(&message).await.unwrap();
        peer_receiver.recv().await.unwrap();
        times.push(began.elapsed());
    }
    let began = Instant::now();
    for _ in 0..ONE_WAY {
        peer_sender.send(&message).await.unwrap();
    }
    server.await.unwrap();
    running.abort();
    (per_second(began), times)
}

/// A gate that admits everybody.
#[derive(Default)]
struct OpenGate {
    last: AtomicU64,
}

impl Gate for OpenGate {
    fn admit(&self, _: Who, _: Service, _: AbortHandle) -> Result<Admission, ErrorReply> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Admission {
            caller: Caller { role: Role::Agent, name: "a".parse().unwrap(), key: None },
            identity: u128::from(number).to_be_bytes(),
            ended: Box::new(|_| ()),
        })
    }

    async fn join(
        &self,
        _: PublicKey,
        _: JoinRequest,
    ) -> Result<(ClusterId, Role, Name), ErrorReply> {
        Err(ErrorReply::new(ErrorCode::InvalidToken, "nobody joins here"))
    }

    async fn heartbeats(&self, _: Caller, _: Box<dyn Duplex>, _: AbortHandle) {}

    fn refused(&self, _: Option<IpAddr>, why: &str) {
        panic!("{why}");
    }
}
