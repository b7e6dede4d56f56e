//! The data that a machine or user keeps about the cluster that it joined: its key, and a file
//! beside it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podmesh_protocol::access::{JoinToken, KeyDigest, PublicKey, Role, TokenId};
use podmesh_protocol::ids::{ClusterId, Name};
use serde::{Deserialize, Serialize};

use crate::address::ManagerAddress;
use crate::error::WireError;
use crate::key::{KeyError, KeyPair};
use crate::route::{self, Credentials, Route};

/// The private key's file in the folder of a member.
pub const KEY_FILE: &str = "key";
/// The new key, until it replaces the current one.
const NEXT_KEY_FILE: &str = "key.next";
/// The enrolment file.
pub const ENROLMENT_FILE: &str = "enrolment.json";

/// The data kept besides the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The addresses of the manager, in the order in which to try them.
    pub addresses: Vec<String>,
    /// The digests of keys that the manager may have, in hexadecimal.
    pub manager: Vec<String>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The role of the member.
    pub role: Role,
    /// The name of the member.
    pub name: Name,
    /// The token used to join.
    pub token: TokenId,
    /// The digest in that token, in hexadecimal.
    pub token_manager: String,
}

/// The reason why an enrolment is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// The folder has not joined a cluster.
    #[error(
        "{} has not joined a cluster: join with a token, which `podmesh token create` on the manager's machine prints",
        dir.display()
    )]
    None {
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be read or written, or is not valid.
    #[error("{} cannot be used: {source}; join again with a new token", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The manager could not be reached, or refused.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Enrolment {
    /// Reads the enrolment of a folder.
    ///
    /// # Errors
    /// [`EnrolmentError::None`] if there is none; other errors if it cannot be used.
    pub fn load(dir: &Path) -> Result<Self, EnrolmentError> {
        let path = dir.join(ENROLMENT_FILE);
        let file = |source| EnrolmentError::File { path: path.clone(), source };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| file(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(EnrolmentError::None { dir: dir.into() })
            }
            Err(error) => Err(file(error)),
        }
    }

    /// Returns the route to the manager, with `address` instead of the saved ones if it is given.
    ///
    /// # Errors
    /// If the key or the file cannot be used.
    pub fn route(
        &self,
        dir: &Path,
        address: Option<&ManagerAddress>,
    ) -> Result<Route, EnrolmentError> {
        let path = dir.join(ENROLMENT_FILE);
        let file = |why: String| EnrolmentError::File {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        };
        KeyPair::load(&dir.join(KEY_FILE))?;
        let digests = self.manager.iter().map(|digest| digest.parse::<KeyDigest>());
        let manager =
            digests.collect::<Result<Vec<_>, _>>().map_err(|error| file(error.to_string()))?;
        let addresses = match address {
            Some(address) => vec![address.clone()],
            None => {
                let addresses =
                    self.addresses.iter().map(|address| address.parse::<ManagerAddress>());
                addresses.collect::<Result<Vec<_>, _>>().map_err(|error| file(error.to_string()))?
            }
        };
        Ok(Route::Remote { addresses, credentials: Arc::new(Credentials::kept_in(dir, manager)) })
    }

    /// Returns whether this enrolment was made with a token.
    pub fn is_of(&self, token: &JoinToken) -> bool {
        self.token == token.id && self.token_manager == token.manager.to_string()
    }

    /// Saves the keys that the manager may have from now on.
    pub(crate) fn learn(dir: &Path, manager: &[KeyDigest]) -> Result<(), EnrolmentError> {
        let mut this = Self::load(dir)?;
        this.manager = manager.iter().map(ToString::to_string).collect();
        let path = dir.join(ENROLMENT_FILE);
        this.save(&path).map_err(|source| EnrolmentError::File { path, source })
    }

    /// Prepares a new key to replace the folder's key. Returns the same one until it is in place.
    ///
    /// # Errors
    /// If it cannot be created or read.
    pub fn next_key(dir: &Path) -> Result<PublicKey, EnrolmentError> {
        Ok(KeyPair::load_or_create(&dir.join(NEXT_KEY_FILE))?.public())
    }

    /// Puts the new key in place, after the manager has accepted it. Later connections use it.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn put_next_key(dir: &Path) -> Result<(), EnrolmentError> {
        let path = dir.join(KEY_FILE);
        fs::rename(dir.join(NEXT_KEY_FILE), &path)
            .and_then(|()| fs::File::open(dir)?.sync_all())
            .map_err(|source| EnrolmentError::File { path, source })
    }

    /// Joins with a token, with the folder's key or a new one, and saves the result.
    ///
    /// # Errors
    /// If the folder cannot be written, or the manager cannot be reached, or refuses.
    pub async fn join(dir: &Path, token: &JoinToken, name: &Name) -> Result<Self, EnrolmentError> {
        let path = dir.join(ENROLMENT_FILE);
        let file = |source| EnrolmentError::File { path: path.clone(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| EnrolmentError::File { path: dir.into(), source })?;
        let key = KeyPair::load_or_create(&dir.join(KEY_FILE))?;
        let (joined, addresses) = route::join(token, &key, name).await?;
        let this = Self {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            manager: joined.manager.iter().map(ToString::to_string).collect(),
            cluster: joined.cluster,
            role: joined.role,
            name: joined.name,
            token: token.id,
            token_manager: token.manager.to_string(),
        };
        this.save(&path).map_err(file)?;
        Ok(this)
    }

    /// Removes the key and the enrolment file: the folder has not joined a cluster any longer. The
    /// manager still has the key; an admin can revoke it.
    ///
    /// # Errors
    /// [`EnrolmentError::None`] if there is nothing to remove; other errors if it cannot be
    /// removed.
    pub fn remove(dir: &Path) -> Result<(), EnrolmentError> {
        if !dir.join(ENROLMENT_FILE).try_exists().unwrap_or(true) {
            return Err(EnrolmentError::None { dir: dir.into() });
        }
        // The enrolment file last: while it exists, this can be repeated.
        for name in [NEXT_KEY_FILE, KEY_FILE, ENROLMENT_FILE] {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(EnrolmentError::File { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Saves atomically, even if another process does the same.
    fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = match path.parent() {
            Some(dir) => tempfile::NamedTempFile::new_in(dir)?,
            None => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}
