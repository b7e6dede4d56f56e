//! The manager's folder, and the lock that makes it one manager's.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::config::ManagerError;
use crate::endpoint::Endpoint;

const LOCK_FILE: &str = "manager.lock";

/// Holds the folder until it is dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    _file: File,
}

/// Creates the folder where it is missing, and takes its lock.
pub(crate) fn lock(path: &Path) -> Result<DataDirLock, ManagerError> {
    let error = |doing: &str| {
        let doing = doing.to_owned();
        move |source| ManagerError::DataDir { path: path.into(), doing, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(error("creating the directory"))?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path.join(LOCK_FILE))
        .map_err(error("opening manager.lock in it"))?;
    match file.try_lock() {
        Ok(()) => Ok(DataDirLock { _file: file }),
        Err(TryLockError::WouldBlock) => {
            let pid = Endpoint::read(path).ok().map(|endpoint| endpoint.pid);
            Err(ManagerError::AlreadyRunning { path: path.into(), pid })
        }
        Err(TryLockError::Error(source)) => Err(error("locking manager.lock in it")(source)),
    }
}

/// Whether a manager uses the folder.
pub(crate) fn in_use(path: &Path) -> bool {
    let Ok(file) = File::open(path.join(LOCK_FILE)) else { return false };
    // Given back at once: a manager that starts in this very moment would be refused.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The error for what went wrong with a file in the folder.
pub(crate) fn cannot_write(path: &Path, name: &str, source: io::Error) -> ManagerError {
    ManagerError::DataDir { path: path.into(), doing: format!("writing {name} in it"), source }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_belongs_to_one_manager_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/manager");
        let first = lock(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let said = lock(&path).unwrap_err().to_string();
        assert!(said.contains("another manager") && said.contains("state/manager"), "{said}");
        assert!(in_use(&path));
        drop(first);
        assert!(!in_use(&path) && !in_use(dir.path()));
        lock(&path).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let said = lock(&file.join("manager")).unwrap_err().to_string();
        assert!(said.contains("file/manager") && said.contains("--data-dir"), "{said}");
    }
}
