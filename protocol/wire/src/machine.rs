//! The machine of a daemon: open files, disk space, and network addresses.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

/// Bytes that a daemon keeps free for running work; below that it refuses new work. Other programs
/// can still fill the file system completely.
pub const RESERVE_BYTES: u64 = 16 << 20;
/// A higher limit is useless here, and some programs close every descriptor up to the limit.
const OPEN_FILES: u64 = 65_536;

/// Raises this process's limit on open files as far as possible, up to 65,536: connections and
/// attempts need several each, and the usual 1024 is meant for programs that use select(2). Logs a
/// warning if that fails.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = OPEN_FILES.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// Returns the addresses of this machine that other machines can use, IPv4 first. Logs a warning and
/// returns none if they cannot be listed.
pub fn addresses() -> Vec<IpAddr> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this machine");
            return vec![];
        }
    };
    let address = |interface: InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let for_others = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        // A link-local address is useless without an interface of the machine that uses it.
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut found: Vec<IpAddr> = interfaces.filter_map(address).filter(for_others).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

/// Returns how many files this process may have open.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Returns how many bytes this process may still write to the file system of a path (statvfs(3)).
///
/// # Errors
/// If the path does not exist.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Returns how many bytes the file system of a path can hold, used or not.
///
/// # Errors
/// If the path does not exist.
pub fn disk_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks().saturating_mul(found.fragment_size()))
}

/// Returns why no new work can be accepted with this folder: its file system is full or read-only.
/// `None` if it can be written to, or is missing: a missing folder is created when it is needed.
pub fn unwritable(path: &Path) -> Option<String> {
    let folder = path.display();
    if let Err(error) = access(path, AccessFlags::W_OK | AccessFlags::X_OK)
        && error != Errno::ENOENT
    {
        return Some(format!(
            "cannot write to {folder}: {}; make it writable; no restart is needed",
            io::Error::from(error)
        ));
    }
    let free = free_bytes(path).ok().filter(|free| *free < RESERVE_BYTES)?;
    Some(format!(
        "no room is left in {folder}: {free} bytes are free, and {RESERVE_BYTES} are reserved for running work; free some space on its file system; no restart is needed"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_takes_work() {
        assert_eq!(unwritable(Path::new("/nowhere/at/all")), None);
        assert!(free_bytes(Path::new("/nowhere/at/all")).is_err());
        assert!(free_bytes(Path::new("/")).is_ok());
    }

    #[test]
    fn a_file_system_that_is_read_only_takes_no_work() {
        let why = unwritable(Path::new("/proc/self")).unwrap_or_default();
        assert!(why.starts_with("cannot write to /proc/self: "), "{why}");
    }
}
