//! `run`, `submit`, `logs` and `cancel` with real processes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::with_environment;
use podmesh_tests::wait::{until, until_true};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn mesh(agents: &[&str]) -> Mesh {
    Mesh::with_agents(PODMESH, agents)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shell(mesh: &Mesh, script: &str) -> Output {
    mesh.output(&["run", "--", "sh", "-c", script])
}

#[test]
fn run_prints_both_streams_and_exits_with_the_tasks_code() {
    let mesh = mesh(&["a"]);
    let output = shell(&mesh, "echo out; echo err >&2; exit 3");
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).contains("err\n"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(shell(&mesh, "true").status.code(), Some(0));
    assert_eq!(shell(&mesh, "kill -9 $$").status.code(), Some(128 + 9));
}

#[test]
fn a_command_that_cannot_start_fails_with_the_code_of_a_shell_and_the_reason() {
    let mesh = mesh(&["a"]);
    let missing = mesh.output(&["run", "--", "podmesh-has-no-such-command"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).contains("podmesh-has-no-such-command"));
    let plain = mesh.folder().join("plain");
    fs::write(&plain, "not a program").unwrap();
    let forbidden = mesh.output(&["run", "--", plain.to_str().unwrap()]);
    assert_eq!(forbidden.status.code(), Some(126), "{}", text(&forbidden.stderr));
    let nowhere = mesh.output(&["run", "--workdir", "/no/such/folder", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(125), "{}", text(&nowhere.stderr));
    assert!(text(&nowhere.stderr).contains("/no/such/folder"));
}

#[test]
fn a_task_gets_its_ids_and_its_variables() {
    let mesh = mesh(&["a"]);
    let script = "echo $PODMESH_JOB.$PODMESH_TASK_INDEX $PODMESH_TASK $PODMESH_ATTEMPT $PODMESH_NODE $PODMESH_JOB_NAME $X $Y";
    let variables = mesh.folder().join("variables");
    fs::write(&variables, "# a comment\nY=from file\n").unwrap();
    let variables = variables.to_str().unwrap();
    let output = mesh.output(&[
        "run",
        "--name",
        "who",
        "-e",
        "X=1 2",
        "--env-file",
        variables,
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(text(&output.stdout), "1.1 1.1 1 a who 1 2 from file\n");
}

#[test]
fn binary_output_is_unchanged_in_the_file_and_for_the_reader() {
    let mesh = mesh(&["a"]);
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let input = mesh.folder().join("bytes");
    fs::write(&input, &all).unwrap();
    let output = mesh.output(&["run", "--", "cat", input.to_str().unwrap()]);
    assert!(output.stdout == all, "{} bytes came back", output.stdout.len());
    assert!(fs::read(mesh.logs("a", 1, 1, 1).join("stdout.log")).unwrap() == all);
    let again = mesh.output(&["logs", "1"]);
    assert!(again.stdout == all, "{} bytes came back", again.stdout.len());
}

#[test]
fn a_stream_without_output_has_no_file() {
    let mesh = mesh(&["a"]);
    mesh.ok(&["run", "--", "true"]);
    assert!(!mesh.logs("a", 1, 1, 1).exists());
    shell(&mesh, "echo only err >&2");
    let folder = mesh.logs("a", 2, 1, 1);
    assert!(folder.join("stderr.log").exists() && !folder.join("stdout.log").exists());
}

#[test]
fn an_array_runs_each_index_once_and_is_spread_over_the_nodes() {
    let mesh = mesh(&["a", "b"]);
    let marks = mesh.shared_folder("marks");
    let script =
        format!("echo $PODMESH_NODE > {}/$PODMESH_TASK_INDEX.$PODMESH_ATTEMPT", marks.display());
    mesh.ok(&["submit", "--wait", "--array", "5-204", "--", "sh", "-c", &script]);
    let mut names: Vec<_> = fs::read_dir(&marks)
        .unwrap()
        .map(|entry| text(entry.unwrap().file_name().as_bytes()))
        .collect();
    names.sort();
    let mut expected: Vec<_> = (5..=204).map(|index| format!("{index}.1")).collect();
    expected.sort();
    assert_eq!(names, expected);
    let nodes: std::collections::BTreeSet<_> =
        names.iter().map(|name| fs::read_to_string(marks.join(name)).unwrap()).collect();
    assert_eq!(nodes.len(), 2, "both nodes run tasks");
    let job = mesh.json(&["job", "1"]);
    assert_eq!(job["state"], "succeeded");
    assert_eq!(job["tasks"]["succeeded"], 200);
}

#[test]
fn submit_wait_fails_if_a_task_fails_and_tasks_shows_which() {
    let mesh = mesh(&["a"]);
    let script = "test $PODMESH_TASK_INDEX -ne 7";
    let output = mesh.output(&["submit", "--wait", "--array", "1-10", "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "1\n");
    let failed = mesh.json(&["tasks", "1", "--state", "failed"]);
    let failed = failed["tasks"].as_array().unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["task"], "1.7");
    assert_eq!(failed[0]["last_attempt"]["outcome"]["exit_code"], 1);
}

#[test]
fn a_job_file_is_read_from_a_file_or_from_standard_input() {
    let mesh = mesh(&["a"]);
    let file = r#"
        name = "filed"
        command = ["sh", "-c", "echo $GREETING $PODMESH_TASK_INDEX"]
        array = "1-2"
        env = { GREETING = "hello" }
    "#;
    let path = mesh.folder().join("job.toml");
    fs::write(&path, file).unwrap();
    mesh.ok(&["submit", "--wait", "-f", path.to_str().unwrap()]);
    assert_eq!(mesh.ok(&["logs", "1.2"]), "hello 2\n");
    assert_eq!(mesh.json(&["job", "1"])["name"], "filed");

    let mut child = mesh
        .podmesh(&["submit", "--wait", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "2\n");
    assert_eq!(mesh.ok(&["logs", "2.1"]), "hello 1\n");
}

#[test]
fn a_failed_task_is_retried_and_each_attempt_has_its_own_log() {
    let mesh = mesh(&["a"]);
    let script = "echo attempt $PODMESH_ATTEMPT; test $PODMESH_ATTEMPT -eq 3";
    let args =
        ["submit", "--wait", "--retries", "5", "--retry-backoff", "10ms", "--", "sh", "-c", script];
    mesh.ok(&args);
    let tasks = mesh.json(&["tasks", "1"]);
    assert_eq!(tasks["tasks"][0]["attempts"], 3);
    assert_eq!(mesh.ok(&["logs", "1"]), "attempt 1\nattempt 2\nattempt 3\n");
    assert_eq!(mesh.ok(&["logs", "1.1#2"]), "attempt 2\n");
}

#[test]
fn a_timeout_stops_the_task_and_all_its_descendants() {
    let mesh = mesh(&["a"]);
    let script = "setsid sleep 1000 & sleep 1000 & wait";
    let args = ["run", "--timeout", "200ms", "--stop-grace", "100ms", "--", "sh", "-c", script];
    let output = mesh.output(&args);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    let tasks = mesh.json(&["tasks", "1"]);
    assert_eq!(tasks["tasks"][0]["last_attempt"]["outcome"]["kind"], "timed_out");
    until_true("no process is left", || left(&mesh).is_empty());
}

/// Returns the processes that tasks of agent `a` left.
fn left(mesh: &Mesh) -> Vec<Pid> {
    let agent = fs::read_to_string(mesh.agent_dir("a").join("agent/id")).unwrap();
    with_environment(&format!("PODMESH_AGENT={}", agent.trim()))
}

#[test]
fn cancel_stops_running_tasks_and_queued_tasks_never_start() {
    let mesh = mesh(&["a"]);
    let job = mesh.submit(&["--array", "1-1000", "--stop-grace", "200ms", "--", "sleep", "1000"]);
    until_true("something runs", || mesh.json(&["job", "1"])["tasks"]["active"] != 0);
    mesh.ok(&["cancel", &job.to_string()]);
    let ended = mesh.wait_for_job(job, "cancelled");
    assert_eq!(ended["tasks"]["cancelled"], 1000);
    until_true("no process is left", || left(&mesh).is_empty());
    // A second cancel is not an error, and returns the job's state.
    assert_eq!(mesh.json(&["cancel", "1"])["jobs"][0]["state"], "cancelled");
}

#[test]
fn ctrl_c_in_run_cancels_the_task_and_a_second_one_exits_at_once() {
    let mesh = mesh(&["a"]);
    let interrupt = |script: &str, times: usize| {
        let child = mesh
            .podmesh(&["run", "--stop-grace", "60s", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let job = until("the job runs", || {
            let jobs = mesh.json(&["jobs", "--active"]);
            let job = jobs["jobs"].as_array().unwrap().first()?.clone();
            (job["state"] == "running" && !left(&mesh).is_empty())
                .then(|| job["job"].as_u64().unwrap())
        });
        kill(pid, Signal::SIGINT).unwrap();
        if times == 2 {
            mesh.wait_for_job(job, "cancelling");
            kill(pid, Signal::SIGINT).unwrap();
        }
        (job, child.wait_with_output().unwrap())
    };
    let (job, output) = interrupt("exec sleep 1000", 1);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("cancel"), "{}", text(&output.stderr));
    mesh.wait_for_job(job, "cancelled");
    assert!(left(&mesh).is_empty());

    // A task that ignores SIGTERM would delay a single Ctrl-C for its grace of a minute.
    let (job, output) = interrupt("trap '' TERM; while :; do sleep 1; done", 2);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "cancelling");
}

#[test]
fn logs_follow_reads_until_the_task_ends_and_tail_crosses_rotations() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("a", &["--log-file-size", "10kB"]);
    let gate = mesh.folder().join("gate");
    let script = format!(
        "seq 1 5000; while ! test -e {}; do sleep 0.02; done; seq 5001 10000",
        gate.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    let follow =
        mesh.podmesh(&["logs", "-f", &job.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let folder = mesh.logs("a", job, 1, 1);
    until_true("it has rotated", || folder.join("stdout.log.1.gz").exists());
    fs::write(&gate, "").unwrap();
    let output = follow.wait_with_output().unwrap();
    assert!(output.status.success());
    // 48,894 bytes in files of 10 kB: nothing was removed yet, so everything is printed.
    let expected: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    assert!(text(&output.stdout) == expected, "{} bytes came", output.stdout.len());
    let tail: String = (7_001..=10_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(mesh.ok(&["logs", "--tail", "3000", "1.1"]), tail);
    assert!(folder.join("stdout.log").exists());
}

#[test]
fn a_search_in_logs_exits_as_grep_does() {
    let mesh = mesh(&["a"]);
    let script = "echo all; test $PODMESH_TASK_INDEX = 2 && echo needle";
    let job = mesh.submit(&["--array", "1-2", "--", "sh", "-c", script]).to_string();
    mesh.wait_for_job(job.parse().unwrap(), "failed");
    let search = |of: &str, text: &str| mesh.output(&["logs", of, "--grep", text]);
    let cases = [
        (job.clone(), "needle", 0),
        (job.clone(), "all", 0),
        (job.clone(), "nowhere", 1),
        (format!("{job}.1"), "needle", 1),
        (format!("{job}.2"), "needle", 0),
        (format!("{job}.1#1"), "needle", 1),
        (format!("{job}.2#1"), "needle", 0),
        (format!("{job}.3"), "needle", 125),
        ("777".into(), "needle", 125),
        ("web".into(), "needle", 2),
    ];
    for (of, wanted, code) in cases {
        let output = search(&of, wanted);
        assert_eq!(output.status.code(), Some(code), "{of} {wanted}: {}", text(&output.stderr));
        assert_eq!(output.stdout.is_empty(), code != 0, "{of} {wanted}");
    }
    // Without a search it is enough that the output can be read.
    let all = mesh.output(&["logs", &format!("{job}.1")]);
    assert_eq!((all.status.code(), text(&all.stdout).as_str()), (Some(0), "all\n"));
}

#[test]
fn placement_respects_labels_and_capacity_and_a_waiting_task_has_a_reason() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("plain", &["--cpus", "1"]);
    let job = mesh.submit(&["--require", "gpu=a100", "--", "sh", "-c", "echo $PODMESH_NODE"]);
    let waits = mesh.wait_for_job(job, "queued")["waits_for"].to_string();
    assert!(waits.contains("gpu=a100"), "{waits}");
    let large = mesh.submit(&["--cpus", "64", "--", "true"]);
    let waits = mesh.wait_for_job(large, "queued")["waits_for"].to_string();
    assert!(waits.contains("64") && waits.contains("plain"), "{waits}");
    mesh.start_agent("gpu-box", &["--label", "gpu=a100", "--cpus", "1"]);
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "gpu-box\n");
    mesh.ok(&["cancel", &large.to_string()]);
}

#[test]
fn a_higher_priority_goes_first() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("a", &["--cpus", "1"]);
    let gate = mesh.folder().join("gate");
    let order = mesh.folder().join("order");
    let block = format!("while ! test -e {}; do sleep 0.02; done", gate.display());
    let first = mesh.submit(&["--", "sh", "-c", &block]);
    mesh.wait_for_job(first, "running");
    let mark = |name: &str| format!("echo {name} >> {}", order.display());
    let low = mesh.submit(&["--", "sh", "-c", &mark("low")]);
    let high = mesh.submit(&["--priority", "5", "--", "sh", "-c", &mark("high")]);
    fs::write(&gate, "").unwrap();
    for job in [low, high] {
        mesh.wait_for_job(job, "succeeded");
    }
    assert_eq!(fs::read_to_string(&order).unwrap(), "high\nlow\n");
}

#[test]
fn a_task_runs_on_the_node_that_is_kept_for_a_large_one_if_it_is_over_in_time() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("a", &["--cpus", "4"]);
    let gate = mesh.folder().join("gate");
    let block = format!("while ! test -e {}; do sleep 0.02; done", gate.display());
    let long = mesh.submit(&["--timeout", "10m", "--", "sh", "-c", &block]);
    mesh.wait_for_job(long, "running");
    let large = mesh.submit(&["--cpus", "4", "--", "true"]);
    let endless = mesh.submit(&["--", "true"]);
    let short = mesh.submit(&["--timeout", "1m", "--", "true"]);
    mesh.wait_for_job(short, "succeeded");
    let waits = mesh.wait_for_job(endless, "queued")["waits_for"].to_string();
    assert!(
        waits.contains("`a` has room, which is reserved for job 2, the first in line"),
        "{waits}"
    );
    let waits = mesh.wait_for_job(large, "queued")["waits_for"].to_string();
    assert!(waits.contains("node `a` is reserved for it, and it starts there within"), "{waits}");
    let shown = mesh.ok(&["job", &large.to_string()]);
    assert!(shown.contains("first in line: node `a` is reserved for it"), "{shown}");
    fs::write(&gate, "").unwrap();
    for job in [long, large, endless] {
        mesh.wait_for_job(job, "succeeded");
    }
}
