//! No-op tasks: throughput, long queues, memory, and the manager's start with a long history.

use std::time::Instant;

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::mesh::Mesh;

use crate::rig::{Rig, job};
use crate::table::{Table, median, megabytes};

const AGENTS: [&str; 2] = ["a", "b"];
/// Attempts in flight: 1000 on each agent.
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let mut rig = Rig::new(&AGENTS, &FLAGS);
    let idle = (rig.mesh.manager().resident_bytes(), rig.mesh.agent("a").resident_bytes());
    table.figure("memory: manager, idle", megabytes(idle.0), "25 MB");
    table.figure("memory: agent, idle", megabytes(idle.1), "20 MB");

    let rate = |tasks| rig.rate(job(RuntimeSpec::Noop, &[], tasks));
    rate(10_000);
    let hundred_thousand = median((0..3).map(|_| rate(100_000)).collect());
    table.figure("no-op tasks/s, array of 100,000", format!("{hundred_thousand:.0}/s"), "30,000/s");

    // The same with queued tasks that no node can run.
    let mut queued = |tasks: u32| {
        let mut waiting = job(RuntimeSpec::Noop, &[], tasks);
        waiting.priority = -1;
        let label = ("nowhere".parse().unwrap(), "yes".to_owned());
        waiting.require = [label].into();
        let waiting = rig.submit(waiting);
        let rate = median((0..3).map(|_| rig.rate(job(RuntimeSpec::Noop, &[], 100_000))).collect());
        let resident = rig.mesh.manager().resident_bytes();
        rig.ask(RequestBody::Cancel { job: waiting, downstream: false });
        (rate, resident)
    };
    let (behind_10k, _) = queued(10_000);
    let (behind_1m, resident) = queued(1_000_000);
    table.ratio(
        "no-op tasks/s, 1,000,000 queued against 10,000",
        behind_1m,
        behind_10k,
        "/s",
        "0.8",
    );
    table.figure("memory: manager, 1,000,000 queued", megabytes(resident), "100 MB");

    let small = median((0..5).map(|_| rig.rate(job(RuntimeSpec::Noop, &[], 10_000))).collect());
    let million = rig.rate(job(RuntimeSpec::Noop, &[], 1_000_000));
    table.ratio("no-op tasks/s, array of 1,000,000 against 10,000", million, small, "/s", "0.8");
    let resident = rig.mesh.manager().resident_bytes();
    table.figure("memory: manager, after 2,000,000 tasks", megabytes(resident), "");

    // Stop all agents, so that only the start is measured.
    for agent in AGENTS {
        rig.mesh.stop_agent(agent);
    }
    rig.mesh.kill_manager();
    let start = Instant::now();
    rig.mesh.start_manager();
    let took = start.elapsed();
    rig.reconnect();
    let jobs = rig.ask(RequestBody::Jobs {
        before: None,
        active: false,
        by: None,
        service: None,
        replica: None,
        limit: 1000,
    });
    let ReplyBody::Jobs(jobs) = jobs else { panic!("no jobs") };
    let finished: u64 = jobs.iter().map(|job| job.counts.ended()).sum();
    let took = format!("{:.2} s", took.as_secs_f64());
    table.figure(&format!("manager's start after kill -9, {finished} ended tasks"), took, "2 s");
    let mesh: &Mesh = &rig.mesh;
    let database = std::fs::read_dir(mesh.data_dir().join("manager"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    table.figure("database on disk after that", megabytes(database), "");
}
