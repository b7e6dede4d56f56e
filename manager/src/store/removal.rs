//! Removal of jobs from the database. The job's row is removed at once. Its attempts follow in small
//! steps beside other work, and then the file gives unused pages back to the file system.

use std::time::Duration;

use podmesh_protocol::ids::JobId;
use rusqlite::{Connection, OptionalExtension, params};

use super::codes::{integer, unsigned};
use super::upstream;

/// Maximum number of attempts that are removed in the same commit as their job.
const ATTEMPTS_AT_ONCE: u64 = 64;
/// Attempts that each commit of a busy manager removes, in addition to as many as it inserts.
pub(super) const ATTEMPTS_PER_COMMIT: usize = 256;
/// Attempts that are removed together while there is nothing to commit: about a millisecond.
const ATTEMPTS_IN_A_PAUSE: usize = 1_000;
/// Pages that are given back together.
const PAGES_IN_A_PAUSE: u32 = 64;
/// How long the store waits for work before it continues to remove.
const PAUSE: Duration = Duration::from_millis(5);
/// Unused pages that a file may keep, in addition to a share of its size: they will be used again.
const FREE_PAGES_MAX: u64 = 256;
/// See [`FREE_PAGES_MAX`].
const FREE_SHARE: u64 = 8;

/// What remains to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leftovers {
    /// Nothing.
    None,
    /// The file may have too many unused pages.
    Pages,
    /// There may be attempts of removed jobs, as at each start.
    #[default]
    Attempts,
}

impl Leftovers {
    /// Returns how long to wait for work first; `None` if there is nothing to remove.
    pub(super) fn pause(self) -> Option<Duration> {
        (self != Self::None).then_some(PAUSE)
    }

    /// Removes some. Returns whether there was anything to do.
    pub(super) fn remove_some(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        let transaction = connection.unchecked_transaction()?;
        let next = match self {
            Self::None => return Ok(false),
            Self::Attempts if remove_attempts(&transaction, ATTEMPTS_IN_A_PAUSE)? => Self::Attempts,
            Self::Attempts => Self::Pages,
            Self::Pages if free_pages(&transaction)? => Self::Pages,
            Self::Pages => Self::None,
        };
        transaction.commit()?;
        *self = next;
        Ok(true)
    }
}

/// Returns how many attempts a job counts as in the number of attempts that are kept.
pub(super) fn weight(attempts: u64) -> i64 {
    integer(attempts.max(1))
}

/// Removes an ended job if it exists, and returns its weight. If it has many attempts, they are
/// removed later.
pub(super) fn remove_job(connection: &Connection, job: JobId) -> rusqlite::Result<i64> {
    let job = integer(job.0);
    let attempts: Option<i64> = connection
        .prepare_cached("DELETE FROM jobs WHERE job = ?1 AND state >= 3 RETURNING attempts")?
        .query_row([job], |row| row.get(0))
        .optional()?;
    let Some(attempts) = attempts.map(unsigned) else { return Ok(0) };
    for table in ["job_specs", "replicas"] {
        let delete = format!("DELETE FROM {table} WHERE job = ?1");
        connection.prepare_cached(&delete)?.execute([job])?;
    }
    upstream::remove_job(connection, job)?;
    let rest = if attempts <= ATTEMPTS_AT_ONCE {
        "DELETE FROM attempts WHERE job = ?1"
    } else {
        "INSERT INTO removals (job) VALUES (?1)"
    };
    connection.prepare_cached(rest)?.execute([job])?;
    // It may have had the highest number, which must not be used again.
    connection
        .prepare_cached("UPDATE meta SET value = max(value, ?1) WHERE key = 'last_job'")?
        .execute([job])?;
    Ok(weight(attempts))
}

/// Changes the number of attempts of ended jobs.
pub(super) fn count_kept(connection: &Connection, more: i64) -> rusqlite::Result<()> {
    if more != 0 {
        connection
            .prepare_cached("UPDATE meta SET value = value + ?1 WHERE key = 'kept'")?
            .execute([more])?;
    }
    Ok(())
}

/// Removes the rows of forgotten nodes that no attempt can refer to any more.
pub(super) fn remove_nodes(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM nodes WHERE forgotten
                 AND last_job < coalesce((SELECT min(job) FROM jobs), last_job + 1)
                 AND last_job < coalesce((SELECT min(job) FROM removals), last_job + 1)",
        )?
        .execute([])?;
    Ok(())
}

pub(super) fn save_age(connection: &Connection, age_ms: u64, wall_ms: u64) -> rusqlite::Result<()> {
    let mut save = connection.prepare_cached("UPDATE meta SET value = ?2 WHERE key = ?1")?;
    save.execute(params!["age_ms", integer(age_ms)])?;
    save.execute(params!["age_wall_ms", integer(wall_ms)])?;
    Ok(())
}

/// Removes up to about `rows_max` attempts of removed jobs. Returns whether there were any.
pub(super) fn remove_attempts(connection: &Connection, rows_max: usize) -> rusqlite::Result<bool> {
    let job: Option<i64> = connection
        .prepare_cached("SELECT min(job) FROM removals")?
        .query_row([], |row| row.get(0))?;
    let Some(job) = job else { return Ok(false) };
    let upto: Option<(u32, u32)> = connection
        .prepare_cached(
            "SELECT task, number FROM attempts WHERE job = ?1 ORDER BY task, number
             LIMIT 1 OFFSET ?2",
        )?
        .query_row(params![job, integer(rows_max as u64)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((task, number)) = upto {
        connection
            .prepare_cached("DELETE FROM attempts WHERE job = ?1 AND (task, number) <= (?2, ?3)")?
            .execute(params![job, task, number])?;
    } else {
        connection.prepare_cached("DELETE FROM attempts WHERE job = ?1")?.execute([job])?;
        connection.prepare_cached("DELETE FROM removals WHERE job = ?1")?.execute([job])?;
    }
    Ok(true)
}

/// Gives some unused pages back if the file has too many. Returns whether it had.
fn free_pages(connection: &Connection) -> rusqlite::Result<bool> {
    let number = |pragma: &str| -> rusqlite::Result<u64> {
        Ok(unsigned(connection.query_row(pragma, [], |row| row.get(0))?))
    };
    let (free, all) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
    if free <= all / FREE_SHARE + FREE_PAGES_MAX {
        return Ok(false);
    }
    let mut vacuum =
        connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES_IN_A_PAUSE})"))?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    // A database without incremental vacuum cannot give back any.
    Ok(number("PRAGMA freelist_count")? < free)
}
