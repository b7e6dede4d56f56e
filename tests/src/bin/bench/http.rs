//! The API over HTTP: submissions and reads against ROUTER, and the cost of many streams of events.

use std::io::Write;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use podmesh_protocol::client::RequestBody;
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::api::{Api, Place, Reply};
use podmesh_tests::mesh::Mesh;
use serde_json::{Value, json};

use crate::rig::{Rig, job};
use crate::table::{Table, median, megabytes, percentile};

/// Jobs of one round, and of one batch: as many as ROUTER gets at a time.
const JOBS: usize = 5_000;
const BATCH: usize = 500;
/// Reads of one round.
const READS: usize = 2_000;
const READERS: usize = 1_000;
/// Bytes of the output that is searched.
const SEARCHED: u64 = 1_000_000_000;
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    let api = Api::new(Place::Socket(rig.mesh.http_socket()));
    let (mut http, mut router) = (vec![], vec![]);
    for _ in 0..3 {
        http.push(submit_by_http(&api));
        router.push(submit_by_router(&rig));
    }
    let name = "submits/s over HTTP, one connection, in batches, against ROUTER";
    table.ratio(name, median(http), median(router), "/s", "0.5");

    let (mut http, mut router) = (read_by_http(&api), read_by_router(&rig));
    let ours = percentile(&mut http, 0.5).as_secs_f64() * 1e6;
    let theirs = percentile(&mut router, 0.5).as_secs_f64() * 1e6;
    table.figure(
        "GET of one job minus a round trip at ROUTER, p50",
        format!("{ours:.0} µs - {theirs:.0} µs = {:.0} µs", ours - theirs),
        "150 µs",
    );

    let rate = |rig: &Rig| rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
    rate(&rig);
    let mut alone = vec![];
    let mut beside = vec![];
    let idle = rig.mesh.manager().resident_bytes();
    let mut each = 0;
    for _ in 0..3 {
        alone.push(rate(&rig));
        let readers = Readers::start(&api);
        each = rig.mesh.manager().resident_bytes().saturating_sub(idle) / READERS as u64;
        beside.push(rate(&rig));
        drop(readers);
    }
    let name = "no-op tasks/s beside 1,000 streams of events, against none";
    table.ratio(name, median(beside), median(alone), "/s", "0.8");
    table.figure("memory of each stream", format!("{} KiB", each / 1024), "64 KiB");
    drop(rig);
    at_rest(table);
    search(table);
}

/// What HTTP takes of a manager that nobody asks, and the size of the program.
fn at_rest(table: &mut Table) {
    let memory = |flags: &[&str]| {
        let program = std::env::current_exe().unwrap();
        let mut mesh = Mesh::new(program).manager_flags(flags);
        mesh.start_manager();
        let api = Api::new(Place::Socket(mesh.http_socket()));
        if flags.is_empty() {
            assert_eq!(api.get("/api/v1/nodes").status, 200);
        } else {
            mesh.ok(&["nodes"]);
        }
        mesh.manager().resident_bytes()
    };
    let (mut on, mut off) = (vec![], vec![]);
    for _ in 0..5 {
        on.push(memory(&[]));
        off.push(memory(&["--http", "off"]));
    }
    let middle = |mut figures: Vec<u64>| {
        figures.sort_unstable();
        figures[figures.len() / 2]
    };
    let (on, off) = (middle(on), middle(off));
    table.figure(
        "memory of the manager with HTTP minus without, one request answered",
        format!("{} - {} = {}", megabytes(on), megabytes(off), megabytes(on.saturating_sub(off))),
        "3 MB",
    );
    // This program is larger: it has the benchmarks, too.
    let program = std::env::current_exe().unwrap().with_file_name("podmesh");
    let size = std::fs::metadata(program).map_or_else(
        |_| "not built: cargo build --release -p podmesh-tools".to_owned(),
        |found| megabytes(found.len()),
    );
    table.figure("size of the program `podmesh`", size, "30 MB");
}

/// Looks for the last line of an output of 1 GB through the manager.
fn search(table: &mut Table) {
    let flags = ["--docker", "off", "--log-file-size", "4GiB", "--log-total-size", "16GiB"];
    let mut rig = Rig::new(&["a"], &flags);
    let script = format!(
        "yes 'a line of output that is about as long as lines usually are' | head -c {SEARCHED}; echo; echo needle"
    );
    let job = rig.mesh.submit(&["--", "sh", "-c", &script]);
    rig.mesh.wait_for_job(job, "succeeded");
    let api = Api::new(Place::Socket(rig.mesh.http_socket()));
    rig.mesh.manager().forget_peak();
    rig.mesh.agent("a").forget_peak();
    let before = (rig.mesh.manager().resident_bytes(), rig.mesh.agent("a").resident_bytes());
    let began = Instant::now();
    let mut from = 0;
    let found = loop {
        let path = format!("/api/v1/jobs/{job}/tasks/1/log/search?text=needle&from={from}");
        let reply = api.get(&path).json();
        if !reply["found"].is_null() {
            break reply["found"]["offset"].as_u64().unwrap();
        }
        assert_eq!(reply["end"], false, "the line is not found");
        from = reply["next"].as_u64().unwrap();
    };
    let took = began.elapsed();
    assert_eq!(found, SEARCHED + 1);
    let (manager, agent) = (rig.mesh.manager().peak_bytes(), rig.mesh.agent("a").peak_bytes());
    table.figure(
        "search for the last line of an output of 1 GB: time; most memory of manager, agent beyond that before",
        format!(
            "{:.1} s; {}, {}",
            took.as_secs_f64(),
            megabytes(manager.saturating_sub(before.0)),
            megabytes(agent.saturating_sub(before.1)),
        ),
        "10 s; 32 MB, 32 MB",
    );
}

fn submit_by_http(api: &Api) -> f64 {
    // No node has the label, so that only submissions are measured.
    let spec = json!({ "runtime": "noop", "require": { "nowhere": "yes" } });
    let began = Instant::now();
    submit(api, spec, JOBS);
    rate(began)
}

/// Submits jobs in batches, over one connection.
pub(crate) fn submit(api: &Api, spec: Value, jobs: usize) {
    let job = json!({ "job": { "name": "bench", "spec": spec } });
    let body = json!({ "jobs": vec![job; BATCH] });
    let request = api.request("POST", "/api/v1/jobs/batch", Some(&body));
    let mut connection = api.connect().unwrap();
    for _ in 0..jobs / BATCH {
        connection.write_all(request.as_bytes()).unwrap();
        let mut reply = Reply::read(connection).unwrap();
        assert_eq!(reply.status, 200);
        reply.body().unwrap();
        connection = reply.into_connection();
    }
}

fn submit_by_router(rig: &Rig) -> f64 {
    let mut spec = job(RuntimeSpec::Noop, &[], 1);
    spec.require = [("nowhere".parse().unwrap(), "yes".to_owned())].into();
    let began = Instant::now();
    for _ in 0..JOBS / BATCH {
        let submits = (0..BATCH).map(|_| {
            let submission = SubmissionId(uuid::Uuid::now_v7());
            rig.client.request(RequestBody::Submit { submission, spec: Box::new(spec.clone()) })
        });
        rig.runtime.block_on(join_all(submits)).into_iter().for_each(|reply| _ = reply.unwrap());
    }
    rate(began)
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn rate(began: Instant) -> f64 {
    JOBS as f64 / began.elapsed().as_secs_f64()
}

fn read_by_http(api: &Api) -> Vec<Duration> {
    let request = api.request("GET", "/api/v1/jobs/1", None);
    let mut connection = api.connect().unwrap();
    let mut times = Vec::new();
    for _ in 0..READS {
        let began = Instant::now();
        connection.write_all(request.as_bytes()).unwrap();
        let mut reply = Reply::read(connection).unwrap();
        reply.body().unwrap();
        times.push(began.elapsed());
        connection = reply.into_connection();
    }
    times
}

fn read_by_router(rig: &Rig) -> Vec<Duration> {
    let read = || RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 };
    let mut times = Vec::new();
    for _ in 0..READS {
        let began = Instant::now();
        rig.ask(read());
        times.push(began.elapsed());
    }
    times
}

/// Streams of events from now on, which one thread reads.
struct Readers {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    reading: Option<std::thread::JoinHandle<()>>,
}

impl Readers {
    fn start(api: &Api) -> Self {
        use std::os::unix::net::UnixStream;
        use std::sync::atomic::Ordering;

        let Place::Socket(path) = api.place() else { panic!("not a socket") };
        let request = api.with("Accept", "text/event-stream");
        let request = request.request("GET", "/api/v1/events", None);
        let open = || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut first = [0; 15];
            std::io::Read::read_exact(&mut stream, &mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200 OK");
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let mut streams: Vec<UnixStream> = (0..READERS).map(|_| open()).collect();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while !stopped.load(Ordering::Relaxed) {
                for stream in &mut streams {
                    _ = std::io::Read::read(stream, &mut bytes);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, reading: Some(reading) }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(reading) = self.reading.take() {
            _ = reading.join();
        }
    }
}
