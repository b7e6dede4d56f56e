//! Real processes: started, watched, ended.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// A daemon of the mesh; killed when dropped.
pub struct Daemon {
    child: Child,
    /// Where its standard error goes.
    pub stderr: PathBuf,
}

impl Daemon {
    /// Starts it with its output in `<log>`.
    pub fn start(command: Command, log: &Path) -> Self {
        Self::start_split(command, log, log)
    }

    /// Starts it with its standard output and its standard error in files of their own.
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

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) {
        // It may have ended by itself.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_end()
    }

    /// Asks it to stop, and kills it when it does not within a few seconds. Never panics: this
    /// is for cleaning up.
    pub fn end(mut self) {
        _ = kill(self.pid(), Signal::SIGTERM);
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // Dropping it kills it.
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        until("a daemon ends", || self.child.try_wait().unwrap())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Bytes of memory that it holds (`VmRSS` of proc(5)).
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Errors say that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The processes whose environment holds this text, such as `PODMESH_TASK=1.1`.
pub fn with_environment(text: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let mut environ = Vec::new();
        // A process may end while it is looked at; a zombie has no environment.
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
