//! Nodes.

use axum::response::Response;
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_views::http::ForgottenNode;
use podmesh_views::input::InputError;
use podmesh_views::node::{
    DrainInput, LabelledNode, LabelsInput, MaintenanceInput, NodeMaintenanceOutput, ScheduledNode,
};
use podmesh_views::node::{NodeRow, NodesOutput};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::access::revoke;
use crate::extract::{Json, OptionalJson, Path, Query, Session, ok};
use crate::problem::Problem;

/// How to forget a node.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForgetNodeQuery {
    /// Also end the attempts on the node, as lost, though they may still run there.
    #[serde(default)]
    force: bool,
}

/// GET /nodes
pub(crate) async fn list(session: Session) -> Result<Response, Problem> {
    let mut nodes: Vec<NodeRow> = Vec::new();
    let mut after = None;
    loop {
        match session.ask(RequestBody::Nodes { after, limit: PAGE_ROWS_MAX }).await? {
            // Only an empty page is the last: the bytes of a page are limited too.
            ReplyBody::Nodes(page) if page.is_empty() => return Ok(ok(&NodesOutput { nodes })),
            ReplyBody::Nodes(page) => {
                nodes.extend(page.iter().map(NodeRow::from));
                after = page.last().map(|view| view.node.clone());
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

async fn schedule(
    session: Session,
    path: Path,
    scheduling: Scheduling,
    drain: DrainSpec,
) -> Result<Response, Problem> {
    let node: Name = path.part("node")?;
    let request = RequestBody::NodeScheduling { node: node.clone(), scheduling, drain };
    match session.ask(request).await? {
        ReplyBody::NodeScheduling { scheduling, attempts, notes } => Ok(ok(&ScheduledNode {
            node: node.to_string(),
            scheduling: scheduling.into(),
            attempts,
            notes,
        })),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /nodes/{node}/cordon
pub(crate) async fn cordon(session: Session, path: Path) -> Result<Response, Problem> {
    schedule(session, path, Scheduling::Cordoned, DrainSpec::default()).await
}

/// POST /nodes/{node}/uncordon
pub(crate) async fn uncordon(session: Session, path: Path) -> Result<Response, Problem> {
    schedule(session, path, Scheduling::Open, DrainSpec::default()).await
}

/// POST /nodes/{node}/drain
pub(crate) async fn drain(
    session: Session,
    path: Path,
    OptionalJson(input): OptionalJson<DrainInput>,
) -> Result<Response, Problem> {
    schedule(session, path, Scheduling::Draining, input.into()).await
}

/// POST /nodes/{node}/labels
pub(crate) async fn label(
    session: Session,
    path: Path,
    Json(LabelsInput { set, remove }): Json<LabelsInput>,
) -> Result<Response, Problem> {
    let node: Name = path.part("node")?;
    match session.ask(RequestBody::NodeLabels { node: node.clone(), set, remove }).await? {
        ReplyBody::NodeLabels { labels } => Ok(ok(&LabelledNode::new(&node, &labels))),
        _ => Err(Problem::unexpected()),
    }
}

async fn plan(
    session: &Session,
    path: &Path,
    maintenance: Option<MaintenanceSpec>,
) -> Result<Response, Problem> {
    let node: Name = path.part("node")?;
    match session.ask(RequestBody::NodeMaintenance { node: node.clone(), maintenance }).await? {
        ReplyBody::NodeMaintenance { changed } => {
            Ok(ok(&NodeMaintenanceOutput { node: node.to_string(), changed }))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// PUT /nodes/{node}/maintenance
pub(crate) async fn plan_maintenance(
    session: Session,
    path: Path,
    Json(input): Json<MaintenanceInput>,
) -> Result<Response, Problem> {
    let spec = input.try_into().map_err(|error: InputError| Problem::invalid(error.to_string()))?;
    plan(&session, &path, Some(spec)).await
}

/// DELETE /nodes/{node}/maintenance
pub(crate) async fn remove_maintenance(session: Session, path: Path) -> Result<Response, Problem> {
    plan(&session, &path, None).await
}

/// POST /nodes/{node}/revoke
pub(crate) async fn revoke_key(session: Session, path: Path) -> Result<Response, Problem> {
    revoke(session, PrincipalKind::Node, path.part("node")?).await
}

/// DELETE /nodes/{node}
pub(crate) async fn forget(
    session: Session,
    path: Path,
    Query(query): Query<ForgetNodeQuery>,
) -> Result<Response, Problem> {
    let node: Name = path.part("node")?;
    match session.ask(RequestBody::NodeForget { node: node.clone(), force: query.force }).await? {
        ReplyBody::NodeForgotten { enrolled } => {
            Ok(ok(&ForgottenNode { node: node.to_string(), enrolled }))
        }
        _ => Err(Problem::unexpected()),
    }
}
