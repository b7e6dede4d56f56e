//! Checks every request before its handler.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use podmesh_protocol::error::{ErrorCode, ErrorReply};

use crate::PREFIX;
use crate::app::App;
use crate::budget::Charged;
use crate::console;
use crate::door::Peer;
use crate::extract::{BODY_BYTES_MAX, Session, content_length};
use crate::problem::Problem;

/// The names by which clients may address the server, in `Host`. Literal addresses are always
/// allowed: a name that an attacker controls cannot be one.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Returns the set of these names and `localhost`.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let own = ["localhost".to_owned()];
        Self(own.into_iter().chain(names).map(|name| name.to_ascii_lowercase()).collect())
    }

    fn allow(&self, host: &str) -> bool {
        let name = name_of(host);
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok() || self.0.contains(&name.to_ascii_lowercase())
    }
}

/// Returns the name or address of `name:port`.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !is_bare_v6(name) => name,
        _ => host,
    }
}

fn is_bare_v6(name: &str) -> bool {
    name.contains(':') && !name.ends_with(']')
}

/// A connection: the peer, and who it was identified as by its last request.
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    /// Whether it is TLS.
    pub(crate) tls: bool,
    admitted: Mutex<Option<(Option<String>, Session)>>,
}

impl Connection {
    pub(crate) fn new(peer: Peer, tls: bool) -> Self {
        Self { peer, tls, admitted: Mutex::default() }
    }

    /// Returns who asks.
    fn admit(&self, app: &App, token: Option<&str>) -> Result<Session, ErrorReply> {
        // No code that can panic runs while it is held.
        let mut admitted = self.admitted.lock();
        if let Some((known, session)) = &*admitted
            && known.as_deref() == token
        {
            session.asker.check()?;
            return Ok(session.clone());
        }
        let asker = app.door.admit(&self.peer, token)?;
        let budget = app.budgets.of(asker.caller().name.as_str());
        let session = Session { asker, budget };
        *admitted = Some((token.map(str::to_owned), session.clone()));
        Ok(session)
    }
}

/// Checks `Host` and `Origin`, finds out who asks, and counts the bytes that are under way.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match check(&app, request, next).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn check(app: &App, mut request: Request, next: Next) -> Result<Response, Problem> {
    let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
        return Err(Problem::unexpected());
    };
    if let Peer::Address(_) = connection.peer {
        check_host(&app.hosts, request.headers())?;
    }
    check_origin(connection.tls, request.headers())?;
    if is_public(request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let token = bearer(request.headers())?;
    let session = connection.admit(app, token)?;
    let budget = session.budget.clone();
    let announced = match content_length(request.headers()) {
        Some(length) => length.min(BODY_BYTES_MAX as u64),
        None if request.body().is_end_stream() => 0,
        None => BODY_BYTES_MAX as u64,
    };
    // The body has been read when the handler has returned.
    let _charge = budget.charge(u32::try_from(announced).unwrap_or(u32::MAX))?;
    request.extensions_mut().insert(session);
    let response = next.run(request).await;
    // Streams charge what they buffer.
    let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes > 0) else {
        return Ok(response);
    };
    let charge = budget.charge(u32::try_from(bytes).unwrap_or(u32::MAX))?;
    let (parts, body) = response.into_parts();
    let body = Body::new(body);
    Ok(Response::from_parts(parts, Charged::body(body, charge)))
}

/// Refuses a name that is not the server's: a page on another site that lets its own name point to
/// this address (DNS rebinding) sends that.
fn check_host(hosts: &Hosts, headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if hosts.allow(host) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "wrong_host",
        "The server has another name",
        format!(
            "`{}` is not a name of this server: use its address, or add the name to `advertise` (manager.toml)",
            host.escape_debug()
        ),
    ))
}

/// Refuses requests that a page of another site makes.
fn check_origin(tls: bool, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let text = |value: &HeaderValue| value.to_str().map(str::to_ascii_lowercase).ok();
    let scheme = if tls { "https" } else { "http" };
    let own = headers.get(HOST).and_then(text).map(|host| format!("{scheme}://{host}"));
    if own.is_some() && own == text(origin) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "Pages of other sites may not ask",
        "the request comes from a page of another site (its `Origin` is not this server)",
    ))
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| value.split_once(' '));
    match token {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(ErrorReply::new(
            ErrorCode::InvalidToken,
            "the header `Authorization` must be `Bearer TOKEN`, with an API token",
        )
        .into()),
    }
}

/// Returns whether a path is for everybody.
pub(crate) fn is_public(path: &str) -> bool {
    console::is_page(path)
        || matches!(path.strip_prefix(PREFIX), Some("/health" | "/ready" | "/openapi.json"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_addresses_and_own_names_are_hosts() {
        let hosts = Hosts::new(["Manager.LAN".to_owned()]);
        for good in [
            "localhost",
            "localhost:7771",
            "LOCALHOST:1",
            "127.0.0.1",
            "127.0.0.1:7771",
            "[::1]",
            "[::1]:7771",
            "::1",
            "10.0.0.5:80",
            "manager.lan",
            "manager.lan:7771",
        ] {
            assert!(check_host(&hosts, &headers(&[("host", good)])).is_ok(), "{good}");
        }
        for bad in
            ["", "evil.example", "evil.example:7771", "localhost.evil.example", "127.0.0.1.nip.io"]
        {
            assert!(check_host(&hosts, &headers(&[("host", bad)])).is_err(), "{bad}");
        }
        assert!(check_host(&hosts, &HeaderMap::new()).is_err());
    }

    #[test]
    fn only_own_pages_have_an_origin() {
        let host = ("host", "127.0.0.1:7771");
        let check = |tls, origin: &str| check_origin(tls, &headers(&[host, ("origin", origin)]));
        assert!(check(false, "http://127.0.0.1:7771").is_ok());
        assert!(check(true, "https://127.0.0.1:7771").is_ok());
        for foreign in
            ["null", "", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:7771"]
        {
            assert!(check(false, foreign).is_err(), "{foreign}");
        }
        assert!(check_origin(false, &headers(&[host])).is_ok());
        assert!(check_origin(false, &headers(&[("origin", "http://")])).is_err());
    }

    #[test]
    fn a_token_is_a_bearer_token() {
        assert_eq!(bearer(&headers(&[("authorization", "Bearer abc")])).unwrap(), Some("abc"));
        assert_eq!(bearer(&headers(&[("authorization", "bearer  abc ")])).unwrap(), Some("abc"));
        assert_eq!(bearer(&HeaderMap::new()).unwrap(), None);
        for other in ["Basic abc", "abc", ""] {
            assert!(bearer(&headers(&[("authorization", other)])).is_err(), "{other}");
        }
    }
}
