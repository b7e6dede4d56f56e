//! `podmesh console` in the browser.

use std::fs;

use podmesh_tests::browser::Browser;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::Daemon;
use podmesh_tests::wait::until;

use crate::{Console, PODMESH};

#[test]
fn the_printed_address_signs_in_once_without_a_token() {
    let Some(browser) = Browser::start() else { return };
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let (stdout, stderr) = (mesh.folder().join("url"), mesh.folder().join("console.txt"));
    let served = Daemon::start_split(mesh.podmesh(&["console", "--no-open"]), &stdout, &stderr);
    let url = until("the console prints its address", || {
        fs::read_to_string(&stdout).ok()?.strip_suffix('\n').map(str::to_owned)
    });
    let origin = url.split_once("/#").unwrap().0.to_owned();
    browser.resize(1280, 900);
    browser.open(&url);
    let console = Console { browser, mesh, origin };
    console.wait_for_status("live");
    // The code is neither in the address nor in the history.
    assert_eq!(console.browser.value("location.href"), format!("{}/", console.origin));
    assert_eq!(console.changes(), ["POST /sign-in"]);
    let job = console.run("seen", "echo through the mesh");
    console.go(&format!("jobs/{job}"));
    console.browser.wait_for_text("succeeded");
    console.browser.reload();
    console.wait_for_status("live");
    console.check_quiet();

    console.browser.script("sessionStorage.clear();", &serde_json::json!([]));
    console.browser.open("about:blank");
    console.browser.open(&url);
    console.browser.wait("//*[@role='alert'][contains(., 'used already')]");
    console.browser.wait("//input[@name='token']");
    assert!(served.stop().success());
}
