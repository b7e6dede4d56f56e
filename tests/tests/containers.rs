//! Tasks in containers with a real Docker engine.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use podmesh_tests::docker::{self, PrivateEngine};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn mesh(flags: &[&str]) -> Mesh {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent("a", &[&["--docker", "on"], flags].concat());
    mesh
}

/// Returns all containers of the mesh's agent, running or not.
fn containers(mesh: &Mesh) -> Vec<String> {
    let agent = fs::read_to_string(mesh.agent_dir("a").join("agent/id")).unwrap();
    let filter = format!("label=podmesh.agent={}", agent.trim());
    let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_container_runs_with_the_right_output_exit_code_and_variables() {
    let Some(image) = docker::image() else { return };
    let mesh = mesh(&[]);
    let script = "echo $PODMESH_TASK on $PODMESH_NODE in $PWD as $(id -u); echo err >&2; exit 7";
    let output = mesh
        .output(&["run", "--image", image, "-w", "/tmp", "--user", "7", "--", "sh", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1.1 on a in /tmp as 7\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"));
    assert_eq!(output.status.code(), Some(7));
    let log = fs::read_to_string(mesh.logs("a", 1, 1, 1).join("stdout.log")).unwrap();
    assert_eq!(log, "1.1 on a in /tmp as 7\n");
    until_true("the container is removed", || containers(&mesh).is_empty());
}

/// What a terminal gets is never taken for something else, even if it looks like the engine's frames.
#[test]
fn the_output_of_a_container_with_a_terminal_arrives_as_it_is() {
    let Some(image) = docker::image() else { return };
    let mesh = mesh(&[]);
    let script = "stty -onlcr; printf '\\001\\000\\000\\000\\377\\377\\377\\377'; sleep 0.1; printf '\\000\\001\\002\\377 end'";
    let output = mesh.output(&["run", "--tty", "--image", image, "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"\x01\0\0\0\xff\xff\xff\xff\0\x01\x02\xff end");
}

#[test]
fn a_container_that_cannot_start_fails_with_the_reason() {
    let Some(image) = docker::image() else { return };
    let mesh = mesh(&[]);
    let missing = ["run", "--image", "127.0.0.1:9/no/such:image", "--", "true"];
    for (args, code, text) in [
        (missing.as_slice(), 125, "127.0.0.1:9/no/such:image"),
        (&["run", "--image", image, "--", "no-such-command"], 127, "no-such-command"),
        (&["run", "--image", image, "--", "/tmp"], 126, "/tmp"),
        (&["run", "--image", image, "-v", "/etc:/x", "--", "true"], 125, "/etc"),
        (&["run", "--image", image, "--network", "host", "--", "true"], 125, "host"),
    ] {
        let output = mesh.output(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
    until_true("nothing is left", || containers(&mesh).is_empty());
}

#[test]
fn a_container_outlives_its_agent_and_every_line_arrives_once() {
    let Some(image) = docker::image() else { return };
    let mut mesh = mesh(&[]);
    let gate_folder = "while ! test -e /tmp/gate; do sleep 0.05; done";
    let script = format!("seq 1 2000; {gate_folder}; seq 2001 4000; exit 5");
    let job = mesh.submit(&["--image", image, "--", "sh", "-c", &script]);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    until_true("it prints", || log.exists());
    mesh.kill_agent("a");
    let id = containers(&mesh).pop().unwrap();
    // Without an agent, it keeps running, prints the rest and ends.
    assert!(
        Command::new("docker")
            .args(["exec", &id, "touch", "/tmp/gate"])
            .status()
            .unwrap()
            .success()
    );
    assert!(Command::new("docker").args(["wait", &id]).output().unwrap().status.success());
    mesh.start_agent("a", &["--docker", "on"]);
    mesh.wait_for_job(job, "failed");
    let expected: String = (1..=4000).map(|n| format!("{n}\n")).collect();
    assert!(fs::read_to_string(&log).unwrap() == expected);
    let tasks = mesh.json(&["tasks", &job.to_string()]);
    let last = &tasks["tasks"][0]["last_attempt"];
    assert_eq!((&last["number"], &last["outcome"]["exit_code"]), (&1.into(), &5.into()));
    until_true("the container is removed", || containers(&mesh).is_empty());
}

#[test]
fn cancel_stops_containers_with_a_grace_and_then_kills_them() {
    let Some(image) = docker::image() else { return };
    let mesh = mesh(&["--cpus", "3"]);
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    let job = mesh.submit(&[
        "--image",
        image,
        "--array",
        "1-10",
        "--stop-grace",
        "1s",
        "--",
        "sh",
        "-c",
        deaf,
    ]);
    until_true("three run", || {
        let tasks = mesh.json(&["tasks", &job.to_string(), "--state", "active"]);
        let tasks = tasks["tasks"].as_array().unwrap();
        tasks.iter().filter(|task| task["last_attempt"]["state"] == "running").count() == 3
    });
    mesh.ok(&["cancel", &job.to_string()]);
    let ended = mesh.wait_for_job(job, "cancelled");
    assert_eq!(ended["tasks"]["cancelled"], 10);
    until_true("nothing is left", || containers(&mesh).is_empty());
}

#[test]
fn an_allowed_mount_is_read_only_and_memory_is_limited() {
    let Some(image) = docker::image() else { return };
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let data = mesh.folder().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from the node").unwrap();
    let folder = mesh.agent_dir("a");
    fs::create_dir_all(&folder).unwrap();
    let settings =
        format!("[[mount_roots]]\npath = {:?}\nwritable = false\n", data.to_str().unwrap());
    fs::write(folder.join("agent.toml"), settings).unwrap();
    mesh.start_agent("a", &["--docker", "on"]);
    let mount = format!("{}:/data:ro", data.display());
    let output = mesh.output(&[
        "run",
        "--image",
        image,
        "-v",
        &mount,
        "--",
        "sh",
        "-c",
        "cat /data/file; touch /data/x 2>/dev/null || echo ' cannot write'",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, "from the node cannot write\n", "{said}");
    let writable = format!("{}:/data", data.display());
    let output = mesh.output(&["run", "--image", image, "-v", &writable, "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{}", String::from_utf8_lossy(&output.stderr));

    let hungry = "head -c 200000000 /dev/zero | tail";
    let output =
        mesh.output(&["run", "--image", image, "--memory", "32MiB", "--", "sh", "-c", hungry]);
    assert!(!output.status.success());
    let tasks = mesh.json(&["tasks", "3"]);
    assert_eq!(tasks["tasks"][0]["last_attempt"]["outcome"]["oom_killed"], true, "{tasks}");
}

#[test]
fn a_container_survives_a_kill_of_the_supervisor_and_its_log_is_marked() {
    let Some(image) = docker::image() else { return };
    let mesh = mesh(&[]);
    let script = "echo before; until test -e /tmp/go; do sleep 0.05; done; echo after; exit 3";
    let job = mesh.submit(&["--image", image, "--", "sh", "-c", script]);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    let printed = || fs::read_to_string(&log).unwrap_or_default();
    until_true("it prints", || printed() == "before\n");
    mesh.kill_supervisor("a");
    until_true("another supervisor continues the capture", || {
        printed().contains("output may be missing here")
    });
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "running");
    let events = || mesh.ok(&["events"]);
    until_true("an event says so", || events().contains("output may be missing here"));
    let id = containers(&mesh).pop().unwrap();
    assert!(
        Command::new("docker").args(["exec", &id, "touch", "/tmp/go"]).status().unwrap().success()
    );
    mesh.wait_for_job(job, "failed");
    let printed = printed();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("before", "after", 3), "{printed}");
    assert_eq!(
        mesh.json(&["tasks", &job.to_string()])["tasks"][0]["last_attempt"]["outcome"]["exit_code"],
        3
    );
}

/// Returns a mesh whose agent uses this engine.
fn mesh_with(engine: &PrivateEngine) -> Mesh {
    let mut mesh = Mesh::new(PODMESH).agent_variable("DOCKER_HOST", &engine.address());
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "on"]);
    mesh
}

#[test]
fn containers_stopped_with_their_engine_are_lost_and_retried() {
    let Some(mut engine) = PrivateEngine::start(&[]) else { return };
    let mesh = mesh_with(&engine);
    // Neither exit code shows the loss: one exits with 0 when stopped, the other as if it had
    // failed.
    let polite = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let rude = "echo up; while :; do sleep 0.05; done";
    let submit = |on_lost: &str, script: &str| {
        mesh.submit(&[
            "--image",
            docker::IMAGE,
            "--network",
            "none",
            "--cpus",
            "0.1",
            "--on-lost",
            on_lost,
            "--",
            "sh",
            "-c",
            script,
        ])
    };
    let again = format!("if [ $PODMESH_ATTEMPT = 2 ]; then exit 0; fi; {rude}");
    let jobs = [submit("wait", polite), submit("requeue", &again)];
    for job in jobs {
        let log = mesh.logs("a", job, 1, 1).join("stdout.log");
        until_true("it prints", || fs::read_to_string(&log).is_ok_and(|text| text == "up\n"));
    }
    engine.end(Signal::SIGTERM);
    // In the meantime the node accepts no containers and says why, and new tasks wait.
    let withdrawn =
        |mesh: &Mesh| mesh.nodes()[0]["withdrawn"]["docker"].as_str().map(str::to_owned);
    until_true("the node accepts no containers", || {
        withdrawn(&mesh).is_some_and(|why| why.contains("engine does not answer"))
    });
    let waits = submit("wait", "true");
    engine.run();
    mesh.wait_for_job(waits, "succeeded");
    assert_eq!(withdrawn(&mesh), None);
    mesh.wait_for_job(jobs[0], "failed");
    mesh.wait_for_job(jobs[1], "succeeded");
    let task = &mesh.json(&["tasks", &jobs[0].to_string()])["tasks"][0];
    let outcome = &task["last_attempt"]["outcome"];
    assert_eq!(outcome["kind"], "lost", "{outcome}");
    assert!(outcome["message"].as_str().unwrap().contains("engine"), "{outcome}");
}

#[test]
fn containers_survive_a_restart_of_an_engine_with_live_restore_and_the_log_is_marked() {
    let Some(mut engine) = PrivateEngine::start(&["--live-restore"]) else { return };
    let mesh = mesh_with(&engine);
    let script =
        "n=0; until test -e /tmp/go; do n=$((n+1)); echo $n; sleep 0.05; done; echo end; exit 4";
    let job =
        mesh.submit(&["--image", docker::IMAGE, "--network", "none", "--", "sh", "-c", script]);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    let printed = || fs::read_to_string(&log).unwrap_or_default();
    until_true("it prints", || printed().lines().count() > 3);
    engine.end(Signal::SIGTERM);
    engine.run();
    until_true("the log is marked and continues", || {
        let printed = printed();
        printed
            .split_once("output may be missing here")
            .is_some_and(|(_, after)| after.lines().count() > 3)
    });
    let ids = engine.docker(&["ps", "-q"]).output().unwrap().stdout;
    let id = String::from_utf8(ids).unwrap();
    assert!(engine.docker(&["exec", id.trim(), "touch", "/tmp/go"]).status().unwrap().success());
    mesh.wait_for_job(job, "failed");
    let printed = printed();
    assert!(printed.ends_with("\nend\n"), "{printed}");
    let numbers: Vec<u32> = printed.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.is_sorted(), "{printed}");
    let outcome = &mesh.json(&["tasks", &job.to_string()])["tasks"][0]["last_attempt"]["outcome"];
    assert_eq!(outcome["exit_code"], 4, "{outcome}");
}

/// A container that runs until it is told to go on.
fn submit_waiting(mesh: &Mesh, flags: &[&str]) -> u64 {
    let script = "echo up; until test -e /tmp/go; do sleep 0.05; done; exit 5";
    let args = [&["--image", docker::IMAGE], flags, &["--", "sh", "-c", script]].concat();
    let job = mesh.submit(&args);
    let log = mesh.logs("a", job, 1, 1).join("stdout.log");
    until_true("it runs", || fs::read(&log).is_ok_and(|bytes| bytes == b"up\n"));
    job
}

#[test]
fn an_agent_that_takes_no_more_containers_looks_after_those_that_it_has() {
    if docker::image().is_none() {
        return;
    }
    let mut mesh = mesh(&[]);
    let (ends, cancelled) = (submit_waiting(&mesh, &[]), submit_waiting(&mesh, &[]));
    let name = format!("{ends}.1.1");
    mesh.kill_agent("a");
    // Also where the supervisor that captures them is gone.
    mesh.kill_supervisor("a");
    mesh.start_agent("a", &["--docker", "off", "--process", "off"]);
    assert_eq!(mesh.nodes()[0]["runtimes"], serde_json::json!([]));
    let waits = mesh.submit(&["--image", docker::IMAGE, "--", "true"]);
    mesh.ok(&["cancel", &cancelled.to_string()]);
    mesh.wait_for_job(cancelled, "cancelled");
    until_true("the cancelled one is removed", || containers(&mesh).len() == 1);
    let listed = Command::new("docker").args(["ps", "--format", "{{.ID}} {{.Names}}"]).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let left = containers(&mesh).pop().unwrap();
    let left = listed.lines().find(|line| line.starts_with(&left)).unwrap();
    assert!(left.ends_with(&name), "{left}");
    let id = left.split(' ').next().unwrap();
    assert!(
        Command::new("docker").args(["exec", id, "touch", "/tmp/go"]).status().unwrap().success()
    );
    mesh.wait_for_job(ends, "failed");
    let outcome = &mesh.json(&["tasks", &ends.to_string()])["tasks"][0]["last_attempt"]["outcome"];
    assert_eq!(outcome["exit_code"], 5, "{outcome}");
    until_true("nothing is left", || containers(&mesh).is_empty());
    assert_eq!(mesh.json(&["job", &waits.to_string()])["state"], "queued");
}

#[test]
fn a_cancelled_job_ends_where_its_engine_is_gone_and_no_longer_wanted() {
    let Some(mut engine) = PrivateEngine::start(&[]) else { return };
    let mut mesh = mesh_with(&engine);
    let job = submit_waiting(&mesh, &["--network", "none"]);
    mesh.kill_agent("a");
    engine.end(Signal::SIGTERM);
    mesh.start_agent("a", &["--docker", "auto"]);
    mesh.ok(&["cancel", &job.to_string()]);
    // It may still run, as far as the agent knows.
    until_true("the agent says what to do", || {
        mesh.agent("a").printed().contains("with `--docker off`")
    });
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "cancelling");
    mesh.stop_agent("a");
    mesh.start_agent("a", &["--docker", "off"]);
    mesh.wait_for_job(job, "cancelled");
}

#[test]
fn an_engine_that_comes_up_after_its_agent_is_found() {
    let Some(mut engine) = PrivateEngine::start(&[]) else { return };
    engine.end(Signal::SIGTERM);
    let mut mesh = Mesh::new(PODMESH).agent_variable("DOCKER_HOST", &engine.address());
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "auto"]);
    let job =
        mesh.submit(&["--image", docker::IMAGE, "--network", "none", "--", "echo", "at last"]);
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "queued");
    engine.run();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "at last\n");
}
