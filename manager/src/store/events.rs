//! Events in the database. A row holds several events that were committed together.

use podmesh_protocol::event::{EventChunk, EventFact};
use podmesh_protocol::ids::Revision;
use podmesh_protocol::limits::{EVENTS_KEPT, EVENTS_PER_CHUNK_MAX};
use rusqlite::{Connection, params};

use super::codes::integer;
use super::commit::{CommittedChunk, TimedStep, WriteError};

/// The most bytes in a row of events, so that a reply has room for at least one row.
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// A row of events that was written.
pub(super) struct EventRow {
    first: Revision,
    wall_ms: u64,
    facts: usize,
    bytes: usize,
}

/// Writes the events of one step, split into rows within the limits.
pub(super) fn write(
    connection: &Connection,
    first: Revision,
    wall_ms: u64,
    facts: &[EventFact],
    rows: &mut Vec<EventRow>,
) -> Result<(), WriteError> {
    let mut bytes = None;
    if facts.len() <= EVENTS_PER_CHUNK_MAX {
        let encoded = rmp_serde::to_vec_named(facts)?;
        if facts.len() == 1 || encoded.len() <= CHUNK_BYTES_MAX {
            bytes = Some(encoded);
        }
    }
    let Some(bytes) = bytes else {
        let (some, rest) = facts.split_at(facts.len() / 2);
        write(connection, first, wall_ms, some, rows)?;
        return write(connection, Revision(first.0 + some.len() as u64), wall_ms, rest, rows);
    };
    let last = first.0 + facts.len() as u64 - 1;
    connection
        .prepare_cached("INSERT INTO events (last, first, wall_ms, facts) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![integer(last), integer(first.0), integer(wall_ms), bytes])?;
    rows.push(EventRow { first, wall_ms, facts: facts.len(), bytes: bytes.len() });
    Ok(())
}

/// Takes the events out of the steps, grouped into the rows that were written.
pub(super) fn chunks(rows: Vec<EventRow>, batch: &mut [TimedStep]) -> Vec<CommittedChunk> {
    let mut facts = batch.iter_mut().flat_map(|decided| std::mem::take(&mut decided.step.events));
    let chunk = |row: EventRow| {
        let EventRow { first, wall_ms, facts: count, bytes } = row;
        let facts = facts.by_ref().take(count).collect();
        CommittedChunk { chunk: EventChunk { first, wall_ms, facts }, bytes }
    };
    rows.into_iter().map(chunk).collect()
}

/// Removes rows in which all events are too old. Removes a few more rows than were added, so that
/// it keeps up and never takes long.
pub(super) fn forget_old(
    connection: &Connection,
    last: Revision,
    added: usize,
) -> rusqlite::Result<()> {
    let Some(oldest) = last.0.checked_sub(EVENTS_KEPT) else { return Ok(()) };
    connection
        .prepare_cached(
            "DELETE FROM events WHERE last IN
                 (SELECT last FROM events WHERE last <= ?1 ORDER BY last LIMIT ?2)",
        )?
        .execute(params![integer(oldest), integer(added as u64 * 2 + 16)])?;
    Ok(())
}
