//! The sweep over all task logs of a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::compress;
use crate::error::Error;
use crate::names::{self, Names, mtime_ns};
use crate::stream::Stream;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// Files removed.
    pub files_removed: u64,
    /// Bytes that these took.
    pub bytes_removed: u64,
    /// Folders removed: attempts, and the tasks and jobs that became empty.
    pub dirs_removed: u64,
    /// What could not be looked at or removed; the sweep went on, and the next one tries again.
    pub errors: Vec<Error>,
}

/// Sweeps the tree `<logs>/<job>/<task>/<attempt>/` by age.
///
/// - Rotated files whose last byte is older than `age_max` are removed, in live attempts too.
/// - An attempt that `is_live` does not name, and in which every file is older than `age_max`, the
///   live files included, is removed whole; one with a folder inside is not touched. Its task and
///   its job go with their last one.
/// - Rotated files of attempts that are not live and that a killed process left uncompressed are
///   compressed in the background.
///
/// `is_live` gets the attempt's folder, and must be true for one that a writer has open or may
/// open. `now` is the wall clock's time; give a later one only in tests. Blocks for as long as the
/// file system takes: not for an async thread.
pub fn prune(
    logs: &Path,
    age_max: Duration,
    now: SystemTime,
    mut is_live: impl FnMut(&Path) -> bool,
) -> PruneReport {
    let mut sweep = Sweep { age_max, now, report: PruneReport::default() };
    for job in sweep.dirs(logs) {
        let before = sweep.removed();
        for task in sweep.dirs(&job) {
            let before = sweep.removed();
            for attempt in sweep.dirs(&task) {
                sweep.attempt(&attempt, is_live(&attempt));
            }
            sweep.remove_if_empty(&task, before);
        }
        sweep.remove_if_empty(&job, before);
    }
    sweep.report
}

struct Sweep {
    age_max: Duration,
    now: SystemTime,
    report: PruneReport,
}

impl Sweep {
    fn removed(&self) -> u64 {
        self.report.files_removed + self.report.dirs_removed
    }

    fn attempt(&mut self, dir: &Path, live: bool) {
        let before = self.removed();
        let mut files = Vec::new();
        let mut all_old = true;
        for path in self.entries(dir) {
            let Some(meta) = self.note("look at", &path, fs::symlink_metadata(&path)) else {
                all_old = false;
                continue;
            };
            let old = !meta.is_dir() && names::is_older(mtime_ns(&meta), self.age_max, self.now);
            all_old &= old;
            files.push((path, meta.len(), old));
        }
        let whole = all_old && !live && !files.is_empty();
        let mut pending = Vec::new();
        for (path, len, old) in files {
            let Some(name) = path.file_name() else { continue };
            if whole || (old && names::is_rotated(name)) {
                if self.note("remove", &path, fs::remove_file(&path)).is_some() {
                    self.report.files_removed += 1;
                    self.report.bytes_removed += len;
                }
            } else if !live
                && let Some(stream) = names::stream_of_pending(name)
                && !pending.iter().any(|known| known == stream)
            {
                pending.push(stream.to_owned());
            }
        }
        for stream in pending {
            // A name that cannot be a stream's was not written by a writer.
            if let Ok(names) = Names::new(dir.to_owned(), &stream) {
                match Stream::attach(&names) {
                    Ok(stream) => compress::enqueue(&stream),
                    Err(error) => self.report.errors.push(error),
                }
            }
        }
        if !live {
            self.remove_if_empty(dir, before);
        }
    }

    /// Removes a folder if it is empty, and became so in this sweep (`removed` has grown since
    /// `before`) or longer ago than `age_max`: another one may be about to get its first file.
    fn remove_if_empty(&mut self, dir: &Path, before: u64) {
        let Ok(meta) = fs::symlink_metadata(dir) else { return };
        if self.removed() == before && !names::is_older(mtime_ns(&meta), self.age_max, self.now) {
            return;
        }
        match fs::remove_dir(dir) {
            Ok(()) => self.report.dirs_removed += 1,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                ) => {}
            Err(error) => self.report.errors.push(Error::io("remove", dir)(error)),
        }
    }

    fn dirs(&mut self, dir: &Path) -> Vec<PathBuf> {
        let mut entries = self.entries(dir);
        entries.retain(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()));
        entries
    }

    fn entries(&mut self, dir: &Path) -> Vec<PathBuf> {
        let listed =
            fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        self.note("list", dir, listed).unwrap_or_default()
    }

    /// Keeps an error for the report; what is gone already is none.
    fn note<T>(&mut self, doing: &'static str, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.report.errors.push(Error::io(doing, path)(error));
                }
                None
            }
        }
    }
}
