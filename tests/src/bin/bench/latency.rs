//! The latency of one task on an idle mesh.

use std::process::Stdio;
use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::spec::RuntimeSpec;

use crate::rig::{Rig, job};
use crate::table::{Table, percentile};

const TRIES: usize = 200;
const FLAGS: [&str; 2] = ["--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let rig = Rig::new(&["a", "b"], &FLAGS);
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
