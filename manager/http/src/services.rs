//! Services.

use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{Name, Revision};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::service::{
    ServiceDetail, ServiceReply, ServiceRequest, ServiceRevision, ServiceSpec,
};
use podmesh_views::endpoints::{haproxy, of, port_names, prometheus, rows};
use podmesh_views::http::PlanView;
use podmesh_views::input::{RollbackInput, ScaleInput, ServiceSpecInput};
use podmesh_views::service::{
    HistoryOutput, ServiceChangedOutput, ServiceOutput, ServiceRow, ServicesOutput,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::{Json, OptionalJson, Path, Query, Session, etag, ok};
use crate::jobs::WaitQuery;
use crate::problem::Problem;

/// Which endpoints, and how they are written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointsQuery {
    /// Only the endpoints of this port.
    #[schemars(with = "Option<String>")]
    port: Option<Name>,
    /// The format; default `json`.
    #[serde(default)]
    format: EndpointFormat,
}

/// A format of endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EndpointFormat {
    /// As `podmesh service NAME --endpoints --output json` prints them.
    #[default]
    Json,
    /// One `address:port` a line, of one port.
    Text,
    /// For `http_sd_configs` of Prometheus.
    PrometheusSd,
    /// `server` lines for a backend of HAProxy, of one port.
    Haproxy,
}

async fn ask(session: &Session, request: ServiceRequest) -> Result<ServiceReply, Problem> {
    match session.ask(RequestBody::Service(request)).await? {
        ReplyBody::Service(reply) => Ok(reply),
        _ => Err(Problem::unexpected()),
    }
}

async fn change(session: &Session, request: ServiceRequest) -> Result<Response, Problem> {
    match ask(session, request).await? {
        ServiceReply::Changed { service, revision, changed } => {
            Ok(ok(&ServiceChangedOutput { service: service.to_string(), revision, changed }))
        }
        _ => Err(Problem::unexpected()),
    }
}

async fn detail(
    session: &Session,
    service: Name,
    query: &WaitQuery,
) -> Result<ServiceDetail, Problem> {
    let (since, wait_ms) = (query.since.map(Revision), query.wait_ms);
    match ask(session, ServiceRequest::Show { service, since, wait_ms }).await? {
        ServiceReply::Service(detail) => Ok(*detail),
        _ => Err(Problem::unexpected()),
    }
}

async fn revisions(session: &Session, service: Name) -> Result<Vec<ServiceRevision>, Problem> {
    match ask(session, ServiceRequest::History { service }).await? {
        ServiceReply::History(revisions) => Ok(revisions),
        _ => Err(Problem::unexpected()),
    }
}

fn spec(name: Name, input: ServiceSpecInput) -> Result<Box<ServiceSpec>, Problem> {
    input.into_spec(name).map(Box::new).map_err(|error| Problem::invalid(error.to_string()))
}

/// GET /services
pub(crate) async fn list(session: Session) -> Result<Response, Problem> {
    let mut services: Vec<ServiceRow> = Vec::new();
    let mut after = None;
    loop {
        match ask(&session, ServiceRequest::List { after, limit: PAGE_ROWS_MAX }).await? {
            ServiceReply::List(page) if page.is_empty() => {
                return Ok(ok(&ServicesOutput { services }));
            }
            ServiceReply::List(page) => {
                services.extend(page.iter().map(ServiceRow::from));
                after = page.last().map(|view| view.service.clone());
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// GET /services/{service}
pub(crate) async fn show(
    session: Session,
    path: Path,
    headers: HeaderMap,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Problem> {
    let service: Name = path.part("service")?;
    let detail = detail(&session, service.clone(), &query).await?;
    let (tag, has) = etag(&headers, detail.changed);
    // Pauses before restarts, and why replicas wait, change without a revision.
    let timed = detail.replicas.iter().any(|replica| replica.restarts_in_ms.is_some());
    if has && !timed && detail.waits_for.is_empty() && headers.contains_key(IF_NONE_MATCH) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let history = revisions(&session, service).await?;
    Ok(([(ETAG, tag)], ok(&ServiceOutput::new(&detail, &history))).into_response())
}

/// PUT /services/{service}
pub(crate) async fn apply(
    session: Session,
    path: Path,
    Json(input): Json<ServiceSpecInput>,
) -> Result<Response, Problem> {
    let spec = spec(path.part("service")?, input)?;
    change(&session, ServiceRequest::Apply { spec }).await
}

/// POST /services/{service}/plan
pub(crate) async fn plan(
    session: Session,
    path: Path,
    Json(input): Json<ServiceSpecInput>,
) -> Result<Response, Problem> {
    let service: Name = path.part("service")?;
    let spec = spec(service.clone(), input)?;
    match ask(&session, ServiceRequest::Plan { spec }).await? {
        ServiceReply::Plan(plan) => Ok(ok(&PlanView::new(&service, &plan))),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /services/{service}/scale
pub(crate) async fn scale(
    session: Session,
    path: Path,
    Json(ScaleInput { replicas }): Json<ScaleInput>,
) -> Result<Response, Problem> {
    let service = path.part("service")?;
    change(&session, ServiceRequest::Scale { service, replicas }).await
}

/// POST /services/{service}/rollback
pub(crate) async fn rollback(
    session: Session,
    path: Path,
    OptionalJson(RollbackInput { to }): OptionalJson<RollbackInput>,
) -> Result<Response, Problem> {
    let service = path.part("service")?;
    change(&session, ServiceRequest::Rollback { service, to }).await
}

/// POST /services/{service}/restart
pub(crate) async fn restart(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, ServiceRequest::Restart { service: path.part("service")? }).await
}

/// POST /services/{service}/stop
pub(crate) async fn stop(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, ServiceRequest::Stop { service: path.part("service")? }).await
}

/// POST /services/{service}/start
pub(crate) async fn start(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, ServiceRequest::Start { service: path.part("service")? }).await
}

/// DELETE /services/{service}
pub(crate) async fn remove(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, ServiceRequest::Remove { service: path.part("service")? }).await
}

/// GET /services/{service}/history
pub(crate) async fn history(session: Session, path: Path) -> Result<Response, Problem> {
    let service: Name = path.part("service")?;
    let revisions = revisions(&session, service.clone()).await?;
    Ok(ok(&HistoryOutput {
        service: service.to_string(),
        revisions: revisions.iter().map(Into::into).collect(),
    }))
}

/// GET /services/{service}/endpoints
pub(crate) async fn endpoints(
    session: Session,
    path: Path,
    Query(query): Query<EndpointsQuery>,
) -> Result<Response, Problem> {
    let detail = detail(&session, path.part("service")?, &WaitQuery { since: None, wait_ms: 0 });
    let detail = detail.await?;
    let service = &detail.view.service;
    if let Some(port) = &query.port
        && !detail.spec.ports.contains_key(port)
    {
        let ports = port_names(&detail);
        return Err(Problem::not_found(format!(
            "service {service} has no port `{port}`; its ports are: {ports}"
        )));
    }
    let one_port = query.port.is_some() || detail.spec.ports.len() <= 1;
    let endpoints = of(&detail, query.port.as_ref());
    let text = |text: String| {
        if one_port {
            return Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response());
        }
        let ports = port_names(&detail);
        Err(Problem::bad_request(format!(
            "service {service} has more than one port: choose one with `port`: {ports}"
        )))
    };
    match query.format {
        EndpointFormat::Json => Ok(ok(&rows(&detail, &endpoints))),
        EndpointFormat::PrometheusSd => Ok(ok(&prometheus(&detail, &endpoints))),
        EndpointFormat::Haproxy => text(haproxy(&detail, &endpoints)),
        EndpointFormat::Text => {
            text(endpoints.iter().map(|endpoint| format!("{}\n", endpoint.address)).collect())
        }
    }
}
