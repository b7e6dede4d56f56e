//! Reading by logical offset, across rotations.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;

use crate::error::Error;
use crate::gzip::{self, Content};
use crate::index::{Edition, Index};
use crate::layout::{self, Layout, Segment};
use crate::names::{FileId, Kind, Names};

/// The maximum number of bytes that one [`LogReader::read_at`] returns.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// How many times to retry if a file is renamed between finding and opening it.
const TRIES: u32 = 50;
/// The block size for counting lines and for skipping in a compressed file.
const BLOCK: usize = 64 << 10;

/// Bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The logical offset of the first byte. Higher than requested if the requested bytes are no
    /// longer kept.
    pub offset: u64,
    /// The bytes; empty at the end of the stream.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// Returns the offset after the last byte, where to continue reading.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Reads one stream by logical offset, across rotations, while a writer in this or another process
/// writes.
///
/// A stream without files reads as empty. Sequential reading is cheap, also in compressed files;
/// going backwards in a compressed file decompresses it from the beginning.
///
/// Files are identified by inode, never by name, so a rotation during a call still yields the right
/// bytes. The exception is another program's `copytruncate`: until the writer notices it, at its
/// first write at least [`CHECK_INTERVAL`](crate::CHECK_INTERVAL) later, the reader can mistake
/// bytes of the live file for earlier ones.
#[derive(Debug)]
pub struct LogReader {
    names: Names,
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    segment: Segment,
    edition: Edition,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Plain(File),
    Gzip { decoder: Box<MultiGzDecoder<BufReader<File>>>, at: u64 },
}

impl LogReader {
    /// Opens the stream `name` in the folder `dir`; neither needs to exist.
    ///
    /// # Errors
    /// [`Error::Name`] if `name` is not a valid file name.
    pub fn open(dir: impl Into<PathBuf>, name: &str) -> Result<Self, Error> {
        Ok(Self { names: Names::new(dir.into(), name)?, source: None })
    }

    /// Returns the logical offset of the oldest byte that is kept; the end of the stream if no byte
    /// is.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Busy`].
    pub fn start_offset(&self) -> Result<u64, Error> {
        Ok(layout::scan(&self.names)?.start())
    }

    /// Returns the logical offset after the last byte.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Busy`].
    pub fn end_offset(&self) -> Result<u64, Error> {
        Ok(layout::scan(&self.names)?.end)
    }

    /// Reads up to `max_bytes` (and up to [`CHUNK_BYTES_MAX`]) bytes at `offset`, or at the next
    /// offset that is kept. It can return fewer bytes than available, but returns none only at the
    /// current end of the stream.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a broken compressed file, with the offset to continue at;
    /// [`Error::Io`], [`Error::Busy`].
    pub fn read_at(&mut self, offset: u64, max_bytes: usize) -> Result<Chunk, Error> {
        let max_bytes = max_bytes.min(CHUNK_BYTES_MAX);
        if max_bytes == 0 {
            return Ok(Chunk { offset, bytes: Vec::new() });
        }
        if let Some(chunk) = self.read_open(offset, max_bytes)? {
            return Ok(chunk);
        }
        let mut hole = None;
        for _ in 0..TRIES {
            let layout = layout::scan(&self.names)?;
            let segment = layout.at(offset).cloned();
            // Bytes are reported as gone only if two scans agree.
            let first = segment.as_ref().map_or(layout.end, |segment| segment.start);
            if first > offset && hole.replace(first) != Some(first) {
                continue;
            }
            let Some(segment) = segment else {
                return Ok(Chunk { offset: first.max(offset), bytes: Vec::new() });
            };
            let at = segment.start.max(offset);
            self.source = Source::open(&self.names, segment, layout.edition)?;
            if let Some(chunk) = self.read_open(at, max_bytes)? {
                return Ok(chunk);
            }
        }
        Err(Error::Busy { path: self.names.live.clone() })
    }

    /// Returns the offset at which the last `lines` lines begin: the start of the stream if there
    /// are fewer lines, its end for 0. A last line without a line break counts as a line.
    ///
    /// Reads the files from the newest backwards, as far as needed, in bounded memory.
    ///
    /// # Errors
    /// See [`read_at`](Self::read_at).
    pub fn tail_offset(&mut self, lines: u64) -> Result<u64, Error> {
        let layout = layout::scan(&self.names)?;
        let Layout { segments, end, .. } = &layout;
        if lines == 0 {
            return Ok(*end);
        }
        let mut wanted = lines;
        for segment in segments.iter().rev() {
            // The line break that ends the last line does not begin another one.
            let to = segment.end().min(end.saturating_sub(1));
            let breaks = self.count_breaks(segment.start, to, u64::MAX)?.0;
            if breaks >= wanted {
                return Ok(self.count_breaks(segment.start, to, breaks - wanted + 1)?.1);
            }
            wanted -= breaks;
        }
        Ok(layout.start())
    }

    /// Counts line breaks between two offsets, up to `stop_at` of them. Also returns the offset
    /// after the last one.
    fn count_breaks(&mut self, from: u64, to: u64, stop_at: u64) -> Result<(u64, u64), Error> {
        let (mut at, mut count, mut behind) = (from, 0, from);
        while at < to {
            let chunk = self.read_at(at, BLOCK.min(usize::try_from(to - at).unwrap_or(BLOCK)))?;
            // Removed meanwhile: its lines are gone.
            if chunk.bytes.is_empty() || chunk.offset >= to {
                break;
            }
            for (index, _) in chunk.bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
                count += 1;
                behind = chunk.offset + index as u64 + 1;
                if count == stop_at {
                    return Ok((count, behind));
                }
            }
            at = chunk.end();
        }
        Ok((count, behind))
    }

    /// Reads from the open file if it contains `offset` or is the live file; otherwise returns
    /// `None`.
    fn read_open(&mut self, offset: u64, max_bytes: usize) -> Result<Option<Chunk>, Error> {
        let Some(source) = &mut self.source else { return Ok(None) };
        let bytes = source.read(offset, max_bytes);
        let is_live = source.segment.kind == Kind::Live;
        let go_on = match &bytes {
            // Checked after reading: the file may have been truncated, and then begins at another
            // offset.
            _ if is_live && source.begins_elsewhere(&self.names)? => false,
            Ok(bytes) if !bytes.is_empty() => true,
            // The usual case of a follower: no new bytes and no rotation.
            Ok(_) => source.is_at_live_end(&self.names, offset),
            Err(_) => false,
        };
        if !go_on {
            self.source = None;
        }
        bytes.map(|bytes| go_on.then_some(Chunk { offset, bytes }))
    }
}

impl Source {
    /// Returns `None` if the file no longer has that name.
    fn open(names: &Names, segment: Segment, edition: Edition) -> Result<Option<Self>, Error> {
        let looked = File::open(&segment.path).and_then(|mut file| {
            let meta = file.metadata()?;
            let content =
                if segment.gz { Some(gzip::inspect(&mut file, meta.len())?) } else { None };
            io::Seek::rewind(&mut file)?;
            Ok((file, FileId::of(&meta), content))
        });
        let (file, id, content) = match looked {
            Ok(looked) => looked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &segment.path)(error)),
        };
        if id != segment.id {
            return Ok(None);
        }
        // A new file can have the identity of a file that was just removed. Our `.gz` files contain
        // their own offsets. A plain file is the same one if the index did not change or still
        // agrees.
        let same = match content {
            Some(Content::Known { start, .. }) => start == segment.start,
            Some(_) => true,
            None => {
                edition.is_current(names)
                    || Index::load(names)?.0.and_then(|index| index.start_of(id))
                        == Some(segment.start)
            }
        };
        let body = if segment.gz { Body::gzip(file, segment.start) } else { Body::Plain(file) };
        Ok(same.then_some(Self { segment, edition, body }))
    }

    /// Returns whether the index now gives the file another start, or no longer contains it:
    /// another program truncated it, or truncated and then renamed it.
    fn begins_elsewhere(&mut self, names: &Names) -> Result<bool, Error> {
        if self.edition.is_current(names) {
            return Ok(false);
        }
        let (index, edition) = Index::load(names)?;
        self.edition = edition;
        let start = index.and_then(|index| index.start_of(self.segment.id));
        Ok(start != Some(self.segment.start))
    }

    /// Returns nothing if the file does not contain `offset`, or not yet.
    fn read(&mut self, offset: u64, max_bytes: usize) -> Result<Vec<u8>, Error> {
        let Self { segment, body, .. } = self;
        if offset < segment.start {
            return Ok(Vec::new());
        }
        match body {
            Body::Plain(file) => {
                let mut bytes = vec![0; max_bytes];
                let n = loop {
                    match file.read_at(&mut bytes, offset - segment.start) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        read => break read.map_err(Error::io("read", &segment.path))?,
                    }
                };
                bytes.truncate(n);
                Ok(bytes)
            }
            Body::Gzip { decoder, at } => {
                if offset >= segment.end() {
                    return Ok(Vec::new());
                }
                let damaged = |error: io::Error| match error.kind() {
                    io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof => Error::Damaged {
                        path: segment.path.clone(),
                        why: error.to_string(),
                        resume_at: segment.end(),
                    },
                    _ => Error::io("read", &segment.path)(error),
                };
                if offset < *at {
                    // The decoder cannot go back. The handle stays on the same file even if it was
                    // renamed.
                    let file = decoder.get_ref().get_ref().try_clone().and_then(|mut file| {
                        io::Seek::rewind(&mut file)?;
                        Ok(file)
                    });
                    *body =
                        Body::gzip(file.map_err(Error::io("read", &segment.path))?, segment.start);
                    return self.read(offset, max_bytes);
                }
                while *at < offset {
                    let mut skipped = [0; BLOCK];
                    let want = BLOCK.min(usize::try_from(offset - *at).unwrap_or(BLOCK));
                    decoder.read_exact(&mut skipped[..want]).map_err(damaged)?;
                    *at += want as u64;
                }
                let left = segment.end() - offset;
                let mut bytes = vec![0; max_bytes.min(usize::try_from(left).unwrap_or(max_bytes))];
                decoder.read_exact(&mut bytes).map_err(damaged)?;
                *at += bytes.len() as u64;
                if *at == segment.end() && decoder.read(&mut [0]).map_err(damaged)? != 0 {
                    return Err(damaged(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it contains more bytes than its header says",
                    )));
                }
                Ok(bytes)
            }
        }
    }

    /// Returns whether this is still the live file and `offset` is its end.
    fn is_at_live_end(&self, names: &Names, offset: u64) -> bool {
        self.segment.kind == Kind::Live
            && offset >= self.segment.start
            && fs::metadata(&names.live).is_ok_and(|meta| {
                // A smaller file was truncated: its start must be looked up again.
                FileId::of(&meta) == self.segment.id && meta.len() == offset - self.segment.start
            })
    }
}

impl Body {
    fn gzip(file: File, start: u64) -> Self {
        Self::Gzip {
            decoder: Box::new(MultiGzDecoder::new(BufReader::with_capacity(BLOCK, file))),
            at: start,
        }
    }
}
