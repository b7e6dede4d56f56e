//! A real Docker engine for tests, and an image made of this machine's busybox.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The image that [`image`] makes.
const IMAGE: &str = "podmesh-test:busybox";

/// The label with which an agent marks its containers.
pub const AGENT_LABEL: &str = "podmesh.agent";

/// An image with busybox and `sh`, made from `/bin/busybox`; none where no Docker engine answers,
/// which is said aloud. With `PODMESH_TEST_DOCKER=required` a missing engine is a failure.
pub fn image() -> Option<&'static str> {
    static MADE: OnceLock<bool> = OnceLock::new();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    let made = *MADE.get_or_init(|| match make() {
        Ok(()) => true,
        Err(why) if required => panic!("PODMESH_TEST_DOCKER=required, but: {why}"),
        Err(why) => {
            eprintln!("LEFT OUT: tests with containers: {why}");
            false
        }
    });
    made.then_some(IMAGE)
}

fn make() -> Result<(), String> {
    let answers = Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`docker` cannot be run: {error}"))?;
    if !answers.status.success() {
        return Err("no Docker engine answers".into());
    }
    let there = Command::new("docker")
        .args(["image", "inspect", IMAGE])
        .output()
        .map_err(|error| format!("`docker` cannot be run: {error}"))?;
    if there.status.success() {
        return Ok(()); // Each import would leave the one before without a name.
    }
    if !std::path::Path::new("/bin/busybox").exists() {
        return Err("there is no /bin/busybox (package busybox-static)".into());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).map_err(|error| error.to_string())?;
    std::fs::copy("/bin/busybox", bin.join("busybox")).map_err(|error| error.to_string())?;
    let applets = Command::new("/bin/busybox").arg("--list").output().map_err(|e| e.to_string())?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).map_err(|e| e.to_string())?;
    }
    std::fs::create_dir(folder.path().join("tmp")).map_err(|error| error.to_string())?;
    let tar = Command::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "-C"])
        .arg(folder.path())
        .args(["-c", "."])
        .output()
        .map_err(|error| error.to_string())?;
    let mut import = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = import.stdin.take().ok_or("no pipe")?;
    stdin.write_all(&tar.stdout).map_err(|error| error.to_string())?;
    drop(stdin);
    let status = import.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("docker import: {status}")) }
}

/// The containers of an agent, by the label that it gives them; none where Docker does not answer.
pub fn containers_of(agent_id: &str) -> Vec<String> {
    let filter = format!("label={AGENT_LABEL}={agent_id}");
    let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
    let ids = listed.map(|listed| listed.stdout).unwrap_or_default();
    String::from_utf8_lossy(&ids).lines().map(str::to_owned).collect()
}

/// Removes every container of an agent. Never panics: this is for cleaning up.
pub fn remove_containers_of(agent_id: &str) {
    for id in containers_of(agent_id) {
        _ = Command::new("docker").args(["rm", "-f", "-v", &id]).output();
    }
}
