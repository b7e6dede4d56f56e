//! What a supervisor that was killed left running.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use uuid::Uuid;

use super::mark::{Mark, Stat, all_processes};
use super::work::Found;

/// How long killed processes may take to be gone.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Kills every process of an earlier supervisor of the agent: nobody reads its output or waits for
/// its end any more. Blocks until they are gone.
pub(crate) fn kill_survivors(agent: Uuid, found: &[Found]) {
    let until = Instant::now() + LIMIT;
    for attempt in found {
        if let Some((pid, start_ticks)) = attempt.process
            && Stat::of(pid)
                .is_some_and(|stat| stat.start_ticks == start_ticks && stat.group == pid.as_raw())
        {
            tracing::warn!(attempt = %attempt.attempt, %pid, "killing what a killed supervisor left");
            _ = killpg(pid, Signal::SIGKILL);
        }
    }
    loop {
        // One that ends in between may have started others: looked at until there is none.
        let killed = all_processes()
            .into_iter()
            .filter(|pid| *pid != Pid::this())
            .filter(|pid| Mark::of(*pid).is_some_and(|mark| mark.agent == agent))
            .filter(|pid| kill(*pid, Signal::SIGKILL) != Err(Errno::ESRCH))
            .count();
        if killed == 0 {
            return;
        }
        if Instant::now() >= until {
            tracing::error!(processes = killed, "what a killed supervisor left cannot be killed");
            return;
        }
        sleep(PAUSE);
    }
}
