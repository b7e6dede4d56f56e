//! Captures what a container prints: every byte once, over restarts of the agent and the engine.
//!
//! It goes through the logs API: attaching would stop the container while we are slow. A reading
//! that follows is quick, and not to be trusted beyond the first file of the engine's log: at the
//! end of a file Docker 20.10 goes on with the newest one, without a word about those between, and
//! may read that twice. It may also end before the last entry. A reading that does not follow is
//! exact. So while the log is small it is followed; once it may fill more than a file, a reading that
//! follows only tells that there is something new. Then, whenever there is doubt, and always after
//! the exit, `catch_up` makes an exact reading from our place on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
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
/// Entries that a reading asks for when our place should be among the last; the larger number when
/// it was not among the fewer. A log that is shorter is read whole.
const TAIL_ENTRIES: [u64; 2] = [1000, 30_000];
/// Entries that a reading begins with that only is to tell of new ones.
const NEWS_ENTRIES: u64 = 20;
/// How far a clock may go back without being noticed.
const CLOCK_MARGIN: Duration = Duration::from_secs(2);
/// A log of no more than this many bytes is in one file of the engine (of 50 MB).
const ONE_FILE_BYTES: u64 = 40 << 20;
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

/// What part of the log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    /// So many entries at its end.
    Tail(u64),
    /// What was printed since this second of 1970.
    Since(i32),
}

/// How a reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// At the end of what there is.
    Whole,
    /// Our place was not in it.
    Lost,
    /// It followed, there is something new, and it is not to be trusted with that.
    News,
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
                    taken_at: None,
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
    /// Both clocks when the last entry was taken, in this life of the agent.
    taken_at: Option<(Instant, SystemTime)>,
}

impl Capture<'_> {
    async fn run(mut self, gap: Option<String>, mut exited: watch::Receiver<bool>) {
        if let Some(text) = gap {
            self.note_gap(text);
        }
        let mut pause = Pause::new();
        let mut part = self.to_follow();
        while !*exited.borrow() {
            let position = self.position;
            let ended = match self.read(part, Some(&mut exited)).await {
                Ok(End::Lost) if matches!(part, Part::Tail(_)) && !self.may_rotate() => {
                    part = self.behind_place();
                    continue;
                }
                Ok(End::Lost | End::News) => self.catch_up().await,
                Ok(End::Whole) => Ok(()),
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = ended {
                tracing::warn!(attempt = %self.attempt, %trouble, "log capture is interrupted");
            }
            part = self.to_follow();
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
        } else if self.is_long(TAIL_ENTRIES[0]) && self.unsaved {
            // A short log is read whole anyhow.
            self.save().await
        } else {
            Ok(())
        };
        if let Err(trouble) = last {
            tracing::warn!(attempt = %self.attempt, %trouble, "the log's last state is not saved");
        }
    }

    /// Whether more entries were taken than this.
    fn is_long(&self, entries: u64) -> bool {
        self.position.is_some_and(|position| position.taken > entries)
    }

    /// Whether the log may fill more than a file of the engine.
    fn may_rotate(&self) -> bool {
        self.position.is_some_and(|position| position.engine_bytes > ONE_FILE_BYTES)
    }

    /// What to begin with when following.
    fn to_follow(&self) -> Part {
        match TAIL_ENTRIES {
            _ if self.may_rotate() => Part::Tail(NEWS_ENTRIES),
            [entries, _] if self.is_long(entries) => Part::Tail(entries),
            _ => Part::All,
        }
    }

    /// What to read when our place may be anywhere. All is always right; a beginning is left out
    /// only where no clock went back since we were there: nothing behind our place can be stamped
    /// earlier then.
    fn behind_place(&self) -> Part {
        let steady = |(then, wall): (Instant, SystemTime)| {
            wall.elapsed().is_ok_and(|elapsed| elapsed + CLOCK_MARGIN / 2 >= then.elapsed())
        };
        let second = self.position.zip(self.taken_at).filter(|(_, at)| steady(*at)).and_then(
            |(position, _)| {
                let nanos = Duration::from_nanos(u64::try_from(position.nanos()).ok()?);
                i32::try_from(nanos.checked_sub(CLOCK_MARGIN)?.as_secs()).ok()
            },
        );
        second.map_or(Part::All, Part::Since)
    }

    /// Reads everything up to the end of what there is now.
    async fn catch_up(&mut self) -> Result<(), Trouble> {
        let tails = TAIL_ENTRIES.into_iter().filter(|entries| self.is_long(*entries));
        let long = self.is_long(TAIL_ENTRIES[0]).then(|| self.behind_place());
        let parts: Vec<_> =
            tails.map(Part::Tail).chain(long.filter(|part| *part != Part::All)).collect();
        for part in parts {
            if self.read(part, None).await? == End::Whole {
                return Ok(());
            }
        }
        // Looked at twice: what was dropped stays so.
        if self.read(Part::All, None).await? == End::Lost
            && self.read(Part::All, None).await? == End::Lost
        {
            self.position = None;
            let text = "output is missing here: the engine had dropped it before it was read";
            self.note_gap(text.into());
            self.read(Part::All, None).await?;
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
        part: Part,
        mut exited: Option<&mut watch::Receiver<bool>>,
    ) -> Result<End, Trouble> {
        self.settle().await?;
        let follow = exited.is_some();
        let mut seek = Seek::new(self.position, matches!(part, Part::Tail(_)), follow);
        let mut options = LogsOptionsBuilder::default().follow(follow);
        options = match part {
            Part::All => options,
            Part::Tail(entries) => options.tail(&entries.to_string()),
            Part::Since(second) => options.since(second),
        };
        let mut stream = self.shared.engine.logs(self.container, options);
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
            if lock(&self.files).has_pending() {
                self.taken_at = Some((Instant::now(), SystemTime::now()));
            }
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
                Verdict::New if follow && self.may_rotate() => return Some(Ok(End::News)),
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
