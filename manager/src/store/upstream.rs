//! What jobs wait for, and workflows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use podmesh_manager_core::state::UpstreamFact;
use podmesh_manager_core::state::{Dependency, IndexSet, Job, Progress, Upstream};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::{DEPENDENCIES_SHOWN, PAGE_ROWS_MAX};
use podmesh_protocol::report::{JobState, OutcomeKind};
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::workflow::{
    Condition, DependencyState, DependencyView, WorkflowCounts, WorkflowJobView, WorkflowReply,
    WorkflowView,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::codes::{
    condition, condition_code, integer, job_code, job_state, outcome_code, unsigned,
};
use super::columns::name;
use super::commit::WriteError;
use super::reader::{History, REPLY_BYTES_MAX, ROW_BYTES, ReadError, SCAN_ROWS_MAX};

/// The stored progress of a dependency that waits.
const WAITING: i64 = 0;
/// The stored progress of one that is met. Of one that is blocked it is the code of the state in
/// which the upstream job has ended, which is larger.
const MET: i64 = 1;

fn progress_code(progress: Progress) -> i64 {
    match progress {
        Progress::Waiting => WAITING,
        Progress::Met => MET,
        Progress::Blocked(ended) => job_code(ended),
    }
}

fn progress(code: i64) -> rusqlite::Result<Progress> {
    Ok(match code {
        WAITING => Progress::Waiting,
        MET => Progress::Met,
        ended => Progress::Blocked(job_state(ended)?),
    })
}

/// Writes what a new job waits for, and its workflow if it is the first job of one.
pub(super) fn insert_job(
    connection: &Connection,
    job: JobId,
    spec: &JobSpec,
) -> rusqlite::Result<()> {
    for dependency in &spec.after {
        connection
            .prepare_cached(
                "INSERT INTO job_dependencies (job, upstream, condition, progress)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                integer(job.0),
                integer(dependency.job.0),
                condition_code(dependency.when),
                WAITING
            ])?;
    }
    if let Some(part) = spec.workflow.as_ref().filter(|part| part.workflow == job) {
        connection
            .prepare_cached("INSERT INTO workflows (workflow, name, jobs) VALUES (?1, ?2, ?3)")?
            .execute(params![integer(job.0), part.name.as_str(), part.jobs])?;
    }
    Ok(())
}

/// Writes how far a dependency has come. Returns how many rows that has changed.
pub(super) fn change(
    connection: &Connection,
    job: JobId,
    upstream: JobId,
    progress: Progress,
) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "UPDATE job_dependencies SET progress = ?3 WHERE job = ?1 AND upstream = ?2",
        )?
        .execute(params![integer(job.0), integer(upstream.0), progress_code(progress)])
}

/// Writes how far the dependencies of a job have come that goes on after its end.
pub(super) fn reopen(connection: &Connection, job: &Job) -> Result<(), WriteError> {
    for (upstream, dependency) in job.unmet() {
        change(connection, job.id, upstream, dependency.progress)?;
    }
    let met = job.upstream.iter().flat_map(|own| &own.dependencies);
    for (upstream, _) in met.filter(|(_, dependency)| dependency.is_met()) {
        change(connection, job.id, *upstream, Progress::Met)?;
    }
    Ok(())
}

/// Removes what a removed job waited for, and its workflow if it was the last job of it.
pub(super) fn remove_job(connection: &Connection, job: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM job_dependencies WHERE job = ?1")?.execute([job])?;
    connection
        .prepare_cached(
            "DELETE FROM workflows
             WHERE workflow = (SELECT max(workflow) FROM workflows WHERE workflow <= ?1)
                 AND ?1 < workflow + jobs
                 AND NOT EXISTS (SELECT 1 FROM jobs
                     WHERE job BETWEEN workflow AND workflow + workflows.jobs - 1)",
        )?
        .execute([job])?;
    Ok(())
}

/// Reads what a job waits for, as of the last change of it.
pub(super) fn read(connection: &Connection, job: &mut Job) -> rusqlite::Result<()> {
    if job.spec.after.is_empty() {
        return Ok(());
    }
    let mut upstream = Upstream::default();
    let mut statement = connection.prepare_cached(
        "SELECT upstream, condition, progress FROM job_dependencies WHERE job = ?1",
    )?;
    let mut rows = statement.query([integer(job.id.0)])?;
    while let Some(row) = rows.next()? {
        let (of, when) = (JobId(unsigned(row.get(0)?)), condition(row.get(1)?)?);
        let progress = progress(row.get(2)?)?;
        let keeps = when == Condition::Each && progress != Progress::Met;
        let released = if keeps { succeeded(connection, of)? } else { IndexSet::default() };
        upstream.dependencies.insert(of, Dependency { when, progress, released });
    }
    if job.spec.after.iter().any(|dependency| dependency.when == Condition::Each) {
        upstream.skipped = skipped(connection, job)?;
    }
    job.upstream = Some(Box::new(upstream));
    Ok(())
}

/// Returns the tasks of a job that have succeeded.
fn succeeded(connection: &Connection, job: JobId) -> rusqlite::Result<IndexSet> {
    let mut found = IndexSet::default();
    let mut statement =
        connection.prepare_cached("SELECT task FROM attempts WHERE job = ?1 AND outcome = ?2")?;
    let code = outcome_code(OutcomeKind::Succeeded);
    let mut rows = statement.query(params![integer(job.0), code])?;
    while let Some(row) = rows.next()? {
        let task = row.get(0)?;
        found.insert(ArrayRange { first: task, last: task });
    }
    Ok(found)
}

/// Returns the tasks of a job before its `next_index` that have had no attempt.
fn skipped(connection: &Connection, job: &Job) -> rusqlite::Result<IndexSet> {
    let mut found = IndexSet::default();
    let mut statement = connection
        .prepare_cached("SELECT DISTINCT task FROM attempts WHERE job = ?1 ORDER BY task")?;
    let mut rows = statement.query([integer(job.id.0)])?;
    let mut first = u64::from(job.spec.array.first);
    let mut skip = |first: u64, next: u64| {
        if let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(next.saturating_sub(1)))
            && u64::from(first) < next
        {
            found.insert(ArrayRange { first, last });
        }
    };
    while let Some(row) = rows.next()? {
        let task: u32 = row.get(0)?;
        skip(first, task.into());
        first = u64::from(task) + 1;
    }
    skip(first, job.next_index);
    Ok(found)
}

/// Returns what there is of a job that another one waits for; `None` if it does not exist.
fn fact(
    connection: &Connection,
    job: JobId,
    when: Condition,
) -> rusqlite::Result<Option<UpstreamFact>> {
    let found = connection
        .prepare_cached(
            "SELECT first_index, last_index, service IS NOT NULL, state FROM jobs WHERE job = ?1",
        )?
        .query_row([integer(job.0)], |row| {
            let state = job_state(row.get(3)?)?;
            Ok(UpstreamFact {
                array: ArrayRange { first: row.get(0)?, last: row.get(1)? },
                is_replica: row.get(2)?,
                ended: Some(state).filter(|state| state.is_end()),
                succeeded: IndexSet::default(),
            })
        })
        .optional()?;
    let Some(mut fact) = found else { return Ok(None) };
    if when == Condition::Each && fact.ended != Some(JobState::Succeeded) {
        fact.succeeded = succeeded(connection, job)?;
    }
    Ok(Some(fact))
}

/// Brings the dependencies of a job that has ended up to date: how their upstream jobs are now.
/// Returns an upstream job that no longer exists, if it is still waited for.
pub(super) fn read_again(
    connection: &Connection,
    job: &mut Job,
) -> rusqlite::Result<Option<JobId>> {
    let mut facts = BTreeMap::new();
    for (upstream, dependency) in job.unmet() {
        match fact(connection, upstream, dependency.when)? {
            Some(fact) => _ = facts.insert(upstream, fact),
            None => return Ok(Some(upstream)),
        }
    }
    if let Some(own) = &mut job.upstream {
        own.update(&facts);
    }
    Ok(None)
}

/// The jobs that others wait for: those that have not ended, and whose conditions are not met.
pub(super) const AWAITED: &str =
    "EXISTS (SELECT 1 FROM job_dependencies AS own JOIN jobs AS downstream
         ON downstream.job = own.job AND downstream.state < 3
     WHERE own.upstream = jobs.job AND own.progress <> 1)";

/// How many dependencies of a job are not met, and how many of these are blocked. None of a job that
/// has ended.
pub(super) const UNMET_COLUMNS: &str = "
    CASE WHEN state < 3 THEN (SELECT count(*) FROM job_dependencies AS own
        WHERE own.job = jobs.job AND own.progress <> 1) ELSE 0 END,
    CASE WHEN state < 3 THEN (SELECT count(*) FROM job_dependencies AS own
        WHERE own.job = jobs.job AND own.progress > 1) ELSE 0 END";

fn view(row: &Row<'_>) -> rusqlite::Result<WorkflowView> {
    Ok(WorkflowView {
        workflow: JobId(unsigned(row.get(0)?)),
        name: name(row, 1)?,
        jobs: row.get(2)?,
        counts: WorkflowCounts::default(),
        submitted_by: name(row, 3)?,
        submitted_wall_ms: unsigned(row.get(4)?),
    })
}

/// The columns of [`view`]. The first job may have been removed.
const WORKFLOW_COLUMNS: &str = "workflow, workflows.name, workflows.jobs,
    (SELECT submitted_by FROM jobs WHERE job BETWEEN workflow AND workflow + workflows.jobs - 1
        LIMIT 1),
    (SELECT submitted_ms FROM jobs WHERE job BETWEEN workflow AND workflow + workflows.jobs - 1
        LIMIT 1)";

impl History {
    /// Returns what there is of the jobs that a job waits for.
    pub(crate) fn upstream(
        &self,
        spec: &JobSpec,
    ) -> Result<BTreeMap<JobId, UpstreamFact>, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let mut facts = BTreeMap::new();
        for dependency in &spec.after {
            let upstream = dependency.job;
            match fact(&self.connection, upstream, dependency.when)? {
                Some(fact) => _ = facts.insert(upstream, fact),
                None => return Err(self.no_job(upstream)?),
            }
        }
        Ok(facts)
    }

    /// Returns the jobs that depend on a job, or on a job that does, and have ended without success,
    /// with their tasks. Those nearest to it come first.
    pub(crate) fn downstream(&self, job: JobId) -> Result<Vec<(JobId, ArrayRange)>, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT own.job, first_index, last_index, state FROM job_dependencies AS own
                 JOIN jobs USING (job)
             WHERE upstream = ?1 ORDER BY own.job",
        )?;
        let (mut found, mut seen) = (Vec::new(), BTreeSet::from([job]));
        let mut next = VecDeque::from([job]);
        while let Some(of) = next.pop_front() {
            let mut rows = statement.query([integer(of.0)])?;
            while let Some(row) = rows.next()? {
                let job = JobId(unsigned(row.get(0)?));
                let state = job_state(row.get(3)?).map_err(rusqlite::Error::from)?;
                if seen.insert(job) {
                    next.push_back(job);
                    if state.is_end() && state != JobState::Succeeded {
                        found.push((job, ArrayRange { first: row.get(1)?, last: row.get(2)? }));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Returns workflows, newest first.
    pub(crate) fn workflows(
        &self,
        before: Option<JobId>,
        only: Option<&Name>,
        limit: u32,
    ) -> Result<WorkflowReply, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let only_sql = if only.is_some() { "workflows.name = ?2" } else { "?2 IS NULL" };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {WORKFLOW_COLUMNS} FROM workflows WHERE workflow < ?1 AND {only_sql}
             ORDER BY workflow DESC"
        ))?;
        let before = integer(before.map_or(u64::MAX, |job| job.0));
        let mut rows = statement.query(params![before, only.map(Name::as_str)])?;
        let mut workflows: Vec<WorkflowView> = Vec::new();
        let mut scanned = 0;
        while let Some(row) = rows.next()? {
            let is_full = workflows.len() >= limit.min(PAGE_ROWS_MAX) as usize;
            if is_full || scanned > SCAN_ROWS_MAX {
                let next = workflows.last().map(|view| view.workflow);
                return Ok(WorkflowReply::List { workflows, next });
            }
            let mut view = view(row)?;
            view.counts = self.workflow_counts(&view)?;
            scanned += view.jobs as usize;
            workflows.push(view);
        }
        Ok(WorkflowReply::List { workflows, next: None })
    }

    /// Returns a workflow, by its number or that of one of its jobs, with a page of its jobs.
    pub(crate) fn workflow(
        &self,
        of: JobId,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<WorkflowReply, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let found = self
            .connection
            .prepare_cached(&format!(
                "SELECT {WORKFLOW_COLUMNS} FROM workflows
                 WHERE workflow = (SELECT max(workflow) FROM workflows WHERE workflow <= ?1)
                     AND ?1 < workflow + workflows.jobs"
            ))?
            .query_row([integer(of.0)], view)
            .optional()?;
        let Some(mut view) = found else {
            // The error says whether there is such a job.
            self.job_state(of)?;
            let why = format!(
                "job {of} is not part of a workflow; `podmesh workflow list` shows all workflows"
            );
            return Err(ReadError::NotFound(why));
        };
        view.counts = self.workflow_counts(&view)?;
        let last = view.workflow.0 + u64::from(view.jobs) - 1;
        let mut statement = self.connection.prepare_cached(
            "SELECT job, name, state FROM jobs WHERE job > ?1 AND job BETWEEN ?2 AND ?3
             ORDER BY job",
        )?;
        let after = after.map_or(0, |job| integer(job.0));
        let mut rows = statement.query(params![after, integer(view.workflow.0), integer(last)])?;
        let (mut jobs, mut bytes): (Vec<WorkflowJobView>, usize) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let job = JobId(unsigned(row.get(0)?));
            let (after, more) = self.dependencies(job)?;
            bytes += ROW_BYTES / 2 + after.len() * DEPENDENCY_BYTES;
            let is_full = jobs.len() >= limit.clamp(1, PAGE_ROWS_MAX) as usize;
            if is_full || (bytes > REPLY_BYTES_MAX && !jobs.is_empty()) {
                let next = jobs.last().map(|job| job.job);
                return Ok(WorkflowReply::Workflow { view, jobs, next });
            }
            let state = job_state(row.get(2)?).map_err(rusqlite::Error::from)?.into();
            jobs.push(WorkflowJobView { job, name: name(row, 1)?, state, after, more });
        }
        Ok(WorkflowReply::Workflow { view, jobs, next: None })
    }

    /// Returns what a job waits for or has waited for, the first of them, and how many more.
    fn dependencies(&self, job: JobId) -> rusqlite::Result<(Vec<DependencyView>, u32)> {
        let mut statement = self.connection.prepare_cached(
            "SELECT upstream, condition, progress FROM job_dependencies WHERE job = ?1
             ORDER BY upstream",
        )?;
        let mut rows = statement.query([integer(job.0)])?;
        let (mut found, mut more) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if found.len() >= DEPENDENCIES_SHOWN {
                more += 1;
                continue;
            }
            let state = match progress(row.get(2)?)? {
                Progress::Waiting => DependencyState::Waiting,
                Progress::Met => DependencyState::Met,
                Progress::Blocked(_) => DependencyState::Blocked,
            };
            found.push(DependencyView {
                job: JobId(unsigned(row.get(0)?)),
                when: condition(row.get(1)?)?.into(),
                state: state.into(),
            });
        }
        Ok((found, more))
    }

    fn workflow_counts(&self, view: &WorkflowView) -> rusqlite::Result<WorkflowCounts> {
        let mut statement = self.connection.prepare_cached(
            "SELECT state, count(*) FROM jobs WHERE job BETWEEN ?1 AND ?2 GROUP BY state",
        )?;
        let (first, last) = (view.workflow.0, view.workflow.0 + u64::from(view.jobs) - 1);
        let mut rows = statement.query(params![integer(first), integer(last)])?;
        let mut counts = WorkflowCounts::default();
        while let Some(row) = rows.next()? {
            let count: u32 = row.get(1)?;
            *match job_state(row.get(0)?)? {
                JobState::Queued => &mut counts.queued,
                JobState::Running => &mut counts.running,
                JobState::Succeeded => &mut counts.succeeded,
                JobState::Failed | JobState::Expired => &mut counts.failed,
                JobState::Cancelling | JobState::Cancelled => &mut counts.cancelled,
            } += count;
        }
        Ok(counts)
    }
}

/// The estimated bytes of a dependency in a reply.
const DEPENDENCY_BYTES: usize = 64;

/// Returns what is wrong with the dependencies and workflows, if anything is.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let one = |sql: &str| -> rusqlite::Result<Option<(i64, i64)>> {
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()
    };
    let stray = "SELECT own.job, upstream FROM job_dependencies AS own
         LEFT JOIN jobs USING (job) WHERE jobs.job IS NULL LIMIT 1";
    if let Some((job, _)) = one(stray)? {
        return Ok(Some(format!("a dependency belongs to job {job}, which does not exist")));
    }
    // Jobs wait only for jobs that existed before, or for other ones of their workflow.
    let itself = "SELECT job, upstream FROM job_dependencies WHERE upstream = job LIMIT 1";
    if let Some((job, _)) = one(itself)? {
        return Ok(Some(format!("job {job} waits for itself")));
    }
    // A dependency waits exactly as long as its upstream job goes on.
    let wrong = "SELECT own.job, own.upstream FROM job_dependencies AS own
             JOIN jobs ON jobs.job = own.job AND jobs.state < 3
             LEFT JOIN jobs AS upstream ON upstream.job = own.upstream
         WHERE own.progress <> 1
             AND (upstream.job IS NULL OR (own.progress = 0) <> (upstream.state < 3)) LIMIT 1";
    if let Some((job, upstream)) = one(wrong)? {
        return Ok(Some(format!(
            "job {job} waits for job {upstream}, whose state contradicts that"
        )));
    }
    let empty = "SELECT workflow, jobs FROM workflows
         WHERE NOT EXISTS (SELECT 1 FROM jobs
             WHERE job BETWEEN workflow AND workflow + workflows.jobs - 1) LIMIT 1";
    if let Some((workflow, _)) = one(empty)? {
        return Ok(Some(format!("workflow {workflow} has no jobs")));
    }
    Ok(None)
}

/// Returns whether the stored dependencies of a job are those of its spec.
pub(super) fn agrees(connection: &Connection, job: u64, spec: &JobSpec) -> rusqlite::Result<bool> {
    let stored: BTreeMap<JobId, Condition> = connection
        .prepare_cached("SELECT upstream, condition FROM job_dependencies WHERE job = ?1")?
        .query_map([integer(job)], |row| {
            Ok((JobId(unsigned(row.get(0)?)), condition(row.get(1)?)?))
        })?
        .collect::<Result<_, _>>()?;
    Ok(stored == spec.after.iter().map(|own| (own.job, own.when)).collect())
}
