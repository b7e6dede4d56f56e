//! A cgroup as a folder with files.

use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The file with the processes of a cgroup, in both versions.
pub(super) const PROCESSES: &str = "cgroup.procs";
/// The file with events of a v2 cgroup.
const EVENTS: &str = "cgroup.events";
/// Maximum number of checks for processes that were started while others were moved.
const MOVES_MAX: u32 = 32;
/// Interval between checks of a cgroup whose processes are ending.
const PAUSE: Duration = Duration::from_millis(5);

/// Creates a cgroup, unless it exists.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(dir, error)),
        _ => Ok(()),
    }
}

/// Writes a setting.
pub(super) fn write(dir: &Path, file: &str, value: impl AsRef<[u8]>) -> io::Result<()> {
    let path = dir.join(file);
    // Never create the file. If it is missing, the kernel lacks the feature.
    let file = fs::OpenOptions::new().write(true).open(&path);
    let written = file.and_then(|mut file| io::Write::write_all(&mut file, value.as_ref()));
    written.map_err(|error| at(&path, error))
}

/// Adds the path to an error.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Returns the number after a name, in a file of names and numbers.
pub(super) fn count(dir: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Returns whether a cgroup is one of version 2.
pub(super) fn is_unified(dir: &Path) -> bool {
    dir.join(EVENTS).exists()
}

/// Returns whether a cgroup has processes. In version 2 this includes the cgroups below it.
pub(super) fn has_processes(dir: &Path, unified: bool) -> bool {
    if unified {
        return count(dir, EVENTS, "populated ") == Some(1);
    }
    !processes(dir).is_empty()
}

fn processes(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join(PROCESSES)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
}

/// Moves all processes of a cgroup to one of another tree. Fails if a process keeps starting others
/// faster than they can be moved.
pub(super) fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    let join = to.join(PROCESSES);
    let mut file = fs::OpenOptions::new().write(true).open(&join).map_err(|e| at(&join, e))?;
    for _ in 0..MOVES_MAX {
        let moved = processes(to);
        // This includes processes started since the last check. Their children start in the new
        // cgroup.
        let rest = processes(from).into_iter().filter(|pid| !moved.contains(pid));
        let rest: Vec<Pid> = rest.collect();
        if rest.is_empty() {
            return Ok(());
        }
        for pid in rest {
            match io::Write::write_all(&mut file, pid.to_string().as_bytes()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                moved => moved.map_err(|error| at(&join, error))?,
            }
        }
    }
    Err(at(&join, io::Error::other("processes are started faster than they can be moved here")))
}

/// Kills all processes of a cgroup. They take a moment to end.
pub(super) fn kill_all(dir: &Path) {
    if write(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    // Prevent new processes, so that the list is complete. If the kernel does not support that, the
    // next check finds those started in the meantime.
    _ = write(dir, "pids.max", "0");
    for pid in processes(dir) {
        _ = kill(pid, Signal::SIGKILL);
    }
}

/// Removes a cgroup and the cgroups below it.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    for below in cgroups_below(dir) {
        remove(&below.path())?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir, error)),
        _ => Ok(()),
    }
}

/// Kills all processes in a cgroup and the cgroups below it, until the time `until`, and removes
/// them.
pub(super) fn clear(dir: &Path, until: Instant) -> io::Result<()> {
    for below in cgroups_below(dir) {
        clear(&below.path(), until)?;
    }
    let unified = is_unified(dir);
    while has_processes(dir, unified) {
        if Instant::now() >= until {
            let text = format!("cannot kill the processes in {}", dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        kill_all(dir);
        sleep(PAUSE);
    }
    remove(dir)
}

fn cgroups_below(dir: &Path) -> Vec<DirEntry> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect()
}

/// Returns whether a folder has the name of an agent's cgroup.
pub(super) fn is_ours(dir: &Path) -> bool {
    let name = dir.file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with(super::PREFIX))
}
