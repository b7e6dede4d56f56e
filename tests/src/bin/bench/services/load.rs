//! Constant load by HTTP/1.1, with and without keep-alive.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podmesh_tests::http::get;
use tokio::time::timeout;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Clients for each address and kind of connection.
const CLIENTS: usize = 2;

/// Returns the process that serves an address.
pub(super) fn pid_at(address: SocketAddr) -> i32 {
    get(address).unwrap().parse().unwrap()
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(super) struct Result {
    pub(super) answers: u64,
    /// Requests that were sent again, because a kept connection was closed before their answer
    /// began. Browsers, curl and others do this (RFC 9110, section 9.2.2).
    pub(super) repeated: u64,
    pub(super) failures: Vec<String>,
}

/// Clients that ask without pause until they are stopped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result>,
}

impl Load {
    pub(super) fn start(addresses: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, addresses) = (Arc::clone(&stop), addresses.to_vec());
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for address in addresses {
                    for kept in [true, false] {
                        for _ in 0..CLIENTS {
                            clients.spawn(client(address, kept, Arc::clone(&stopped)));
                        }
                    }
                }
                let mut all = Result::default();
                while let Some(Ok(result)) = clients.join_next().await {
                    all.answers += result.answers;
                    all.repeated += result.repeated;
                    all.failures.extend(result.failures);
                }
                all
            })
        });
        Self { stop, thread }
    }

    /// Stops the clients.
    pub(super) fn stop(self) -> Result {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Why there is no answer, and whether the connection was closed before one began.
type Failure = (String, bool);

async fn ask(
    client: &Client<HttpConnector, Empty<Bytes>>,
    address: SocketAddr,
) -> std::result::Result<(), Failure> {
    let request = Request::get(format!("http://{address}/")).body(Empty::new()).unwrap();
    let answer = async {
        let answer = client.request(request).await.map_err(|error| {
            let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
            let closed = cause.is_some_and(|cause| cause.is_incomplete_message());
            (format!("{error:?}"), closed)
        })?;
        let status = answer.status();
        answer.collect().await.map_err(|error| (format!("{error:?}"), false))?;
        if status.is_success() { Ok(()) } else { Err((status.to_string(), false)) }
    };
    timeout(LIMIT, answer).await.unwrap_or_else(|_| Err(("no answer".into(), false)))
}

/// Asks one request after the other, on one connection or on a new one each time.
async fn client(address: SocketAddr, kept: bool, stop: Arc<AtomicBool>) -> Result {
    let idle = usize::from(kept);
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(idle).build_http();
    let mut result = Result::default();
    while !stop.load(Ordering::Relaxed) {
        let mut answer = ask(&client, address).await;
        if kept && matches!(answer, Err((_, true))) {
            result.repeated += 1;
            answer = ask(&client, address).await;
        }
        match answer {
            Ok(()) => result.answers += 1,
            Err((why, _)) => result.failures.push(format!("{address}, kept {kept}: {why}")),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    result
}
