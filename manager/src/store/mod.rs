//! Everything that outlives the process: one SQLite database, written by one thread and read by
//! another.

mod access;
mod codes;
mod reader;
mod restore;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use podmesh_manager_core::step::Snapshot;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub(crate) use reader::{History, ReadError};
pub(crate) use writer::{Committed, CommittedChunk, Decided, Writer};

/// The database's name in the data directory.
pub(crate) const FILE_NAME: &str = "podmesh.db";

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
    /// It is not a database, or one with damage.
    #[error(
        "{} is not a database or is damaged ({why}): restore it from a copy, or move it away to begin anew, with every job of before forgotten",
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
    /// Where the last life of the manager stopped.
    pub(crate) snapshot: Snapshot,
}

/// Opens the database of a data directory; creates it, or brings it forward, where needed.
pub(crate) fn open(data_dir: &Path) -> Result<Store, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let connection = schema::open(&path)?;
    let (snapshot, nodes) =
        restore::snapshot(&connection).map_err(|e| StoreError::sqlite(&path, "read", e))?;
    let reading = open_for_reading(&path).map_err(|e| StoreError::sqlite(&path, "opened", e))?;
    let writer = Writer::new(connection, path, nodes, snapshot.last_revision);
    Ok(Store { writer, history: History::new(reading), snapshot })
}

fn open_for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // Readers wait for nobody in WAL, but for the recovery after a kill.
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -2048;")?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// An error of a value that is not what its column should hold.
fn unreadable(
    column: usize,
    source: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(source))
}
