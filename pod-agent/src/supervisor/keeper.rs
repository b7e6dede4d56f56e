//! The keeper: the parent of a supervisor, which makes sure that nothing survives the supervisor.
//!
//! It only waits. When the supervisor dies, all orphaned processes below the keeper become its
//! children ("child subreaper"), whatever their session, group or environment. The keeper kills
//! them all, and only then releases the lock. `PR_SET_PDEATHSIG` would reach direct children only.
//! It would also need code between fork and exec, which rules out the fast way to start processes
//! and halves the rate.
//!
//! If the keeper is killed, its supervisor keeps running. If both are killed at the same time, the
//! next supervisor finds what is left by its environment: see `survivors.rs`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, setsid};

use super::error::SupervisorError;
use crate::companion::{CompanionCommand, Kind, READY, RunDir, Turn};
use crate::data_dir::read_agent_id;
use crate::process::{kill_survivors, remove_cgroups};

/// How long killed processes may take to end.
const LIMIT: Duration = Duration::from_secs(5);
/// Interval between checks of them.
const PAUSE: Duration = Duration::from_millis(5);

/// Starts a supervisor of `agent_dir` with `command`, becomes its keeper, and returns when nothing
/// of it is left. Returns at once if there already is a supervisor. Call it in a process that has
/// one thread and does nothing else.
///
/// # Errors
/// If the folder cannot be used, or the supervisor cannot be started.
pub fn keep(agent_dir: &Path, command: &CompanionCommand) -> Result<(), SupervisorError> {
    // Leave the agent's terminal and process group. This fails if the process already leads a
    // session.
    _ = setsid();
    let run_dir = RunDir::open(agent_dir, Kind::Supervisor)?;
    let lock = match run_dir.take_turn()? {
        Turn::Ours(lock) => lock,
        Turn::Served => {
            // If nobody reads it, nobody is waiting for it.
            _ = writeln!(io::stdout(), "{READY}");
            return Ok(());
        }
    };
    let not_started = |why: io::Error| SupervisorError::NotStarted {
        program: command.program.clone(),
        why: why.to_string(),
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(|why| not_started(why.into()))?;
    let mut supervisor = Command::from(command);
    // The lock is held as long as the keeper or the supervisor is running.
    supervisor.stdin(Stdio::from(lock.try_clone().map_err(not_started)?));
    let mut supervisor = supervisor.spawn().map_err(not_started)?;
    // The result does not matter: the same follows in any case.
    _ = supervisor.wait();
    kill_descendants();
    remove_cgroups(agent_dir);
    if let Some(agent) = read_agent_id(agent_dir) {
        kill_survivors(agent, &[]);
    }
    // Remove the process id, so that nobody kills another process with it.
    _ = lock.set_len(0);
    Ok(())
}

/// Kills all children of this process until there are none.
fn kill_descendants() {
    let listed = format!("/proc/self/task/{}/children", Pid::this());
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        // The children of a killed process become ours, so repeat until there are none.
        let children = fs::read_to_string(&listed).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // The process id stays ours until `waitpid`, so it cannot belong to another process.
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(status) if status.pid().is_none() => break,
                // EINVAL: it was ended by a signal without a name.
                Ok(_) | Err(_) => {}
            }
        }
        sleep(PAUSE);
    }
}
