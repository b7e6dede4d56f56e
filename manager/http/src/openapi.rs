//! The OpenAPI document: made from the table of routes and the schemas of the views by a test, checked
//! in, and served as it is. So the manager has no code that makes schemas.

use std::io::Read;

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;

use crate::extract::takes_gzip;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod generate;

/// `openapi.json` as gzip.
static DOCUMENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.json.gz"));

/// GET /openapi.json
pub(crate) async fn document(headers: HeaderMap) -> Response {
    let common = [(CONTENT_TYPE, "application/json"), (VARY, "Accept-Encoding")];
    let mut plain = Vec::new();
    if !takes_gzip(&headers) && GzDecoder::new(DOCUMENT).read_to_end(&mut plain).is_ok() {
        return (common, plain).into_response();
    }
    (common, [(CONTENT_ENCODING, "gzip")], DOCUMENT).into_response()
}
