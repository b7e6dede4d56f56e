//! Schedules and their history.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_manager_core::state::ScheduleRunRow;
use podmesh_manager_core::state::{Schedule, ScheduleProgress};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::SCHEDULE_RUNS_KEPT;
use podmesh_protocol::schedule::{RunResult, ScheduleRunView};
use rusqlite::{Connection, params};

use super::codes::{integer, run_result, run_result_code, unsigned};
use super::columns::{decoded, name};
use super::commit::WriteError;

pub(super) fn save(
    connection: &Connection,
    schedule: &Name,
    saved: &Schedule,
) -> Result<(), WriteError> {
    connection
        .prepare_cached(
            "INSERT INTO schedules (schedule, saved_by, anchor_ms, progress)
             VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (schedule)
             DO UPDATE SET saved_by = ?2, anchor_ms = ?3, progress = ?4",
        )?
        .execute(params![
            schedule.as_str(),
            saved.by.as_str(),
            integer(saved.anchor_ms),
            rmp_serde::to_vec_named(&saved.progress)?,
        ])?;
    connection
        .prepare_cached(
            "INSERT INTO schedule_specs (schedule, spec) VALUES (?1, ?2)
             ON CONFLICT (schedule) DO UPDATE SET spec = ?2",
        )?
        .execute(params![schedule.as_str(), rmp_serde::to_vec_named(&*saved.spec)?])?;
    Ok(())
}

/// Saves how far a schedule has come, and adds to its history. Removes rows that are too old.
/// Returns how many schedules were changed.
pub(super) fn advance(
    connection: &Connection,
    schedule: &Name,
    progress: &ScheduleProgress,
    runs: &[ScheduleRunRow],
) -> Result<usize, WriteError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO schedule_runs (schedule, number, instant_ms, by_hand, wall_ms, result, job,
             count, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for run in runs {
        insert.execute(params![
            schedule.as_str(),
            integer(run.number),
            integer(run.instant_ms),
            run.by_hand,
            integer(run.wall_ms),
            run_result_code(run.result),
            run.job.map(|job| integer(job.0)),
            run.count,
            run.message,
        ])?;
    }
    if !runs.is_empty() {
        connection
            .prepare_cached("DELETE FROM schedule_runs WHERE schedule = ?1 AND number <= ?2")?
            .execute(params![
                schedule.as_str(),
                integer(progress.last_row.saturating_sub(SCHEDULE_RUNS_KEPT))
            ])?;
    }
    let changed = connection
        .prepare_cached("UPDATE schedules SET progress = ?2 WHERE schedule = ?1")?
        .execute(params![schedule.as_str(), rmp_serde::to_vec_named(progress)?])?;
    Ok(changed)
}

pub(super) fn remove(connection: &Connection, schedule: &Name) -> rusqlite::Result<()> {
    for table in ["schedules", "schedule_specs", "schedule_runs"] {
        let delete = format!("DELETE FROM {table} WHERE schedule = ?1");
        connection.prepare_cached(&delete)?.execute([schedule.as_str()])?;
    }
    Ok(())
}

/// Reads the schedules.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<BTreeMap<Name, Schedule>> {
    connection
        .prepare(
            "SELECT schedule, spec, saved_by, anchor_ms, progress
             FROM schedules LEFT JOIN schedule_specs USING (schedule)",
        )?
        .query_map([], |row| {
            let saved = Schedule {
                spec: Arc::new(decoded(row, 1)?),
                by: name(row, 2)?,
                anchor_ms: unsigned(row.get(3)?),
                progress: decoded(row, 4)?,
            };
            Ok((name(row, 0)?, saved))
        })?
        .collect()
}

/// Returns rows of the history of a schedule, newest first.
pub(super) fn history(
    connection: &Connection,
    schedule: &Name,
    before: Option<u64>,
    limit: u32,
) -> rusqlite::Result<Vec<ScheduleRunView>> {
    connection
        .prepare_cached(
            "SELECT number, instant_ms, wall_ms, result, job, count, message FROM schedule_runs
             WHERE schedule = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3",
        )?
        .query_map(params![schedule.as_str(), before.map_or(i64::MAX, integer), limit], |row| {
            let result: RunResult = run_result(row.get(3)?)?;
            Ok(ScheduleRunView {
                number: unsigned(row.get(0)?),
                instant_ms: unsigned(row.get(1)?),
                wall_ms: unsigned(row.get(2)?),
                result: result.into(),
                job: row.get::<_, Option<i64>>(4)?.map(|job| JobId(unsigned(job))),
                count: row.get(5)?,
                message: row.get(6)?,
            })
        })?
        .collect()
}

/// Returns what is wrong with the schedules, if anything is.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let schedules = read(connection)?;
    for (schedule, saved) in &schedules {
        let (last, rows): (Option<i64>, i64) = connection
            .prepare_cached("SELECT max(number), count(*) FROM schedule_runs WHERE schedule = ?1")?
            .query_row([schedule.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let last = last.map_or(0, unsigned);
        if saved.spec.name != *schedule
            || saved.progress.last_row != last
            || unsigned(rows) != last.min(SCHEDULE_RUNS_KEPT)
        {
            return Ok(Some(format!("schedule {schedule} disagrees with its history")));
        }
        if let Err(why) = saved.spec.validate() {
            return Ok(Some(format!("schedule {schedule}: {why}")));
        }
    }
    let mut statement = connection.prepare(
        "SELECT schedule, number, result, job, count, instant_ms, by_hand FROM schedule_runs",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (schedule, number): (Name, i64) = (name(row, 0)?, row.get(1)?);
        let ran = run_result(row.get(2)?)? == RunResult::Ran;
        let job: Option<i64> = row.get(3)?;
        let (count, instant_ms): (u32, u64) = (row.get(4)?, unsigned(row.get(5)?));
        let by_hand: bool = row.get(6)?;
        let decided = schedules
            .get(&schedule)
            .is_some_and(|saved| by_hand || instant_ms <= saved.progress.last_ms);
        if job.is_some() != ran || count == 0 || !decided {
            return Ok(Some(format!(
                "row {number} of the history of schedule {schedule} contradicts it"
            )));
        }
    }
    Ok(None)
}
