//! What the writer of a stream and the compressor share: one lock per stream and process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
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

/// Held while the numbered files change.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The file that a writer has open: never compressed, whatever its name.
    pub(crate) active: Option<FileId>,
    /// Waits in the compressor's queue.
    pub(crate) queued: bool,
    compressing: bool,
    /// By which files may go: the writer's, while the index says where its live file begins, which
    /// else only the newest rotated file tells. A stream found by a sweep has none and keeps what
    /// it has.
    pub(crate) policy: Option<RotationPolicy>,
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

    /// Removes what a crash left half-written. To be called with the lock held.
    pub(crate) fn remove_leftovers(&self, state: &State) -> Result<(), Error> {
        for file in self.names.list()? {
            let in_use = state.compressing && file.path == self.names.gz_tmp();
            if file.kind == Kind::Temporary && !in_use {
                names::remove(&file.path)?;
            }
        }
        Ok(())
    }

    /// Compresses the oldest plain rotated file; `false` when there is none, or when it changed
    /// meanwhile.
    ///
    /// The lock is not held while compressing. On disk: the copy is written and synced under a
    /// hidden name, named, and only then its source is removed; so at any time each byte is in a
    /// whole file.
    pub(crate) fn compress_one(&self) -> Result<bool, Error> {
        let (segment, source) = {
            let mut state = self.lock();
            if state.compressing {
                return Ok(false);
            }
            let Some(next) = self.next_to_compress(&state)? else { return Ok(false) };
            state.compressing = true;
            next
        };
        let tmp = self.names.gz_tmp();
        let written = write_copy(&tmp, source, &segment);
        let mut state = self.lock();
        state.compressing = false;
        let done = written.and_then(|()| self.put_in_place(&state, &segment));
        if !matches!(done, Ok(true)) && !failpoint::crashed() {
            names::remove(&tmp)?;
        }
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

fn write_copy(tmp: &std::path::Path, mut source: File, segment: &Segment) -> Result<(), Error> {
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(tmp)
        .map_err(Error::io("create", tmp))?;
    let begun = || failpoint::hit(Step::GzBegun, tmp).map_err(io::Error::from);
    let target = gzip::compress(&mut source, target, segment.start, segment.len, begun)
        .map_err(Error::io("compress into", tmp))?;
    // Its age is that of its bytes.
    target
        .set_modified(UNIX_EPOCH + Duration::from_nanos(segment.mtime_ns))
        // The source goes right after: the copy must outlive a power cut.
        .and_then(|()| target.sync_all())
        .map_err(Error::io("finish", tmp))?;
    failpoint::hit(Step::GzWritten, tmp)
}
