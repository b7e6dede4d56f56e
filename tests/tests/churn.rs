//! Many short-lived connections during work: the manager always answers.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use podmesh_protocol::client::RequestBody;
use podmesh_protocol::event::TOPIC_EVENTS;
use podmesh_protocol::ids::{Epoch, JobId};
use podmesh_protocol::session::ToManager;
use podmesh_tests::light::LightAgents;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use podmesh_wire::client::Client;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::publish::Subscriber;
use podmesh_wire::route::Route;
use tokio::time::timeout;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
/// Agents that reconnect at once. With fewer, sockets that lock up did so only occasionally.
const CROWD: usize = 1000;

#[test]
fn a_thousand_agents_reconnect_after_each_kill_of_the_manager() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    let route = mesh.local();
    let agents = LightAgents::start(CROWD, 1, move |_| route.clone());
    until_true("all are there", || agents.connected() == CROWD);
    let job = mesh.submit(&["--array", "1-100000", "--runtime", "noop"]);
    for _ in 0..4 {
        mesh.kill_manager();
        until_true("all have noticed", || agents.connected() == 0);
        mesh.start_manager();
        until_true("all are back", || agents.connected() == CROWD);
        mesh.nodes();
    }
    mesh.wait_for_job(job, "succeeded");
}

/// Connects, does what `number` determines, and disconnects.
async fn visit(route: &Route, number: u64) {
    match number % 4 {
        // Sends a request and waits for the reply, which must come.
        0 => {
            let client = Client::connect(route).await.unwrap();
            client.request(RequestBody::Info).await.unwrap();
        }
        // Sends a request and does not wait.
        1 => {
            let client = Client::connect(route).await.unwrap();
            let ask = client.request(RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 });
            _ = timeout(Duration::ZERO, ask).await;
        }
        // Sends a message that needs no reply.
        2 => {
            let (_receiver, mut sender) = PeerSocket::connect(route).await.unwrap().split();
            sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
        }
        _ => drop(Subscriber::connect(route, &[TOPIC_EVENTS]).await.unwrap()),
    }
}

#[test]
fn short_lived_clients_and_subscribers_do_not_disturb_others() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let route = mesh.local();
    let agents = LightAgents::start(20, 100, move |_| route.clone());
    until_true("all are there", || agents.connected() == 20);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let visits = Arc::new(AtomicU64::new(0));
    let visitors: Vec<_> = (0..20)
        .map(|_| {
            let (route, stopped, visits) =
                (mesh.local(), Arc::clone(&stopped), Arc::clone(&visits));
            runtime.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    let number = visits.fetch_add(1, Ordering::Relaxed);
                    timeout(Duration::from_secs(30), visit(&route, number)).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..4 {
        let job = mesh.submit(&["--array", "1-50000", "--runtime", "noop"]);
        mesh.wait_for_job(job, "succeeded");
    }
    until_true("there were enough visits", || visits.load(Ordering::Relaxed) > 4000);
    stopped.store(true, Ordering::Relaxed);
    for visitor in visitors {
        runtime.block_on(visitor).unwrap();
    }
    assert_eq!(agents.connected(), 20, "a session was lost");
    assert_eq!(mesh.ok(&["events"]).matches("connected").count(), 20);
}
