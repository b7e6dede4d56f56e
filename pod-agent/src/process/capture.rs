//! From a program's pipe to its log file.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::{AppendError, LogWriter, RotationPolicy};
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::log_notify::LogNotify;

/// Bytes that are read at once: as much as a pipe holds.
const BLOCK: usize = 64 << 10;

/// Where the output of one stream of an attempt goes.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) attempt: AttemptId,
    pub(super) stream: LogStream,
    pub(super) log_dir: PathBuf,
    pub(super) rotation: RotationPolicy,
    pub(super) notify: LogNotify,
    pub(super) facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
}

/// Copies a pipe into a log until the last process that holds its other end is gone. Whatever
/// happens to the log, the pipe is read: a program is never stopped by a full disk.
pub(super) async fn capture(pipe: OwnedFd, sink: Sink) {
    let mut log = Log { sink, writer: None, lost: 0 };
    let result = copy(pipe, &mut log).await;
    if let Err(error) = &result {
        tracing::error!(
            attempt = %log.sink.attempt, stream = log.sink.stream.file_stem(),
            "the output cannot be read: {error}"
        );
    }
    if log.lost > 0
        && let Err(failure) = log.note_loss().await
    {
        let stream = log.sink.stream.file_stem();
        log.tell(format!("{} bytes of {stream} were lost: {}", log.lost, failure.reason));
    }
}

async fn copy(pipe: OwnedFd, log: &mut Log) -> io::Result<()> {
    let pipe = pipe::Receiver::from_owned_fd(pipe)?;
    loop {
        pipe.readable().await?;
        // Made anew each time: most pipes are idle, and there may be many.
        let mut block = Vec::with_capacity(BLOCK);
        match pipe.try_read_buf(&mut block) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while block.len() < BLOCK && pipe.try_read_buf(&mut block).is_ok_and(|bytes| bytes > 0) {}
        log.write(block).await;
    }
}

/// The log of one stream, opened at its first byte.
struct Log {
    sink: Sink,
    writer: Option<LogWriter>,
    /// Bytes that could not be written since the last one that could.
    lost: u64,
}

impl Log {
    async fn write(&mut self, block: Vec<u8>) {
        if self.lost > 0 && self.note_loss().await.is_err() {
            self.lost += block.len() as u64;
            return;
        }
        let bytes = block.len();
        let Err(error) = self.with_writer(move |writer| writer.append(&block)).await else {
            self.sink.notify.written(self.sink.attempt);
            return;
        };
        self.lost += (bytes - error.taken) as u64;
        let stream = self.sink.stream.file_stem();
        let text = format!("output of {stream} is being lost: {}", error.reason);
        tracing::error!(attempt = %self.sink.attempt, "{text}");
        self.tell(text);
    }

    /// Says in the log how much is missing there.
    async fn note_loss(&mut self) -> Result<(), Failure> {
        let text = format!("{} bytes of output were lost here", self.lost);
        let result = self.with_writer(move |writer| writer.gap(&text)).await;
        if result.is_ok() {
            let stream = self.sink.stream.file_stem();
            self.tell(format!("{} bytes of {stream} were lost", self.lost));
            self.lost = 0;
            self.sink.notify.written(self.sink.attempt);
        }
        result
    }

    fn tell(&self, text: String) {
        // Without a receiver the agent has ended.
        _ = self.sink.facts.send((self.sink.attempt, RuntimeFact::LogGap(text)));
    }

    /// Does something to the log where waiting for a disk disturbs nobody.
    async fn with_writer(
        &mut self,
        act: impl FnOnce(&mut LogWriter) -> Result<(), AppendError> + Send + 'static,
    ) -> Result<(), Failure> {
        let writer = self.writer.take();
        let dir = self.sink.log_dir.clone();
        let (name, rotation) = (self.sink.stream.file_stem(), self.sink.rotation.clone());
        let work = spawn_blocking(move || {
            let mut writer = match writer {
                Some(writer) => writer,
                None => match LogWriter::open(dir, name, rotation) {
                    Ok(writer) => writer,
                    Err(error) => return (None, Err(Failure::new(0, &error))),
                },
            };
            let result = act(&mut writer);
            (Some(writer), result.map_err(|error| Failure::new(error.taken, &error.source)))
        });
        // It only fails when the runtime ends, and the agent with it.
        let (writer, result) =
            work.await.unwrap_or_else(|error| (None, Err(Failure::new(0, &error))));
        self.writer = writer;
        result
    }
}

/// Why bytes are not in the log.
struct Failure {
    /// How many of them are.
    taken: usize,
    reason: String,
}

impl Failure {
    fn new(taken: usize, reason: &dyn std::error::Error) -> Self {
        Self { taken, reason: reason.to_string() }
    }
}
