//! Connects the agent to its proxy, and starts one if there is none.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::error::ProxyError;
use super::link::ProxySettings;
use super::messages::{Hello, Status, ToAgent, ToProxy, VERSION, VERSION_OLDEST};
use crate::companion::{self, Frames, Kind, RunDir, put};
use crate::policy::IngressAddress;

/// How long a proxy may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of tries to connect, because a proxy may be about to end.
const TRIES: u32 = 5;

/// A connection after its hello and welcome.
#[derive(Debug)]
pub(super) struct Connection {
    /// The incoming messages.
    pub(super) frames: Frames<OwnedReadHalf>,
    /// The last status.
    pub(super) status: Status,
    program_version: String,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// Sends a message. A proxy that does not read it in time counts as lost.
    pub(super) async fn say(&mut self, message: &ToProxy) -> io::Result<()> {
        let mut bytes = Vec::new();
        put(&mut bytes, message)?;
        timeout(ANSWER_LIMIT, self.writer.write_all(&bytes)).await?
    }

    /// Asks the proxy to end, and waits until it has closed its listeners.
    pub(super) async fn end(mut self) {
        let end = async {
            self.say(&ToProxy::End).await?;
            while self.frames.next::<ToAgent>().await?.is_some() {}
            io::Result::Ok(())
        };
        if !matches!(timeout(ANSWER_LIMIT, end).await, Ok(Ok(()))) {
            tracing::warn!("the node's proxy does not end");
        }
    }

    /// Returns whether the proxy is of another version of the program and can end without harm.
    pub(super) fn is_outdated(&self) -> bool {
        self.program_version != env!("CARGO_PKG_VERSION") && self.status.counters.open == 0
    }
}

/// Connects to the running proxy, if there is one.
pub(super) async fn find(settings: &ProxySettings) -> Result<Option<Connection>, ProxyError> {
    let run_dir = RunDir::open(&settings.data_dir, Kind::Proxy)?;
    match run_dir.connect().and_then(UnixStream::from_std) {
        // No proxy is running, or it was killed.
        Err(_) => Ok(None),
        Ok(stream) => greet(stream, &run_dir, settings).await,
    }
}

/// Connects to the running proxy, or starts one.
pub(super) async fn connect(settings: &ProxySettings) -> Result<Connection, ProxyError> {
    for _ in 0..TRIES {
        match find(settings).await? {
            Some(connection) => return Ok(connection),
            None => start(settings).await?,
        }
    }
    let why = "it ends as soon as it has started; its log says why".to_owned();
    Err(ProxyError::NotStarted { program: settings.command.program.clone(), why })
}

async fn start(settings: &ProxySettings) -> Result<(), ProxyError> {
    let program = settings.command.program.clone();
    companion::start(&settings.command).await.map_err(|why| ProxyError::NotStarted { program, why })
}

/// Sends the hello. `None`: the proxy was ending.
async fn greet(
    stream: UnixStream,
    run_dir: &RunDir,
    settings: &ProxySettings,
) -> Result<Option<Connection>, ProxyError> {
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        frames: Frames::new(reader),
        status: Status::default(),
        program_version: String::new(),
        writer,
    };
    let hello = Hello {
        version: VERSION,
        version_oldest: VERSION_OLDEST,
        agent: settings.agent_id,
        stop_with_agent: settings.stop_with_agent,
        listen: match &settings.ingress.address {
            IngressAddress::Only(addresses) => addresses.clone(),
            IngressAddress::All | IngressAddress::Off => Vec::new(),
        },
    };
    let greeting = async {
        connection.say(&ToProxy::Hello(hello)).await?;
        loop {
            match connection.frames.next().await? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(ToAgent::Refused { message }) => return Ok(Err(message)),
                Some(ToAgent::Welcome { version, program_version }) => {
                    tracing::info!(version, program_version, "connected to the node's proxy");
                    connection.program_version = program_version;
                }
                Some(ToAgent::Status(status)) => {
                    connection.status = status;
                    return Ok(Ok(()));
                }
            }
        }
    };
    let greeted: Result<io::Result<Result<(), String>>, _> = timeout(ANSWER_LIMIT, greeting).await;
    let pid_file = run_dir.lock_path();
    match greeted {
        Ok(Ok(Ok(()))) => Ok(Some(connection)),
        Ok(Ok(Err(message))) => Err(ProxyError::Refused { message, pid_file }),
        Ok(Err(error)) => {
            tracing::debug!("the proxy did not answer the hello: {error}");
            Ok(None)
        }
        Err(_) => Err(ProxyError::Silent { socket: run_dir.socket_path(), pid_file }),
    }
}
