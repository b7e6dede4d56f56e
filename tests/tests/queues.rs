//! Queues: limits, pauses, shares, and what users see of them.
#![expect(clippy::unwrap_used, reason = "tests")]

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns the exit code and the error of a command that must fail.
fn refused(mesh: &Mesh, args: &[&str]) -> (i32, String) {
    let output = mesh.output(args);
    assert!(!output.status.success(), "{args:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_queue_limits_and_pauses_its_jobs_and_survives_a_restart() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let (code, error) = refused(&mesh, &["submit", "--queue", "night", "--", "true"]);
    assert_eq!(code, 125, "{error}");
    assert!(error.contains("the queues are: default"), "{error}");
    let limit = ["--weight", "3", "--max-active", "1"];
    assert_eq!(mesh.ok(&[&["queue", "set", "night"], &limit[..]].concat()), "night: added\n");
    assert_eq!(mesh.ok(&[&["queue", "set", "night"], &limit[..]].concat()), "night: unchanged\n");

    let go = mesh.shared_folder("go").join("go");
    let script = format!("until test -e {}; do sleep 0.05; done", go.display());
    let job = mesh
        .submit(&["--queue", "night", "--array", "3", "--cpus", "0.1", "--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    let shown = mesh.ok(&["job", &job.to_string()]);
    assert!(shown.contains("1 of 1 tasks of the queue `night` are active"), "{shown}");
    assert_eq!(mesh.json(&["job", &job.to_string()])["spec"]["queue"], "night");
    let queue = mesh.json(&["queue", "show", "night"]);
    assert_eq!((&queue["active"], &queue["queued"]), (&1.into(), &2.into()), "{queue}");
    assert_eq!(queue["callers"].as_array().unwrap().len(), 1, "{queue}");
    let (_, error) = refused(&mesh, &["queue", "remove", "night"]);
    assert!(error.contains("the queue `night` has a job that has not ended"), "{error}");

    mesh.ok(&["queue", "pause", "night"]);
    mesh.ok(&["queue", "set", "night", "--max-active", "none"]);
    mesh.stop_manager();
    mesh.start_manager();
    let shown = mesh.ok(&["job", &job.to_string()]);
    assert!(shown.contains("the queue `night` is paused"), "{shown}");
    let other = mesh.submit(&["--cpus", "0.1", "--", "true"]);
    mesh.wait_for_job(other, "succeeded");
    assert_eq!(mesh.json(&["queue", "show", "night"])["active"], 1);
    std::fs::write(&go, "").unwrap();
    mesh.ok(&["queue", "resume", "night"]);
    mesh.wait_for_job(job, "succeeded");
    mesh.ok(&["queue", "remove", "night"]);
    let all = mesh.json(&["queue", "list"]);
    assert_eq!(all["queues"].as_array().unwrap().len(), 1, "{all}");
    let events = mesh.ok(&["events"]);
    for says in ["queue night changed by", "paused", "queue night removed by"] {
        assert!(events.contains(says), "{says}: {events}");
    }
}

#[test]
fn bad_settings_of_queues_are_refused() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    for weight in ["0", "-1", "1001", "1.5", "NaN", ""] {
        let (code, error) = refused(&mesh, &["queue", "set", "night", "--weight", weight]);
        assert_eq!(code, 2, "{weight}: {error}");
        assert!(error.contains("--weight"), "{error}");
    }
    for limit in ["0", "-1", "NaN"] {
        let (code, error) = refused(&mesh, &["queue", "set", "night", "--max-active", limit]);
        assert_eq!(code, 2, "{limit}: {error}");
        assert!(error.contains("none"), "{error}");
    }
    for verb in ["pause", "resume", "remove", "show"] {
        let (_, error) = refused(&mesh, &["queue", verb, "night"]);
        assert!(error.contains("there is no queue `night`"), "{error}");
    }
    let (_, error) = refused(&mesh, &["queue", "remove", "default"]);
    assert!(error.contains("cannot be removed"), "{error}");
}

#[test]
fn a_task_that_fails_for_good_starts_the_dead_letter_job_of_its_queue() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let folder = mesh.shared_folder("told");
    let file = folder.join("alarm.toml");
    let script = "echo $PODMESH_FAILED_TASK/$PODMESH_FAILED_ATTEMPT on $PODMESH_FAILED_NODE: $PODMESH_FAILED_REASON";
    let text = format!("name = 'alarm'\ncpus = 0.1\ncommand = ['sh', '-c', '{script}']\n");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    mesh.ok(&["queue", "set", "night", "--dead-letter", &file]);
    let again = mesh.ok(&["queue", "set", "night", "--dead-letter", &file]);
    assert_eq!(again, "night: unchanged\n");
    let shown = mesh.ok(&["queue", "show", "night"]);
    assert!(shown.contains("for each task that fails for good, job alarm: sh -c"), "{shown}");
    let shown = mesh.json(&["queue", "show", "night"]);
    assert_eq!(shown["dead_letter_job"]["spec"]["command"][0], "sh", "{shown}");

    let fails = ["--queue", "night", "--cpus", "0.1", "--array", "2", "--retries", "1"];
    let script = ["--retry-backoff", "1ms", "--", "sh", "-c", "exit $((PODMESH_TASK_INDEX - 1))"];
    let job = mesh.submit(&[&fails[..], &script[..]].concat());
    mesh.wait_for_job(job, "failed");
    // The dead-letter job was committed with the end of the task.
    mesh.kill_manager();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    let alarm = mesh.json(&["job", &(job + 1).to_string()]);
    assert_eq!(
        (&alarm["name"], &alarm["dead_letter_of"]),
        (&"alarm".into(), &format!("{job}.2").into())
    );
    assert_eq!(alarm["submitted_by"], mesh.json(&["job", &job.to_string()])["submitted_by"]);
    mesh.wait_for_job(job + 1, "succeeded");
    let said = mesh.ok(&["logs", &(job + 1).to_string()]);
    assert_eq!(said, format!("{job}.2/2 on a: failed, exit code 1\n"));
    let shown = mesh.ok(&["job", &(job + 1).to_string()]);
    assert!(shown.contains(&format!("of task {job}.2, queue night")), "{shown}");
    let events = mesh.ok(&["events", "--job", &job.to_string()]);
    let says = format!("{job}.2#2 has failed for good: dead-letter job {} of queue night", job + 1);
    assert!(events.contains(&says), "{events}");
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 2);

    mesh.ok(&["queue", "set", "night", "--no-dead-letter"]);
    let job = mesh.submit(&["--queue", "night", "--cpus", "0.1", "--", "false"]);
    mesh.wait_for_job(job, "failed");
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 3);
}

#[test]
fn bad_dead_letter_jobs_are_refused() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let file = mesh.shared_folder("bad").join("job.toml");
    let path = file.display().to_string();
    for (text, says) in [
        ("command = ['true']\nafter = 1", "it starts when a task has failed"),
        ("command = ['true']\nqueue = 'day'", "there is no queue `day`"),
        ("name = 'alarm'", "there is no command"),
        ("comand = ['true']", "comand"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (_, error) = refused(&mesh, &["queue", "set", "night", "--dead-letter", &path]);
        assert!(error.contains(says), "{text}: {error}");
    }
    let both = ["queue", "set", "night", "--no-dead-letter", "--dead-letter", &path];
    assert_eq!(refused(&mesh, &both).0, 2);
}

#[test]
fn a_preemptible_task_makes_room_for_others_and_runs_again() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let cpus =
        mesh.json(&["nodes"])["nodes"][0]["capacity"]["cpu_millis"].as_u64().unwrap() / 1_000;
    let all = cpus.to_string();
    let go = mesh.shared_folder("go").join("go");
    let script = format!(
        "trap 'echo bye; exit 0' TERM; echo up; until test -e {}; do sleep 0.05; done",
        go.display()
    );
    let first = mesh.submit(&[
        "--preemptible",
        "--cpus",
        &all,
        "--retries",
        "0",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    mesh.wait_for_job(first, "running");
    let log = mesh.logs("a", first, 1, 1).join("stdout.log");
    until_true("it is up", || std::fs::read_to_string(&log).is_ok_and(|text| text == "up\n"));
    let other = mesh.submit(&["--cpus", "1", "--", "true"]);
    mesh.wait_for_job(other, "succeeded");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "up\nbye\n", "it had its grace");
    mesh.wait_for_job(first, "running");
    std::fs::write(&go, "").unwrap();
    mesh.wait_for_job(first, "succeeded");
    assert_eq!(mesh.json(&["job", &first.to_string()])["spec"]["preemptible"], true);
    let tasks = mesh.json(&["tasks", &first.to_string()]);
    assert_eq!(tasks["tasks"][0]["attempts"], 2, "{tasks}");
    let events = mesh.ok(&["events"]);
    assert!(events.contains("which is not preemptible, needs its room"), "{events}");
}
