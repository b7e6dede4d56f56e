//! One-time rewrite of databases that were created before schema version 5. They cannot give unused
//! pages back to the file system: SQLite needs a rewritten file for that. The first start that finds
//! enough disk space rewrites it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use podmesh_wire::machine::{RESERVE_BYTES, free_bytes};
use rusqlite::Connection;

use super::StoreError;
use super::log::log_of;
use super::seal::length_of;

/// The value of `PRAGMA auto_vacuum` with which pages can be given back step by step.
const INCREMENTAL: i64 = 2;

/// Returns whether the file of this database can become shorter.
pub(super) fn can_shrink(connection: &Connection) -> rusqlite::Result<bool> {
    let mode: i64 = connection.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
    Ok(mode == INCREMENTAL)
}

/// Replaces the database by a copy that can shrink. A rename puts the copy in place, so a process
/// that is killed leaves either the old or the new database complete. If another process reads the
/// database, or there is not enough space for the copy, a later start tries again.
pub(super) fn compact(path: &Path, connection: Connection) -> Result<(), StoreError> {
    let file = |source| StoreError::File { path: path.into(), source };
    let sqlite = |e| StoreError::sqlite(path, "rewritten", e);
    let copy = copy_of(path);
    // A killed process may have left a copy.
    match fs::remove_file(&copy) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file(e)),
        _ => {}
    }
    let bytes = length_of(path).map_err(file)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let free = free_bytes(folder).map_err(file)?;
    if free < bytes + RESERVE_BYTES {
        tracing::warn!(
            "{} cannot shrink when jobs are removed until it has been rewritten once, which needs \
             {bytes} bytes on its file system, and {free} are free; the next start tries again",
            path.display()
        );
        return Ok(());
    }
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    if connection.query_row(checkpoint, [], |row| row.get(0)).map_err(sqlite)? {
        tracing::info!("another process reads the database, so a later start rewrites it");
        return Ok(());
    }
    let begun = Instant::now();
    tracing::info!(bytes, "rewriting the database once, so that its file can shrink");
    connection
        .execute("PRAGMA auto_vacuum = INCREMENTAL", [])
        .and_then(|_| connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]))
        .map_err(sqlite)?;
    connection.close().map_err(|(_, e)| sqlite(e))?;
    replace(path, &copy).map_err(file)?;
    tracing::info!(ms = begun.elapsed().as_millis(), "rewrote the database");
    Ok(())
}

fn copy_of(path: &Path) -> PathBuf {
    path.with_extension("db.new")
}

/// Puts the copy in place of the database, whose log must be empty.
fn replace(path: &Path, copy: &Path) -> io::Result<()> {
    fs::set_permissions(copy, fs::metadata(path)?.permissions())?;
    File::open(copy)?.sync_all()?;
    fs::rename(copy, path)?;
    // These belong to the old file and must not be used with the new one.
    for beside in [log_of(path), path.with_extension("db-shm")] {
        match fs::remove_file(beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
