//! A proxy in this process with real sockets, and an agent controlled by the test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod agents;
mod link;
mod table;
mod traffic;

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::service::{PortEndpoints, ServiceEndpoints};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::error::ProxyError;
use super::messages::{Generation, Hello, Status, ToAgent, ToProxy, Update, VERSION};
use super::server::serve_until;
use super::table::Limits;
use crate::companion::{Frames, Kind, RunDir, put};

/// Limit for every wait, far longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { total: 1_000, service: 1_000 };
const GENERATION: Generation = Generation { run: Uuid::from_u128(1), session: 1 };

/// Returns a port of loopback that is free now. Tests of one process get different ones.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 8_000).unwrap();
    loop {
        let port = 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 9_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn attempt(number: u32) -> AttemptId {
    AttemptId::new(JobId(1), 1, number)
}

/// A service with one port.
fn service(name: &str, publish: u16, endpoints: &[SocketAddr]) -> ServiceEndpoints {
    ServiceEndpoints {
        service: name.parse().unwrap(),
        ports: vec![port("http", publish, endpoints)],
    }
}

fn port(name: &str, publish: u16, endpoints: &[SocketAddr]) -> PortEndpoints {
    let endpoints = endpoints.iter().map(|address| {
        // The port identifies the replica.
        (attempt(address.port().into()), address.to_string())
    });
    PortEndpoints {
        port: name.parse().unwrap(),
        publish,
        proxy_protocol: false,
        endpoints: endpoints.collect(),
    }
}

fn update(number: u64, services: Vec<ServiceEndpoints>) -> Update {
    Update { generation: GENERATION, number, all: number == 1, services }
}

/// An agent's data directory.
struct Node {
    dir: TempDir,
    agent: Uuid,
}

impl Node {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), agent: Uuid::new_v4() };
        fs::write(this.dir.path().join("id"), this.agent.to_string()).unwrap();
        this
    }

    async fn proxy(&self, limits: Limits) -> JoinHandle<Result<(), ProxyError>> {
        let dir = self.dir.path().to_owned();
        let (ready, is_ready) = oneshot::channel();
        let ready = Box::new(|| _ = ready.send(()));
        let stop = Box::pin(std::future::pending());
        let task = tokio::spawn(async move { serve_until(&dir, limits, ready, stop).await });
        is_ready.await.unwrap();
        task
    }

    fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            version_oldest: VERSION,
            agent: self.agent,
            stop_with_agent: false,
            listen: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    /// Connects an agent that was not welcomed yet.
    async fn connect(&self, hello: Hello) -> Agent {
        let run_dir = RunDir::open(self.dir.path(), Kind::Proxy).unwrap();
        let stream = UnixStream::from_std(run_dir.connect().unwrap()).unwrap();
        let (reader, writer) = stream.into_split();
        let mut agent = Agent { frames: Frames::new(reader), writer };
        agent.say(&ToProxy::Hello(hello)).await;
        agent
    }

    async fn agent(&self) -> Agent {
        let mut agent = self.connect(self.hello()).await;
        assert!(matches!(agent.hear().await, Some(ToAgent::Welcome { version: VERSION, .. })));
        agent
    }
}

struct Agent {
    frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Agent {
    async fn say(&mut self, message: &ToProxy) {
        let mut bytes = Vec::new();
        put(&mut bytes, message).unwrap();
        self.writer.write_all(&bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Option<ToAgent> {
        timeout(LIMIT, self.frames.next()).await.unwrap().unwrap()
    }

    /// Waits for a status.
    async fn status(&mut self, is_it: impl Fn(&Status) -> bool) -> Status {
        loop {
            match self.hear().await {
                Some(ToAgent::Status(status)) if is_it(&status) => return status,
                Some(ToAgent::Status(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends an update, and waits until it is applied.
    async fn apply(&mut self, update: Update) -> Status {
        let number = update.number;
        self.say(&ToProxy::Endpoints(update)).await;
        self.status(|status| status.applied == number).await
    }
}

/// A proxy with a connected agent.
struct Rig {
    node: Node,
    proxy: JoinHandle<Result<(), ProxyError>>,
    agent: Agent,
    port: u16,
}

impl Rig {
    /// Starts a proxy with one service.
    async fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with(LIMITS, endpoints).await
    }

    async fn with(limits: Limits, endpoints: &[SocketAddr]) -> Self {
        let node = Node::new();
        let proxy = node.proxy(limits).await;
        let mut agent = node.agent().await;
        let port = free_port();
        let status = agent.apply(update(1, vec![service("web", port, endpoints)])).await;
        assert!(status.troubles.is_empty(), "{status:?}");
        Self { node, proxy, agent, port }
    }

    /// Connects, and returns the connection after the greeting of an echo server.
    async fn visit(&self) -> std::io::Result<(TcpStream, u16)> {
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let greeting = greeting(&mut client).await?;
        Ok((client, greeting))
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

/// A server that listens on loopback.
struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    async fn accept(&self) -> TcpStream {
        timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap().0
    }

    /// Sends its port to every client, and then what the client sends, until the client ends.
    async fn echo() -> SocketAddr {
        let server = Self::new().await;
        let address = server.address;
        tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = server.listener.accept().await else { return };
                tokio::spawn(async move {
                    let (mut reader, mut writer) = client.split();
                    // The client may leave at any time.
                    _ = writer.write_all(&address.port().to_be_bytes()).await;
                    _ = tokio::io::copy(&mut reader, &mut writer).await;
                    _ = writer.shutdown().await;
                });
            }
        });
        address
    }
}

/// An address on which nobody listens.
async fn nobody() -> SocketAddr {
    Server::new().await.address
}

async fn read_to_end(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut bytes)).await.unwrap()?;
    Ok(bytes)
}

/// Returns the port of the echo server that a client is connected to.
async fn greeting(stream: &mut TcpStream) -> std::io::Result<u16> {
    timeout(LIMIT, stream.read_u16()).await.unwrap()
}
