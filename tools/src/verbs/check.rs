//! `podmesh check`

use std::path::Path;

use bytesize::ByteSize;
use podmesh_manager::StoreError;

use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::output::screen;
use crate::output::text::escape;

/// Exit code for a damaged database.
const EXIT_DAMAGED: u8 = 1;

/// Checks the whole database and says what it finds.
pub(crate) fn check(context: &Context) -> Outcome {
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
        (true, _) => "checksum: every byte is as it was when the database was closed",
        (false, true) => "checksum: none while a manager runs",
        (false, false) => "checksum: none, because the manager was not stopped in order",
    })?;
    for wrong in &found.wrong {
        screen::line(format!("WRONG: {}", escape(wrong)))?;
    }
    if !found.wrong.is_empty() {
        return Err(damaged(&found.path));
    }
    screen::line("pages, tables and their references: all is well")?;
    Ok(0)
}

fn damaged(path: &Path) -> CliError {
    let path = path.display();
    CliError::failure(format!("{path} is damaged")).code(EXIT_DAMAGED).hint(format!(
        "to restore a backup: stop the manager; move {path}, {path}-wal and {path}-shm away; \
         copy the file that `podmesh backup` made to {path}, as the manager's user; start the manager"
    ))
}
