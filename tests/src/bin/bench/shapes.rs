//! Jobs with different requirements: each shape has its own queue.

use std::time::{Duration, Instant};

use podmesh_protocol::client::RequestBody;
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeSpec};
use podmesh_tests::light::LightAgents;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

use crate::rig::{Rig, job};
use crate::table::{Table, median};

/// The total number of tasks in one round.
const TASKS: u32 = 400_000;

pub(crate) fn measure(table: &mut Table) {
    rates(table);
    submissions(table);
    comebacks(table);
}

/// A manager, and light agents with this many cores each.
pub(crate) fn crowd(agents: usize, cores: u32) -> (Rig, LightAgents) {
    let mesh = Mesh::with_agents(std::env::current_exe().unwrap(), &[]);
    let route = mesh.local();
    let light = LightAgents::start(agents, cores, move |_| route.clone());
    until_true("all are there", || light.connected() == agents);
    (Rig::of(mesh), light)
}

/// Returns the specs of this many jobs, all with different requirements.
fn specs(jobs: u32, tasks: u32) -> Vec<JobSpec> {
    (0..jobs)
        .map(|number| {
            let (cpus, memory) = (number % 25, number / 25 + 1);
            let resources =
                Resources { cpu_millis: 1000 + 10 * cpus, memory_bytes: u64::from(memory) << 20 };
            JobSpec { resources, ..job(RuntimeSpec::Noop, &[], tasks) }
        })
        .collect()
}

/// Submits jobs concurrently.
pub(crate) fn submit(rig: &Rig, specs: Vec<JobSpec>) -> Vec<JobId> {
    let requests: Vec<_> = specs
        .into_iter()
        .map(|spec| {
            let client = rig.client.clone();
            let submission = SubmissionId(uuid::Uuid::now_v7());
            let body = RequestBody::Submit { submission, spec: Box::new(spec) };
            rig.runtime.spawn(async move { client.request(body).await.unwrap() })
        })
        .collect();
    let replies = requests.into_iter().map(|request| rig.runtime.block_on(request).unwrap());
    replies
        .map(|reply| match reply {
            podmesh_protocol::client::ReplyBody::Submitted { job, .. } => job,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Runs this many jobs. Returns the tasks per second, from the first submission to the last end.
fn rate(rig: &Rig, jobs: u32, tasks: u32) -> f64 {
    let start = Instant::now();
    let submitted = submit(rig, specs(jobs, tasks / jobs));
    for job in submitted {
        rig.wait(job);
    }
    f64::from(tasks) / start.elapsed().as_secs_f64()
}

/// Measures no-op tasks of one shape and of many, on 20 agents.
fn rates(table: &mut Table) {
    let (rig, _light) = crowd(20, 100);
    let middle = |jobs| median((0..3).map(|_| rate(&rig, jobs, TASKS)).collect());
    rate(&rig, 1, TASKS);
    let one = middle(1);
    for (shapes, floor) in [(500, "100,000/s"), (2_000, "")] {
        let name = format!("no-op tasks/s, {shapes} shapes × 20 nodes, against one shape");
        table.ratio(&name, middle(shapes), one, "/s", floor);
    }
    // Each job has one task, and each task has a different shape than the previous one.
    let single = |shapes: u32| {
        let start = Instant::now();
        let all: Vec<_> = (0..20_000 / shapes).flat_map(|_| specs(shapes, 1)).collect();
        let tasks = all.len();
        for job in submit(&rig, all) {
            rig.wait(job);
        }
        tasks as f64 / start.elapsed().as_secs_f64()
    };
    let one = single(1);
    table.ratio("jobs/s of one no-op task, 500 shapes against one", single(500), one, "/s", "");
}

/// Measures submissions while agents are busy.
fn submissions(table: &mut Table) {
    let (rig, _light) = crowd(200, 10);
    let took = |jobs: Vec<JobSpec>| {
        let busy = rig.submit(job(RuntimeSpec::Noop, &[], 10_000_000));
        let start = Instant::now();
        let submitted = submit(&rig, jobs);
        let took = start.elapsed();
        for job in submitted.into_iter().chain([busy]) {
            rig.ask(RequestBody::Cancel { job, downstream: false });
        }
        took
    };
    let one = took(vec![job(RuntimeSpec::Noop, &[], 1); 500]);
    let many = took(specs(500, 1));
    milliseconds(table, "500 jobs of 500 shapes submitted to 200 busy agents", many, one);
}

/// Measures how fast agents reconnect after a kill of the manager, with a queue of many shapes.
fn comebacks(table: &mut Table) {
    const AGENTS: usize = 1_000;
    let took = |jobs: u32| {
        let (mut rig, light) = crowd(AGENTS, 1);
        submit(&rig, specs(jobs, 5_000_000 / jobs));
        rig.mesh.kill_manager();
        until_true("all have noticed", || light.connected() == 0);
        rig.mesh.start_manager();
        let start = Instant::now();
        until_true("all are back", || light.connected() == AGENTS);
        start.elapsed()
    };
    let one = took(1);
    milliseconds(table, "1,000 agents back with 500 shapes queued", took(500), one);
}

/// Adds a time, compared with that of one shape.
fn milliseconds(table: &mut Table, name: &str, took: Duration, one: Duration) {
    let [took, one] = [took, one].map(|time| time.as_secs_f64() * 1000.0);
    table.ratio(&format!("{name}, against one shape"), took, one, "ms", "");
}
