//! Ed25519 key pairs and their files.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use podmesh_protocol::access::{KeyDigest, PublicKey};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// The maximum size of a key file in bytes; ours have 83.
const FILE_BYTES_MAX: u64 = 4096;

/// A private key with its public key.
pub struct KeyPair {
    pkcs8: Vec<u8>,
    public: PublicKey,
}

impl fmt::Debug for KeyPair {
    /// Prints only the public key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public).finish()
    }
}

/// The reason why a key is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the key {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("the key {} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Other users can read or change the file.
    #[error(
        "the key {} is accessible to other users (mode {mode:03o}): anybody who has read it can pose as this machine; if nobody has, run `chmod 600` on it, otherwise remove it and join again",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error("the key {} belongs to user {owner}, and this process is user {user}: run it as the owner", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The owner of the file.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// The file is not a key.
    #[error("{} is not a key: restore it from a backup, or remove it and join again", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The system provides no random numbers.
    #[error("cannot create a key: the system provides no random numbers")]
    Random,
}

impl KeyPair {
    /// Generates a new key.
    ///
    /// # Errors
    /// If the system provides no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        Self::from_pkcs8(document.as_ref().to_vec()).ok_or(KeyError::Random)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pkcs8, public })
    }

    /// Reads a key file (PKCS#8, RFC 8410).
    ///
    /// # Errors
    /// If the file cannot be read, is not a key, or is accessible to other users.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read { path: path.into(), source };
        // Checks the open file, not the name, so that the same file is read.
        let mut file = fs::File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        let (mode, owner) = (metadata.mode() & 0o777, metadata.uid());
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.into(), mode });
        }
        let user = nix::unistd::geteuid();
        if owner != user.as_raw() && !user.is_root() {
            return Err(KeyError::Owner { path: path.into(), owner, user: user.as_raw() });
        }
        let mut pkcs8 = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&mut file, FILE_BYTES_MAX), &mut pkcs8)
            .map_err(read)?;
        Self::from_pkcs8(pkcs8).ok_or_else(|| KeyError::Form { path: path.into() })
    }

    /// Reads a key file. Creates it if it is missing, with mode 0600 from the start.
    ///
    /// # Errors
    /// See [`KeyPair::load`]; also if the file cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let key = Self::generate()?;
        key.save(path).map_err(|source| KeyError::Write { path: path.into(), source })?;
        Ok(key)
    }

    /// Saves the key atomically: it is on disk before its name exists.
    fn save(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&self.pkcs8)?;
        file.sync_all()?;
        // Keeps an existing key.
        let linked = fs::hard_link(&new, path);
        fs::remove_file(&new)?;
        linked?;
        // Without this a power failure could still remove the name.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// Returns the digest by which a key is pinned.
pub fn digest_of(key: &PublicKey) -> KeyDigest {
    KeyDigest(sha256(&key.0))
}

/// Returns the SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Returns random bytes of the system, suitable for secrets.
///
/// # Errors
/// If the system provides none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut bytes)
        .map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_created_once_and_only_readable_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = KeyPair::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(KeyPair::load_or_create(&path).unwrap().public(), key.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_ne!(KeyPair::generate().unwrap().public(), key.public());
    }

    #[test]
    fn a_key_that_others_can_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        KeyPair::load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = KeyPair::load_or_create(&path).unwrap_err().to_string();
            assert!(said.contains(&format!("{mode:o}")) && said.contains("chmod 600"), "{said}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_key_is_an_error_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "no key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(KeyPair::load_or_create(&path), Err(KeyError::Form { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"no key");
    }
}
