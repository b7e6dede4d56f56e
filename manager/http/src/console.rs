//! The console: static files, embedded in the binary. The page asks the API, as any other client.
//!
//! The files are public. What they show needs a token: an API token, or one that the page gets for
//! the one-time code in its address.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY,
    VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::RustEmbed;
use serde::Serialize;

use crate::app::App;
use crate::extract::{etag, ok, takes_gzip};
use crate::problem::{Problem, no_route};

/// Where the files are served.
const ASSETS: &str = "/assets/";
/// Where a one-time code is exchanged for a token.
const SIGN_IN: &str = "/sign-in";
/// The header with the code. A page of another site cannot send it.
const CODE: HeaderName = HeaderName::from_static("podmesh-code");
/// The file that is also served at `/`.
const INDEX: &str = "index.html";

/// The page loads nothing from other hosts and runs no code but its files, no other page can show it
/// in a frame, and text cannot become HTML by mistake.
const POLICY: &str = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

#[derive(RustEmbed)]
#[folder = "console/assets/"]
struct Embedded;

/// What the page gets for its code.
#[derive(Serialize)]
struct SignedIn {
    token: String,
}

/// A file, ready to be sent.
struct File {
    kind: &'static str,
    tag: String,
    plain: Bytes,
    gzip: Bytes,
}

/// The files by name. They are compressed once, when the first is asked for.
static FILES: LazyLock<BTreeMap<String, File>> = LazyLock::new(|| {
    let file = |name: &str| {
        let found = Embedded::get(name)?;
        let hash = found.metadata.sha256_hash();
        let tag = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let plain = match found.data {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes),
            Cow::Owned(bytes) => bytes.into(),
        };
        let gzip = compress(&plain).unwrap_or_else(|_| plain.clone());
        Some(File { kind: kind_of(name), tag, plain, gzip })
    };
    Embedded::iter().filter_map(|name| Some((name.to_string(), file(&name)?))).collect()
});

fn compress(bytes: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}

/// Returns the media type. Browsers run a module only if it is that of JavaScript.
fn kind_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

/// Returns whether a path is of the page.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path == SIGN_IN || path.starts_with(ASSETS)
}

/// Adds the page to the router.
pub(crate) fn add(router: Router<App>) -> Router<App> {
    router
        .route("/", get(serve))
        .route(&format!("{ASSETS}{{*name}}"), get(serve))
        .route(SIGN_IN, post(sign_in))
}

/// POST /sign-in
async fn sign_in(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let code = headers.get(CODE).and_then(|code| code.to_str().ok()).unwrap_or_default();
    let token = app.door.sign_in(code)?;
    Ok(ok(&SignedIn { token }))
}

/// GET / and /assets/…
async fn serve(request: Request) -> Response {
    let path = request.uri().path();
    let name = path.strip_prefix(ASSETS).unwrap_or(INDEX);
    match FILES.get(name) {
        Some(file) => send(file, request.headers()),
        None => no_route(request.uri().clone()).await.into_response(),
    }
}

fn send(file: &File, headers: &HeaderMap) -> Response {
    let (tag, has) = etag(headers, &file.tag);
    let common: [(HeaderName, HeaderValue); 5] = [
        (ETAG, tag),
        // Browsers ask each time whether the file is still the same: a new version shows at once.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (VARY, HeaderValue::from_static("Accept-Encoding")),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    if has {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let kind = [(CONTENT_TYPE, file.kind)];
    if takes_gzip(headers) && file.gzip.len() < file.plain.len() {
        return (common, kind, [(CONTENT_ENCODING, "gzip")], file.gzip.clone()).into_response();
    }
    (common, kind, file.plain.clone()).into_response()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
