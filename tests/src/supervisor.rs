//! The supervisor of an agent's processes, which outlives the agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where it lies; `data_dir` is that of the agent's host.
fn lock(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/run/supervisor.lock")
}

/// Whether there is one, or anything of one: it has a lock as long as anything of it lives.
pub fn lives(data_dir: &Path) -> bool {
    File::open(lock(data_dir)).is_ok_and(|file| file.try_lock().is_err())
}

/// Its process; none while there is none, or it is just starting.
pub fn pid(data_dir: &Path) -> Option<Pid> {
    if !lives(data_dir) {
        return None;
    }
    let number = fs::read_to_string(lock(data_dir)).ok()?.trim().parse().ok()?;
    Some(Pid::from_raw(number))
}

/// Kills it as `kill -9` does, and with it all that it holds; returns when all that is gone. Never
/// panics: this is for cleaning up, too.
pub fn kill_and_wait(data_dir: &Path) {
    for _ in 0..1000 {
        if !lives(data_dir) {
            return;
        }
        if let Some(pid) = pid(data_dir) {
            _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("the supervisor of {} cannot be ended", data_dir.display());
}
