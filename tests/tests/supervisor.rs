//! Processes outlive their agent, and nothing outlives their supervisor.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::{Daemon, with_environment};
use podmesh_tests::supervisor;
use podmesh_tests::wait::{until, until_true};
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Prints numbered lines until a file `stop` exists, then a last line, and exits with code 5.
const COUNT: &str = "i=0; while ! test -e stop; do i=$((i+1)); echo $i; sleep 0.005; done; \
                     echo end; exit 5";

fn last_attempt(mesh: &Mesh, job: u64) -> Value {
    mesh.json(&["tasks", &job.to_string()])["tasks"][0]["last_attempt"].clone()
}

/// Returns the records of a job's attempts.
fn record(mesh: &Mesh, agent: &str, job: u64) -> String {
    let records = mesh.agent_dir(agent).join("agent/work/records");
    let text = fs::read(records).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let of_job = format!("{{\"attempt\":[{job},");
    text.lines().filter_map(|line| Some(&line[line.find(&of_job)?..])).collect()
}

/// Returns the processes of an agent's attempts.
fn processes_of(data_dir: &Path) -> Vec<Pid> {
    let id = fs::read_to_string(data_dir.join("agent/id")).unwrap();
    with_environment(&format!("PODMESH_AGENT={}", id.trim()))
}

fn is_gone(pid: Pid) -> bool {
    kill(pid, None) == Err(Errno::ESRCH)
}

/// Waits until programs have written `count` process ids into a file, and returns them.
fn pids(file: &Path, count: usize) -> Vec<Pid> {
    until("programs have written their process ids", || {
        let text = fs::read_to_string(file).unwrap_or_default();
        let complete = text.ends_with('\n') && text.lines().count() == count;
        complete.then(|| text.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect())
    })
}

#[test]
fn a_process_survives_kills_of_its_agent_and_every_line_is_captured_once() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let job = mesh.submit(&["--", "sh", "-c", COUNT]);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    let bytes = || fs::metadata(&log).map_or(0, |log| log.len());
    until_true("it prints", || bytes() > 0);
    let (stdout, stderr) = (mesh.folder().join("followed"), mesh.folder().join("said"));
    let follow = mesh.podmesh(&["logs", "-f", &job.to_string()]);
    let mut follow = Daemon::start_split(follow, &stdout, &stderr);
    for _ in 0..3 {
        mesh.kill_agent("a");
        let before = bytes();
        until_true("it prints without an agent", || bytes() > before + 100);
        mesh.start_agent("a", &[]);
    }
    mesh.wait_for_job(job, "running");
    fs::write(mesh.agent_dir("a").join("agent/work/0/folder/stop"), "").unwrap();
    mesh.wait_for_job(job, "failed");

    let attempt = last_attempt(&mesh, job);
    assert_eq!((&attempt["number"], &attempt["outcome"]["exit_code"]), (&1.into(), &5.into()));
    let printed = fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    let expected = (1..lines.len()).map(|line| line.to_string()).chain(["end".to_owned()]);
    assert!(lines.iter().map(|line| (*line).to_owned()).eq(expected), "{printed}");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), printed);
    follow.wait_for_end();
    let followed = fs::read_to_string(&stdout).unwrap();
    assert_eq!(followed, printed, "{}", follow.printed());
}

#[test]
fn an_exit_while_agent_and_supervisor_are_away_is_reported() {
    for also_supervisor in [false, true] {
        let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
        let gate = mesh.folder().join("gate");
        let script =
            format!("until test -e {}; do sleep 0.01; done; echo over; exit 7", gate.display());
        let job = mesh.submit(&["--", "sh", "-c", &script]);
        mesh.wait_for_job(job, "running");
        mesh.kill_agent("a");
        fs::write(&gate, "").unwrap();
        until_true("its end is recorded", || record(&mesh, "a", 1).contains("ended"));
        if also_supervisor {
            supervisor::kill_and_wait(&mesh.agent_dir("a"));
        }
        mesh.start_agent("a", &[]);
        mesh.wait_for_job(job, "failed");
        let attempt = last_attempt(&mesh, job);
        assert_eq!((&attempt["number"], &attempt["outcome"]["exit_code"]), (&1.into(), &7.into()));
        assert_eq!(mesh.ok(&["logs", &job.to_string()]), "over\n");
        until_true("its record is removed", || record(&mesh, "a", 1).is_empty());
    }
}

#[test]
fn processes_survive_a_stop_of_their_agent_which_can_stop_them_after_its_restart() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let supervisor = mesh.supervisor("a");
    let job = mesh.submit(&["--", "sleep", "1000"]);
    mesh.wait_for_job(job, "running");
    assert!(mesh.stop_agent("a").success());
    assert_eq!(processes_of(&mesh.agent_dir("a")).len(), 1);
    mesh.start_agent("a", &[]);
    mesh.wait_for_job(job, "running");
    assert_eq!(mesh.supervisor("a"), supervisor);
    mesh.ok(&["cancel", &job.to_string()]);
    mesh.wait_for_job(job, "cancelled");
    let attempt = last_attempt(&mesh, job);
    assert_eq!((&attempt["number"], &attempt["outcome"]["signal"]), (&1.into(), &15.into()));
    // Without processes and without an agent, the supervisor ends by itself.
    assert!(mesh.stop_agent("a").success());
    assert!(supervisor::lives(&mesh.agent_dir("a")));
    until_true("the supervisor ends", || !supervisor::lives(&mesh.agent_dir("a")));
    mesh.start_agent("a", &[]);
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn processes_of_a_killed_supervisor_are_killed_reported_as_lost_and_retried() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("pids");
    // One process has its own session and an empty environment, so nothing shows its origin.
    let script = format!(
        "test $PODMESH_ATTEMPT = 2 && exit 0
         env -i setsid sh -c 'echo $$ >> {0}; exec sleep 1000' & echo $$ >> {0}; wait",
        file.display()
    );
    let retried =
        mesh.submit(&["--retries", "1", "--retry-backoff", "10ms", "--", "sh", "-c", &script]);
    let lost = mesh.submit(&["--", "sleep", "1000"]);
    let mut pids = pids(&file, 2);
    mesh.wait_for_job(lost, "running");
    // Listed before the kill: afterwards, the next attempt of the other job may be among them.
    pids.extend(processes_of(&mesh.agent_dir("a")));
    assert!(pids.len() >= 4, "{pids:?}");
    mesh.kill_supervisor("a");
    mesh.wait_for_job(lost, "failed");
    // They are gone before their end is reported.
    for pid in pids {
        assert!(is_gone(pid), "process {pid} is still running");
    }
    let outcome = &last_attempt(&mesh, lost)["outcome"];
    assert_eq!(outcome["kind"], "lost");
    let message = outcome["message"].as_str().unwrap();
    assert!(message.contains("supervisor") && message.contains("died"), "{message}");
    mesh.wait_for_job(retried, "succeeded");
    assert_eq!(last_attempt(&mesh, retried)["number"], 2);
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn a_supervisor_that_is_stopped_gives_processes_their_grace() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let job = mesh.submit(&["--", "sh", "-c", script]);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    until_true("it handles SIGTERM", || fs::read(&log).is_ok_and(|printed| printed == b"ready\n"));
    kill(mesh.supervisor("a"), Signal::SIGTERM).unwrap();
    mesh.wait_for_job(job, "failed");
    let outcome = &last_attempt(&mesh, job)["outcome"];
    assert_eq!((&outcome["kind"], &outcome["exit_code"]), (&"lost".into(), &0.into()));
    assert!(outcome["message"].as_str().unwrap().contains("was stopped"), "{outcome}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\nbye\n");
    // A live agent starts a new supervisor.
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn agent_and_supervisor_killed_together_leave_no_process_and_losses_are_reported() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("pids");
    let script =
        format!("setsid sh -c 'echo $$ >> {0}; sleep 1000' & echo $$ >> {0}; wait", file.display());
    let job = mesh.submit(&["--array", "1-2", "--", "sh", "-c", &script]);
    let pids = pids(&file, 4);
    let dir = mesh.agent_dir("a");
    mesh.kill_agent("a");
    supervisor::kill_and_wait(&dir);
    assert!(pids.into_iter().all(is_gone));
    mesh.start_agent("a", &[]);
    assert_eq!(mesh.wait_for_job(job, "failed")["tasks"]["failed"], 2);
    assert_eq!(last_attempt(&mesh, job)["outcome"]["kind"], "lost");
}

#[test]
fn a_killed_keeper_does_no_harm_and_the_next_supervisor_does_its_work() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("pids");
    let script =
        format!("setsid sh -c 'echo $$ >> {0}; sleep 1000' & echo $$ >> {0}; wait", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    let pids = pids(&file, 2);
    let status = fs::read_to_string(format!("/proc/{}/status", mesh.supervisor("a"))).unwrap();
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    let keeper = Pid::from_raw(keeper.trim().parse().unwrap());
    kill(keeper, Signal::SIGKILL).unwrap();
    mesh.kill_agent("a");
    mesh.start_agent("a", &[]);
    mesh.wait_for_job(job, "running");
    // Now the processes can be found only by their marks.
    mesh.kill_supervisor("a");
    mesh.wait_for_job(job, "failed");
    assert_eq!(last_attempt(&mesh, job)["outcome"]["kind"], "lost");
    until_true("nothing is left", || pids.iter().all(|pid| is_gone(*pid)));
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn twenty_restarts_in_a_row_under_load_run_everything_once_and_leave_nothing() {
    const TASKS: u32 = 600;
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    mesh.start_agent("a", &["--cpus", "16"]);
    mesh.ok(&["run", "--", "true"]);
    let pid = mesh.supervisor("a");
    let open_files = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = open_files();

    let marks = mesh.shared_folder("marks");
    let script = format!("mktemp -q {}/$PODMESH_TASK_INDEX.XXXXXX; sleep 0.1", marks.display());
    let array = format!("1-{TASKS}");
    let job = mesh.submit(&["--array", &array, "--", "sh", "-c", &script]);
    for restart in 0..20 {
        // In the middle: more tasks have begun than before, and others are still queued.
        until_true("some have begun", || fs::read_dir(&marks).unwrap().count() > restart * 10);
        mesh.kill_agent("a");
        mesh.start_agent("a", &["--cpus", "16"]);
    }
    let ended = mesh.wait_for_job(job, "succeeded");
    assert_eq!(ended["tasks"]["succeeded"], TASKS);
    let ran = fs::read_dir(&marks).unwrap().count();
    assert_eq!(ran, TASKS as usize, "each ran once");

    assert_eq!(mesh.supervisor("a"), pid, "the same supervisor throughout");
    assert_eq!(processes_of(&mesh.agent_dir("a")), []);
    let children = format!("/proc/{pid}/task/{pid}/children");
    let has_children = |path: &str| !fs::read_to_string(path).unwrap().is_empty();
    until_true("no child is left", || !has_children(&children));
    until_true("no open file is left", || open_files() <= before);
    let work = mesh.agent_dir("a").join("agent/work");
    until_true("all records are removed", || record(&mesh, "a", job).is_empty());
    for entry in fs::read_dir(&work).unwrap() {
        let entry = entry.unwrap().path();
        // What is left is kept for the next attempts.
        let is_empty = |folder: &Path| fs::read_dir(folder).unwrap().count() == 0;
        assert!(entry.is_file() || is_empty(&entry.join("folder")), "{}", entry.display());
    }
}

#[test]
fn agents_and_supervisors_killed_in_any_order_never_leave_two_copies() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    mesh.start_agent("a", &["--cpus", "8"]);
    let dir = mesh.shared_folder("locks");
    // The lock is held as long as any process of an attempt is running.
    let script = format!(
        "flock -n -E 99 {0}/$PODMESH_TASK_INDEX.lock sh -c 'setsid sleep 0.2 & sleep 0.1'
         test $? != 99 || touch {0}/violated
         touch {0}/$PODMESH_TASK_INDEX.done",
        dir.display()
    );
    let job = mesh.submit(&[
        "--array",
        "1-200",
        "--retries",
        "100",
        "--retry-backoff",
        "1ms",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let done = || {
        let is_done = |name: &std::ffi::OsStr| name.as_encoded_bytes().ends_with(b".done");
        fs::read_dir(&dir)
            .unwrap()
            .filter(|entry| is_done(&entry.as_ref().unwrap().file_name()))
            .count()
    };
    for round in 0..8 {
        until_true("some more are done", || done() > round * 10);
        match round % 4 {
            0 => mesh.kill_supervisor("a"),
            1 => mesh.kill_agent("a"),
            2 => {
                mesh.kill_supervisor("a");
                mesh.kill_agent("a");
            }
            _ => {
                mesh.kill_agent("a");
                mesh.kill_supervisor("a");
            }
        }
        if round % 4 != 0 {
            mesh.start_agent("a", &["--cpus", "8"]);
        }
    }
    assert_eq!(mesh.wait_for_job(job, "succeeded")["tasks"]["succeeded"], 200);
    assert!(!dir.join("violated").exists());
    until_true("no process is left", || processes_of(&mesh.agent_dir("a")).is_empty());
}

#[test]
fn the_supervisor_enforces_the_lease_of_an_agent_that_stays_dead() {
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--lease", "2s", "--heartbeat", "200ms"]);
    mesh.start_manager();
    mesh.start_agent("a", &["--cpus", "2"]);
    let file = mesh.folder().join("pids");
    let script = format!("echo $$ >> {}; exec sleep 1000", file.display());
    mesh.submit(&["--on-lost", "requeue", "--", "sh", "-c", &script]);
    let requeued = pids(&file, 1)[0];
    let gate = mesh.folder().join("gate");
    let script = format!("until test -e {}; do sleep 0.01; done; exit 3", gate.display());
    let waits = mesh.submit(&["--on-lost", "wait", "--", "sh", "-c", &script]);
    mesh.wait_for_job(waits, "running");
    mesh.kill_agent("a");
    until_true("the requeued attempt is killed", || is_gone(requeued));
    until_true("the reason is recorded", || record(&mesh, "a", 1).contains("lease ended"));
    // The attempt with `on_lost = "wait"` keeps running.
    fs::write(&gate, "").unwrap();
    until_true("it ends by itself", || record(&mesh, "a", 2).contains("ended"));
    mesh.start_agent("a", &["--cpus", "2"]);
    mesh.wait_for_job(waits, "failed");
    let attempt = last_attempt(&mesh, waits);
    assert_eq!((&attempt["number"], &attempt["outcome"]["exit_code"]), (&1.into(), &3.into()));
}

#[test]
fn a_timeout_is_enforced_while_the_agent_is_away() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("pids");
    let script = format!(
        "trap 'echo bye; exit 5' TERM; echo $$ >> {}; while :; do sleep 0.05; done",
        file.display()
    );
    let job = mesh.submit(&["--timeout", "2s", "--", "sh", "-c", &script]);
    let pid = pids(&file, 1)[0];
    let began = Instant::now();
    mesh.kill_agent("a");
    until_true("it is stopped", || is_gone(pid));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    until_true("the reason is recorded", || record(&mesh, "a", job).contains("timed_out"));
    mesh.start_agent("a", &[]);
    mesh.wait_for_job(job, "failed");
    let outcome = &last_attempt(&mesh, job)["outcome"];
    assert_eq!((&outcome["kind"], &outcome["exit_code"]), (&"timed_out".into(), &5.into()));
    assert!(outcome["message"].as_str().unwrap().contains("its timeout of 2 s"), "{outcome}");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "bye\n");
    // The same happens with an agent.
    assert_eq!(
        mesh.output(&["run", "--timeout", "1s", "--", "sleep", "1000"]).status.code(),
        Some(124)
    );
}

#[test]
fn a_killed_dev_leaves_no_process() {
    let mesh = Mesh::new(PODMESH);
    let mut command = mesh.podmesh(&["dev", "--agents", "1", "--listen", "127.0.0.1:0"]);
    command.stdin(Stdio::null());
    let dev = Daemon::start(command, &mesh.folder().join("dev.txt"));
    until_true("the agent is alive", || mesh.nodes().iter().any(|node| node["state"] == "alive"));
    let job = mesh.submit(&["--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]);
    mesh.wait_for_job(job, "running");
    let host = mesh.data_dir().join("node-1");
    assert!(supervisor::lives(&host));
    dev.kill();
    until_true("nothing is left", || !supervisor::lives(&host));
    assert_eq!(processes_of(&host), []);
}
