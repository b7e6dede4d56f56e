//! Work that is planned: workflows, and schedules.

use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::JobId;
use podmesh_protocol::limits::SCHEDULES_MAX;
use podmesh_protocol::schedule::{Overlap, ScheduleReply, ScheduleRequest, ScheduleSpec, When};
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::wait::until_true;

use crate::churn::cpu_seconds;
use crate::rig::{Rig, job};
use crate::table::{Table, percentile};
use crate::workflows;

const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];
/// How long the manager is watched while no schedule is due.
const REST: Duration = Duration::from_secs(10);
/// The time in which every schedule is due once.
const PERIOD: Duration = Duration::from_secs(30);

pub(crate) fn measure(table: &mut Table) {
    workflows::measure(table);
    schedules(table);
}

/// Measures what schedules cost while none is due, and how late their runs start.
fn schedules(table: &mut Table) {
    let mut rig = Rig::new(&["a"], &FLAGS);
    save_all(&rig, Duration::from_secs(86_400), Duration::ZERO);
    let manager = rig.mesh.manager().pid();
    let before = cpu_seconds(manager);
    std::thread::sleep(REST);
    let share = 100.0 * (cpu_seconds(manager) - before) / REST.as_secs_f64();
    table.figure("10,000 schedules at rest: of a core", format!("{share:.2} %"), "1 %");
    drop(rig);
    let rig = Rig::new(&["a"], &FLAGS);
    // Saved one after the other, they are due one after the other.
    save_all(&rig, PERIOD, PERIOD);
    let last = || JobId(SCHEDULES_MAX as u64);
    until_true("as many runs as there are schedules", || {
        rig.runtime.block_on(rig.client.request(request(last()))).is_ok()
    });
    let mut late: Vec<Duration> = (1..=last().0).map(|job| lateness(&rig, JobId(job))).collect();
    let p99 = percentile(&mut late, 0.99).as_millis();
    let measure = "10,000 runs in 30 s: instant to job on disk, p99";
    table.figure(measure, format!("{p99} ms"), "50 ms");
}

fn save_all(rig: &Rig, every: Duration, within: Duration) {
    let start = Instant::now();
    for number in 0..SCHEDULES_MAX {
        #[expect(clippy::cast_possible_truncation, reason = "schedules are fewer than 2^32")]
        let due = within * number as u32 / SCHEDULES_MAX as u32;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let spec = Box::new(ScheduleSpec {
            name: format!("s{number}").parse().unwrap(),
            when: When::Every { every_ms: every.as_millis().try_into().unwrap() },
            overlap: Overlap::Skip,
            catch_up_ms: 3_600_000,
            job: Box::new(job(RuntimeSpec::Noop, &[], 1)),
        });
        let reply = rig.ask(RequestBody::Schedule(ScheduleRequest::Save { spec }));
        assert!(matches!(reply, ReplyBody::Schedule(ScheduleReply::Saved { .. })), "{reply:?}");
    }
}

fn request(job: JobId) -> RequestBody {
    RequestBody::Job { job, since: None, wait_ms: 0 }
}

/// Returns how long after its instant the job of a run was submitted.
fn lateness(rig: &Rig, job: JobId) -> Duration {
    let ReplyBody::Job(detail) = rig.ask(request(job)) else { panic!("no job {job}") };
    let run = detail.spec.scheduled.unwrap();
    Duration::from_millis(detail.view.submitted_wall_ms - run.instant_ms)
}
