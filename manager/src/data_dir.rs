//! The manager's data directory, and the lock that allows only one manager to use it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::config::ManagerError;
use crate::endpoint::Endpoint;

const LOCK_FILE: &str = "manager.lock";

/// The lock of a data directory. It is released when it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    _file: File,
}

/// Creates the data directory if it is missing, and locks it.
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

/// Returns whether a manager uses the data directory.
pub(crate) fn in_use(path: &Path) -> bool {
    let Ok(file) = File::open(path.join(LOCK_FILE)) else { return false };
    // The lock is released at once. A manager that starts at this moment would be refused.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Returns the error for a failure to write a file in the data directory.
pub(crate) fn cannot_write(path: &Path, name: &str, source: io::Error) -> ManagerError {
    ManagerError::DataDir { path: path.into(), doing: format!("writing {name} in it"), source }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_one_manager_at_a_time_can_lock_a_directory() {
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
    fn the_error_names_a_directory_that_cannot_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let said = lock(&file.join("manager")).unwrap_err().to_string();
        assert!(said.contains("file/manager") && said.contains("--data-dir"), "{said}");
    }
}
