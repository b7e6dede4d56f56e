//! The write side: whole steps in, one transaction for all that wait, and only then their
//! effects out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use podmesh_manager_core::step::{Change, Effect, JobRow, NodeRow, Step};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision};
use podmesh_protocol::limits::COMMIT_ROWS_MAX;
use podmesh_protocol::report::{AttemptState, Outcome};
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use rusqlite::{CachedStatement, Connection, params};
use tokio::sync::{mpsc, watch};

use super::codes::{attempt_code, integer, job_code, outcome_code, standing};
use super::events::{self, EventRow};
use super::log::log_of;
use super::{BUSY_TIMEOUT, StoreError, access, seal};

/// Between two tries to write to a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(250);
/// When the write-ahead log has grown beyond this, readers that keep it from being used again
/// are waited for.
const WAL_BYTES_MAX: u64 = 256 << 20;
/// How long such readers are waited for: a commit takes longer by it.
const READERS_WAIT: Duration = Duration::from_millis(100);
/// The same at the end of the manager.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Commits between two looks at the length of the write-ahead log.
const WAL_LOOK_COMMITS: u32 = 256;

/// A step of the core, and when it was made.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) step: Step,
    /// Milliseconds since 1970, for display.
    pub(crate) wall_ms: u64,
}

/// What is on disk now, and may leave.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// What happens next, in this order.
    pub(crate) effects: Vec<Effect>,
    /// The events of the commit, in order.
    pub(crate) chunks: Vec<CommittedChunk>,
    /// The jobs that have changed, or of which an attempt has.
    pub(crate) touched: BTreeSet<JobId>,
}

/// Events with the length that they have on disk, which is about the one on the wire.
#[derive(Debug)]
pub(crate) struct CommittedChunk {
    pub(crate) chunk: EventChunk,
    pub(crate) bytes: usize,
}

/// The one writer of the database.
pub(crate) struct Writer {
    connection: Connection,
    path: PathBuf,
    /// The numbers that nodes have in the database.
    nodes: HashMap<Name, i64>,
    last_revision: Arc<AtomicU64>,
    commits_until_look: u32,
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Contradiction(String),
}

impl From<rmp_serde::encode::Error> for WriteError {
    fn from(error: rmp_serde::encode::Error) -> Self {
        // Our own types always have a MessagePack form.
        Self::Contradiction(error.to_string())
    }
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        nodes: HashMap<Name, i64>,
        last_revision: Revision,
    ) -> Self {
        Self {
            connection,
            path,
            nodes,
            last_revision: Arc::new(AtomicU64::new(last_revision.0)),
            commits_until_look: WAL_LOOK_COMMITS,
        }
    }

    /// The revision of the last committed event, for all to read.
    pub(crate) fn last_revision(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.last_revision)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Writes what comes until all senders of `steps` are gone. When `committed` is full, it
    /// waits, and so in turn does everybody before it. While the disk is full it waits, too, unless
    /// the manager is stopping.
    ///
    /// # Errors
    /// The first failure to write: nothing of that transaction has left, and nothing more will.
    pub(crate) fn run(
        mut self,
        steps: &Receiver<Decided>,
        committed: &mpsc::Sender<Committed>,
        stopping: &watch::Receiver<bool>,
        pulse: &Pulse,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        loop {
            pulse.beat();
            let first = match steps.recv_timeout(BEAT_EVERY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut rows = rows(&first.step);
            batch.push(first);
            while rows < COMMIT_ROWS_MAX
                && let Ok(next) = steps.try_recv()
            {
                rows += self::rows(&next.step);
                batch.push(next);
            }
            let done = self.commit_patiently(&mut batch, stopping, pulse)?;
            if committed.blocking_send(done).is_err() {
                break; // Nobody is left to act on it: the daemon is ending.
            }
        }
        // Leaves one plain file where it can; the next start does the rest.
        self.empty_the_wal(LAST_WAIT);
        Ok(())
    }

    /// Commits as soon as there is room on the disk. Nothing of the steps has left before: whoever
    /// waits for their effects goes on waiting, and agents keep their reports.
    fn commit_patiently(
        &mut self,
        batch: &mut Vec<Decided>,
        stopping: &watch::Receiver<bool>,
        pulse: &Pulse,
    ) -> Result<Committed, StoreError> {
        let mut full = false;
        loop {
            match self.commit(batch) {
                Err(StoreError::Full { path }) if !*stopping.borrow() => {
                    if !full {
                        full = true;
                        pulse.excuse(true);
                        let path = path.display();
                        tracing::error!("no room is left for {path}: it waits until there is");
                    }
                    std::thread::sleep(FULL_PAUSE);
                }
                done => {
                    pulse.excuse(false);
                    if full && done.is_ok() {
                        tracing::info!("there is room for the database again");
                    }
                    return done;
                }
            }
        }
    }

    /// Writes the steps in one transaction, where there is anything to write. After an error the
    /// batch is as it was.
    pub(super) fn commit(&mut self, batch: &mut Vec<Decided>) -> Result<Committed, StoreError> {
        let mut done = Committed::default();
        if batch.iter().any(|decided| rows(&decided.step) > 0) {
            let rows = self.transaction(batch, &mut done).map_err(|e| match e {
                WriteError::Sqlite(e) => StoreError::sqlite(&self.path, "written", e),
                WriteError::Contradiction(what) => {
                    StoreError::Contradiction { path: self.path.clone(), what }
                }
            })?;
            done.chunks = events::chunks(rows, batch);
            if let Some(CommittedChunk { chunk, .. }) = done.chunks.last() {
                self.last_revision.store(chunk.last().0, Ordering::Release);
            }
            self.look_at_the_wal();
        }
        done.effects = batch.drain(..).flat_map(|decided| decided.step.effects).collect();
        Ok(done)
    }

    fn transaction(
        &mut self,
        batch: &[Decided],
        done: &mut Committed,
    ) -> Result<Vec<EventRow>, WriteError> {
        // Dropped without a commit, it rolls back.
        let transaction = self.connection.unchecked_transaction()?;
        let mut rows = Rows::new(&transaction, &mut self.nodes)?;
        let (mut jobs, mut event_rows) = (BTreeMap::new(), Vec::new());
        let mut last_revision = Revision(self.last_revision.load(Ordering::Acquire));
        for Decided { step, wall_ms } in batch {
            let facts = &step.events;
            if !facts.is_empty() {
                let first = Revision(last_revision.0 + 1);
                if step.first_revision != Some(first) {
                    let what =
                        format!("{:?} cannot follow revision {last_revision}", step.first_revision);
                    return Err(WriteError::Contradiction(what));
                }
                last_revision.0 += facts.len() as u64;
                events::write(&transaction, first, *wall_ms, facts, &mut event_rows)?;
            }
            for change in &step.changes {
                match change {
                    // A later row of the same job replaces it.
                    Change::JobUpdated(row) => {
                        jobs.insert(row.job, (row.clone(), last_revision));
                    }
                    other => {
                        rows.write(other, last_revision)?;
                        done.touched.extend(job_of(other));
                    }
                }
            }
        }
        for (row, changed) in jobs.values() {
            rows.job_updated(row, *changed)?;
        }
        if !event_rows.is_empty() {
            events::forget_old(&transaction, last_revision, event_rows.len())?;
        }
        drop(rows);
        done.touched.extend(jobs.into_keys());
        transaction.commit()?;
        Ok(event_rows)
    }

    /// SQLite starts its log over when all of it is in the database and nobody reads it. Under
    /// steady reads that moment may not come by itself.
    fn look_at_the_wal(&mut self) {
        self.commits_until_look -= 1;
        if self.commits_until_look > 0 {
            return;
        }
        self.commits_until_look = WAL_LOOK_COMMITS;
        let bytes = seal::length_of(&log_of(&self.path)).unwrap_or(0);
        if bytes > WAL_BYTES_MAX {
            let emptied = self.empty_the_wal(READERS_WAIT);
            if !emptied {
                tracing::warn!(bytes, "the database's log is long and cannot be emptied yet");
            }
        }
    }

    /// What is committed stays so, whatever becomes of this. Waits for readers, of which a
    /// backup may be one for long, no longer than this.
    fn empty_the_wal(&self, wait: Duration) -> bool {
        let emptied = || -> rusqlite::Result<bool> {
            self.connection.busy_timeout(wait)?;
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            let busy: bool = self.connection.query_row(checkpoint, [], |row| row.get(0))?;
            Ok(!busy)
        };
        let emptied = emptied().unwrap_or(false);
        // Setting a number cannot fail.
        _ = self.connection.busy_timeout(BUSY_TIMEOUT);
        emptied
    }
}

/// Rows that a step writes, about.
fn rows(step: &Step) -> usize {
    step.changes.len() + step.events.len()
}

/// The job of which readers see something new.
fn job_of(change: &Change) -> Option<JobId> {
    match change {
        Change::JobInserted { job, .. } | Change::JobUpdated(JobRow { job, .. }) => Some(*job),
        Change::AttemptInserted { attempt, .. }
        | Change::AttemptAdvanced { attempt, .. }
        | Change::AttemptEnded { attempt, .. }
        | Change::RetryDropped { attempt } => Some(attempt.task.job),
        Change::NodeSaved(_)
        | Change::EpochTaken(_)
        | Change::TokenSaved(_)
        | Change::TokenRemoved(_)
        | Change::KeySaved(_) => None,
    }
}

/// The statements of one transaction.
struct Rows<'a> {
    connection: &'a Connection,
    nodes: &'a mut HashMap<Name, i64>,
    attempt_inserted: CachedStatement<'a>,
    attempt_advanced: CachedStatement<'a>,
    attempt_ended: CachedStatement<'a>,
}

impl<'a> Rows<'a> {
    fn new(
        connection: &'a Connection,
        nodes: &'a mut HashMap<Name, i64>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            nodes,
            attempt_inserted: connection.prepare_cached(
                "INSERT INTO attempts (job, task, number, node, state, standing, assigned_ms)
                 VALUES (?1, ?2, ?3, ?4, 0, 0, ?5)",
            )?,
            attempt_advanced: connection.prepare_cached(
                "UPDATE attempts SET state = ?4, started_ms = coalesce(started_ms, ?5)
                 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?,
            attempt_ended: connection.prepare_cached(
                "UPDATE attempts SET state = 3, standing = ?4, ended_ms = ?5, retry_ms = ?6,
                     outcome = ?7, exit_code = ?8, signal = ?9, oom_killed = ?10, ran_ms = ?11,
                     message = ?12
                 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?,
        })
    }

    fn write(&mut self, change: &Change, revision: Revision) -> Result<(), WriteError> {
        match change {
            Change::JobInserted { job, submission, spec, wall_ms } => {
                self.connection
                    .prepare_cached(
                        "INSERT INTO jobs (job, submission, name, priority, first_index,
                             last_index, submitted_ms, state, next_index, queued, active,
                             succeeded, failed, cancelled, changed)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?5, 0, 0, 0, 0, 0, ?8)",
                    )?
                    .execute(params![
                        integer(job.0),
                        submission.0.as_bytes(),
                        spec.name.as_str(),
                        spec.priority,
                        spec.array.first,
                        spec.array.last,
                        integer(*wall_ms),
                        integer(revision.0),
                    ])?;
                self.connection
                    .prepare_cached("INSERT INTO job_specs (job, spec) VALUES (?1, ?2)")?
                    .execute(params![integer(job.0), rmp_serde::to_vec_named(&**spec)?])?;
                Ok(())
            }
            Change::JobUpdated(row) => self.job_updated(row, revision),
            Change::AttemptInserted { attempt, node, wall_ms } => {
                let Some(number) = self.nodes.get(node) else {
                    let what =
                        format!("attempt {attempt} goes to node {node}, which was never saved");
                    return Err(WriteError::Contradiction(what));
                };
                let AttemptId { task, number: attempt_number } = *attempt;
                self.attempt_inserted.execute(params![
                    integer(task.job.0),
                    task.index,
                    attempt_number,
                    number,
                    integer(*wall_ms),
                ])?;
                if attempt_number > 1 {
                    // Its task no longer waits for it.
                    self.standing(AttemptId { task, number: attempt_number - 1 }, standing::OVER)?;
                }
                Ok(())
            }
            Change::AttemptAdvanced { attempt, state, wall_ms } => {
                let started_ms = (*state == AttemptState::Running).then(|| integer(*wall_ms));
                let changed = self.attempt_advanced.execute(params![
                    integer(attempt.task.job.0),
                    attempt.task.index,
                    attempt.number,
                    attempt_code(*state),
                    started_ms,
                ])?;
                one(changed, attempt)
            }
            Change::AttemptEnded { attempt, outcome, wall_ms, retry_after_ms } => {
                self.attempt_ended(attempt, outcome, *wall_ms, *retry_after_ms)
            }
            Change::RetryDropped { attempt } => {
                let changed = self.standing(*attempt, standing::DROPPED)?;
                one(changed, attempt)
            }
            Change::NodeSaved(row) => self.node_saved(row),
            Change::EpochTaken(epoch) => {
                self.connection
                    .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'last_epoch'")?
                    .execute([integer(epoch.0)])?;
                Ok(())
            }
            Change::TokenSaved(row) => Ok(access::save_token(self.connection, row)?),
            Change::TokenRemoved(id) => Ok(access::remove_token(self.connection, *id)?),
            Change::KeySaved(row) => Ok(access::save_key(self.connection, row)?),
        }
    }

    fn standing(&self, attempt: AttemptId, standing: i64) -> rusqlite::Result<usize> {
        self.connection
            .prepare_cached(
                "UPDATE attempts SET standing = ?4 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?
            .execute(params![
                integer(attempt.task.job.0),
                attempt.task.index,
                attempt.number,
                standing
            ])
    }

    fn attempt_ended(
        &mut self,
        attempt: &AttemptId,
        outcome: &Outcome,
        wall_ms: u64,
        retry_after_ms: Option<u64>,
    ) -> Result<(), WriteError> {
        let standing = if retry_after_ms.is_some() { standing::RETRY } else { standing::OVER };
        let changed = self.attempt_ended.execute(params![
            integer(attempt.task.job.0),
            attempt.task.index,
            attempt.number,
            standing,
            integer(wall_ms),
            retry_after_ms.map(integer),
            outcome_code(outcome.kind),
            outcome.exit_code,
            outcome.signal,
            outcome.oom_killed,
            integer(outcome.ran_ms),
            outcome.message,
        ])?;
        one(changed, attempt)
    }

    fn job_updated(&mut self, row: &JobRow, changed: Revision) -> Result<(), WriteError> {
        let rows = self
            .connection
            .prepare_cached(
                "UPDATE jobs SET state = ?2, next_index = ?3, queued = ?4, active = ?5,
                     succeeded = ?6, failed = ?7, cancelled = ?8, started_ms = ?9, ended_ms = ?10,
                     changed = ?11
                 WHERE job = ?1",
            )?
            .execute(params![
                integer(row.job.0),
                job_code(row.state),
                integer(row.next_index),
                row.counts.queued,
                row.counts.active,
                row.counts.succeeded,
                row.counts.failed,
                row.counts.cancelled,
                row.started_wall_ms.map(integer),
                row.ended_wall_ms.map(integer),
                integer(changed.0),
            ])?;
        one(rows, &row.job)
    }

    fn node_saved(&mut self, row: &NodeRow) -> Result<(), WriteError> {
        let number: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO nodes (name, boot_id, agent_instance, program_version, cpu_millis,
                     memory_bytes, labels, runtimes, epoch)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (name) DO UPDATE SET boot_id = ?2, agent_instance = ?3,
                     program_version = ?4, cpu_millis = ?5, memory_bytes = ?6, labels = ?7,
                     runtimes = ?8, epoch = ?9
                 RETURNING node",
            )?
            .query_row(
                params![
                    row.node.as_str(),
                    row.boot_id,
                    row.agent_instance.0.as_bytes(),
                    row.program_version,
                    row.capacity.cpu_millis,
                    integer(row.capacity.memory_bytes),
                    rmp_serde::to_vec_named(&row.labels)?,
                    rmp_serde::to_vec_named(&row.runtimes)?,
                    integer(row.epoch.0),
                ],
                |row| row.get(0),
            )?;
        self.nodes.insert(row.node.clone(), number);
        Ok(())
    }
}

/// A row that is to be changed must be there.
fn one(changed: usize, what: &dyn std::fmt::Display) -> Result<(), WriteError> {
    if changed == 1 {
        return Ok(());
    }
    Err(WriteError::Contradiction(format!("{what} is to be changed and is not there")))
}
