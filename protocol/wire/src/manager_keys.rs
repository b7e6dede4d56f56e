//! The manager's keys: the current one and the next one. Every peer that connects gets the digests
//! of both, so the next key can replace the current one at any time without further notice.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use podmesh_protocol::access::KeyDigest;
use rustls::ServerConfig;

use crate::error::WireError;
use crate::key::{KeyError, KeyPair, digest_of};
use crate::tls;

/// The manager's current key, in its data directory.
pub const KEY_FILE: &str = "key";
const NEXT_FILE: &str = "key.next";
/// The key after the next one, during a rotation.
const AFTER_FILE: &str = "key.after";

/// The current and the next key.
#[derive(Debug)]
pub struct ManagerKeys {
    /// The key that the manager uses.
    pub current: KeyPair,
    /// The key that it uses after the next rotation.
    pub next: KeyPair,
}

impl ManagerKeys {
    /// Loads the keys of a data directory; creates missing ones.
    ///
    /// # Errors
    /// See [`KeyPair::load_or_create`].
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        // Completes a rotation that a kill interrupted.
        rename(dir, AFTER_FILE, NEXT_FILE, &dir.join(NEXT_FILE))?;
        let current = KeyPair::load_or_create(&dir.join(KEY_FILE))?;
        Ok(Self { current, next: KeyPair::load_or_create(&dir.join(NEXT_FILE))? })
    }

    /// Replaces the current key by the next one, and creates a new next one. A kill at any moment
    /// leaves a key that all peers know.
    ///
    /// # Errors
    /// See [`KeyPair::load_or_create`].
    pub fn rotate(dir: &Path) -> Result<Self, KeyError> {
        remove(&dir.join(AFTER_FILE))?;
        KeyPair::load_or_create(&dir.join(AFTER_FILE))?;
        rename(dir, NEXT_FILE, KEY_FILE, Path::new(""))?;
        Self::load_or_create(dir)
    }

    /// Returns the digests of both keys, for peers.
    pub fn digests(&self) -> [KeyDigest; 2] {
        [&self.current, &self.next].map(|key| digest_of(&key.public()))
    }
}

fn remove(path: &Path) -> Result<(), KeyError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KeyError::Write { path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// Renames a key file, and returns when that is on disk. Does nothing if the file does not exist,
/// or if `unless` does.
fn rename(dir: &Path, from: &str, to: &str, unless: &Path) -> Result<(), KeyError> {
    let write = |source| KeyError::Write { path: dir.join(to), source };
    if unless.is_file() || !dir.join(from).is_file() {
        return Ok(());
    }
    fs::rename(dir.join(from), dir.join(to)).map_err(write)?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(write)
}

/// The keys that the front uses; they can be replaced while it runs.
#[derive(Clone)]
pub struct ShownKeys(Arc<RwLock<CurrentKeys>>);

struct CurrentKeys {
    tls: Arc<ServerConfig>,
    digests: [KeyDigest; 2],
}

impl CurrentKeys {
    fn new(keys: &ManagerKeys) -> Result<Self, WireError> {
        let tls = tls::server_config(&keys.current).map_err(WireError::Tls)?;
        Ok(Self { tls, digests: keys.digests() })
    }
}

impl ShownKeys {
    /// Uses these keys.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(keys: &ManagerKeys) -> Result<Self, WireError> {
        Ok(Self(Arc::new(RwLock::new(CurrentKeys::new(keys)?))))
    }

    /// Uses other keys from the next connection on.
    ///
    /// # Errors
    /// If TLS cannot be set up; then nothing changes.
    pub fn replace(&self, keys: &ManagerKeys) -> Result<(), WireError> {
        // No code that can panic runs under this lock.
        *self.0.write() = CurrentKeys::new(keys)?;
        Ok(())
    }

    /// Returns the digests of the current and the next key.
    pub fn digests(&self) -> [KeyDigest; 2] {
        self.0.read().digests
    }

    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().tls)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn peers_know_the_next_key_before_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let first = ManagerKeys::load_or_create(dir.path()).unwrap().digests();
        assert_eq!(ManagerKeys::load_or_create(dir.path()).unwrap().digests(), first);
        let second = ManagerKeys::rotate(dir.path()).unwrap().digests();
        assert_eq!(second[0], first[1]);
        assert!(!first.contains(&second[1]));
        assert_eq!(ManagerKeys::load_or_create(dir.path()).unwrap().digests(), second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_killed_rotation_leaves_a_key_that_peers_know() {
        let dir = tempfile::tempdir().unwrap();
        let told = ManagerKeys::load_or_create(dir.path()).unwrap().digests();
        // Killed before the first rename: nothing has changed.
        KeyPair::load_or_create(&dir.path().join(AFTER_FILE)).unwrap();
        assert_eq!(ManagerKeys::load_or_create(dir.path()).unwrap().digests(), told);
        // Killed between the two: the rotation is completed.
        fs::rename(dir.path().join(NEXT_FILE), dir.path().join(KEY_FILE)).unwrap();
        let after = ManagerKeys::load_or_create(dir.path()).unwrap().digests();
        assert_eq!(after[0], told[1]);
        assert!(!dir.path().join(AFTER_FILE).exists());
    }
}
