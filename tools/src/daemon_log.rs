//! The log of the daemons: to standard error, and to a bounded file in the data folder.

use std::io::{self, IsTerminal};
use std::path::Path;

use podmesh_logrotate::{LogWriter, RotationPolicy};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{CliError, CliResult};

/// The default log level.
pub(crate) const LEVEL_DEFAULT: &str = "info";

/// The maximum number of lines that wait for a slow disk or terminal. Above that the newest lines
/// are dropped, so that a log never blocks a daemon.
const LINES_WAITING: usize = 16 << 10;

/// Writes the remaining lines when it is dropped.
#[must_use]
pub(crate) struct LogGuard {
    _file: WorkerGuard,
    _stderr: WorkerGuard,
}

/// Starts logging to standard error and to `<folder>/<daemon>.log`, limited to 64 MiB over all
/// rotated files.
///
/// # Errors
/// If the level is not valid, the folder cannot be written, or the function was called twice.
pub(crate) fn start(level: &str, folder: &Path, daemon: &'static str) -> CliResult<LogGuard> {
    let filter = EnvFilter::builder().parse(level).map_err(|why| {
        CliError::usage(format!("`{}` is not a log level", crate::output::text::escape(level)))
            .because(why)
            .hint("use error, warn, info, debug or trace")
    })?;
    let unwritable = |why: String| {
        CliError::failure(format!("the log in {} cannot be written", folder.display()))
            .because(why)
            .hint("let this user write there, or name another folder with --data-dir")
    };
    std::fs::create_dir_all(folder).map_err(|why| unwritable(why.to_string()))?;
    let writer = LogWriter::open(folder, daemon, RotationPolicy::default())
        .map_err(|why| unwritable(why.to_string()))?;
    let (file, file_guard) = background("podmesh-log").finish(writer);
    let (stderr, stderr_guard) = background("podmesh-stderr").finish(io::stderr());
    let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
        && io::stderr().is_terminal();
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_writer(file).with_ansi(false))
        .with(fmt::layer().with_writer(stderr).with_ansi(colour))
        .try_init()
        .map_err(|why| CliError::failure("logging cannot start").because(why))?;
    Ok(LogGuard { _file: file_guard, _stderr: stderr_guard })
}

fn background(thread: &str) -> NonBlockingBuilder {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING)
        .thread_name(thread)
}
