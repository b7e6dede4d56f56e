//! Queues.

use axum::response::Response;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::queue::{QueueReply, QueueRequest};
use podmesh_views::input::InputError;
use podmesh_views::queue::{
    QueueChangedOutput, QueueInput, QueueOutput, QueueRow, QueueSavedOutput, QueuesOutput,
};

use crate::extract::{Json, Path, Session, ok};
use crate::problem::Problem;

async fn ask(session: &Session, request: QueueRequest) -> Result<QueueReply, Problem> {
    match session.ask(RequestBody::Queue(request)).await? {
        ReplyBody::Queue(reply) => Ok(reply),
        _ => Err(Problem::unexpected()),
    }
}

async fn change(
    session: &Session,
    path: &Path,
    request: fn(Name) -> QueueRequest,
) -> Result<Response, Problem> {
    let queue: Name = path.part("queue")?;
    match ask(session, request(queue.clone())).await? {
        QueueReply::Changed { changed } => {
            Ok(ok(&QueueChangedOutput { queue: queue.to_string(), changed }))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// GET /queues
pub(crate) async fn list(session: Session) -> Result<Response, Problem> {
    let mut queues: Vec<QueueRow> = Vec::new();
    let mut after = None;
    loop {
        match ask(&session, QueueRequest::List { after, limit: PAGE_ROWS_MAX }).await? {
            QueueReply::List(page) if page.is_empty() => return Ok(ok(&QueuesOutput { queues })),
            QueueReply::List(page) => {
                queues.extend(page.iter().map(QueueRow::from));
                after = page.last().map(|view| view.queue.clone());
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// GET /queues/{queue}
pub(crate) async fn show(session: Session, path: Path) -> Result<Response, Problem> {
    let queue = path.part("queue")?;
    match ask(&session, QueueRequest::Show { queue }).await? {
        QueueReply::Queue(detail) => Ok(ok(&QueueOutput::from(&*detail))),
        _ => Err(Problem::unexpected()),
    }
}

/// PUT /queues/{queue}
pub(crate) async fn set(
    session: Session,
    path: Path,
    Json(input): Json<QueueInput>,
) -> Result<Response, Problem> {
    let queue: Name = path.part("queue")?;
    let change =
        input.try_into().map_err(|error: InputError| Problem::invalid(error.to_string()))?;
    let request = QueueRequest::Set { queue: queue.clone(), change };
    match ask(&session, request).await? {
        QueueReply::Saved { added, changed } => {
            Ok(ok(&QueueSavedOutput { queue: queue.to_string(), added, changed }))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// DELETE /queues/{queue}
pub(crate) async fn remove(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |queue| QueueRequest::Remove { queue }).await
}

/// POST /queues/{queue}/pause
pub(crate) async fn pause(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |queue| QueueRequest::Pause { queue }).await
}

/// POST /queues/{queue}/resume
pub(crate) async fn resume(session: Session, path: Path) -> Result<Response, Problem> {
    change(&session, &path, |queue| QueueRequest::Resume { queue }).await
}
