//! The proxy of a node, which outlives the agent.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

static LAST: AtomicU8 = AtomicU8::new(0);

/// Returns an address of loopback for the proxy of one node, which no other test uses.
pub fn ingress_address() -> Ipv4Addr {
    let number = LAST.fetch_add(1, Ordering::Relaxed) % 250 + 1;
    let [high, low] = u16::try_from(std::process::id() % 60_000).unwrap().to_be_bytes();
    Ipv4Addr::new(127, high, low, number)
}

/// Returns the path of its lock. `data_dir` is the data directory of the agent's host.
fn lock(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/run/proxy.lock")
}

/// Returns whether a proxy is running.
pub fn lives(data_dir: &Path) -> bool {
    File::open(lock(data_dir)).is_ok_and(|file| file.try_lock().is_err())
}

/// Returns its process id; `None` if there is no proxy or it is just starting.
pub fn pid(data_dir: &Path) -> Option<Pid> {
    if !lives(data_dir) {
        return None;
    }
    let number = fs::read_to_string(lock(data_dir)).ok()?.trim().parse().ok()?;
    Some(Pid::from_raw(number))
}

/// Kills the proxy with SIGKILL. Returns when it is gone. Never panics, because it is also used for
/// cleanup.
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
    eprintln!("cannot end the proxy of {}", data_dir.display());
}
