//! Values as they stand in columns.

use podmesh_protocol::ids::Name;
use podmesh_protocol::report::TaskCounts;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::unreadable;

/// Reads a name from a column.
pub(super) fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let text: String = row.get(column)?;
    Name::try_from(text).map_err(|e| unreadable(column, e))
}

/// Reads who submitted a job from a column.
pub(super) fn submitted_by(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Name>> {
    let by: Option<String> = row.get(column)?;
    by.map(|by| Name::try_from(by).map_err(|e| unreadable(column, e))).transpose()
}

/// Reads a MessagePack value from a column.
pub(super) fn decoded<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let bytes = row.get_ref(column)?.as_blob().map_err(|e| unreadable(column, e))?;
    rmp_serde::from_slice(bytes).map_err(|e| unreadable(column, e))
}

/// Reads a MessagePack value from a column that may be NULL.
pub(super) fn optional<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => decoded(row, column).map(Some),
    }
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
