//! Real processes compared with a bare spawn-and-wait loop with as many in flight.

use std::process::Stdio;
use std::time::Instant;

use podmesh_protocol::spec::RuntimeSpec;
use tokio::task::JoinSet;

use crate::rig::{Rig, job};
use crate::table::{Table, median};

const TASKS: u32 = 4_000;
const IN_FLIGHT: usize = 64;
/// Half of the processes in flight run on each of two agents.
const FLAGS: [&str; 4] = ["--cpus", "32", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let rig = Rig::new(&["a", "b"], &FLAGS);
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    rig.rate(job(RuntimeSpec::Process, &["true"], 500));
    for _ in 0..5 {
        bare.push(rig.runtime.block_on(spawn_and_wait()));
        ours.push(rig.rate(job(RuntimeSpec::Process, &["true"], TASKS)));
    }
    let measure = format!("processes (`true`)/s, {IN_FLIGHT} in flight, against spawn-and-wait");
    table.ratio(&measure, median(ours), median(bare), "/s", "0.8");
}

async fn spawn_and_wait() -> f64 {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..TASKS {
        if running.len() == IN_FLIGHT {
            running.join_next().await.unwrap().unwrap();
        }
        let mut child = tokio::process::Command::new("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        running.spawn(async move {
            assert!(child.wait().await.unwrap().success());
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    f64::from(TASKS) / start.elapsed().as_secs_f64()
}
