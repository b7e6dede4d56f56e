//! What the overview says needs attention, and where replicas may run.

use std::fs;
use std::time::{Duration, Instant};

use podmesh_tests::small_disk::{SmallDisk, may_mount};
use podmesh_tests::wait::until_true;

use crate::Console;

fn wait_until_gone(console: &Console, text: &str) {
    until_true(text, || !console.browser.text().contains(text));
}

#[test]
fn a_paused_queue_with_jobs_and_jobs_that_can_never_run_need_attention() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let mesh = &console.mesh;
    mesh.ok(&["queue", "set", "night"]);
    mesh.ok(&["queue", "pause", "night"]);
    console.go("");
    console.browser.wait_for_text("Needs attention");
    let held = mesh.submit(&["--cpus", "0.01", "--queue", "night", "--", "true"]);
    console.browser.wait_for_text("1 task waits until podmesh queue resume night");
    mesh.ok(&["queue", "resume", "night"]);
    mesh.wait_for_job(held, "succeeded");
    wait_until_gone(&console, "podmesh queue resume night");

    let path = mesh.folder().join("flow.toml");
    let job = |name: &str, command: &str, more: &str| {
        format!("[[job]]\nname = \"{name}\"\ncpus = 0.01\ncommand = [\"{command}\"]\n{more}")
    };
    let mut file = format!("name = \"etl\"\n{}", job("load", "false", ""));
    for name in ["one", "two", "three", "four"] {
        file += &job(name, "true", "after = \"load\"\n");
    }
    fs::write(&path, file).unwrap();
    let flow = mesh.ok(&["workflow", "submit", "-f", path.to_str().unwrap()]);
    let first: u64 = flow.trim().parse().unwrap();
    mesh.wait_for_job(first, "failed");
    console.browser.wait_for_text("one of the workflow etl is");
    console.browser.wait_for_text(&format!("upstream {first} failed"));
    console.browser.wait_for_text("1 more job is blocked");
    mesh.ok(&["workflow", "cancel", &first.to_string()]);
    wait_until_gone(&console, "of the workflow etl is");
    console.check_quiet();
}

#[test]
fn nodes_and_services_that_need_attention_are_named_with_the_reason() {
    if !may_mount() {
        return;
    }
    let Some(mut console) = Console::signed_in(&[], "viewer") else { return };
    console.browser.wait_for_text("No node has joined yet");
    let logs = console.mesh.folder().join("logs-of-a");
    let disk = SmallDisk::mount(&logs);
    console.mesh.start_agent("a", &["--logs-dir", logs.to_str().unwrap()]);
    wait_until_gone(&console, "No node has joined yet");
    console.apply("web", 1, "one");
    console.browser.wait_for_text("Nothing needs attention");
    disk.fill(1 << 20);
    console.browser.wait_for_text("Node a has a disk that is nearly full: less than 5 %");
    disk.make_room();
    wait_until_gone(&console, "nearly full");
    console.mesh.ok(&["nodes", "cordon", "a"]);
    console.browser.wait_for_text("Node a is cordoned: it gets no new work.");
    console.mesh.ok(&["nodes", "uncordon", "a"]);
    wait_until_gone(&console, "cordoned");
    console.mesh.kill_agent("a");
    console.browser.wait_for_text("Node a is ✗ lost: it has not answered");
    console.browser.wait_for_text("Service web is ! degraded: 0 of 1 replica healthy.");
    console.check_quiet();
    drop(console);
    drop(disk);
}

#[test]
fn missed_runs_of_a_schedule_need_attention() {
    let Some(mut console) = Console::signed_in(&["a"], "admin") else { return };
    let add = ["schedule", "add", "often", "--every", "4s", "--catch-up", "1s"];
    let added = Instant::now();
    console.mesh.ok(&[&add[..], &["--cpus", "0.01", "--", "true"]].concat());
    console.mesh.kill_manager();
    // The times after 4 and 8 seconds pass meanwhile.
    std::thread::sleep((added + Duration::from_millis(9_500)) - Instant::now());
    console.mesh.start_manager();
    console.mesh.ok(&["schedule", "pause", "often"]);
    console.go("");
    console.browser.wait_for_text("2 runs, the last one for");
    let said = console.browser.text();
    assert!(said.contains("Schedule often"), "{said}");
}

#[test]
fn a_service_shows_what_its_replicas_get_and_where() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let file = "name = \"solver\"\ncommand = [\"sleep\", \"600\"]\ncpus = 0.5\nexclusive = true\nspread = \"zone\"\n\
                resources = { license = 2 }\nprefer = { disk = \"slow\" }\nrequire = { disk = \"fast\" }\n";
    let path = console.mesh.folder().join("service.toml");
    fs::write(&path, file).unwrap();
    console.mesh.ok(&["service", "apply", "-f", path.to_str().unwrap(), "--wait"]);
    console.go("services/solver");
    let fact = |name: &str, value: &str| {
        console
            .browser
            .wait(&format!("//main//dt[.='{name}']/../dd[normalize-space(.)='{value}']"));
    };
    fact("Each replica gets", "0.5 cores, memory without a limit, 2 license, a node for itself");
    fact("Only on nodes with", "disk=fast");
    fact("Nodes tried first", "disk=slow");
    fact("Spread over", "zone");
    console.check_quiet();
}
