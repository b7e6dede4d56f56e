//! The manager itself, tokens, users and keys.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use podmesh_protocol::access::{ParseKeyError, TokenId};
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{API_TOKEN_TTL_MS_DEFAULT, PAGE_ROWS_MAX, TOKEN_TTL_MS_DEFAULT};
use podmesh_views::access::{TokenOutput, TokensOutput, UsersOutput};
use podmesh_views::http::{CallerView, HealthView, InfoView, KeyView};
use podmesh_views::input::{KeyRotateInput, TokenInput};

use crate::app::App;
use crate::extract::{Json, Path, Session, json, ok};
use crate::problem::Problem;

/// GET /health
pub(crate) async fn health() -> Response {
    ok(&HealthView { status: "ok" })
}

/// GET /ready
pub(crate) async fn ready(State(app): State<App>) -> Result<Response, Problem> {
    app.door.ready().await?;
    Ok(ok(&HealthView { status: "ok" }))
}

/// GET /info
pub(crate) async fn info(session: Session) -> Result<Response, Problem> {
    match session.ask(RequestBody::Info).await? {
        ReplyBody::Info(info) => Ok(ok(&InfoView::from(&info))),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /me
pub(crate) async fn me(session: Session) -> Result<Response, Problem> {
    match session.ask(RequestBody::WhoAmI).await? {
        ReplyBody::WhoAmI(caller) => Ok(ok(&CallerView::from(&caller))),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /tokens
pub(crate) async fn tokens(session: Session) -> Result<Response, Problem> {
    match session.ask(RequestBody::Tokens).await? {
        ReplyBody::Tokens(tokens) => Ok(ok(&TokensOutput::new(&tokens))),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /tokens
pub(crate) async fn create_token(
    session: Session,
    Json(input): Json<TokenInput>,
) -> Result<Response, Problem> {
    let TokenInput { role, ttl_ms, uses, api } = input;
    if api && uses.is_some() {
        let why = "uses: an API token can be used any number of times; leave `uses` out";
        return Err(Problem::invalid(why));
    }
    let uses = uses.unwrap_or(1);
    let request = match api {
        true => {
            let ttl_ms = ttl_ms.unwrap_or(API_TOKEN_TTL_MS_DEFAULT);
            RequestBody::ApiTokenCreate { role, ttl_ms }
        }
        false => {
            let ttl_ms = ttl_ms.unwrap_or(TOKEN_TTL_MS_DEFAULT);
            RequestBody::TokenCreate { role, ttl_ms, uses }
        }
    };
    match session.ask(request).await? {
        ReplyBody::TokenCreated { id, token, expires_wall_ms } => {
            Ok(json(StatusCode::CREATED, &TokenOutput::new(id, token, role, uses, expires_wall_ms)))
        }
        _ => Err(Problem::unexpected()),
    }
}

/// DELETE /tokens/{id}
pub(crate) async fn revoke_token(session: Session, path: Path) -> Result<Response, Problem> {
    let id = TokenId(path.part("id")?);
    match session.ask(RequestBody::TokenRevoke { id }).await? {
        ReplyBody::TokenRevoked => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(Problem::unexpected()),
    }
}

/// GET /users
pub(crate) async fn users(session: Session) -> Result<Response, Problem> {
    let mut users = Vec::new();
    let mut after = None;
    loop {
        match session.ask(RequestBody::Users { after, limit: PAGE_ROWS_MAX }).await? {
            ReplyBody::Users(page) if page.is_empty() => return Ok(ok(&UsersOutput::new(&users))),
            ReplyBody::Users(page) => {
                after = page.last().map(|view| view.name.clone());
                users.extend(page);
            }
            _ => return Err(Problem::unexpected()),
        }
    }
}

/// DELETE /users/{user}
pub(crate) async fn revoke_user(session: Session, path: Path) -> Result<Response, Problem> {
    revoke(session, PrincipalKind::User, path.part("user")?).await
}

/// Revokes a key.
pub(crate) async fn revoke(
    session: Session,
    kind: PrincipalKind,
    name: Name,
) -> Result<Response, Problem> {
    match session.ask(RequestBody::Revoke { kind, name }).await? {
        ReplyBody::Revoked => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(Problem::unexpected()),
    }
}

/// POST /key/rotate
pub(crate) async fn rotate_key(
    session: Session,
    Json(input): Json<KeyRotateInput>,
) -> Result<Response, Problem> {
    let key = input.key.parse().map_err(|why: ParseKeyError| {
        Problem::invalid(format!("key: {why}; it is the `key` of GET /api/v1/info"))
    })?;
    match session.ask(RequestBody::KeyRotate { key }).await? {
        ReplyBody::KeyRotated { key, next } => {
            Ok(ok(&KeyView { key: key.to_string(), next: next.to_string() }))
        }
        _ => Err(Problem::unexpected()),
    }
}
