//! Kills what a killed supervisor left running.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use uuid::Uuid;

use super::mark::{Mark, Stat, all_processes};
use super::records::Record;

/// How long killed processes may take to end.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Kills every process of an earlier supervisor of the agent, because nobody reads its output or
/// waits for its end. Blocks until they are gone.
pub(crate) fn kill_survivors(agent: Uuid, records: &[Record]) {
    let until = Instant::now() + LIMIT;
    for record in records {
        if let Some(process) = record.process
            && let pid = Pid::from_raw(process.pid)
            && Stat::of(pid)
                .is_some_and(|stat| process.is(stat.start_ticks) && stat.group == process.pid)
        {
            tracing::warn!(attempt = %record.attempt, %pid, "killing a process that a killed supervisor left");
            _ = killpg(pid, Signal::SIGKILL);
        }
    }
    loop {
        // A process may start others before it ends, so repeat until there are none.
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
            tracing::error!(
                processes = killed,
                "cannot kill processes that a killed supervisor left"
            );
            return;
        }
        sleep(PAUSE);
    }
}
