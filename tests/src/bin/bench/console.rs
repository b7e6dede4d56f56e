//! The console in a real browser: how soon the overview is there, and how a grid of many tasks and a
//! large log scroll.

use std::time::Duration;

use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::api::{Api, Place};
use podmesh_tests::browser::Browser;
use podmesh_tests::light::LightAgents;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{until, until_true};
use serde_json::{Value, json};

use crate::http::submit;
use crate::rig::{Rig, job};
use crate::table::{Table, percentile};

const NODES: usize = 200;
const JOBS: usize = 100_000;
const TASKS: u32 = 100_000;
/// Times that the overview is loaded.
const LOADS: usize = 5;
const FRAMES: u32 = 200;

pub(crate) fn measure(table: &mut Table) {
    let Some(browser) = Browser::start() else { return };
    let mut mesh =
        Mesh::new(std::env::current_exe().unwrap()).manager_flags(&["--http", "127.0.0.1:0"]);
    mesh.start_manager();
    let route = mesh.local();
    let agents = LightAgents::start(NODES, 1_000, move |_| route.clone());
    until_true("all nodes are there", || agents.connected() == NODES);
    mesh.start_agent("prints", &["--docker", "off", "--log-total-size", "2GiB"]);
    let rig = Rig::of(mesh);
    let api = Api::new(Place::Socket(rig.mesh.http_socket()));
    submit(&api, json!({ "runtime": "noop" }), JOBS);
    until("all jobs have ended", || (agents.ended() >= JOBS as u64).then_some(()));

    browser.resize(1280, 900);
    let origin = format!("http://{}", rig.mesh.http_address());
    let token = rig.mesh.ok(&["token", "create", "--api", "--role", "viewer"]);
    browser.open(&origin);
    browser
        .script("sessionStorage.setItem('podmesh-token', arguments[0]);", &json!([token.trim()]));
    overview(table, &browser, &origin);
    grid(table, &browser, &rig, &origin);
    log(table, &browser, &rig, &origin);
}

/// From the start of the load until what the overview says has been drawn.
fn overview(table: &mut Table, browser: &Browser, origin: &str) {
    let watch = "const watch = new MutationObserver(() => {
        if (!document.getElementById('queued') || document.querySelectorAll('.nodes li').length === 0) return;
        watch.disconnect();
        requestAnimationFrame(() => setTimeout(() => window.painted = performance.now()));
      });
      watch.observe(document, { childList: true, subtree: true });";
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": watch }));
    let mut times = Vec::new();
    for load in 0..LOADS {
        // The first load fetches all files, the others ask whether they are still the same.
        browser.open(&format!("{origin}/?{load}#/"));
        let painted = until("the overview is painted", || browser.value("window.painted").as_f64());
        assert_eq!(browser.value("document.querySelectorAll('.nodes li').length"), NODES + 1);
        times.push(painted);
    }
    let all: Vec<String> = times.iter().map(|time| format!("{time:.0}")).collect();
    let name = "console: overview drawn, 100,000 jobs, 200 nodes, each load";
    table.figure(name, format!("{} ms", all.join(", ")), "1 s");
}

/// Scrolls through the grid of a large array.
fn grid(table: &mut Table, browser: &Browser, rig: &Rig, origin: &str) {
    let job = rig.submit(job(RuntimeSpec::Noop, &[], TASKS));
    rig.wait(job);
    browser.open(&format!("{origin}/?grid#/jobs/{job}"));
    browser.wait("//*[contains(@class, 'grid')]");
    let frames = scroll(browser, ".grid");
    table.figure(
        "console: a frame while a grid of 100,000 tasks is scrolled through: p50, p99, longest",
        frames,
        "50 ms",
    );
}

/// Opens a large output at its end, goes to its beginning, and scrolls through what is shown.
fn log(table: &mut Table, browser: &Browser, rig: &Rig, origin: &str) {
    let script =
        "yes 'a line of output that is about as long as lines usually are' | head -c 1000000000";
    let job = rig.mesh.submit(&["--cpus", "0.1", "--", "sh", "-c", script]);
    rig.mesh.wait_for_job(job, "succeeded");
    let shown = |lines: u32| {
        let path =
            format!("document.querySelectorAll('.log div').length >= {lines} && performance.now()");
        until("the lines are shown", || browser.value(&path).as_f64())
    };
    browser.open(&format!("{origin}/?log#/jobs/{job}/tasks/1"));
    let last = shown(5_000);
    browser.click("//button[.='First lines']");
    browser.wait("//button[.='Earlier'][@disabled]");
    browser.wait("//*[contains(., 'There is more after this.')]");
    let frames = scroll(browser, ".log");
    table.figure(
        "console: last 5,000 lines of an output of 1 GB shown; a frame while its beginning is scrolled through: p50, p99, longest",
        format!("{last:.0} ms; {frames}"),
        "",
    );
}

/// Scrolls through a box in steps. Returns the times of the frames.
fn scroll(browser: &Browser, selector: &str) -> String {
    let scroll = "const [selector, frames] = arguments;
      const box = document.querySelector(selector);
      const times = [];
      let last = null;
      window.frames_ms = null;
      const step = (now) => {
        if (last !== null) times.push(now - last);
        last = now;
        box.scrollTop += (box.scrollHeight - box.clientHeight) / frames;
        if (times.length < frames) requestAnimationFrame(step);
        else window.frames_ms = times.sort((a, b) => a - b);
      };
      requestAnimationFrame(step);";
    browser.script(scroll, &json!([selector, FRAMES]));
    let times =
        until("the box has been scrolled through", || match browser.value("window.frames_ms") {
            Value::Array(times) => Some(times),
            _ => None,
        });
    let times: Vec<Duration> = times
        .iter()
        .filter_map(Value::as_f64)
        .map(|ms| Duration::from_secs_f64(ms / 1e3))
        .collect();
    let at = |share| percentile(&mut times.clone(), share).as_millis();
    format!("{}, {}, {} ms", at(0.5), at(0.99), at(1.0))
}
