//! Compares this build with another one, `PODMESH_BASELINE`.

use std::path::Path;
use std::time::{Duration, Instant};

use podmesh_protocol::client::RequestBody;
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::mesh::Mesh;

use super::{FLAGS, program};
use crate::rig::{Rig, job};
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5;
const TASKS: u32 = 100_000;
const REQUESTS: usize = 2_000;

pub(super) fn measure(table: &mut Table) {
    let Some(other) = std::env::var_os("PODMESH_BASELINE") else {
        let why = "skipped: PODMESH_BASELINE is not set";
        return table.figure("no-op tasks/s and round trip against another build", why.into(), "");
    };
    let rigs = [rig(&program()), rig(Path::new(&other))];
    let (mut rates, mut trips) = ([vec![], vec![]], [vec![], vec![]]);
    for round in 0..=ROUNDS {
        for (n, rig) in rigs.iter().enumerate() {
            let rate = rig.rate(job(RuntimeSpec::Noop, &[], TASKS));
            let trip = round_trip(rig).as_secs_f64() * 1e6;
            // The first round warms up.
            if round > 0 {
                rates[n].push(rate);
                trips[n].push(trip);
            }
        }
    }
    let [ours, theirs] = rates.map(median);
    table.ratio("no-op tasks/s against the baseline", ours, theirs, "/s", "0.9");
    let [ours, theirs] = trips.map(median);
    table.ratio("request and answer, p50, against the baseline", ours, theirs, "µs", "1.1 at most");
}

fn rig(program: &Path) -> Rig {
    let mut mesh = Mesh::new(program);
    mesh.start_manager();
    for name in ["a", "b"] {
        mesh.start_agent(name, &FLAGS);
    }
    Rig::of(mesh)
}

fn round_trip(rig: &Rig) -> Duration {
    let mut times: Vec<_> = rig.runtime.block_on(async {
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            let began = Instant::now();
            rig.client.request(RequestBody::Info).await.unwrap();
            times.push(began.elapsed());
        }
        times
    });
    percentile(&mut times, 0.5)
}
