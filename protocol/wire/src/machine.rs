//! What a machine gives a daemon: open files, and room on its disks.

use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statvfs::statvfs;

/// Bytes that a daemon keeps free for what is under way; new work is refused below. A file system
/// that is filled by others can still come to have none.
pub const RESERVE_BYTES: u64 = 16 << 20;
/// More is of no use here, and some programs close every number up to the limit.
const OPEN_FILES: u64 = 65_536;

/// Raises this process's limit of open files as far as it may, up to 65,536: connections and
/// attempts take some each, and the usual 1024 are for programs that use select(2). Where that does not go, a warning is logged.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = OPEN_FILES.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// How many files this process may have open.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// How many bytes this process may still write to the file system of a path (statvfs(3)).
///
/// # Errors
/// When the path is not there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Why no new work is taken with this folder; none where there is room. A folder that cannot be
/// looked at is not refused for that: whoever writes to it will see.
pub fn no_room(path: &Path) -> Option<String> {
    let free = free_bytes(path).ok().filter(|free| *free < RESERVE_BYTES)?;
    Some(format!(
        "no room is left in {}: {free} bytes are free, and {RESERVE_BYTES} are kept for what is under way; make room on its file system, nothing has to be started again",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_not_refused() {
        assert_eq!(no_room(Path::new("/nowhere/at/all")), None);
        assert!(free_bytes(Path::new("/nowhere/at/all")).is_err());
        assert!(free_bytes(Path::new("/")).is_ok());
    }
}
