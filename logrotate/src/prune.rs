//! Removes old task logs of a node.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::compress;
use crate::error::Error;
use crate::names::{self, Names, mtime_ns};
use crate::stream::Stream;

/// Attempts that changed within this time before a sweep, or during it, are not removed for size:
/// they may have started after the caller listed the live ones.
const RECENT: Duration = Duration::from_secs(1);
/// Attempts are ordered by the minute in which they ended.
const MINUTE_NS: u64 = 60_000_000_000;
/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// What a sweep may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneLimits {
    /// Files whose last byte is older are removed.
    pub age_max: Duration,
    /// Bytes on disk that the whole tree may take. If it takes more, attempts are removed until it
    /// takes a tenth less than this, so that not every new attempt needs a sweep.
    pub bytes_max: u64,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// Files removed.
    pub files_removed: u64,
    /// Bytes freed by that.
    pub bytes_removed: u64,
    /// Folders removed: attempts, and the tasks and jobs that became empty.
    pub dirs_removed: u64,
    /// Attempts removed because the tree was too large.
    pub attempts_removed_for_size: u64,
    /// The highest job number of the attempts that were removed.
    pub job_removed_max: Option<u64>,
    /// Bytes on disk that the tree takes after the sweep.
    pub bytes_kept: u64,
    /// Files that could not be read or removed. The sweep continued, and the next one tries again.
    pub errors: Vec<Error>,
}

/// Sweeps the tree `<logs>/<job>/<task>/<attempt>/` by age and size.
///
/// - Rotated files whose last byte is older than the age limit are removed, also in live attempts.
/// - An attempt that is not live according to `is_live`, and whose files are all older than the age
///   limit (the live files included), is removed completely, unless it contains a folder. Tasks and
///   jobs are removed with their last attempt.
/// - If the tree is larger than the size limit, attempts that are not live are removed completely,
///   those that ended first before others. An attempt's end is the last change of its folder or of a
///   file in it, to the minute.
/// - Rotated files that a killed process left uncompressed, in attempts that are not live, are
///   compressed in the background.
///
/// The tree is walked once, and a second time if it is too large. Memory use does not depend on the
/// size of the tree.
///
/// `is_live` gets the attempt's folder, and must return true if a writer has it open or may open
/// it. `now` is the current time, from a clock that does not jump forward. The call blocks on the
/// file system: do not call it from async code.
pub fn prune(
    logs: &Path,
    limits: PruneLimits,
    now: SystemTime,
    mut is_live: impl FnMut(&Path) -> bool,
) -> PruneReport {
    let began = SystemTime::now();
    let mut sweep = Sweep { age_max: limits.age_max, now, began, report: PruneReport::default() };
    let mut minutes = Minutes::default();
    sweep.walk(logs, &mut is_live, |sweep, attempt| {
        let kept = sweep.remove_old(attempt);
        sweep.report.bytes_kept += kept;
        if kept > 0 && sweep.may_go(attempt) {
            *minutes.0.entry(attempt.minute()).or_default() += kept;
        }
    });
    let goal = limits.bytes_max - limits.bytes_max / 10;
    if sweep.report.bytes_kept > limits.bytes_max {
        let mut last = minutes.oldest(sweep.report.bytes_kept - goal);
        sweep.walk(logs, &mut is_live, |sweep, attempt| {
            if sweep.may_go(attempt) && last.takes(attempt) {
                let freed = sweep.remove_whole(attempt);
                last.freed(attempt, freed);
                sweep.report.bytes_kept = sweep.report.bytes_kept.saturating_sub(freed);
                sweep.report.attempts_removed_for_size += u64::from(freed > 0);
            }
        });
    }
    sweep.report
}

/// Bytes of the attempts that may be removed, by the minute of their end.
#[derive(Default)]
struct Minutes(BTreeMap<u64, u64>);

impl Minutes {
    /// Returns which attempts to remove to free `need` bytes.
    fn oldest(self, mut need: u64) -> Oldest {
        for (minute, bytes) in self.0 {
            if bytes >= need {
                return Oldest { minute, need };
            }
            need -= bytes;
        }
        Oldest { minute: u64::MAX, need: 0 }
    }
}

/// The attempts to remove: all that ended before a minute, and as many of that minute as needed.
struct Oldest {
    minute: u64,
    need: u64,
}

impl Oldest {
    fn takes(&self, attempt: &Attempt) -> bool {
        let minute = attempt.minute();
        minute < self.minute || (minute == self.minute && self.need > 0)
    }

    fn freed(&mut self, attempt: &Attempt, bytes: u64) {
        if attempt.minute() == self.minute {
            self.need = self.need.saturating_sub(bytes);
        }
    }
}

/// An attempt's folder and its contents, as the sweep found them.
struct Attempt {
    dir: PathBuf,
    meta: Metadata,
    live: bool,
    files: Vec<(PathBuf, Metadata)>,
    /// Whether it contains only files, and all of them could be examined.
    plain: bool,
}

impl Attempt {
    /// The time of its last change.
    fn changed_ns(&self) -> u64 {
        let files = self.files.iter().map(|(_, meta)| mtime_ns(meta));
        files.chain([mtime_ns(&self.meta)]).max().unwrap_or_default()
    }

    fn minute(&self) -> u64 {
        self.changed_ns() / MINUTE_NS
    }
}

fn on_disk(meta: &Metadata) -> u64 {
    meta.blocks() * BLOCK_BYTES
}

struct Sweep {
    age_max: Duration,
    now: SystemTime,
    /// The start of the sweep, by the clock that file times come from.
    began: SystemTime,
    report: PruneReport,
}

impl Sweep {
    fn walk(
        &mut self,
        logs: &Path,
        is_live: &mut dyn FnMut(&Path) -> bool,
        mut visit: impl FnMut(&mut Self, &Attempt),
    ) {
        for (job, _) in self.dirs(logs) {
            let before = self.removed();
            for (task, _) in self.dirs(&job) {
                let before = self.removed();
                for (dir, meta) in self.dirs(&task) {
                    let attempt = self.look(dir, meta, is_live);
                    visit(self, &attempt);
                }
                self.remove_if_empty(&task, before);
            }
            self.remove_if_empty(&job, before);
        }
    }

    fn look(
        &mut self,
        dir: PathBuf,
        meta: Metadata,
        is_live: &mut dyn FnMut(&Path) -> bool,
    ) -> Attempt {
        let live = is_live(&dir);
        let (mut files, mut plain) = (Vec::new(), true);
        for path in self.entries(&dir) {
            match self.note("look at", &path, fs::symlink_metadata(&path)) {
                Some(meta) => {
                    plain &= !meta.is_dir();
                    files.push((path, meta));
                }
                None => plain = false,
            }
        }
        Attempt { dir, meta, live, files, plain }
    }

    fn removed(&self) -> u64 {
        self.report.files_removed + self.report.dirs_removed
    }

    /// Removes what is too old. Returns the bytes that remain.
    fn remove_old(&mut self, attempt: &Attempt) -> u64 {
        let is_old = |meta: &Metadata| {
            !meta.is_dir() && names::is_older(mtime_ns(meta), self.age_max, self.now)
        };
        let whole = attempt.plain && !attempt.files.is_empty() && !attempt.live;
        if whole && attempt.files.iter().all(|(_, meta)| is_old(meta)) {
            self.remove_whole(attempt);
            return 0;
        }
        let before = self.removed();
        let mut kept = on_disk(&attempt.meta);
        let mut pending: Vec<&str> = Vec::new();
        let old: Vec<bool> = attempt.files.iter().map(|(_, meta)| is_old(meta)).collect();
        for ((path, meta), old) in attempt.files.iter().zip(old) {
            let name = path.file_name().unwrap_or(OsStr::new(""));
            if old && names::is_rotated(name) {
                self.remove_file(path, meta);
                continue;
            }
            kept += on_disk(meta);
            if !attempt.live
                && let Some(stream) = names::stream_of_pending(name)
                && !pending.contains(&stream)
            {
                pending.push(stream);
            }
        }
        for stream in pending {
            // A name that is not a valid stream name was not written by a writer.
            if let Ok(names) = Names::new(attempt.dir.clone(), stream) {
                match Stream::attach(&names) {
                    Ok(stream) => compress::enqueue(&stream),
                    Err(error) => self.report.errors.push(error),
                }
            }
        }
        if !attempt.live && self.remove_if_empty(&attempt.dir, before) { 0 } else { kept }
    }

    /// Whether an attempt may be removed because the tree is too large.
    fn may_go(&self, attempt: &Attempt) -> bool {
        let changed = UNIX_EPOCH + Duration::from_nanos(attempt.changed_ns());
        // A time in the future was written before the clock was set back.
        let recent = changed + RECENT >= self.began && changed <= SystemTime::now();
        attempt.plain && !attempt.live && !recent
    }

    /// Removes an attempt with all its files. Returns the bytes that it took on disk.
    fn remove_whole(&mut self, attempt: &Attempt) -> u64 {
        let before = self.removed();
        let mut freed = 0;
        for (path, meta) in &attempt.files {
            if self.remove_file(path, meta) {
                freed += on_disk(meta);
            }
        }
        if self.remove_if_empty(&attempt.dir, before) {
            freed += on_disk(&attempt.meta);
        }
        let job = attempt.dir.ancestors().nth(2).and_then(Path::file_name);
        let job = job.and_then(OsStr::to_str).and_then(|job| job.parse().ok());
        if self.removed() > before {
            self.report.job_removed_max = self.report.job_removed_max.max(job);
        }
        freed
    }

    fn remove_file(&mut self, path: &Path, meta: &Metadata) -> bool {
        let removed = self.note("remove", path, fs::remove_file(path)).is_some();
        if removed {
            self.report.files_removed += 1;
            self.report.bytes_removed += meta.len();
        }
        removed
    }

    /// Removes a folder if it is empty, and became so in this sweep (`removed` is greater than
    /// `before`) or longer ago than `age_max`: a new folder may be about to get its first file.
    /// Returns whether it was removed.
    fn remove_if_empty(&mut self, dir: &Path, before: u64) -> bool {
        let Ok(meta) = fs::symlink_metadata(dir) else { return false };
        if self.removed() == before && !names::is_older(mtime_ns(&meta), self.age_max, self.now) {
            return false;
        }
        match fs::remove_dir(dir) {
            Ok(()) => {
                self.report.dirs_removed += 1;
                return true;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                ) => {}
            Err(error) => self.report.errors.push(Error::io("remove", dir)(error)),
        }
        false
    }

    fn dirs(&mut self, dir: &Path) -> Vec<(PathBuf, Metadata)> {
        let with_meta = |path: PathBuf| {
            let meta = fs::symlink_metadata(&path).ok()?;
            meta.is_dir().then_some((path, meta))
        };
        self.entries(dir).into_iter().filter_map(with_meta).collect()
    }

    fn entries(&mut self, dir: &Path) -> Vec<PathBuf> {
        let listed =
            fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        self.note("list", dir, listed).unwrap_or_default()
    }

    /// Keeps an error for the report; a missing file is not an error.
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
