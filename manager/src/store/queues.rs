//! The settings of queues in the database.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_manager_core::state::QueueRow;
use podmesh_protocol::ids::Name;
use podmesh_protocol::queue::DEFAULT_QUEUE;
use rusqlite::{Connection, params};

use super::columns::{decoded, name};
use super::commit::WriteError;

pub(super) fn save(
    connection: &Connection,
    queue: &Name,
    row: &QueueRow,
) -> Result<(), WriteError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO queues (queue, settings) VALUES (?1, ?2)")?
        .execute(params![queue.as_str(), rmp_serde::to_vec_named(row)?])?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, queue: &Name) -> rusqlite::Result<()> {
    let delete = "DELETE FROM queues WHERE queue = ?1";
    connection.prepare_cached(delete)?.execute([queue.as_str()])?;
    Ok(())
}

/// Reads the queues.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<BTreeMap<Name, QueueRow>> {
    connection
        .prepare("SELECT queue, settings FROM queues")?
        .query_map([], |row| Ok((name(row, 0)?, decoded(row, 1)?)))?
        .collect()
}

/// Returns what is wrong with the queues, if anything is: a setting that cannot be, a job that has not
/// ended in a queue that is not there, or a failed task with two dead-letter jobs.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let queues = read(connection)?;
    if let Some((queue, _)) = queues.iter().find(|(_, row)| row.weight == 0) {
        return Ok(Some(format!("queue {queue} has the weight 0")));
    }
    for (queue, row) in &queues {
        let Some(job) = row.dead_letter.as_deref() else { continue };
        if let Err(why) = job.validate() {
            return Ok(Some(format!("the dead-letter job of queue {queue}: {why}")));
        }
        let of = job.rules.queue.as_ref().filter(|of| of.as_str() != DEFAULT_QUEUE);
        if let Some(of) = of.filter(|of| !queues.contains_key(*of)) {
            return Ok(Some(format!(
                "the dead-letter job of queue {queue} is in queue {of}, which is not in the database"
            )));
        }
    }
    let mut letters = BTreeSet::new();
    let mut statement = connection.prepare(
        "SELECT job_specs.job, spec FROM jobs JOIN job_specs USING (job) WHERE state < 3",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let spec: podmesh_protocol::spec::JobSpec = decoded(row, 1)?;
        if let Some(letter) = spec.dead_letter
            && !letters.insert(letter.attempt)
        {
            return Ok(Some(format!("{} has two dead-letter jobs", letter.attempt)));
        }
        let Some(queue) = &spec.rules.queue else { continue };
        if queue.as_str() != DEFAULT_QUEUE && !queues.contains_key(queue) {
            let job: i64 = row.get(0)?;
            return Ok(Some(format!(
                "job {job} is in queue {queue}, which is not in the database"
            )));
        }
    }
    Ok(None)
}
