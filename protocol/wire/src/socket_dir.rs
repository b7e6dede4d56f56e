//! Folders with unix sockets, independent of the length of their paths.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Only the owner and root can connect, unless a group is given: the owner's primary group can have
/// other members.
const LOCAL_SOCKET_MODE: u32 = 0o600;
/// The mode if members of a group may connect.
const GROUP_SOCKET_MODE: u32 = 0o660;

/// How many sockets this process has bound.
static BOUND: AtomicU64 = AtomicU64::new(0);

/// A folder for unix sockets. A socket's path has at most 107 bytes (unix(7)), and a data directory
/// may have a longer one. So the folder is kept open, and its sockets are addressed through it.
#[derive(Debug)]
pub struct SocketDir {
    dir: File,
}

impl SocketDir {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// If it does not exist or is not accessible.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = File::open(path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { dir })
    }

    /// Creates the folder with this mode if it is missing, and opens it.
    ///
    /// # Errors
    /// If it cannot be created or opened.
    pub fn create(path: &Path, mode: u32) -> io::Result<Self> {
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let this = Self::open(path)?;
        this.dir.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(this)
    }

    /// Returns a short path for a file in the folder, valid as long as this value exists.
    pub fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()).into()
    }

    /// Binds a socket with this mode, and replaces one that a killed process has left.
    ///
    /// # Errors
    /// If the socket cannot be bound.
    pub fn bind(&self, name: &str, mode: u32) -> io::Result<UnixListener> {
        // Under another name first: ZeroMQ removes the file of a socket some time after closing it,
        // and must not remove the file of the next one. The number keeps apart those of this
        // process: by then another folder may have the descriptor of this one.
        let number = BOUND.fetch_add(1, Ordering::Relaxed);
        let new = self.path(&format!(".{name}.{number}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, self.path(name))?;
        Ok(listener)
    }

    /// Binds a socket to which only the owner and root can connect, and the members of a group if
    /// one is given.
    ///
    /// # Errors
    /// If the socket cannot be bound.
    pub fn bind_for(&self, name: &str, group: Option<u32>) -> io::Result<UnixListener> {
        let listener = self.bind(name, LOCAL_SOCKET_MODE)?;
        if let Some(group) = group {
            let path = self.path(name);
            // The group first: in the other order, the wrong group could connect for a moment.
            std::os::unix::fs::chown(&path, None, Some(group))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(GROUP_SOCKET_MODE))?;
        }
        Ok(listener)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_can_have_a_longer_path_than_the_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(150));
        let sockets = SocketDir::create(&deep, 0o700).unwrap();
        for _ in 0..2 {
            // The second one replaces the file of the first.
            let listener = sockets.bind("a.sock", 0o660).unwrap();
            UnixStream::connect(SocketDir::open(&deep).unwrap().path("a.sock")).unwrap();
            drop(listener);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&deep), mode(&deep.join("a.sock"))), (0o700, 0o660));
        assert!(SocketDir::open(&deep.join("a.sock")).is_err());
    }
}
