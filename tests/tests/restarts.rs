//! The manager and agents killed and restarted in any order.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Stdio;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::Daemon;
use podmesh_tests::supervisor;
use podmesh_tests::wait::until_true;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns a mesh with short leases.
fn quick() -> Mesh {
    Mesh::new(PODMESH).manager_flags(&["--lease", "2s", "--heartbeat", "200ms"])
}

#[test]
fn agents_may_start_before_their_manager() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.spawn_agent("early", &[]);
    until_true("the agent has tried without success", || {
        mesh.agent("early").printed().contains("no manager answers")
    });
    mesh.start_manager();
    mesh.wait_for_node("early", "alive");
    assert_eq!(mesh.ok(&["run", "--", "echo", "late but there"]), "late but there\n");
}

#[test]
fn a_manager_killed_during_an_array_loses_nothing_and_runs_nothing_twice() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a", "b"]);
    let marks = mesh.shared_folder("marks");
    // Each run of a task creates its own file.
    let script = format!("mktemp -q {}/$PODMESH_TASK_INDEX.XXXXXX", marks.display());
    let job = mesh.submit(&["--array", "1-600", "--", "sh", "-c", &script]);
    for kills in 1..=3 {
        until_true("some more have ended", || fs::read_dir(&marks).unwrap().count() > kills * 100);
        mesh.kill_manager();
        mesh.start_manager();
    }
    let ended = mesh.wait_for_job(job, "succeeded");
    assert_eq!(ended["tasks"]["succeeded"], 600);
    let mut ran: Vec<u32> = fs::read_dir(&marks)
        .unwrap()
        .map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.split('.').next().unwrap().parse().unwrap()
        })
        .collect();
    ran.sort_unstable();
    assert_eq!(ran, (1..=600).collect::<Vec<_>>());
    let tasks = mesh.json(&["tasks", &job.to_string(), "--all"]);
    for task in tasks["tasks"].as_array().unwrap() {
        assert_eq!(task["attempts"], 1, "{task}");
    }
}

#[test]
fn tasks_keep_running_without_their_manager_and_are_reported_later() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let gate = mesh.folder().join("gate");
    let done = mesh.folder().join("done");
    let script = format!(
        "while ! test -e {}; do sleep 0.02; done; echo over; touch {}; exit 4",
        gate.display(),
        done.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    mesh.kill_manager();
    fs::write(&gate, "").unwrap();
    until_true("the task ends while the manager is away", || done.exists());
    mesh.start_manager();
    mesh.wait_for_job(job, "failed");
    let tasks = mesh.json(&["tasks", &job.to_string()]);
    let last = &tasks["tasks"][0]["last_attempt"];
    assert_eq!(last["number"], 1);
    assert_eq!(last["outcome"]["exit_code"], 4);
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "over\n");
}

#[test]
fn run_continues_across_a_restart_of_the_manager() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let gate = mesh.folder().join("gate");
    let script =
        format!("echo one; while ! test -e {}; do sleep 0.02; done; echo two", gate.display());
    let run = mesh
        .podmesh(&["run", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    mesh.wait_for_job(1, "running");
    mesh.kill_manager();
    mesh.start_manager();
    fs::write(&gate, "").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn everything_acknowledged_survives_kill_9() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["submit", "--wait", "--name", "ended", "--array", "1-20", "--", "true"]);
    let waiting = mesh.submit(&["--name", "waits", "--require", "no=where", "--", "true"]);
    let look = |mesh: &Mesh| {
        let mut jobs = mesh.json(&["jobs"]);
        let tasks = mesh.json(&["tasks", "1", "--all"]);
        let events = mesh.ok(&["events", "--output", "json"]);
        let lines: Vec<Value> =
            events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        jobs["jobs"].as_array_mut().unwrap().sort_by_key(|job| job["job"].as_u64());
        (jobs, tasks, lines)
    };
    let before = look(&mesh);
    mesh.kill_manager();
    mesh.start_manager();
    let after = look(&mesh);
    assert_eq!(after.0, before.0);
    assert_eq!(after.1, before.1);
    // Earlier events are unchanged; later ones (the agent reconnected) follow.
    assert_eq!(after.2[..before.2.len()], before.2);
    mesh.start_agent("b", &["--label", "no=where"]);
    mesh.wait_for_job(waiting, "succeeded");
    assert_eq!(mesh.submit(&["--", "true"]), waiting + 1, "job numbers continue");
}

#[test]
fn a_task_of_an_agent_that_stays_away_is_retried_elsewhere() {
    let mut mesh = quick();
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let runs = mesh.folder().join("runs");
    let script = format!(
        "echo $PODMESH_NODE >> {0}; test $(wc -l < {0}) -gt 1 || sleep 1000",
        runs.display()
    );
    let job = mesh.submit(&["--on-lost", "requeue", "--", "sh", "-c", &script]);
    until_true("it runs", || runs.exists());
    mesh.kill_agent("a");
    mesh.wait_for_node("a", "suspect");
    mesh.start_agent("b", &[]);
    mesh.wait_for_node("a", "lost");
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(fs::read_to_string(&runs).unwrap(), "a\nb\n");
    // Without an agent, the supervisor has ended the process.
    let agent = fs::read_to_string(mesh.agent_dir("a").join("agent/id")).unwrap();
    let left = podmesh_tests::process::with_environment(&format!("PODMESH_AGENT={}", agent.trim()));
    assert_eq!(left, []);
    // After its restart, nothing that the agent reports about it counts.
    mesh.start_agent("a", &[]);
    assert_eq!(mesh.wait_for_job(job, "succeeded")["tasks"]["succeeded"], 1);
}

#[test]
fn an_agent_with_stop_processes_stops_and_reports_them() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    mesh.start_agent("a", &["--stop-processes"]);
    let job = mesh.submit(&["--", "sleep", "1000"]);
    mesh.wait_for_job(job, "running");
    assert!(mesh.stop_agent("a").success());
    mesh.wait_for_job(job, "failed");
    mesh.wait_for_node("a", "suspect");
    until_true("nothing is left", || !supervisor::lives(&mesh.agent_dir("a")));
}

#[test]
fn a_manager_stops_cleanly_and_restarts() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    assert!(mesh.stop_manager().success());
    assert!(!mesh.output(&["nodes"]).status.success());
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn a_second_manager_on_the_same_data_directory_is_refused() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let output = mesh.podmesh(&["manager", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&*mesh.data_dir().to_string_lossy()), "{said}");
}

#[test]
fn a_second_agent_with_the_same_name_is_told_to_use_another() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    mesh.spawn_local_agent("twin", &[]);
    mesh.wait_for_node("twin", "alive");
    let other = mesh.folder().join("other-host");
    let mut command = mesh.command(&["agent", "--name", "twin", "--manager"]);
    command.arg(mesh.data_dir()).arg("--data-dir").arg(&other);
    let log = mesh.folder().join("second.txt");
    let mut second = Daemon::start(command, &log);
    until_true("the second one is refused", || {
        assert!(second.runs(), "it must keep retrying: {}", second.printed());
        let said = second.printed();
        said.contains("twin") && said.contains("--name")
    });
    // The first agent is not disturbed, and the name is free when it has ended.
    mesh.ok(&["run", "--", "true"]);
    mesh.kill_agent("twin");
    until_true("the second one takes its place", || {
        mesh.nodes().iter().any(|node| node["node"] == "twin" && node["state"] == "alive")
    });
    mesh.ok(&["run", "--", "true"]);
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_not_changed() {
    let mut mesh = Mesh::with_agents(PODMESH, &[]);
    assert!(mesh.stop_manager().success());
    let path = mesh.data_dir().join("manager/podmesh.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 1_000_000).unwrap();
    drop(database);
    let before = fs::read(&path).unwrap();
    let output = mesh.podmesh(&["manager", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1000000") && said.contains("newer"), "{said}");
    assert!(fs::read(&path).unwrap() == before);
}

/// Stops one thread of a process, and waits until the process has ended.
fn freeze_until_it_ends(daemon: &mut Daemon, thread: Pid) {
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    until_true("the daemon ends", || {
        if thread != daemon.pid() {
            // The tracer of a thread must wait for its end.
            _ = waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        }
        !daemon.runs()
    });
    let said = daemon.printed();
    assert!(said.contains("has made no progress for 30 s"), "{said}");
    assert!(said.contains("podmesh-watch: waits in"), "{said}");
}

/// Returns the thread of a process with this name.
fn thread_of(daemon: &Daemon, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap());
    let task = tasks.find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|found| found.trim() == name)
    });
    Pid::from_raw(task.unwrap().file_name().into_string().unwrap().parse().unwrap())
}

#[test]
fn a_hanging_manager_reports_it_and_ends_and_the_next_one_continues() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let job = mesh.submit(&["--", "sh", "-c", "sleep 1; echo done"]);
    let thread = thread_of(mesh.manager(), "podmesh-core");
    freeze_until_it_ends(mesh.manager(), thread);
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "done\n");
}

#[test]
fn a_hanging_agent_reports_it_and_ends_and_the_next_one_continues() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("go");
    let script = format!("until test -e {}; do sleep 0.05; done; echo done", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    let thread = mesh.agent("a").pid();
    freeze_until_it_ends(mesh.agent("a"), thread);
    mesh.kill_agent("a");
    mesh.start_agent("a", &[]);
    fs::write(&file, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "done\n");
}
