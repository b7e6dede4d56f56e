//! What a start reads: everything that has not ended.

use std::collections::HashMap;
use std::sync::Arc;

use podmesh_manager_core::step::{JobRow, Losses, NodeRow, RestoredJob, Snapshot};
use podmesh_protocol::ids::{
    AgentId, AttemptId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::spec::{ArrayRange, Resources};
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::codes::{attempt_state, job_state, outcome_code, standing, unsigned};
use super::{access, schema, unreadable};
use crate::clock;

/// Returns the state in which the previous run of the manager stopped, and the numbers of the nodes
/// in the database.
pub(super) fn snapshot(
    connection: &Connection,
) -> rusqlite::Result<(Snapshot, HashMap<Name, i64>)> {
    let number = |sql: &str| -> rusqlite::Result<u64> {
        Ok(unsigned(connection.query_row(sql, [], |row| row.get(0))?))
    };
    let mut numbers = HashMap::new();
    let mut nodes = Vec::new();
    let mut statement = connection.prepare(
        "SELECT node, name, boot_id, agent_instance, program_version, cpu_millis, memory_bytes,
             labels, runtimes, epoch, agent_id, lost_age_ms
         FROM nodes WHERE NOT forgotten ORDER BY name",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let saved = node(row)?;
        numbers.insert(saved.node.clone(), row.get(0)?);
        nodes.push(saved);
    }
    let (attempts, retries) = attempts(connection, &numbers)?;
    let snapshot = Snapshot {
        cluster: schema::cluster(connection)?,
        last_job: last_job(connection)?,
        last_epoch: Epoch(number("SELECT value FROM meta WHERE key = 'last_epoch'")?),
        last_revision: Revision(number("SELECT coalesce(max(last), 0) FROM events")?),
        jobs: jobs(connection)?,
        attempts,
        retries,
        losses: losses(connection)?,
        nodes,
        last_token: number("SELECT value FROM meta WHERE key = 'last_token'")?,
        tokens: access::tokens(connection)?,
        keys: access::keys(connection)?,
    };
    Ok((snapshot, numbers))
}

/// Returns the highest job number that was given out.
pub(super) fn last_job(connection: &Connection) -> rusqlite::Result<JobId> {
    let last = "SELECT max(value, (SELECT coalesce(max(job), 0) FROM jobs)) FROM meta
         WHERE key = 'last_job'";
    connection.prepare_cached(last)?.query_row([], |row| Ok(JobId(unsigned(row.get(0)?))))
}

/// Maximum time counted between two runs of the manager. A manager that was off for longer keeps its
/// jobs longer.
const AWAY_MS_MAX: u64 = 24 * 3600 * 1000;

/// Returns the time of the age clock at a start.
pub(super) fn age_ms(connection: &Connection, wall_ms: u64) -> rusqlite::Result<u64> {
    let (age_ms, saved_at): (i64, i64) = connection.query_row(
        "SELECT (SELECT value FROM meta WHERE key = 'age_ms'),
             (SELECT value FROM meta WHERE key = 'age_wall_ms')",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let away_ms = wall_ms.saturating_sub(unsigned(saved_at)).min(AWAY_MS_MAX);
    Ok(unsigned(age_ms).saturating_add(away_ms))
}

/// Returns a contradiction between the parts of a snapshot. There is one only if the database is
/// damaged, because every commit holds whole steps.
pub(super) fn contradiction(snapshot: &Snapshot) -> Option<String> {
    let mut jobs = HashMap::new();
    for RestoredJob { spec, row, .. } in &snapshot.jobs {
        let (job, counts) = (row.job, row.counts);
        let tasks = u64::from(spec.array.last) - u64::from(spec.array.first) + 1;
        let Some(untried) = untried(spec.array, row.next_index) else {
            return Some(format!("the next task of job {job} is outside its array"));
        };
        let all = [counts.queued, counts.active, counts.succeeded, counts.failed, counts.cancelled];
        if all.into_iter().map(u64::from).sum::<u64>() != tasks {
            return Some(format!("job {job} has {tasks} tasks, but its stored counts disagree"));
        }
        let untried = if row.state == JobState::Cancelling { 0 } else { untried };
        let retries = u64::from(counts.queued).checked_sub(untried);
        jobs.insert(job, (u64::from(counts.active), retries));
    }
    let mut found: HashMap<JobId, (u64, u64)> = HashMap::new();
    for (attempt, ..) in &snapshot.attempts {
        found.entry(attempt.task.job).or_default().0 += 1;
    }
    for (attempt, _) in &snapshot.retries {
        found.entry(attempt.task.job).or_default().1 += 1;
    }
    if let Some(job) = found.keys().find(|job| !jobs.contains_key(job)) {
        return Some(format!(
            "a task of job {job} is active, but that job has ended or is missing"
        ));
    }
    for (job, (active, retries)) in jobs {
        let found = found.get(&job).copied().unwrap_or_default();
        if (found.0, Some(found.1)) != (active, retries) {
            return Some(format!(
                "{} tasks of job {job} are on a node and {} wait for a retry, but its stored counts disagree",
                found.0, found.1
            ));
        }
    }
    None
}

/// Returns how many tasks of an array have had no attempt; `None` if `next_index` is impossible.
pub(super) fn untried(array: ArrayRange, next_index: u64) -> Option<u64> {
    let untried = (u64::from(array.last) + 1).checked_sub(next_index)?;
    (next_index >= u64::from(array.first)).then_some(untried)
}

fn node(row: &Row<'_>) -> rusqlite::Result<NodeRow> {
    Ok(NodeRow {
        node: name(row, 1)?,
        boot_id: row.get(2)?,
        agent_instance: InstanceId(Uuid::from_bytes(row.get(3)?)),
        program_version: row.get(4)?,
        capacity: Resources { cpu_millis: row.get(5)?, memory_bytes: unsigned(row.get(6)?) },
        labels: decoded(row, 7)?,
        runtimes: decoded(row, 8)?,
        epoch: Epoch(unsigned(row.get(9)?)),
        agent_id: row.get::<_, Option<[u8; 16]>>(10)?.map(|id| AgentId(Uuid::from_bytes(id))),
        lost_age_ms: row.get::<_, Option<i64>>(11)?.map(unsigned),
    })
}

fn jobs(connection: &Connection) -> rusqlite::Result<Vec<RestoredJob>> {
    connection
        .prepare(
            "SELECT job, submission, spec, state, next_index, queued, active, succeeded, failed,
                 cancelled, started_ms, ended_ms, attempts
             FROM jobs JOIN job_specs USING (job) WHERE state < 3 ORDER BY job",
        )?
        .query_map([], |row| {
            Ok(RestoredJob {
                submission: SubmissionId(Uuid::from_bytes(row.get(1)?)),
                spec: Arc::new(decoded(row, 2)?),
                row: JobRow {
                    job: JobId(unsigned(row.get(0)?)),
                    state: job_state(row.get(3)?)?,
                    next_index: unsigned(row.get(4)?),
                    counts: counts(row, 5)?,
                    attempts: unsigned(row.get(12)?),
                    started_wall_ms: row.get::<_, Option<i64>>(10)?.map(unsigned),
                    ended_wall_ms: row.get::<_, Option<i64>>(11)?.map(unsigned),
                },
            })
        })?
        .collect()
}

type ActiveAttempt = (AttemptId, Name, AttemptState);
type WaitingRetry = (AttemptId, u64);

/// Returns the attempts that have not ended, and those whose tasks wait for a retry.
fn attempts(
    connection: &Connection,
    numbers: &HashMap<Name, i64>,
) -> rusqlite::Result<(Vec<ActiveAttempt>, Vec<WaitingRetry>)> {
    let names: HashMap<i64, &Name> = numbers.iter().map(|(name, number)| (*number, name)).collect();
    let (mut active, mut retries) = (Vec::new(), Vec::new());
    let wall_ms = clock::wall_ms();
    let mut statement = connection.prepare(
        "SELECT job, task, number, standing, node, state, retry_ms, ended_ms
         FROM attempts WHERE standing < 2 ORDER BY job, task, number",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let attempt = AttemptId::new(JobId(unsigned(row.get(0)?)), row.get(1)?, row.get(2)?);
        if row.get::<_, i64>(3)? == standing::RETRY {
            let after_ms = unsigned(row.get::<_, Option<i64>>(6)?.unwrap_or(0));
            let ended_ms = unsigned(row.get::<_, Option<i64>>(7)?.unwrap_or(0));
            retries.push((attempt, remaining(after_ms, ended_ms, wall_ms)));
            continue;
        }
        let node: i64 = row.get(4)?;
        let name = names.get(&node).ok_or(rusqlite::Error::IntegralValueOutOfRange(4, node))?;
        active.push((attempt, Name::clone(name), attempt_state(row.get(5)?)?));
    }
    Ok((active, retries))
}

/// Returns the rest of a retry's wait, which began at `ended_ms`. It is never longer than the whole
/// wait, also if the wall clock went back meanwhile.
fn remaining(after_ms: u64, ended_ms: u64, wall_ms: u64) -> u64 {
    ended_ms.saturating_add(after_ms).saturating_sub(wall_ms).min(after_ms)
}

/// Returns how often the unfinished tasks were lost or not started.
fn losses(connection: &Connection) -> rusqlite::Result<Vec<Losses>> {
    let kinds = [OutcomeKind::Lost, OutcomeKind::NotStarted].map(outcome_code);
    connection
        .prepare(
            "SELECT goes_on.job, goes_on.task, sum(ended.outcome = ?1), sum(ended.outcome = ?2)
             FROM attempts AS goes_on JOIN attempts AS ended USING (job, task)
             WHERE goes_on.standing < 2 AND ended.outcome IN (?1, ?2)
             GROUP BY goes_on.job, goes_on.task",
        )?
        .query_map(kinds, |row| {
            let task = TaskId { job: JobId(unsigned(row.get(0)?)), index: row.get(1)? };
            Ok(Losses { task, lost: row.get(2)?, not_started: row.get(3)? })
        })?
        .collect()
}

/// Reads a name from a column.
pub(super) fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let text: String = row.get(column)?;
    Name::try_from(text).map_err(|e| unreadable(column, e))
}

/// Reads a MessagePack value from a column.
pub(super) fn decoded<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let bytes = row.get_ref(column)?.as_blob().map_err(|e| unreadable(column, e))?;
    rmp_serde::from_slice(bytes).map_err(|e| unreadable(column, e))
}

/// Reads the counts from five columns, beginning at `first`.
pub(super) fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<TaskCounts> {
    Ok(TaskCounts {
        queued: row.get(first)?,
        active: row.get(first + 1)?,
        succeeded: row.get(first + 2)?,
        failed: row.get(first + 3)?,
        cancelled: row.get(first + 4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::remaining;

    #[test]
    fn a_restart_does_not_restart_a_backoff() {
        assert_eq!(remaining(25_000, 100_000, 110_000), 15_000);
        assert_eq!(remaining(25_000, 100_000, 125_000), 0);
        assert_eq!(remaining(25_000, 100_000, u64::MAX), 0, "a clock that went forward");
        assert_eq!(remaining(25_000, 100_000, 5), 25_000, "a clock that went back");
    }
}
