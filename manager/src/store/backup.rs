//! Copies the database while a manager uses it.
//!
//! The process that asks for the backup makes the copy. It reads a consistent state of the database
//! in one read transaction, which blocks nobody in WAL mode. Only the write-ahead log grows
//! meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::check::{CheckReport, examine, verify};
use super::numbers::mark_as_backup;
use super::{FILE_NAME, StoreError, open_for_reading, seal};

/// Pages copied at a time: 4 MiB.
const PAGES_PER_STEP: i32 = 1024;

/// A finished backup.
#[derive(Clone, Debug)]
pub struct BackupSummary {
    /// Its length in bytes.
    pub bytes: u64,
    /// The number of jobs in it.
    pub jobs: u64,
    /// The number of attempts in it.
    pub attempts: u64,
    /// The revision of its last event. Later events are not in it.
    pub revision: u64,
}

/// Why a backup failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file of that name exists.
    #[error("{} already exists and is not overwritten: choose another name, or move the file away", path.display())]
    Exists {
        /// The file of the backup.
        path: PathBuf,
    },
    /// A backup to that name is running or was interrupted.
    #[error(
        "{} exists: another backup to that name is running, or one was interrupted; in the second case remove it",
        path.display()
    )]
    Unfinished {
        /// The unfinished backup.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// The file of the backup.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot write the backup.
    #[error("the backup {} cannot be written: {source}", path.display())]
    Sqlite {
        /// The file of the backup.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The database cannot be read, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies the database of a data directory to a new file, mode 0600, and checks the copy. A
/// manager may have the database open.
///
/// # Errors
/// Fails if there is no database, if it is damaged, and if the file already exists or cannot be
/// written. A failed backup leaves no file of its own behind.
pub fn backup(data_dir: &Path, file: &Path) -> Result<BackupSummary, BackupError> {
    let database = data_dir.join(FILE_NAME);
    if fs::symlink_metadata(file).is_ok() {
        return Err(BackupError::Exists { path: file.into() });
    }
    verify(data_dir, &database)?;
    let unfinished = Unfinished::create(file)?;
    let found = copy(&database, &unfinished.path)?;
    if let Some(why) = found.wrong.into_iter().next() {
        return Err(StoreError::Damaged { path: database, why }.into());
    }
    let io = |source| BackupError::File { path: file.into(), source };
    // Appends the checksum, and syncs the file.
    seal::seal(&unfinished.path).map_err(io)?;
    let bytes = fs::metadata(&unfinished.path).map_err(io)?.len();
    publish(&unfinished.path, file)?;
    Ok(BackupSummary {
        bytes,
        jobs: found.jobs,
        attempts: found.attempts,
        revision: found.revision,
    })
}

/// An unfinished backup. Its file is removed when this is dropped.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn create(file: &Path) -> Result<Self, BackupError> {
        let mut path = file.to_path_buf().into_os_string();
        path.push(".new");
        let path = PathBuf::from(path);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => Ok(Self { path }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::Unfinished { path })
            }
            Err(source) => Err(BackupError::File { path, source }),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The file has its final name by now, or the backup failed.
        _ = fs::remove_file(&self.path);
    }
}

/// Copies the pages, and checks the copy.
fn copy(database: &Path, to: &Path) -> Result<CheckReport, BackupError> {
    let reading = |e| StoreError::sqlite(database, "read", e);
    let writing = |source| BackupError::Sqlite { path: to.into(), source };
    let source = open_for_reading(database).map_err(reading)?;
    // Without an own transaction the copy would start over with every commit.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").map_err(reading)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags).map_err(writing)?;
    // An incomplete copy is thrown away, so SQLite needs no rollback journal.
    target
        .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        .map_err(writing)?;
    let copying = Backup::new(&source, &mut target).map_err(writing)?;
    loop {
        let step = copying.step(PAGES_PER_STEP).map_err(|e| match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => reading(e).into(),
            _ => writing(e),
        })?;
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            // Nobody else has the copy open, and readers never wait.
            _ => return Err(writing(rusqlite::Error::InvalidQuery)),
        }
    }
    drop(copying);
    drop(source);
    drop(target);
    let target = Connection::open_with_flags(to, flags).map_err(writing)?;
    // The backup must be a single file. It is synced together with its checksum.
    target
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = DELETE;")
        .map_err(writing)?;
    // Damage in the copy comes from the database.
    let found = examine(&target, database).map_err(BackupError::Store)?;
    if found.wrong.is_empty() {
        mark_as_backup(&target).map_err(writing)?;
    }
    Ok(found)
}

/// Gives the finished file its name, without replacing another file.
fn publish(unfinished: &Path, file: &Path) -> Result<(), BackupError> {
    let exists = |_| BackupError::Exists { path: file.into() };
    let io = |source| BackupError::File { path: file.into(), source };
    match fs::hard_link(unfinished, file) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists(e)),
        // The file system has no hard links. Another program can take the name between this check
        // and the rename; there is no protection against that.
        Err(_) if fs::symlink_metadata(file).is_err() => {
            fs::rename(unfinished, file).map_err(io)?
        }
        Err(e) => return Err(exists(e)),
    }
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}
