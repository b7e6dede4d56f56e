//! Prevents that a restored backup uses job numbers again.
//!
//! Agents may still have attempts, reports and output of jobs that are newer than the backup. So a
//! manager that starts from a backup continues after the highest job number in use. It knows from
//! two marks:
//!
//! * a backup has a row in `meta` that marks it as a backup;
//! * the file `job-numbers` beside the database is not part of a backup. It holds a number that is
//!   higher than those of all jobs, and is rewritten before a job reaches it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::JobId;
use rusqlite::Connection;

use super::StoreError;
use super::codes::{integer, unsigned};

/// The name of the file in the data directory.
const FILE: &str = "job-numbers";
/// How far the number in the file is ahead when it is written. It is written once per this many jobs.
const AHEAD: u64 = 1_000;
/// How many job numbers to skip when a backup is restored without the file, on another machine.
const SKIPPED: u64 = 1_000_000;
/// How many epochs of sessions to skip when a backup is restored.
const EPOCHS_SKIPPED: u64 = 1_000_000;

/// The file with a number higher than those of all jobs.
#[derive(Debug)]
pub(super) struct JobNumbers {
    dir: PathBuf,
    /// The number in the file; `None` if the file is missing.
    ahead: Option<u64>,
}

impl JobNumbers {
    /// Reads the file. A file without a number counts as missing.
    pub(super) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE);
        let ahead = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().ok().or_else(|| {
                tracing::warn!("{} does not hold a number and will be rewritten", path.display());
                None
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(StoreError::File { path, source }),
        };
        Ok(Self { dir: data_dir.into(), ahead })
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Writes the file if this job reaches the number in it. Must be called before the job is
    /// committed.
    pub(super) fn reach(&mut self, job: JobId) -> io::Result<()> {
        if self.ahead.is_some_and(|ahead| job.0 < ahead) {
            return Ok(());
        }
        let ahead = job.0.saturating_add(AHEAD);
        let unfinished = self.dir.join(format!("{FILE}.new"));
        let mut file = File::create(&unfinished)?;
        writeln!(file, "{ahead}")?;
        file.sync_all()?;
        fs::rename(unfinished, self.path())?;
        File::open(&self.dir)?.sync_all()?;
        self.ahead = Some(ahead);
        Ok(())
    }

    /// Raises the next job number and epoch if the database is a backup, or is new beside an
    /// existing file. Must be called once, after the database is opened.
    pub(super) fn skip_used(&self, connection: &Connection, is_new: bool) -> rusqlite::Result<()> {
        let is_backup = "SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'backup')";
        let is_backup: bool = connection.query_row(is_backup, [], |row| row.get(0))?;
        let is_recreated = is_new && self.ahead.is_some();
        if !is_backup && !is_recreated {
            return Ok(());
        }
        let last = last_job(connection)?;
        let from = self.ahead.unwrap_or(last.0.saturating_add(SKIPPED));
        let transaction = connection.unchecked_transaction()?;
        transaction.execute(
            "UPDATE meta SET value = max(value, ?1) WHERE key = 'last_job'",
            [integer(from)],
        )?;
        transaction.execute(
            "UPDATE meta SET value = value + ?1 WHERE key = 'last_epoch'",
            [integer(EPOCHS_SKIPPED)],
        )?;
        transaction.execute("DELETE FROM meta WHERE key = 'backup'", [])?;
        transaction.commit()?;
        if is_backup {
            tracing::warn!(
                "the database is a restored backup: everything newer than the backup is lost, and job numbers continue after {from}"
            );
        }
        Ok(())
    }
}

/// Marks a copy of a database as a backup.
pub(super) fn mark_as_backup(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('backup', 1)", [])?;
    Ok(())
}

/// Returns the highest job number that was given out.
pub(super) fn last_job(connection: &Connection) -> rusqlite::Result<JobId> {
    let last = "SELECT max(value, (SELECT coalesce(max(job), 0) FROM jobs)) FROM meta
         WHERE key = 'last_job'";
    connection.prepare_cached(last)?.query_row([], |row| Ok(JobId(unsigned(row.get(0)?))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use podmesh_manager_core::state::Change;
    use podmesh_manager_core::step::Step;
    use podmesh_protocol::ids::SubmissionId;
    use podmesh_protocol::report::{JobState, TaskCounts};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::super::commit::TimedStep;
    use super::super::tests::{job_change, job_spec, write};
    use super::super::{FILE_NAME, Store, backup, open};
    use super::*;

    /// Commits `count` jobs with the numbers after `after`. Returns the last number.
    fn submit(store: &mut Store, after: JobId, count: u64) -> JobId {
        let counts = TaskCounts { queued: 1, ..TaskCounts::default() };
        let changes = (after.0 + 1..=after.0 + count).map(JobId).flat_map(|job| {
            let inserted = Change::JobInserted {
                job,
                submission: SubmissionId(Uuid::from_u128(job.0.into())),
                spec: Arc::new(job_spec(1)),
                by: "ann".parse().unwrap(),
                wall_ms: 1,
            };
            [inserted, job_change(job, JobState::Queued, 1, counts, 0)]
        });
        let step = Step { changes: changes.collect(), ..Step::default() };
        write(store, vec![TimedStep { step, wall_ms: 1, age_ms: 1 }]);
        JobId(after.0 + count)
    }

    /// Returns a data directory, a backup of its first job, and the last job number since.
    fn backed_up(more: u64) -> (TempDir, PathBuf, JobId) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path()).unwrap();
        let first = submit(&mut store, JobId(0), 1);
        let file = dir.path().join("backup");
        backup(dir.path(), &file).unwrap();
        let last = submit(&mut store, first, more);
        (dir, file, last)
    }

    fn restore(dir: &Path, backup: &Path) {
        for file in [FILE_NAME, "podmesh.db-wal", "podmesh.db-shm"] {
            _ = fs::remove_file(dir.join(file));
        }
        fs::copy(backup, dir.join(FILE_NAME)).unwrap();
    }

    #[test]
    fn a_restored_backup_uses_no_job_number_again() {
        let (dir, file, mut last) = backed_up(2 * AHEAD + 5);
        // Restore the same backup several times.
        for _ in 0..3 {
            restore(dir.path(), &file);
            let mut store = open(dir.path()).unwrap();
            let from = store.state.last_job;
            assert!(from > last && from.0 < last.0 + 2 * AHEAD, "{from} after {last}");
            assert_eq!(store.state.jobs.len(), 1);
            assert_eq!(store.state.last_epoch.0, EPOCHS_SKIPPED);
            last = submit(&mut store, from, 3);
            drop(store);
            // A plain restart leaves no gap.
            let state = open(dir.path()).unwrap().state;
            assert_eq!((state.last_job, state.last_epoch.0), (last, EPOCHS_SKIPPED));
        }
    }

    #[test]
    fn a_backup_on_another_machine_skips_many_job_numbers() {
        let (_dir, file, _) = backed_up(500);
        let other = tempfile::tempdir().unwrap();
        fs::copy(file, other.path().join(FILE_NAME)).unwrap();
        let state = open(other.path()).unwrap().state;
        assert_eq!(state.last_job, JobId(1 + SKIPPED));
    }

    #[test]
    fn a_new_database_beside_the_file_continues_after_its_number() {
        let (dir, _, last) = backed_up(3);
        fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        for file in ["podmesh.db-wal", "podmesh.db-shm"] {
            _ = fs::remove_file(dir.path().join(file));
        }
        assert!(open(dir.path()).unwrap().state.last_job > last);
    }

    #[test]
    fn a_file_without_a_number_is_rewritten() {
        let (dir, _, last) = backed_up(3);
        let path = dir.path().join(FILE);
        fs::write(&path, "x").unwrap();
        let mut store = open(dir.path()).unwrap();
        assert_eq!(store.state.last_job, last);
        submit(&mut store, last, 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", last.0 + 1 + AHEAD));
    }
}
