//! The HTTP server of the metrics. It serves one page, to anybody who reaches its address.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use podmesh_metrics::Page;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::error::AgentError;

/// The most connections at a time. A further connection is closed at once.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to send a request. So long a connection may also be idle.
const HEADER_LIMIT: Duration = Duration::from_secs(90);
/// How long a connection lasts at most, so that a client that does not read does not keep it.
const CONNECTION_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of the headers of a request.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Somebody asks for the page.
pub(crate) type Scrape = oneshot::Sender<Page>;

/// A server that listens already.
#[derive(Debug)]
pub(crate) struct MetricsServer(TcpListener);

impl MetricsServer {
    /// Listens.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, AgentError> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.map_err(|source| AgentError::Metrics { address, source })?;
        tracing::info!(%address, "the metrics are at /metrics");
        Ok(Self(bound))
    }

    /// Passes requests for the page to `scrapes`. Never returns.
    pub(crate) async fn run(self, scrapes: mpsc::Sender<Scrape>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection for metrics could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(room) = Arc::clone(&room).try_acquire_owned() else { continue };
            let scrapes = scrapes.clone();
            tokio::spawn(async move {
                if timeout(CONNECTION_LIMIT, serve(stream, scrapes)).await.is_err() {
                    tracing::debug!("a connection for metrics lasted too long");
                }
                drop(room);
            });
        }
    }
}

async fn serve(stream: TcpStream, scrapes: mpsc::Sender<Scrape>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(answer(&request, scrapes).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

async fn answer(
    request: &Request<Incoming>,
    scrapes: mpsc::Sender<Scrape>,
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "there is only /metrics here\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (scrape, page) = oneshot::channel();
    // If there is no receiver, the agent is ending.
    _ = scrapes.send(scrape).await;
    let Ok(page) = page.await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n");
    };
    let mut response = Response::new(Full::from(page.text()));
    let kind = HeaderValue::from_static(podmesh_metrics::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
