//! `podmesh manager`

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use podmesh_manager::{HttpListen, ManagerConfig};
use podmesh_protocol::access::Role;
use podmesh_protocol::limits::TOKEN_TTL_MS_DEFAULT;
use podmesh_wire::address::{HTTP_PORT_DEFAULT, PORT_DEFAULT};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::cli::daemon::ManagerArgs;
use crate::connect::{Connection, PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::settings::{self, DataDir};
use crate::signals::{Stop, run_daemon};
use crate::values::{HttpAddress, Span};

/// `manager.toml`: every setting has the name of its flag.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ManagerFile {
    listen: Option<SocketAddr>,
    advertise: Vec<String>,
    group: Option<String>,
    http: Option<HttpAddress>,
    http_cert: Option<PathBuf>,
    http_key: Option<PathBuf>,
    otlp: Option<String>,
    lease: Option<Span>,
    heartbeat: Option<Span>,
    priority_max: Option<i32>,
    submissions_per_caller: Option<String>,
    keep: Option<Span>,
    keep_attempts: Option<u64>,
    keep_nodes: Option<Span>,
    log_level: Option<String>,
}

/// Runs the manager until it is asked to stop.
pub(crate) async fn manager(context: &Context, args: ManagerArgs) -> CliResult {
    let data_dir = context.data_dir()?;
    let file: ManagerFile =
        settings::load(args.daemon.config.as_deref(), &data_dir, "manager", &[])?;
    let level = args.daemon.log_level.clone().or(file.log_level.clone());
    let stop_at_eof = args.daemon.stop_at_eof;
    let config = config(args, file, &data_dir)?;
    let level = level.as_deref().unwrap_or(LEVEL_DEFAULT);
    let _log = daemon_log::start(level, &data_dir.daemon_logs(), "manager")?;
    let stop = Stop::new(stop_at_eof)?;
    let connection = Connection::new(data_dir.local_locator(), PATIENCE_ASK);
    run_daemon(stop, |shutdown| async {
        let (serves, serving) = oneshot::channel();
        let hint = tokio::spawn(async move {
            // Without an endpoint the manager has ended.
            if serving.await.is_ok() {
                say_how_to_join(connection).await;
            }
        });
        let result = podmesh_manager::run(config, |_| _ = serves.send(()), shutdown).await;
        hint.abort();
        result.map_err(|why| CliError::failure("the manager has failed").because(why))
    })
    .await
}

/// Prints how other machines join, at each start until a token has been created.
async fn say_how_to_join(connection: Connection) {
    let ttl_ms = TOKEN_TTL_MS_DEFAULT;
    let token = async {
        if !connection.tokens().await?.is_empty() {
            return Ok(None);
        }
        connection.token_create(Role::Agent, ttl_ms, 1).await.map(Some)
    };
    let token: Result<_, RequestError> = token.await;
    match token {
        Ok(Some(made)) => screen::say(format!(
            "to join another machine, run this on it within {} minutes:\n  podmesh agent --join {}\n\
             for more machines, or for users: podmesh token create",
            ttl_ms / 60_000,
            made.token
        )),
        Ok(None) => {}
        Err(error) => {
            let error = CliError::from(error);
            tracing::warn!(%error, "cannot create a join token; try `podmesh token create`");
        }
    }
}

fn config(args: ManagerArgs, file: ManagerFile, data_dir: &DataDir) -> CliResult<ManagerConfig> {
    let listen = args.listen.or(file.listen).unwrap_or_else(listen_default);
    let mut config = ManagerConfig::new(data_dir.manager(), listen);
    config.sockets_dir = data_dir.sockets();
    config.advertise = args.advertise;
    if config.advertise.is_empty() {
        for text in file.advertise {
            config.advertise.push(text.parse().map_err(|why| {
                CliError::usage("manager.toml: `advertise` is not valid").because(why)
            })?);
        }
    }
    if let Some(group) = args.group.or(file.group) {
        let found = nix::unistd::Group::from_name(&group).map_err(|why| {
            CliError::failure(format!("the group {group} cannot be looked up")).because(why)
        })?;
        let found = found.ok_or_else(|| {
            CliError::usage(format!("this machine has no group `{group}`"))
                .hint(format!("create it: groupadd {group}"))
        })?;
        config.sockets_group = Some(found.gid.as_raw());
    }
    config.http = http(args.http.or(file.http));
    config.http.tls = match (args.http_cert.or(file.http_cert), args.http_key.or(file.http_key)) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        _ => {
            return Err(CliError::usage("a certificate for HTTPS and its key belong together")
                .hint("give both: --http-cert and --http-key"));
        }
    };
    config.otlp = args.otlp;
    if let (None, Some(text)) = (&config.otlp, file.otlp) {
        config.otlp =
            Some(text.parse().map_err(|why| {
                CliError::usage("manager.toml: `otlp` is not valid").because(why)
            })?);
    }
    if let Some(lease) = args.lease.or(file.lease) {
        config.lease = lease.0;
    }
    if let Some(priority_max) = args.priority_max.or(file.priority_max) {
        config.priority_max = priority_max;
    }
    config.submissions_per_caller = args.submissions_per_caller;
    if let (None, Some(text)) = (config.submissions_per_caller, file.submissions_per_caller) {
        config.submissions_per_caller = Some(text.parse().map_err(|why| {
            CliError::usage("manager.toml: `submissions_per_caller` is not valid").because(why)
        })?);
    }
    if let Some(keep) = args.keep.or(file.keep) {
        config.retention.age_max = keep.0;
    }
    if let Some(keep_attempts) = args.keep_attempts.or(file.keep_attempts) {
        config.retention.attempts_max = keep_attempts;
    }
    if let Some(keep_nodes) = args.keep_nodes.or(file.keep_nodes) {
        config.retention.nodes_age_max = keep_nodes.0;
    }
    if let Some(heartbeat) = args.heartbeat.or(file.heartbeat) {
        config.heartbeat = heartbeat.0;
    }
    Ok(config)
}

/// Returns where the HTTP API listens. The default address is given up if it is in use.
pub(crate) fn http(address: Option<HttpAddress>) -> HttpListen {
    match address {
        Some(HttpAddress(address)) => HttpListen { address, optional: false, tls: None },
        None => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT_DEFAULT));
            HttpListen { address: Some(address), optional: true, tls: None }
        }
    }
}

/// The whole network: nobody gets access without a key.
fn listen_default() -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT_DEFAULT))
}
