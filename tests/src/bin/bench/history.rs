//! Jobs of one task, with few and with many ended jobs in the database.

use std::thread::sleep;
use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::spec::RuntimeSpec;

use crate::rig::job;
use crate::shapes::{crowd, submit};
use crate::table::{Table, median};

/// Jobs that are submitted side by side.
const BATCH: u32 = 5_000;

pub(crate) fn measure(table: &mut Table) {
    let (rig, _light) = crowd(2, 1000);
    let mut ended = 0;
    // Runs batches until so many jobs have ended, and returns the median rate of the last ones.
    let mut rate_at = |jobs: u32| {
        let mut rates = Vec::new();
        while ended < jobs {
            let start = Instant::now();
            let specs = (0..BATCH).map(|_| job(RuntimeSpec::Noop, &[], 1)).collect();
            submit(&rig, specs);
            let active = || {
                rig.ask(RequestBody::Jobs {
                    before: None,
                    active: true,
                    by: None,
                    service: None,
                    replica: None,
                    limit: 1,
                })
            };
            while !matches!(active(), ReplyBody::Jobs(jobs) if jobs.is_empty()) {
                sleep(Duration::from_millis(1));
            }
            rates.push(f64::from(BATCH) / start.elapsed().as_secs_f64());
            ended += BATCH;
        }
        median(rates.split_off(rates.len().saturating_sub(9)))
    };
    let few = rate_at(100_000);
    let many = rate_at(1_000_000);
    let name = "jobs/s of one no-op task, 1,000,000 ended jobs against 100,000";
    table.ratio(name, many, few, "/s", "0.9");
}
