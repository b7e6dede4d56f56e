//! Recognises a process as part of an attempt, by its environment in `/proc`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::Pid;
use podmesh_protocol::ids::AttemptId;
use uuid::Uuid;

use crate::clock::boot_ms;

/// The variable with the agent that a process belongs to. The attempt is in `PODMESH_TASK` and
/// `PODMESH_ATTEMPT`.
pub(super) const AGENT_VARIABLE: &str = "PODMESH_AGENT";

/// The agent and the attempt that a process belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    /// The id of the agent's data directory.
    pub(super) agent: Uuid,
    /// The attempt.
    pub(super) attempt: AttemptId,
}

impl Mark {
    /// Reads the mark of a process. Returns `None` if it has no mark, has ended, or belongs to
    /// another user.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Self::in_environment(&fs::read(format!("/proc/{pid}/environ")).ok()?)
    }

    fn in_environment(environment: &[u8]) -> Option<Self> {
        let variable = |name: &str| {
            let mut all = environment.split(|byte| *byte == 0);
            let value = all.find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
            std::str::from_utf8(value).ok()
        };
        let agent = variable(AGENT_VARIABLE)?.parse().ok()?;
        let task = variable("PODMESH_TASK")?.parse().ok()?;
        let number = variable("PODMESH_ATTEMPT")?.parse().ok()?;
        Some(Self { agent, attempt: AttemptId { task, number } })
    }
}

/// Milliseconds per clock tick, the unit of the kernel's times (`USER_HZ`).
const TICK_MS: u64 = 10;

/// Returns the current time in clock ticks since the machine started, as in the start times of
/// processes.
pub(super) fn now_ticks() -> u64 {
    boot_ms() / TICK_MS
}

/// Returns for how many milliseconds a process has run, or `None` if there is no such process. Does
/// not use a wall clock.
pub(crate) fn age_ms(pid: Pid) -> Option<u64> {
    let started_ms = Stat::of(pid)?.start_ticks * TICK_MS;
    Some(boot_ms().saturating_sub(started_ms))
}

/// The kernel's data of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Whether it has ended and was not reaped.
    pub(super) is_zombie: bool,
    /// Its process group.
    pub(super) group: i32,
    /// Its start time, in clock ticks since the machine started. No other process has the same
    /// process id and start time.
    pub(super) start_ticks: u64,
}

impl Stat {
    /// Reads the data of a process. Returns `None` if there is no such process.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name is in parentheses, and may contain any character, including parentheses.
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 2;
        let rest = std::str::from_utf8(stat.get(after_name..)?).ok()?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let start_ticks = fields.nth(16)?.parse().ok()?;
        Some(Self { is_zombie: matches!(state, "Z" | "X"), group, start_ticks })
    }
}

/// Returns all processes.
pub(super) fn all_processes() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(Path::new("/proc")) else { return Vec::new() };
    let number = |name: &[u8]| std::str::from_utf8(name).ok()?.parse().ok();
    entries
        .filter_map(|entry| number(entry.ok()?.file_name().as_bytes()))
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::JobId;

    use super::*;

    #[test]
    fn a_mark_is_read_from_an_environment() {
        let agent = Uuid::from_u128(7);
        let environment = format!(
            "A=1\0PODMESH_TASK_INDEX=9\0PODMESH_TASK=42.7\0PODMESH_ATTEMPT=2\0PODMESH_AGENT={agent}\0"
        );
        let attempt = AttemptId::new(JobId(42), 7, 2);
        assert_eq!(Mark::in_environment(environment.as_bytes()), Some(Mark { agent, attempt }));
        assert_eq!(Mark::in_environment(b"PODMESH_AGENT=x\0\xff\0"), None);
        assert_eq!(Mark::in_environment(b""), None);
    }

    #[test]
    fn a_process_name_with_parentheses_is_parsed() {
        let stat = b"12 (a) Z 1 (b) S 3 77 12 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 5 6\n";
        let expected = Stat { is_zombie: false, group: 77, start_ticks: 4711 };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse(b"12 (a"), None);
    }

    #[test]
    fn this_process_is_found() {
        let me = Pid::this();
        assert!(all_processes().contains(&me));
        let stat = Stat::of(me).unwrap();
        assert!(!stat.is_zombie && stat.start_ticks > 0);
        assert_eq!(stat.group, nix::unistd::getpgrp().as_raw());
        let machine_ms = boot_ms();
        assert!(age_ms(me).unwrap() < machine_ms);
        // A process that was started just now.
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(age_ms(pid).unwrap() <= boot_ms() - machine_ms + TICK_MS);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(age_ms(pid), None);
    }
}
