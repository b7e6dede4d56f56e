//! `podmesh check`

use std::path::Path;

use bytesize::ByteSize;
use podmesh_manager::StoreError;

use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::output::text::escape;

/// The exit code for a damaged database.
const EXIT_DAMAGED: u8 = 1;

/// Checks the whole database and prints the result.
pub(crate) fn check(context: &Context) -> CliResult {
    let folder = context.data_dir()?.manager();
    let found = podmesh_manager::check(&folder).map_err(|why| match why {
        StoreError::Damaged { path, why } => damaged(&path).because(why),
        other => CliError::failure("the database cannot be checked").because(other),
    })?;
    let shown = found.path.display();
    screen::line(format!(
        "{shown}: {}, {} jobs, {} attempts, events up to revision {}",
        ByteSize::b(found.bytes).display().iec(),
        found.jobs,
        found.attempts,
        found.revision
    ))?;
    screen::line(match (found.sealed, found.in_use) {
        (true, _) => "checksum: matches; the database is unchanged since it was closed",
        (false, true) => "checksum: not available while a manager runs",
        (false, false) => "checksum: not available, because the manager did not shut down cleanly",
    })?;
    for wrong in &found.wrong {
        screen::line(format!("WRONG: {}", escape(wrong)))?;
    }
    if !found.wrong.is_empty() {
        return Err(damaged(&found.path));
    }
    screen::line("pages, tables and their references: no errors found")?;
    Ok(0)
}

fn damaged(path: &Path) -> CliError {
    let path = path.display();
    CliError::failure(format!("{path} is damaged")).code(EXIT_DAMAGED).hint(format!(
        "to restore a backup: stop the manager; move {path}, {path}-wal and {path}-shm away; \
         copy the backup to {path}, as the manager's user; start the manager"
    ))
}
