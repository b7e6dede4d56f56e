//! The listeners, and the connections with their limits.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use podmesh_protocol::limits::{HTTP_CONNECTIONS_MAX, HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::App;
use crate::budget::Budgets;
use crate::certificate::{Certificate, LOOK_EVERY};
use crate::door::{Door, Peer};
use crate::error::HttpError;
use crate::events::Feed;
use crate::guard::{Connection, Hosts};
use crate::router::router;

/// How long a client may take for the handshake of TLS, and then for the headers of a request. So
/// long a connection may also be idle.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take none of the bytes that are ready for it.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How long the server waits for replies when it stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The pause after a connection could not be accepted, such as when all file descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Debug, Default)]
pub struct Config {
    /// The network address. Port 0 selects a free port.
    pub listen: Option<SocketAddr>,
    /// The files with the certificate chain and its private key, both PEM. Without them, `listen`
    /// must be a loopback address.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The unix socket.
    pub unix: Option<StdUnixListener>,
    /// The names by which clients may address the server.
    pub hosts: Hosts,
}

/// A server that listens already, and does not answer yet.
pub struct Server {
    tcp: Option<(StdTcpListener, Option<Certificate>)>,
    unix: Option<StdUnixListener>,
    hosts: Hosts,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// If an address or file cannot be used.
    pub fn bind(config: Config) -> Result<Self, HttpError> {
        let Config { listen, tls, unix, hosts } = config;
        let tls = tls.map(|(chain, key)| Certificate::load(chain, key)).transpose()?;
        let tcp = match listen {
            Some(address) if !address.ip().is_loopback() && tls.is_none() => {
                return Err(HttpError::Insecure { address });
            }
            Some(address) => {
                let listener = StdTcpListener::bind(address).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                });
                let listener = listener.map_err(|source| HttpError::Listen { address, source })?;
                Some((listener, tls))
            }
            None => None,
        };
        if let Some(unix) = &unix {
            unix.set_nonblocking(true).map_err(HttpError::Unix)?;
        }
        Ok(Self { tcp, unix, hosts })
    }

    /// Returns the network address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.0.local_addr().ok()
    }

    /// Answers requests until `stopping` is true. Then requests that are under way are answered, and
    /// streams end.
    ///
    /// # Errors
    /// If the listeners cannot be used.
    pub async fn run(
        self,
        door: Arc<dyn Door>,
        mut stopping: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut tcp = match self.tcp {
            Some((listener, tls)) => Some((TcpListener::from_std(listener)?, tls)),
            None => None,
        };
        let unix = self.unix.map(UnixListener::from_std).transpose()?;
        let feed = Arc::new(Feed::new());
        let app = App {
            door: Arc::clone(&door),
            feed: Arc::clone(&feed),
            budgets: Arc::new(Budgets::default()),
            hosts: Arc::new(self.hosts),
            stopping: stopping.clone(),
        };
        let mut accepting = Accepting {
            router: router(app),
            room: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)),
            connections: JoinSet::new(),
            stopping: stopping.clone(),
        };
        let mut feeding = JoinSet::new();
        feeding.spawn(async move { feed.run(door).await });
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = async { _ = stopping.wait_for(|stopping| *stopping).await } => break,
                Some(_) = accepting.connections.join_next() => {}
                accepted = accept_tcp(tcp.as_ref()) => match accepted {
                    Ok((stream, peer, tls)) => accepting.tcp(stream, peer, tls),
                    Err(error) => pause(&error).await,
                },
                _ = looks.tick() => {
                    if let Some((_, Some(certificate))) = &mut tcp {
                        certificate.refresh();
                    }
                }
                accepted = accept_unix(unix.as_ref()) => match accepted {
                    Ok((stream, uid)) => accepting.unix(stream, uid),
                    Err(error) => pause(&error).await,
                },
            }
        }
        drop((tcp, unix));
        let mut connections = accepting.connections;
        let all_ended = async { while connections.join_next().await.is_some() {} };
        _ = timeout(STOP_LIMIT, all_ended).await;
        Ok(())
    }
}

async fn pause(error: &io::Error) {
    tracing::debug!(%error, "a connection for HTTP could not be accepted");
    sleep(ACCEPT_PAUSE).await;
}

type Tcp = (tokio::net::TcpStream, SocketAddr, Option<TlsAcceptor>);

async fn accept_tcp(listener: Option<&(TcpListener, Option<Certificate>)>) -> io::Result<Tcp> {
    let Some((listener, tls)) = listener else { return std::future::pending().await };
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, tls.as_ref().map(Certificate::acceptor)))
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<(tokio::net::UnixStream, u32)> {
    let Some(listener) = listener else { return std::future::pending().await };
    let (stream, _) = listener.accept().await?;
    let peer = getsockopt(&stream.as_fd(), PeerCredentials)?;
    Ok((stream, peer.uid()))
}

/// The connections.
struct Accepting {
    router: Router,
    room: Arc<Semaphore>,
    connections: JoinSet<()>,
    stopping: watch::Receiver<bool>,
}

impl Accepting {
    /// Returns room for a connection. A connection without room is closed at once.
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    fn tcp(&mut self, stream: tokio::net::TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
        let Some(room) = self.room() else { return };
        let (router, stopping) = (self.router.clone(), self.stopping.clone());
        self.connections.spawn(async move {
            let peer = Peer::Address(peer);
            match tls {
                None => serve(router, stream, Connection::new(peer, false), stopping).await,
                Some(tls) => match timeout(HEADER_LIMIT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        serve(router, stream, Connection::new(peer, true), stopping).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake for HTTPS failed"),
                    Err(_) => tracing::debug!("a handshake for HTTPS took too long"),
                },
            }
            drop(room);
        });
    }

    fn unix(&mut self, stream: tokio::net::UnixStream, uid: u32) {
        let Some(room) = self.room() else { return };
        let (router, stopping) = (self.router.clone(), self.stopping.clone());
        self.connections.spawn(async move {
            let connection = Connection::new(Peer::User(uid), false);
            serve(router, stream, connection, stopping).await;
            drop(room);
        });
    }
}

async fn serve(
    router: Router,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    connection: Connection,
    mut stopping: watch::Receiver<bool>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_LIMIT));
    let connection = Arc::new(connection);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&connection));
        router.clone().oneshot(request.map(Body::new))
    });
    // Not `pipeline_flush`: with it, hyper buffers a stream without a limit.
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HTTP_HEADER_BYTES_MAX)
        .max_headers(HTTP_HEADERS_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        result = &mut serving => Some(result),
        () = async { _ = stopping.wait_for(|stopping| *stopping).await } => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection for HTTP ended");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use podmesh_protocol::error::{ErrorCode, ErrorReply};
    use podmesh_protocol::event::EventChunk;
    use podmesh_protocol::ids::Revision;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::certificate::tests::client_of;
    use crate::door::Asker;

    /// A door that lets nobody in, and notes who knocked.
    pub(crate) struct Closed(pub(crate) Mutex<Vec<Option<String>>>);

    impl Door for Closed {
        fn admit(&self, _: &Peer, token: Option<&str>) -> Result<Arc<dyn Asker>, ErrorReply> {
            self.0.lock().unwrap().push(token.map(str::to_owned));
            Err(ErrorReply::new(ErrorCode::InvalidToken, "nobody"))
        }

        fn events(
            &self,
            since: Revision,
        ) -> BoxFuture<'static, Result<(Vec<EventChunk>, Revision), ErrorReply>> {
            std::future::ready(Ok((vec![], since))).boxed()
        }

        fn revisions(&self) -> watch::Receiver<Revision> {
            watch::channel(Revision(0)).1
        }

        fn ready(&self) -> BoxFuture<'static, Result<(), ErrorReply>> {
            std::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn a_server_with_a_certificate_speaks_https_and_nothing_else() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&chain, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let config = Config {
            listen: Some("0.0.0.0:0".parse().unwrap()),
            tls: Some((chain, key)),
            hosts: Hosts::new([]),
            ..Config::default()
        };
        let server = Server::bind(config).unwrap();
        let port = server.address().unwrap().port();
        let door = Arc::new(Closed(Mutex::default()));
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(server.run(Arc::<Closed>::clone(&door), stopping));

        let connect = || tokio::net::TcpStream::connect(("127.0.0.1", port));
        let name = ServerName::try_from("localhost").unwrap();
        let mut secure = client_of(&made).connect(name, connect().await.unwrap()).await.unwrap();
        let ask = "GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nOrigin: https://localhost\r\nAuthorization: Bearer abc\r\nConnection: close\r\n\r\n";
        secure.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        secure.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert_eq!(*door.0.lock().unwrap(), [Some("abc".to_owned())]);

        let mut plain = connect().await.unwrap();
        plain.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "a token in the clear is not answered");
        assert_eq!(door.0.lock().unwrap().len(), 1);

        stop.send_replace(true);
        running.await.unwrap().unwrap();
    }

    #[test]
    fn only_loopback_is_served_in_the_clear() {
        let bind = |address: &str| {
            Server::bind(Config { listen: Some(address.parse().unwrap()), ..Config::default() })
        };
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            assert!(matches!(bind(open), Err(HttpError::Insecure { .. })), "{open}");
        }
        assert!(bind("127.0.0.1:0").unwrap().address().is_some());
    }
}
