//! Writing: append, rotate, and continue after a rotation by another program.

mod cut;
mod load;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compress;
use crate::cursor::{self, Cursor};
use crate::error::{AppendError, Error};
use crate::failpoint::{self, CrashPoint};
use crate::index::Index;
use crate::names::{self, DIR_MODE, FILE_MODE, FileId, Kind, Names, mtime_ns};
use crate::policy::RotationPolicy;
use crate::rotate;
use crate::stream::Stream;

/// How often a write checks whether another program has renamed, removed or truncated the live
/// file. A write that begins later than this after such a change goes to the new live file.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How many times a folder that is removed while it is being created is created again.
const MKDIR_TRIES: u32 = 10;

/// Writes one stream to `<dir>/<name>.log` and rotates it by its [`RotationPolicy`].
///
/// Nothing is buffered: when a call returns, its bytes are in the file (in the page cache; see
/// [`sync`](Self::sync)). Nothing is created before the first byte. Dropping the writer closes the
/// file and does not block.
///
/// A stream must have only one writer at a time, across all processes.
///
/// After an error the writer stays usable: the next call continues where it stopped.
#[derive(Debug)]
pub struct LogWriter {
    names: Names,
    policy: RotationPolicy,
    /// The live file; opened at the first write.
    file: Option<File>,
    /// The logical offset of the first byte of the live file, which may not exist yet.
    start: u64,
    /// Bytes in the live file.
    size: u64,
    /// Whether the next byte begins a line; `None` if unknown.
    at_line_start: Option<bool>,
    index: Index,
    /// Whether a restart would find `start` again: the index contains it, or it is 0 and needs no
    /// index.
    recorded: bool,
    /// Only for a stream that rotates, so that a short one costs nothing.
    stream: Option<Arc<Stream>>,
    checked: Instant,
    /// A change of the files was interrupted: the state above must be loaded again.
    unsure: bool,
}

impl LogWriter {
    /// Opens the stream `name` in the folder `dir` and continues at its end; neither needs to
    /// exist.
    ///
    /// Repairs what a killed process left: removes half-written files at once, and queues
    /// uncompressed rotated files for compression at the first write (so that
    /// [`truncate_to`](Self::truncate_to) can be called before).
    ///
    /// # Errors
    /// [`Error::Name`] if `name` is not a valid file name, [`Error::Io`] if the folder cannot be
    /// read.
    pub fn open(
        dir: impl Into<PathBuf>,
        name: &str,
        policy: RotationPolicy,
    ) -> Result<Self, Error> {
        let mut writer = Self {
            names: Names::new(dir.into(), name)?,
            policy: policy.normalised(),
            file: None,
            start: 0,
            size: 0,
            at_line_start: Some(true),
            index: Index::default(),
            recorded: true,
            stream: None,
            checked: Instant::now(),
            unsure: false,
        };
        writer.load()?;
        Ok(writer)
    }

    /// Returns the logical offset after the last byte: the number of bytes ever written to the
    /// stream.
    ///
    /// Rotations, removed files and restarts do not change it, and only
    /// [`truncate_to`](Self::truncate_to) lowers it. Bytes that another program appends to the live
    /// file are counted too.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.start + self.size
    }

    /// Returns the path of the live file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.names.live
    }

    /// Writes all of `bytes` and rotates as often as needed.
    ///
    /// # Errors
    /// The error contains the number of bytes taken. Those are in the log; retry only the rest.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.write_some(&bytes[taken..]) {
                Ok(n) => taken += n,
                Err(source) => return Err(AppendError { taken, source }),
            }
        }
        Ok(())
    }

    /// Marks lost bytes in the log itself with the line `[podmesh: <message>]`, on a line of its
    /// own. Line breaks in `message` become spaces.
    ///
    /// # Errors
    /// See [`append`](Self::append); the count is of the bytes of this line.
    pub fn gap(&mut self, message: &str) -> Result<(), AppendError> {
        let line_start = self.line_start().map_err(|source| AppendError { taken: 0, source })?;
        let message = message.replace(['\n', '\r'], " ");
        self.append(
            format!("{}[podmesh: {message}]\n", if line_start { "" } else { "\n" }).as_bytes(),
        )
    }

    /// Waits until all written bytes are on the disk and so survive a power failure.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk reports an error.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync_all().map_err(Error::io("sync", &self.names.live))?;
        let _held = self.stream.as_ref().map(|stream| stream.exclusive());
        for found in self.names.list_numbered()? {
            // A `.gz` was synced before its source was removed.
            if matches!(found.kind, Kind::Numbered { gz: false, .. }) {
                File::open(&found.path)
                    .and_then(|file| file.sync_all())
                    .map_err(Error::io("sync", &found.path))?;
            }
        }
        File::open(&self.names.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync", &self.names.dir))
    }

    /// Saves how far a capture has read its source (`data`, opaque, at most
    /// [`CURSOR_BYTES_MAX`](crate::CURSOR_BYTES_MAX) bytes) together with [`offset`](Self::offset),
    /// atomically.
    ///
    /// For a stream without bytes nothing is saved, because nothing is created: read its source
    /// from the beginning. Each stream has its own cursor. A cursor survives a killed process.
    /// After a power failure it may be ahead of the log (`cursor.offset > offset()`) unless
    /// [`sync`](Self::sync) was called before it was saved.
    ///
    /// # Errors
    /// [`Error::CursorTooBig`], or [`Error::Io`]; the previous cursor is then kept.
    pub fn save_cursor(&mut self, data: &[u8]) -> Result<(), Error> {
        if data.len() > cursor::CURSOR_BYTES_MAX {
            return Err(Error::CursorTooBig { len: data.len() });
        }
        if self.offset() == 0 {
            return Ok(());
        }
        cursor::save(&self.names, self.offset(), data)
    }

    /// Returns the cursor that any process saved last.
    ///
    /// # Errors
    /// [`Error::CursorDamaged`] or [`Error::Io`].
    pub fn load_cursor(&self) -> Result<Option<Cursor>, Error> {
        cursor::load(&self.names)
    }

    /// Writes as much as fits into one file with one call; at least one byte, unless `bytes` is
    /// empty.
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.ready()?;
        let take = loop {
            let room = self.policy.file_bytes_max.saturating_sub(self.size);
            let take = match usize::try_from(room) {
                Ok(room) if room < bytes.len() => self.cut(&bytes[..room])?,
                _ => bytes.len(),
            };
            if take > 0 {
                break take;
            }
            self.rotate()?;
            self.ready()?;
        };
        let Some(file) = &mut self.file else {
            return Err(Error::io("write to", &self.names.live)(io::ErrorKind::NotFound.into()));
        };
        let n = loop {
            match file.write(&bytes[..take]) {
                Ok(0) => {
                    return Err(Error::io("write to", &self.names.live)(
                        io::ErrorKind::WriteZero.into(),
                    ));
                }
                Ok(n) => break n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("write to", &self.names.live)(error)),
            }
        };
        self.size += n as u64;
        self.at_line_start = Some(bytes[n - 1] == b'\n');
        Ok(n)
    }

    /// Returns how much of `fitting`, which fills the file, is written before the rotation: up to
    /// its last line break. A line that does not fit begins the next file, unless it began in this
    /// file or this file is empty.
    fn cut(&mut self, fitting: &[u8]) -> Result<usize, Error> {
        if let Some(at) = fitting.iter().rposition(|byte| *byte == b'\n') {
            return Ok(at + 1);
        }
        Ok(if self.size > 0 && self.line_start()? { 0 } else { fitting.len() })
    }

    fn line_start(&mut self) -> Result<bool, Error> {
        if let Some(known) = self.at_line_start {
            return Ok(known);
        }
        self.ready()?;
        let mut last = [0];
        let known = match &self.file {
            // Nothing in this file: the last byte is in a rotated one and may not end a line.
            Some(file) if self.size > 0 => {
                let read = file.read_exact_at(&mut last, self.size - 1);
                read.map_err(Error::io("read", &self.names.live))?;
                last == *b"\n"
            }
            _ => self.offset() == 0,
        };
        self.at_line_start = Some(known);
        Ok(known)
    }

    /// Ensures that the current live file is open.
    fn ready(&mut self) -> Result<(), Error> {
        if self.unsure {
            self.load()?;
        }
        if self.file.is_some() && self.checked.elapsed() >= CHECK_INTERVAL {
            self.look()?;
        }
        if self.file.is_none() {
            self.open_live()?;
        }
        // Needed after an interrupted call, or after the crash of an earlier process.
        if !self.recorded { self.record() } else { Ok(()) }
    }

    /// Opens or creates the live file, and its folder.
    fn open_live(&mut self) -> Result<(), Error> {
        let path = &self.names.live;
        let mut tries = 0;
        let file = loop {
            // Readable, to check the last byte of an existing stream.
            let opened =
                OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path);
            match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MKDIR_TRIES => {
                    tries += 1;
                    match DirBuilder::new().recursive(true).mode(DIR_MODE).create(&self.names.dir) {
                        // A sweep removed an empty parent in between.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        made => made.map_err(Error::io("create", &self.names.dir))?,
                    }
                }
                opened => break opened.map_err(Error::io("open", path))?,
            }
        };
        let meta = file.metadata().map_err(Error::io("look at", path))?;
        if meta.len() < self.size {
            // Another program rotated after our last check and before we opened the file: find the
            // end again.
            let end = self.offset();
            self.load()?;
            if self.offset() < end {
                self.start += end - self.offset();
                self.recorded = false;
            }
        }
        self.follow_size(meta.len());
        if self.start > 0 || !self.index.is_empty() {
            self.recorded &= self.index.is_live(FileId::of(&meta));
        }
        self.file = Some(file);
        self.checked = Instant::now();
        if let Some(stream) = &self.stream {
            stream.lock().active = Some(FileId::of(&meta));
            compress::enqueue(stream);
        }
        Ok(())
    }

    /// Adopts the current size of the live file. If it is smaller, another program truncated it:
    /// the bytes written before stay counted, and the file now begins at a higher offset.
    fn follow_size(&mut self, size: u64) {
        if size < self.size {
            self.start = self.offset() - size;
            self.recorded = false;
        }
        if size != self.size {
            self.size = size;
            self.at_line_start = None;
        }
    }

    /// Records in the index where the live file begins. This happens before the file gets a byte
    /// whose offset depends on the index, and before a file is removed from which the offset could
    /// be derived.
    fn record(&mut self) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let meta = file.metadata().map_err(Error::io("look at", &self.names.live))?;
        self.index.set_live(FileId::of(&meta), self.start);
        let plain: Vec<_> = self
            .names
            .list()?
            .iter()
            .filter(|found| {
                matches!(found.kind, Kind::Numbered { gz: false, .. } | Kind::Dated { gz: false })
            })
            .filter_map(|found| fs::metadata(&found.path).ok().map(|meta| FileId::of(&meta)))
            .collect();
        self.index.forget(&plain);
        self.index.save(&self.names)?;
        self.recorded = true;
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut held = stream.exclusive();
        held.state.policy = Some(self.policy.clone());
        rotate::remove_excess(&self.names, &self.policy, held.state.active)
    }

    /// Makes the next write check for a rotation by another program.
    #[cfg(test)]
    pub(crate) fn look_at_next_write(&mut self) {
        self.checked = Instant::now().checked_sub(CHECK_INTERVAL).unwrap_or(self.checked);
    }

    /// Checks whether another program rotated. If the live file has another name, or none, the
    /// bytes written there stay there, and the next byte goes to a new live file.
    fn look(&mut self) -> Result<(), Error> {
        let path = &self.names.live;
        let Some(file) = &self.file else { return Ok(()) };
        let ours = file.metadata().map_err(Error::io("look at", path))?;
        let moved = match fs::metadata(path) {
            Ok(theirs) => (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(Error::io("look at", path)(error)),
        };
        self.checked = Instant::now();
        self.follow_size(ours.len());
        if moved {
            self.leave(&ours, false);
            // It may have a number now, so that we must compress it. The folder may be gone as
            // well.
            self.stream = Stream::attach(&self.names).ok().or(self.stream.take());
        }
        Ok(())
    }

    /// Closes the live file; the next one begins after it.
    fn leave(&mut self, meta: &fs::Metadata, by_us: bool) {
        if self.size > 0 {
            self.index.close(FileId::of(meta), self.start, self.size, mtime_ns(meta), by_us);
        }
        self.start += self.size;
        self.size = 0;
        self.file = None;
        self.recorded = false;
        if let Some(stream) = &self.stream {
            stream.lock().policy = None;
        }
    }

    /// Renames the live file to `.1` and begins a new one.
    ///
    /// The order on disk: the numbered files move up; the live file becomes `.1`; a new live file
    /// is created; the index is replaced; the oldest files are removed. After a crash between any
    /// two of these a restart finds every byte at its offset: a file that is missing in the index
    /// follows the last one in it, and an empty file is ignored.
    fn rotate(&mut self) -> Result<(), Error> {
        self.look()?;
        let Some(file) = &self.file else { return Ok(()) };
        if self.size == 0 {
            return Ok(());
        }
        let meta = file.metadata().map_err(Error::io("look at", &self.names.live))?;
        let stream = match &self.stream {
            Some(stream) => Arc::clone(stream),
            None => Arc::clone(self.stream.insert(Stream::attach(&self.names)?)),
        };
        let mut held = stream.exclusive();
        held.state.active = Some(FileId::of(&meta));
        held.state.policy = None;
        rotate::make_room(&self.names, 2)?;
        let first = self.names.numbered(1, false);
        match names::rename_new(&self.names.live, &first) {
            // Another program renamed it first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(Error::io("rename", &self.names.live))?,
        }
        drop(held);
        self.leave(&meta, true);
        failpoint::hit(CrashPoint::LiveMoved, &first)?;
        self.open_live()?;
        failpoint::hit(CrashPoint::LiveCreated, &self.names.live)?;
        self.record()
    }
}

impl Write for LogWriter {
    /// Writes at least one byte, unless `bytes` is empty. Rotates first if necessary.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.write_some(bytes)?)
    }

    /// Does nothing: there is no buffer.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if failpoint::crashed() {
            return;
        }
        if let Some(stream) = self.stream.take() {
            stream.lock().active = None;
            compress::enqueue(&stream);
        }
    }
}
