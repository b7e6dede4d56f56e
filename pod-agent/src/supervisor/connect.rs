//! How the agent comes to a connection with its supervisor, and starts that where there is none.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::error::SupervisorError;
use super::frames::{Frames, put};
use super::link::LinkSettings;
use super::messages::{Found, ToAgent, ToSupervisor, VERSION_OLDEST};
use super::place::Place;
use super::{READY, SupervisorCommand};

/// How long a supervisor may take to answer a hello.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);
/// How long one may take to begin: the one before it may be ending.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Supervisors that may end just when they are met.
const TRIES: u32 = 5;
/// Bytes of what one that cannot start says.
const SAID_BYTES_MAX: u64 = 4096;

/// A connection after its hello and welcome.
#[derive(Debug)]
pub(super) struct Connection {
    /// The version that is spoken.
    pub(super) version: u16,
    /// What comes.
    pub(super) frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// Writes all of it.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }
}

/// A supervisor that has said what it holds.
struct Greeted {
    connection: Connection,
    found: Vec<Found>,
    program_version: String,
    captures: usize,
}

impl Greeted {
    /// Whether it is of another version of the program, and ends without harm to anybody.
    fn is_outdated(&self) -> bool {
        self.program_version != env!("CARGO_PKG_VERSION")
            && self.captures == 0
            && self.found.iter().all(|found| found.ended.is_some())
    }
}

/// Connects to the supervisor there is, or starts one, and hears what it holds.
pub(super) async fn connect(
    settings: &LinkSettings,
) -> Result<(Connection, Vec<Found>), SupervisorError> {
    let place = Place::open(&settings.data_dir)?;
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for _ in 0..TRIES {
        let stream = match place.connect() {
            Ok(stream) => UnixStream::from_std(stream),
            // There is none, or it was killed.
            Err(_) => {
                start(&settings.command).await?;
                place.connect().and_then(UnixStream::from_std)
            }
        };
        let greeted = match stream {
            Ok(stream) => timeout(WELCOME_LIMIT, greet(stream, settings)).await,
            Err(error) => Ok(Err(error)),
        };
        match greeted {
            Ok(Ok(Ok(greeted))) if greeted.is_outdated() => {
                tracing::info!("a supervisor of another version holds nothing: another follows");
                // Whatever comes of it, the next try tells.
                _ = timeout(WELCOME_LIMIT, end(greeted.connection)).await;
            }
            Ok(Ok(Ok(Greeted { connection, found, .. }))) => return Ok((connection, found)),
            Ok(Ok(Err(message))) => {
                return Err(SupervisorError::Refused { message, pid_file: place.lock_path() });
            }
            // It was ending.
            Ok(Err(error)) => last = error,
            Err(_) => {
                let (socket, pid_file) = (place.socket_path(), place.lock_path());
                return Err(SupervisorError::Silent { socket, pid_file });
            }
        }
    }
    Err(SupervisorError::io("talk to the supervisor of processes behind", place.socket_path())(
        last,
    ))
}

/// Says hello. The inner error is what a supervisor says that refuses.
async fn greet(stream: UnixStream, settings: &LinkSettings) -> io::Result<Result<Greeted, String>> {
    let (reader, writer) = stream.into_split();
    let mut connection =
        Connection { version: VERSION_OLDEST, frames: Frames::new(reader), writer };
    let mut out = Vec::new();
    put(&mut out, &ToSupervisor::Hello(Box::new(settings.hello())))?;
    connection.write(&out).await?;
    let (mut found, mut its_version, mut its_captures) = (Vec::new(), String::new(), 0);
    loop {
        match connection.frames.next().await? {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(ToAgent::Refused { message }) => return Ok(Err(message)),
            Some(ToAgent::Welcome { version, program_version, captures }) => {
                (connection.version, its_captures) = (version, captures);
                tracing::info!(version, program_version, "a supervisor holds the processes");
                its_version = program_version;
            }
            Some(ToAgent::Found(one)) => found.push(*one),
            Some(ToAgent::Ready) => {
                return Ok(Ok(Greeted {
                    connection,
                    found,
                    program_version: its_version,
                    captures: its_captures,
                }));
            }
            Some(other) => return Err(io::Error::other(format!("{other:?} came too early"))),
        }
    }
}

/// Has a supervisor end, and waits until it is about to.
async fn end(mut connection: Connection) -> io::Result<()> {
    let mut out = Vec::new();
    put(&mut out, &ToSupervisor::End)?;
    connection.write(&out).await?;
    while connection.frames.next::<ToAgent>().await?.is_some() {}
    Ok(())
}

/// Starts a supervisor, and waits until it can be connected to.
async fn start(command: &SupervisorCommand) -> Result<(), SupervisorError> {
    let not_started =
        |why: String| SupervisorError::NotStarted { program: command.program.clone(), why };
    let mut keeper = Command::from(command);
    keeper.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut keeper = tokio::process::Command::from(keeper)
        .spawn()
        .map_err(|error| not_started(error.to_string()))?;
    let stdout = keeper.stdout.take();
    // It outlives this process, or ends before: then its end is taken note of.
    tokio::spawn(async move { keeper.wait().await });
    let mut said = String::new();
    if let Some(stdout) = stdout {
        let mut reader = BufReader::new(stdout.take(SAID_BYTES_MAX));
        match timeout(START_LIMIT, reader.read_line(&mut said)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(not_started(error.to_string())),
            Err(_) => return Err(not_started(format!("it is not ready after {START_LIMIT:?}"))),
        }
    }
    match said.trim() {
        READY => Ok(()),
        "" => Err(not_started("it ended without a word".to_owned())),
        said => Err(not_started(said.to_owned())),
    }
}
