//! StreamState that the writer of a stream and the compressor share: one lock per stream and process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use crate::error::Error;
use crate::failpoint::{self, CrashPoint};
use crate::gzip;
use crate::layout::{self, Segment};
use crate::names::{self, FILE_MODE, FileId, Kind, Names};
use crate::policy::RotationPolicy;
use crate::rotate;

/// A stream that has, or had, more than one file.
#[derive(Debug)]
pub(crate) struct Stream {
    key: PathBuf,
    pub(crate) names: Names,
    state: Mutex<StreamState>,
}

#[derive(Debug, Default)]
pub(crate) struct StreamState {
    /// The file that a writer has open. It is never compressed, whatever its name.
    pub(crate) active: Option<FileId>,
    /// Whether the stream is in the compressor's queue.
    pub(crate) queued: bool,
    /// The policy by which files are deleted. It is set while the index records where the live file
    /// begins; before that, only the newest rotated file tells, so it must be kept. A stream that
    /// only a sweep opened has no policy and keeps all its files.
    pub(crate) policy: Option<RotationPolicy>,
}

/// Exclusive access to the numbered files, in this process and others. A process that was told to
/// exit may still finish a compression while its successor writes.
pub(crate) struct Exclusive<'a> {
    pub(crate) state: MutexGuard<'a, StreamState>,
    /// The locked folder. `None` if the file system does not support locks.
    _dir: Option<File>,
}

fn registry() -> &'static Mutex<HashMap<PathBuf, Weak<Stream>>> {
    static STREAMS: OnceLock<Mutex<HashMap<PathBuf, Weak<Stream>>>> = OnceLock::new();
    STREAMS.get_or_init(Mutex::default)
}

impl Stream {
    /// Returns the single `Stream` of these files in this process. The folder must exist.
    pub(crate) fn attach(names: &Names) -> Result<Arc<Self>, Error> {
        let dir = fs::canonicalize(&names.dir).map_err(Error::io("look up", &names.dir))?;
        let key = dir.join(names.name());
        let mut streams = registry().lock();
        if let Some(stream) = streams.get(&key).and_then(Weak::upgrade) {
            return Ok(stream);
        }
        let stream =
            Arc::new(Self { key: key.clone(), names: names.clone(), state: Mutex::default() });
        streams.insert(key, Arc::downgrade(&stream));
        Ok(stream)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock()
    }

    /// Waits for other changes to the numbered files, but never for a compression.
    pub(crate) fn exclusive(&self) -> Exclusive<'_> {
        let state = self.lock();
        let dir = File::open(&self.names.dir).and_then(|dir| {
            loop {
                match dir.lock() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    locked => return locked.map(|()| dir),
                }
            }
        });
        Exclusive { state, _dir: dir.ok() }
    }

    /// Removes half-written files that a crash left.
    pub(crate) fn remove_leftovers(&self, _: &Exclusive<'_>) -> Result<(), Error> {
        for file in self.names.list()? {
            let is_copy = file.path == self.names.gz_tmp();
            if file.kind == Kind::Temporary && (!is_copy || self.begin_copy()?.is_some()) {
                names::remove(&file.path)?;
            }
        }
        Ok(())
    }

    /// Opens the unfinished copy and empties it; `None` if another process is writing it.
    fn begin_copy(&self) -> Result<Option<File>, Error> {
        let tmp = self.names.gz_tmp();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&tmp)
            .map_err(Error::io("create", &tmp))?;
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Ok(None);
        }
        file.set_len(0).map_err(Error::io("empty", &tmp))?;
        Ok(Some(file))
    }

    /// Compresses the oldest plain rotated file. Returns `false` if there is none, or if it changed
    /// meanwhile.
    ///
    /// Others may change the files during the compression. The copy is written and synced under a
    /// hidden name, then renamed, and only then its source is removed. So each byte is in a
    /// complete file at any time.
    pub(crate) fn compress_one(&self) -> Result<bool, Error> {
        let held = self.exclusive();
        let Some((segment, source)) = self.next_to_compress(&held.state)? else { return Ok(false) };
        let Some(target) = self.begin_copy()? else { return Ok(false) };
        drop(held);
        let tmp = self.names.gz_tmp();
        let written = write_copy(&tmp, &target, source, &segment);
        let held = self.exclusive();
        let done = written.and_then(|()| self.put_in_place(&held.state, &segment));
        if !matches!(done, Ok(true)) && !failpoint::crashed() {
            names::remove(&tmp)?;
        }
        // Keeps the lock until the copy is renamed or removed.
        drop(target);
        done
    }

    fn next_to_compress(&self, state: &StreamState) -> Result<Option<(Segment, File)>, Error> {
        let layout = layout::scan(&self.names)?;
        let is_plain = |segment: &&Segment| {
            matches!(segment.kind, Kind::Numbered { gz: false, .. })
                && state.active != Some(segment.id)
        };
        let Some(segment) = layout.segments.iter().find(is_plain) else { return Ok(None) };
        let source = File::open(&segment.path).map_err(Error::io("open", &segment.path))?;
        Ok(Some((segment.clone(), source)))
    }

    /// Replaces the source by the finished copy. Returns `false` if the source was removed, cut or
    /// written to meanwhile, so that the copy is useless.
    fn put_in_place(&self, state: &StreamState, segment: &Segment) -> Result<bool, Error> {
        // A rotation by another program may have left a `.gz` with the same number.
        rotate::make_room(&self.names, 1)?;
        let source = self.names.list_numbered()?.into_iter().find_map(|file| {
            let Kind::Numbered { number, gz: false } = file.kind else { return None };
            let meta = fs::metadata(&file.path).ok()?;
            (FileId::of(&meta) == segment.id && meta.len() == segment.len)
                .then_some((number, file.path))
        });
        let Some((number, plain)) = source else { return Ok(false) };
        let gz = self.names.numbered(number, true);
        names::rename_new(&self.names.gz_tmp(), &gz).map_err(Error::io("name", &gz))?;
        failpoint::hit(CrashPoint::GzNamed, &gz)?;
        names::remove(&plain)?;
        if let Some(policy) = &state.policy {
            rotate::remove_excess(&self.names, policy, state.active)?;
        }
        Ok(true)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = registry().lock();
        // Another one may exist since the last `Arc` of this one was dropped.
        if streams.get(&self.key).is_some_and(|stream| stream.strong_count() == 0) {
            streams.remove(&self.key);
        }
    }
}

fn write_copy(tmp: &Path, target: &File, mut source: File, segment: &Segment) -> Result<(), Error> {
    let begun = || failpoint::hit(CrashPoint::GzBegun, tmp).map_err(io::Error::from);
    gzip::compress(&mut source, target, segment.start, segment.len, begun)
        .map_err(Error::io("compress into", tmp))?;
    // The copy gets the age of its content.
    target
        .set_modified(UNIX_EPOCH + Duration::from_nanos(segment.mtime_ns))
        // The source is removed next: the copy must survive a power failure.
        .and_then(|()| target.sync_all())
        .map_err(Error::io("finish", tmp))?;
    failpoint::hit(CrashPoint::GzWritten, tmp)
}
