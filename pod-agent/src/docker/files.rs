//! The files of one attempt's output, and the cursor saved with them. Everything here blocks.
//!
//! What is in the files is always a beginning of what the container printed, with gaps told. A
//! cursor may be older than the files: then the bytes behind it are skipped when the engine gives
//! them again. That is exact, because they are the same bytes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use podmesh_logrotate::{AppendError, Error, LogWriter, RotationPolicy};
use serde::{Deserialize, Serialize};

use super::cursor::{Position, STREAMS};

/// A cursor is saved after this many bytes, or when this much time has passed. It bounds how much
/// is read twice after a crash.
const SAVE_BYTES: u64 = 256 << 10;
pub(super) const SAVE_AFTER: Duration = Duration::from_millis(500);

/// What is on disk, in the cursor's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    /// Grows with each save: a cursor stands beside either stream, and the newest counts.
    number: u64,
    position: Option<Position>,
    /// Where the files ended.
    offsets: [u64; 2],
    /// Bytes behind the position that were in the files already.
    skip: [u64; 2],
    /// A gap that was about to be told behind `offsets`: what is there is to be cut off.
    gap: Option<String>,
}

/// Writes the two streams.
#[derive(Debug)]
pub(super) struct Files {
    writers: [LogWriter; 2],
    /// Taken from the engine, and not yet written.
    pending: [Vec<u8>; 2],
    /// Bytes that the engine will give and that are in the files already.
    skip: [u64; 2],
    number: u64,
    saved_offset: u64,
    saved_at: Instant,
    /// Where a gap is being told, until that is done.
    gap_from: Option<[u64; 2]>,
}

/// What the files say about how far an earlier capture came.
#[derive(Debug, Default)]
pub(super) struct Resume {
    pub(super) position: Option<Position>,
    /// A gap that has yet to be told.
    pub(super) gap: Option<String>,
}

impl Files {
    /// Opens the files; creates none.
    pub(super) fn open(dir: PathBuf, policy: &RotationPolicy) -> Result<(Self, Resume), Error> {
        let open =
            |at: usize| LogWriter::open(dir.clone(), STREAMS[at].file_stem(), policy.clone());
        let writers = [open(0)?, open(1)?];
        let saved = writers.iter().filter_map(load).max_by_key(|saved| saved.number);
        let mut files = Self {
            skip: [0; 2],
            pending: [Vec::new(), Vec::new()],
            number: saved.as_ref().map_or(0, |saved| saved.number),
            saved_offset: 0,
            saved_at: Instant::now(),
            gap_from: None,
            writers,
        };
        let offsets = files.offsets();
        let resume = match saved {
            None => {
                files.skip = offsets;
                Resume::default()
            }
            Some(Saved { gap: Some(gap), position, skip, offsets, .. }) => {
                files.skip = skip;
                files.gap_from = Some(offsets);
                Resume { position, gap: Some(gap) }
            }
            Some(saved) => {
                let behind = |at: usize| offsets[at].saturating_sub(saved.offsets[at]);
                files.skip = [0, 1].map(|at| saved.skip[at] + behind(at));
                files.saved_offset = saved.offsets.iter().sum();
                let missing = |at: usize| saved.offsets[at].saturating_sub(offsets[at]);
                let gap = (missing(0) + missing(1) > 0).then(|| {
                    let [stdout, stderr] = [missing(0), missing(1)];
                    format!(
                        "the file lost what was in it: {stdout} bytes of stdout, {stderr} of stderr"
                    )
                });
                Resume { position: saved.position, gap }
            }
        };
        Ok((files, resume))
    }

    fn offsets(&self) -> [u64; 2] {
        [0, 1].map(|at| self.writers[at].offset())
    }

    /// Takes what an entry printed.
    pub(super) fn push(&mut self, stream: usize, bytes: &[u8]) {
        let skip = self.skip[stream].min(bytes.len() as u64);
        self.skip[stream] -= skip;
        // `skip` is at most the length, which is a usize.
        let skip = usize::try_from(skip).unwrap_or(bytes.len());
        self.pending[stream].extend_from_slice(&bytes[skip..]);
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.iter().any(|bytes| !bytes.is_empty())
    }

    /// Forgets what could not be written.
    pub(super) fn drop_pending(&mut self) {
        self.pending = [Vec::new(), Vec::new()];
    }

    /// Writes what is pending, and saves the cursor now and then; says whether it did.
    pub(super) fn flush(&mut self, position: Option<Position>) -> Result<bool, Error> {
        for (writer, pending) in self.writers.iter_mut().zip(&mut self.pending) {
            if let Err(AppendError { taken, source }) = writer.append(pending) {
                pending.drain(..taken);
                return Err(source);
            }
            pending.clear();
        }
        let offset: u64 = self.offsets().iter().sum();
        let due = offset >= self.saved_offset + SAVE_BYTES || self.saved_at.elapsed() >= SAVE_AFTER;
        if due {
            self.save(position)?;
        }
        Ok(due)
    }

    /// Saves the cursor. Nothing may be pending.
    pub(super) fn save(&mut self, position: Option<Position>) -> Result<(), Error> {
        self.write_cursor(position, None)
    }

    fn write_cursor(&mut self, position: Option<Position>, gap: Option<&str>) -> Result<(), Error> {
        let saved = Saved {
            number: self.number + 1,
            position,
            offsets: self.gap_from.unwrap_or(self.offsets()),
            skip: self.skip,
            gap: gap.map(str::to_owned),
        };
        // Numbers and a text: they always have a JSON form.
        let data = serde_json::to_vec(&saved).unwrap_or_default();
        if let Some(writer) = self.writers.iter_mut().find(|writer| writer.offset() > 0) {
            writer.save_cursor(&data)?;
        }
        self.number += 1;
        self.saved_offset = self.offsets().iter().sum();
        self.saved_at = Instant::now();
        Ok(())
    }

    /// Says in every file that exists that output was lost. `position` is where it goes on; none
    /// is the beginning of what the engine still has. After an error, call it again: what was
    /// half told is cut off first.
    pub(super) fn gap(&mut self, text: &str, position: Option<Position>) -> Result<(), Error> {
        if position.is_none() {
            self.skip = [0; 2];
        }
        if let Some(from) = self.gap_from {
            for (writer, from) in self.writers.iter_mut().zip(from) {
                match writer.truncate_to(from) {
                    // Then it is told twice.
                    Ok(())
                    | Err(Error::TruncateCompressed { .. } | Error::TruncateBeyondEnd { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        } else {
            self.gap_from = Some(self.offsets());
        }
        self.write_cursor(position, Some(text))?;
        for writer in self.writers.iter_mut().filter(|writer| writer.offset() > 0) {
            writer.gap(text).map_err(|error| error.source)?;
        }
        self.gap_from = None;
        self.save(position)
    }
}

fn load(writer: &LogWriter) -> Option<Saved> {
    match writer.load_cursor() {
        Ok(cursor) => serde_json::from_slice(&cursor?.data).ok(),
        Err(error) => {
            tracing::warn!(%error, "reading the container's log from its beginning");
            None
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::super::cursor::Entry;
    use super::*;

    fn open(dir: &Path) -> (Files, Resume) {
        Files::open(dir.to_owned(), &RotationPolicy::default()).unwrap()
    }

    fn text(dir: &Path, stream: &str) -> String {
        std::fs::read_to_string(dir.join(format!("{stream}.log"))).unwrap_or_default()
    }

    fn position() -> Option<Position> {
        let entry = Entry { stream: 0, nanos: 7, bytes: Bytes::from_static(b"a\n") };
        Some(Position::after(None, &entry))
    }

    #[test]
    fn what_is_in_the_files_is_skipped_when_it_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, resume) = open(dir.path());
        assert_eq!(resume.position, None);
        files.push(0, b"one\n");
        files.push(1, b"e");
        assert!(!files.flush(None).unwrap());
        drop(files);
        // No cursor was saved: all of it comes again.
        let (mut files, resume) = open(dir.path());
        assert_eq!(resume.position, None);
        files.push(0, b"on");
        files.push(0, b"e\ntwo\n");
        files.push(1, b"error\n");
        files.flush(None).unwrap();
        files.save(position()).unwrap();
        files.push(0, b"three\n");
        files.flush(position()).unwrap();
        drop(files);
        let (mut files, resume) = open(dir.path());
        assert_eq!(resume.position, position());
        assert_eq!(resume.gap, None);
        // A cursor that is saved before all has come again.
        files.push(0, b"thr");
        files.save(position()).unwrap();
        drop(files);
        let (mut files, _) = open(dir.path());
        files.push(0, b"ee\nfour\n");
        files.flush(position()).unwrap();
        assert_eq!(text(dir.path(), "stdout"), "one\ntwo\nthree\nfour\n");
        assert_eq!(text(dir.path(), "stderr"), "error\n");
    }

    #[test]
    fn a_gap_is_told_once_whenever_the_agent_dies() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _) = open(dir.path());
        files.push(0, b"out\n");
        files.push(1, b"err\n");
        files.flush(position()).unwrap();
        // It dies when the gap stands in one of two files.
        files.write_cursor(None, Some("lost")).unwrap();
        files.writers[0].gap("lost").unwrap();
        drop(files);
        let (mut files, resume) = open(dir.path());
        assert_eq!(resume.gap.as_deref(), Some("lost"));
        files.gap("lost", resume.position).unwrap();
        files.push(0, b"on\n");
        files.flush(None).unwrap();
        drop(files);
        let (_, resume) = open(dir.path());
        assert_eq!(resume.gap, None);
        assert_eq!(text(dir.path(), "stdout"), "out\n[podmesh: lost]\non\n");
        assert_eq!(text(dir.path(), "stderr"), "err\n[podmesh: lost]\n");
    }

    #[test]
    fn bytes_that_the_file_lost_are_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _) = open(dir.path());
        files.push(0, b"one\ntwo\n");
        files.flush(position()).unwrap();
        files.save(position()).unwrap();
        drop(files);
        std::fs::write(dir.path().join("stdout.log"), "one\n").unwrap();
        let (_, resume) = open(dir.path());
        assert_eq!(resume.position, position());
        assert!(resume.gap.unwrap().contains("4 bytes of stdout"));
    }
}
