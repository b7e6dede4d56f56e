//! Services, their revisions, and what is known of their replicas.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_manager_core::state::{Job, ReplicaStatus, Service};
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::limits::REVISIONS_KEPT;
use podmesh_protocol::service::{RevisionState, ServiceRevision, ServiceSpec};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::codes::{integer, revision_code, revision_state, unsigned};
use super::columns::{decoded, name};
use super::commit::WriteError;

pub(super) fn save(
    connection: &Connection,
    service: &Name,
    saved: &Service,
) -> Result<(), WriteError> {
    connection
        .prepare_cached(
            "INSERT INTO services (service, saved) VALUES (?1, ?2)
             ON CONFLICT (service) DO UPDATE SET saved = ?2",
        )?
        .execute(params![service.as_str(), rmp_serde::to_vec_named(saved)?])?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, service: &Name) -> rusqlite::Result<()> {
    for table in ["services", "service_revisions"] {
        let delete = format!("DELETE FROM {table} WHERE service = ?1");
        connection.prepare_cached(&delete)?.execute([service.as_str()])?;
    }
    Ok(())
}

/// Saves a revision, and removes those that are too old. A revision that is applied again begins
/// anew.
pub(super) fn save_revision(
    connection: &Connection,
    service: &Name,
    revision: u32,
    spec: &ServiceSpec,
    by: &Name,
    wall_ms: u64,
) -> Result<(), WriteError> {
    connection
        .prepare_cached(
            "INSERT INTO service_revisions (service, revision, spec, applied_by, applied_ms, state)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (service, revision)
             DO UPDATE SET spec = ?3, applied_by = ?4, applied_ms = ?5",
        )?
        .execute(params![
            service.as_str(),
            revision,
            rmp_serde::to_vec_named(spec)?,
            by.as_str(),
            integer(wall_ms),
            revision_code(RevisionState::Begun),
        ])?;
    connection
        .prepare_cached("DELETE FROM service_revisions WHERE service = ?1 AND revision <= ?2 - ?3")?
        .execute(params![service.as_str(), revision, REVISIONS_KEPT])?;
    Ok(())
}

pub(super) fn end_revision(
    connection: &Connection,
    service: &Name,
    revision: u32,
    state: RevisionState,
    message: Option<&str>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE service_revisions SET state = ?3, message = ?4
             WHERE service = ?1 AND revision = ?2",
        )?
        .execute(params![service.as_str(), revision, revision_code(state), message])?;
    Ok(())
}

/// Saves what is known of a replica. The row stays until its job is removed.
pub(super) fn save_replica(
    connection: &Connection,
    attempt: AttemptId,
    status: &ReplicaStatus,
) -> Result<(), WriteError> {
    connection
        .prepare_cached(
            "INSERT INTO replicas (job, number, status) VALUES (?1, ?2, ?3)
             ON CONFLICT (job) DO UPDATE SET number = ?2, status = ?3",
        )?
        .execute(params![
            integer(attempt.task.job.0),
            attempt.number,
            rmp_serde::to_vec_named(status)?
        ])?;
    Ok(())
}

/// Reads the services.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<BTreeMap<Name, Arc<Service>>> {
    connection
        .prepare("SELECT service, saved FROM services")?
        .query_map([], |row| Ok((name(row, 0)?, Arc::new(decoded(row, 1)?))))?
        .collect()
}

/// Adds what is known of replicas to their active attempts.
pub(super) fn read_replicas(
    connection: &Connection,
    jobs: &mut BTreeMap<JobId, Box<Job>>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT job, number, status FROM jobs JOIN replicas USING (job)
         WHERE state < 3 AND service IS NOT NULL",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, number): (JobId, u32) = (JobId(unsigned(row.get(0)?)), row.get(1)?);
        let active = jobs.get_mut(&id).into_iter().flat_map(|job| job.active.values_mut());
        for active in active.filter(|active| active.number == number) {
            active.replica = Some(Box::new(decoded(row, 2)?));
        }
    }
    Ok(())
}

fn revision(row: &Row<'_>) -> rusqlite::Result<ServiceRevision> {
    Ok(ServiceRevision {
        revision: row.get(0)?,
        spec: decoded(row, 1)?,
        by: name(row, 2)?,
        applied_wall_ms: unsigned(row.get(3)?),
        state: revision_state(row.get(4)?)?.into(),
        message: row.get(5)?,
    })
}

const REVISION: &str =
    "SELECT revision, spec, applied_by, applied_ms, state, message FROM service_revisions";

/// Returns the revisions of a service, newest first.
pub(super) fn history(
    connection: &Connection,
    service: &Name,
) -> rusqlite::Result<Vec<ServiceRevision>> {
    connection
        .prepare_cached(&format!("{REVISION} WHERE service = ?1 ORDER BY revision DESC"))?
        .query_map([service.as_str()], revision)?
        .collect()
}

/// Returns what is wrong with the services, if anything is.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    for (service, saved) in read(connection)? {
        let there: Option<i64> = connection
            .prepare_cached("SELECT 1 FROM service_revisions WHERE service = ?1 AND revision = ?2")?
            .query_row(params![service.as_str(), saved.revision], |row| row.get(0))
            .optional()?;
        if there.is_none() || saved.spec.name != service || saved.revision > saved.last_revision {
            return Ok(Some(format!("service {service} disagrees with its revisions")));
        }
        history(connection, &service)?;
    }
    Ok(None)
}
