//! The agent's data directory: its identity, and the lock that allows only one agent to use it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::ClusterId;
use uuid::Uuid;

use crate::error::AgentError;

/// The file with the id of the agent.
const ID: &str = "id";

/// A data directory that is locked by this agent until dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    id: Uuid,
    _lock: File,
}

impl DataDir {
    /// Opens the directory. If it is missing, creates it so that only the user can access it.
    pub(crate) fn open(path: &Path) -> Result<Self, AgentError> {
        let at = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::DataDir { doing, path, source }
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at("create the folder", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(at("create the data directory", path))?,
        }
        // Absolute, because programs are started in other folders.
        let path = path.canonicalize().map_err(at("find the data directory", path))?;
        let mode = fs::metadata(&path).map_err(at("inspect", &path))?.permissions().mode();
        // Passing through to the work folders is intended.
        if mode & 0o066 != 0 {
            tracing::warn!(
                "other users can access {}: run `chmod go-rw` on it, unless that is intended",
                path.display()
            );
        }
        let lock_path = path.join("lock");
        let lock =
            File::create(&lock_path).map_err(at("write to the data directory", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AgentError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(at("lock", &lock_path)(error)),
        }
        let id = match read(&path.join(ID), "the id of an agent")? {
            Some(id) => id,
            None => {
                let id = Uuid::new_v4();
                write(&path, ID, id)?;
                id
            }
        };
        Ok(Self { path, id, _lock: lock })
    }

    /// Returns its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the agent's id, which stays the same across restarts.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// Returns the path of the file with the agent's cluster.
    pub(crate) fn cluster_path(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// Returns the agent's cluster; `None` before its first session.
    pub(crate) fn cluster(&self) -> Result<Option<ClusterId>, AgentError> {
        Ok(read(&self.cluster_path(), "the id of a cluster")?.map(ClusterId))
    }

    /// Saves the agent's cluster.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) -> Result<(), AgentError> {
        write(&self.path, "cluster", cluster.0)
    }
}

/// Returns the id of the agent that a data directory belongs to; `None` if it belongs to none.
pub(crate) fn read_agent_id(dir: &Path) -> Option<Uuid> {
    read(&dir.join(ID), "the id of an agent").ok().flatten()
}

fn read(path: &Path, expected: &'static str) -> Result<Option<Uuid>, AgentError> {
    let path = path.to_owned();
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(AgentError::Damaged { path, expected }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AgentError::DataDir { doing: "read", path, source }),
    }
}

/// Writes a file atomically. It is on disk when this returns.
fn write(dir: &Path, name: &str, id: Uuid) -> Result<(), AgentError> {
    let path = dir.join(name);
    let unfinished = dir.join(format!("{name}.new"));
    let result = (|| {
        let mut file = File::create(&unfinished)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(dir)?.sync_all()
    })();
    result.map_err(|source| AgentError::DataDir { doing: "write", path, source })
}

/// Returns the machine's boot id, which changes with each boot.
pub(crate) fn boot_id() -> Result<String, AgentError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    match fs::read_to_string(&path) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(source) => Err(AgentError::DataDir { doing: "read", path, source }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_identity_persists_and_only_one_agent_can_open_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/agent");
        let first = DataDir::open(&path).unwrap();
        let id = first.id();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, AgentError::InUse { .. }), "{error}");

        assert_eq!(first.cluster().unwrap(), None);
        let cluster = ClusterId(Uuid::from_u128(7));
        first.set_cluster(cluster).unwrap();
        drop(first);
        let again = DataDir::open(&path).unwrap();
        assert_eq!((again.id(), again.cluster().unwrap()), (id, Some(cluster)));

        fs::write(again.cluster_path(), "x").unwrap();
        let error = again.cluster().unwrap_err().to_string();
        assert!(error.contains("cluster") && error.contains("remove it"), "{error}");
    }

    #[test]
    fn the_error_for_a_directory_that_cannot_be_created_names_it() {
        let error = DataDir::open(Path::new("/proc/podmesh")).unwrap_err().to_string();
        assert!(error.contains("/proc/podmesh"), "{error}");
    }

    #[test]
    fn the_boot_has_an_id() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
