use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Method;
use axum::http::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_LENGTH, HOST, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;
use crate::budget::Budgets;
use crate::door::Peer;
use crate::events::Feed;
use crate::guard::{Connection, Hosts};
use crate::router::router;
use crate::server::tests::Closed;

/// Bytes that the page may take over the wire.
const PAGE_BYTES_MAX: usize = 150_000;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Asks a server whose door lets nobody in.
async fn ask(method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
    let door = Arc::new(Closed(Mutex::default()));
    let app = App {
        door: Arc::<Closed>::clone(&door),
        feed: Arc::new(Feed::new()),
        budgets: Arc::new(Budgets::default()),
        hosts: Arc::new(Hosts::default()),
        stopping: watch::channel(false).1,
    };
    let mut request = Request::builder().method(method).uri(path).header(HOST, "127.0.0.1");
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let connection = Connection::new(Peer::Address("127.0.0.1:9".parse().unwrap()), false);
    let request = request.extension(Arc::new(connection)).body(Body::empty()).unwrap();
    let (parts, body) = router(app).oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert!(door.0.lock().unwrap().is_empty() || !is_page(path), "a file needs no token");
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn get(path: &str, headers: &[(HeaderName, &str)]) -> Answer {
    ask(Method::GET, path, headers).await
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("console/assets")
}

/// Returns the paths of all files below a folder, relative to it.
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()).iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found
}

#[tokio::test]
async fn every_file_is_served_with_its_type_and_the_policy() {
    let files = files_below(&folder());
    assert!(files.len() > 15, "{files:?}");
    for name in files {
        let answer = get(&format!("/assets/{name}"), &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        assert_eq!(answer.body, fs::read(folder().join(&name)).unwrap(), "{name}");
        let kind = match name.rsplit('.').next().unwrap() {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" | "mjs" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            "LICENSE" => "text/plain; charset=utf-8",
            other => panic!("{name}: which type has .{other}?"),
        };
        assert_eq!(answer.header(CONTENT_TYPE), kind, "{name}");
        assert_eq!(answer.header(X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert_eq!(answer.header(REFERRER_POLICY), "no-referrer");
        assert_eq!(answer.header(CACHE_CONTROL), "no-cache");
        let policy = answer.header(CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'self';"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    }
}

#[tokio::test]
async fn the_root_is_the_page() {
    let (root, index) = (get("/", &[]).await, get("/assets/index.html", &[]).await);
    assert_eq!((root.status, &root.body), (StatusCode::OK, &index.body));
    assert_eq!(root.header(CONTENT_TYPE), "text/html; charset=utf-8");
    let head = ask(Method::HEAD, "/", &[]).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    assert_eq!(head.header(CONTENT_LENGTH), index.body.len().to_string());
}

#[tokio::test]
async fn the_page_is_small_over_the_wire() {
    let mut sum = 0;
    for name in files_below(&folder()) {
        let path = format!("/assets/{name}");
        let answer = get(&path, &[(ACCEPT_ENCODING, "br, gzip")]).await;
        assert_eq!(answer.header(CONTENT_ENCODING), "gzip", "{name}");
        assert_eq!(answer.header(VARY), "Accept-Encoding");
        let mut plain = Vec::new();
        GzDecoder::new(&*answer.body).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, get(&path, &[]).await.body, "{name}");
        let headers =
            answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
        sum += answer.body.len() + headers.sum::<usize>();
    }
    println!("all files of the console over the wire: {sum} bytes");
    assert!(sum < PAGE_BYTES_MAX, "{sum} bytes");
}

#[tokio::test]
async fn gzip_is_sent_to_those_who_take_it() {
    for (accepted, expected) in [
        ("gzip", "gzip"),
        ("GZIP;q=0.5, br", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=x", ""),
        ("identity", ""),
        ("x-gzip2", ""),
        ("", ""),
    ] {
        let answer = get("/", &[(ACCEPT_ENCODING, accepted)]).await;
        assert_eq!(answer.header(CONTENT_ENCODING), expected, "{accepted}");
    }
}

#[tokio::test]
async fn a_file_that_has_not_changed_is_not_sent_again() {
    let tag = get("/assets/app.js", &[]).await.header(ETAG).to_owned();
    let other = get("/assets/app.css", &[]).await.header(ETAG).to_owned();
    assert_ne!(tag, other);
    let list = format!("{other}, {tag}");
    for known in [tag.as_str(), &list] {
        let again = get("/assets/app.js", &[(IF_NONE_MATCH, known)]).await;
        assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(again.header(ETAG), tag);
    }
    assert_eq!(get("/assets/app.js", &[(IF_NONE_MATCH, &other)]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn there_is_nothing_else() {
    for path in [
        "/assets/",
        "/assets/none.js",
        "/assets/pages",
        "/assets/../Cargo.toml",
        "/assets/..%2f..%2fCargo.toml",
        "/assets/%2e%2e/README.md",
        "/assets//etc/passwd",
        "/assets/app.js/",
    ] {
        let answer = get(path, &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.header(CONTENT_TYPE), "application/problem+json", "{path}");
    }
    let posted = ask(Method::POST, "/", &[]).await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(posted.header(ALLOW), "GET,HEAD");
    // Other paths still need a token, also if they look alike.
    for path in ["/index.html", "/assets", "/assetsx/app.js", "/api/v1/jobs"] {
        assert_eq!(get(path, &[]).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// A module of another name, a script in the page or an address of another host would be refused by
/// the policy in the browser.
#[test]
fn the_page_refers_to_its_own_files_alone() {
    for name in files_below(&folder()) {
        if name.starts_with("vendor/") {
            continue;
        }
        let text = fs::read_to_string(folder().join(&name)).unwrap();
        assert!(!text.contains("://") || name.ends_with(".svg"), "{name} has an address");
        for word in ["innerHTML", "dangerouslySetInnerHTML", "style=", "onclick=", "eval("] {
            assert!(!text.contains(word), "{name} contains {word}");
        }
        for part in text.split(" from \"").skip(1) {
            let module = part.split('"').next().unwrap();
            assert!(module.starts_with("./") || module.starts_with("../"), "{name}: {module}");
            let path = folder().join(&name).parent().unwrap().join(module);
            assert!(path.is_file(), "{name}: {module}");
        }
        for part in text.split("\"/assets/").skip(1) {
            let file = part.split('"').next().unwrap();
            assert!(folder().join(file).is_file(), "{name}: {file}");
        }
    }
}
