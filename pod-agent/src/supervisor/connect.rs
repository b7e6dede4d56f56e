//! Connects the agent to its supervisor, and starts one if there is none.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::error::SupervisorError;
use super::link::LinkSettings;
use super::messages::{HeldAttempt, ToAgent, ToSupervisor, VERSION_OLDEST};
use crate::companion::{self, CompanionCommand, Frames, Kind, RunDir, put};

/// How long a supervisor may take to answer a hello.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of tries to connect, because a supervisor may be about to end.
const TRIES: u32 = 5;

/// A connection after its hello and welcome.
#[derive(Debug)]
pub(super) struct Connection {
    /// The protocol version in use.
    pub(super) version: u16,
    /// Which limits are not enforced for commands, with the reason.
    pub(super) unenforced: BTreeMap<String, String>,
    /// The incoming messages.
    pub(super) frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// Writes all bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }
}

/// A supervisor's answer to a hello.
struct Greeting {
    connection: Connection,
    held: Vec<HeldAttempt>,
    program_version: String,
    captures: usize,
}

impl Greeting {
    /// Returns whether the supervisor is of another version of the program and can end without
    /// harm.
    fn is_outdated(&self) -> bool {
        self.program_version != env!("CARGO_PKG_VERSION")
            && self.captures == 0
            && self.held.iter().all(|held| held.ended.is_some())
    }
}

/// Connects to the running supervisor, or starts one, and receives what it holds.
pub(super) async fn connect(
    settings: &LinkSettings,
) -> Result<(Connection, Vec<HeldAttempt>), SupervisorError> {
    let run_dir = RunDir::open(&settings.data_dir, Kind::Supervisor)?;
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for _ in 0..TRIES {
        let stream = match run_dir.connect() {
            Ok(stream) => UnixStream::from_std(stream),
            // No supervisor is running, or it was killed.
            Err(_) => {
                start(&settings.command).await?;
                run_dir.connect().and_then(UnixStream::from_std)
            }
        };
        let greeting = match stream {
            Ok(stream) => timeout(WELCOME_LIMIT, greet(stream, settings)).await,
            Err(error) => Ok(Err(error)),
        };
        match greeting {
            Ok(Ok(Ok(greeting))) if greeting.is_outdated() => {
                tracing::info!("replacing a supervisor of another version, which holds nothing");
                // The result does not matter, because the next try shows it.
                _ = timeout(WELCOME_LIMIT, end(greeting.connection)).await;
            }
            Ok(Ok(Ok(Greeting { connection, held, .. }))) => return Ok((connection, held)),
            Ok(Ok(Err(message))) => {
                return Err(SupervisorError::Refused { message, pid_file: run_dir.lock_path() });
            }
            // It was ending.
            Ok(Err(error)) => last = error,
            Err(_) => {
                let (socket, pid_file) = (run_dir.socket_path(), run_dir.lock_path());
                return Err(SupervisorError::Silent { socket, pid_file });
            }
        }
    }
    Err(SupervisorError::io("talk to the supervisor of processes at", run_dir.socket_path())(last))
}

/// Sends the hello. The inner error is the message of a supervisor that refuses.
async fn greet(
    stream: UnixStream,
    settings: &LinkSettings,
) -> io::Result<Result<Greeting, String>> {
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        version: VERSION_OLDEST,
        unenforced: BTreeMap::new(),
        frames: Frames::new(reader),
        writer,
    };
    let mut out = Vec::new();
    put(&mut out, &ToSupervisor::Hello(Box::new(settings.hello())))?;
    connection.write(&out).await?;
    let (mut held, mut its_version, mut its_captures) = (Vec::new(), String::new(), 0);
    loop {
        match connection.frames.next().await? {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(ToAgent::Refused { message }) => return Ok(Err(message)),
            Some(ToAgent::Welcome { version, program_version, captures, unenforced }) => {
                (connection.version, its_captures) = (version, captures);
                connection.unenforced = unenforced.unwrap_or_else(no_limits);
                tracing::info!(
                    version,
                    program_version,
                    "connected to the supervisor of processes"
                );
                its_version = program_version;
            }
            Some(ToAgent::Holds(one)) => held.push(*one),
            Some(ToAgent::Ready) => {
                return Ok(Ok(Greeting {
                    connection,
                    held,
                    program_version: its_version,
                    captures: its_captures,
                }));
            }
            Some(other) => {
                return Err(io::Error::other(format!(
                    "unexpected message before `ready`: {other:?}"
                )));
            }
        }
    }
}

/// Returns the reasons why a supervisor without support for limits does not enforce any.
fn no_limits() -> BTreeMap<String, String> {
    let why = "the supervisor of this node's processes is of an older podmesh; it ends when the \
               processes that it holds have ended";
    ["memory", "cpus"].map(|what| (what.to_owned(), why.to_owned())).into()
}

/// Asks a supervisor to end, and waits until it is about to.
async fn end(mut connection: Connection) -> io::Result<()> {
    let mut out = Vec::new();
    put(&mut out, &ToSupervisor::End)?;
    connection.write(&out).await?;
    while connection.frames.next::<ToAgent>().await?.is_some() {}
    Ok(())
}

/// Starts a supervisor, and waits until it accepts connections.
async fn start(command: &CompanionCommand) -> Result<(), SupervisorError> {
    let program = command.program.clone();
    companion::start(command).await.map_err(|why| SupervisorError::NotStarted { program, why })
}
