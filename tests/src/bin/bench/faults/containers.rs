//! Containers whose agent is killed at random times: their lines and exit codes.

use std::fs;
use std::time::{Duration, Instant};

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::JobId;
use podmesh_protocol::spec::{DockerSpec, PullPolicy, RuntimeSpec};
use podmesh_tests::docker;

use crate::rig::{Rig, job};
use crate::table::Table;

const LINES: u32 = 5_000;
const PRINTERS: u32 = 4;
const EXITS: u32 = 40;
/// The longest pause before the next kill.
const LIFE_MS_MAX: u64 = 400;
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn measure(table: &mut Table) {
    let kills = super::kills();
    let Some(image) = docker::image() else {
        eprintln!("  SKIPPED: no Docker engine answers");
        return;
    };
    let mut rig = Rig::new(&["a"], &[]);
    let docker = || {
        RuntimeSpec::from(DockerSpec {
            image: image.to_owned(),
            pull: PullPolicy::Never,
            ..DockerSpec::default()
        })
    };
    let script = format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i; usleep 500; done");
    let (mut printed, mut wrong) = (0, 0);
    let log_kills = kills.div_ceil(10);
    let mut killed = 0;
    while killed < log_kills {
        let mut spec = job(docker(), &["sh", "-c", &script], PRINTERS);
        spec.resources.cpu_millis = 100;
        let id = rig.submit(spec);
        killed += kill_until_ended(&mut rig, id, u64::from(killed));
        rig.wait(id);
        for task in 1..=PRINTERS {
            printed += LINES;
            wrong += wrong_lines(&rig, id, task);
        }
    }
    let name = format!("lines of containers missing or duplicated, agent killed {killed} times");
    table.figure(&name, format!("{wrong} of {printed}"), "0");

    let exit_kills = kills.div_ceil(5);
    let (mut killed, mut tasks, mut other) = (0, 0, 0);
    while killed < exit_kills {
        let script = "usleep $((PODMESH_TASK_INDEX % 5 * 100000)); exit $PODMESH_TASK_INDEX";
        let mut spec = job(docker(), &["sh", "-c", script], EXITS);
        spec.resources.cpu_millis = 250;
        let id = rig.submit(spec);
        killed += kill_until_ended(&mut rig, id, u64::from(killed));
        tasks += EXITS;
        other += other_codes(&rig, id);
    }
    let name = format!("exit codes lost or wrong, agent killed {killed} times");
    table.figure(&name, format!("{other} of {tasks}"), "0");
    let agent = rig.mesh.agent_dir("a").join("agent/id");
    let agent = fs::read_to_string(agent).unwrap();
    // Containers are removed in the background.
    let until = Instant::now() + REMOVAL_LIMIT;
    let mut left = docker::containers_of(agent.trim()).len();
    while left > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        left = docker::containers_of(agent.trim()).len();
    }
    table.figure("containers left behind", left.to_string(), "0");
}

/// Kills the agent repeatedly until the job has ended, and returns how often.
fn kill_until_ended(rig: &mut Rig, id: JobId, seed: u64) -> u32 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut killed = 0;
    while !has_ended(rig, id) {
        std::thread::sleep(Duration::from_millis(random.u64(..LIFE_MS_MAX)));
        rig.mesh.kill_agent("a");
        rig.mesh.start_agent("a", &[]);
        killed += 1;
    }
    killed
}

fn has_ended(rig: &Rig, job: JobId) -> bool {
    let body = RequestBody::Job { job, since: None, wait_ms: 0 };
    let ReplyBody::Job(detail) = rig.ask(body) else { panic!("no job") };
    detail.view.is_end()
}

fn wrong_lines(rig: &Rig, id: JobId, task: u32) -> u32 {
    let folder = rig.mesh.logs("a", id.0, task, 1);
    let text = fs::read_to_string(folder.join("stdout.log")).unwrap_or_default();
    let mut expected = 1..=LINES;
    let mut wrong = 0;
    for line in text.lines() {
        let right = expected.next().is_some_and(|number| line == number.to_string());
        wrong += u32::from(!right);
    }
    wrong + u32::try_from(expected.count()).unwrap()
}

fn other_codes(rig: &Rig, job: JobId) -> u32 {
    let body = RequestBody::Tasks { job, from: 1, state: None, limit: EXITS };
    let ReplyBody::Tasks { tasks, .. } = rig.ask(body) else { panic!("no tasks") };
    assert_eq!(tasks.len(), EXITS as usize);
    let right = |index: u32, attempts: u32, code: Option<i32>| {
        attempts == 1 && code.and_then(|code| u32::try_from(code).ok()) == Some(index)
    };
    let other = tasks.iter().filter(|view| {
        let code = view.last.as_ref().and_then(|last| last.outcome.as_ref()?.exit_code);
        !right(view.task.index, view.attempts, code)
    });
    u32::try_from(other.count()).unwrap()
}
