//! Schedules, and jobs that start later, with the real program.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::schedule::{ScheduleReply, ScheduleRequest};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use podmesh_wire::client::Client;
use serde_json::Value;
use tokio::runtime::Runtime;
use uuid::Uuid;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// Returns how often a run has left its mark, by the time that it ran for.
fn marks(folder: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (time, _) = name.rsplit_once('.').unwrap();
        *found.entry(time.to_owned()).or_default() += 1;
    }
    found
}

fn history(mesh: &Mesh, schedule: &str) -> Vec<Value> {
    let runs = mesh.json(&["schedule", "history", schedule, "--limit", "1000"]);
    runs["runs"].as_array().unwrap().clone()
}

/// Milliseconds since 1970.
fn ms(time: &Value) -> i64 {
    time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Returns what podmesh says about a command that it refuses.
fn refused(mesh: &Mesh, args: &[&str]) -> String {
    let output = mesh.output(args);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn no_instant_is_missed_or_doubled_while_the_manager_is_killed() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let folder = mesh.shared_folder("marks");
    let script = format!("mktemp -q {}/$PODMESH_SCHEDULE_TIME.XXXXXX", folder.display());
    let added = mesh.json(&[
        "schedule",
        "add",
        "tick",
        "--every",
        "1s",
        "--overlap",
        "queue",
        "--cpus",
        "0.1",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(added["added"], true, "{added}");
    for kills in 1..=3 {
        until_true("some more have run", || marks(&folder).len() > kills * 3);
        mesh.kill_manager();
        mesh.start_manager();
    }
    mesh.wait_for_node("a", "alive");
    let before = marks(&folder).len();
    until_true("it goes on", || marks(&folder).len() > before);
    mesh.ok(&["schedule", "pause", "tick"]);
    let rows = history(&mesh, "tick");
    let last = rows.iter().find(|row| row["result"] == "ran").unwrap();
    mesh.wait_for_job(last["job"].as_u64().unwrap(), "succeeded");
    assert!(marks(&folder).values().all(|count| *count == 1), "{:?}", marks(&folder));
    // Every second between the first and the last one has its place in the history.
    let mut instants: Vec<(i64, i64)> =
        rows.iter().map(|row| (ms(&row["instant"]), row["count"].as_i64().unwrap())).collect();
    instants.sort_unstable();
    for pair in instants.windows(2) {
        assert_eq!(pair[1].0 - pair[1].1 * 1000, pair[0].0, "{instants:?}");
    }
    let ran = rows.iter().filter(|row| row["result"] == "ran").count();
    assert_eq!(marks(&folder).len(), ran, "each run left its mark: {rows:?}");
    let shown = mesh.json(&["schedule", "show", "tick"]);
    assert_eq!(shown["ran"], ran, "{shown}");
    mesh.ok(&["schedule", "remove", "tick"]);
    assert_eq!(mesh.json(&["schedule", "list"])["schedules"], Value::Array(vec![]));
}

#[test]
fn a_job_starts_at_its_time_although_the_manager_is_killed() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let job = mesh.submit(&["--in", "4s", "--", "true"]);
    let shown = mesh.json(&["job", &job.to_string()]);
    let why = shown["waits_for"][0].as_str().unwrap();
    assert!(why.starts_with("not before 20"), "{why}");
    let due = ms(&shown["spec"]["not_before"]);
    mesh.kill_manager();
    mesh.start_manager();
    let ended = mesh.wait_for_job(job, "succeeded");
    assert!(ms(&ended["started_at"]) >= due, "{ended}");
    let past = mesh.submit(&["--at", "2020-01-01T08:00", "--tz", "Europe/Berlin", "--", "true"]);
    mesh.wait_for_job(past, "succeeded");
    let later = mesh.submit(&["--at", "2200-01-01T08:00Z", "--", "true"]);
    mesh.ok(&["cancel", &later.to_string()]);
    mesh.wait_for_job(later, "cancelled");
}

#[test]
fn a_schedule_can_be_a_file_and_runs_by_hand() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let file = mesh.folder().join("yearly.toml");
    let text = "name = \"yearly\"\ncron = \"30 2 1 1 *\"\ntz = \"europe/berlin\"\n\
                overlap = \"replace\"\ncatch_up = \"1h\"\ncommand = [\"sleep\", \"600\"]\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    assert!(mesh.ok(&["schedule", "add", "-f", file]).starts_with("yearly: added, next at 20"));
    assert!(mesh.ok(&["schedule", "add", "-f", file]).starts_with("yearly: unchanged"));
    let shown = mesh.json(&["schedule", "show", "yearly"]);
    assert_eq!(
        (&shown["zone"], &shown["catch_up_ms"]),
        (&"Europe/Berlin".into(), &3_600_000.into())
    );
    assert!(shown["next"].as_str().unwrap().ends_with("-01-01T01:30:00Z"), "{shown}");
    let text = mesh.ok(&["schedule", "show", "yearly"]);
    assert_eq!(text.matches("-01-01T02:30:00+01:00").count(), 5, "{text}");

    let first = mesh.ok(&["schedule", "run", "yearly"]);
    let first: u64 = first.trim().parse().unwrap();
    let job = mesh.json(&["job", &first.to_string()]);
    assert_eq!((&job["name"], &job["schedule"]), (&"yearly".into(), &"yearly".into()));
    assert_eq!(mesh.ok(&["schedule", "run", "yearly"]), "", "it starts after the end of the first");
    mesh.wait_for_job(first, "cancelled");
    until_true("the second run has started", || {
        mesh.json(&["schedule", "show", "yearly"])["last_job"] == first + 1
    });
    assert!(mesh.ok(&["schedule", "list"]).contains("30 2 1 1 * Europe/Berlin"));
    assert!(mesh.ok(&["schedule", "history", "yearly"]).contains("ran"));
    let events = mesh.ok(&["events"]);
    assert!(events.contains("schedule yearly ran for"), "{events}");
}

#[test]
fn wrong_schedules_are_refused_with_the_reason() {
    let mesh = Mesh::with_agents(PODMESH, &[]);
    let add =
        |args: &[&str]| refused(&mesh, &[&["schedule", "add"], args, &["--", "true"]].concat());
    let said = add(&["a", "--cron", "0 0 30 2 *"]);
    assert!(said.contains("never comes"), "{said}");
    let said = add(&["a", "--cron", "0 3 * * *", "--tz", "Europe/Brelin"]);
    assert!(said.contains("`Europe/Brelin`") && said.contains("Europe/Berlin"), "{said}");
    let said = add(&["a", "--cron", "0 3 * *"]);
    assert!(said.contains("five fields"), "{said}");
    let said = add(&["a", "--every", "10ms"]);
    assert!(said.contains("1000"), "{said}");
    let said = add(&["a"]);
    assert!(said.contains("--cron"), "{said}");
    let said = refused(&mesh, &["schedule", "pause", "none"]);
    assert!(said.contains("there is no schedule `none`"), "{said}");
    let said = refused(&mesh, &["submit", "--at", "tomorrow", "--", "true"]);
    assert!(said.contains("2026-12-01T08:00"), "{said}");
}

#[test]
fn a_run_that_is_asked_for_again_is_the_same_job_also_when_it_has_ended_before_a_restart() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["schedule", "add", "tick", "--every", "24h", "--", "true"]);
    let runtime = Runtime::new().unwrap();
    let submission = SubmissionId(Uuid::now_v7());
    let run = |mesh: &Mesh| {
        let schedule = "tick".parse().unwrap();
        let body = RequestBody::Schedule(ScheduleRequest::Run { schedule, submission });
        runtime.block_on(async {
            let client = Client::connect(&mesh.local()).await.unwrap();
            client.request(body).await.unwrap()
        })
    };
    let once = ReplyBody::Schedule(ScheduleReply::Ran { job: Some(JobId(1)) });
    assert_eq!(run(&mesh), once);
    mesh.wait_for_job(1, "succeeded");
    mesh.kill_manager();
    mesh.start_manager();
    assert_eq!(run(&mesh), once);
    assert_eq!(mesh.json(&["jobs"])["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(history(&mesh, "tick").len(), 1);
}
