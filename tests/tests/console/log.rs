//! The output of a task.

use std::fs;

use podmesh_tests::wait::{until, until_true};
use serde_json::json;

use crate::Console;

#[test]
fn a_log_follows_and_shows_everything_as_text() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let go = console.mesh.shared_folder("go").join("go");
    let script = format!(
        "echo begin; until [ -e {} ]; do sleep 0.02; done; echo '<script>document.title = \"bad\"</script><b>bold</b>'; \
         printf 'bell \\a, \\033]0;title\\007, backwards \\342\\200\\256abc, no end'",
        go.display()
    );
    let job = console.mesh.submit(&[
        "--name",
        "talks",
        "--cpus",
        "0.01",
        "--env",
        "HTML=<img src=x onerror=alert(1)>",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    console.go(&format!("jobs/{job}/tasks/1"));
    console.browser.wait_for_text("begin");
    fs::write(&go, "").unwrap();
    console.browser.wait_for_text("<script>document.title = \"bad\"</script><b>bold</b>");
    console.browser.wait_for_text("bell ␇, ␛]0;title␇, backwards <202E>abc, no end");
    console.browser.wait_for_text("This is all the output that there was.");
    let inside = "document.querySelectorAll('.log script, .log b, .log img').length";
    assert_eq!(console.browser.value(inside), 0);
    console.go(&format!("jobs/{job}"));
    console.browser.wait_for_text("<script>document.title");
    assert_eq!(
        console.browser.value("document.querySelectorAll('main script, main b, main img').length"),
        0
    );
    console.check_quiet();
}

#[test]
fn a_window_goes_through_a_log_of_any_length() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("counts", "seq -f 'line %.0f' 300000; seq -f 'error %.0f' 3");
    console.mesh.wait_for_job(job, "succeeded");
    console.go(&format!("jobs/{job}/tasks/1"));
    let browser = &console.browser;
    browser.wait_for_text("error 3");
    browser.wait_for_text("5,000 lines");
    let lines = "[...document.querySelectorAll('.log div')].map((line) => line.textContent).filter((line) => line !== '')";
    let edges = || {
        browser.value(&format!(
            "(() => {{ const lines = {lines}; return [lines[0], lines.at(-1), lines.length]; }})()"
        ))
    };
    until_true("the last lines", || edges() == json!(["line 295004", "error 3", 5000]));

    browser.click("//button[.='Earlier']");
    until_true("earlier lines", || edges() == json!(["line 292504", "line 297503", 5000]));
    browser.wait_for_text("There is more after this.");
    browser.click("//button[.='Later']");
    until_true("later lines", || edges() == json!(["line 295004", "error 3", 5000]));
    browser.wait_for_text("This is all the output that there was.");

    browser.click("//button[.='First lines']");
    until_true("the first lines", || edges() == json!(["line 1", "line 2500", 2500]));
    browser.wait("//button[.='Earlier'][@disabled]");
    // At the edge, scrolling reads on.
    browser.value("document.querySelector('.log').scrollTop = 1e9");
    until_true("the next lines", || edges() == json!(["line 1", "line 5000", 5000]));

    browser.click("//button[.='Last lines']");
    until_true("the last lines again", || edges() == json!(["line 295004", "error 3", 5000]));
    browser.wait("//label[contains(., 'Find in')]/input").type_text("error");
    browser.wait_for_text("3 of 5,000 lines");
    let shown = browser.value("document.querySelector('.log').innerText.trim()");
    assert_eq!(shown, "error 1\nerror 2\nerror 3");
    console.check_quiet();
}

#[test]
fn a_log_whose_beginning_was_removed_says_so() {
    let Some(mut console) = Console::signed_in(&[], "viewer") else { return };
    let sizes = ["--docker", "off", "--log-file-size", "256KiB", "--log-total-size", "1MiB"];
    console.mesh.start_agent("a", &sizes);
    let job = console.run("counts", "seq -f 'line %.0f' 300000");
    console.mesh.wait_for_job(job, "succeeded");
    console.go(&format!("jobs/{job}/tasks/1"));
    let browser = &console.browser;
    browser.wait_for_text("line 300000");
    browser.wait_for_text(" come before this. The first ");
    browser.wait_for_text(" of the output have been removed by rotation.");

    browser.click("//button[.='First lines']");
    browser.wait("//button[.='Earlier'][@disabled]");
    let text = browser.text();
    assert!(!text.contains("come before this"), "{text}");
    assert!(text.contains(" of the output have been removed by rotation."), "{text}");
    assert!(!text.contains("line 1\n"), "{text}");
    console.check_quiet();
}

#[test]
fn a_text_is_found_beyond_the_lines_that_are_shown() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("counts", "seq -f 'line %.0f' 300000");
    console.mesh.wait_for_job(job, "succeeded");
    console.go(&format!("jobs/{job}/tasks/1"));
    let browser = &console.browser;
    browser.wait_for_text("line 300000");
    browser.wait("//label[contains(., 'Find in')]/input").type_text("ne 4200");
    browser.wait_for_text("0 of 5,000 lines");
    let marked = "[...document.querySelectorAll('.log .found')].map((line) => line.textContent)";
    let search = |button: &str, line: &str| {
        browser.click(&format!("//button[.='{button}']"));
        until_true(line, || browser.value(marked) == json!([line]));
    };
    search("Search all output", "line 4200");
    // With what is around it.
    browser.wait_for_text("line 4199");
    browser.wait_for_text("line 4201");
    search("Search on", "line 42000");
    for line in 42001..=42003 {
        search("Search on", &format!("line {line}"));
    }
    browser.wait("//label[contains(., 'Find in')]/input").type_text("x");
    browser.click("//button[.='Search all output']");
    browser.wait_for_text("Not in the output.");
    console.check_quiet();
}

#[test]
fn colours_are_shown_and_the_output_can_be_saved() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("paints", "printf 'plain \\033[1;31mred\\033[0m plain\\n\\033[32mgreen\\nstill green\\033[39m\\033[2J\\n'");
    console.mesh.wait_for_job(job, "succeeded");
    console.go(&format!("jobs/{job}/tasks/1"));
    let browser = &console.browser;
    browser.wait_for_text("plain red plain");
    let parts = "[...document.querySelectorAll('.log span')].map((part) => [part.textContent, part.className])";
    let expected =
        json!([["red", "ansi-1 ansi-bold"], ["green", "ansi-2"], ["still green", "ansi-2"]]);
    assert_eq!(browser.value(parts), expected);
    browser.wait_for_text("␛[2J");

    let folder = console.mesh.folder().join("saved");
    let path = json!({ "behavior": "allow", "downloadPath": folder.to_str().unwrap() });
    browser.devtools("Browser.setDownloadBehavior", &path);
    browser.click("//button[.='Download']");
    let file = folder.join(format!("{job}.1.stdout.log"));
    let text = until("the file is there", || {
        fs::read_to_string(&file).ok().filter(|text| !text.is_empty())
    });
    assert!(text.starts_with("plain \u{1b}[1;31mred"), "{text:?}");
    console.check_quiet();
}

#[test]
fn outputs_of_several_tasks_are_merged() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let go = console.mesh.shared_folder("go").join("go");
    let script = format!(
        "echo hello from $PODMESH_TASK_INDEX; until [ -e {} ]; do sleep 0.02; done; printf 'bye from %s' $PODMESH_TASK_INDEX",
        go.display()
    );
    let array = ["--name", "many", "--cpus", "0.01", "--array", "1-5", "--", "sh", "-c", &script];
    let job = console.mesh.submit(&array);
    console.go(&format!("jobs/{job}/output"));
    for task in 1..=5 {
        console.browser.wait_for_text(&format!("{job}.{task}: hello from {task}"));
    }
    fs::write(&go, "").unwrap();
    for task in 1..=5 {
        console.browser.wait_for_text(&format!("{job}.{task}: bye from {task}"));
    }
    console.browser.wait_for_text("This is all the output that there was.");
    console.browser.wait(&format!("//main//code[.='podmesh logs -f {job} --stream stdout']"));
    console.check_quiet();
}
