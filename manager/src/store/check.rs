//! Checks a whole database: its pages, and whether its rows agree with each other.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use podmesh_protocol::event::EventFact;
use podmesh_protocol::report::{AttemptState, JobState, TaskCounts, TaskState};
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::workflow::Condition;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::codes::{attempt_state, job_state, outcome_kind, standing, task_state, unsigned};
use super::columns::{counts, decoded, name};
use super::restore::untried;
use super::seal::{self, FileError, FileState};
use super::{
    FILE_NAME, StoreError, open_for_reading, places, queues, removal, restore, schedules, schema,
    services, upstream, volumes,
};
use crate::data_dir;

/// The most findings reported. Damage rarely stays in one place.
const FINDINGS_MAX: usize = 20;

/// The contents of a database, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The database file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether a manager has it open.
    pub in_use: bool,
    /// Whether its checksum was verified. An orderly stop and a backup write one.
    pub sealed: bool,
    /// The number of jobs in it.
    pub jobs: u64,
    /// The number of attempts in it.
    pub attempts: u64,
    /// The revision of its last event.
    pub revision: u64,
    /// The first problems found; empty if there are none.
    pub wrong: Vec<String>,
}

/// Checks the database of a data directory, and changes nothing. A manager may have it open.
///
/// # Errors
/// Fails if there is no database, if it cannot be read, if it belongs to another program, and if it
/// is too damaged to be checked further.
pub fn check(data_dir: &Path) -> Result<CheckReport, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let (bytes, sealed, in_use) = look(data_dir, &path)?;
    let sqlite = |e| StoreError::sqlite(&path, "checked", e);
    let connection = open_for_reading(&path).map_err(sqlite)?;
    // One transaction sees a consistent state.
    connection.execute_batch("BEGIN").map_err(sqlite)?;
    let found = examine(&connection, &path)?;
    Ok(CheckReport { bytes, in_use, sealed, ..found })
}

/// Returns the file's length, whether it has a valid checksum, and whether a manager uses it.
fn look(data_dir: &Path, path: &Path) -> Result<(u64, bool, bool), StoreError> {
    let file = |source| StoreError::File { path: path.into(), source };
    let bytes = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: path.into() });
        }
        found => found.map_err(file)?.len(),
    };
    if data_dir::in_use(data_dir) {
        return Ok((bytes, false, true));
    }
    let looked = seal::look(path);
    if data_dir::in_use(data_dir) {
        // A manager has just started, and may have changed the file during the read.
        return Ok((bytes, false, true));
    }
    match looked {
        Ok(found) => Ok((bytes, found == FileState::Sealed, false)),
        Err(FileError::Io(source)) => Err(file(source)),
        Err(FileError::Damaged(why)) => Err(StoreError::Damaged { path: path.into(), why }),
    }
}

/// Verifies the checksum of the database, if it has one and no manager has it open.
pub(super) fn verify(data_dir: &Path, path: &Path) -> Result<(), StoreError> {
    look(data_dir, path).map(|_| ())
}

/// Checks the whole database through an open connection.
pub(super) fn examine(connection: &Connection, path: &Path) -> Result<CheckReport, StoreError> {
    let nothing = || StoreError::Damaged { path: path.into(), why: "it has no tables".into() };
    let version = schema::identify(connection, path)?.ok_or_else(nothing)?;
    if version < schema::VERSION {
        let known = schema::VERSION;
        return Err(StoreError::Older { path: path.into(), found: version, known });
    }
    let mut found = CheckReport { path: path.into(), ..CheckReport::default() };
    let parts: [fn(&Connection, &mut CheckReport) -> rusqlite::Result<()>; 10] = [
        pages,
        unfinished,
        jobs,
        events,
        nodes,
        check_services,
        check_schedules,
        check_queues,
        check_volumes,
        check_upstream,
    ];
    for part in parts {
        if found.wrong.len() < FINDINGS_MAX
            && let Err(error) = part(connection, &mut found)
        {
            found.wrong(error);
        }
    }
    found.wrong.truncate(FINDINGS_MAX);
    Ok(found)
}

impl CheckReport {
    fn wrong(&mut self, what: impl ToString) {
        if self.wrong.len() < FINDINGS_MAX {
            self.wrong.push(what.to_string());
        }
    }
}

fn pages(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({FINDINGS_MAX})"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let said: String = row.get(0)?;
        if said != "ok" {
            found.wrong(said.replace('\n', " "));
        }
    }
    Ok(())
}

/// Checks what a start of the manager would read.
fn unfinished(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    let restored = restore::read(connection)?;
    found.revision = restored.state.last_revision.0;
    let contradiction = restore::contradiction(&restored);
    for contradiction in contradiction.into_iter().chain(places::contradiction(&restored.state)) {
        found.wrong(contradiction);
    }
    Ok(())
}

/// A job's row, and the counts of its attempts to compare with it.
struct Job {
    id: u64,
    /// The stored number of its attempts, and the number of their rows.
    attempts: u64,
    /// The number of rows in `attempts`.
    attempts_counted: u64,
    array: ArrayRange,
    state: JobState,
    next_index: u64,
    rest_cancelled: bool,
    counts: TaskCounts,
    counted: TaskCounts,
    /// Tasks that have had an attempt.
    tried: u64,
    /// Whether its tasks may have attempts in another order than that of their indexes.
    may_skip: bool,
}

fn jobs(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    let specs: i64 =
        connection.query_row("SELECT count(*) FROM job_specs", [], |row| row.get(0))?;
    let mut statement = connection.prepare(
        "SELECT job, spec, name, priority, first_index, last_index, state, next_index, queued,
             active, succeeded, failed, cancelled, length(submission), submitted_ms, started_ms,
             ended_ms, changed, attempts, ended_age_ms, rest_cancelled
         FROM jobs LEFT JOIN job_specs USING (job) ORDER BY job",
    )?;
    let mut rows = statement.query([])?;
    let mut attempts_statement = connection.prepare(
        "SELECT job, task, number, standing, attempts.state, outcome, nodes.name, retry_ms,
             ended_ms, assigned_ms, started_ms, exit_code, signal, oom_killed, ran_ms, message,
             failed_ms
         FROM attempts LEFT JOIN nodes USING (node) ORDER BY job, task, number",
    )?;
    let removals: Vec<i64> = connection
        .prepare("SELECT job FROM removals")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let removals = removals.into_iter().map(unsigned).collect();
    let rows_of_attempts = attempts_statement.query([])?;
    let mut attempts = Attempts { rows: rows_of_attempts, removals, next: None, read: 0 };
    attempts.advance()?;
    let mut kept = 0;
    while let Some(row) = rows.next()? {
        found.jobs += 1;
        let mut job = job(connection, row, found)?;
        while let Some(before) = attempts.next.as_ref().filter(|next| next.job < job.id) {
            found.wrong(format!("attempt {before} belongs to no job"));
            attempts.advance()?;
        }
        job.count(&mut attempts, found)?;
        if attempts.removals.contains(&job.id) {
            found.wrong(format!("job {} exists, but its attempts are marked for removal", job.id));
        }
        if job.state.is_end() {
            kept += removal::weight(job.attempts);
        }
        job.compare(found);
    }
    while let Some(rest) = attempts.next.take() {
        found.wrong(format!("attempt {rest} belongs to no job"));
        attempts.advance()?;
    }
    if unsigned(specs) != found.jobs {
        found.wrong(format!("there are {} jobs, but {specs} specs", found.jobs));
    }
    found.attempts = attempts.read;
    let said: i64 =
        connection.query_row("SELECT value FROM meta WHERE key = 'kept'", [], |row| row.get(0))?;
    if said != kept {
        found.wrong(format!("ended jobs have {kept} attempts, but the stored count is {said}"));
    }
    Ok(())
}

fn job(connection: &Connection, row: &Row<'_>, found: &mut CheckReport) -> rusqlite::Result<Job> {
    let spec: JobSpec = decoded(row, 1)?;
    let job = Job {
        id: unsigned(row.get(0)?),
        attempts: unsigned(row.get(18)?),
        attempts_counted: 0,
        array: ArrayRange { first: row.get(4)?, last: row.get(5)? },
        state: job_state(row.get(6)?)?,
        next_index: unsigned(row.get(7)?),
        rest_cancelled: row.get(20)?,
        counts: counts(row, 8)?,
        counted: TaskCounts::default(),
        tried: 0,
        may_skip: spec.after.iter().any(|dependency| dependency.when == Condition::Each),
    };
    let same = spec.name == name(row, 2)?
        && i64::from(spec.priority) == row.get::<_, i64>(3)?
        && (spec.array.first, spec.array.last) == (job.array.first, job.array.last)
        && upstream::agrees(connection, job.id, &spec)?;
    if !same {
        found.wrong(format!("the row of job {} disagrees with its spec", job.id));
    }
    let ended: Option<i64> = row.get(16)?;
    let (submission, submitted): (Option<i64>, i64) = (row.get(13)?, row.get(14)?);
    let (started, changed): (Option<i64>, i64) = (row.get(15)?, row.get(17)?);
    let ended_age: Option<i64> = row.get(19)?;
    if submission != Some(16)
        || ended.is_some() != job.state.is_end()
        || ended_age.is_some() != job.state.is_end()
        || submitted < 0
        || started.is_some_and(|ms| ms < 0)
        || unsigned(changed) > found.revision
    {
        found.wrong(format!("job {}: its row contradicts itself", job.id));
    }
    Ok(job)
}

impl Job {
    /// Counts the job's attempts, which come next in `attempts`.
    fn count(
        &mut self,
        attempts: &mut Attempts<'_>,
        found: &mut CheckReport,
    ) -> rusqlite::Result<()> {
        let mut before: Option<Attempt> = None;
        while let Some(next) = attempts.next.take_if(|next| next.job == self.id) {
            let last = before.take_if(|before| before.task != next.task);
            if let Some(last) = last {
                self.add(&last, found);
            }
            let expected = before.as_ref().map_or(1, |before| before.number + 1);
            if next.number != expected {
                found.wrong(format!("attempt {next} comes where number {expected} is expected"));
            }
            if let Some(before) = &before {
                if before.standing != standing::OVER {
                    found.wrong(format!("attempt {next} follows an attempt that is not over"));
                }
                before.check_mark(false, found);
            }
            let fits = self.array.contains(next.task) && u64::from(next.task) < self.next_index;
            if !fits || !next.sound {
                found.wrong(format!("attempt {next} contradicts itself"));
            }
            before = Some(next);
            self.attempts_counted += 1;
            attempts.advance()?;
        }
        if let Some(last) = before {
            self.add(&last, found);
        }
        Ok(())
    }

    fn add(&mut self, last: &Attempt, found: &mut CheckReport) {
        last.check_mark(last.state == TaskState::Failed, found);
        self.tried += 1;
        let counted = &mut self.counted;
        *match last.state {
            TaskState::Queued => &mut counted.queued,
            TaskState::Active => &mut counted.active,
            TaskState::Succeeded => &mut counted.succeeded,
            TaskState::Failed => &mut counted.failed,
            TaskState::Cancelled => &mut counted.cancelled,
        } += 1;
    }

    fn compare(mut self, found: &mut CheckReport) {
        let Some(untried) = untried(self.array, self.next_index) else {
            return found.wrong(format!("the next task of job {} is outside its array", self.id));
        };
        let rows = self.next_index - u64::from(self.array.first);
        if rows != self.tried && (!self.may_skip || rows < self.tried) {
            found.wrong(format!(
                "job {}: {rows} tasks should have attempts, but {} have rows",
                self.id, self.tried
            ));
        }
        if self.attempts != self.attempts_counted {
            found.wrong(format!(
                "job {} counts {} attempts, but {} have rows",
                self.id, self.attempts, self.attempts_counted
            ));
        }
        let untried = untried + rows.saturating_sub(self.tried);
        let untried = u32::try_from(untried).unwrap_or(u32::MAX);
        if self.rest_cancelled {
            self.counted.cancelled += untried;
        } else {
            self.counted.queued += untried;
        }
        if self.counted != self.counts {
            found.wrong(format!(
                "job {} stores the counts {:?}, but its attempts give {:?}",
                self.id, self.counts, self.counted
            ));
        }
    }
}

struct Attempt {
    job: u64,
    task: u32,
    number: u32,
    standing: i64,
    state: TaskState,
    /// Whether it is marked as the one with which its task failed.
    failed: bool,
    /// Whether the row is free of contradictions.
    sound: bool,
}

impl Attempt {
    fn check_mark(&self, expected: bool, found: &mut CheckReport) {
        if self.failed != expected {
            found.wrong(format!("whether the task of attempt {self} failed with it is wrong"));
        }
    }
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}#{}", self.job, self.task, self.number)
    }
}

/// All attempts in order, except those of removed jobs.
struct Attempts<'a> {
    rows: rusqlite::Rows<'a>,
    removals: HashSet<u64>,
    next: Option<Attempt>,
    read: u64,
}

impl Attempts<'_> {
    fn advance(&mut self) -> rusqlite::Result<()> {
        loop {
            self.next = self.rows.next()?.map(attempt).transpose()?;
            let Some(next) = &self.next else { return Ok(()) };
            if !self.removals.contains(&next.job) {
                self.read += 1;
                return Ok(());
            }
        }
    }
}

fn attempt(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    let (standing, state): (i64, i64) = (row.get(3)?, row.get(4)?);
    let state = attempt_state(state)?;
    let outcome = row.get::<_, Option<i64>>(5)?.map(outcome_kind).transpose()?;
    let present = |column: usize| -> rusqlite::Result<bool> {
        Ok(row.get::<_, Option<i64>>(column)?.is_some_and(|value| value >= 0))
    };
    let ended = state == AttemptState::Ended;
    let sound = (standing::ACTIVE..=standing::DROPPED).contains(&standing)
        && ended == outcome.is_some()
        && ended == present(8)?
        && (standing == standing::ACTIVE) != ended
        && present(9)?
        && row.get_ref(6)?.as_str().is_ok()
        && (standing != standing::RETRY || present(7)?)
        && present(14)?
        && (row.get_ref(16)? == ValueRef::Null || row.get_ref(16)? == row.get_ref(8)?);
    // Only checks that the values can be read.
    let _: (Option<i32>, Option<i32>, bool) = (row.get(11)?, row.get(12)?, row.get(13)?);
    let _: Option<String> = row.get(15)?;
    Ok(Attempt {
        job: unsigned(row.get(0)?),
        task: row.get(1)?,
        number: row.get(2)?,
        standing,
        state: task_state(standing, outcome),
        failed: present(16)?,
        sound,
    })
}

fn events(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare("SELECT last, first, facts FROM events ORDER BY last")?;
    let mut rows = statement.query([])?;
    let mut before = None;
    while let Some(row) = rows.next()? {
        let (last, first): (i64, i64) = (row.get(0)?, row.get(1)?);
        let facts: Vec<EventFact> = decoded(row, 2)?;
        let follows = before.is_none_or(|before: i64| before.checked_add(1) == Some(first));
        let length = last.checked_sub(first).and_then(|length| length.checked_add(1));
        if !follows || length != i64::try_from(facts.len()).ok() {
            found.wrong(format!("the events {first} to {last} do not follow the previous ones, or their number is wrong"));
        }
        before = Some(last);
    }
    Ok(())
}

fn nodes(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    let (epoch, newest): (i64, i64) = connection.query_row(
        "SELECT (SELECT value FROM meta WHERE key = 'last_epoch'),
             (SELECT coalesce(max(epoch), 0) FROM nodes)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if newest > epoch {
        found.wrong(format!("a node has epoch {newest}, but the last epoch is {epoch}"));
    }
    Ok(())
}

fn check_volumes(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    if let Some(contradiction) = volumes::contradiction(connection)? {
        found.wrong(contradiction);
    }
    Ok(())
}

fn check_schedules(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    if let Some(contradiction) = schedules::contradiction(connection)? {
        found.wrong(contradiction);
    }
    Ok(())
}

fn check_queues(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    if let Some(contradiction) = queues::contradiction(connection)? {
        found.wrong(contradiction);
    }
    Ok(())
}

fn check_upstream(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    if let Some(contradiction) = upstream::contradiction(connection)? {
        found.wrong(contradiction);
    }
    Ok(())
}

fn check_services(connection: &Connection, found: &mut CheckReport) -> rusqlite::Result<()> {
    if let Some(contradiction) = services::contradiction(connection)? {
        found.wrong(contradiction);
    }
    Ok(())
}
