//! Errors as RFC 9457 problem details.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode, Uri};

use axum::response::{IntoResponse, Response};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_views::http;

use crate::PREFIX;

/// The media type of a problem.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not answered.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    /// Seconds after which the same request may be answered.
    retry_after_s: Option<u64>,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, code, title, detail: detail.into(), retry_after_s: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "The request is not valid", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        ErrorReply::new(ErrorCode::NotFound, detail).into()
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        ErrorReply::new(ErrorCode::InvalidSpec, detail).into()
    }

    pub(crate) fn overloaded(detail: impl Into<String>) -> Self {
        ErrorReply::new(ErrorCode::Overloaded, detail).into()
    }

    /// The door's reply belongs to another request.
    pub(crate) fn unexpected() -> Self {
        let detail = "the answer to another request came; this is a bug of podmesh";
        ErrorReply::new(ErrorCode::Unknown, detail).into()
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// Returns whether the same request may be answered later.
    pub(crate) fn passes(&self) -> bool {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn view(&self) -> http::Problem {
        http::Problem {
            kind: format!("urn:podmesh:problem:{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code,
        }
    }
}

impl From<ErrorReply> for Problem {
    fn from(error: ErrorReply) -> Self {
        let (status, code, title) = match error.code {
            ErrorCode::BadMessage => (400, "bad_message", "The request cannot be read"),
            ErrorCode::UnsupportedVersion => {
                (502, "unsupported_version", "The manager speaks another version")
            }
            ErrorCode::InvalidSpec => (422, "invalid_spec", "A rule or a limit is violated"),
            ErrorCode::NotFound => (404, "not_found", "There is no such thing"),
            ErrorCode::NodeUnavailable => (503, "node_unavailable", "The node is not connected"),
            ErrorCode::NodeInUse => (409, "node_in_use", "The node is in use"),
            ErrorCode::Overloaded => (503, "overloaded", "A limit is reached"),
            ErrorCode::Compacted => (410, "compacted", "The events are no longer kept"),
            ErrorCode::Conflict => (409, "conflict", "Something else is under way"),
            ErrorCode::NameTaken => (409, "name_taken", "The name is in use"),
            ErrorCode::WrongCluster => (409, "wrong_cluster", "It belongs to another cluster"),
            ErrorCode::Forbidden => (403, "forbidden", "The role does not permit this"),
            ErrorCode::InvalidToken => (401, "invalid_token", "The token is not valid"),
            ErrorCode::NotEnrolled => (401, "not_enrolled", "The caller is not known"),
            ErrorCode::Storage => (507, "storage", "The manager's disk cannot be used"),
            ErrorCode::Stopping => (503, "stopping", "The manager is about to stop"),
            ErrorCode::Unknown => (500, "unknown", "Something failed"),
        };
        let mut status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = error.retry_after_ms.map(|ms| ms.div_ceil(1000));
        if error.code == ErrorCode::Overloaded && retry_after_s.is_some() {
            status = StatusCode::TOO_MANY_REQUESTS;
        }
        Self { status, code, title, detail: error.message, retry_after_s }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.view()).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(crate) async fn no_route(uri: Uri) -> Problem {
    Problem::not_found(format!(
        "there is no `{}`; all routes are in {PREFIX}/openapi.json",
        uri.path().escape_debug()
    ))
}
