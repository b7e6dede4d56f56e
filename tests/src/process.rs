//! Starts, watches and ends real processes.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// A daemon of the mesh. Killed when dropped.
pub struct Daemon {
    child: Child,
    /// The file with its standard error.
    pub stderr: PathBuf,
}

impl Daemon {
    /// Starts a daemon with its output in `log`.
    pub fn start(command: Command, log: &Path) -> Self {
        Self::start_split(command, log, log)
    }

    /// Starts a daemon with its standard output and standard error in separate files.
    pub fn start_split(mut command: Command, stdout: &Path, stderr: &Path) -> Self {
        let file = |path| File::options().create(true).append(true).open(path).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file(stdout))
            .stderr(file(stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, stderr: stderr.to_owned() }
    }

    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills it with SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        // It may have ended by itself.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it with SIGTERM, and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_end()
    }

    /// Stops it with SIGTERM, and kills it after a few seconds. Never panics, because it is used
    /// for cleanup.
    pub fn end(mut self) {
        _ = kill(self.pid(), Signal::SIGTERM);
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // The drop kills it.
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        until("a daemon ends", || self.child.try_wait().unwrap())
    }

    /// Returns whether it is still running.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Returns what it has printed to standard error.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Returns its resident memory in bytes (`VmRSS` of proc(5)).
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns its largest resident memory in bytes (`VmHWM`) since [`Self::forget_peak`].
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Sets its largest resident memory to the present one.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error means that it has already ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Returns the processes that have this environment variable, such as `PODMESH_TASK=1.1`.
pub fn with_environment(text: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let mut environ = Vec::new();
        // A process may end at any time; a zombie has no environment.
        if File::open(entry.path().join("environ"))
            .and_then(|mut file| file.read_to_end(&mut environ))
            .is_ok()
            && environ.split(|b| *b == 0).any(|variable| variable == text.as_bytes())
        {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}
