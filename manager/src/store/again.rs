//! Reads about tasks that ended without success: those to requeue, and those to show.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use podmesh_manager_core::state::{EndedTask, Job, failed};
use podmesh_protocol::again::{EndedAs, FailedGroup, FailedTasks, RequeueRequest, Requeued};
use podmesh_protocol::ids::{JobId, Name, TaskId};
use podmesh_protocol::limits::{FAILED_GROUPS_MAX, FAILED_NODES_SHOWN, REQUEUE_TASKS_MAX};
use podmesh_protocol::report::{Outcome, TaskState};
use podmesh_protocol::spec::ArrayRange;
use rusqlite::{OptionalExtension, Row, params};

use super::codes::{integer, outcome_kind, task_state, unsigned};
use super::columns::name;
use super::reader::{History, REPLY_BYTES_MAX, ROW_BYTES, ReadError, SCAN_ROWS_MAX};
use super::{restore, upstream};

/// A part of the tasks to requeue.
#[derive(Debug)]
pub(crate) struct RequeueBatch {
    /// The job, as it is in the database.
    pub(crate) job: Box<Job>,
    /// Whether the job has ended.
    pub(crate) has_ended: bool,
    pub(crate) tasks: Vec<EndedTask>,
    /// Whether to queue the tasks that have had no attempt.
    pub(crate) rest: bool,
    /// Tasks that are left as they are.
    pub(crate) skipped: Requeued,
    /// The index with which the next part begins.
    pub(crate) next: Option<u32>,
    /// A job that it still waits for, and that was removed.
    pub(crate) missing: Option<JobId>,
}

impl History {
    /// Returns the tasks to requeue, beginning at an index: at most [`REQUEUE_TASKS_MAX`]. The last
    /// part also says whether to queue the tasks that have had no attempt.
    pub(crate) fn requeue(
        &self,
        request: &RequeueRequest,
        from: u32,
    ) -> Result<RequeueBatch, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        let select = format!(
            "SELECT {}, state >= 3 FROM jobs JOIN job_specs USING (job) WHERE job = ?1",
            restore::JOB_COLUMNS
        );
        let found = self
            .connection
            .prepare_cached(&select)?
            .query_row([integer(request.job.0)], |row| Ok((restore::job(row)?, row.get(15)?)))
            .optional()?;
        let Some((mut job, has_ended)) = found else { return Err(self.no_job(request.job)?) };
        upstream::read(&self.connection, &mut job)?;
        let missing =
            if has_ended { upstream::read_again(&self.connection, &mut job)? } else { None };
        let mut batch = RequeueBatch {
            job: Box::new(job),
            has_ended,
            tasks: Vec::new(),
            rest: false,
            skipped: Requeued::default(),
            next: None,
            missing,
        };
        let named = request.tasks.as_ref();
        let last = named.map_or(u32::MAX, |tasks| tasks.last());
        let mut statement = self.connection.prepare_cached(
            "SELECT task, number, standing, outcome, nodes.name, ended_ms
             FROM attempts JOIN nodes USING (node)
             WHERE job = ?1 AND task BETWEEN ?2 AND ?3 ORDER BY task, number DESC",
        )?;
        let from = from.max(named.map_or(0, |tasks| tasks.first()));
        let mut rows = statement.query(params![integer(request.job.0), from, last])?;
        let mut before = None;
        let mut scanned = 0;
        while let Some(row) = rows.next()? {
            let index: u32 = row.get(0)?;
            scanned += 1;
            if before.replace(index) == Some(index) {
                continue; // Not the last attempt.
            }
            if batch.tasks.len() >= REQUEUE_TASKS_MAX || scanned > SCAN_ROWS_MAX {
                batch.next = Some(index);
                return Ok(batch);
            }
            if named.is_none_or(|tasks| tasks.contains(index)) {
                batch.add(index, row, request)?;
            }
        }
        batch.add_untried(request);
        Ok(batch)
    }

    /// Returns the tasks whose last attempt failed after a time, by job and reason.
    pub(crate) fn failed(&self, since_wall_ms: u64) -> Result<FailedTasks, ReadError> {
        let _snapshot = self.connection.unchecked_transaction()?;
        // The scan is bounded, so that one reader cannot hold up the others.
        let mut statement = self.connection.prepare_cached(
            "SELECT attempts.job, task, number, outcome, exit_code, signal, oom_killed, ran_ms,
                 message, failed_ms, nodes.name, jobs.name
             FROM attempts INDEXED BY attempts_failed JOIN jobs USING (job) JOIN nodes USING (node)
             WHERE failed_ms >= ?1 AND service IS NULL
             ORDER BY failed_ms DESC LIMIT ?2",
        )?;
        let limit = SCAN_ROWS_MAX + 1;
        let mut rows = statement.query(params![integer(since_wall_ms), integer(limit as u64)])?;
        let mut groups = Groups::default();
        let mut read = 0;
        while let Some(row) = rows.next()? {
            read += 1;
            if read == limit {
                groups.found.more = true;
                break;
            }
            groups.add(row)?;
        }
        Ok(groups.finish())
    }
}

impl RequeueBatch {
    fn add(&mut self, index: u32, row: &Row<'_>, request: &RequeueRequest) -> rusqlite::Result<()> {
        let kind = row.get::<_, Option<i64>>(3)?.map(outcome_kind).transpose()?;
        let state = task_state(row.get(2)?, kind);
        let (TaskState::Failed | TaskState::Cancelled, Some(kind)) = (state, kind) else {
            let is_named = request.tasks.is_some();
            match state {
                TaskState::Succeeded => self.skipped.succeeded += u64::from(is_named),
                _ => self.skipped.active += u64::from(is_named),
            }
            return Ok(());
        };
        let wanted = request.state.or(request.tasks.is_none().then_some(EndedAs::Failed));
        if wanted.is_some_and(|wanted| !wanted.matches(state, kind)) {
            return Ok(());
        }
        let node = name(row, 4)?;
        self.tasks.push(EndedTask {
            index,
            number: row.get(1)?,
            cancelled: state == TaskState::Cancelled,
            avoid: failed(kind).then_some(node),
            ended_wall_ms: unsigned(row.get::<_, Option<i64>>(5)?.unwrap_or(0)),
        });
        Ok(())
    }

    fn add_untried(&mut self, request: &RequeueRequest) {
        let ArrayRange { last, .. } = self.job.spec.array;
        let skipped = self.job.upstream.iter().flat_map(|upstream| upstream.skipped.iter());
        let mut untried: Vec<ArrayRange> = skipped.collect();
        if let Some(first) = u32::try_from(self.job.next_index).ok().filter(|first| *first <= last)
        {
            untried.push(ArrayRange { first, last });
        }
        let (Some(first), Some(end)) = (untried.first(), untried.last()) else { return };
        let ends = (first.first, end.last);
        let named = request.tasks.as_ref();
        let overlap: u64 = untried
            .iter()
            .flat_map(|part| {
                let ranges = named.into_iter().flat_map(|tasks| tasks.iter());
                ranges.map(|range| ArrayRange {
                    first: range.first.max(part.first),
                    last: range.last.min(part.last),
                })
            })
            .map(ArrayRange::tasks)
            .sum();
        if !self.job.rest_cancelled {
            self.skipped.active += overlap;
            return;
        }
        let wanted = match request.state {
            Some(state) => state == EndedAs::Cancelled,
            None => named.is_some(),
        };
        let all: u64 = untried.iter().map(|part| part.tasks()).sum();
        self.rest = wanted && (named.is_none() || overlap == all);
        if wanted && !self.rest && overlap > 0 {
            self.skipped.untried = Some(ends);
        }
    }
}

/// A job and a reason: the outcome of an attempt, without its run time.
type GroupKey = (JobId, i64, Option<i32>, Option<i32>, bool, Option<String>);

/// Groups of failed tasks, while they are read with the newest first.
#[derive(Default)]
struct Groups {
    found: FailedTasks,
    places: BTreeMap<GroupKey, usize>,
    nodes: Vec<BTreeSet<Name>>,
    bytes: usize,
}

impl Groups {
    fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let job = JobId(unsigned(row.get(0)?));
        let outcome = Outcome {
            kind: outcome_kind(row.get(3)?)?,
            exit_code: row.get(4)?,
            signal: row.get(5)?,
            oom_killed: row.get(6)?,
            ran_ms: unsigned(row.get(7)?),
            message: row.get::<_, Option<String>>(8)?,
        };
        let (code, message) = (row.get(3)?, outcome.message.clone());
        let key = (job, code, outcome.exit_code, outcome.signal, outcome.oom_killed, message);
        let at = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                self.bytes += ROW_BYTES + outcome.message.as_ref().map_or(0, String::len);
                let is_full = self.found.groups.len() >= FAILED_GROUPS_MAX;
                if is_full || self.bytes > REPLY_BYTES_MAX {
                    self.found.more = true;
                    return Ok(());
                }
                self.found.groups.push(FailedGroup {
                    job,
                    name: name(row, 11)?,
                    outcome: outcome.into(),
                    tasks: 0,
                    nodes: Vec::new(),
                    more_nodes: 0,
                    example: TaskId { job, index: row.get(1)? },
                    attempt: row.get(2)?,
                    last_wall_ms: unsigned(row.get(9)?),
                });
                self.nodes.push(BTreeSet::new());
                *place.insert(self.nodes.len() - 1)
            }
        };
        self.found.groups[at].tasks += 1;
        self.nodes[at].insert(name(row, 10)?);
        Ok(())
    }

    fn finish(mut self) -> FailedTasks {
        for (group, nodes) in self.found.groups.iter_mut().zip(self.nodes) {
            let more = nodes.len().saturating_sub(FAILED_NODES_SHOWN);
            group.more_nodes = u32::try_from(more).unwrap_or(u32::MAX);
            group.nodes = nodes.into_iter().take(FAILED_NODES_SHOWN).collect();
        }
        self.found
    }
}
