//! The requests about volumes, with the reply of the matching type.

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::volume::{VolumeReply, VolumeRequest, VolumeView};

use crate::connect::{Connection, RequestError, unexpected};

impl Connection {
    async fn volume_request(&self, request: VolumeRequest) -> Result<VolumeReply, RequestError> {
        match self.request(RequestBody::Volume(request)).await? {
            ReplyBody::Volume(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// Returns all volumes in order of name. Only an empty page is the last.
    pub(crate) async fn volumes(&self) -> Result<Vec<VolumeView>, RequestError> {
        let mut volumes: Vec<VolumeView> = Vec::new();
        loop {
            let after = volumes.last().map(|view| view.volume.clone());
            match self.volume_request(VolumeRequest::List { after, limit: PAGE_ROWS_MAX }).await? {
                VolumeReply::List(page) if page.is_empty() => return Ok(volumes),
                VolumeReply::List(page) => volumes.extend(page),
                VolumeReply::Removing { .. } => return Err(unexpected()),
            }
        }
    }

    /// Asks to remove a volume. Returns its node, which may not have removed it yet.
    pub(crate) async fn remove_volume(
        &self,
        volume: Name,
        force: bool,
    ) -> Result<Name, RequestError> {
        match self.volume_request(VolumeRequest::Remove { volume, force }).await? {
            VolumeReply::Removing { node } => Ok(node),
            VolumeReply::List(_) => Err(unexpected()),
        }
    }
}
