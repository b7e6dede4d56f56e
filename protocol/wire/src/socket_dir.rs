//! Folders with unix sockets, and how long paths do not matter there.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A folder that holds unix sockets. A socket's path has at most 107 bytes (unix(7)), and a data
/// directory may lie deeper: so the folder is held open, and its sockets are named through it.
#[derive(Debug)]
pub struct SocketDir {
    dir: File,
}

impl SocketDir {
    /// Opens a folder that is there.
    ///
    /// # Errors
    /// When it is not, or may not be entered.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = File::open(path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { dir })
    }

    /// Makes the folder with this mode, where it is missing, and opens it.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn create(path: &Path, mode: u32) -> io::Result<Self> {
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let this = Self::open(path)?;
        this.dir.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(this)
    }

    /// A path for a file in it, short, and good as long as this process holds this.
    pub fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()).into()
    }

    /// Binds a socket with this mode, in place of one that a process which was killed has left.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(&self, name: &str, mode: u32) -> io::Result<UnixListener> {
        // Under another name first: ZeroMQ removes the file of a socket some time after it has
        // closed it, and must not find the file of the next one.
        let new = self.path(&format!(".{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, self.path(name))?;
        Ok(listener)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_can_lie_deeper_than_its_path_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(150));
        let sockets = SocketDir::create(&deep, 0o700).unwrap();
        for _ in 0..2 {
            // The second finds the first one's file.
            let listener = sockets.bind("a.sock", 0o660).unwrap();
            UnixStream::connect(SocketDir::open(&deep).unwrap().path("a.sock")).unwrap();
            drop(listener);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&deep), mode(&deep.join("a.sock"))), (0o700, 0o660));
        assert!(SocketDir::open(&deep.join("a.sock")).is_err());
    }
}
