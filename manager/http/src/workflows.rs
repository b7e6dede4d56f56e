//! Workflows.

use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::workflow::{PackedWorkflow, WorkflowReply, WorkflowRequest, WorkflowSpec};
use podmesh_views::input::WorkflowInput;
use podmesh_views::workflow::{
    WorkflowCancelOutput, WorkflowJobRow, WorkflowOutput, WorkflowRow, WorkflowSubmitOutput,
    WorkflowsOutput,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::{Json, Path, Query, Session, json, ok};
use crate::jobs::{LIMIT_DEFAULT, key_of, submission};
use crate::problem::Problem;

/// Which workflows.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkflowsQuery {
    /// Only workflows before this one: the next page.
    before: Option<u64>,
    /// Only workflows with this name.
    #[schemars(with = "Option<String>")]
    name: Option<Name>,
    /// Rows of the page, at most 1000; default 100.
    limit: Option<u32>,
}

/// Which jobs of a workflow.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkflowQuery {
    /// Only jobs after this one: the next page.
    after: Option<u64>,
    /// Rows of the page, at most 1000; default 1000.
    limit: Option<u32>,
}

async fn ask(session: &Session, request: WorkflowRequest) -> Result<WorkflowReply, Problem> {
    match session.ask(RequestBody::Workflow(request)).await? {
        ReplyBody::Workflow(reply) => Ok(reply),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /workflows
pub(crate) async fn submit(
    session: Session,
    headers: HeaderMap,
    Json(input): Json<WorkflowInput>,
) -> Result<Response, Problem> {
    let submission = submission(&session, key_of(&headers)?)?;
    let spec: WorkflowSpec = input
        .try_into()
        .map_err(|error: podmesh_views::input::InputError| Problem::invalid(error.to_string()))?;
    let (name, jobs) = (spec.name.to_string(), u32::try_from(spec.jobs.len()).unwrap_or(u32::MAX));
    let workflow =
        PackedWorkflow::pack(&spec).map_err(|error| Problem::invalid(error.to_string()))?;
    match ask(&session, WorkflowRequest::Submit { submission, workflow }).await? {
        WorkflowReply::Submitted { workflow, again } => {
            let status = if again { StatusCode::OK } else { StatusCode::CREATED };
            let view = WorkflowSubmitOutput { workflow: workflow.0, name, jobs };
            let location = [(LOCATION, format!("/api/v1/workflows/{workflow}"))];
            Ok((location, json(status, &view)).into_response())
        }
        _ => Err(Problem::unexpected()),
    }
}

/// GET /workflows
pub(crate) async fn list(
    session: Session,
    Query(query): Query<WorkflowsQuery>,
) -> Result<Response, Problem> {
    let (before, name) = (query.before.map(JobId), query.name);
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    match ask(&session, WorkflowRequest::List { before, name, limit }).await? {
        WorkflowReply::List { workflows, next } => Ok(ok(&WorkflowsOutput {
            workflows: workflows.iter().map(WorkflowRow::from).collect(),
            more: next.is_some(),
        })),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /workflows/{workflow}
pub(crate) async fn show(
    session: Session,
    path: Path,
    Query(query): Query<WorkflowQuery>,
) -> Result<Response, Problem> {
    let workflow: JobId = path.part("workflow")?;
    let (after, limit) = (query.after.map(JobId), query.limit.unwrap_or(PAGE_ROWS_MAX));
    match ask(&session, WorkflowRequest::Show { workflow, after, limit }).await? {
        WorkflowReply::Workflow { view, jobs, next } => Ok(ok(&WorkflowOutput {
            row: (&view).into(),
            graph: jobs.iter().map(WorkflowJobRow::from).collect(),
            more: next.is_some(),
        })),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /workflows/{workflow}/cancel
pub(crate) async fn cancel(session: Session, path: Path) -> Result<Response, Problem> {
    let workflow: JobId = path.part("workflow")?;
    match ask(&session, WorkflowRequest::Cancel { workflow }).await? {
        WorkflowReply::Cancelled { workflow, jobs } => {
            Ok(ok(&WorkflowCancelOutput { workflow: workflow.0, jobs }))
        }
        _ => Err(Problem::unexpected()),
    }
}
