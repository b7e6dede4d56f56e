//! axe-core, which finds what people with a disability cannot use. It comes from the npm registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use podmesh_tests::browser::{Browser, skip};
use podmesh_tests::wait::until;
use podmesh_wire::key::sha256;
use serde_json::{Value, json};

const VERSION: &str = "4.14.1";
/// The digest of the package.
const SHA256: &str = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745";

/// What keeps people from using a page. The other impacts are `minor` and `moderate`.
const IMPACTS: [&str; 2] = ["serious", "critical"];

fn has_digest(package: &Path) -> bool {
    let bytes = fs::read(package).unwrap_or_default();
    let digest = sha256(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    digest == SHA256
}

fn fetch(package: &Path) -> Result<(), String> {
    // Another test may fetch it as well.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
    let name = format!("axe-core@{VERSION}");
    let fetched = Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(folder.path())
        .arg(&name)
        .output()
        .map_err(|error| format!("cannot run `npm`: {error}"))?;
    if !fetched.status.success() {
        return Err(format!(
            "npm pack {name}: {}",
            String::from_utf8_lossy(&fetched.stderr).trim()
        ));
    }
    let fetched = folder.path().join(format!("axe-core-{VERSION}.tgz"));
    if !has_digest(&fetched) {
        return Err(format!("{name} has another SHA-256 than {SHA256}"));
    }
    fs::rename(&fetched, package).map_err(|error| error.to_string())
}

fn read() -> Result<String, String> {
    let package = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("axe-{VERSION}.tgz"));
    if !has_digest(&package) {
        fetch(&package)?;
    }
    let mut unpack = Command::new("tar");
    unpack.arg("-xzOf").arg(&package).arg("package/axe.min.js");
    let unpacked = unpack.output().map_err(|error| format!("cannot run `tar`: {error}"))?;
    String::from_utf8(unpacked.stdout).map_err(|error| error.to_string())
}

/// Returns the program. Prints a message and returns `None` if it cannot be fetched; panics instead
/// with `PODMESH_TEST_CHROMIUM=required`.
pub(crate) fn program() -> Option<&'static str> {
    static PROGRAM: OnceLock<Result<String, String>> = OnceLock::new();
    match PROGRAM.get_or_init(read) {
        Ok(program) => Some(program),
        Err(why) => {
            skip("axe-core", why);
            None
        }
    }
}

/// Fails if the page has a serious or critical violation.
pub(crate) fn check(browser: &Browser, what: &str) {
    let Some(program) = program() else { return };
    if browser.value("typeof axe") != "object" {
        browser.script(program, &json!([]));
    }
    // The reply of one request would have to come within its limit.
    browser.script(
        "window.found = null;
         axe.run(document, { resultTypes: ['violations'] }).then(
           ({ violations, passes }) => window.found = { violations, passes: passes.length },
           (error) => window.found = { error: String(error) });",
        &json!([]),
    );
    let found: Value = until("axe-core ends", || {
        Some(browser.value("window.found")).filter(|found| !found.is_null())
    });
    assert!(found["passes"].as_u64() > Some(5), "{what}: axe-core has checked little: {found}");
    let violations = found["violations"].as_array().unwrap().iter();
    let bad: Vec<String> = violations
        .filter(|violation| IMPACTS.iter().any(|impact| violation["impact"] == *impact))
        .map(|violation| {
            let nodes = violation["nodes"].as_array().unwrap().iter();
            let places =
                nodes.map(|node| format!("\n    {} {}", node["html"], node["failureSummary"]));
            format!("{}: {}{}", violation["id"], violation["help"], places.collect::<String>())
        })
        .collect();
    assert!(bad.is_empty(), "{what}: {}", bad.join("\n"));
}
