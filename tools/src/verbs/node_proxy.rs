//! `podmesh node-proxy`: started by `podmesh agent` to pass connections to replicas. Hidden,
//! because nothing else uses it.

use std::ffi::OsString;

use podmesh_agent::companion::{CompanionCommand, READY};
use podmesh_agent::proxy::serve;

use crate::cli::daemon::ProxyArgs;
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::settings::DataDir;
use crate::signals::{Stop, run_daemon};

/// The name of the verb.
const VERB: &str = "node-proxy";

/// Returns the command that starts this program as the proxy of an agent.
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

/// Runs as the proxy.
pub(crate) async fn node_proxy(context: &Context, args: ProxyArgs) -> CliResult {
    // Leave the agent's terminal and process group. This fails if the process already leads a
    // session.
    _ = nix::unistd::setsid();
    let started = context.data_dir().and_then(|data_dir| {
        let level = args.log_level.as_deref().unwrap_or(LEVEL_DEFAULT);
        let log = daemon_log::start(level, &data_dir.daemon_logs(), "proxy")?;
        Ok((data_dir, log, Stop::new(false)?))
    });
    let (data_dir, _log, stop) = match started {
        Ok(started) => started,
        Err(error) => return report_failure(Err(error)),
    };
    // If nobody reads the output, nobody waits for it.
    let ready = || {
        tracing::info!("the proxy is ready");
        _ = screen::line(READY);
    };
    let agent_dir = data_dir.agent();
    let run = |shutdown| async move {
        serve(&agent_dir, ready, shutdown).await.map_err(|why| {
            tracing::error!("{why}");
            CliError::failure("the node's proxy has failed").because(why)
        })
    };
    report_failure(run_daemon(stop, run).await.map(|_| ()))
}

/// Prints a failure to standard output, which the agent reads.
fn report_failure(result: CliResult<()>) -> CliResult {
    if let Err(error) = &result {
        _ = screen::line(error);
    }
    result.map(|()| 0)
}
