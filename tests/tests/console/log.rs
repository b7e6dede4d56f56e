//! The output of a task.

use std::fs;

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
        "--name", "talks", "--cpus", "0.01", "--env", "HTML=<img src=x onerror=alert(1)>", "--", "sh", "-c", &script,
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
    assert_eq!(console.browser.value("document.querySelectorAll('main script, main b, main img').length"), 0);
    console.check_quiet();
}

#[test]
fn a_long_log_keeps_its_last_lines_and_finds_in_them() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("counts", "seq -f 'line %.0f' 30000; echo; seq -f 'error %.0f' 3");
    console.mesh.wait_for_job(job, "succeeded");
    console.go(&format!("jobs/{job}/tasks/1"));
    console.browser.wait_for_text("error 3");
    console.browser.wait_for_text("5,000 lines");
    let lines = "document.querySelector('.log').children.length";
    assert!(console.browser.value(lines).as_u64().unwrap() <= 5_001);
    console.browser.wait("//label[contains(., 'Find lines')]/input").type_text("error");
    console.browser.wait_for_text("3 of 5,000 lines");
    let shown = console.browser.value("document.querySelector('.log').innerText.trim()");
    assert_eq!(shown, "error 1\nerror 2\nerror 3");
    console.check_quiet();
}
