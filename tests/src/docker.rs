//! A real Docker engine for tests, and an image made from this machine's busybox.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until_true;

/// The image that [`image`] creates.
pub const IMAGE: &str = "podmesh-test:busybox";

/// The label with which an agent marks its containers.
pub const AGENT_LABEL: &str = "podmesh.agent";

/// Returns an image with busybox and `sh`, made from `/bin/busybox`. Prints a message and returns
/// `None` if no Docker engine answers; panics instead with `PODMESH_TEST_DOCKER=required`.
pub fn image() -> Option<&'static str> {
    static MADE: OnceLock<bool> = OnceLock::new();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    let made = *MADE.get_or_init(|| match make() {
        Ok(()) => true,
        Err(why) if required => panic!("PODMESH_TEST_DOCKER=required, but: {why}"),
        Err(why) => {
            eprintln!("SKIPPED: tests with containers: {why}");
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
        .map_err(|error| format!("cannot run `docker`: {error}"))?;
    if !answers.status.success() {
        return Err("no Docker engine answers".into());
    }
    let there = Command::new("docker")
        .args(["image", "inspect", IMAGE])
        .output()
        .map_err(|error| format!("cannot run `docker`: {error}"))?;
    if there.status.success() {
        return Ok(()); // Each import would leave the previous image without a name.
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

/// Returns the containers of an agent, found by their label. Empty if Docker does not answer.
pub fn containers_of(agent_id: &str) -> Vec<String> {
    let filter = format!("label={AGENT_LABEL}={agent_id}");
    let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
    let ids = listed.map(|listed| listed.stdout).unwrap_or_default();
    String::from_utf8_lossy(&ids).lines().map(str::to_owned).collect()
}

/// Removes every container of an agent. Never panics, because it is used for cleanup.
pub fn remove_containers_of(agent_id: &str) {
    for id in containers_of(agent_id) {
        _ = Command::new("docker").args(["rm", "-f", "-v", &id]).output();
    }
}

/// A named volume with a name of its own, whose data is removed at the end, also after a failure.
pub struct TestVolume {
    /// Its name in podmesh.
    pub name: String,
}

impl TestVolume {
    /// Chooses a name. Nothing is created.
    pub fn new(what: &str) -> Self {
        Self { name: format!("test-{}-{what}", std::process::id()) }
    }

    /// Returns whether the engine has it.
    pub fn exists(&self) -> bool {
        let name = format!("podmesh-{}", self.name);
        let found = Command::new("docker").args(["volume", "inspect", &name]).output();
        found.is_ok_and(|found| found.status.success())
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        let name = format!("podmesh-{}", self.name);
        _ = Command::new("docker").args(["volume", "rm", "-f", &name]).output();
    }
}

/// A separate Docker engine that a test can stop and start. Needs root. It has no network, and
/// contains the image from [`image`].
pub struct PrivateEngine {
    folder: tempfile::TempDir,
    flags: Vec<&'static str>,
    process: Option<Child>,
}

impl PrivateEngine {
    /// Starts an engine with additional flags for `dockerd`. Returns `None` if [`image`] does.
    pub fn start(flags: &[&'static str]) -> Option<Self> {
        let image = image()?;
        let folder = tempfile::Builder::new().prefix("podmesh-engine-").tempdir();
        let folder = folder.expect("a temporary folder can be created");
        let mut this = Self { folder, flags: flags.to_vec(), process: None };
        this.run();
        let save = Command::new("docker").args(["save", image]).output().expect("docker runs");
        let mut load = this.docker(&["load"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let load = load.as_mut().expect("docker runs");
        let mut stdin = load.stdin.take().expect("a pipe");
        stdin.write_all(&save.stdout).expect("the engine accepts the image");
        drop(stdin);
        assert!(load.wait().expect("docker ends").success());
        Some(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns its address, for `DOCKER_HOST`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path("sock").display())
    }

    /// Returns a `docker` command for it.
    pub fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(self.address()).args(args).stdin(Stdio::null());
        command
    }

    /// Starts or restarts the engine, and waits until it answers.
    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let log = log.expect("a log can be written");
        // It runs in its own network namespace, because an engine without a bridge removes the
        // bridge of the machine's engine.
        let mut command = Command::new("unshare");
        command.args(["--net", "dockerd", "--bridge", "none", "--iptables=false"]);
        command.args(&self.flags);
        command.arg("--data-root").arg(self.path("root")).arg("--exec-root").arg(self.path("exec"));
        command.arg("--pidfile").arg(self.path("pid")).arg("-H").arg(self.address());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("dockerd can be started"));
        until_true("the engine answers", || {
            let asked =
                self.docker(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            asked.is_ok_and(|status| status.success())
        });
    }

    /// Sends a signal (SIGTERM as `systemctl stop` does, or SIGKILL), and waits for the engine's
    /// end.
    pub fn end(&mut self, signal: Signal) {
        if let Some(mut process) = self.process.take() {
            let pid = Pid::from_raw(i32::try_from(process.id()).unwrap_or(i32::MAX));
            kill(pid, signal).expect("the engine runs");
            process.wait().expect("the engine ends");
        }
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        if self.process.is_none() && !std::thread::panicking() {
            self.run();
        }
        let listed = self.docker(&["ps", "-aq"]).output();
        let ids = listed.map(|listed| listed.stdout).unwrap_or_default();
        for id in String::from_utf8_lossy(&ids).lines() {
            _ = self.docker(&["rm", "-f", id]).output();
        }
        if let Some(mut process) = self.process.take() {
            let pid = Pid::from_raw(i32::try_from(process.id()).unwrap_or(i32::MAX));
            _ = kill(pid, Signal::SIGTERM);
            _ = process.wait();
        }
        // Mounts that are left would keep the folder from being removed.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if std::path::Path::new(mount).starts_with(self.folder.path()) {
                _ = Command::new("umount").args(["--lazy", mount]).status();
            }
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            eprintln!("--- dockerd\n{log}");
        }
    }
}
