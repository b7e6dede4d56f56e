//! The web server of a replica: it answers with its process id, and ends on SIGTERM when the
//! requests under way are answered.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long the requests under way may take.
const GRACE: Duration = Duration::from_secs(5);

/// Serves on a port of all addresses until SIGTERM.
pub(super) fn run(port: &str) -> ExitCode {
    let port: u16 = port.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).unwrap();
        let listener = TcpListener::bind(("0.0.0.0", port)).await.unwrap();
        let graceful = GracefulShutdown::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let answer = service_fn(|_: Request<hyper::body::Incoming>| async {
                        let body = Bytes::from(std::process::id().to_string());
                        Ok::<_, Infallible>(Response::new(Full::new(body)))
                    });
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    let connection = graceful.watch(connection);
                    // A client may break its connection.
                    tokio::spawn(async move { _ = connection.await });
                }
                _ = term.recv() => break,
            }
        }
        drop(listener);
        _ = timeout(GRACE, graceful.shutdown()).await;
    });
    ExitCode::SUCCESS
}
