//! The file in the data directory that says where its manager can be reached.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::{ClusterId, InstanceId};
use serde::{Deserialize, Serialize};

/// The file's name in the manager's data directory.
pub const ENDPOINT_FILE: &str = "endpoint.json";

/// Where a running manager can be reached. It is stored as JSON in the data directory while the
/// manager runs. A manager that was killed leaves it behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The folder with its sockets for clients on this machine.
    pub sockets: PathBuf,
    /// The digest of its key, in hexadecimal.
    pub key: String,
    /// The ID of its process.
    pub pid: u32,
    /// Identifies this run of the manager. It is new after every start.
    pub instance: InstanceId,
    /// The cluster of the manager.
    pub cluster: ClusterId,
    /// The version of the program, for display.
    pub version: String,
    /// The network address of the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
}

/// An error of reading an endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// No manager runs on this data directory.
    #[error("no manager runs on the data directory {}: start one with `podmesh manager`", path.display())]
    NoManager {
        /// The data directory.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Endpoint {
    /// Reads the endpoint of the manager of a data directory.
    ///
    /// # Errors
    /// If there is no endpoint, or it cannot be read.
    pub fn read(data_dir: &Path) -> Result<Self, EndpointError> {
        let path = data_dir.join(ENDPOINT_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(EndpointError::NoManager { path: data_dir.into() });
            }
            Err(source) => return Err(EndpointError::Unreadable { path, source }),
        };
        serde_json::from_slice(&text)
            .map_err(|e| EndpointError::Unreadable { path, source: e.into() })
    }

    /// Writes the endpoint. Dropping the result removes it.
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<EndpointFile> {
        self.put(data_dir)?;
        Ok(EndpointFile { path: data_dir.join(ENDPOINT_FILE) })
    }

    /// Writes the endpoint atomically: a reader never sees a part of it.
    pub(crate) fn put(&self, data_dir: &Path) -> io::Result<()> {
        let path = data_dir.join(ENDPOINT_FILE);
        let new = path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, &path)
    }
}

/// Removes the file when the manager ends.
pub(crate) struct EndpointFile {
    path: PathBuf,
}

impl Drop for EndpointFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the endpoint file");
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_endpoint_is_read_back_and_removed_with_the_manager() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint {
            address: "[::1]:7770".parse().unwrap(),
            sockets: "/run/podmesh".into(),
            key: "00ff".into(),
            pid: 12,
            instance: InstanceId(Uuid::from_u128(1)),
            cluster: ClusterId(Uuid::from_u128(2)),
            version: "1.2.3".into(),
            http: None,
        };
        let file = endpoint.write(dir.path()).unwrap();
        assert_eq!(Endpoint::read(dir.path()).unwrap(), endpoint);
        let mode = fs::metadata(dir.path().join(ENDPOINT_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        let said = Endpoint::read(dir.path()).unwrap_err().to_string();
        assert!(said.contains("no manager runs") && said.contains("podmesh manager"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_invalid_endpoint_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ENDPOINT_FILE), "{").unwrap();
        let said = Endpoint::read(dir.path()).unwrap_err().to_string();
        assert!(said.contains(ENDPOINT_FILE), "{said}");
    }
}
