//! `podmesh process-supervisor`: what `podmesh agent` starts to hold its processes. Hidden: nobody
//! else has a use for it.

use std::ffi::OsString;

use podmesh_agent::supervisor::{READY, SupervisorCommand, keep, supervise};

use crate::cli::daemon::SupervisorArgs;
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, Outcome};
use crate::output::screen;
use crate::settings::DataDir;
use crate::signals::{Stop, run_daemon};

/// The verb, as it is typed.
const VERB: &str = "process-supervisor";
/// What the supervisor itself is started with, by its keeper.
const KEPT: &str = "--kept";

/// How this program is started as the keeper of a supervisor.
pub(crate) fn command(data_dir: &DataDir, level: Option<&str>) -> SupervisorCommand {
    let mut args: Vec<OsString> =
        vec![VERB.into(), "--data-dir".into(), data_dir.path().as_os_str().to_owned()];
    args.extend(["--log-level", level.unwrap_or(LEVEL_DEFAULT)].map(OsString::from));
    SupervisorCommand {
        // This very program, also when its file has been replaced by another version.
        program: "/proc/self/exe".into(),
        arg0: std::env::args_os().next().unwrap_or_else(|| "podmesh".into()),
        args,
    }
}

/// Is the keeper, in a process with one thread: starts the supervisor, and returns when nothing of
/// it is left.
pub(crate) fn keeper(context: &Context, args: &SupervisorArgs) -> Outcome {
    said(context.data_dir().and_then(|data_dir| {
        let mut command = command(&data_dir, args.log_level.as_deref());
        command.args.push(KEPT.into());
        keep(&data_dir.agent(), &command).map_err(cannot)
    }))
}

/// Is the supervisor.
pub(crate) async fn supervisor(context: &Context, args: SupervisorArgs) -> Outcome {
    let started = context.data_dir().and_then(|data_dir| {
        let level = args.log_level.as_deref().unwrap_or(LEVEL_DEFAULT);
        let log = daemon_log::start(level, &data_dir.daemon_logs(), "supervisor")?;
        Ok((data_dir, log, Stop::new(false)?))
    });
    let (data_dir, _log, stop) = match started {
        Ok(started) => started,
        Err(error) => return said(Err(error)),
    };
    // Where nobody reads any more, nobody waits for it.
    let ready = || _ = screen::line(READY);
    let agent_dir = data_dir.agent();
    let run = |shutdown| async move {
        supervise(&agent_dir, ready, shutdown).await.map_err(|why| {
            tracing::error!("{why}");
            cannot(why)
        })
    };
    said(run_daemon(stop, run).await.map(|_| ()))
}

fn cannot(why: podmesh_agent::supervisor::SupervisorError) -> CliError {
    CliError::failure("the supervisor of processes has failed").because(why)
}

/// Says on standard output, which the agent reads, why it does not become ready.
fn said(result: Outcome<()>) -> Outcome {
    if let Err(error) = &result {
        _ = screen::line(error);
    }
    result.map(|()| 0)
}
