//! What changes something asks first, and says the command that does the same.

use podmesh_tests::wait::until_true;
use serde_json::Value;

use crate::Console;

const ESCAPE: &str = "\u{e00c}";
const NO: &str = "//dialog//button[.='No, go back']";

fn button(text: &str) -> String {
    format!("//main//button[starts-with(normalize-space(.), '{text}')]")
}

/// Clicks on a button, and expects a question with this command.
fn ask(console: &Console, button: &str, command: &str) {
    console.browser.click(button);
    console.browser.wait(&format!("//dialog[@open]//code[.='{command}']"));
}

fn wait_for_no_dialog(console: &Console) {
    console.browser.wait("/html[not(//dialog[@open])]");
}

/// Asks and says no, in both ways. Nothing must be requested.
fn decline(console: &Console, button: &str, command: &str) {
    ask(console, button, command);
    console.browser.click(NO);
    wait_for_no_dialog(console);
    ask(console, button, command);
    console.browser.press(ESCAPE);
    wait_for_no_dialog(console);
    assert_eq!(console.changes(), Vec::<String>::new(), "after no");
}

/// Asks and says yes.
fn agree(console: &Console, button: &str, command: &str, yes: &str, request: &str) {
    ask(console, button, command);
    console.browser.click(&format!("//dialog//button[.='{yes}']"));
    until_true("the request is sent", || console.changes().contains(&request.to_owned()));
}

fn scheduling(console: &Console) -> Value {
    console.mesh.nodes()[0]["scheduling"].clone()
}

#[test]
fn cancelling_a_job_asks_first() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    let job = console.run("runs", "sleep 600");
    console.mesh.wait_for_job(job, "running");
    console.go(&format!("jobs/{job}"));
    let command = format!("podmesh cancel {job}");
    let cancel = button("Cancel the job");
    decline(&console, &cancel, &command);
    agree(
        &console,
        &cancel,
        &command,
        "Cancel the job",
        &format!("POST /api/v1/jobs/{job}/cancel"),
    );
    wait_for_no_dialog(&console);
    console.wait_for_row(&format!("{job}.1"), "cancelled");
    console.check_quiet();
}

#[test]
fn requeueing_what_failed_asks_first() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    let job = console.run("fails", "exit 3");
    console.mesh.wait_for_job(job, "failed");
    console.go(&format!("jobs/{job}"));
    let command = format!("podmesh requeue {job}");
    let requeue = button("Requeue what failed");
    decline(&console, &requeue, &command);
    let sent = format!("POST /api/v1/jobs/{job}/requeue");
    agree(&console, &requeue, &command, "Requeue", &sent);
    wait_for_no_dialog(&console);
    console.browser.wait("//table[@aria-label='Tasks']//td[normalize-space()='2']");
    console.check_quiet();
}

#[test]
fn draining_a_node_asks_first() {
    let Some(console) = Console::signed_in(&["a"], "admin") else { return };
    console.go("nodes");
    decline(&console, &button("Drain"), "podmesh nodes drain a");
    decline(&console, &button("Cordon"), "podmesh nodes cordon a");
    assert_eq!(scheduling(&console), "open");
    let (drain, command) = (button("Drain"), "podmesh nodes drain a");
    agree(&console, &drain, command, "Drain", "POST /api/v1/nodes/a/drain");
    console.wait_for_row("a", "draining");
    assert_eq!(scheduling(&console), "draining");
    // The page of the node has the same buttons.
    console.go("nodes/a");
    let (uncordon, command) = (button("Uncordon"), "podmesh nodes uncordon a");
    agree(&console, &uncordon, command, "Uncordon", "POST /api/v1/nodes/a/uncordon");
    console.browser.wait("//main//p[contains(., 'New work:')][contains(., 'open')]");
    assert_eq!(scheduling(&console), "open");
    console.check_quiet();
}

#[test]
fn changing_a_service_asks_first() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    console.apply("web", 1, "one");
    console.apply("web", 1, "two");
    console.go("services/web");
    let (back, command) = (button("Go back"), "podmesh service rollback --to 1 web");
    decline(&console, &back, command);
    decline(&console, &button("Restart"), "podmesh service restart web");
    console.browser.script(
        "const input = document.querySelector('[type=number]'); input.select();",
        &serde_json::json!([]),
    );
    console.browser.wait("//input[@type='number']").type_text("2");
    decline(&console, &button("Scale"), "podmesh service scale web 2");
    let shown = console.mesh.json(&["service", "web"]);
    assert_eq!((&shown["revision"], &shown["replicas"]), (&2.into(), &1.into()), "{shown}");

    let scale = (button("Scale"), "podmesh service scale web 2");
    agree(&console, &scale.0, scale.1, "Scale to 2", "POST /api/v1/services/web/scale");
    console.browser.wait_for_text("2 of 2 replicas healthy");
    agree(&console, &back, command, "Go back to revision 1", "POST /api/v1/services/web/rollback");
    wait_for_no_dialog(&console);
    console.browser.wait_for_text("1 of 1 replica healthy, revision 1");
    console.check_quiet();
}

#[test]
fn going_back_to_a_revision_with_the_same_spec_says_that_nothing_changes() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    console.apply("web", 1, "one");
    console.mesh.ok(&["service", "restart", "web", "--wait", "--timeout", "50s"]);
    console.go("services/web");
    let (back, command) = (button("Go back"), "podmesh service rollback --to 1 web");
    agree(&console, &back, command, "Go back to revision 1", "POST /api/v1/services/web/rollback");
    console.browser.wait("//dialog[@open]//*[@role='alert'][contains(., 'Nothing has changed')]");
    console.browser.click("//dialog//button[.='Close']");
    wait_for_no_dialog(&console);
    console.check_quiet();
}

#[test]
fn a_schedule_runs_now_pauses_and_resumes_after_a_question() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    let add = ["schedule", "add", "nightly", "--cron", "0 3 1 1 *", "--tz", "UTC"];
    console.mesh.ok(&[&add[..], &["--cpus", "0.01", "--", "true"]].concat());
    console.go("schedules/nightly");
    let run = button("Run now");
    decline(&console, &run, "podmesh schedule run nightly");
    let request = "POST /api/v1/schedules/nightly/run";
    agree(&console, &run, "podmesh schedule run nightly", "Run now", request);
    console.browser.wait("//dialog//*[@role='alert'][contains(., 'It is job ')]");
    console.browser.click("//dialog//button[.='Close']");
    console.browser.wait("//table[@aria-label='History']//tr[contains(., 'ran')]");

    let paused = || console.mesh.json(&["schedule", "show", "nightly"])["paused"].clone();
    for (verb, yes, then) in [("pause", "Pause", "Resume"), ("resume", "Resume", "Pause")] {
        let command = format!("podmesh schedule {verb} nightly");
        let request = format!("POST /api/v1/schedules/nightly/{verb}");
        agree(&console, &button(yes), &command, yes, &request);
        wait_for_no_dialog(&console);
        console.browser.wait(&button(then));
        assert_eq!(paused(), verb == "pause");
    }
    console.check_quiet();
}

#[test]
fn a_task_is_requeued_from_its_page_after_a_question() {
    let Some(console) = Console::signed_in(&["a"], "operator") else { return };
    let job = console.mesh.submit(&["--cpus", "0.01", "--array", "1-2", "--", "false"]);
    console.mesh.wait_for_job(job, "failed");
    console.go(&format!("jobs/{job}/tasks/2"));
    let (requeue, command) = (button("Requeue the task"), format!("podmesh requeue {job} 2"));
    decline(&console, &requeue, &command);
    let request = format!("POST /api/v1/jobs/{job}/requeue");
    agree(&console, &requeue, &command, "Requeue", &request);
    console.browser.wait(
        "//table[@aria-label='Attempts']//tr[td[1][normalize-space(.)='2']][contains(., 'failed')]",
    );
    let attempts = |task: u32| {
        let tasks = console.mesh.json(&["tasks", &job.to_string()]);
        tasks["tasks"][task as usize - 1]["attempts"].clone()
    };
    assert_eq!((attempts(1), attempts(2)), (1.into(), 2.into()));
    console.check_quiet();
}
