//! The sidecar `.<name>.index`: the start offsets of the files that do not contain their own.
//!
//! It is first written when the stream gets a second file, and replaced atomically (temporary file,
//! then rename) whenever a live file begins. A stream that never rotated has none: its only file
//! begins at 0. The format is text, one file per line:
//! ```text
//! podmesh-log-index 1
//! live <start> - <inode> <birth ns> -
//! own <start> <length> <inode> <birth ns> <mtime ns>
//! moved <start> <length> <inode> <birth ns> <mtime ns>
//! cut <offset>
//! ```
//! We rotated the `own` files; they wait for compression. Another program renamed or removed the
//! `moved` files: their length and mtime identify them after that program has compressed them.
//! `cut` is present only while the stream is being cut back.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use crate::error::Error;
use crate::names::{self, FileId, Names};

const HEAD: &str = "podmesh-log-index 1";
/// The maximum number of remembered files that others rotated; the oldest entries are dropped
/// first.
const MOVED_MAX: usize = 64;
/// Far more than we ever write; a larger file is not ours.
const BYTES_MAX: u64 = 4 << 20;

/// One file of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) id: FileId,
    pub(crate) state: EntryState,
}

/// Whether a file still grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryState {
    Live,
    Closed { len: u64, mtime_ns: u64, by_us: bool },
}

/// An open sidecar file. Keeping it open prevents a later one from getting its inode number.
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

/// The content of the sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<Entry>,
    /// Files are being removed to cut the stream back to this offset. Until that ends, entries
    /// after it do not mean that the stream was longer.
    cut: Option<u64>,
}

impl Index {
    /// Reads the sidecar. Returns `None` if it is missing or invalid (a power failure may leave an
    /// empty file): the offsets are then derived from the other files.
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
                EntryState::Live => writeln!(text, "live {start} - {inode} {born_ns} -"),
                EntryState::Closed { len, mtime_ns, by_us } => {
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

    /// Returns start and length of the plain file `id` of `size` bytes.
    pub(crate) fn plain(&self, id: FileId, size: u64) -> Option<(u64, u64)> {
        self.entries.iter().rev().find_map(|entry| match entry.state {
            _ if entry.id != id => None,
            EntryState::Closed { len, .. } if len != size => None,
            _ => Some((entry.start, size)),
        })
    }

    /// Returns start and length of a file that another program compressed: such tools keep the
    /// mtime.
    pub(crate) fn compressed(&self, mtime_ns: u64, len_mod_32: u64) -> Option<(u64, u64)> {
        self.entries.iter().rev().find_map(|entry| match entry.state {
            EntryState::Closed { len, mtime_ns: closed, .. }
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

    /// Returns where the plain file `id` begins.
    pub(crate) fn start_of(&self, id: FileId) -> Option<u64> {
        self.entries.iter().rev().find(|entry| entry.id == id).map(|entry| entry.start)
    }

    /// Returns the live file and its start.
    pub(crate) fn live(&self) -> Option<(FileId, u64)> {
        self.entries
            .iter()
            .find(|entry| entry.state == EntryState::Live)
            .map(|entry| (entry.id, entry.start))
    }

    pub(crate) fn is_live(&self, id: FileId) -> bool {
        self.live().is_some_and(|(live, _)| live == id)
    }

    /// Returns the lowest offset at which a live file can begin.
    pub(crate) fn floor(&self) -> u64 {
        let end = |entry: &Entry| match entry.state {
            EntryState::Live => entry.start,
            EntryState::Closed { len, .. } => entry.start + len,
        };
        self.cut.unwrap_or_else(|| self.entries.iter().map(end).max().unwrap_or(0))
    }

    /// Sets the live file. The previous one is dropped unless it was closed.
    pub(crate) fn set_live(&mut self, id: FileId, start: u64) {
        self.entries.retain(|entry| entry.id != id && entry.state != EntryState::Live);
        self.entries.push(Entry { start, id, state: EntryState::Live });
    }

    /// Records that a file is complete.
    pub(crate) fn close(&mut self, id: FileId, start: u64, len: u64, mtime_ns: u64, by_us: bool) {
        self.entries.retain(|entry| entry.id != id && entry.state != EntryState::Live);
        self.entries.push(Entry { start, id, state: EntryState::Closed { len, mtime_ns, by_us } });
        self.entries.sort_by_key(|entry| entry.start);
    }

    pub(crate) fn begin_cut(&mut self, offset: u64) {
        self.cut = Some(offset);
    }

    pub(crate) fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    /// Drops the entries of files that a cut, complete or interrupted, has removed: the stream ends
    /// at `end`. Returns whether there was a cut.
    pub(crate) fn end_cut(&mut self, end: u64) -> bool {
        if self.cut.take().is_none() {
            return false;
        }
        self.entries.retain(|entry| entry.state == EntryState::Live || entry.start < end);
        true
    }

    /// Drops our own files that are no longer in the folder as plain files (`plain`), and the
    /// oldest entries of the others.
    pub(crate) fn forget(&mut self, plain: &[FileId]) {
        self.entries.retain(|entry| match entry.state {
            EntryState::Closed { by_us: true, .. } => plain.contains(&entry.id),
            _ => true,
        });
        let is_moved =
            |entry: &Entry| matches!(entry.state, EntryState::Closed { by_us: false, .. });
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
        "live" => EntryState::Live,
        "own" | "moved" => EntryState::Closed {
            len: len.parse().ok()?,
            mtime_ns: mtime.parse().ok()?,
            by_us: word == "own",
        },
        _ => return None,
    };
    words.next().is_none().then_some(Entry { start, id, state })
}
