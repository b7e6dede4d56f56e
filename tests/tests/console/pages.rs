//! Every page, in both schemes and on a narrow screen: what it shows, whether everybody can use it,
//! and pictures of it in `target/console/`.

use std::path::PathBuf;

use podmesh_tests::docker::{self, TestVolume};
use podmesh_tests::wait::until_true;

use super::axe;
use crate::Console;

/// The name of a page's pictures, its address, what it shows, and the command that does the same.
struct Page {
    name: &'static str,
    address: String,
    shows: Vec<String>,
    command: String,
}

fn page(name: &'static str, address: &str, shows: &[&str], command: &str) -> Page {
    let shows = shows.iter().map(|&text| text.to_owned()).collect();
    Page { name, address: address.to_owned(), shows, command: command.to_owned() }
}

fn pictures() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.parent().unwrap().join("console");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Looks at the page that is shown: wide and narrow, light and dark.
fn look_at(console: &Console, name: &str) {
    let browser = &console.browser;
    for (width, height) in [(1280, 900), (400, 800)] {
        browser.resize(width, height);
        for scheme in ["light", "dark"] {
            browser.prefer(scheme);
            let what = format!("{name}-{width}-{scheme}");
            let dark = format!("matchMedia('(prefers-color-scheme: {scheme})').matches");
            until_true("the scheme is there", || browser.value(&dark) == true);
            browser.picture(&pictures().join(format!("{what}.png")));
            let wide = "[...document.querySelectorAll('body *')]
                .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.skip, thead'))
                .map((element) => element.outerHTML.slice(0, 200))";
            let wide = browser.value(wide);
            assert_eq!(wide.as_array().map(Vec::len), Some(0), "{what}: cut off: {wide:#}");
            axe::check(browser, &what);
        }
    }
    browser.resize(1280, 900);
}

/// Jobs of all kinds. Returns how the pages show them.
fn jobs(console: &Console) -> Vec<Page> {
    let mesh = &console.mesh;
    let squares =
        mesh.submit(&["--name", "squares", "--cpus", "0.01", "--array", "1-30", "--", "true"]);
    let mixed = "test $((PODMESH_TASK_INDEX % 4)) = 0 || exit $((PODMESH_TASK_INDEX % 4))";
    let mixed = mesh
        .submit(&["--name", "mixed", "--cpus", "0.01", "--array", "1-40", "--", "sh", "-c", mixed]);
    let text = "echo 'the first line'; for n in $(seq 60); do echo \"$n: <b>text</b> $(date -u +%F) and more of it, so that it is long\"; done; sleep 600";
    let talks = console.run("talks", text);
    mesh.ok(&["queue", "set", "night"]);
    let large = ["--name", "too-large-for-every-node", "--cpus", "1000", "--queue", "night"];
    let waits = mesh.submit(&[&large[..], &["--resource", "license=2", "--", "true"]].concat());
    mesh.wait_for_job(squares, "succeeded");
    mesh.wait_for_job(mixed, "failed");
    mesh.wait_for_job(talks, "running");
    vec![
        page(
            "jobs",
            "jobs",
            &[
                "squares",
                "mixed",
                "talks",
                "too-large-for-every-node",
                "30 of 30",
                "40 of 40, 30 failed",
            ],
            "podmesh jobs --limit 100",
        ),
        page(
            "job",
            &format!("jobs/{mixed}"),
            &[
                "failed, exit code 1",
                "failed, exit code 2",
                "failed, exit code 3",
                "All tasks",
                "When it ran, and where",
            ],
            &format!("podmesh job {mixed}"),
        ),
        page(
            "job-waits",
            &format!("jobs/{waits}"),
            &["queued", "Why it waits", "1000", "2 license", "Queue", "night"],
            &format!("podmesh job {waits}"),
        ),
        page(
            "output",
            &format!("jobs/{talks}/output"),
            &[&format!("{talks}.1: 60: <b>text</b>")],
            &format!("podmesh logs -f {talks} --stream stdout"),
        ),
        page(
            "task",
            &format!("jobs/{talks}/tasks/1"),
            &["running", "the first line", "60: <b>text</b>"],
            &format!("podmesh job {talks}"),
        ),
    ]
}

#[test]
fn every_page_shows_what_there_is_and_can_be_used_by_everybody() {
    let Some(console) = Console::start(&["a", "b"]) else { return };
    look_at(&console, "sign-in");
    console.sign_in(&console.token("admin"));

    let mut pages = jobs(&console);
    console.apply("web", 2, "one");
    console.apply("web", 2, "two");
    console.apply("database-of-the-shop", 1, "one");
    let nightly = ["schedule", "add", "nightly", "--cron", "0 3 * * *", "--tz", "Europe/Berlin"];
    console.mesh.ok(&[&nightly[..], &["--cpus", "0.01", "--", "true"]].concat());
    console.mesh.ok(&["nodes", "cordon", "b"]);
    let volume = TestVolume::new("console");
    let mut shown = vec![];
    if let Some(image) = docker::image() {
        let mount = format!("{}:/data", volume.name);
        let job = console.mesh.submit(&[
            "--name",
            "writes",
            "--image",
            image,
            "--cpus",
            "0.01",
            "--volume",
            &mount,
            "--",
            "touch",
            "/data/file",
        ]);
        console.mesh.wait_for_job(job, "succeeded");
        shown.push(volume.name.as_str());
    }
    pages.extend([
        page(
            "overview",
            "",
            &[
                "Node b is cordoned",
                "waits:",
                "30 of 40 tasks failed",
                "Tasks that wait",
                "a ",
                "cores free",
            ],
            "podmesh top",
        ),
        page(
            "services",
            "services",
            &["web", "database-of-the-shop", "2 of 2"],
            "podmesh services",
        ),
        page(
            "service",
            "services/web",
            &["2 of 2 replicas healthy, revision 2", "current", "Go back"],
            "podmesh service web",
        ),
        page(
            "schedules",
            "schedules",
            &["nightly", "0 3 * * * (Europe/Berlin)", "idle"],
            "podmesh schedule list",
        ),
        page(
            "schedule",
            "schedules/nightly",
            &["Next times", "No time has passed yet", "Run now", "Pause"],
            "podmesh schedule show nightly",
        ),
        page("nodes", "nodes", &["alive", "cordoned", "disk=fast", "Drain"], "podmesh nodes"),
        page(
            "node",
            "nodes/a",
            &["3 of 3 license free", "What runs", "of web", "What happened", "node connected"],
            "podmesh nodes drain --wait a",
        ),
        page(
            "events",
            "events",
            &["job submitted", "attempt ended", "node scheduled"],
            "podmesh events -f",
        ),
        page(
            "access",
            "access",
            &["Tokens", "programs and the console", "joining", "Revoke"],
            "podmesh token",
        ),
        page("volumes", "volumes", &shown, "podmesh volumes"),
        page("missing", "nothing/here", &["There is no such page"], ""),
    ]);
    for Page { name, address, shows, command } in pages {
        console.go(&address);
        for text in shows {
            console.browser.wait_for_text(&text);
        }
        if !command.is_empty() {
            console.browser.wait(&format!("//main//code[.='{command}']"));
            console.browser.wait(&format!("//main//button[@aria-label='Copy: {command}']"));
        }
        look_at(&console, name);
    }

    console.go("nodes");
    console.browser.click("//main//button[starts-with(normalize-space(.), 'Drain')]");
    console.browser.wait("//dialog[@open]");
    look_at(&console, "question");
    console.check_quiet();
    // What nobody has asked about does not change.
    if docker::image().is_some() {
        console.mesh.ok(&["volume", "remove", &volume.name]);
        until_true("the volume is gone", || !volume.exists());
    }
}
