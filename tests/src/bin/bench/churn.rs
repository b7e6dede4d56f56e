//! Connections that come and go, that do not read, and that are many.
//!
//! `PODMESH_KILLS` and `PODMESH_VISITS` set how often the manager is killed, and how many
//! connections come and go.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_protocol::client::RequestBody;
use podmesh_protocol::event::TOPIC_EVENTS;
use podmesh_protocol::ids::{Epoch, JobId};
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
/// One visit in so many is a subscriber's.
const SUBSCRIBERS: u64 = 6;
const OVER_TLS: usize = 2_000;
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    kills(table);
    visits(table);
    deaf(table);
    over_tls(table);
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

/// A crowd of agents that come back after each kill of the manager.
fn kills(table: &mut Table) {
    let kills = setting("PODMESH_KILLS", 100);
    let mut mesh = Mesh::with_agents(program(), &[]);
    let route = mesh.local();
    let agents = LightAgents::start(CROWD, 1, move |_| route.clone());
    until_true("all are there", || agents.connected() == CROWD);
    let mut took = Vec::new();
    for _ in 0..kills {
        mesh.kill_manager();
        until_true("all have noticed", || agents.connected() == 0);
        // Returns when it answers.
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

/// Connects, does what its number says, and goes.
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

/// Connections that come and go while work goes on, and somebody who asks all the time.
fn visits(table: &mut Table) {
    let visits = setting("PODMESH_VISITS", 200_000);
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
    let alone = rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
    let before = rig.mesh.manager().resident_bytes();
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
        // Panics when a task is lost: the job does not end.
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
    let after = rig.mesh.manager().resident_bytes();
    table.figure("manager's memory after it, more", megabytes(after.saturating_sub(before)), "");
}

/// Those who do not read.
fn deaf(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    let work = |rig: &Rig| {
        for _ in 0..5 {
            rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
        }
    };
    work(&rig);
    let before = rig.mesh.manager().resident_bytes();
    let mut command = rig.mesh.podmesh(&["events", "--follow"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGSTOP).unwrap();
    work(&rig);
    let after = rig.mesh.manager().resident_bytes();
    child.kill().unwrap();
    child.wait().unwrap();
    let name = "a stopped `events -f` at full rate: more memory";
    table.figure(name, megabytes(after.saturating_sub(before)), "8 MB");

    let mut large = job(RuntimeSpec::Noop, &[], 1);
    large.run.env = [("A".to_owned(), "x".repeat(100_000))].into();
    let large = rig.submit(large);
    let before = rig.mesh.manager().resident_bytes();
    let route = rig.mesh.local();
    let deaf = rig.runtime.block_on(async {
        let mut deaf = Vec::new();
        for _ in 0..3 {
            let (receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
            for id in 0..3_000 {
                let body = RequestBody::Job { job: large, since: None, wait_ms: 0 };
                let version = podmesh_protocol::limits::PROTOCOL_VERSION;
                let request = podmesh_protocol::client::Request { version, id, body };
                // One that is cut off meanwhile cannot ask any more.
                _ = sender.send(&ToManager::Request(request)).await;
            }
            deaf.push((receiver, sender));
        }
        deaf
    });
    // All that is to be answered is answered when this one is.
    rig.ask(RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 });
    std::thread::sleep(Duration::from_secs(3));
    let after = rig.mesh.manager().resident_bytes();
    drop(deaf);
    let name = "3 clients that ask 3,000 times and do not read: more memory";
    table.figure(name, megabytes(after.saturating_sub(before)), "48 MB");
}

/// Agents that do nothing but be there, over the network.
fn over_tls(table: &mut Table) {
    let mut mesh = Mesh::with_agents(program(), &[]);
    let before = (mesh.manager().resident_bytes(), descriptors(mesh.manager().pid()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let token = mesh.ok(&["token", "create", "--role", "agent", "--uses", "2000"]);
    let token = token.trim().parse().unwrap();
    let routes: Vec<_> = (0..OVER_TLS)
        .map(|number| {
            let dir = mesh.folder().join(format!("light-{number}"));
            std::fs::create_dir(&dir).unwrap();
            let name = format!("light-{number}").parse().unwrap();
            let enrolment = runtime.block_on(Enrolment::join(&dir, &token, &name)).unwrap();
            enrolment.route(&dir, None).unwrap()
        })
        .collect();
    let agents = LightAgents::start(OVER_TLS, 1, move |number| routes[number].clone());
    until_true("all are there", || agents.connected() == OVER_TLS);
    std::thread::sleep(Duration::from_secs(2));
    let (cpu, began) = (cpu_seconds(mesh.manager().pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu_seconds(mesh.manager().pid()) - cpu) / began.elapsed().as_secs_f64();
    let name = format!("{OVER_TLS} agents at 1 Hz over TLS: of a core");
    table.figure(&name, format!("{:.1} %", share * 100.0), "8 %");
    let bytes = mesh.manager().resident_bytes().saturating_sub(before.0) / OVER_TLS as u64;
    table.figure("memory of each", format!("{} KiB", bytes / 1024), "64 KiB");
    let files = descriptors(mesh.manager().pid()) - before.1;
    table.figure("descriptors of each", format!("{:.1}", files as f64 / OVER_TLS as f64), "5");
}

fn descriptors(pid: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// CPU time of a process (`utime` and `stime` of proc(5)).
pub(crate) fn cpu_seconds(pid: Pid) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / a_second as f64
}
