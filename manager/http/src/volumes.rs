//! Named volumes.

use axum::http::StatusCode;
use axum::response::Response;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::volume::{VolumeReply, VolumeRequest, VolumeView};
use podmesh_views::http::RemovedVolume;
use podmesh_views::volume::VolumesOutput;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::{Path, Query, Session, json, ok};
use crate::problem::Problem;

/// How to remove a volume.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveVolumeQuery {
    /// Forget it without its node, which keeps the data.
    #[serde(default)]
    force: bool,
}

/// GET /volumes
pub(crate) async fn list(session: Session) -> Result<Response, Problem> {
    let mut volumes: Vec<VolumeView> = Vec::new();
    loop {
        let after = volumes.last().map(|view| view.volume.clone());
        let request = VolumeRequest::List { after, limit: PAGE_ROWS_MAX };
        match session.ask(RequestBody::Volume(request)).await? {
            // Only an empty page is the last: the bytes of a page are limited too.
            ReplyBody::Volume(VolumeReply::List(page)) if page.is_empty() => {
                return Ok(ok(&VolumesOutput::new(&volumes)));
            }
            ReplyBody::Volume(VolumeReply::List(page)) => volumes.extend(page),
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// DELETE /volumes/{volume}
pub(crate) async fn remove(
    session: Session,
    path: Path,
    Query(query): Query<RemoveVolumeQuery>,
) -> Result<Response, Problem> {
    let volume: Name = path.part("volume")?;
    let request = VolumeRequest::Remove { volume: volume.clone(), force: query.force };
    match session.ask(RequestBody::Volume(request)).await? {
        ReplyBody::Volume(VolumeReply::Removing { node }) => {
            let view = RemovedVolume { volume: volume.to_string(), node: node.to_string() };
            Ok(json(StatusCode::ACCEPTED, &view))
        }
        _ => Err(Problem::unexpected()),
    }
}
