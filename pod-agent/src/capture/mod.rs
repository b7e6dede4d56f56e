//! Captures output into log files, for all runtimes.
//!
//! A program that prints faster than the disk can write waits, as with `>file`. It also waits while
//! the disk is full. Output that cannot be written for another reason is lost, and the log says how
//! much.

mod attach;
mod client;
mod container;
mod pipe;
mod timeout;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::{AppendError, LogWriter, RotationPolicy};
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

pub use self::client::Captures;
pub(crate) use self::client::{CaptureRequest, Capturing, WaitingList};
pub(crate) use self::container::{CaptureFact, Container, Holder, LogPlace, Standing};
pub(crate) use self::pipe::capture_pipe;
pub(crate) use self::timeout::running_ms;
use crate::log_notify::LogNotify;

/// How long to wait for output that a process outside the task keeps open, and for disk space for
/// the output of a stopped attempt.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Interval between tries to write to a full disk.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// The state of an attempt, for the writers of its output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    /// The program and all its descendants have ended.
    pub(crate) ended: bool,
    /// The attempt was told to stop.
    pub(crate) stopped: bool,
}

/// The destination of one output stream of an attempt.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) attempt: AttemptId,
    pub(crate) stream: LogStream,
    pub(crate) log_dir: PathBuf,
    pub(crate) rotation: RotationPolicy,
    pub(crate) notify: LogNotify,
    pub(crate) facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    pub(crate) life: watch::Receiver<Life>,
}

/// The log of one stream. The file is opened at the first byte.
pub(crate) struct OutputLog {
    sink: Sink,
    writer: Option<LogWriter>,
    /// Bytes lost since the last successful write.
    lost: u64,
    /// Whether writes no longer wait for disk space.
    gave_up: bool,
}

impl OutputLog {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { sink, writer: None, lost: 0, gave_up: false }
    }

    /// Writes a block. Returns when it is in the file or lost.
    pub(crate) async fn write(&mut self, block: Bytes) {
        if self.lost > 0 && self.note_loss().await.is_err() {
            self.lost += block.len() as u64;
            return;
        }
        let mut from = 0;
        let mut waits = false;
        loop {
            let rest = block.slice(from..);
            let result = self.with_writer(move |writer| writer.append(&rest)).await;
            let taken = result.as_ref().err().map_or(block.len() - from, |failure| failure.taken);
            self.sink.notify.count(taken as u64);
            let Err(failure) = result else {
                self.sink.notify.written(self.sink.attempt);
                return;
            };
            from += failure.taken;
            let stream = self.sink.stream.file_stem();
            if failure.is_full && !self.gave_up {
                if !waits {
                    tracing::warn!(
                        attempt = %self.sink.attempt,
                        "output of {stream} waits for disk space: {}", failure.reason
                    );
                    waits = true;
                }
                self.gave_up = !self.wait_for_room().await;
                continue;
            }
            self.lost += (block.len() - from) as u64;
            let text = format!("output of {stream} is being lost: {}", failure.reason);
            tracing::error!(attempt = %self.sink.attempt, "{text}");
            self.tell(text);
            return;
        }
    }

    /// Notes in the log that output is missing, and why.
    pub(crate) async fn note(&mut self, text: String) {
        if let Err(failure) = self.append_gap(text).await {
            tracing::warn!(attempt = %self.sink.attempt, "cannot note a gap in the log: {}", failure.reason);
        }
    }

    /// Notes pending losses. Call it when no more output comes.
    pub(crate) async fn finish(&mut self) {
        if self.lost > 0
            && let Err(failure) = self.note_loss().await
        {
            let stream = self.sink.stream.file_stem();
            self.tell(format!("{} bytes of {stream} were lost: {}", self.lost, failure.reason));
        }
    }

    /// Waits before the next try. Returns false if the wait is over for good.
    async fn wait_for_room(&mut self) -> bool {
        let is_given_up = |life: &Life| life.ended && life.stopped;
        let mut life = self.sink.life.clone();
        let given_up = async { _ = life.wait_for(is_given_up).await };
        if timeout(FULL_RETRY, given_up).await.is_err() {
            return true;
        }
        sleep(DRAIN_LIMIT).await;
        false
    }

    /// Notes in the log how much output was lost.
    async fn note_loss(&mut self) -> Result<(), Failure> {
        let result = self.append_gap(format!("{} bytes of output were lost here", self.lost)).await;
        if result.is_ok() {
            let stream = self.sink.stream.file_stem();
            self.tell(format!("{} bytes of {stream} were lost", self.lost));
            self.lost = 0;
        }
        result
    }

    async fn append_gap(&mut self, text: String) -> Result<(), Failure> {
        let result = self.with_writer(move |writer| writer.gap(&text)).await;
        if result.is_ok() {
            self.sink.notify.written(self.sink.attempt);
        }
        result
    }

    pub(crate) fn tell(&self, text: String) {
        // If there is no receiver, the agent has ended.
        _ = self.sink.facts.send((self.sink.attempt, RuntimeFact::LogGap(text)));
    }

    /// Runs `act` on the log, on a thread where waiting for a disk blocks nobody else.
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
                    Err(error) => return (None, Err(Failure::new(0, error))),
                },
            };
            let result = act(&mut writer).map_err(|error| Failure::new(error.taken, error.source));
            (Some(writer), result)
        });
        // This fails only when the runtime ends, and the agent with it.
        let (writer, result) = work.await.unwrap_or_else(|error| {
            (None, Err(Failure { taken: 0, is_full: false, reason: error.to_string() }))
        });
        self.writer = writer;
        result
    }
}

/// A failed write to the log.
struct Failure {
    /// How many bytes were written.
    taken: usize,
    /// Whether the disk is full, so that a later try may succeed.
    is_full: bool,
    reason: String,
}

impl Failure {
    fn new(taken: usize, error: podmesh_logrotate::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let reason = error.to_string();
        let kind = std::io::Error::from(error).kind();
        Self { taken, is_full: matches!(kind, StorageFull | QuotaExceeded), reason }
    }
}
