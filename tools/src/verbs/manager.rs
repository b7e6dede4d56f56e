//! `podmesh manager`

use std::net::SocketAddr;

use podmesh_manager::ManagerConfig;
use podmesh_wire::address::PORT_DEFAULT;
use serde::Deserialize;

use crate::cli::daemon::ManagerArgs;
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, Outcome};
use crate::settings::{self, DataDir};
use crate::signals::{Stop, run_daemon};
use crate::values::Span;

/// `manager.toml`: every setting has the name of its flag.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ManagerFile {
    listen: Option<SocketAddr>,
    lease: Option<Span>,
    heartbeat: Option<Span>,
    log_level: Option<String>,
}

/// Runs the manager until it is asked to stop.
pub(crate) async fn manager(context: &Context, args: ManagerArgs) -> Outcome {
    let data_dir = context.data_dir()?;
    let file: ManagerFile =
        settings::load(args.daemon.config.as_deref(), &data_dir, "manager", &[])?;
    let level = args.daemon.log_level.clone().or(file.log_level.clone());
    let config = config(args.listen, args.lease, args.heartbeat, file, &data_dir);
    let level = level.as_deref().unwrap_or(LEVEL_DEFAULT);
    let _log = daemon_log::start(level, &data_dir.daemon_logs(), "manager")?;
    let stop = Stop::new(args.daemon.stop_at_eof)?;
    run_daemon(stop, |shutdown| async {
        podmesh_manager::run(config, |_| {}, shutdown)
            .await
            .map_err(|why| CliError::failure("the manager cannot go on").because(why))
    })
    .await
}

fn config(
    listen: Option<SocketAddr>,
    lease: Option<Span>,
    heartbeat: Option<Span>,
    file: ManagerFile,
    data_dir: &DataDir,
) -> ManagerConfig {
    let listen = listen.or(file.listen).unwrap_or_else(listen_default);
    let mut config = ManagerConfig::new(data_dir.manager(), listen);
    if let Some(lease) = lease.or(file.lease) {
        config.lease = lease.0;
    }
    if let Some(heartbeat) = heartbeat.or(file.heartbeat) {
        config.heartbeat = heartbeat.0;
    }
    config
}

/// Loopback only, until told otherwise.
fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT_DEFAULT))
}
