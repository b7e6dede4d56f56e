//! Pages change by themselves.

use std::fs;
use std::time::Instant;

use podmesh_tests::wait::{PATIENCE, until_true};
use serde_json::json;

use crate::Console;

const LEFT: &str = "\u{e012}";
const RIGHT: &str = "\u{e014}";
const ENTER: &str = "\u{e007}";

/// Marks the document, which a reload would replace.
fn mark(console: &Console) {
    console.browser.value("window.mark = 1");
}

fn check_mark(console: &Console) {
    assert_eq!(console.browser.value("window.mark"), 1, "the page was loaded anew");
}

#[test]
fn jobs_that_are_submitted_elsewhere_appear_and_change_without_reload() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    console.go("jobs");
    mark(&console);
    console.browser.wait_for_text("There are no such jobs.");
    let go = console.mesh.shared_folder("go").join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let job = console.run("first", &script).to_string();
    console.wait_for_row(&job, "first");
    console.wait_for_row(&job, "running");
    fs::write(&go, "").unwrap();
    console.wait_for_row(&job, "succeeded");
    console.wait_for_row(&job, "1 of 1");
    let next = console.run("second", "exit 3").to_string();
    console.wait_for_row(&next, "failed");

    // The others follow as well.
    console.go("events");
    console.browser.wait_for_text("job ended");
    console.go("");
    console.browser.wait_for_text("1 of 1 task failed");
    let third = console.run("third", "true").to_string();
    console.go(&format!("jobs/{third}"));
    console.wait_for_row(&format!("{third}.1"), "succeeded");
    check_mark(&console);
    console.check_quiet();
}

#[test]
fn a_page_that_nobody_sees_has_no_stream_and_catches_up_when_it_is_seen() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let browser = &console.browser;
    console.go("jobs");
    mark(&console);
    browser.wait_for_text("There are no such jobs.");
    let hide = |hidden: bool| {
        let hide = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));";
        browser.script(hide, &json!([hidden]));
    };
    hide(true);
    console.wait_for_status("interrupted");
    browser.requests();
    let job = console.run("first", "true").to_string();
    console.mesh.wait_for_job(job.parse().unwrap(), "succeeded");
    // The page would connect again after a second.
    browser.value("new Promise((resolve) => setTimeout(resolve, 1500))");
    assert_eq!(browser.requests(), [""; 0]);
    hide(false);
    console.wait_for_status("live");
    console.wait_for_row(&job, "succeeded");
    check_mark(&console);
    console.check_quiet();
}

#[test]
fn pages_that_were_left_hold_no_connections() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("prints", "echo hello");
    console.mesh.wait_for_job(job, "succeeded");
    let start = Instant::now();
    // More than a browser has connections. A page that gets none would try again after 40 s.
    for page in 0..10 {
        console.browser.open(&format!("{}/?{page}#/jobs/{job}", console.origin));
        console.browser.wait_for_text("hello");
        console.wait_for_status("live");
    }
    assert!(start.elapsed() < PATIENCE, "pages wait for a connection");
    console.check_quiet();
}

#[test]
fn an_update_of_a_service_is_seen_as_it_happens() {
    let Some(console) = Console::signed_in(&["a", "b"], "viewer") else { return };
    console.go("services");
    mark(&console);
    console.apply("web", 2, "one");
    console.wait_for_row("web", "2 of 2");
    console.go("services/web");
    console.wait_for_row("1", "healthy");
    console.apply("web", 3, "two");
    console.browser.wait_for_text("3 of 3 replicas healthy, revision 2");
    console.wait_for_row("3", "healthy");
    check_mark(&console);
    console.check_quiet();
}

#[test]
fn filters_survive_a_reload() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let ended = console.run("ended", "true");
    console.mesh.wait_for_job(ended, "succeeded");
    let running = console.run("running", "sleep 600").to_string();
    console.go("jobs");
    console.wait_for_row(&ended.to_string(), "succeeded");
    console.browser.click("//label[contains(., 'have not ended')]/input");
    until_true("the ended job is gone", || !console.browser.text().contains("succeeded"));
    console.browser.wait("//label[contains(., 'Find')]/input").type_text("runn");
    assert_eq!(console.browser.value("location.hash"), "#/jobs?active=true&q=runn");
    console.browser.reload();
    console.wait_for_row(&running, "running");
    let text = console.browser.text();
    assert!(!text.contains("succeeded"), "{text}");
    let shown = "[document.querySelector('[data-find]').value, document.querySelector('[type=checkbox]').checked]";
    assert_eq!(console.browser.value(shown), serde_json::json!(["runn", true]));
    // The filter that matches nothing says so.
    console.browser.wait("//label[contains(., 'Find')]/input").type_text("zzz");
    console.browser.wait_for_text("No job on this page contains the text.");
    console.check_quiet();
}

#[test]
fn the_page_goes_on_after_a_restart_of_the_manager() {
    let Some(mut console) = Console::signed_in(&["a"], "viewer") else { return };
    console.go("jobs");
    mark(&console);
    console.mesh.kill_manager();
    console.wait_for_status("interrupted");
    console.mesh.start_manager();
    console.mesh.wait_for_node("a", "alive");
    let job = console.run("afterwards", "true").to_string();
    console.wait_for_status("live");
    console.wait_for_row(&job, "succeeded");
    check_mark(&console);
}

#[test]
fn the_grid_has_every_task_and_opens_the_chosen_one() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let script = "test $PODMESH_TASK_INDEX != 12";
    let job = console.mesh.submit(&[
        "--name", "many", "--cpus", "0.01", "--array", "10-39", "--", "sh", "-c", script,
    ]);
    console.go(&format!("jobs/{job}"));
    console.browser.wait("//*[contains(@class, 'grid')]");
    console.mesh.wait_for_job(job, "failed");
    console.browser.value("document.querySelector('.grid').focus()");
    // The first key chooses the first task, the others go on from there.
    for _ in 0..3 {
        console.browser.press(RIGHT);
    }
    let status =
        || console.browser.value("document.querySelector('.grid + [role=status]').textContent");
    until_true("the failed task is chosen", || {
        // It is chosen anew, as its state may have come later.
        console.browser.press(LEFT);
        console.browser.press(RIGHT);
        status() == format!("Task {job}.12: failed")
    });
    console.browser.press(ENTER);
    console.browser.wait_for_text(&format!("Task {job}.12"));
    assert_eq!(console.browser.value("location.hash"), format!("#/jobs/{job}/tasks/12"));
    console.check_quiet();
}

#[test]
fn the_page_is_loaded_again_until_all_its_parts_are_there() {
    let Some(console) = Console::start(&[]) else { return };
    console.browser.wait("//input[@name='token']");
    let block = |addresses: &[&str]| {
        console.browser.devtools("Network.enable", &json!({}));
        console.browser.devtools("Network.setBlockedURLs", &json!({ "urls": addresses }));
    };
    block(&["*/assets/timeline.js"]);
    console.browser.reload();
    console.browser.wait_for_text("It is tried again every second.");
    block(&[]);
    console.browser.wait("//input[@name='token']");
}

#[test]
fn the_overview_says_how_much_is_assigned_and_that_the_queue_stands_still() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let figure = |id: &str| {
        let text = console.browser.value(&format!("document.getElementById('{id}')?.textContent"));
        text.as_str().and_then(|text| text.parse::<f64>().ok())
    };
    console.go("");
    let array = ["--name", "many", "--cpus", "0.01", "--array", "1-120", "--", "true"];
    let job = console.mesh.submit(&array);
    console.mesh.wait_for_job(job, "succeeded");
    // 120 in a minute.
    until_true("assigned", || figure("assigned").is_some_and(|value| value >= 1.0));
    until_true("ends", || figure("ends").is_some_and(|value| value >= 1.0));
    until_true("nothing waits", || figure("queued") == Some(0.0));
    let lines = "[...document.querySelectorAll('.spark polyline')].map((line) => line.getAttribute('points') !== '')";
    until_true("lines", || console.browser.value(lines) == serde_json::json!([true, true, true]));
    check_still(&console);
    console.check_quiet();
}

/// The clock of the page goes on by five minutes: nothing was assigned for a minute.
fn check_still(console: &Console) {
    let blocked = ["--name", "blocked", "--cpus", "0.01", "--require", "disk=none", "--", "true"];
    console.mesh.submit(&blocked);
    until_true("one waits", || {
        console.browser.value("document.getElementById('queued')?.textContent") == "1"
    });
    assert!(!console.browser.text().contains("stands still"));
    console.browser.value("(Date.now = ((now) => () => now() + 300_000)(Date.now), 1)");
    console.browser.wait_for_text("The queue stands still: 1 task waits");
}

#[test]
fn filters_of_events_are_in_the_address() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let jobs = [console.run("one", "true"), console.run("two", "true")];
    for job in jobs {
        console.mesh.wait_for_job(job, "succeeded");
    }
    console.go(&format!("events?kind=job_ended&job={}", jobs[1]));
    let rows = "[...document.querySelectorAll('tbody tr')].map((row) => row.children[2].textContent + row.children[3].textContent)";
    let only = serde_json::json!([format!("job endedjob {}", jobs[1])]);
    until_true("only the end of the second", || console.browser.value(rows) == only);
    console.browser.reload();
    until_true("after a reload", || console.browser.value(rows) == only);
    console
        .browser
        .wait(&format!("//main//code[.='podmesh events -f --kind job_ended --job {}']", jobs[1]));
    // A later event that fits comes by itself.
    console.go("events?kind=job_submitted");
    until_true("two", || console.browser.value(&format!("{rows}.length")) == 2);
    console.run("three", "true");
    until_true("three", || console.browser.value(&format!("{rows}.length")) == 3);
    console.check_quiet();
}
