//! The names of a stream's files.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::policy::NUMBER_MAX;

/// Mode of new files.
pub(crate) const FILE_MODE: u32 = 0o640;
/// Mode of new folders.
pub(crate) const DIR_MODE: u32 = 0o750;

/// The role of a file in a stream, according to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `<name>.log`
    Live,
    /// `<name>.log.<number>`, or with `.gz`
    Numbered { number: u32, gz: bool },
    /// `<name>.log-<date>`, or with `.gz`: rotated by another program, which also removes it.
    /// podmesh only reads it.
    Dated { gz: bool },
    /// `.<name>.index`
    Index,
    /// `.<name>.cursor`
    Cursor,
    /// A half-written file, left by a crash.
    Temporary,
}

impl Kind {
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Numbered { .. } | Self::Dated { .. })
    }

    /// Sorts numbered files newest first: by number. If two have the same number, the plain one is
    /// newer.
    pub(crate) fn age_rank(self) -> (u32, bool) {
        match self {
            Self::Numbered { number, gz } => (number, gz),
            _ => (0, false),
        }
    }
}

/// Identifies a file independently of its name. The birth time distinguishes a new file from a
/// deleted one with the same inode number; it is 0 if the file system does not record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) inode: u64,
    pub(crate) born_ns: u64,
}

impl FileId {
    pub(crate) fn of(meta: &Metadata) -> Self {
        let born = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { inode: meta.ino(), born_ns: born.map_or(0, whole_ns) }
    }
}

/// Returns nanoseconds since 1970, or 0 for earlier times.
pub(crate) fn mtime_ns(meta: &Metadata) -> u64 {
    let time = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, whole_ns)
}

fn whole_ns(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns whether a file last written at `mtime_ns` is older than `age_max`.
pub(crate) fn is_older(mtime_ns: u64, age_max: Duration, now: SystemTime) -> bool {
    let written = UNIX_EPOCH + Duration::from_nanos(mtime_ns);
    now.duration_since(written).is_ok_and(|age| age > age_max)
}

/// A file of the stream, found in its folder.
#[derive(Debug, Clone)]
pub(crate) struct StreamFile {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// The folder and the name of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) dir: PathBuf,
    name: String,
    pub(crate) live: PathBuf,
}

impl Names {
    pub(crate) fn new(dir: PathBuf, name: &str) -> Result<Self, Error> {
        let why = if name.is_empty() {
            Some("is empty")
        } else if name.len() > 200 {
            Some("is longer than 200 bytes")
        } else if name.starts_with('.') {
            Some("begins with a dot")
        } else if name.contains(['/', '\0', '\n']) {
            Some("contains a slash, a newline or a zero byte")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::Name { name: name.to_owned(), why });
        }
        let live = dir.join(format!("{name}.log"));
        Ok(Self { dir, name: name.to_owned(), live })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn numbered(&self, number: u32, gz: bool) -> PathBuf {
        self.dir.join(format!("{}.log.{number}{}", self.name, if gz { ".gz" } else { "" }))
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.hidden("index")
    }

    pub(crate) fn cursor(&self) -> PathBuf {
        self.hidden("cursor")
    }

    /// The compressor's unfinished copy.
    pub(crate) fn gz_tmp(&self) -> PathBuf {
        self.hidden("gz.tmp")
    }

    fn hidden(&self, what: &str) -> PathBuf {
        self.dir.join(format!(".{}.{what}", self.name))
    }

    fn classify(&self, file: &OsStr) -> Option<Kind> {
        let file = file.to_str()?;
        if let Some(hidden) = file.strip_prefix('.') {
            return match hidden.strip_prefix(self.name.as_str())? {
                ".index" => Some(Kind::Index),
                ".cursor" => Some(Kind::Cursor),
                ".gz.tmp" | ".index.tmp" | ".cursor.tmp" => Some(Kind::Temporary),
                _ => None,
            };
        }
        classify_rotated(file.strip_prefix(self.name.as_str())?.strip_prefix(".log")?)
    }

    /// Lists the files of the stream in no particular order; empty if the folder does not exist.
    pub(crate) fn list(&self) -> Result<Vec<StreamFile>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.dir)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            if let Some(kind) = self.classify(&entry.file_name()) {
                found.push(StreamFile { kind, path: entry.path() });
            }
        }
        Ok(found)
    }

    /// Lists the numbered files, newest first.
    pub(crate) fn list_numbered(&self) -> Result<Vec<StreamFile>, Error> {
        let mut found = self.list()?;
        found.retain(|file| matches!(file.kind, Kind::Numbered { .. }));
        found.sort_by_key(|file| file.kind.age_rank());
        Ok(found)
    }
}

/// Classifies the part of a file name after `<name>.log`.
fn classify_rotated(suffix: &str) -> Option<Kind> {
    if suffix.is_empty() {
        return Some(Kind::Live);
    }
    let (stem, gz) = suffix.strip_suffix(".gz").map_or((suffix, false), |stem| (stem, true));
    let digits = stem.strip_prefix(['.', '-'])?;
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    match digits.parse::<u32>() {
        // We never write a leading zero, and it would not map back to the same name.
        Ok(number @ 1..=NUMBER_MAX) if stem.starts_with('.') && !digits.starts_with('0') => {
            Some(Kind::Numbered { number, gz })
        }
        // The extension of an unknown compressor: not readable here.
        _ if digits.ends_with(|c: char| c.is_ascii_alphabetic()) => None,
        _ => Some(Kind::Dated { gz }),
    }
}

/// Returns the stream of an uncompressed rotated file: `stdout` for `stdout.log.1`.
pub(crate) fn stream_of_pending(file: &OsStr) -> Option<&str> {
    let (name, suffix) = file.to_str()?.rsplit_once(".log.")?;
    let number = suffix.parse::<u32>().ok()?;
    (1..=NUMBER_MAX).contains(&number).then_some(name)
}

/// Returns whether a file name is that of a rotated file.
pub(crate) fn is_rotated(file: &OsStr) -> bool {
    let Some(file) = file.to_str() else { return false };
    file.match_indices(".log")
        .any(|(at, log)| classify_rotated(&file[at + log.len()..]).is_some_and(Kind::is_rotated))
}

/// Sorts files of unknown offset oldest first: by number if all have one, otherwise by the time of
/// the last write.
pub(crate) fn oldest_first(kinds: &mut [(Kind, u64, usize)]) {
    if kinds.iter().all(|(kind, ..)| matches!(kind, Kind::Numbered { .. })) {
        kinds.sort_by_key(|(kind, ..)| Reverse(kind.age_rank()));
    } else {
        kinds.sort_by_key(|(kind, mtime, at)| (*mtime, Reverse(kind.age_rank()), *at));
    }
}

/// Replaces `path` atomically by a file that contains `bytes`.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use io::Write as _;
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&tmp)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(Error::io("write", &tmp))
        .and_then(|()| crate::failpoint::hit(crate::failpoint::CrashPoint::ReplaceTmpWritten, &tmp))
        .and_then(|()| fs::rename(&tmp, path).map_err(Error::io("replace", path)));
    if written.is_err() && !crate::failpoint::crashed() {
        // On a full disk even these few bytes matter.
        let _ = fs::remove_file(&tmp);
    }
    written
}

/// Removes a file; a missing file is not an error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Renames a file without replacing an existing one.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some network file systems do not support the flag.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        other => other.map_err(io::Error::from),
    }
}
