//! The supervisor of an agent's processes, which outlives the agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Returns the path of its lock. `data_dir` is the data directory of the agent's host.
fn lock(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/run/supervisor.lock")
}

/// Returns whether a supervisor, or anything that it started, is running. The lock is held that
/// long.
pub fn lives(data_dir: &Path) -> bool {
    File::open(lock(data_dir)).is_ok_and(|file| file.try_lock().is_err())
}

/// Returns its process id; `None` if there is no supervisor or it is just starting.
pub fn pid(data_dir: &Path) -> Option<Pid> {
    if !lives(data_dir) {
        return None;
    }
    let number = fs::read_to_string(lock(data_dir)).ok()?.trim().parse().ok()?;
    Some(Pid::from_raw(number))
}

/// Kills the supervisor with SIGKILL, and with it its processes. Returns when all of them are gone.
/// Never panics, because it is also used for cleanup.
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
    eprintln!("cannot end the supervisor of {}", data_dir.display());
}

/// Removes leftover cgroups and work folders if nobody else could. Never panics, because it is used
/// for cleanup.
pub fn remove_left(data_dir: &Path) {
    let listed = fs::read_to_string(data_dir.join("agent/cgroups")).unwrap_or_default();
    for base in listed.lines().filter(|base| base.contains("/podmesh-")) {
        for below in fs::read_dir(base).into_iter().flatten().flatten() {
            _ = fs::remove_dir(below.path());
        }
        _ = fs::remove_dir(base);
    }
    if let Ok(id) = fs::read_to_string(data_dir.join("agent/id")) {
        let elsewhere = Path::new("/var/lib/podmesh-work");
        _ = fs::remove_dir_all(elsewhere.join(id.trim()));
        _ = fs::remove_dir(elsewhere);
    }
}
