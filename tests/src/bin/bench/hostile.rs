//! Hostile peers: how much memory they cost, and how much they disturb others.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podmesh_protocol::access::{JoinToken, Role};
use podmesh_protocol::client::{PrincipalKind, RequestBody};
use podmesh_protocol::codec::{decode, encode};
use podmesh_protocol::ids::Epoch;
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_tests::mesh::Mesh;
use podmesh_wire::client::Client;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use podmesh_wire::guard::zmtp::{
    GREETING_BYTES, Inspector, Traffic, check_greeting, command_length, ready_frame, socket_type,
};

use crate::latency::submit_to_started;
use crate::rig::Rig;
use crate::table::{Table, megabytes, percentile};

/// Number of mutated inputs for guard, decoder and token.
const MUTATIONS: u64 = 10_000_000;
const CONNECTIONS: usize = 2_000;
const IDLE: usize = 500;
const NEW_A_SECOND: u64 = 200;
const TRIES: usize = 200;
const REVOCATIONS: usize = 50;

pub(crate) fn measure(table: &mut Table) {
    let (panics, accepted) = mutations();
    table.figure("mutated inputs to guard, decoder and token", MUTATIONS.to_string(), "");
    table.figure("panics among them", panics.to_string(), "0");
    table.figure("mutated tokens that were accepted", accepted.to_string(), "");
    memory(table);
    disturbance(table);
    revocation(table);
}

/// Returns a copy with a few bytes changed, removed or inserted.
fn mutate(random: &mut fastrand::Rng, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..bytes.len().max(1));
        let byte = random.u8(..);
        match (random.u8(..4), bytes.is_empty()) {
            (_, true) | (0, _) => bytes.insert(at.min(bytes.len()), byte),
            (1, _) => drop(bytes.remove(at)),
            (2, _) => bytes.truncate(at),
            (_, _) => bytes[at] = byte,
        }
    }
    bytes
}

/// Returns how many inputs caused a panic, and how many changed tokens were accepted.
fn mutations() -> (u64, u64) {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    let message = encode(&ToManager::Goodbye(Epoch(7))).unwrap();
    let frame = [&[0, u8::try_from(message.len()).unwrap()][..], &message].concat();
    let token = JoinToken {
        addresses: vec!["10.0.0.1:7770".into()],
        manager: podmesh_protocol::access::KeyDigest([7; 32]),
        id: podmesh_protocol::access::TokenId(1),
        secret: podmesh_protocol::access::TokenSecret([9; 16]),
    };
    let text = token.to_string();
    let seeds =
        [&greeting[..], &ready_frame("DEALER", &[1; 16]), &frame, &message, text.as_bytes()];
    // The same inputs in each run.
    let mut random = fastrand::Rng::with_seed(1);
    let (mut panics, mut accepted) = (0, 0);
    for n in 0..MUTATIONS {
        let bytes = mutate(&mut random, seeds[usize::try_from(n).unwrap() % seeds.len()]);
        let taken = catch_unwind(|| {
            if let Some(greeting) = bytes.first_chunk() {
                _ = check_greeting(greeting);
            }
            if let Ok(Some((header, _))) = command_length(&bytes) {
                _ = socket_type(bytes.get(header..).unwrap_or_default());
            }
            for traffic in [Traffic::Messages, Traffic::Subscriptions { only: None }] {
                _ = Inspector::new(traffic).inspect(&bytes);
            }
            _ = decode::<ToManager>(&bytes);
            _ = decode::<ToPeer>(&bytes);
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            text.parse::<JoinToken>().is_ok_and(|read| read != token)
        });
        match taken {
            Ok(taken) => accepted += u64::from(taken),
            Err(_) => panics += 1,
        }
    }
    (panics, accepted)
}

/// Measures the manager's memory under many unauthenticated connections.
fn memory(table: &mut Table) {
    let mut mesh = Mesh::with_agents(std::env::current_exe().unwrap(), &["a"]);
    mesh.ok(&["run", "--", "true"]);
    let before = mesh.manager().resident_bytes();
    let mut highest = before;
    let garbage = vec![0x5a; 60_000];
    let mut held = Vec::new();
    for n in 0..CONNECTIONS {
        if let Ok(mut stream) = TcpStream::connect(mesh.address()) {
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            if n % 2 == 0 {
                // The manager closes the connection at some point.
                _ = stream.write_all(&garbage);
            }
            held.push(stream);
        }
        if n % 100 == 0 {
            highest = highest.max(mesh.manager().resident_bytes());
        }
    }
    for length in [1_u64 << 33, 1 << 47, 1 << 62] {
        let control = mesh.data_dir().join("run/control.sock");
        let mut stream = UnixStream::connect(control).unwrap();
        let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
        bytes.extend(b"NULL");
        bytes.resize(64, 0);
        bytes.push(2);
        bytes.extend(length.to_be_bytes());
        _ = stream.write_all(&bytes);
    }
    highest = highest.max(mesh.manager().resident_bytes());
    mesh.ok(&["run", "--", "true"]);
    table.figure(
        "memory increase: 2,000 connections, half with 60 kB of garbage, and 3 huge length prefixes",
        megabytes(highest.saturating_sub(before)),
        "16 MB",
    );
}

/// Measures how long a task takes to start while many strangers connect.
fn disturbance(table: &mut Table) {
    let rig = Rig::new(&["a", "b"], &["--docker", "off"]);
    let mut quiet: Vec<_> = (0..TRIES).map(|_| submit_to_started(&rig)).collect();
    let idle: Vec<_> =
        (0..IDLE).map_while(|_| TcpStream::connect(rig.mesh.address()).ok()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, address) = (Arc::clone(&stop), rig.mesh.address());
    let flood = thread::spawn(move || {
        let mut made = 0;
        while !stopped.load(Ordering::Relaxed) {
            made += u64::from(TcpStream::connect(&address).is_ok());
            thread::sleep(Duration::from_millis(1_000 / NEW_A_SECOND));
        }
        made
    });
    let began = Instant::now();
    let mut attacked: Vec<_> = (0..TRIES).map(|_| submit_to_started(&rig)).collect();
    stop.store(true, Ordering::Relaxed);
    let made = flood.join().unwrap();
    let (quiet, attacked) = (percentile(&mut quiet, 0.99), percentile(&mut attacked, 0.99));
    let name = format!(
        "submit to started, p99, {} idle and {:.0} new strangers a second against none",
        idle.len(),
        made as f64 / began.elapsed().as_secs_f64()
    );
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    table.ratio(&name, micros(attacked), micros(quiet), "µs", "at most 2");
    let alive = rig.mesh.nodes().iter().filter(|node| node["state"] == "alive").count();
    table.figure("nodes alive after it", format!("{alive} of 2"), "2 of 2");
}

/// Measures how long a connection stays open after its key was revoked.
fn revocation(table: &mut Table) {
    let mesh = Mesh::with_agents(std::env::current_exe().unwrap(), &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut times: Vec<_> = (0..REVOCATIONS)
        .map(|number| {
            let name = format!("user-{number}");
            let token: JoinToken = mesh.token(Role::Viewer.as_str()).parse().unwrap();
            let dir = mesh.folder().join(&name);
            runtime.block_on(async {
                let enrolment =
                    Enrolment::join(&dir, &token, &name.parse().unwrap()).await.unwrap();
                let route = enrolment.route(&dir, None).unwrap();
                let (mut receiver, _sender) = PeerSocket::connect(&route).await.unwrap().split();
                let admin = Client::connect(&mesh.local()).await.unwrap();
                let (kind, name) = (PrincipalKind::User, name.parse().unwrap());
                let began = Instant::now();
                admin.request(RequestBody::Revoke { kind, name }).await.unwrap();
                assert!(receiver.recv().await.is_err(), "unexpected message");
                began.elapsed()
            })
        })
        .collect();
    let longest = percentile(&mut times, 1.0);
    let figure = format!("{:.1} ms", longest.as_secs_f64() * 1e3);
    table.figure("key revoked to connection closed, longest of 50", figure, "1000 ms");
}
