//! The read side: pages of jobs and tasks, details, past events.
//!
//! Every read is bounded in rows and in bytes, so that one thread can serve all clients in turn.

use std::cell::RefCell;
use std::path::PathBuf;

use podmesh_manager_core::state::Closed;
use podmesh_manager_core::state::KeyRow;
use podmesh_protocol::client::{
    AttemptView, JobDetail, JobView, ReplyBody, TaskDetail, TaskView, TokenView, UserView,
};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{EventChunk, EventFact};
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, PAGE_ROWS_MAX};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskState};
use podmesh_protocol::schedule::ScheduleRunView;
use podmesh_protocol::service::ServiceRevision;
use podmesh_protocol::spec::ArrayRange;
use rusqlite::{Connection, ErrorCode as Sqlite, OptionalExtension, Row, params};

use super::codes::{attempt_state, closed, integer, job_state, outcome_kind, task_state, unsigned};
use super::columns::{counts, decoded, name, submitted_by};
use super::numbers::last_job;
use super::upstream::{AWAITED, UNMET_COLUMNS};
use super::{StoreError, access, removal, schedules, services};

/// The most bytes of rows in one reply, by a high estimate. The rest of the frame is a reserve in
/// case the estimate is too low.
pub(super) const REPLY_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);
/// The estimated bytes of a row of tasks, attempts or jobs, without its texts.
pub(super) const ROW_BYTES: usize = 512;
/// The most rows that one request for tasks reads, apart from further attempts of the last task.
/// A page can be short because of it, and then says where the next one begins.
pub(super) const SCAN_ROWS_MAX: usize = 50_000;

/// Why a read has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The job, task or attempt does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The events are no longer kept.
    #[error(
        "the events after revision {since} are no longer kept: the oldest kept is {oldest}; ask for those since {} or later", oldest.0 - 1
    )]
    Compacted {
        /// The revision that was asked for.
        since: Revision,
        /// The oldest revision that is kept.
        oldest: Revision,
    },
    /// SQLite failed.
    #[error(
        "the manager could not read its database: {0}; run `podmesh check` on the manager's machine for details"
    )]
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

/// A read-only connection to the database.
pub(crate) struct History {
    pub(super) connection: Connection,
    path: PathBuf,
    damage: RefCell<Option<String>>,
}

const JOB_COLUMNS: &str = "job, name, state, priority, queued, active, succeeded, failed,
    cancelled, submitted_ms, started_ms, ended_ms, submitted_by";
/// How many columns [`job_view`] reads.
const VIEW_COLUMNS: usize = 15;

fn job_view(row: &Row<'_>) -> rusqlite::Result<JobView> {
    Ok(JobView {
        job: JobId(unsigned(row.get(0)?)),
        name: name(row, 1)?,
        state: job_state(row.get(2)?)?.into(),
        priority: row.get(3)?,
        counts: counts(row, 4)?,
        submitted_wall_ms: unsigned(row.get(9)?),
        started_wall_ms: row.get::<_, Option<i64>>(10)?.map(unsigned),
        ended_wall_ms: row.get::<_, Option<i64>>(11)?.map(unsigned),
        submitted_by: submitted_by(row, 12)?,
        unmet: row.get(13)?,
        blocked: row.get(14)?,
    })
}

const ATTEMPT_COLUMNS: &str = "task, number, standing, nodes.name, state, assigned_ms, started_ms,
    ended_ms, outcome, exit_code, signal, oom_killed, ran_ms, message";

/// A row of `attempts`, with the state of its task.
struct AttemptRow {
    task: u32,
    task_state: TaskState,
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
            task_state: task_state(row.get(2)?, outcome.as_ref().map(|outcome| outcome.kind)),
            view: AttemptView {
                number: row.get(1)?,
                node: name(row, 3)?,
                state: attempt_state(row.get(4)?)?.into(),
                outcome: outcome.map(Into::into),
                assigned_wall_ms: unsigned(row.get(5)?),
                started_wall_ms: row.get::<_, Option<i64>>(6)?.map(unsigned),
                ended_wall_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
            },
        })
    }

    fn bytes(&self) -> usize {
        let message = self.view.outcome.as_ref().and_then(|outcome| outcome.message.as_ref());
        ROW_BYTES + message.map_or(0, String::len)
    }
}

/// The part of a job's row that is needed to list its tasks.
struct JobTasks {
    array: ArrayRange,
    rest_cancelled: bool,
}

impl JobTasks {
    /// Returns the state of the tasks that have had no attempt.
    fn untried(&self) -> TaskState {
        if self.rest_cancelled { TaskState::Cancelled } else { TaskState::Queued }
    }
}

/// Returns why the rest of a job was cancelled, if one of its rules did that.
fn ended_early(detail: &JobDetail, closed: Option<Closed>) -> Option<String> {
    let JobDetail { view, spec, .. } = detail;
    match closed? {
        Closed::Cancelled => None,
        Closed::MaxFailures => {
            let max = spec.rules.max_failures.unwrap_or(view.counts.failed);
            Some(format!(
                "{} of its tasks failed, and the limit is {max} (--max-failures): the rest was cancelled",
                view.counts.failed
            ))
        }
        Closed::Expired => {
            Some("expired: tasks that had no attempt in time were cancelled (--expires)".into())
        }
    }
}

/// Which jobs a list has.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobFilter {
    /// Only those that have not ended.
    pub(crate) active: bool,
    /// Only those that were submitted by this node or user.
    pub(crate) by: Option<Name>,
    /// Only the replicas of this service. Without it, there are no replicas.
    pub(crate) service: Option<Name>,
    /// Only replicas with this number.
    pub(crate) replica: Option<u32>,
}

impl History {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        Self { connection, path, damage: RefCell::default() }
    }

    /// Returns the result of a read unchanged, and remembers it if SQLite found damage.
    pub(crate) fn note<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Sqlite(error)) = &read
            && let Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase) = error.sqlite_error_code()
        {
            self.damage.replace(Some(error.to_string()));
        }
        read
    }

    /// Takes the error that must end the manager, if a read found damage.
    pub(crate) fn damage(&self) -> Option<StoreError> {
        let why = self.damage.take()?;
        Some(StoreError::Damaged { path: self.path.clone(), why })
    }

    /// Returns the job that was created with this submission ID.
    pub(crate) fn submission(&self, submission: SubmissionId) -> Result<Option<JobId>, ReadError> {
        Ok(self
            .connection
            .prepare_cached("SELECT job FROM jobs WHERE submission = ?1")?
            .query_row([submission.0.as_bytes()], |row| Ok(JobId(unsigned(row.get(0)?))))
            .optional()?)
    }

    /// Returns the revisions of a service, newest first.
    pub(crate) fn service_history(
        &self,
        service: &Name,
    ) -> Result<Vec<ServiceRevision>, ReadError> {
        Ok(services::history(&self.connection, service)?)
    }

    /// Returns rows of the history of a schedule, newest first.
    pub(crate) fn schedule_history(
        &self,
        schedule: &Name,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<ScheduleRunView>, ReadError> {
        // A row may have a long reason.
        let limit = limit
            .min(PAGE_ROWS_MAX)
            .min((REPLY_BYTES_MAX / (2 * ROW_BYTES + MESSAGE_BYTES_MAX)) as u32);
        Ok(schedules::history(&self.connection, schedule, before, limit)?)
    }

    /// Returns jobs, newest first.
    pub(crate) fn jobs(
        &self,
        before: Option<JobId>,
        only: &JobFilter,
        limit: u32,
    ) -> Result<Vec<JobView>, ReadError> {
        let JobFilter { active, by, service, replica } = only;
        let only = [
            if *active { "state < 3" } else { "TRUE" },
            if by.is_some() { "submitted_by = ?3" } else { "?3 IS NULL" },
            if service.is_some() { "service = ?4" } else { "service IS NULL AND ?4 IS NULL" },
            if replica.is_some() { "replica = ?5" } else { "?5 IS NULL" },
        ]
        .join(" AND ");
        let rows = self
            .connection
            .prepare_cached(&format!(
                "SELECT {JOB_COLUMNS}, {UNMET_COLUMNS} FROM jobs WHERE {only} AND job < ?1
                 ORDER BY job DESC LIMIT ?2"
            ))?
            .query_map(
                params![
                    integer(before.map_or(u64::MAX, |job| job.0)),
                    limit.min(PAGE_ROWS_MAX),
                    by.as_ref().map(Name::as_str),
                    service.as_ref().map(Name::as_str),
                    replica,
                ],
                job_view,
            )?
            .collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Returns a job's details, except why it waits, and the revision of its last change.
    pub(crate) fn job(&self, job: JobId) -> Result<(JobDetail, Revision), ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let revision = self.last_revision()?;
        let found = self
            .connection
            .prepare_cached(&format!(
                "SELECT {JOB_COLUMNS}, {UNMET_COLUMNS}, spec, changed, closed
                 FROM jobs JOIN job_specs USING (job)
                 WHERE job = ?1"
            ))?
            .query_row([integer(job.0)], |row| {
                let detail = JobDetail {
                    view: job_view(row)?,
                    spec: decoded(row, VIEW_COLUMNS)?,
                    revision,
                    waits_for: Vec::new(),
                    ended_early: None,
                };
                let closed =
                    row.get::<_, Option<i64>>(VIEW_COLUMNS + 2)?.map(closed).transpose()?;
                let detail = JobDetail { ended_early: ended_early(&detail, closed), ..detail };
                Ok((detail, Revision(unsigned(row.get(VIEW_COLUMNS + 1)?))))
            })
            .optional()?;
        found.map_or_else(|| Err(self.no_job(job)?), Ok)
    }

    /// Returns a job's state and the revision of its last change.
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

    /// Returns the join tokens, as they are at a time.
    pub(crate) fn join_tokens(&self, wall_ms: u64) -> Result<Vec<TokenView>, ReadError> {
        let rows = access::tokens(&self.connection)?;
        Ok(rows.iter().map(|row| row.view(wall_ms)).collect())
    }

    /// Returns the users that have joined, by name.
    pub(crate) fn users(
        &self,
        after: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<UserView>, ReadError> {
        let keys = access::keys(&self.connection)?;
        let mut users: Vec<UserView> = keys.iter().filter_map(KeyRow::user).collect();
        users.retain(|user| after.is_none_or(|after| user.name > *after));
        users.sort_by(|a, b| a.name.cmp(&b.name));
        users.truncate(limit.min(PAGE_ROWS_MAX) as usize);
        Ok(users)
    }

    /// Returns tasks in the order of their indexes, and the index at which the next page begins.
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
        let untried = about.untried();
        let lists_untried = state.is_none_or(|wanted| wanted == untried);
        let mut next = about.array.first.max(from);
        let mut last: Option<AttemptRow> = None;
        let mut scanned = 0;
        loop {
            let row = rows.next()?;
            scanned += 1;
            let task: Option<u32> = row.map(|row| row.get(0)).transpose()?;
            if let Some(before) = last.take_if(|before| Some(before.task) != task) {
                next = before.task.saturating_add(1);
                let stop = page.add(before.task, before.task_state, Some(before));
                if stop.is_some() {
                    return Ok((page.tasks, stop));
                }
                if let Some(task) = task.filter(|_| scanned > SCAN_ROWS_MAX) {
                    return Ok((page.tasks, Some(next.min(task))));
                }
            }
            // Tasks without attempts have no rows.
            let end = task.map_or(u64::from(about.array.last) + 1, u64::from);
            if lists_untried {
                while u64::from(next) < end {
                    if let Some(stop) = page.add(next, untried, None) {
                        return Ok((page.tasks, Some(stop)));
                    }
                    let Some(after) = next.checked_add(1) else { return Ok((page.tasks, None)) };
                    next = after;
                }
            }
            match row {
                Some(row) => last = Some(AttemptRow::read(row)?),
                None => return Ok((page.tasks, None)),
            }
        }
    }

    /// Returns a task with its attempts.
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
                state = row.task_state;
            } else if bytes > REPLY_BYTES_MAX {
                break;
            }
            attempts.push(row.view);
        }
        attempts.reverse();
        Ok(TaskDetail { task, state: state.into(), attempts })
    }

    /// Returns the number and state of a task's last attempt. Requests that wait for a change
    /// compare them.
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

    /// Returns the node on which an attempt runs or ran.
    pub(crate) fn node_of(&self, attempt: AttemptId) -> Result<Name, ReadError> {
        let AttemptId { task, number } = attempt;
        let found = self
            .connection
            .prepare_cached(
                "SELECT nodes.name FROM attempts JOIN nodes USING (node) JOIN jobs USING (job)
                 WHERE job = ?1 AND task = ?2 AND number = ?3",
            )?
            .query_row(params![integer(task.job.0), task.index, number], |row| name(row, 0))
            .optional()?;
        if let Some(node) = found {
            return Ok(node);
        }
        // The error says whether the job or the task is missing.
        let detail = self.task(task)?;
        let so_far = match detail.attempts.last() {
            None => format!("task {task} has not been tried yet"),
            Some(last) => format!("the last one is {task}#{}", last.number),
        };
        Err(ReadError::NotFound(format!("there is no attempt {attempt}; {so_far}")))
    }

    /// Returns the events after a revision, as many as fit one message, and the last revision. A
    /// revision after the last one is not an error: a client may know of it before this reader
    /// sees it.
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
                "SELECT first_index, last_index, rest_cancelled FROM jobs WHERE job = ?1",
            )?
            .query_row([integer(job.0)], |row| {
                Ok(JobTasks {
                    array: ArrayRange { first: row.get(0)?, last: row.get(1)? },
                    rest_cancelled: row.get(2)?,
                })
            })
            .optional()?;
        found.map_or_else(|| Err(self.no_job(job)?), Ok)
    }

    /// Returns the existing jobs from `first` to `last`, at most `limit`, and whether each has ended and
    /// no other job waits for it.
    pub(crate) fn jobs_between(
        &self,
        first: JobId,
        last: JobId,
        limit: u32,
    ) -> Result<Vec<(JobId, bool)>, ReadError> {
        let found = self
            .connection
            .prepare_cached(&format!(
                "SELECT job, state >= 3 AND NOT {AWAITED} FROM jobs
                 WHERE job BETWEEN ?1 AND ?2 ORDER BY job LIMIT ?3"
            ))?
            .query_map(params![integer(first.0), integer(last.0), limit], |row| {
                Ok((JobId(unsigned(row.get(0)?)), row.get(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() && first == last && first > last_job(&self.connection)? {
            return Err(self.no_job(first)?);
        }
        Ok(found)
    }

    /// Returns the jobs that have been kept long enough, at most `limit`, in the order of their ends:
    /// those that ended before the time `ended_before` of the age clock, and those with which ended
    /// jobs have more than `attempts_max` attempts. A job without attempts counts as one. A job that
    /// another one waits for is kept.
    pub(crate) fn overdue(
        &self,
        ended_before: u64,
        attempts_max: u64,
        limit: u32,
    ) -> Result<Vec<JobId>, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let kept: i64 = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = 'kept'")?
            .query_row([], |row| row.get(0))?;
        let mut surplus = kept.saturating_sub(integer(attempts_max));
        let mut oldest = self.connection.prepare_cached(&format!(
            "SELECT job, ended_age_ms, attempts FROM jobs
             WHERE ended_age_ms IS NOT NULL AND NOT {AWAITED} ORDER BY ended_age_ms LIMIT ?1"
        ))?;
        let mut rows = oldest.query([limit])?;
        let mut overdue = Vec::new();
        while let Some(row) = rows.next()? {
            if unsigned(row.get(1)?) >= ended_before && surplus <= 0 {
                break;
            }
            overdue.push(JobId(unsigned(row.get(0)?)));
            surplus -= removal::weight(unsigned(row.get(2)?));
        }
        Ok(overdue)
    }

    pub(super) fn no_job(&self, job: JobId) -> Result<ReadError, ReadError> {
        let last = last_job(&self.connection)?;
        Ok(ReadError::NotFound(match last {
            JobId(0) => format!("there is no job {job}; no job has been submitted yet"),
            _ if job.0 == 0 || job > last => {
                format!("there is no job {job}; the last one is {last}")
            }
            _ => format!(
                "job {job} was removed, by `podmesh forget` or because of the limits `keep` and `keep_attempts` in manager.toml; its output may still be on its nodes, in the folder {job}/ of their logs"
            ),
        }))
    }
}

/// A page of tasks that is being filled.
struct Page {
    job: JobId,
    state: Option<TaskState>,
    room: u32,
    bytes: usize,
    tasks: Vec<TaskView>,
}

impl Page {
    /// Adds a task if its state matches. If the page is full, returns the task's index, at which the
    /// next page begins.
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
            state: state.into(),
            attempts: last.as_ref().map_or(0, |last| last.number),
            last,
        });
        None
    }
}
