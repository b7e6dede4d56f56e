//! Managers and agents killed at random times while jobs are submitted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{JobSpec, RuntimeSpec};
use podmesh_tests::mesh::Mesh;
use podmesh_wire::client::Client;
use podmesh_wire::route::Route;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::rig::job;
use crate::table::Table;

/// The longest pause before the next kill.
const LIFE_MS_MAX: u64 = 200;
/// Tasks of each job.
const TASKS: u32 = 2;
/// How long all accepted jobs may take to end after the last kill.
const END_LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn measure(table: &mut Table) {
    let kills = super::kills();
    let manager = run(kills, &["manager"]);
    let name = format!("submissions acknowledged and lost, manager killed {kills} times");
    table.figure(&name, format!("{} of {}", manager.lost, manager.accepted), "0");
    let name = format!("tasks run twice or not at all, manager killed {kills} times");
    table.figure(&name, format!("{} and {}", manager.twice, manager.undone), "0 and 0");
    let both = run(kills, &["manager", "a", "b"]);
    let name = format!("submissions acknowledged and lost, both killed {kills} times");
    table.figure(&name, format!("{} of {}", both.lost, both.accepted), "0");
    let name = format!("tasks run twice or not at all, both killed {kills} times");
    table.figure(&name, format!("{} and {}", both.twice, both.undone), "0 and 0");
    let name = format!("jobs that did not succeed, both killed {kills} times");
    table.figure(&name, both.failed.to_string(), "0");
    for (whose, counts) in [("manager", &manager), ("both", &both)] {
        let name =
            format!("instants of a schedule missed or run twice, {whose} killed {kills} times");
        let [missed, twice] = counts.schedule.wrong;
        table.figure(&name, format!("{missed} and {twice} of {}", counts.schedule.all), "0 and 0");
    }
}

/// The counts after the kills.
#[derive(Debug, Default)]
struct Counts {
    /// Accepted submissions.
    accepted: usize,
    /// Accepted submissions whose job is unknown.
    lost: usize,
    /// Tasks that ran more than once.
    twice: usize,
    /// Tasks of succeeded jobs that never ran.
    undone: usize,
    /// Jobs that did not succeed.
    failed: usize,
    schedule: Instants,
}

/// The instants of the schedule.
#[derive(Debug, Default)]
struct Instants {
    all: usize,
    /// Those of which the history does not tell or whose job never ran, and those whose job ran more
    /// than once.
    wrong: [usize; 2],
}

/// The name of a schedule that is due every second.
const SCHEDULE: &str = "tick";

fn start() -> (Mesh, PathBuf, Submitter) {
    let mut mesh = Mesh::new(std::env::current_exe().unwrap());
    mesh.start_manager();
    for agent in ["a", "b"] {
        mesh.start_agent(agent, &["--docker", "off"]);
    }
    let marks = mesh.shared_folder("marks");
    let script = format!("echo >> {}/{SCHEDULE}.$PODMESH_JOB", marks.display());
    let add = ["schedule", "add", SCHEDULE, "--every", "1s", "--overlap", "queue"];
    mesh.ok(&[&add[..], &["--cpus", "0.1", "--", "sh", "-c", &script]].concat());
    let submitter = Submitter::start(mesh.local(), marks.clone());
    (mesh, marks, submitter)
}

/// Kills the manager at the system calls that make up a commit: writing pages to the log, and
/// waiting for the disk.
pub(crate) fn edges(table: &mut Table) {
    let kills = super::kills().div_ceil(4);
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("  SKIPPED: kills at the edges of commits need strace");
        return;
    }
    let (mut mesh, marks, submitter) = start();
    mesh.kill_manager();
    let mut random = fastrand::Rng::with_seed(u64::from(kills));
    for _ in 0..kills {
        let (call, last) = if random.bool() { ("fsync", 20) } else { ("pwrite64", 60) };
        mesh.run_manager_until(call, random.u32(1..=last));
    }
    mesh.start_manager();
    let counts = count(&mesh, &submitter.stop(), &marks);
    let name =
        format!("submissions acknowledged and lost, manager killed at {kills} edges of commits");
    table.figure(&name, format!("{} of {}", counts.lost, counts.accepted), "0");
    let name = format!("tasks run twice or not at all, manager killed at {kills} edges of commits");
    table.figure(&name, format!("{} and {}", counts.twice, counts.undone), "0 and 0");
}

fn run(kills: u32, victims: &[&str]) -> Counts {
    let (mut mesh, marks, submitter) = start();
    let mut random = fastrand::Rng::with_seed(u64::from(kills));
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(random.u64(..LIFE_MS_MAX)));
        match victims[random.usize(..victims.len())] {
            "manager" => {
                mesh.kill_manager();
                mesh.start_manager();
            }
            agent => {
                mesh.kill_agent(agent);
                mesh.spawn_agent(agent, &["--docker", "off"]);
            }
        }
    }
    let accepted = submitter.stop();
    count(&mesh, &accepted, &marks)
}

/// Submits one job after another, retrying each until it is accepted.
struct Submitter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<SubmissionId, JobId>>,
}

impl Submitter {
    fn start(route: Route, marks: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            let mut accepted = BTreeMap::new();
            let mut client = None;
            while !stopped.load(Ordering::Relaxed) {
                let submission = SubmissionId(Uuid::now_v7());
                let spec = spec(submission, &marks);
                let job = runtime.block_on(submit(&route, &mut client, submission, &spec));
                accepted.insert(submission, job);
                thread::sleep(Duration::from_millis(10));
            }
            accepted
        });
        Self { stop, thread }
    }

    fn stop(self) -> BTreeMap<SubmissionId, JobId> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Returns a job whose tasks write one line for each run.
fn spec(submission: SubmissionId, marks: &Path) -> JobSpec {
    let file = marks.join(submission.0.to_string());
    let script = format!("echo >> {}.$PODMESH_TASK_INDEX", file.display());
    let mut spec = job(RuntimeSpec::Process, &["sh", "-c", &script], TASKS);
    spec.resources.cpu_millis = 100;
    spec
}

async fn submit(
    route: &Route,
    client: &mut Option<Client>,
    submission: SubmissionId,
    spec: &JobSpec,
) -> JobId {
    loop {
        if client.is_none() {
            *client = Client::connect(route).await.ok();
        }
        if let Some(connected) = client {
            let body = RequestBody::Submit { submission, spec: Box::new(spec.clone()) };
            if let Ok(ReplyBody::Submitted { job, .. }) = connected.request(body).await {
                return job;
            }
            *client = None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn count(mesh: &Mesh, accepted: &BTreeMap<SubmissionId, JobId>, marks: &Path) -> Counts {
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(Client::connect(&mesh.local())).unwrap();
    mesh.ok(&["schedule", "pause", SCHEDULE]);
    let ended = Instant::now() + END_LIMIT;
    let jobs = loop {
        let jobs = runtime.block_on(all_jobs(&client));
        if jobs.values().all(|state| state.is_end()) || Instant::now() > ended {
            break jobs;
        }
        thread::sleep(Duration::from_millis(200));
    };
    let mut counts = Counts { accepted: accepted.len(), ..Counts::default() };
    for (submission, job) in accepted {
        let state = jobs.get(job);
        counts.lost += usize::from(state.is_none());
        counts.failed += usize::from(state.is_some_and(|state| *state != JobState::Succeeded));
        for index in 1..=TASKS {
            let runs = fs::read(marks.join(format!("{}.{index}", submission.0)));
            let runs = runs.unwrap_or_default().len();
            counts.twice += usize::from(runs > 1);
            counts.undone += usize::from(runs == 0 && state == Some(&JobState::Succeeded));
        }
    }
    counts.schedule = instants(mesh, marks);
    counts
}

/// Compares the history of the schedule with what its runs have written.
fn instants(mesh: &Mesh, marks: &Path) -> Instants {
    let history = mesh.json(&["schedule", "history", SCHEDULE, "--limit", "1000"]);
    let rows = history["runs"].as_array().unwrap();
    // Each row tells of an instant, and of those before it that it has passed over.
    let told = rows.iter().map(|row| {
        let instant: jiff::Timestamp = row["instant"].as_str().unwrap().parse().unwrap();
        let (last, count) = (instant.as_second(), row["count"].as_i64().unwrap());
        last - count..last
    });
    let first = told.clone().map(|seconds| seconds.start).min().unwrap_or(0);
    let all = told.clone().map(|seconds| seconds.end).max().unwrap_or(0) - first;
    let told: i64 = told.map(|seconds| seconds.end - seconds.start).sum();
    let runs: Vec<usize> = rows
        .iter()
        .filter(|row| row["result"] == "ran")
        .map(|row| fs::read(marks.join(format!("{SCHEDULE}.{}", row["job"]))))
        .map(|marks| marks.unwrap_or_default().len())
        .collect();
    let silent = usize::try_from((all - told).abs()).unwrap();
    Instants {
        all: usize::try_from(all).unwrap(),
        wrong: [
            silent + runs.iter().filter(|runs| **runs == 0).count(),
            runs.iter().filter(|runs| **runs > 1).count(),
        ],
    }
}

async fn all_jobs(client: &Client) -> BTreeMap<JobId, JobState> {
    let mut all = BTreeMap::new();
    let mut before = None;
    loop {
        let page = RequestBody::Jobs {
            before,
            active: false,
            by: None,
            service: None,
            replica: None,
            limit: PAGE_ROWS_MAX,
        };
        let Ok(ReplyBody::Jobs(jobs)) = client.request(page).await else { panic!("no jobs") };
        before = jobs.last().map(|view| view.job);
        all.extend(jobs.into_iter().map(|view| (view.job, *view.state.known().unwrap())));
        if before.is_none() {
            return all;
        }
    }
}
