//! What handlers get of a request, and how they reply.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path as AxumPath, Request};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::limits::FRAME_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::budget::Budget;
use crate::door::Asker;
use crate::problem::Problem;

/// Bytes of a request's body: those of a message at ROUTER.
pub(crate) const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// How long a client may take to send a body.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// Who asks, and what they have under way.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) asker: Arc<dyn Asker>,
    pub(crate) budget: Budget,
}

impl Session {
    pub(crate) async fn ask(&self, request: RequestBody) -> Result<ReplyBody, Problem> {
        Ok(self.asker.ask(request).await?)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // The guard puts it there, except on routes for everybody.
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::unexpected)
    }
}

/// The parts of the path that are variable, such as `job`.
pub(crate) struct Path(BTreeMap<String, String>);

impl Path {
    /// Returns a part.
    ///
    /// # Errors
    /// If it is not what the route has there.
    pub(crate) fn part<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, Problem> {
        let text = self.0.get(name).map_or("", String::as_str);
        text.parse().map_err(|why| {
            Problem::not_found(format!("`{}` is not a {name}: {why}", text.escape_debug()))
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match AxumPath::from_request_parts(parts, state).await {
            Ok(AxumPath(parts)) => Ok(Self(parts)),
            Err(error) => Err(Problem::bad_request(error.body_text())),
        }
    }
}

/// The query.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(Problem::bad_request(format!(
                "the query is not valid: {}; the parameters are in /api/v1/openapi.json",
                error.body_text()
            ))),
        }
    }
}

/// The body, which is JSON. Keys that are not known are an error.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body has the wrong type",
                "the body must be JSON, with the header `Content-Type: application/json`",
            ));
        }
        parse(&read(request).await?).map(Self)
    }
}

/// The body, which may be missing.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if request.headers().contains_key(CONTENT_TYPE) {
            return Ok(Self(Json::from_request(request, state).await?.0));
        }
        if !read(request).await?.is_empty() {
            return Err(Problem::bad_request("a body needs `Content-Type: application/json`"));
        }
        Ok(Self(T::default()))
    }
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        "The body is too large",
        format!("the body is over the limit of {BODY_BYTES_MAX} bytes (FRAME_BYTES_MAX)"),
    )
}

/// Returns the length that a request announces.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(request: Request) -> Result<bytes::Bytes, Problem> {
    if content_length(request.headers()).is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let body = to_bytes(request.into_body(), BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_LIMIT, body).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(error)) => Err(Problem::bad_request(format!("the body cannot be read: {error}"))),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "The body took too long",
            format!("the body must arrive within {} s", BODY_LIMIT.as_secs()),
        )),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.to_string().contains("length limit") {
            return true;
        }
        source = error.source();
    }
    false
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut unknown: Vec<String> = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let path = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    // One type of callback for all bodies, so that the code for what they share exists once.
    let note: &mut dyn FnMut(serde_ignored::Path<'_>) = &mut |key| unknown.push(key.to_string());
    let value = serde_ignored::deserialize(path, note);
    let value = match value {
        Ok(value) => value,
        Err(error) => {
            let mut detail = format!("the body is not valid: {error}");
            let path = track.path().to_string();
            if path != "." {
                _ = write!(detail, ", at `{path}`");
            }
            return Err(Problem::bad_request(detail));
        }
    };
    if let Err(error) = json.end() {
        return Err(Problem::bad_request(format!("the body is not valid: {error}")));
    }
    match unknown.first() {
        None => Ok(value),
        Some(key) => Err(Problem::bad_request(format!(
            "the body has a key that is not known: `{key}`; check its spelling in /api/v1/openapi.json"
        ))),
    }
}

/// Returns the tag of a version of something, and whether the client has it already.
pub(crate) fn etag(headers: &HeaderMap, version: impl Display) -> (HeaderValue, bool) {
    let tag = format!("W/\"{version}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let has = known.flat_map(|value| value.split(',')).any(|known| known.trim() == tag);
    (HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("")), has)
}

/// Returns whether the client understands gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (coding, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
        coding.trim().eq_ignore_ascii_case("gzip") && !matches!(weight, Some(Ok(0.0) | Err(_)))
    })
}

/// Returns a reply.
pub(crate) fn json(status: StatusCode, view: &impl Serialize) -> Response {
    match serde_json::to_vec(view) {
        Ok(body) => {
            (status, [(CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
        }
        Err(error) => Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unknown",
            "Something failed",
            format!("the reply cannot be written: {error}"),
        )
        .into_response(),
    }
}

/// Returns a reply with the status 200.
pub(crate) fn ok(view: &impl Serialize) -> Response {
    json(StatusCode::OK, view)
}
