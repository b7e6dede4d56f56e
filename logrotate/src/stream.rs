//! What the writer of a stream and the compressor share: one lock per stream and process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, UNIX_EPOCH};

use crate::error::Error;
use crate::failpoint::{self, Step};
use crate::gzip;
use crate::layout::{self, Segment};
use crate::names::{self, FILE_MODE, FileId, Kind, Names};
use crate::policy::RotationPolicy;
use crate::rotate;

/// A stream that has, or had, more than its live file.
#[derive(Debug)]
pub(crate) struct Stream {
    key: PathBuf,
    pub(crate) names: Names,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The file that a writer has open: never compressed, whatever its name.
    pub(crate) active: Option<FileId>,
    /// Waits in the compressor's queue.
    pub(crate) queued: bool,
    /// By which files may go: the writer's, while the index says where its live file begins, which
    /// else only the newest rotated file tells. A stream found by a sweep has none and keeps what
    /// it has.
    pub(crate) policy: Option<RotationPolicy>,
}

/// Held while the numbered files change: nobody else in this process or in another one changes
/// them. A process that was told to end may still finish a compression while the next one writes.
pub(crate) struct Exclusive<'a> {
    pub(crate) state: MutexGuard<'a, State>,
    /// The folder, locked. `None` where the file system knows no locks.
    _dir: Option<File>,
}

fn registry() -> &'static Mutex<HashMap<PathBuf, Weak<Stream>>> {
    static STREAMS: OnceLock<Mutex<HashMap<PathBuf, Weak<Stream>>>> = OnceLock::new();
    STREAMS.get_or_init(Mutex::default)
}

/// A panic elsewhere must not stop the logs: each change under the lock is safe on disk by itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// The one `Stream` of these files in this process. The folder must exist.
    pub(crate) fn attach(names: &Names) -> Result<Arc<Self>, Error> {
        let dir = fs::canonicalize(&names.dir).map_err(Error::io("look up", &names.dir))?;
        let key = dir.join(names.name());
        let mut streams = lock(registry());
        if let Some(stream) = streams.get(&key).and_then(Weak::upgrade) {
            return Ok(stream);
        }
        let stream =
            Arc::new(Self { key: key.clone(), names: names.clone(), state: Mutex::default() });
        streams.insert(key, Arc::downgrade(&stream));
        Ok(stream)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for whoever changes the numbered files; never for a compression.
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

    /// Removes what a crash left half-written.
    pub(crate) fn remove_leftovers(&self, _: &Exclusive<'_>) -> Result<(), Error> {
        for file in self.names.list()? {
            let is_copy = file.path == self.names.gz_tmp();
            if file.kind == Kind::Temporary && (!is_copy || self.begin_copy()?.is_some()) {
                names::remove(&file.path)?;
            }
        }
        Ok(())
    }

    /// Opens the unfinished copy, empty; `None` when somebody is at work on it.
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

    /// Compresses the oldest plain rotated file; `false` when there is none, or when it changed
    /// meanwhile.
    ///
    /// Others may change the files while it compresses. On disk: the copy is written and synced under a
    /// hidden name, named, and only then its source is removed; so at any time each byte is in a
    /// whole file.
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
        // Locked until it has its place or is gone.
        drop(target);
        done
    }

    fn next_to_compress(&self, state: &State) -> Result<Option<(Segment, File)>, Error> {
        let layout = layout::scan(&self.names)?;
        let is_plain = |segment: &&Segment| {
            matches!(segment.kind, Kind::Numbered { gz: false, .. })
                && state.active != Some(segment.id)
        };
        let Some(segment) = layout.segments.iter().find(is_plain) else { return Ok(None) };
        let source = File::open(&segment.path).map_err(Error::io("open", &segment.path))?;
        Ok(Some((segment.clone(), source)))
    }

    /// Puts the finished copy in the place of its source; `false` when that was removed, cut or
    /// written to meanwhile, so that the copy is of no use.
    fn put_in_place(&self, state: &State, segment: &Segment) -> Result<bool, Error> {
        // Somebody else's rotation may have left a `.gz` of the same number.
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
        failpoint::hit(Step::GzNamed, &gz)?;
        names::remove(&plain)?;
        if let Some(policy) = &state.policy {
            rotate::forget(&self.names, policy, state.active)?;
        }
        Ok(true)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = lock(registry());
        // Another one may have been made since the last `Arc` of this one went.
        if streams.get(&self.key).is_some_and(|stream| stream.strong_count() == 0) {
            streams.remove(&self.key);
        }
    }
}

fn write_copy(tmp: &Path, target: &File, mut source: File, segment: &Segment) -> Result<(), Error> {
    let begun = || failpoint::hit(Step::GzBegun, tmp).map_err(io::Error::from);
    gzip::compress(&mut source, target, segment.start, segment.len, begun)
        .map_err(Error::io("compress into", tmp))?;
    // Its age is that of its bytes.
    target
        .set_modified(UNIX_EPOCH + Duration::from_nanos(segment.mtime_ns))
        // The source goes right after: the copy must outlive a power cut.
        .and_then(|()| target.sync_all())
        .map_err(Error::io("finish", tmp))?;
    failpoint::hit(Step::GzWritten, tmp)
}
