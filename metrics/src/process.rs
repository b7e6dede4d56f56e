//! The numbers of the process, by the names that all programs use.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

use crate::page::Page;

/// Adds the processor time, the memory and the open files of this process. What cannot be read is
/// left out.
pub fn add_process(page: &mut Page) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        let help = "Processor time of the process, in seconds.";
        page.counter("process_cpu_seconds", help, micros as f64 / 1e6);
    }
    if let Some(bytes) = resident_bytes() {
        page.gauge("process_resident_memory_bytes", "Memory of the process that is in use.", bytes);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder that is being read.
        let open = (files.count() as u64).saturating_sub(1);
        page.gauge("process_open_fds", "Open files and connections of the process.", open);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.gauge("process_max_fds", "How many files and connections it may have open.", soft);
    }
}

fn resident_bytes() -> Option<u64> {
    // proc_pid_statm(5): the second number, in pages.
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(bytes).ok()?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn value(name: &str) -> f64 {
        let mut page = Page::default();
        add_process(&mut page);
        let text = page.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    }

    #[test]
    fn the_numbers_of_the_process_follow_what_it_does() {
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_max_fds") >= 3.0);
        let before = value("process_open_fds");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        // Other tests run in this process.
        assert!(value("process_open_fds") >= before + 40.0);
        drop(files);
        let before = value("process_resident_memory_bytes");
        let memory = vec![1_u8; 64 << 20];
        assert!(value("process_resident_memory_bytes") > before + f64::from(32 << 20));
        drop(memory);
    }
}
