//! What a start reads: everything that has not ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use podmesh_manager_core::state::NodeRow;
use podmesh_manager_core::state::{ActiveAttempt, Job, Past, Retry, State, failed};
use podmesh_protocol::access::TokenId;
use podmesh_protocol::ids::{
    AgentId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::spec::{ArrayRange, Resources};
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::codes::{attempt_state, closed, outcome_kind, scheduling, standing, stop, unsigned};
use super::columns::{counts, decoded, name, optional, submitted_by};
use super::{access, numbers, queues, schedules, schema, services, upstream, volumes};

/// What a start has read.
pub(super) struct Restored {
    /// The state in which the previous run of the manager stopped.
    pub(super) state: State,
    /// The numbers of the nodes in the database.
    pub(super) nodes: HashMap<Name, i64>,
    /// A job that has ended or is missing although a task of it goes on.
    orphaned: Option<JobId>,
}

pub(super) fn read(connection: &Connection) -> rusqlite::Result<Restored> {
    let number = |sql: &str| -> rusqlite::Result<u64> {
        Ok(unsigned(connection.query_row(sql, [], |row| row.get(0))?))
    };
    let mut state = State::new(schema::cluster(connection)?);
    state.last_job = numbers::last_job(connection)?;
    state.last_epoch = Epoch(number("SELECT value FROM meta WHERE key = 'last_epoch'")?);
    state.last_revision = Revision(number("SELECT coalesce(max(last), 0) FROM events")?);
    state.last_token = TokenId(number("SELECT value FROM meta WHERE key = 'last_token'")?);
    state.age_ms = number("SELECT value FROM meta WHERE key = 'age_ms'")?;
    let mut nodes = HashMap::new();
    let mut statement = connection.prepare(
        "SELECT node, name, boot_id, agent_instance, program_version, cpu_millis, memory_bytes,
             labels, runtimes, epoch, agent_id, lost_age_ms, scheduling, address,
             drain, admin_labels, resources, maintenance
         FROM nodes WHERE NOT forgotten",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let saved = node(row)?;
        nodes.insert(saved.node.clone(), row.get(0)?);
        state.nodes.insert(saved.node.clone(), Arc::new(saved));
    }
    state.tokens = access::tokens(connection)?.into_iter().map(|row| (row.id, row)).collect();
    state.keys = access::keys(connection)?.into_iter().map(|row| (row.key, row)).collect();
    state.jobs = jobs(connection)?.into_iter().map(|job| (job.id, Box::new(job))).collect();
    let orphaned = attempts(connection, &mut state.jobs)?;
    for job in state.jobs.values_mut() {
        upstream::read(connection, job)?;
    }
    services::read_replicas(connection, &mut state.jobs)?;
    state.services = services::read(connection)?;
    state.schedules = schedules::read(connection)?;
    state.queues = queues::read(connection)?;
    state.volumes = volumes::read(connection)?;
    Ok(Restored { state, nodes, orphaned })
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

/// Returns a contradiction between the parts of a state. There is one only if the database is
/// damaged, because every commit holds whole steps.
pub(super) fn contradiction(restored: &Restored) -> Option<String> {
    if let Some(job) = restored.orphaned {
        return Some(format!(
            "a task of job {job} is active, but that job has ended or is missing"
        ));
    }
    for (id, job) in &restored.state.jobs {
        let (array, counts) = (job.spec.array, job.counts);
        let Some(untried) = untried(array, job.next_index) else {
            return Some(format!("the next task of job {id} is outside its array"));
        };
        let tasks = u64::from(array.last) - u64::from(array.first) + 1;
        let all = [counts.queued, counts.active, counts.succeeded, counts.failed, counts.cancelled];
        if all.into_iter().map(u64::from).sum::<u64>() != tasks {
            return Some(format!("job {id} has {tasks} tasks, but its stored counts disagree"));
        }
        let skipped = job.upstream.as_ref().map_or(0, |upstream| upstream.skipped.count());
        let untried = if job.rest_cancelled { 0 } else { untried + skipped };
        let (active, retries) = (job.active.len() as u64, job.retries.len() as u64);
        if (active, untried + retries) != (counts.active.into(), counts.queued.into()) {
            return Some(format!(
                "{active} tasks of job {id} are on a node and {retries} wait for a retry, but its stored counts disagree"
            ));
        }
        let mut nodes = job.active.values().map(|active| &active.node);
        if let Some(node) = nodes.find(|node| !restored.state.nodes.contains_key(*node)) {
            return Some(format!("a task of job {id} is on node {node}, which was forgotten"));
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
        scheduling: scheduling(row.get(12)?)?,
        address: row.get(13)?,
        drain: optional(row, 14)?,
        maintenance: optional(row, 17)?,
        admin_labels: optional(row, 15)?.unwrap_or_default(),
        resources: optional(row, 16)?.unwrap_or_default(),
    })
}

/// Returns the jobs that have not ended, without their attempts.
fn jobs(connection: &Connection) -> rusqlite::Result<Vec<Job>> {
    let select =
        format!("SELECT {JOB_COLUMNS} FROM jobs JOIN job_specs USING (job) WHERE state < 3");
    connection.prepare(&select)?.query_map([], job)?.collect()
}

/// The columns that [`job`] reads.
pub(super) const JOB_COLUMNS: &str = "job, submission, spec, closed, next_index, queued, active,
    succeeded, failed, cancelled, started_ms, attempts, submitted_by, rest_cancelled,
    coalesce(waits_since_ms, submitted_ms)";

/// Reads a job from its row, without its attempts and what it waits for.
pub(super) fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    Ok(Job {
        id: JobId(unsigned(row.get(0)?)),
        submission: SubmissionId(Uuid::from_bytes(row.get(1)?)),
        spec: Arc::new(decoded(row, 2)?),
        closed: row.get::<_, Option<i64>>(3)?.map(closed).transpose()?,
        next_index: unsigned(row.get(4)?),
        counts: counts(row, 5)?,
        started_wall_ms: row.get::<_, Option<i64>>(10)?.map(unsigned),
        attempts: unsigned(row.get(11)?),
        by: submitted_by(row, 12)?,
        rest_cancelled: row.get(13)?,
        waits_since_wall_ms: unsigned(row.get(14)?),
        active: BTreeMap::new(),
        retries: BTreeMap::new(),
        upstream: None,
    })
}

/// Adds to the jobs their attempts that have not ended and the tasks that wait for a retry. Returns
/// a job that is not among them but has such an attempt.
fn attempts(
    connection: &Connection,
    jobs: &mut BTreeMap<JobId, Box<Job>>,
) -> rusqlite::Result<Option<JobId>> {
    let mut pasts = pasts(connection)?;
    let mut orphaned = None;
    let mut statement = connection.prepare(
        "SELECT job, task, number, standing, nodes.name, state, retry_ms, ended_ms, stop, claims
         FROM attempts LEFT JOIN nodes USING (node) WHERE standing < 2",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, index, number) = (JobId(unsigned(row.get(0)?)), row.get(1)?, row.get(2)?);
        let past = pasts.remove(&TaskId { job: id, index }).unwrap_or_default();
        let node = name(row, 4)?;
        let Some(job) = jobs.get_mut(&id) else {
            orphaned = Some(id);
            continue;
        };
        if row.get::<_, i64>(3)? == standing::RETRY {
            let retry = Retry {
                number,
                past,
                after_ms: unsigned(row.get::<_, Option<i64>>(6)?.unwrap_or(0)),
                ended_wall_ms: unsigned(row.get::<_, Option<i64>>(7)?.unwrap_or(0)),
            };
            job.retries.insert(index, retry);
        } else {
            let state = attempt_state(row.get(5)?)?;
            let stop = row.get::<_, Option<i64>>(8)?.map(stop).transpose()?;
            let claims = optional(row, 9)?;
            let active = ActiveAttempt { number, node, state, past, replica: None, stop, claims };
            job.active.insert(index, Box::new(active));
        }
    }
    Ok(orphaned)
}

/// Returns what the ended attempts of the unfinished tasks mean for the next ones; tasks without
/// such attempts are left out.
fn pasts(connection: &Connection) -> rusqlite::Result<HashMap<TaskId, Past>> {
    let mut pasts: HashMap<TaskId, Past> = HashMap::new();
    let mut statement = connection.prepare(
        "SELECT ended.job, ended.task, ended.number, ended.outcome, ended.requeued, nodes.name
         FROM attempts AS goes_on JOIN attempts AS ended USING (job, task)
             JOIN nodes ON nodes.node = ended.node
         WHERE goes_on.standing < 2 AND ended.outcome IS NOT NULL
         ORDER BY ended.job, ended.task, ended.number",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let task = TaskId { job: JobId(unsigned(row.get(0)?)), index: row.get(1)? };
        let (number, kind, node) = (row.get(2)?, outcome_kind(row.get(3)?)?, name(row, 5)?);
        let past = pasts.entry(task).or_default();
        if row.get(4)? {
            *past = Past::requeued(number, failed(kind).then_some(node));
        } else {
            past.add(kind, node);
        }
    }
    Ok(pasts)
}
