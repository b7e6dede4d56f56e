//! Output on its way from a program to its log files, the same for all runtimes.
//!
//! A program that prints faster than the disk takes it waits, as it does with `>file`. A disk that
//! is full is waited for, too. What cannot be written for another reason is lost, and the log says
//! how much.

mod client;
mod container;
mod pipe;

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
use crate::log_notify::LogNotify;

/// How long what is no longer of use is waited for: output that somebody outside keeps open, or
/// room for the output of an attempt that was stopped.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Where an attempt stands, for those who write its output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    /// The program and all that it started are gone.
    pub(crate) ended: bool,
    /// It was told to stop.
    pub(crate) stopped: bool,
}

/// Where the output of one stream of an attempt goes.
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

/// The log of one stream, opened at its first byte.
pub(crate) struct OutputLog {
    sink: Sink,
    writer: Option<LogWriter>,
    /// Bytes that could not be written since the last one that could.
    lost: u64,
    /// Room is no longer waited for.
    gave_up: bool,
}

impl OutputLog {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { sink, writer: None, lost: 0, gave_up: false }
    }

    /// Writes a block; returns when it is in the file, or lost.
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
                        "output of {stream} waits for room: {}", failure.reason
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

    /// Says in the log that output is missing there, and why.
    pub(crate) async fn note(&mut self, text: String) {
        if let Err(failure) = self.append_gap(text).await {
            tracing::warn!(attempt = %self.sink.attempt, "the log cannot say it: {}", failure.reason);
        }
    }

    /// To be called when no more output comes.
    pub(crate) async fn finish(&mut self) {
        if self.lost > 0
            && let Err(failure) = self.note_loss().await
        {
            let stream = self.sink.stream.file_stem();
            self.tell(format!("{} bytes of {stream} were lost: {}", self.lost, failure.reason));
        }
    }

    /// Waits before the next try. False when it is no longer worth it.
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

    /// Says in the log how much is missing there.
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
                    Err(error) => return (None, Err(Failure::new(0, error))),
                },
            };
            let result = act(&mut writer).map_err(|error| Failure::new(error.taken, error.source));
            (Some(writer), result)
        });
        // It only fails when the runtime ends, and the agent with it.
        let (writer, result) = work.await.unwrap_or_else(|error| {
            (None, Err(Failure { taken: 0, is_full: false, reason: error.to_string() }))
        });
        self.writer = writer;
        result
    }
}

/// Why bytes are not in the log.
struct Failure {
    /// How many of them are.
    taken: usize,
    /// There is no room; later there may be.
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
