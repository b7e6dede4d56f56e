//! The manager's keys: the one that it shows, and the one that is to follow. Whoever connects is told
//! both, and so the second can take the place of the first at any time without a word to anybody.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use podmesh_protocol::access::KeyDigest;
use rustls::ServerConfig;

use crate::error::WireError;
use crate::key::{KeyError, KeyPair, digest_of};
use crate::tls;

/// The key that the manager shows, in its data directory.
pub const KEY_FILE: &str = "key";
const NEXT_FILE: &str = "key.next";
/// The one after the next, in the middle of a rotation.
const AFTER_FILE: &str = "key.after";

/// Both keys.
#[derive(Debug)]
pub struct ManagerKeys {
    /// What it shows.
    pub current: KeyPair,
    /// What it will show after the next rotation.
    pub next: KeyPair,
}

impl ManagerKeys {
    /// Those in a data directory; makes what is missing.
    ///
    /// # Errors
    /// As [`KeyPair::load_or_create`].
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        // Left by a rotation that a kill ended half-way: it is finished.
        rename(dir, AFTER_FILE, NEXT_FILE, &dir.join(NEXT_FILE))?;
        let current = KeyPair::load_or_create(&dir.join(KEY_FILE))?;
        Ok(Self { current, next: KeyPair::load_or_create(&dir.join(NEXT_FILE))? })
    }

    /// The next key takes the place of the current one, and a new one its own. Killed at any
    /// moment, it leaves a key that everybody was told of.
    ///
    /// # Errors
    /// As [`KeyPair::load_or_create`].
    pub fn rotate(dir: &Path) -> Result<Self, KeyError> {
        remove(&dir.join(AFTER_FILE))?;
        KeyPair::load_or_create(&dir.join(AFTER_FILE))?;
        rename(dir, NEXT_FILE, KEY_FILE, Path::new(""))?;
        Self::load_or_create(dir)
    }

    /// The digests of both, as peers are told.
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

/// Renames a key, on disk when this returns; nothing where there is none, or `unless` is there.
fn rename(dir: &Path, from: &str, to: &str, unless: &Path) -> Result<(), KeyError> {
    let write = |source| KeyError::Write { path: dir.join(to), source };
    if unless.is_file() || !dir.join(from).is_file() {
        return Ok(());
    }
    fs::rename(dir.join(from), dir.join(to)).map_err(write)?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(write)
}

/// What the front shows, and says; can be replaced while it runs.
#[derive(Clone)]
pub struct ShownKeys(Arc<RwLock<Shown>>);

struct Shown {
    tls: Arc<ServerConfig>,
    digests: [KeyDigest; 2],
}

impl Shown {
    fn new(keys: &ManagerKeys) -> Result<Self, WireError> {
        let tls = tls::server_config(&keys.current).map_err(WireError::Tls)?;
        Ok(Self { tls, digests: keys.digests() })
    }
}

impl ShownKeys {
    /// Shows these.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(keys: &ManagerKeys) -> Result<Self, WireError> {
        Ok(Self(Arc::new(RwLock::new(Shown::new(keys)?))))
    }

    /// Shows others from the next connection on.
    ///
    /// # Errors
    /// When TLS cannot be set up; then nothing changes.
    pub fn replace(&self, keys: &ManagerKeys) -> Result<(), WireError> {
        // No code that can panic runs while it is held.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Shown::new(keys)?;
        Ok(())
    }

    /// The digests of the keys of now and next.
    pub fn digests(&self) -> [KeyDigest; 2] {
        self.0.read().unwrap_or_else(PoisonError::into_inner).digests
    }

    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).tls)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_next_key_is_known_before_it_is_used() {
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
    fn a_rotation_that_was_killed_anywhere_leaves_a_key_that_everybody_knows() {
        let dir = tempfile::tempdir().unwrap();
        let told = ManagerKeys::load_or_create(dir.path()).unwrap().digests();
        // Killed before the first rename: nothing has happened.
        KeyPair::load_or_create(&dir.path().join(AFTER_FILE)).unwrap();
        assert_eq!(ManagerKeys::load_or_create(dir.path()).unwrap().digests(), told);
        // Killed between the two: it goes on to the end.
        fs::rename(dir.path().join(NEXT_FILE), dir.path().join(KEY_FILE)).unwrap();
        let after = ManagerKeys::load_or_create(dir.path()).unwrap().digests();
        assert_eq!(after[0], told[1]);
        assert!(!dir.path().join(AFTER_FILE).exists());
    }
}
