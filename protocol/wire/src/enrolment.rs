//! What a machine or user keeps of the cluster that it joined: its key, and a file beside it.

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

/// The private key's file in a folder of somebody who joined.
pub const KEY_FILE: &str = "key";
/// A new key, until it takes the place of that one.
const NEXT_KEY_FILE: &str = "key.next";
/// The file beside it.
pub const ENROLMENT_FILE: &str = "enrolment.json";

/// What is kept besides the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Where the manager may be; tried in this order.
    pub addresses: Vec<String>,
    /// The digests of keys that the manager may have, in hexadecimal.
    pub manager: Vec<String>,
    /// The cluster.
    pub cluster: ClusterId,
    /// What the key's owner may do.
    pub role: Role,
    /// Their name there.
    pub name: Name,
    /// The token with which they joined.
    pub token: TokenId,
    /// The digest in that token, in hexadecimal.
    pub token_manager: String,
}

/// Why there is no enrolment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// Nothing was joined with this folder.
    #[error(
        "{} has joined no cluster: join with a token that the manager gives (`podmesh token create` on its machine)",
        dir.display()
    )]
    None {
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be read or written, or is not of the form.
    #[error("{} cannot be used: {source}; join again with a new token", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The manager was not met, or refused.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Enrolment {
    /// Reads what is kept in a folder.
    ///
    /// # Errors
    /// [`EnrolmentError::None`] when nothing is; others when it cannot be used.
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

    /// The way to the manager; `address` in place of those that are kept.
    ///
    /// # Errors
    /// When the key or the file cannot be used.
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

    /// Whether this came of a token.
    pub fn is_of(&self, token: &JoinToken) -> bool {
        self.token == token.id && self.token_manager == token.manager.to_string()
    }

    /// Keeps which keys the manager may have from now on.
    pub(crate) fn learn(dir: &Path, manager: &[KeyDigest]) -> Result<(), EnrolmentError> {
        let mut this = Self::load(dir)?;
        this.manager = manager.iter().map(ToString::to_string).collect();
        let path = dir.join(ENROLMENT_FILE);
        this.save(&path).map_err(|source| EnrolmentError::File { path, source })
    }

    /// Prepares a new key in place of the folder's own; the same one until it is put in place.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn next_key(dir: &Path) -> Result<PublicKey, EnrolmentError> {
        Ok(KeyPair::load_or_create(&dir.join(NEXT_KEY_FILE))?.public())
    }

    /// Puts the new key in place, once the manager has said that it counts: the connections from
    /// then on show it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_next_key(dir: &Path) -> Result<(), EnrolmentError> {
        let path = dir.join(KEY_FILE);
        fs::rename(dir.join(NEXT_KEY_FILE), &path)
            .and_then(|()| fs::File::open(dir)?.sync_all())
            .map_err(|source| EnrolmentError::File { path, source })
    }

    /// Joins with a token, with the folder's key or a new one, and keeps what came of it.
    ///
    /// # Errors
    /// When the folder cannot be written, the manager is not met, or refuses.
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

    /// Removes the key and the file beside it: the folder has joined no cluster then. The manager
    /// still knows the key; an admin can revoke it.
    ///
    /// # Errors
    /// [`EnrolmentError::None`] when there is nothing to remove; others when it cannot be removed.
    pub fn remove(dir: &Path) -> Result<(), EnrolmentError> {
        if !dir.join(ENROLMENT_FILE).try_exists().unwrap_or(true) {
            return Err(EnrolmentError::None { dir: dir.into() });
        }
        // The file last: as long as it is there, this can be repeated.
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

    /// All of it or nothing, also where another process does the same.
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
