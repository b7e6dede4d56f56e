//! Writing: append, rotate, and go on when somebody else rotated.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compress;
use crate::cursor::{self, Cursor};
use crate::error::{AppendError, Error};
use crate::failpoint::{self, Step};
use crate::index::Index;
use crate::layout::{self, Segment};
use crate::names::{self, DIR_MODE, FILE_MODE, FileId, Kind, Names, mtime_ns};
use crate::policy::RotationPolicy;
use crate::rotate;
use crate::stream::Stream;

/// How often, at most, a write looks whether somebody else has renamed, removed or truncated the live file. A
/// write that begins later than this after such a change goes to the new live file.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a folder that is removed while it is being made is made again.
const MKDIR_TRIES: u32 = 10;

/// Writes one stream to `<dir>/<name>.log` and rotates it by its [`RotationPolicy`].
///
/// Nothing is buffered: when a call returns, its bytes are in the file (in the system's cache; see
/// [`sync`](Self::sync)). Nothing is created before the first byte. Dropping the writer closes the
/// file and waits for nothing.
///
/// One writer at a time may have a stream open, in all processes together.
///
/// After an error the writer stays usable: call again, and it goes on where it stopped.
#[derive(Debug)]
pub struct LogWriter {
    names: Names,
    policy: RotationPolicy,
    /// The live file, once a byte is to be written.
    file: Option<File>,
    /// Logical offset of the first byte of the live file, existing or to be created.
    start: u64,
    /// Bytes in the live file.
    size: u64,
    /// Whether the next byte begins a line; `None` when that must be looked up.
    at_line_start: Option<bool>,
    index: Index,
    /// Whether `start` would be found again by a restart: the index says it, or it is 0 and needs no index.
    recorded: bool,
    /// Only for a stream that rotates, so that a short one costs nothing.
    stream: Option<Arc<Stream>>,
    checked: Instant,
    /// The files were changed half-way: what is said of them above must be found anew.
    unsure: bool,
}

impl LogWriter {
    /// Opens the stream `name` in the folder `dir`, to go on where it ended; neither needs to exist.
    ///
    /// Repairs what a killed process left: removes half-written files, and has a rotated file that is not yet
    /// compressed compressed in the background, from the first write on (so that
    /// [`truncate_to`](Self::truncate_to) can come before).
    ///
    /// # Errors
    /// [`Error::Name`] when `name` cannot be a file name, [`Error::Io`] when the folder cannot be read.
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

    /// The logical offset behind the last byte: how many bytes were ever written to the stream.
    ///
    /// It counts on over rotations, removed files and restarts, and never goes back, except by
    /// [`truncate_to`](Self::truncate_to). Bytes that somebody else appends to the live file count too.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.start + self.size
    }

    /// The live file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.names.live
    }

    /// Writes all of `bytes`, rotating as often as needed.
    ///
    /// # Errors
    /// Says how many bytes were taken. Those are in the log; give only the rest again.
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

    /// Says in the log itself that bytes were lost: the line `[podmesh: <message>]`, begun on a new line.
    /// Line breaks in `message` become spaces.
    ///
    /// # Errors
    /// As [`append`](Self::append); the count then is of the line's own bytes.
    pub fn gap(&mut self, message: &str) -> Result<(), AppendError> {
        let line_start = self.line_start().map_err(|source| AppendError { taken: 0, source })?;
        let message = message.replace(['\n', '\r'], " ");
        self.append(
            format!("{}[podmesh: {message}]\n", if line_start { "" } else { "\n" }).as_bytes(),
        )
    }

    /// Waits until all that was written is on the disk: it then outlives a power cut.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync_all().map_err(Error::io("sync", &self.names.live))?;
        let _state = self.stream.as_ref().map(|stream| stream.lock());
        for found in self.names.list_numbered()? {
            // A `.gz` was synced before its source went.
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

    /// Saves how far a capture has come in its source (`data`, at most [`CURSOR_BYTES_MAX`](crate::CURSOR_BYTES_MAX)
    /// bytes, opaque) together with [`offset`](Self::offset), both or neither.
    ///
    /// A stream without a byte saves nothing, as it creates nothing: begin its source anew. Each stream has its own
    /// cursor. A cursor is safe against a killed process; after a power cut it may be ahead of the log
    /// (`cursor.offset > offset()`) unless [`sync`](Self::sync) came before it.
    ///
    /// # Errors
    /// [`Error::CursorTooBig`], or [`Error::Io`]; the cursor saved before then stays.
    pub fn save_cursor(&mut self, data: &[u8]) -> Result<(), Error> {
        if data.len() > cursor::CURSOR_BYTES_MAX {
            return Err(Error::CursorTooBig { len: data.len() });
        }
        if self.offset() == 0 {
            return Ok(());
        }
        cursor::save(&self.names, self.offset(), data)
    }

    /// The cursor saved last, by whichever process.
    ///
    /// # Errors
    /// [`Error::CursorDamaged`] or [`Error::Io`].
    pub fn load_cursor(&self) -> Result<Option<Cursor>, Error> {
        cursor::load(&self.names)
    }

    /// Cuts off all bytes at and behind `offset`, such as a tail that was written after the last saved cursor.
    ///
    /// Works back to the oldest byte that is in the live file or in a rotated file that is not compressed.
    /// Behind that [`Error::TruncateCompressed`] is returned and nothing is changed: keep the tail, and skip as
    /// many bytes (`offset()` minus the cursor's) of what the source gives again. Best called right after
    /// [`open`](Self::open), which lets the compression wait for the first write. A crash half-way leaves a
    /// shorter tail; call again.
    ///
    /// # Errors
    /// [`Error::TruncateBeyondEnd`], [`Error::TruncateCompressed`], [`Error::Io`].
    pub fn truncate_to(&mut self, offset: u64) -> Result<(), Error> {
        let end = self.offset();
        if offset == end {
            return Ok(());
        }
        if offset > end {
            return Err(Error::TruncateBeyondEnd { path: self.names.live.clone(), offset, end });
        }
        if offset >= self.start {
            self.ready()?;
        }
        // Looked at again, since somebody else may have moved the live file away.
        if offset < self.start {
            return self.cut_rotated(offset, end);
        }
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(offset - self.start).map_err(Error::io("cut", &self.names.live))?;
        self.size = offset - self.start;
        self.at_line_start = None;
        Ok(())
    }

    /// Finds where the stream ends, and repairs.
    fn load(&mut self) -> Result<(), Error> {
        (self.file, self.start, self.size) = (None, 0, 0);
        (self.index, self.recorded, self.at_line_start) = (Index::default(), true, Some(true));
        self.unsure = true;
        self.find_end()?;
        self.unsure = false;
        Ok(())
    }

    fn find_end(&mut self) -> Result<(), Error> {
        let found = self.names.list()?;
        if found.is_empty() {
            return Ok(());
        }
        self.at_line_start = None;
        if let [only] = found.as_slice() {
            if only.kind == Kind::Live {
                let meta = fs::metadata(&only.path).map_err(Error::io("look at", &only.path))?;
                self.size = meta.len();
                return Ok(());
            }
        }
        let stream = Stream::attach(&self.names)?;
        let mut state = stream.lock();
        state.policy = None;
        stream.remove_leftovers(&state)?;
        let layout = layout::scan(&self.names)?;
        for double in &layout.doubles {
            let whole = |gz: &&Segment| gz.gz && gz.start == double.start && gz.len >= double.len;
            let is_plain = matches!(double.kind, Kind::Numbered { gz: false, .. });
            if is_plain && (double.len == 0 || layout.segments.iter().any(|gz| whole(&gz))) {
                names::remove(&double.path)?;
            }
        }
        self.index = layout.index.clone().unwrap_or_default();
        let mut news = false;
        for segment in layout.segments.iter().filter(|segment| segment.kind != Kind::Live) {
            // Renamed since the index was written, or never in it.
            let guessed = layout.guessed.iter().any(|guessed| guessed.id == segment.id);
            if guessed || self.index.is_live(segment.id) {
                self.index.close(segment.id, segment.start, segment.len, segment.mtime_ns, false);
                news = true;
            }
        }
        if let Some(live) = layout.live() {
            self.start = live.start;
            self.size = live.len;
            self.recorded =
                self.index.is_live(live.id) || (self.start == 0 && layout.index.is_none());
        } else {
            self.start = layout.end;
            if layout.segments.is_empty() && layout.index.is_none() {
                // All files are gone, and the cursor still knows how far they went.
                let cursor = cursor::load(&self.names).ok().flatten();
                self.start = cursor.map_or(0, |cursor| cursor.offset);
            }
            self.recorded = self.start == 0 && layout.index.is_none();
        }
        news |= self.index.end_cut(self.offset());
        let mut end_is_known = self.recorded;
        if news || !self.recorded {
            // Written down at once, before anything moves on. If it fails, the next write does it.
            match layout.segments.last() {
                Some(live) if live.kind == Kind::Live => self.index.set_live(live.id, live.start),
                Some(last) => self.index.close(last.id, last.start, last.len, last.mtime_ns, false),
                None => {}
            }
            end_is_known = self.index.save(&self.names).is_ok();
            self.recorded = end_is_known && layout.live().is_some();
        }
        if end_is_known {
            state.policy = Some(self.policy.clone());
            rotate::forget(&self.names, &self.policy, None)?;
        }
        drop(state);
        self.stream = Some(stream);
        Ok(())
    }

    /// Writes as much as goes into one file with one call, at least one byte of a `bytes` that is not empty.
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

    /// How much of `fitting`, which fills the file, goes in before the rotation: up to its last line break. A
    /// line that does not fit begins the next file, unless it began in this one or in an empty one.
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

    /// Has the right live file open.
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
        // What follows from a crash of this call or of an earlier process.
        if !self.recorded { self.record() } else { Ok(()) }
    }

    /// Opens or creates the live file, and its folder.
    fn open_live(&mut self) -> Result<(), Error> {
        let path = &self.names.live;
        let mut tries = 0;
        let file = loop {
            // Readable for the last byte of a stream that goes on.
            let opened =
                OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path);
            match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MKDIR_TRIES => {
                    tries += 1;
                    match DirBuilder::new().recursive(true).mode(DIR_MODE).create(&self.names.dir) {
                        // A sweep removed an empty parent between two steps.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        made => made.map_err(Error::io("create", &self.names.dir))?,
                    }
                }
                opened => break opened.map_err(Error::io("open", path))?,
            }
        };
        let meta = file.metadata().map_err(Error::io("look at", path))?;
        if meta.len() < self.size {
            // Rotated by somebody else since we looked, before we had it open: look again where to go on.
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

    /// Takes over the size of the live file as it is. A smaller one was cut by somebody else: what
    /// was written stays counted, the file now begins later.
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

    /// Writes down where the live file begins, before it gets a byte that could not be found without, and
    /// before a file goes from which that could be told.
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
        let mut state = stream.lock();
        state.policy = Some(self.policy.clone());
        rotate::forget(&self.names, &self.policy, state.active)
    }

    /// Lets the next write look whether somebody else rotated.
    #[cfg(test)]
    pub(crate) fn look_at_next_write(&mut self) {
        self.checked = Instant::now().checked_sub(CHECK_INTERVAL).unwrap_or(self.checked);
    }

    /// Looks whether somebody else rotated. If the live file has another name, or none, what was written
    /// there stays there, and the next byte goes to a new file of the live name.
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
            // It may have got a number, so that compressing it falls to us. The folder may be gone as well.
            self.stream = Stream::attach(&self.names).ok().or(self.stream.take());
        }
        Ok(())
    }

    /// The live file has got its last byte; the next live file begins behind it.
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

    /// Makes the live file `.1` and begins a new one.
    ///
    /// On disk, in this order: the numbered files move up; the live file becomes `.1`; a new live file is made; the
    /// index is replaced; the oldest files go. Between any two, a restart finds every byte at its offset: a
    /// file that the index does not know follows the last one that it knows, and an empty file counts for nothing.
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
        let mut state = stream.lock();
        state.active = Some(FileId::of(&meta));
        state.policy = None;
        rotate::make_room(&self.names, 2)?;
        let first = self.names.numbered(1, false);
        match names::rename_new(&self.names.live, &first) {
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(self.checked = Instant::now());
            }
            renamed => renamed.map_err(Error::io("rename", &self.names.live))?,
        }
        drop(state);
        self.leave(&meta, true);
        failpoint::hit(Step::LiveMoved, &first)?;
        self.open_live()?;
        failpoint::hit(Step::LiveCreated, &self.names.live)?;
        self.record()
    }

    /// Makes the plain rotated file that holds `offset` the live file again, and removes all newer ones.
    fn cut_rotated(&mut self, offset: u64, end: u64) -> Result<(), Error> {
        let stream = Stream::attach(&self.names)?;
        let state = stream.lock();
        let layout = layout::scan(&self.names)?;
        let held = layout
            .segments
            .iter()
            .rposition(|segment| segment.start <= offset && offset <= segment.end());
        let is_plain = |segment: &Segment| {
            matches!(segment.kind, Kind::Numbered { gz: false, .. } | Kind::Live)
        };
        let cut = held.map(|at| layout.segments.split_at(at + 1).1);
        let target = held.map(|at| &layout.segments[at]).filter(|target| is_plain(target));
        let (Some(target), Some(newer)) = (target, cut.filter(|newer| newer.iter().all(is_plain)))
        else {
            return Err(Error::TruncateCompressed { path: self.names.live.clone(), offset, end });
        };
        let cut = self.cut_files(offset, target, newer);
        drop(state);
        self.stream = Some(stream);
        // On failure the stream is a shorter one by now; only the files say how long.
        let loaded = self.load();
        cut.and(loaded)
    }

    fn cut_files(&mut self, offset: u64, target: &Segment, newer: &[Segment]) -> Result<(), Error> {
        // The index first, or it would say later that the stream was longer. Then the newest file first, so that
        // at any time what is left has no hole.
        self.index.begin_cut(offset);
        self.index.save(&self.names)?;
        for segment in newer.iter().rev() {
            failpoint::hit(Step::Cutting, &segment.path)?;
            // A reader that has it open must not go on with bytes that never were.
            set_len(&segment.path, 0)?;
            failpoint::hit(Step::Cutting, &segment.path)?;
            names::remove(&segment.path)?;
        }
        self.index.set_live(target.id, target.start);
        self.index.save(&self.names)?;
        failpoint::hit(Step::Cutting, &target.path)?;
        set_len(&target.path, offset - target.start)?;
        failpoint::hit(Step::Cutting, &target.path)?;
        if target.path == self.names.live {
            return Ok(());
        }
        names::rename_new(&target.path, &self.names.live).map_err(Error::io("rename", &target.path))
    }
}

fn set_len(path: &Path, len: u64) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(len)).map_err(Error::io("cut", path))
}

impl Write for LogWriter {
    /// Writes at least one byte of a `bytes` that is not empty, and rotates before it when it must.
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
