//! Everything that outlives the process: one SQLite database, written by one thread and read by
//! others.

mod access;
mod again;
mod backup;
mod check;
mod codes;
mod columns;
mod commit;
mod compact;
#[cfg(test)]
mod damage_tests;
mod events;
#[cfg(test)]
mod full_tests;
mod log;
mod measures;
mod numbers;
mod places;
mod queues;
mod reader;
mod removal;
#[cfg(test)]
mod removal_tests;
mod restore;
mod schedules;
mod schema;
mod seal;
mod services;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
mod upstream;
mod volumes;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use podmesh_manager_core::state::State;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use self::numbers::JobNumbers;
use crate::clock;
use crate::data_dir::DataDirLock;

pub use backup::{BackupError, BackupSummary, backup};
pub use check::{CheckReport, check};
pub(crate) use commit::{Commit, CommittedChunk, TimedStep};
pub(crate) use measures::StoreMeasures;
pub(crate) use reader::{History, JobFilter, ReadError};
pub(crate) use writer::Writer;

/// The database's name in the data directory.
pub(crate) const FILE_NAME: &str = "podmesh.db";

/// How long to wait for another process that has the database locked, such as the sqlite3 program.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the database cannot be used, or can no longer be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A newer podmesh wrote it.
    #[error(
        "{} was written by a newer podmesh (its schema is {found}, this program knows up to {known}): run that newer podmesh, or choose another data directory; nothing was changed",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version of its schema.
        found: i64,
        /// The newest schema that this program knows.
        known: usize,
    },
    /// An older podmesh wrote it. Only a start of the manager upgrades it.
    #[error(
        "{} was written by an older podmesh (its schema is {found}, this program's is {known}): start the manager of this release once to upgrade it, or use that older podmesh",
        path.display()
    )]
    Older {
        /// The database.
        path: PathBuf,
        /// The version of its schema.
        found: usize,
        /// The schema version of this program.
        known: usize,
    },
    /// It is a database of another program.
    #[error(
        "{} is a database of another program: move it away, or choose another data directory; nothing was changed",
        path.display()
    )]
    NotOurs {
        /// The database.
        path: PathBuf,
    },
    /// There is no database.
    #[error(
        "there is no {}: is this the data directory of a manager (--data-dir)?",
        path.display()
    )]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// It is not a database, or it is damaged.
    #[error(
        "{0} is not a database or is damaged ({why}): nothing was changed; `podmesh check` shows details; \
         to restore a backup, move {0}, {0}-wal and {0}-shm away, copy the file that `podmesh backup` made to {0}, \
         and start the manager; without a backup, the manager starts empty and all earlier jobs are lost",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The disk is full.
    #[error(
        "no room is left for {}: free some space on its file system and start the manager again; everything that was acknowledged is kept",
        path.display()
    )]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{} cannot be read or written: {source}", path.display())]
    File {
        /// The database.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another error of SQLite.
    #[error("{} could not be {doing}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was attempted, as a past participle: "read", "written".
        doing: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A change contradicts the stored rows. This is a bug of podmesh.
    #[error("{} disagrees with the manager: {what}; this is a bug of podmesh", path.display())]
    Contradiction {
        /// The database.
        path: PathBuf,
        /// The contradiction.
        what: String,
    },
}

impl StoreError {
    /// Converts an error of SQLite to one that tells the user what to do.
    fn sqlite(path: &Path, doing: &'static str, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::NotADatabase) => {
                Self::Damaged { path, why: "it is not a database".into() }
            }
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, why: source.to_string() },
            // An impossible value in a column, or a missing row that must exist.
            None => Self::Damaged { path, why: source.to_string() },
            _ => Self::Sqlite { path, doing, source },
        }
    }
}

/// An open database.
pub(crate) struct Store {
    /// Writes to the database.
    pub(crate) writer: Writer,
    /// Reads jobs, tasks and events.
    pub(crate) history: History,
    /// Looks up submissions, which must not wait for the reads of `history`.
    pub(crate) lookups: History,
    /// The state in which the previous run of the manager stopped.
    pub(crate) state: State,
    /// The time of the age clock.
    pub(crate) age_ms: u64,
}

/// Opens the database of a data directory. Creates or upgrades it if necessary.
pub(crate) fn open(data_dir: &Path) -> Result<Store, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let numbers = JobNumbers::open(data_dir)?;
    let (connection, is_new) = schema::open(&path)?;
    numbers.skip_used(&connection, is_new).map_err(|e| StoreError::sqlite(&path, "written", e))?;
    let read = |e| StoreError::sqlite(&path, "read", e);
    let restored = restore::read(&connection).map_err(read)?;
    let age_ms = restore::age_ms(&connection, clock::wall_ms()).map_err(read)?;
    if let Some(why) = restore::contradiction(&restored) {
        return Err(StoreError::Damaged { path, why });
    }
    let restore::Restored { state, nodes, .. } = restored;
    let reader = || match open_for_reading(&path) {
        Ok(reading) => Ok(History::new(reading, path.clone())),
        Err(error) => Err(StoreError::sqlite(&path, "opened", error)),
    };
    let (history, lookups) = (reader()?, reader()?);
    let writer = Writer::new(connection, path, nodes, numbers, state.last_revision);
    Ok(Store { writer, history, lookups, state, age_ms })
}

fn open_for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // In WAL mode readers wait only for the recovery after a kill.
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A small cache: what else is read is in the kernel's.
    connection.execute_batch(
        "PRAGMA query_only = ON; PRAGMA cell_size_check = ON; PRAGMA cache_size = -512;",
    )?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Seals the database after its last user has closed it. The data directory stays locked until
/// then.
pub(crate) struct Closing {
    path: PathBuf,
    open: AtomicUsize,
    well: AtomicBool,
    _lock: DataDirLock,
}

impl Closing {
    /// Creates the value for an open [`Store`], which has one writer and two readers.
    pub(crate) fn new(data_dir: &Path, lock: DataDirLock) -> Self {
        let path = data_dir.join(FILE_NAME);
        Self { path, open: AtomicUsize::new(3), well: AtomicBool::new(true), _lock: lock }
    }

    /// Notes that the writer or a reader has closed the database, and whether it had no error.
    pub(crate) fn closed(&self, well: bool) {
        if !well {
            self.well.store(false, Ordering::Release);
        }
        let last = self.open.fetch_sub(1, Ordering::AcqRel) == 1;
        // A seal must not vouch for a damaged database.
        if last && self.well.load(Ordering::Acquire) {
            match seal::seal(&self.path) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!("the database is left without a checksum because it is in use")
                }
                // The next start does not need it.
                Err(error) => tracing::warn!(%error, "the database is left without a checksum"),
            }
        }
    }
}

/// Returns the error for a value that does not fit its column.
fn unreadable(
    column: usize,
    source: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(source))
}
