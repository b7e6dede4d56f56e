//! Everything that outlives the process: one SQLite database, written by one thread and read by
//! another.

mod access;
mod backup;
mod check;
mod codes;
#[cfg(test)]
mod damage_tests;
mod events;
#[cfg(test)]
mod full_tests;
mod log;
mod reader;
mod restore;
mod schema;
mod seal;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use podmesh_manager_core::step::Snapshot;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::data_dir::DataDirLock;

pub use backup::{BackupError, MadeBackup, backup};
pub use check::{Checked, check};
pub(crate) use reader::{History, ReadError};
pub(crate) use writer::{Committed, CommittedChunk, Decided, Writer};

/// The database's name in the data directory.
pub(crate) const FILE_NAME: &str = "podmesh.db";

/// How long to wait for somebody who has the database locked: the sqlite3 program, for instance.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the database cannot be used, or can no longer be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A newer program has written it.
    #[error(
        "{} was written by a newer podmesh (its schema is {found}, this program knows up to {known}): run that newer podmesh, or choose another data directory; nothing was changed",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this program knows.
        known: usize,
    },
    /// It is a database, but of another program.
    #[error(
        "{} is a database of another program: move it away, or choose another data directory; nothing was changed",
        path.display()
    )]
    NotOurs {
        /// The database.
        path: PathBuf,
    },
    /// There is none.
    #[error(
        "there is no {}: is this the data directory of a manager (--data-dir)?",
        path.display()
    )]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// It is not a database, or one with damage.
    #[error(
        "{0} is not a database or is damaged ({why}): nothing was changed; `podmesh check` tells more; \
         to restore a backup, move {0}, {0}-wal and {0}-shm away, copy the file that `podmesh backup` made to {0}, \
         and start the manager; without a backup it begins anew, with every job of before forgotten",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// There is no room left.
    #[error(
        "no room is left for {}: make room on its file system and start the manager again; everything that was acknowledged is kept",
        path.display()
    )]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The database.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another error of SQLite's.
    #[error("{} could not be {doing}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was done with it.
        doing: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// What was to be written contradicts what is there; a bug of podmesh.
    #[error("{} does not agree with the manager: {what}; this is a bug of podmesh", path.display())]
    Contradiction {
        /// The database.
        path: PathBuf,
        /// What.
        what: String,
    },
}

impl StoreError {
    /// The error for one of SQLite's, with what it means for the user.
    fn sqlite(path: &Path, doing: &'static str, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::NotADatabase) => {
                Self::Damaged { path, why: "it is not a database".into() }
            }
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, why: source.to_string() },
            // A value that its column cannot hold, or a row that is always there.
            None => Self::Damaged { path, why: source.to_string() },
            _ => Self::Sqlite { path, doing, source },
        }
    }
}

/// A database that has just been opened.
pub(crate) struct Store {
    /// Writes.
    pub(crate) writer: Writer,
    /// Reads history.
    pub(crate) history: History,
    /// Looks up submissions, which must not wait for those who read history.
    pub(crate) lookups: History,
    /// Where the last life of the manager stopped.
    pub(crate) snapshot: Snapshot,
}

/// Opens the database of a data directory; creates it, or brings it forward, where needed.
pub(crate) fn open(data_dir: &Path) -> Result<Store, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let connection = schema::open(&path)?;
    let (snapshot, nodes) =
        restore::snapshot(&connection).map_err(|e| StoreError::sqlite(&path, "read", e))?;
    if let Some(why) = restore::contradiction(&snapshot) {
        return Err(StoreError::Damaged { path, why });
    }
    let reader = || match open_for_reading(&path) {
        Ok(reading) => Ok(History::new(reading, path.clone())),
        Err(error) => Err(StoreError::sqlite(&path, "opened", error)),
    };
    let (history, lookups) = (reader()?, reader()?);
    let writer = Writer::new(connection, path, nodes, snapshot.last_revision);
    Ok(Store { writer, history, lookups, snapshot })
}

fn open_for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // Readers wait for nobody in WAL, but for the recovery after a kill.
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        "PRAGMA query_only = ON; PRAGMA cell_size_check = ON; PRAGMA cache_size = -2048;",
    )?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// The end of a store: who has the database open says when it has closed it, and the last one
/// seals it. The folder stays locked until then.
pub(crate) struct Closing {
    path: PathBuf,
    open: AtomicUsize,
    well: AtomicBool,
    _lock: DataDirLock,
}

impl Closing {
    /// For a [`Store`] that is open, with its writer and its two readers.
    pub(crate) fn new(data_dir: &Path, lock: DataDirLock) -> Self {
        let path = data_dir.join(FILE_NAME);
        Self { path, open: AtomicUsize::new(3), well: AtomicBool::new(true), _lock: lock }
    }

    /// The writer or a reader is gone, and whether all was well until then.
    pub(crate) fn closed(&self, well: bool) {
        if !well {
            self.well.store(false, Ordering::Release);
        }
        let last = self.open.fetch_sub(1, Ordering::AcqRel) == 1;
        // What is damaged would be vouched for.
        if last && self.well.load(Ordering::Acquire) {
            match seal::seal(&self.path) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!("the database is left without a checksum: it is in use")
                }
                // The next start does without.
                Err(error) => tracing::warn!(%error, "the database is left without a checksum"),
            }
        }
    }
}

/// An error of a value that is not what its column should hold.
fn unreadable(
    column: usize,
    source: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(source))
}
