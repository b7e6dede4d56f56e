//! `podmesh backup`

use bytesize::ByteSize;
use podmesh_manager::{BackupError, StoreError};

use crate::cli::daemon::BackupArgs;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;

/// Copies the database of the manager of this machine to a file.
pub(crate) fn backup(context: &Context, args: &BackupArgs) -> CliResult {
    let folder = context.data_dir()?.manager();
    let made = podmesh_manager::backup(&folder, &args.file).map_err(|why| {
        let error = CliError::failure("no backup was made").because(&why);
        match why {
            BackupError::Store(StoreError::File { .. } | StoreError::Sqlite { .. }) => {
                error.hint("run it as the user of the manager, or as root")
            }
            _ => error,
        }
    })?;
    screen::line(format!(
        "{}: {}, {} jobs, {} attempts, events up to revision {}",
        args.file.display(),
        ByteSize::b(made.bytes).display().iec(),
        made.jobs,
        made.attempts,
        made.revision
    ))?;
    screen::say_to_watcher(format!(
        "the backup does not contain the manager's key: also keep a copy of {} in a safe place",
        folder.join("key").display()
    ));
    Ok(0)
}
