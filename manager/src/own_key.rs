//! The manager's own key, and its rotation.

use std::path::PathBuf;
use std::sync::Arc;

use podmesh_manager_core::input::Input;
use podmesh_protocol::access::KeyDigest;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::Name;
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use tokio::sync::Mutex;

use crate::core::CoreHandle;
use crate::endpoint::Endpoint;
use crate::threads::stopping;

/// The manager's key: where it is stored, and where it is shown.
pub(crate) struct OwnKey {
    data_dir: PathBuf,
    shown: ShownKeys,
    /// The same as the file in the data directory. Locked during a rotation.
    endpoint: Arc<Mutex<Endpoint>>,
}

impl OwnKey {
    pub(crate) fn new(data_dir: PathBuf, shown: ShownKeys, endpoint: Endpoint) -> Self {
        Self { data_dir, shown, endpoint: Arc::new(Mutex::new(endpoint)) }
    }

    /// Returns the digest of the current key.
    pub(crate) fn digest(&self) -> KeyDigest {
        let [key, _next] = self.shown.digests();
        key
    }

    /// Replaces `key` by the next key, unless that has already been done. Open connections already
    /// know the next key, but must be made again to learn the one after it.
    pub(crate) async fn rotate(
        &self,
        key: KeyDigest,
        by: Name,
        core: &CoreHandle,
    ) -> Result<ReplyBody, ErrorReply> {
        let mut endpoint = Arc::clone(&self.endpoint).lock_owned().await;
        let [current, next] = self.shown.digests();
        if current != key {
            return Ok(ReplyBody::KeyRotated { key: current, next });
        }
        let (data_dir, shown) = (self.data_dir.clone(), self.shown.clone());
        let rotated = tokio::task::spawn_blocking(move || {
            let failed = |error: &dyn std::error::Error| {
                ErrorReply::new(ErrorCode::Storage, format!("the key was not rotated: {error}"))
            };
            let keys = ManagerKeys::rotate(&data_dir).map_err(|error| failed(&error))?;
            shown.replace(&keys).map_err(|error| failed(&error))?;
            let [key, next] = keys.digests();
            endpoint.key = key.to_string();
            // The endpoint is only for display. The key itself has been replaced.
            if let Err(error) = endpoint.put(&data_dir) {
                tracing::warn!(%error, "the endpoint file still shows the previous key");
            }
            Ok::<_, ErrorReply>((key, next))
        });
        let (key, next) = rotated.await.map_err(|_| stopping())??;
        let digest = key.to_string();
        tracing::info!(key = %digest, %by, "the manager's key was rotated");
        core.tell(Input::ManagerKeyRotated { digest, by });
        Ok(ReplyBody::KeyRotated { key, next })
    }
}
