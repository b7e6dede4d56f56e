//! Many connections: short-lived ones, ones that do not read, and large numbers of agents.
//!
//! `PODMESH_KILLS` sets how often the manager is killed, `PODMESH_VISITS` the number of short-lived
//! connections, `PODMESH_TASKS` the number of processes that run beside readers, and
//! `PODMESH_AGENTS` the number of agents over TLS; 0 skips that part. `PODMESH_BASELINE` is the path of
//! another `podmesh` binary to compare with.

mod baseline;
mod readers;
mod unread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::event::TOPIC_EVENTS;
use podmesh_protocol::ids::Epoch;
use podmesh_protocol::session::ToManager;
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::light::LightAgents;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use podmesh_wire::client::Client;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use podmesh_wire::publish::Subscriber;
use podmesh_wire::route::Route;
use tokio::time::timeout;

use crate::rig::{Rig, job};
use crate::table::{Table, megabytes};

const CROWD: usize = 1_000;
const VISITORS: u64 = 40;
/// Every sixth visit is a subscriber's: 200,000 of 1,200,000.
const SUBSCRIBERS: u64 = 6;
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let mut part = |name, default, measure: fn(u64, &mut Table)| {
        let count = setting(name, default);
        if count > 0 {
            measure(count, table);
        }
    };
    part("PODMESH_KILLS", 100, kills);
    part("PODMESH_VISITS", 1_200_000, visits);
    part("PODMESH_TASKS", 20_000, readers::measure);
    part("PODMESH_AGENTS", 2_000, over_tls);
    baseline::measure(table);
    unread::measure(table);
}

pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn program() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

/// Measures how fast many agents are back after each kill of the manager.
fn kills(kills: u64, table: &mut Table) {
    let mut mesh = Mesh::with_agents(program(), &[]);
    let route = mesh.local();
    let agents = LightAgents::start(CROWD, 1, move |_| route.clone());
    until_true("all are there", || agents.connected() == CROWD);
    let mut took = Vec::new();
    for _ in 0..kills {
        mesh.kill_manager();
        until_true("all have noticed", || agents.connected() == 0);
        // Returns when the manager answers.
        mesh.start_manager();
        let began = Instant::now();
        until_true("all are back", || agents.connected() == CROWD);
        took.push(began.elapsed());
    }
    let within = took.iter().filter(|took| took.as_secs_f64() < 5.0).count();
    let name = format!("{CROWD} agents back within 5 s after kill -9 of the manager");
    table.figure(&name, format!("{within} of {kills}"), "all");
    table.figure("the slowest of them", seconds(took.into_iter().max().unwrap()), "5 s");
}

/// Connects, does what the visit's number determines, and disconnects.
async fn visit(route: &Route, number: u64) {
    if number.is_multiple_of(SUBSCRIBERS) {
        return drop(Subscriber::connect(route, &[TOPIC_EVENTS]).await.unwrap());
    }
    match number % 3 {
        0 => {
            let (_receiver, mut sender) = PeerSocket::connect(route).await.unwrap().split();
            sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
        }
        kind => {
            let client = Client::connect(route).await.unwrap();
            let limit = if kind == 1 { Duration::from_secs(60) } else { Duration::ZERO };
            let answer = timeout(limit, client.request(RequestBody::Info)).await;
            assert!(kind == 2 || answer.unwrap().is_ok());
        }
    }
}

/// Measures short-lived connections during work, with a client that sends requests all the time.
fn visits(visits: u64, table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
    let alone = rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
    let before = rig.mesh.manager().resident_bytes();
    let sessions = epochs(&rig);
    let count = Arc::new(AtomicU64::new(0));
    let stopped = Arc::new(AtomicBool::new(false));
    for _ in 0..VISITORS {
        let (route, count) = (rig.mesh.local(), Arc::clone(&count));
        rig.runtime.spawn(async move {
            loop {
                let number = count.fetch_add(1, Ordering::Relaxed);
                if number >= visits {
                    return;
                }
                visit(&route, number).await;
            }
        });
    }
    let (asker, asking) = (rig.client.clone(), Arc::clone(&stopped));
    let longest = rig.runtime.spawn(async move {
        let mut longest = Duration::ZERO;
        while !asking.load(Ordering::Relaxed) {
            let began = Instant::now();
            asker.request(RequestBody::Info).await.unwrap();
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    });
    let began = Instant::now();
    let mut tasks = 0;
    while count.load(Ordering::Relaxed) < visits {
        // Panics if a task is lost, because the job does not end.
        rig.rate(job(RuntimeSpec::Noop, &[], 20_000));
        tasks += 20_000;
    }
    let took = began.elapsed();
    stopped.store(true, Ordering::Relaxed);
    let longest = rig.runtime.block_on(longest).unwrap();
    let rate = f64::from(tasks) / took.as_secs_f64();
    table.figure(
        &format!("{visits} connections come and go in {}: longest stall", seconds(took)),
        seconds(longest),
        "1 s",
    );
    table.ratio("no-op tasks/s beside them, against none", rate, alone, "/s", "");
    let lost = usize::from(epochs(&rig) != sessions);
    table.figure("sessions of agents lost by it", lost.to_string(), "0");
    let after = rig.mesh.manager().resident_bytes();
    let name = "manager's memory after it, more";
    table.figure(name, megabytes(after.saturating_sub(before)), "8 MB");
}

/// Returns the session of each node.
fn epochs(rig: &Rig) -> Vec<Option<Epoch>> {
    match rig.ask(RequestBody::Nodes { after: None, limit: 1000 }) {
        ReplyBody::Nodes(nodes) => nodes.iter().map(|node| node.epoch).collect(),
        other => panic!("{other:?}"),
    }
}

/// Measures idle agents over the network.
fn over_tls(count: u64, table: &mut Table) {
    let count = usize::try_from(count).unwrap();
    let mut mesh = Mesh::with_agents(program(), &[]);
    let before = (mesh.manager().resident_bytes(), descriptors(mesh.manager().pid()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let uses = count.to_string();
    let token = mesh.ok(&["token", "create", "--role", "agent", "--uses", &uses]);
    let token = token.trim().parse().unwrap();
    let routes: Vec<_> = (0..count)
        .map(|number| {
            let dir = mesh.folder().join(format!("light-{number}"));
            std::fs::create_dir(&dir).unwrap();
            let name = format!("light-{number}").parse().unwrap();
            let enrolment = runtime.block_on(Enrolment::join(&dir, &token, &name)).unwrap();
            enrolment.route(&dir, None).unwrap()
        })
        .collect();
    let agents = LightAgents::start(count, 1, move |number| routes[number].clone());
    until_true("all are there", || agents.connected() == count);
    std::thread::sleep(Duration::from_secs(2));
    let (cpu, began) = (cpu_seconds(mesh.manager().pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu_seconds(mesh.manager().pid()) - cpu) / began.elapsed().as_secs_f64();
    let name = format!("{count} agents at 1 Hz over TLS: of a core");
    table.figure(&name, format!("{:.1} %", share * 100.0), "8 %");
    let bytes = mesh.manager().resident_bytes().saturating_sub(before.0) / count as u64;
    table.figure("memory of each", format!("{} KiB", bytes / 1024), "64 KiB");
    let files = descriptors(mesh.manager().pid()) - before.1;
    table.figure("descriptors of each", format!("{:.1}", files as f64 / count as f64), "5");
}

fn descriptors(pid: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Returns the CPU time of a process in seconds (`utime` and `stime` of proc(5)).
pub(crate) fn cpu_seconds(pid: Pid) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / a_second as f64
}
