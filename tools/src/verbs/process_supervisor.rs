//! `podmesh process-supervisor`: started by `podmesh agent` to hold its processes. Hidden, because
//! nothing else uses it.

use std::ffi::OsString;

use podmesh_agent::companion::{CompanionCommand, READY};
use podmesh_agent::supervisor::{ignore_child_signals, keep, supervise};

use crate::cli::daemon::SupervisorArgs;
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::settings::DataDir;
use crate::signals::{Stop, run_daemon};

/// The name of the verb.
const VERB: &str = "process-supervisor";
/// The flag with which the keeper starts the supervisor itself.
const KEPT: &str = "--kept";

/// Returns the command that starts this program as the keeper of a supervisor.
pub(crate) fn command(data_dir: &DataDir, level: Option<&str>) -> CompanionCommand {
    let mut args: Vec<OsString> =
        vec![VERB.into(), "--data-dir".into(), data_dir.path().as_os_str().to_owned()];
    args.extend(["--log-level", level.unwrap_or(LEVEL_DEFAULT)].map(OsString::from));
    CompanionCommand {
        // This very program, even if its file has been replaced by another version.
        program: "/proc/self/exe".into(),
        arg0: std::env::args_os().next().unwrap_or_else(|| "podmesh".into()),
        args,
    }
}

/// Runs as the keeper, in a process with one thread: starts the supervisor, and returns when
/// nothing of it is left.
pub(crate) fn keeper(context: &Context, args: &SupervisorArgs) -> CliResult {
    report_failure(context.data_dir().and_then(|data_dir| {
        let mut command = command(&data_dir, args.log_level.as_deref());
        command.args.push(KEPT.into());
        keep(&data_dir.agent(), &command).map_err(cannot)
    }))
}

/// Runs as the supervisor.
pub(crate) async fn supervisor(context: &Context, args: SupervisorArgs) -> CliResult {
    // Before any thread is started.
    ignore_child_signals();
    let started = context.data_dir().and_then(|data_dir| {
        let level = args.log_level.as_deref().unwrap_or(LEVEL_DEFAULT);
        let log = daemon_log::start(level, &data_dir.daemon_logs(), "supervisor")?;
        Ok((data_dir, log, Stop::new(false)?))
    });
    let (data_dir, _log, stop) = match started {
        Ok(started) => started,
        Err(error) => return report_failure(Err(error)),
    };
    // If nobody reads the output, nobody waits for it.
    let ready = || _ = screen::line(READY);
    let agent_dir = data_dir.agent();
    let run = |shutdown| async move {
        supervise(&agent_dir, ready, shutdown).await.map_err(|why| {
            tracing::error!("{why}");
            cannot(why)
        })
    };
    report_failure(run_daemon(stop, run).await.map(|_| ()))
}

fn cannot(why: podmesh_agent::supervisor::SupervisorError) -> CliError {
    CliError::failure("the process supervisor has failed").because(why)
}

/// Prints a failure to standard output, which the agent reads.
fn report_failure(result: CliResult<()>) -> CliResult {
    if let Err(error) = &result {
        _ = screen::line(error);
    }
    result.map(|()| 0)
}
