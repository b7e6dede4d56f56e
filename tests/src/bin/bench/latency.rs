//! The latency of one task on an idle mesh.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::small_disk::{SmallDisk, may_mount};
use podmesh_tests::wait::until_true;
use podmesh_wire::client::Client;

use crate::rig::{Rig, job};
use crate::table::{Table, percentile};

const TRIES: usize = 200;
const POLLERS: u32 = 20;
const FLAGS: [&str; 2] = ["--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    let mut started: Vec<_> = (0..TRIES).map(|_| submit_to_started(&rig)).collect();
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let measure = format!("idle: submit to process reported as started, {name}");
        table.figure(&measure, milliseconds(percentile(&mut started, share)), "");
    }
    let mut total: Vec<_> = (0..TRIES / 4).map(|_| run(&rig)).collect();
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let measure = format!("idle: `podmesh run -- true`, total time, {name}");
        table.figure(&measure, milliseconds(percentile(&mut total, share)), "");
    }
    beside_pollers(&mut rig, table);
    drop(rig);
    if may_mount() {
        with_a_full_disk(table);
    }
}

/// Measures starts beside clients that list jobs without pause.
fn beside_pollers(rig: &mut Rig, table: &mut Table) {
    // Each start has a connection of its own, as a command has: clients that ask again and again
    // wait for each other.
    let half = |rig: &mut Rig| {
        let one = |_| {
            rig.reconnect();
            submit_to_started(rig)
        };
        let mut times: Vec<_> = (0..TRIES / 2).map(one).collect();
        percentile(&mut times, 0.5).as_secs_f64() * 1000.0
    };
    let before = half(rig);
    let answers = Arc::new(AtomicU64::new(0));
    let pollers: Vec<_> = (0..POLLERS)
        .map(|_| {
            let (route, answers) = (rig.mesh.local(), Arc::clone(&answers));
            rig.runtime.spawn(async move {
                let client = Client::connect(&route).await.unwrap();
                loop {
                    client.request(list(100)).await.unwrap();
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until_true("they poll", || answers.load(Ordering::Relaxed) > 0);
    let beside = half(rig);
    for poller in pollers {
        poller.abort();
    }
    eprintln!("  they got {} answers", answers.load(Ordering::Relaxed));
    let measure = format!("p50 of submit to started, beside {POLLERS} clients that poll `jobs`");
    table.ratio(&measure, beside, f64::midpoint(before, half(rig)), " ms", "1.5");
}

fn list(limit: u32) -> RequestBody {
    RequestBody::Jobs { before: None, active: false, by: None, service: None, replica: None, limit }
}

/// Measures reads of a manager whose disk takes nothing more.
fn with_a_full_disk(table: &mut Table) {
    let mut mesh = Mesh::new(std::env::current_exe().unwrap());
    let disk = SmallDisk::mount(&mesh.data_dir());
    mesh.start_manager();
    mesh.start_agent("a", &FLAGS);
    let rig = Rig::of(mesh);
    let job_id = rig.submit(job(RuntimeSpec::Process, &["sleep", "1"], 1));
    disk.fill(0);
    // The end of this task waits for the disk, and so does the cancel of another client.
    std::thread::sleep(Duration::from_secs(2));
    let (client, cancel) =
        (rig.client.clone(), RequestBody::Cancel { job: job_id, downstream: false });
    let waits = rig.runtime.spawn(async move { client.request(cancel).await });
    let reads = [
        RequestBody::Nodes { after: None, limit: 100 },
        RequestBody::Job { job: job_id, since: None, wait_ms: 0 },
    ];
    let mut times: Vec<_> = (0..TRIES)
        .flat_map(|_| &reads)
        .map(|read| {
            let began = Instant::now();
            rig.ask(read.clone());
            began.elapsed()
        })
        .collect();
    waits.abort();
    let longest = percentile(&mut times, 1.0);
    table.figure("the disk is full: `nodes` and `job N`, longest", milliseconds(longest), "100 ms");
    // Before the mesh, whose folder is removed.
    drop(disk);
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

pub(crate) fn submit_to_started(rig: &Rig) -> Duration {
    let spec = job(RuntimeSpec::Process, &["sleep", "0.02"], 1);
    let start = Instant::now();
    let id = rig.submit(spec);
    let task = TaskId { job: id, index: 1 };
    // The reply comes when the attempt has left the state `assigned`.
    let mut unless = None;
    loop {
        let reply = rig.ask(RequestBody::Task { task, unless, wait_ms: 10_000 });
        let ReplyBody::Task(detail) = reply else { panic!("no task") };
        let last = detail.attempts.last().map(|attempt| *attempt.state.known().unwrap());
        if matches!(last, Some(AttemptState::Running | AttemptState::Ended)) {
            let took = start.elapsed();
            rig.wait(id);
            return took;
        }
        let attempts = u32::try_from(detail.attempts.len()).unwrap();
        unless = last.map(|state| (attempts, state));
        assert!(attempts > 0 || start.elapsed() < Duration::from_secs(10), "nothing starts");
    }
}

fn run(rig: &Rig) -> Duration {
    let mut command = rig.mesh.podmesh(&["run", "--", "true"]);
    let start = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
    start.elapsed()
}
