//! The read side: pages of jobs and tasks, details, events of before.
//!
//! Every read is bounded in rows and in bytes, so that one thread serves all clients in turn.

use std::cell::RefCell;
use std::path::PathBuf;

use podmesh_protocol::client::{AttemptView, JobDetail, JobView, ReplyBody, TaskDetail, TaskView};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{EventChunk, EventFact};
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::{FRAME_BYTES_MAX, PAGE_ROWS_MAX};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskState};
use podmesh_protocol::spec::ArrayRange;
use rusqlite::{Connection, ErrorCode as Sqlite, OptionalExtension, Row, params};

use super::StoreError;
use super::codes::{attempt_state, integer, job_state, outcome_kind, task_state, unsigned};
use super::restore::{counts, decoded, name};

/// Bytes of rows in one reply, estimated from above; the rest of the frame is room for the
/// estimate to be wrong.
const REPLY_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);
/// Bytes of a row of tasks, attempts or jobs, without the texts in it.
const ROW_BYTES: usize = 512;
/// Rows that one request for tasks looks at, the last task's further attempts apart. A page can
/// be short for it, and says where to go on.
const SCAN_ROWS_MAX: usize = 50_000;

/// Why a read has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Events that are no longer kept.
    #[error(
        "the events after revision {since} are no longer kept: the oldest kept is {oldest}; ask for those since {} or later", oldest.0 - 1
    )]
    Compacted {
        /// Asked for.
        since: Revision,
        /// Kept.
        oldest: Revision,
    },
    /// SQLite failed.
    #[error("the manager could not read its database: {0}; `podmesh check` there tells more")]
    Sqlite(#[from] rusqlite::Error),
}

impl From<ReadError> for ErrorReply {
    fn from(error: ReadError) -> Self {
        let code = match error {
            ReadError::NotFound(_) => ErrorCode::NotFound,
            ReadError::Compacted { .. } => ErrorCode::Compacted,
            ReadError::Sqlite(_) => ErrorCode::Storage,
        };
        Self::new(code, error.to_string())
    }
}

/// The read-only connection.
pub(crate) struct History {
    connection: Connection,
    path: PathBuf,
    damage: RefCell<Option<String>>,
}

const JOB_COLUMNS: &str = "job, name, state, priority, queued, active, succeeded, failed,
    cancelled, submitted_ms, started_ms, ended_ms";

fn job_view(row: &Row<'_>) -> rusqlite::Result<JobView> {
    Ok(JobView {
        job: JobId(unsigned(row.get(0)?)),
        name: name(row, 1)?,
        state: job_state(row.get(2)?)?,
        priority: row.get(3)?,
        counts: counts(row, 4)?,
        submitted_wall_ms: unsigned(row.get(9)?),
        started_wall_ms: row.get::<_, Option<i64>>(10)?.map(unsigned),
        ended_wall_ms: row.get::<_, Option<i64>>(11)?.map(unsigned),
    })
}

const ATTEMPT_COLUMNS: &str = "task, number, standing, nodes.name, state, assigned_ms, started_ms,
    ended_ms, outcome, exit_code, signal, oom_killed, ran_ms, message";

/// An attempt with what it means for its task.
struct AttemptRow {
    task: u32,
    standing: i64,
    view: AttemptView,
}

impl AttemptRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let outcome = match row.get::<_, Option<i64>>(8)? {
            None => None,
            Some(code) => Some(Outcome {
                kind: outcome_kind(code)?,
                exit_code: row.get(9)?,
                signal: row.get(10)?,
                oom_killed: row.get(11)?,
                ran_ms: unsigned(row.get(12)?),
                message: row.get(13)?,
            }),
        };
        Ok(Self {
            task: row.get(0)?,
            standing: row.get(2)?,
            view: AttemptView {
                number: row.get(1)?,
                node: name(row, 3)?,
                state: attempt_state(row.get(4)?)?,
                outcome,
                assigned_wall_ms: unsigned(row.get(5)?),
                started_wall_ms: row.get::<_, Option<i64>>(6)?.map(unsigned),
                ended_wall_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
            },
        })
    }

    fn task_state(&self) -> TaskState {
        task_state(self.standing, self.view.outcome.as_ref().map(|outcome| outcome.kind))
    }

    fn bytes(&self) -> usize {
        let message = self.view.outcome.as_ref().and_then(|outcome| outcome.message.as_ref());
        ROW_BYTES + message.map_or(0, String::len)
    }
}

/// What is needed of a job to tell of its tasks.
struct JobTasks {
    array: ArrayRange,
    next_index: u64,
    state: JobState,
}

impl JobTasks {
    /// Where a task stands that has had no attempt.
    fn untried(&self) -> TaskState {
        match self.state {
            JobState::Cancelling | JobState::Cancelled => TaskState::Cancelled,
            JobState::Queued | JobState::Running | JobState::Succeeded | JobState::Failed => {
                TaskState::Queued
            }
        }
    }
}

impl History {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        Self { connection, path, damage: RefCell::default() }
    }

    /// Passes on what was read, and remembers when SQLite found damage in it.
    pub(crate) fn note<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Sqlite(error)) = &read
            && let Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase) = error.sqlite_error_code()
        {
            self.damage.replace(Some(error.to_string()));
        }
        read
    }

    /// The error that ends the manager, when the database was found to be damaged.
    pub(crate) fn damage(&self) -> Option<StoreError> {
        let why = self.damage.take()?;
        Some(StoreError::Damaged { path: self.path.clone(), why })
    }

    /// The job that a submission made.
    pub(crate) fn submission(&self, submission: SubmissionId) -> Result<Option<JobId>, ReadError> {
        Ok(self
            .connection
            .prepare_cached("SELECT job FROM jobs WHERE submission = ?1")?
            .query_row([submission.0.as_bytes()], |row| Ok(JobId(unsigned(row.get(0)?))))
            .optional()?)
    }

    /// The jobs, newest first.
    pub(crate) fn jobs(
        &self,
        before: Option<JobId>,
        active: bool,
        limit: u32,
    ) -> Result<Vec<JobView>, ReadError> {
        let only = if active { "state < 3" } else { "1" };
        let rows = self
            .connection
            .prepare_cached(&format!(
                "SELECT {JOB_COLUMNS} FROM jobs WHERE {only} AND job < ?1
                 ORDER BY job DESC LIMIT ?2"
            ))?
            .query_map(
                params![integer(before.map_or(u64::MAX, |job| job.0)), limit.min(PAGE_ROWS_MAX)],
                job_view,
            )?
            .collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// All about a job but why it waits; and the revision of its last change.
    pub(crate) fn job(&self, job: JobId) -> Result<(JobDetail, Revision), ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let revision = self.last_revision()?;
        let found = self
            .connection
            .prepare_cached(&format!(
                "SELECT {JOB_COLUMNS}, spec, changed FROM jobs JOIN job_specs USING (job)
                 WHERE job = ?1"
            ))?
            .query_row([integer(job.0)], |row| {
                let detail = JobDetail {
                    view: job_view(row)?,
                    spec: decoded(row, 12)?,
                    revision,
                    waits_for: Vec::new(),
                };
                Ok((detail, Revision(unsigned(row.get(13)?))))
            })
            .optional()?;
        found.map_or_else(|| Err(self.no_job(job)?), Ok)
    }

    /// Where a job stands, and the revision of its last change.
    pub(crate) fn job_state(&self, job: JobId) -> Result<(JobState, Revision), ReadError> {
        let found = self
            .connection
            .prepare_cached("SELECT state, changed FROM jobs WHERE job = ?1")?
            .query_row([integer(job.0)], |row| {
                Ok((job_state(row.get(0)?)?, Revision(unsigned(row.get(1)?))))
            })
            .optional()?;
        found.map_or_else(|| Err(self.no_job(job)?), Ok)
    }

    /// Tasks in order of index, and the index to go on from.
    pub(crate) fn tasks(
        &self,
        job: JobId,
        from: u32,
        state: Option<TaskState>,
        limit: u32,
    ) -> Result<(Vec<TaskView>, Option<u32>), ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let about = self.job_tasks(job)?;
        let mut page =
            Page { job, state, room: limit.clamp(1, PAGE_ROWS_MAX), bytes: 0, tasks: Vec::new() };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {ATTEMPT_COLUMNS} FROM attempts JOIN nodes USING (node)
             WHERE job = ?1 AND task >= ?2 ORDER BY task, number"
        ))?;
        let mut rows = statement.query(params![integer(job.0), from])?;
        let mut last: Option<AttemptRow> = None;
        let mut scanned = 0;
        while let Some(row) = rows.next()? {
            scanned += 1;
            let task: u32 = row.get(0)?;
            if let Some(before) = last.take_if(|before| before.task != task) {
                let stop = page.add(before.task, before.task_state(), Some(before));
                if stop.is_some() || scanned > SCAN_ROWS_MAX {
                    return Ok((page.tasks, stop.or(Some(task))));
                }
            }
            last = Some(AttemptRow::read(row)?);
        }
        if let Some(before) = last {
            let (task, state) = (before.task, before.task_state());
            if let Some(stop) = page.add(task, state, Some(before)) {
                return Ok((page.tasks, Some(stop)));
            }
        }
        // The tasks that have had no attempt have no row.
        let untried = about.untried();
        if state.is_none_or(|wanted| wanted == untried) {
            let first = about.next_index.max(u64::from(about.array.first)).max(u64::from(from));
            let first = u32::try_from(first).ok();
            for task in first.into_iter().flat_map(|first| first..=about.array.last) {
                if let Some(stop) = page.add(task, untried, None) {
                    return Ok((page.tasks, Some(stop)));
                }
            }
        }
        Ok((page.tasks, None))
    }

    /// A task with its attempts.
    pub(crate) fn task(&self, task: TaskId) -> Result<TaskDetail, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let about = self.job_tasks(task.job)?;
        let ArrayRange { first, last } = about.array;
        if !about.array.contains(task.index) {
            let job = task.job;
            let which = if first == last {
                format!("its only task is {job}.{first}")
            } else {
                format!("its tasks are {job}.{first} to {job}.{last}")
            };
            return Err(ReadError::NotFound(format!("there is no task {task}; {which}")));
        }
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {ATTEMPT_COLUMNS} FROM attempts JOIN nodes USING (node)
             WHERE job = ?1 AND task = ?2 ORDER BY number DESC LIMIT ?3"
        ))?;
        let mut rows = statement.query(params![integer(task.job.0), task.index, PAGE_ROWS_MAX])?;
        let mut attempts = Vec::new();
        let mut state = about.untried();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let row = AttemptRow::read(row)?;
            bytes += row.bytes();
            if attempts.is_empty() {
                state = row.task_state();
            } else if bytes > REPLY_BYTES_MAX {
                break;
            }
            attempts.push(row.view);
        }
        attempts.reverse();
        Ok(TaskDetail { task, state, attempts })
    }

    /// The number of the last attempt of a task, and where that stands: what a reply that is
    /// held compares.
    pub(crate) fn last_attempt(
        &self,
        task: TaskId,
    ) -> Result<Option<(u32, AttemptState)>, ReadError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT number, state FROM attempts WHERE job = ?1 AND task = ?2
                 ORDER BY number DESC LIMIT 1",
            )?
            .query_row(params![integer(task.job.0), task.index], |row| {
                Ok((row.get(0)?, attempt_state(row.get(1)?)?))
            })
            .optional()?)
    }

    /// Where an attempt runs or ran.
    pub(crate) fn node_of(&self, attempt: AttemptId) -> Result<Name, ReadError> {
        let AttemptId { task, number } = attempt;
        let found = self
            .connection
            .prepare_cached(
                "SELECT name FROM attempts JOIN nodes USING (node)
                 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?
            .query_row(params![integer(task.job.0), task.index, number], |row| name(row, 0))
            .optional()?;
        if let Some(node) = found {
            return Ok(node);
        }
        // Says whether it is the job or the task that is not there.
        let detail = self.task(task)?;
        let so_far = match detail.attempts.last() {
            None => format!("task {task} has not been tried yet"),
            Some(last) => format!("the last one is {task}#{}", last.number),
        };
        Err(ReadError::NotFound(format!("there is no attempt {attempt}; {so_far}")))
    }

    /// The events after a revision, as many as fit one message, and the last revision. Nothing
    /// after the last one is no error: a client may have heard of it before the reader sees it.
    pub(crate) fn events(&self, since: Revision) -> Result<ReplyBody, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let last = self.last_revision()?;
        let oldest = self
            .connection
            .prepare_cached("SELECT first FROM events ORDER BY last LIMIT 1")?
            .query_row([], |row| Ok(Revision(unsigned(row.get(0)?))))
            .optional()?;
        if let Some(oldest) = oldest
            && since.0.saturating_add(1) < oldest.0
        {
            return Err(ReadError::Compacted { since, oldest });
        }
        let mut chunks = Vec::new();
        let mut bytes = 0;
        let mut statement = self.connection.prepare_cached(
            "SELECT first, wall_ms, facts FROM events WHERE last > ?1 ORDER BY last",
        )?;
        let mut rows = statement.query([integer(since.0)])?;
        while let Some(row) = rows.next()? {
            bytes += row.get_ref(2)?.as_blob().map_or(0, <[u8]>::len) + 64;
            if bytes > REPLY_BYTES_MAX && !chunks.is_empty() {
                break;
            }
            let mut first = Revision(unsigned(row.get(0)?));
            let mut facts: Vec<EventFact> = decoded(row, 2)?;
            if first <= since {
                let known = usize::try_from(since.0 - first.0 + 1).unwrap_or(facts.len());
                facts.drain(..known.min(facts.len()));
                first = Revision(since.0 + 1);
            }
            chunks.push(EventChunk { first, wall_ms: unsigned(row.get(1)?), facts });
        }
        Ok(ReplyBody::Events { chunks, last })
    }

    fn last_revision(&self) -> rusqlite::Result<Revision> {
        self.connection
            .prepare_cached("SELECT coalesce(max(last), 0) FROM events")?
            .query_row([], |row| Ok(Revision(unsigned(row.get(0)?))))
    }

    fn job_tasks(&self, job: JobId) -> Result<JobTasks, ReadError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT first_index, last_index, next_index, state FROM jobs WHERE job = ?1",
            )?
            .query_row([integer(job.0)], |row| {
                Ok(JobTasks {
                    array: ArrayRange { first: row.get(0)?, last: row.get(1)? },
                    next_index: unsigned(row.get(2)?),
                    state: job_state(row.get(3)?)?,
                })
            })
            .optional()?;
        found.map_or_else(|| Err(self.no_job(job)?), Ok)
    }

    fn no_job(&self, job: JobId) -> Result<ReadError, ReadError> {
        let last: Option<i64> =
            self.connection.query_row("SELECT max(job) FROM jobs", [], |row| row.get(0))?;
        let others = match last {
            None => "no job has been submitted yet".to_owned(),
            Some(last) => format!("the last one is {last}"),
        };
        Ok(ReadError::NotFound(format!("there is no job {job}; {others}")))
    }
}

/// A page of tasks as it fills.
struct Page {
    job: JobId,
    state: Option<TaskState>,
    room: u32,
    bytes: usize,
    tasks: Vec<TaskView>,
}

impl Page {
    /// Adds a task, where it is one of those asked for. When the page has no room for it: its
    /// index, where the next page begins.
    fn add(&mut self, index: u32, state: TaskState, last: Option<AttemptRow>) -> Option<u32> {
        if self.state.is_some_and(|wanted| wanted != state) {
            return None;
        }
        self.bytes += last.as_ref().map_or(ROW_BYTES, AttemptRow::bytes);
        let full = self.room == 0 || (self.bytes > REPLY_BYTES_MAX && !self.tasks.is_empty());
        if full {
            return Some(index);
        }
        self.room -= 1;
        let last = last.map(|row| row.view);
        self.tasks.push(TaskView {
            task: TaskId { job: self.job, index },
            state,
            attempts: last.as_ref().map_or(0, |last| last.number),
            last,
        });
        None
    }
}
