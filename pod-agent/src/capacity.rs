//! Detects this machine's capacity.

use std::fs;
use std::path::Path;

use podmesh_protocol::limits::{CPU_MILLIS_MAX, MEMORY_BYTES_MAX};
use podmesh_protocol::spec::Resources;

/// Returns the cores and memory of this machine that this process may use, within its CPU mask and
/// the limits of its control groups. Memory is 0 if unknown.
pub fn detect_capacity() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu_millis =
        u32::try_from(cpus.saturating_mul(1000)).unwrap_or(u32::MAX).min(CPU_MILLIS_MAX);
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
    let groups = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit(Path::new("/sys/fs/cgroup"), &text));
    let memory = [machine, groups].into_iter().flatten().min().unwrap_or(0);
    Resources { cpu_millis, memory_bytes: memory.min(MEMORY_BYTES_MAX) }
}

/// Parses `MemTotal` in the text of `/proc/meminfo`.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns the lowest memory limit of a control group (v2) and its ancestors.
pub(crate) fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(own);
    own.ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_memory() {
        let capacity = detect_capacity();
        assert!(capacity.validate().is_ok());
        assert!(capacity.memory_bytes > 1 << 20);
    }

    #[test]
    fn the_lowest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit(root.path(), "0::/a/b\n"), None);
        fs::write(root.path().join("a/memory.max"), "4096\n").unwrap();
        assert_eq!(group_limit(root.path(), "1:x:/y\n0::/a/b\n"), Some(4096));
        assert_eq!(total_memory("MemTotal:       2 kB\nMemFree: 1 kB\n"), Some(2048));
    }
}
