//! The keeper: the parent of a supervisor, which sees to it that nothing survives it.
//!
//! It does nothing but wait. All processes that have lost their parent below it become its own
//! children when the supervisor dies ("child subreaper"), whatever session or group they are in
//! and whatever environment they have; then it kills them all, and only then gives the lock free.
//! `PR_SET_PDEATHSIG` would take the direct children only, and would have to be set by code
//! between fork and exec, with which no process can be started the fast way: that halves the rate.
//!
//! A keeper that is killed leaves its supervisor alone. Should both be killed at a time, the next
//! supervisor finds what is left by its environment: see `survivors.rs`.

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
use super::place::{Place, Turn};
use super::{READY, SupervisorCommand};
use crate::data_dir::read_agent_id;
use crate::process::kill_survivors;

/// How long killed processes may take to be gone.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at them.
const PAUSE: Duration = Duration::from_millis(5);

/// Becomes the keeper of a supervisor of `agent_dir`, which `command` starts, and returns when
/// nothing of it is left; at once where there is a supervisor already. To be called by a process
/// with one thread, which does nothing else.
///
/// # Errors
/// When the folder cannot be used, or the supervisor cannot be started.
pub fn keep(agent_dir: &Path, command: &SupervisorCommand) -> Result<(), SupervisorError> {
    // Away from the terminal and the process group of the agent. It fails for whoever leads a
    // session of its own already.
    _ = setsid();
    let place = Place::open(agent_dir)?;
    let lock = match place.take_turn()? {
        Turn::Ours(lock) => lock,
        Turn::Served => {
            // Where nobody reads any more, nobody waits for it.
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
    // The lock is held as long as one of the two lives.
    supervisor.stdin(Stdio::from(lock.try_clone().map_err(not_started)?));
    let mut supervisor = supervisor.spawn().map_err(not_started)?;
    // Its end is all that is waited for: whatever it was, the same follows.
    _ = supervisor.wait();
    kill_descendants();
    if let Some(agent) = read_agent_id(agent_dir) {
        kill_survivors(agent, &[]);
    }
    // A number that means nothing any more is not to be killed by anybody.
    _ = lock.set_len(0);
    Ok(())
}

/// Kills all that has become a child of this process, until there is none.
fn kill_descendants() {
    let listed = format!("/proc/self/task/{}/children", Pid::this());
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        // One that is killed hands its own children on: looked at until there is none.
        let children = fs::read_to_string(&listed).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // Ours until its end is taken: the number cannot be anybody else's.
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(status) if status.pid().is_none() => break,
                // EINVAL: ended by a signal that has no name.
                Ok(_) | Err(_) => {}
            }
        }
        sleep(PAUSE);
    }
}
