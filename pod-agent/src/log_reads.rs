//! Answers log reads of the manager's clients, directly from files, without the core.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podmesh_logrotate::{Error, LogReader};
use podmesh_protocol::client::{LogPosition, LogRead, LogSlice};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::{
    LOG_READ_BYTES_MAX, LOG_READS_MAX, LOG_SEARCH_BYTES_MAX, WAIT_MS_MAX,
};
use podmesh_protocol::session::ToManager;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::log_find::{Found, find, read_kept};
use crate::log_notify::{LogNotify, LogWaiter};
use crate::log_sweep::RemovedLogs;
use crate::paths::attempt_log_dir;

/// Maximum number of files read at a time. This also bounds the memory of unsent slices.
const READERS_MAX: usize = 4;
/// How often a waiting reader checks the file by itself, for bytes that another process wrote.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The log reads in progress.
#[derive(Clone, Debug)]
pub(crate) struct LogReads {
    logs_dir: PathBuf,
    notify: LogNotify,
    removed: RemovedLogs,
    reads: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl LogReads {
    /// Creates a set of reads below this folder.
    pub(crate) fn new(logs_dir: PathBuf, notify: LogNotify, removed: RemovedLogs) -> Self {
        Self {
            logs_dir,
            notify,
            removed,
            reads: Arc::new(Semaphore::new(LOG_READS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    /// Answers one read on `slices`, without blocking. `goes_on` says that more output may come.
    pub(crate) fn answer(
        &self,
        number: u64,
        read: LogRead,
        goes_on: bool,
        slices: mpsc::Sender<ToManager>,
    ) {
        let Ok(permit) = Arc::clone(&self.reads).try_acquire_owned() else {
            let text = format!(
                "{LOG_READS_MAX} log reads are already waiting on this node (LOG_READS_MAX)"
            );
            let reply = Err(ErrorReply::new(ErrorCode::Overloaded, text));
            // If there is no room for the reply either, the manager's timeout answers.
            _ = slices.try_send(ToManager::LogSlice(number, reply));
            return;
        };
        // Listen before the first read, so that the end of the attempt is not missed.
        let waiter = goes_on.then(|| self.notify.listen(read.attempt));
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = this.read(number, read, waiter, &slices) => {}
                // The session has ended, and the read with it.
                () = slices.closed() => {}
            }
            drop(permit);
        });
    }

    async fn read(
        &self,
        number: u64,
        mut read: LogRead,
        waiter: Option<LogWaiter>,
        slices: &mpsc::Sender<ToManager>,
    ) {
        let wait = Duration::from_millis(u64::from(read.wait_ms.min(WAIT_MS_MAX)));
        let until = Instant::now() + wait;
        loop {
            let is_over = waiter.as_ref().is_none_or(LogWaiter::has_ended);
            // Held until the slice is queued for sending.
            let Ok(reader) = self.readers.acquire().await else { return };
            let dir = attempt_log_dir(&self.logs_dir, read.attempt);
            let ask = read.clone();
            let removed = is_over && self.removed.may_hold(read.attempt.task.job);
            let looked = spawn_blocking(move || look(dir, &ask, removed)).await;
            let (slice, is_all) = match looked {
                Ok(Ok(looked)) => looked,
                Ok(Err(error)) => {
                    let reply = ErrorReply::new(ErrorCode::Storage, error.to_string());
                    _ = slices.send(ToManager::LogSlice(number, Err(reply))).await;
                    return;
                }
                // The agent is ending.
                Err(_) => return,
            };
            if !slice.bytes.is_empty() || is_over || Instant::now() >= until {
                let slice = LogSlice { end: is_over && is_all, ..slice };
                _ = slices.send(ToManager::LogSlice(number, Ok(slice))).await;
                return;
            }
            drop(reader);
            read.from = LogPosition::Offset(slice.offset);
            let look_again = (Instant::now() + LOOK_EVERY).min(until);
            if let Some(waiter) = &waiter {
                tokio::select! {
                    () = waiter.news() => {}
                    () = sleep_until(look_again) => {}
                }
            }
        }
    }
}

/// Reads what is available now, and returns whether that is all. `removed`: if the attempt has no
/// folder, it may have had output that was removed.
fn look(dir: PathBuf, read: &LogRead, removed: bool) -> Result<(LogSlice, bool), Error> {
    let removed = removed && !dir.exists();
    let mut reader = LogReader::open(dir, read.stream.file_stem())?;
    let offset = match read.from {
        LogPosition::Offset(offset) => offset,
        LogPosition::TailLines(lines) => reader.tail_offset(lines)?,
    };
    let bytes_max = read.bytes_max.clamp(1, LOG_READ_BYTES_MAX) as usize;
    let nothing = |offset| LogSlice { offset, bytes: Vec::new(), end: false, removed };
    let chunk = match &read.find {
        None => read_kept(&mut reader, offset, bytes_max)?,
        Some(text) => match find(&mut reader, offset, text.as_bytes(), LOG_SEARCH_BYTES_MAX)? {
            Found::Line(mut chunk) => {
                chunk.bytes.truncate(bytes_max);
                chunk
            }
            Found::Paused(offset) => return Ok((nothing(offset), false)),
            Found::End(offset) => return Ok((nothing(offset), true)),
        },
    };
    let is_all = chunk.bytes.is_empty() || chunk.end() >= reader.end_offset()?;
    Ok((LogSlice { offset: chunk.offset, bytes: chunk.bytes, end: false, removed }, is_all))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use podmesh_logrotate::{LogWriter, RotationPolicy};
    use podmesh_protocol::client::LogStream;
    use podmesh_protocol::ids::{AttemptId, JobId};

    use super::*;

    const ATTEMPT: AttemptId = AttemptId::new(JobId(1), 2, 3);

    struct Node {
        logs: tempfile::TempDir,
        notify: LogNotify,
        reads: LogReads,
        sender: mpsc::Sender<ToManager>,
        slices: mpsc::Receiver<ToManager>,
    }

    impl Node {
        fn new() -> Self {
            let logs = tempfile::tempdir().unwrap();
            let notify = LogNotify::default();
            let removed = RemovedLogs::open(logs.path());
            let reads = LogReads::new(logs.path().to_owned(), notify.clone(), removed);
            let (sender, slices) = mpsc::channel(4);
            Self { logs, notify, reads, sender, slices }
        }

        fn write(&self, text: &str) {
            let dir = self.logs.path().join("1/2/3");
            let mut writer = LogWriter::open(dir, "stdout", RotationPolicy::default()).unwrap();
            writer.append(text.as_bytes()).unwrap();
            self.notify.written(ATTEMPT);
        }

        fn ask(&self, from: LogPosition, wait_ms: u32, goes_on: bool) {
            let read = LogRead {
                attempt: ATTEMPT,
                stream: LogStream::Stdout,
                from,
                bytes_max: 5,
                wait_ms,
                find: None,
            };
            self.reads.answer(9, read, goes_on, self.sender.clone());
        }

        async fn slice(&mut self) -> (u64, String, bool) {
            match self.slices.recv().await.unwrap() {
                ToManager::LogSlice(9, Ok(slice)) => {
                    assert!(!slice.removed);
                    (slice.offset, String::from_utf8(slice.bytes).unwrap(), slice.end)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_log_is_read_to_its_end() {
        let mut node = Node::new();
        node.write("0123456");
        node.ask(LogPosition::Offset(0), 0, false);
        assert_eq!(node.slice().await, (0, "01234".into(), false));
        node.ask(LogPosition::Offset(5), 0, false);
        assert_eq!(node.slice().await, (5, "56".into(), true));
        node.ask(LogPosition::Offset(5), 0, true);
        assert_eq!(node.slice().await, (5, "56".into(), false));
        node.ask(LogPosition::Offset(7), 0, false);
        assert_eq!(node.slice().await, (7, String::new(), true));
    }

    #[tokio::test]
    async fn a_read_skips_to_a_text() {
        let mut node = Node::new();
        node.write("one\ntwo\nthree\n");
        let ask = |node: &Node, from, text: &str| {
            let from = LogPosition::Offset(from);
            let find = Some(text.to_owned());
            let (attempt, stream) = (ATTEMPT, LogStream::Stdout);
            let read = LogRead { attempt, stream, from, bytes_max: 5, wait_ms: 0, find };
            node.reads.answer(9, read, false, node.sender.clone());
        };
        ask(&node, 0, "w");
        assert_eq!(node.slice().await, (4, "two\nt".into(), false));
        ask(&node, 8, "w");
        assert_eq!(node.slice().await, (14, String::new(), true));
    }

    #[tokio::test]
    async fn a_search_that_pauses_is_not_at_the_end() {
        let mut node = Node::new();
        let dir = node.logs.path().join("1/2/3");
        let (file_bytes_max, total_bytes_max) = (1 << 30, 1 << 31);
        let policy =
            RotationPolicy { file_bytes_max, total_bytes_max, ..RotationPolicy::default() };
        let mut writer = LogWriter::open(dir, "stdout", policy).unwrap();
        let all = vec![b'\n'; usize::try_from(LOG_SEARCH_BYTES_MAX).unwrap() + 1];
        writer.append(&all).unwrap();
        for (from, end) in [(0, false), (LOG_SEARCH_BYTES_MAX, true)] {
            let (attempt, stream) = (ATTEMPT, LogStream::Stdout);
            let (from, find) = (LogPosition::Offset(from), Some("gone".to_owned()));
            let read = LogRead { attempt, stream, from, bytes_max: 5, wait_ms: 0, find };
            node.reads.answer(9, read, false, node.sender.clone());
            let next = LOG_SEARCH_BYTES_MAX + u64::from(end);
            assert_eq!(node.slice().await, (next, String::new(), end));
        }
    }

    #[tokio::test]
    async fn a_missing_file_reads_as_empty() {
        let mut node = Node::new();
        node.ask(LogPosition::TailLines(3), 0, false);
        assert_eq!(node.slice().await, (0, String::new(), true));
        node.ask(LogPosition::Offset(0), 0, true);
        assert_eq!(node.slice().await, (0, String::new(), false));
    }

    #[tokio::test]
    async fn removed_output_is_told_apart_from_empty_output() {
        let mut node = Node::new();
        std::fs::write(node.logs.path().join("logs-removed"), "1").unwrap();
        let removed = RemovedLogs::open(node.logs.path());
        node.reads = LogReads::new(node.logs.path().to_owned(), node.notify.clone(), removed);
        let mut removed = async |goes_on| {
            node.ask(LogPosition::Offset(0), 0, goes_on);
            match node.slices.recv().await.unwrap() {
                ToManager::LogSlice(9, Ok(slice)) => slice.removed,
                other => panic!("{other:?}"),
            }
        };
        assert!(removed(false).await);
        assert!(!removed(true).await, "a running attempt may still print");
        node.write("x");
        node.ask(LogPosition::Offset(0), 0, false);
        assert_eq!(node.slice().await, (0, "x".into(), true));
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_first_byte_or_the_end() {
        let mut node = Node::new();
        node.ask(LogPosition::TailLines(3), WAIT_MS_MAX, true);
        node.write("abc");
        assert_eq!(node.slice().await, (0, "abc".into(), false));
        node.ask(LogPosition::Offset(3), WAIT_MS_MAX, true);
        node.notify.ended(ATTEMPT);
        assert_eq!(node.slice().await, (3, String::new(), true));
    }

    #[tokio::test]
    async fn an_unreadable_log_is_an_error() {
        let mut node = Node::new();
        std::fs::create_dir_all(node.logs.path().join("1/2")).unwrap();
        std::fs::write(node.logs.path().join("1/2/3"), "").unwrap();
        node.ask(LogPosition::Offset(0), 0, false);
        let ToManager::LogSlice(9, Err(error)) = node.slices.recv().await.unwrap() else {
            panic!()
        };
        assert_eq!(error.code, ErrorCode::Storage);
    }
}
