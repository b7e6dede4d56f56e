//! Captures what a container prints: every byte once, over restarts of the agent and the engine.
//!
//! It goes through the logs API: attaching would stop the container while we are slow. A reading
//! that follows is quick but may lose its place, and the engine may end it before its last entry.
//! So whenever there is doubt, and always after the exit, `catch_up` reads what is there,
//! to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::Error as LogError;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::cursor::{Entry, Position, STREAMS, Seek, Verdict};
use super::engine::Pause;
use super::error::CallError;
use super::files::{Files, Resume, SAVE_AFTER};
use super::line_end::{self, EntryEnd};
use crate::paths::attempt_log_dir;

/// Bytes that are held before they are written.
const BATCH_BYTES: usize = 64 << 10;
/// Entries that a reading asks for when the place should be near the end. A log that is no longer
/// than this is read whole.
const TAIL_ENTRIES: u64 = 1000;
/// How long a reading that follows may be silent after the exit.
const SILENCE_AFTER_EXIT: Duration = Duration::from_secs(1);
/// How often the engine may say after the exit that it cannot read its log.
const UNREADABLE_TRIES: u32 = 10;
/// How long after the exit a disk that takes no bytes is waited for.
const DISK_PATIENCE: Duration = Duration::from_secs(30);

/// Why a reading was broken off.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Engine(CallError),
    /// The engine said this instead of an entry.
    #[error("the Docker engine cannot read the container's log: {0}")]
    Unreadable(String),
    #[error("{0}")]
    Disk(#[from] LogError),
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { status, message } if status != 404 => Self::Unreadable(message),
            error => Self::Engine(error),
        }
    }
}

/// How a reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// At the end of what there is.
    Whole,
    /// Our place was not in it.
    Lost,
}

/// Writes the output of a container to its files until `exited` says true, and returns when the
/// last byte is there. What is lost on the way is told as [`RuntimeFact::LogGap`].
pub(super) async fn capture(
    shared: &Shared,
    attempt: AttemptId,
    container: &str,
    mut exited: watch::Receiver<bool>,
) {
    let mut pause = Pause::new();
    let mut give_up_at = None;
    loop {
        let dir = attempt_log_dir(&shared.settings.logs_dir, attempt);
        let policy = shared.settings.rotation.clone();
        let error = match on_blocking_thread(move || Files::open(dir, &policy)).await {
            Ok((files, resume)) => {
                let files = Arc::new(Mutex::new(files));
                let Resume { position, gap } = resume;
                let capture = Capture {
                    shared,
                    attempt,
                    container,
                    files,
                    position,
                    unsaved: false,
                    gap: None,
                };
                return capture.run(gap, exited).await;
            }
            Err(error) => error,
        };
        tracing::warn!(%attempt, %error, "the log cannot be opened; trying again");
        if *exited.borrow_and_update() {
            let until = *give_up_at.get_or_insert_with(|| Instant::now() + DISK_PATIENCE);
            if Instant::now() >= until {
                let text = format!("the output could not be written: {error}");
                return shared.tell(attempt, RuntimeFact::LogGap(text));
            }
        }
        pause.wait().await;
    }
}

/// The capture of one container's output, once its files are open.
struct Capture<'a> {
    shared: &'a Shared,
    attempt: AttemptId,
    container: &'a str,
    /// Locked by one at a time: by us, or by the thread that writes while we wait for it.
    files: Arc<Mutex<Files>>,
    position: Option<Position>,
    /// The cursor on disk is older than the position.
    unsaved: bool,
    /// Told to the core, and to be told in the files before anything else.
    gap: Option<String>,
}

impl Capture<'_> {
    async fn run(mut self, gap: Option<String>, mut exited: watch::Receiver<bool>) {
        if let Some(text) = gap {
            self.note_gap(text);
        }
        let mut pause = Pause::new();
        let mut tail = self.tail();
        while !*exited.borrow() {
            let position = self.position;
            let ended = match self.read(tail, Some(&mut exited)).await {
                Ok(End::Lost) if tail.is_some() => {
                    tail = None;
                    continue;
                }
                Ok(End::Lost) => self.catch_up().await,
                Ok(End::Whole) => Ok(()),
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = ended {
                tracing::warn!(attempt = %self.attempt, %trouble, "log capture is interrupted");
            }
            tail = self.tail();
            if self.position != position {
                pause = Pause::new();
            }
            tokio::select! {
                // An error says that the sender is gone: then nobody waits for us.
                _ = exited.wait_for(|exited| *exited) => {}
                () = pause.wait() => {}
            }
        }
        self.finish().await;
    }

    /// After the exit: reads what is left, and gives up only what cannot be had.
    async fn finish(&mut self) {
        let mut pause = Pause::new();
        let mut unreadable = 0;
        let disk_until = Instant::now() + DISK_PATIENCE;
        let lost = loop {
            let trouble = match self.complete().await {
                Ok(()) => break None,
                Err(trouble) => trouble,
            };
            tracing::warn!(attempt = %self.attempt, %trouble, "the rest of the log waits");
            match trouble {
                Trouble::Engine(error) if error.is_not_found() => {
                    let text = "the container was removed before all of its output was read";
                    break Some(text.to_owned());
                }
                Trouble::Engine(_) => {}
                Trouble::Unreadable(_) => {
                    unreadable += 1;
                    if unreadable == UNREADABLE_TRIES {
                        break Some(trouble.to_string());
                    }
                }
                Trouble::Disk(_) if Instant::now() < disk_until => {}
                Trouble::Disk(_) => {
                    break Some(format!("the end of the output could not be written: {trouble}"));
                }
            }
            pause.wait().await;
        };
        let last = if let Some(text) = lost {
            lock(&self.files).drop_pending();
            self.note_gap(text);
            self.settle().await
        } else if self.tail().is_some() && self.unsaved {
            // A short log is read whole anyhow.
            self.save().await
        } else {
            Ok(())
        };
        if let Err(trouble) = last {
            tracing::warn!(attempt = %self.attempt, %trouble, "the log's last state is not saved");
        }
    }

    /// How many entries to ask for, where it need not be all.
    fn tail(&self) -> Option<u64> {
        self.position.filter(|position| position.taken > TAIL_ENTRIES).map(|_| TAIL_ENTRIES)
    }

    /// Reads everything up to the end of what there is now.
    async fn catch_up(&mut self) -> Result<(), Trouble> {
        if let Some(tail) = self.tail()
            && self.read(Some(tail), None).await? == End::Whole
        {
            return Ok(());
        }
        // Looked at twice: what was dropped stays so.
        if self.read(None, None).await? == End::Lost
            && self.read(None, None).await? == End::Lost
        {
            self.position = None;
            let text = "output is missing here: the engine had dropped it before it was read";
            self.note_gap(text.into());
            self.read(None, None).await?;
        }
        Ok(())
    }

    /// After the exit: reads everything, and settles how the last lines end.
    async fn complete(&mut self) -> Result<(), Trouble> {
        self.catch_up().await?;
        let facts = &self.shared.engine.facts;
        if !facts.loses_line_ends {
            return Ok(());
        }
        for (stream, name) in STREAMS.map(LogStream::file_stem).into_iter().enumerate() {
            let end = self.position.map_or(EntryEnd::Line, |position| position.ends[stream]);
            let ended = match end {
                EntryEnd::OpenEmpty => true,
                EntryEnd::OpenPiece => {
                    let root = facts.root.clone();
                    let container = self.container.to_owned();
                    let look = move || line_end::in_engine_file(&root?, &container, name).ok();
                    // Most lines end.
                    on_blocking_thread(look).await.unwrap_or(true)
                }
                _ => false,
            };
            if ended && let Some(position) = &mut self.position {
                position.ends[stream] = EntryEnd::Line;
                self.unsaved = true;
                lock(&self.files).push(stream, b"\n");
            }
        }
        self.flush().await
    }

    /// One reading from our place on; with `exited` it follows, until some time after the exit.
    async fn read(
        &mut self,
        tail: Option<u64>,
        mut exited: Option<&mut watch::Receiver<bool>>,
    ) -> Result<End, Trouble> {
        self.settle().await?;
        let follow = exited.is_some();
        let mut seek = Seek::new(self.position, tail.is_some(), follow);
        let mut stream = self.shared.engine.logs(self.container, follow, tail);
        let mut over = false;
        loop {
            let first = tokio::select! {
                item = stream.next() => item,
                () = sleep(SAVE_AFTER), if self.unsaved => {
                    self.save().await?;
                    continue;
                }
                () = told(&mut exited), if follow && !over => {
                    over = true;
                    continue;
                }
                () = sleep(SILENCE_AFTER_EXIT), if over => return Ok(End::Whole),
            };
            let end = self.take(first, &mut stream, &mut seek, follow);
            self.flush().await?;
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Takes an item, and with it what is there already, up to a batch. Says how the reading
    /// ended, if it did.
    fn take(
        &mut self,
        first: Option<Result<LogOutput, CallError>>,
        stream: &mut (impl Stream<Item = Result<LogOutput, CallError>> + Unpin),
        seek: &mut Seek,
        follow: bool,
    ) -> Option<Result<End, Trouble>> {
        let mut files = lock(&self.files);
        let mut bytes = 0;
        let mut next = first;
        loop {
            let entry = match next {
                // Where it follows, the last word is left to a reading that does not.
                None if seek.found() || follow => return Some(Ok(End::Whole)),
                None => return Some(Ok(End::Lost)),
                Some(Err(error)) => return Some(Err(error.into())),
                Some(Ok(output)) => match Entry::read(output) {
                    Ok(entry) => entry,
                    Err(said) => return Some(Err(Trouble::Unreadable(said))),
                },
            };
            bytes += entry.bytes.len();
            match seek.look(&entry) {
                Verdict::Lost => return Some(Ok(End::Lost)),
                Verdict::Old => {}
                Verdict::New => {
                    let lost = self.shared.engine.facts.loses_line_ends;
                    let before = self.position.map(|position| position.ends[entry.stream]);
                    if lost && before.is_some_and(EntryEnd::is_open) {
                        files.push(entry.stream, b"\n");
                    }
                    self.position = Some(Position::after(self.position, &entry));
                    self.unsaved = true;
                    files.push(entry.stream, &entry.bytes);
                }
            }
            if bytes >= BATCH_BYTES {
                return None;
            }
            match stream.next().now_or_never() {
                Some(item) => next = item,
                None => return None,
            }
        }
    }

    /// Brings the files in order: what an earlier try could not write goes first.
    async fn settle(&mut self) -> Result<(), Trouble> {
        self.flush().await?;
        if let Some(text) = self.gap.clone() {
            let position = self.position;
            self.with_files(move |files| files.gap(&text, position)).await?;
            self.gap = None;
            self.unsaved = false;
            self.shared.settings.log_notify.written(self.attempt);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Trouble> {
        if lock(&self.files).has_pending() {
            let position = self.position;
            let saved = self.with_files(move |files| files.flush(position)).await?;
            self.unsaved &= !saved;
            self.shared.settings.log_notify.written(self.attempt);
        }
        Ok(())
    }

    async fn save(&mut self) -> Result<(), Trouble> {
        let position = self.position;
        self.with_files(move |files| files.save(position)).await?;
        self.unsaved = false;
        Ok(())
    }

    /// Output was lost: tells the core now, and the files as soon as they can be written.
    fn note_gap(&mut self, text: String) {
        tracing::warn!(attempt = %self.attempt, text, "output was lost");
        self.shared.tell(self.attempt, RuntimeFact::LogGap(text.clone()));
        self.gap = Some(text);
    }

    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let files = Arc::clone(&self.files);
        Ok(on_blocking_thread(move || work(&mut lock(&files))).await?)
    }
}

fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    // A panic under the lock ends the capture, too.
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn told(exited: &mut Option<&mut watch::Receiver<bool>>) {
    match exited {
        Some(exited) => _ = exited.wait_for(|exited| *exited).await,
        None => std::future::pending().await,
    }
}

/// Runs what blocks where it may.
async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The tokio runtime ends, and this future with it.
        Err(_) => std::future::pending().await,
    }
}
