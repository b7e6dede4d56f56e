//! How a process is recognised as part of an attempt: by its environment, in `/proc`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::Pid;
use podmesh_protocol::ids::AttemptId;
use uuid::Uuid;

/// The variable that says of which agent a process is; the attempt is in `PODMESH_TASK` and
/// `PODMESH_ATTEMPT`.
pub(super) const AGENT_VARIABLE: &str = "PODMESH_AGENT";

/// Of which agent's which attempt a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    /// The agent, by the id of its data directory.
    pub(super) agent: Uuid,
    /// The attempt.
    pub(super) attempt: AttemptId,
}

impl Mark {
    /// Reads the mark of a process. None: it has none, is over, or belongs to somebody else.
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

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Whether it is over, and its end has not been taken note of.
    pub(super) is_zombie: bool,
    /// Its process group.
    pub(super) group: i32,
    /// When it was started, in clock ticks since the machine was: with its number, this is what
    /// no other process has.
    pub(super) start_ticks: u64,
}

impl Stat {
    /// Reads it. None: there is no such process.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name stands in parentheses, and may hold anything, parentheses included.
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 2;
        let rest = std::str::from_utf8(stat.get(after_name..)?).ok()?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let start_ticks = fields.nth(16)?.parse().ok()?;
        Some(Self { is_zombie: matches!(state, "Z" | "X"), group, start_ticks })
    }
}

/// The processes that there are.
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
    fn a_name_cannot_confuse() {
        let stat = b"12 (a) Z 1 (b) S 3 77 12 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 5 6\n";
        let expected = Stat { is_zombie: false, group: 77, start_ticks: 4711 };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse(b"12 (a"), None);
    }

    #[test]
    fn this_process_is_there() {
        let me = Pid::this();
        assert!(all_processes().contains(&me));
        let stat = Stat::of(me).unwrap();
        assert!(!stat.is_zombie && stat.start_ticks > 0);
        assert_eq!(stat.group, nix::unistd::getpgrp().as_raw());
    }
}
