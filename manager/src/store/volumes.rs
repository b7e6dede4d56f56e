//! Named volumes in the database.

use std::collections::BTreeMap;

use podmesh_manager_core::state::VolumeRow;
use podmesh_protocol::ids::Name;
use rusqlite::{Connection, params};

use super::codes::{integer, unsigned};
use super::columns::name;

pub(super) fn save(
    connection: &Connection,
    volume: &Name,
    row: &VolumeRow,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO volumes (volume, node, created_ms, removed_by)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            volume.as_str(),
            row.node.as_str(),
            integer(row.created_wall_ms),
            row.removed_by.as_ref().map(Name::as_str),
        ])?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, volume: &Name) -> rusqlite::Result<()> {
    let delete = "DELETE FROM volumes WHERE volume = ?1";
    connection.prepare_cached(delete)?.execute([volume.as_str()])?;
    Ok(())
}

/// Reads the volumes.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<BTreeMap<Name, VolumeRow>> {
    connection
        .prepare("SELECT volume, node, created_ms, removed_by FROM volumes")?
        .query_map([], |row| {
            let removed_by: Option<String> = row.get(3)?;
            let volume = VolumeRow {
                node: name(row, 1)?,
                created_wall_ms: unsigned(row.get(2)?),
                removed_by: removed_by.map(|_| name(row, 3)).transpose()?,
            };
            Ok((name(row, 0)?, volume))
        })?
        .collect()
}

/// Returns what is wrong with the volumes, if anything is.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let unknown = "SELECT volume, volumes.node FROM volumes
         LEFT JOIN nodes ON nodes.name = volumes.node AND NOT nodes.forgotten
         WHERE nodes.name IS NULL";
    let mut statement = connection.prepare(unknown)?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (volume, node) = (name(row, 0)?, name(row, 1)?);
    Ok(Some(format!("volume {volume} is on node {node}, which is not in the database")))
}
