//! A copy of the database while a manager goes on working with it.
//!
//! Whoever asks for it makes it: it reads the database of one moment in one read transaction,
//! for which nobody waits in WAL mode. Only the log of the writer grows while it lasts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::check::{Checked, examine, verify};
use super::{FILE_NAME, StoreError, open_for_reading, seal};

/// Pages that are copied at a time: 4 MiB.
const PAGES_PER_STEP: i32 = 1024;

/// A backup that was made.
#[derive(Clone, Debug)]
pub struct MadeBackup {
    /// Its length.
    pub bytes: u64,
    /// Jobs in it.
    pub jobs: u64,
    /// Attempts in it.
    pub attempts: u64,
    /// The revision of its last event: what came later is not in it.
    pub revision: u64,
}

/// Why no backup was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Something has the name already.
    #[error("{} is there already, and is not overwritten: choose another name, or move it away", path.display())]
    Exists {
        /// What was to be made.
        path: PathBuf,
    },
    /// Another backup has the name.
    #[error(
        "{} is there: a backup to that name goes on, or was cut short; in that case remove it",
        path.display()
    )]
    Unfinished {
        /// The file that is to become the backup.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// What was to be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot write it.
    #[error("the backup {} cannot be written: {source}", path.display())]
    Sqlite {
        /// What was to be made.
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
/// When there is no database or a damaged one; when the file is there already or cannot be
/// written. There is no file of that name then.
pub fn backup(data_dir: &Path, file: &Path) -> Result<MadeBackup, BackupError> {
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
    // With its checksum, and synchronised.
    seal::seal(&unfinished.path).map_err(io)?;
    let bytes = fs::metadata(&unfinished.path).map_err(io)?.len();
    publish(&unfinished.path, file)?;
    Ok(MadeBackup { bytes, jobs: found.jobs, attempts: found.attempts, revision: found.revision })
}

/// The file that is to become a backup; gone when dropped.
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
        // It has its other name, or is of no use.
        _ = fs::remove_file(&self.path);
    }
}

/// Copies the pages, and checks them where they have come to.
fn copy(database: &Path, to: &Path) -> Result<Checked, BackupError> {
    let reading = |e| StoreError::sqlite(database, "read", e);
    let writing = |source| BackupError::Sqlite { path: to.into(), source };
    let source = open_for_reading(database).map_err(reading)?;
    // A transaction of our own: without it the copy would begin anew with every commit.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").map_err(reading)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags).map_err(writing)?;
    // It counts only when it is whole: nothing needs to be undone.
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
            // Nobody else has the copy, and who reads waits for nobody.
            _ => return Err(writing(rusqlite::Error::InvalidQuery)),
        }
    }
    drop(copying);
    drop(source);
    drop(target);
    let target = Connection::open_with_flags(to, flags).map_err(writing)?;
    // A file that needs no other beside it. It is synchronised with its checksum.
    target
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = DELETE;")
        .map_err(writing)?;
    // What is wrong with the copy was so before.
    examine(&target, database).map_err(BackupError::Store)
}

/// Gives the finished file its name, which nothing else may have by now.
fn publish(unfinished: &Path, file: &Path) -> Result<(), BackupError> {
    let exists = |_| BackupError::Exists { path: file.into() };
    let io = |source| BackupError::File { path: file.into(), source };
    match fs::hard_link(unfinished, file) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists(e)),
        // A file system without links. The look before is all that there is against another
        // program that takes the name in this moment.
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
