//! The write side: takes whole steps, commits all waiting ones in one transaction, and only then
//! releases their effects.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use podmesh_manager_core::state::failed;
use podmesh_manager_core::state::{Change, JobRow, NodeRow};
use podmesh_manager_core::step::Step;
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision};
use podmesh_protocol::limits::COMMIT_ROWS_MAX;
use podmesh_protocol::place::Claims;
use podmesh_protocol::report::{AttemptState, Outcome};
use podmesh_wire::machine::{RESERVE_BYTES, free_bytes};
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use rusqlite::{CachedStatement, Connection, params};
use tokio::sync::{mpsc, watch};

use super::codes::{
    attempt_code, closed_code, integer, job_code, outcome_code, scheduling_code, standing,
    stop_code,
};
use super::commit::{Commit, CommittedChunk, TimedStep, WriteError};
use super::events::{self, EventRow};
use super::log::log_of;
use super::measures::StoreMeasures;
use super::numbers::JobNumbers;
use super::removal::{self, Leftovers};
use super::{
    BUSY_TIMEOUT, StoreError, access, numbers, queues, schedules, seal, services, upstream, volumes,
};

/// The pause between two tries to write to a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(250);
/// When the write-ahead log is longer than this, the writer waits for readers that prevent it from
/// being reset.
const WAL_BYTES_MAX: u64 = 256 << 20;
/// How long to wait for such readers. A commit takes longer by this time.
const READERS_WAIT: Duration = Duration::from_millis(100);
/// The same when the manager stops.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Commits between two checks of the length of the write-ahead log.
const WAL_LOOK_COMMITS: u32 = 256;

/// The only writer of the database.
pub(crate) struct Writer {
    connection: Connection,
    path: PathBuf,
    /// The numbers of the nodes in the database.
    nodes: HashMap<Name, i64>,
    numbers: JobNumbers,
    last_revision: Arc<AtomicU64>,
    commits_until_look: u32,
    leftovers: Leftovers,
    measures: Arc<StoreMeasures>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        nodes: HashMap<Name, i64>,
        numbers: JobNumbers,
        last_revision: Revision,
    ) -> Self {
        Self {
            connection,
            path,
            nodes,
            numbers,
            last_revision: Arc::new(AtomicU64::new(last_revision.0)),
            commits_until_look: WAL_LOOK_COMMITS,
            leftovers: Leftovers::default(),
            measures: Arc::default(),
        }
    }

    /// Returns the shared revision of the last committed event.
    pub(crate) fn last_revision(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.last_revision)
    }

    /// Returns what it measures.
    pub(crate) fn measures(&self) -> Arc<StoreMeasures> {
        Arc::clone(&self.measures)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Writes steps until all senders of `steps` are gone. When `committed` is full, it waits, which
    /// in turn slows down the core and the socket. While the disk is full it waits, too, unless the
    /// manager is stopping.
    ///
    /// # Errors
    /// Returns the first failure to write. No effect of that transaction or a later one is released.
    pub(crate) fn run(
        mut self,
        steps: &Receiver<TimedStep>,
        committed: &mpsc::Sender<Commit>,
        stopping: &watch::Receiver<bool>,
        pulse: &Pulse,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        loop {
            pulse.beat();
            let wait = self.leftovers.pause().unwrap_or(BEAT_EVERY);
            let first = match steps.recv_timeout(wait) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    self.remove_leftovers()?;
                    continue;
                }
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
                break; // The receiver is gone: the daemon is ending.
            }
        }
        // Leaves a single file if possible. Otherwise the next start applies the log.
        self.empty_the_wal(LAST_WAIT);
        Ok(())
    }

    /// Commits as soon as there is room on the disk. Until then no effect of the steps is released:
    /// clients wait for their replies, and agents keep their reports.
    fn commit_patiently(
        &mut self,
        batch: &mut Vec<TimedStep>,
        stopping: &watch::Receiver<bool>,
        pulse: &Pulse,
    ) -> Result<Commit, StoreError> {
        let mut full = false;
        loop {
            match self.commit(batch) {
                Err(StoreError::Full { path }) if !*stopping.borrow() => {
                    if !full {
                        full = true;
                        self.measures.waits_for_room.store(true, Ordering::Relaxed);
                        pulse.excuse(true);
                        let path = path.display();
                        tracing::error!(
                            "no room is left for {path}: the manager waits until there is"
                        );
                    }
                    // Removed rows may be the only room that can be gained.
                    self.empty_the_wal(READERS_WAIT);
                    self.remove_leftovers()?;
                    std::thread::sleep(FULL_PAUSE);
                }
                done => {
                    pulse.excuse(false);
                    self.measures.waits_for_room.store(false, Ordering::Relaxed);
                    if full && done.is_ok() {
                        tracing::info!("there is room for the database again");
                    }
                    return done;
                }
            }
        }
    }

    /// Writes the steps in one transaction, if there is anything to write. After an error the batch is
    /// unchanged.
    pub(super) fn commit(&mut self, batch: &mut Vec<TimedStep>) -> Result<Commit, StoreError> {
        let mut done = Commit::default();
        if batch.iter().any(|decided| rows(&decided.step) > 0) {
            let began = Instant::now();
            let rows = self.transaction(batch, &mut done).map_err(|e| match e {
                WriteError::Sqlite(e) => StoreError::sqlite(&self.path, "written", e),
                WriteError::File(source) if is_full(&source) => {
                    StoreError::Full { path: self.path.clone() }
                }
                WriteError::File(source) => StoreError::File { path: self.numbers.path(), source },
                WriteError::Contradiction(what) => {
                    StoreError::Contradiction { path: self.path.clone(), what }
                }
            })?;
            self.measures.commits.add(began.elapsed());
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
        batch: &[TimedStep],
        done: &mut Commit,
    ) -> Result<Vec<EventRow>, WriteError> {
        // Rolls back if dropped without a commit.
        let transaction = self.connection.unchecked_transaction()?;
        let mut rows = Rows::new(&transaction, &mut self.nodes)?;
        let (mut jobs, mut event_rows) = (BTreeMap::new(), Vec::new());
        let mut last_revision = Revision(self.last_revision.load(Ordering::Acquire));
        for TimedStep { step, wall_ms, age_ms } in batch {
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
                        jobs.insert(row.job, (row.clone(), last_revision, *age_ms));
                    }
                    Change::AgeSaved(age_ms) => {
                        removal::save_age(&transaction, *age_ms, *wall_ms)?;
                        removal::remove_nodes(&transaction)?;
                    }
                    other => {
                        if let Change::JobInserted { job, .. } = other {
                            self.numbers.reach(*job).map_err(WriteError::File)?;
                        }
                        rows.write(other, last_revision)?;
                        done.touched.extend(job_of(other));
                    }
                }
            }
        }
        for (row, changed, age_ms) in jobs.values() {
            rows.job_updated(row, *changed, *age_ms)?;
        }
        if !event_rows.is_empty() {
            events::forget_old(&transaction, last_revision, event_rows.len())?;
        }
        let (removed, attempts) = (rows.removed, rows.attempts);
        removal::count_kept(&transaction, rows.kept)?;
        drop(rows);
        if removed {
            self.leftovers = Leftovers::Attempts;
        } else if self.leftovers == Leftovers::Attempts {
            // A busy manager has no pauses, so each commit removes more than it adds.
            removal::remove_attempts(&transaction, attempts + removal::ATTEMPTS_PER_COMMIT)?;
        }
        done.touched.extend(jobs.into_keys());
        transaction.commit()?;
        Ok(event_rows)
    }

    /// Removes some of the rows that removed jobs have left. A full disk may have no room even for
    /// that; then the next call tries again.
    pub(super) fn remove_leftovers(&mut self) -> Result<(), StoreError> {
        match self.leftovers.remove_some(&self.connection) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => match StoreError::sqlite(&self.path, "written", error) {
                StoreError::Full { .. } => {}
                error => return Err(error),
            },
        }
        // The file becomes shorter when its log is emptied.
        let is_full = free_bytes(&self.path).is_ok_and(|free| free < RESERVE_BYTES);
        if self.leftovers == Leftovers::None || is_full {
            self.empty_the_wal(READERS_WAIT);
        }
        Ok(())
    }

    /// Empties the write-ahead log if it is too long. SQLite resets its log only when all of it is in
    /// the database and nobody reads it, which may never happen by itself under steady reads.
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

    /// Empties the write-ahead log, and returns whether it succeeded. Waits for readers for at most
    /// `wait`, because a backup can read for long. A failure loses no commits.
    pub(super) fn empty_the_wal(&self, wait: Duration) -> bool {
        let emptied = || -> rusqlite::Result<bool> {
            self.connection.busy_timeout(wait)?;
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            let busy: bool = self.connection.query_row(checkpoint, [], |row| row.get(0))?;
            Ok(!busy)
        };
        let emptied = emptied().unwrap_or(false);
        // This only sets a number, and cannot fail.
        _ = self.connection.busy_timeout(BUSY_TIMEOUT);
        emptied
    }
}

/// Returns about how many rows a step writes.
fn rows(step: &Step) -> usize {
    step.changes.len() + step.events.len()
}

/// Returns the job that a change makes visible to readers.
fn job_of(change: &Change) -> Option<JobId> {
    match change {
        Change::JobInserted { job, .. } | Change::JobUpdated(JobRow { job, .. }) => Some(*job),
        Change::AttemptInserted { attempt, .. }
        | Change::AttemptAdvanced { attempt, .. }
        | Change::AttemptStopping { attempt, .. }
        | Change::AttemptEnded { attempt, .. }
        | Change::RetryDropped { attempt }
        | Change::ReplicaChanged { attempt, .. } => Some(attempt.task.job),
        Change::JobRemoved(job)
        | Change::JobClosed(job, _)
        | Change::TaskRequeued { job, .. }
        | Change::DependencyChanged { job, .. }
        | Change::TasksReleased { job, .. }
        | Change::RestRequeued { job, .. } => Some(*job),
        Change::JobReopened(job) => Some(job.id),
        Change::NodeSaved(_)
        | Change::NodeForgotten(_)
        | Change::ServiceSaved { .. }
        | Change::ServiceRemoved(_)
        | Change::ScheduleSaved { .. }
        | Change::ScheduleAdvanced { .. }
        | Change::ScheduleRemoved(_)
        | Change::QueueSaved { .. }
        | Change::QueueRemoved(_)
        | Change::VolumeSaved { .. }
        | Change::VolumeRemoved(_)
        | Change::RevisionSaved { .. }
        | Change::RevisionEnded { .. }
        | Change::EpochTaken(_)
        | Change::AgeSaved(_)
        | Change::TokenSaved(_)
        | Change::TokenRemoved(_)
        | Change::KeySaved(_)
        | Change::KeyRemoved(_) => None,
    }
}

/// The statements of one transaction.
struct Rows<'a> {
    connection: &'a Connection,
    nodes: &'a mut HashMap<Name, i64>,
    attempt_inserted: CachedStatement<'a>,
    attempt_advanced: CachedStatement<'a>,
    attempt_ended: CachedStatement<'a>,
    /// The change of the number of attempts of ended jobs.
    kept: i64,
    /// Whether a job was removed.
    removed: bool,
    /// How many attempts were inserted.
    attempts: usize,
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
            kept: 0,
            removed: false,
            attempts: 0,
        })
    }

    fn write(&mut self, change: &Change, revision: Revision) -> Result<(), WriteError> {
        match change {
            Change::JobInserted { job, submission, spec, by, wall_ms } => {
                let replica = spec.run.replica.as_deref();
                self.connection
                    .prepare_cached(
                        "INSERT INTO jobs (job, submission, name, priority, first_index,
                             last_index, submitted_ms, state, next_index, queued, active,
                             succeeded, failed, cancelled, changed, submitted_by, service, replica)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?5, 0, 0, 0, 0, 0, ?8, ?9, ?10, ?11)",
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
                        by.as_str(),
                        replica.map(|replica| replica.service.as_str()),
                        replica.map(|replica| replica.number),
                    ])?;
                self.connection
                    .prepare_cached("INSERT INTO job_specs (job, spec) VALUES (?1, ?2)")?
                    .execute(params![integer(job.0), rmp_serde::to_vec_named(&**spec)?])?;
                Ok(upstream::insert_job(self.connection, *job, spec)?)
            }
            Change::DependencyChanged { job, upstream: of, progress, starts_wall_ms } => {
                if let Some(wall_ms) = starts_wall_ms {
                    self.waits_since(*job, *wall_ms)?;
                }
                one(upstream::change(self.connection, *job, *of, *progress)?, job)
            }
            // The attempts of the upstream job say the same.
            Change::TasksReleased { .. } => Ok(()),
            // The transaction handles the first two itself. The row of a cancelled job follows.
            Change::JobUpdated(_) | Change::AgeSaved(_) | Change::JobClosed(..) => Ok(()),
            // Its row follows. The counts that were added at its end are taken back.
            Change::JobReopened(job) => {
                self.kept -= removal::weight(job.attempts);
                upstream::reopen(self.connection, job)
            }
            Change::TaskRequeued { job, task } => {
                let changed = self
                    .connection
                    .prepare_cached(
                        "UPDATE attempts SET standing = ?4, retry_ms = 0, requeued = 1,
                             failed_ms = NULL
                         WHERE job = ?1 AND task = ?2 AND number = ?3 AND standing >= ?5",
                    )?
                    .execute(params![
                        integer(job.0),
                        task.index,
                        task.number,
                        standing::RETRY,
                        standing::OVER,
                    ])?;
                one(changed, &AttemptId::new(*job, task.index, task.number))
            }
            Change::RestRequeued { job, wall_ms } => self.waits_since(*job, *wall_ms),
            Change::JobRemoved(job) => {
                self.kept -= removal::remove_job(self.connection, *job)?;
                self.removed = true;
                Ok(())
            }
            Change::AttemptInserted { attempt, node, wall_ms, claims } => {
                let Some(number) = self.nodes.get(node) else {
                    let what = format!(
                        "attempt {attempt} is assigned to node {node}, which was never saved"
                    );
                    return Err(WriteError::Contradiction(what));
                };
                let AttemptId { task, number: attempt_number } = *attempt;
                self.attempts += 1;
                self.attempt_inserted.execute(params![
                    integer(task.job.0),
                    task.index,
                    attempt_number,
                    number,
                    integer(*wall_ms),
                ])?;
                if let Some(claims) = claims {
                    self.save_claims(attempt, claims)?;
                }
                if attempt_number > 1 {
                    // The previous attempt no longer waits for a retry.
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
            Change::AttemptStopping { attempt, stop } => {
                let changed = self
                    .connection
                    .prepare_cached(
                        "UPDATE attempts SET stop = ?4
                         WHERE job = ?1 AND task = ?2 AND number = ?3 AND standing = ?5",
                    )?
                    .execute(params![
                        integer(attempt.task.job.0),
                        attempt.task.index,
                        attempt.number,
                        stop_code(*stop),
                        standing::ACTIVE,
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
            Change::ReplicaChanged { attempt, status } => {
                services::save_replica(self.connection, *attempt, status)
            }
            Change::ServiceSaved { service, saved } => {
                services::save(self.connection, service, saved)
            }
            Change::ServiceRemoved(service) => Ok(services::remove(self.connection, service)?),
            Change::RevisionSaved { service, revision, spec, by, wall_ms } => {
                services::save_revision(self.connection, service, *revision, spec, by, *wall_ms)
            }
            Change::RevisionEnded { service, revision, state, message } => {
                let message = message.as_deref();
                Ok(services::end_revision(self.connection, service, *revision, *state, message)?)
            }
            Change::ScheduleSaved { schedule, saved } => {
                schedules::save(self.connection, schedule, saved)
            }
            Change::ScheduleAdvanced { schedule, progress, runs } => {
                one(schedules::advance(self.connection, schedule, progress, runs)?, schedule)
            }
            Change::ScheduleRemoved(schedule) => Ok(schedules::remove(self.connection, schedule)?),
            Change::QueueSaved { queue, row } => queues::save(self.connection, queue, row),
            Change::QueueRemoved(queue) => Ok(queues::remove(self.connection, queue)?),
            Change::VolumeSaved { volume, row } => Ok(volumes::save(self.connection, volume, row)?),
            Change::VolumeRemoved(volume) => Ok(volumes::remove(self.connection, volume)?),
            Change::NodeSaved(row) => self.node_saved(row),
            Change::NodeForgotten(node) => self.node_forgotten(node),
            Change::KeyRemoved(key) => Ok(access::remove_key(self.connection, key)?),
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

    /// Few attempts have claims: the statement that inserts all of them stays short.
    fn save_claims(&self, attempt: &AttemptId, claims: &Claims) -> Result<(), WriteError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE attempts SET claims = ?4 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?
            .execute(params![
                integer(attempt.task.job.0),
                attempt.task.index,
                attempt.number,
                rmp_serde::to_vec_named(claims)?,
            ])?;
        one(changed, attempt)
    }

    /// Writes since when the tasks of a job that have had no attempt wait.
    fn waits_since(&self, job: JobId, wall_ms: u64) -> Result<(), WriteError> {
        let changed = self
            .connection
            .prepare_cached("UPDATE jobs SET waits_since_ms = ?2 WHERE job = ?1")?
            .execute(params![integer(job.0), integer(wall_ms)])?;
        one(changed, &job)
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
        one(changed, attempt)?;
        if retry_after_ms.is_none() && failed(outcome.kind) {
            self.connection
                .prepare_cached(
                    "UPDATE attempts SET failed_ms = ended_ms
                     WHERE job = ?1 AND task = ?2 AND number = ?3",
                )?
                .execute(params![
                    integer(attempt.task.job.0),
                    attempt.task.index,
                    attempt.number
                ])?;
        }
        Ok(())
    }

    fn job_updated(
        &mut self,
        row: &JobRow,
        changed: Revision,
        age_ms: u64,
    ) -> Result<(), WriteError> {
        if row.state.is_end() {
            self.kept += removal::weight(row.attempts);
        }
        let rows = self
            .connection
            .prepare_cached(
                "UPDATE jobs SET state = ?2, next_index = ?3, queued = ?4, active = ?5,
                     succeeded = ?6, failed = ?7, cancelled = ?8, started_ms = ?9, ended_ms = ?10,
                     changed = ?11, attempts = ?12, ended_age_ms = ?13, closed = ?14,
                     rest_cancelled = ?15
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
                integer(row.attempts),
                row.state.is_end().then(|| integer(age_ms)),
                row.closed.map(closed_code),
                row.rest_cancelled,
            ])?;
        one(rows, &row.job)
    }

    fn node_saved(&mut self, row: &NodeRow) -> Result<(), WriteError> {
        let number: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO nodes (name, boot_id, agent_instance, program_version, cpu_millis,
                     memory_bytes, labels, runtimes, epoch, agent_id, lost_age_ms, scheduling,
                     address, drain, admin_labels, resources, maintenance)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
                 ON CONFLICT (name) DO UPDATE SET boot_id = ?2, agent_instance = ?3,
                     program_version = ?4, cpu_millis = ?5, memory_bytes = ?6, labels = ?7,
                     runtimes = ?8, epoch = ?9, agent_id = ?10, lost_age_ms = ?11,
                     scheduling = ?12, address = ?13, drain = ?14, admin_labels = ?15, resources = ?16,
                     maintenance = ?17, forgotten = 0
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
                    row.agent_id.map(|id| id.0.into_bytes()),
                    row.lost_age_ms.map(integer),
                    scheduling_code(row.scheduling),
                    row.address,
                    row.drain.as_deref().map(rmp_serde::to_vec_named).transpose()?,
                    (!row.admin_labels.is_empty())
                        .then(|| rmp_serde::to_vec_named(&row.admin_labels))
                        .transpose()?,
                    (!row.resources.is_empty())
                        .then(|| rmp_serde::to_vec_named(&row.resources))
                        .transpose()?,
                    row.maintenance.as_deref().map(rmp_serde::to_vec_named).transpose()?,
                ],
                |row| row.get(0),
            )?;
        self.nodes.insert(row.node.clone(), number);
        Ok(())
    }

    /// Its row stays as long as jobs do that may have attempts on it, because attempts have the
    /// node's number. The next agent of that name gets the row.
    fn node_forgotten(&mut self, node: &Name) -> Result<(), WriteError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE nodes SET forgotten = 1, agent_id = NULL, last_job = ?2 WHERE name = ?1",
            )?
            .execute(params![node.as_str(), integer(numbers::last_job(self.connection)?.0)])?;
        self.nodes.remove(node);
        one(changed, node)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Checks that exactly one row was changed.
fn one(changed: usize, what: &dyn std::fmt::Display) -> Result<(), WriteError> {
    if changed == 1 {
        return Ok(());
    }
    Err(WriteError::Contradiction(format!("{what} should be changed, but does not exist")))
}
