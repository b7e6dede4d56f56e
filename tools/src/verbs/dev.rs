//! `podmesh dev`

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use podmesh_agent::policy::IngressAddress;
use podmesh_manager::{Endpoint, ManagerConfig};
use podmesh_protocol::ids::Name;
use podmesh_wire::locate::ManagerPlace;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cli::daemon::DevArgs;
use crate::context::Context;
use crate::daemon_log;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::output::text::{command_line, count};
use crate::settings::DataDir;
use crate::signals::{Shutdown, Stop, run_daemon};
use crate::verbs::agent::plain;

/// How long the engine may take to describe its network.
const ENGINE_LIMIT: Duration = Duration::from_secs(3);

/// Returns the address of an agent that runs on one machine with others: 127.0.0.1 for the first one,
/// 127.0.0.2 for the second. So their ports do not clash.
pub(crate) fn loopback(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}

/// Runs a manager and agents in this process until Ctrl-C. Their state is kept for the next run.
pub(crate) async fn dev(context: &Context, args: DevArgs) -> CliResult {
    let data_dir = context.data_dir()?;
    let names: Vec<Name> = (1..=args.agents)
        .map(|number| {
            let why = |why| CliError::failure("a node has no name").because(why);
            format!("node-{number}").parse().map_err(why)
        })
        .collect::<CliResult<_>>()?;
    let _log = daemon_log::start(&args.log_level, &data_dir.daemon_logs(), "dev")?;
    let stop = Stop::new(false)?;
    let named = context.global.data_dir.is_some();
    run_daemon(stop, |shutdown| mesh(args, data_dir, named, names, shutdown)).await
}

/// Runs everything until `shutdown` or until a part ends. The agents stop first, so that the
/// manager still receives their last reports.
async fn mesh(
    args: DevArgs,
    data_dir: DataDir,
    named: bool,
    names: Vec<Name>,
    shutdown: Shutdown,
) -> CliResult<()> {
    let (serves, serving) = oneshot::channel();
    let (stop_manager, stopped) = oneshot::channel::<()>();
    let mut config = ManagerConfig::new(data_dir.manager(), args.listen);
    config.sockets_dir = data_dir.sockets();
    config.http = super::manager::http(None);
    let manager = podmesh_manager::run(config, |endpoint| _ = serves.send(endpoint), async {
        _ = stopped.await
    });
    let manager = async {
        manager.await.map_err(|why| CliError::failure("the manager has failed").because(why))
    };
    let agents = async {
        // Without an endpoint the manager has ended, and reports the reason itself.
        if let Ok(endpoint) = serving.await {
            welcome(&endpoint, &data_dir, named, &names)?;
            run_agents(&data_dir, names, shutdown).await?;
        }
        drop(stop_manager);
        Ok(())
    };
    let mut manager = std::pin::pin!(manager);
    let mut agents = std::pin::pin!(agents);
    tokio::select! {
        ended = &mut manager => ended,
        ended = &mut agents => {
            // A failed agent does not stop the manager.
            if ended.is_ok() { manager.await } else { ended }
        }
    }
}

async fn run_agents(mesh_dir: &DataDir, names: Vec<Name>, shutdown: Shutdown) -> CliResult<()> {
    let (stop, stopping) = watch::channel(false);
    let mut agents = JoinSet::new();
    let gateway = container_gateway().await;
    for (number, name) in (1..).zip(names) {
        let data_dir = mesh_dir.inner(name.as_str());
        let manager = ManagerPlace::DataDir(mesh_dir.path().to_owned());
        let mut config = plain(name.clone(), Some(manager), &data_dir);
        config.address = Some(loopback(number));
        // No process may remain, even if this process is killed.
        config.stop_processes = true;
        // Each agent stands for a machine, so each has an address of its own. Containers do not
        // reach those. They reach the first agent.
        let gateway = gateway.filter(|_| number == 1);
        let addresses = [loopback(number)].into_iter().chain(gateway).collect();
        config.ingress.address = IngressAddress::Only(addresses);
        let mut stopping = stopping.clone();
        agents.spawn(async move {
            // The sender lives until all agents have ended.
            let stopped = async move { _ = stopping.wait_for(|stop| *stop).await };
            let result = podmesh_agent::run(config, stopped).await;
            result.map_err(|why| {
                CliError::failure(format!("the agent {name} has failed")).because(why)
            })
        });
    }
    tokio::select! {
        () = shutdown => {}
        Some(result) = agents.join_next() => ended(result)?,
    }
    stop.send_replace(true);
    while let Some(result) = agents.join_next().await {
        ended(result)?;
    }
    Ok(())
}

/// Returns the address at which containers reach this machine, if there is an engine.
async fn container_gateway() -> Option<IpAddr> {
    let asked = timeout(ENGINE_LIMIT, podmesh_agent::docker::bridge_gateway()).await;
    // An engine on another machine has a network that this machine is not in.
    asked.ok()?.ok()?.filter(|gateway| TcpListener::bind((*gateway, 0)).is_ok())
}

fn ended(result: Result<CliResult<()>, tokio::task::JoinError>) -> CliResult<()> {
    result.map_err(|why| CliError::failure("an agent ended unexpectedly").because(why))?
}

fn welcome(endpoint: &Endpoint, data_dir: &DataDir, named: bool, names: &[Name]) -> CliResult<()> {
    let folder = data_dir.path().display().to_string();
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    let agents = match names.len() {
        0 => "no agent".to_owned(),
        number => format!("{} ({})", count(number as u64, "agent"), names.join(", ")),
    };
    // The CLI finds the manager by the data folder. A folder that is not the default must be named.
    let told = if named {
        format!("--data-dir {} ", command_line(std::slice::from_ref(&folder)))
    } else {
        String::new()
    };
    screen::print(&format!(
        "A manager at {} and {agents} run here until Ctrl-C; their state is in {folder}\n\
         In another terminal, try:\n\
         \x20 podmesh {told}nodes\n\
         \x20 podmesh {told}run -- echo hello\n\
         \x20 podmesh {told}submit --wait --array 100 -- sh -c 'echo task $PODMESH_TASK_INDEX'\n\
         \x20 podmesh {told}events -f\n",
        endpoint.address
    ))
}
