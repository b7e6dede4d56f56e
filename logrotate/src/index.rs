//! The sidecar `.<name>.index`: at which offset the files begin that cannot say so themselves.
//!
//! It is written when the stream has a second file for the first time, and replaced whole (written
//! beside, then renamed) whenever a live file begins. A stream that never rotated has none: its
//! only file begins at 0. The text, one file a line:
//! ```text
//! podmesh-log-index 1
//! live <start> - <inode> <birth ns> -
//! own <start> <length> <inode> <birth ns> <mtime ns>
//! moved <start> <length> <inode> <birth ns> <mtime ns>
//! cut <offset>
//! ```
//! `own` files were rotated by us and wait for compression, `moved` ones were renamed or removed by
//! somebody else: their length and mtime find them again after that somebody has compressed them.
//! `cut` stands there only while the stream is being cut back.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use crate::error::Error;
use crate::names::{self, FileId, Names};

const HEAD: &str = "podmesh-log-index 1";
/// Files rotated by others that are remembered; the oldest are forgotten first.
const MOVED_MAX: usize = 64;
/// Far above what is ever written; a larger file is not ours.
const BYTES_MAX: u64 = 4 << 20;

/// One file of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) id: FileId,
    pub(crate) state: State,
}

/// Whether a file still grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    Closed { len: u64, mtime_ns: u64, by_us: bool },
}

/// The sidecar as it was read. It is kept open: so no later one can get its inode number.
#[derive(Debug, Default)]
pub(crate) struct Edition {
    read: Option<(File, u64)>,
}

impl Edition {
    pub(crate) fn is_current(&self, names: &Names) -> bool {
        let now = fs::metadata(names.index()).ok().map(|meta| meta.ino());
        now == self.read.as_ref().map(|(_, inode)| *inode)
    }
}

/// All that the sidecar says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<Entry>,
    /// Files are being removed to cut the stream back to this offset: that newer ones are named
    /// here does not mean that the stream was longer.
    cut: Option<u64>,
}

impl Index {
    /// Reads the sidecar; `None` when there is none, or none that makes sense (a power cut may
    /// leave an empty file): the offsets then follow from the other files.
    pub(crate) fn load(names: &Names) -> Result<(Option<Self>, Edition), Error> {
        let path = names.index();
        let read = || -> io::Result<_> {
            let file = File::open(&path)?;
            let inode = file.metadata()?.ino();
            let mut bytes = Vec::new();
            (&file).take(BYTES_MAX).read_to_end(&mut bytes)?;
            Ok((bytes, Edition { read: Some((file, inode)) }))
        };
        match read() {
            Ok((bytes, edition)) => Ok((Self::parse(&String::from_utf8_lossy(&bytes)), edition)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((None, Edition::default())),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut index = Self::default();
        for line in lines {
            match line.strip_prefix("cut ") {
                Some(offset) => index.cut = Some(offset.parse().ok()?),
                None => index.entries.push(parse_entry(line)?),
            }
        }
        Some(index)
    }

    pub(crate) fn save(&self, names: &Names) -> Result<(), Error> {
        let mut text = format!("{HEAD}\n");
        for Entry { start, id: FileId { inode, born_ns }, state } in &self.entries {
            // Writing to a String cannot fail.
            let _ = match state {
                State::Live => writeln!(text, "live {start} - {inode} {born_ns} -"),
                State::Closed { len, mtime_ns, by_us } => {
                    let word = if *by_us { "own" } else { "moved" };
                    writeln!(text, "{word} {start} {len} {inode} {born_ns} {mtime_ns}")
                }
            };
        }
        if let Some(offset) = self.cut {
            let _ = writeln!(text, "cut {offset}");
        }
        names::replace(&names.index(), text.as_bytes())
    }

    /// Start and length of the plain file `id` of `size` bytes.
    pub(crate) fn plain(&self, id: FileId, size: u64) -> Option<(u64, u64)> {
        self.entries.iter().rev().find_map(|entry| match entry.state {
            _ if entry.id != id => None,
            State::Closed { len, .. } if len != size => None,
            _ => Some((entry.start, size)),
        })
    }

    /// Start and length of a file that somebody else compressed: such tools keep the mtime.
    pub(crate) fn compressed(&self, mtime_ns: u64, len_mod_32: u64) -> Option<(u64, u64)> {
        self.entries.iter().rev().find_map(|entry| match entry.state {
            State::Closed { len, mtime_ns: closed, .. }
                if closed == mtime_ns && len & 0xffff_ffff == len_mod_32 =>
            {
                Some((entry.start, len))
            }
            _ => None,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the plain file `id` begins.
    pub(crate) fn start_of(&self, id: FileId) -> Option<u64> {
        self.entries.iter().rev().find(|entry| entry.id == id).map(|entry| entry.start)
    }

    /// The live file and its start.
    pub(crate) fn live(&self) -> Option<(FileId, u64)> {
        self.entries
            .iter()
            .find(|entry| entry.state == State::Live)
            .map(|entry| (entry.id, entry.start))
    }

    pub(crate) fn is_live(&self, id: FileId) -> bool {
        self.live().is_some_and(|(live, _)| live == id)
    }

    /// No live file can begin before this offset.
    pub(crate) fn floor(&self) -> u64 {
        let end = |entry: &Entry| match entry.state {
            State::Live => entry.start,
            State::Closed { len, .. } => entry.start + len,
        };
        self.cut.unwrap_or_else(|| self.entries.iter().map(end).max().unwrap_or(0))
    }

    /// Names the live file; the one named before is forgotten, unless it was closed.
    pub(crate) fn set_live(&mut self, id: FileId, start: u64) {
        self.entries.retain(|entry| entry.id != id && entry.state != State::Live);
        self.entries.push(Entry { start, id, state: State::Live });
    }

    /// Notes that a file has got its last byte.
    pub(crate) fn close(&mut self, id: FileId, start: u64, len: u64, mtime_ns: u64, by_us: bool) {
        self.entries.retain(|entry| entry.id != id && entry.state != State::Live);
        self.entries.push(Entry { start, id, state: State::Closed { len, mtime_ns, by_us } });
        self.entries.sort_by_key(|entry| entry.start);
    }

    pub(crate) fn begin_cut(&mut self, offset: u64) {
        self.cut = Some(offset);
    }

    pub(crate) fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    /// Forgets the files that a cut, whole or broken off, has removed: the stream ends at `end`.
    /// Says whether there was one.
    pub(crate) fn end_cut(&mut self, end: u64) -> bool {
        if self.cut.take().is_none() {
            return false;
        }
        self.entries.retain(|entry| entry.state == State::Live || entry.start < end);
        true
    }

    /// Forgets our own files that are no longer plain files in the folder (`plain`), and the oldest
    /// of the others.
    pub(crate) fn forget(&mut self, plain: &[FileId]) {
        self.entries.retain(|entry| match entry.state {
            State::Closed { by_us: true, .. } => plain.contains(&entry.id),
            _ => true,
        });
        let is_moved = |entry: &Entry| matches!(entry.state, State::Closed { by_us: false, .. });
        let mut too_many =
            self.entries.iter().filter(|entry| is_moved(entry)).count().saturating_sub(MOVED_MAX);
        self.entries.retain(|entry| {
            let drop = too_many > 0 && is_moved(entry);
            too_many -= usize::from(drop);
            !drop
        });
    }
}

fn parse_entry(line: &str) -> Option<Entry> {
    let mut words = line.split(' ');
    let word = words.next()?;
    let start = words.next()?.parse().ok()?;
    let len = words.next()?;
    let id = FileId { inode: words.next()?.parse().ok()?, born_ns: words.next()?.parse().ok()? };
    let mtime = words.next()?;
    let state = match word {
        "live" => State::Live,
        "own" | "moved" => State::Closed {
            len: len.parse().ok()?,
            mtime_ns: mtime.parse().ok()?,
            by_us: word == "own",
        },
        _ => return None,
    };
    words.next().is_none().then_some(Entry { start, id, state })
}
