//! `podmesh console`

use std::net::SocketAddr;
use std::sync::Arc;

use podmesh_http::{Config, Hosts, Server};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use tokio::sync::watch;

use crate::cli::query::ConsoleArgs;
use crate::connect::{PATIENCE_ASK, unexpected};
use crate::console::MeshDoor;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen::{line, say};
use crate::signals::Interrupts;

/// Serves the console on this machine until Ctrl-C.
pub(crate) async fn console(context: &Context, args: ConsoleArgs) -> CliResult {
    let ConsoleArgs { listen, no_open } = args;
    if !listen.ip().is_loopback() {
        return Err(CliError::usage(format!(
            "--listen {listen} can be reached from other machines: whoever reads the network could ask with your role"
        ))
        .hint("use an address such as 127.0.0.1:8080; for other machines, run `podmesh console` there, or see `podmesh manager --http`"));
    }
    let mut interrupts = Interrupts::new()?;
    let (connection, watched) =
        (context.connection(PATIENCE_ASK)?, context.connection(PATIENCE_ASK)?);
    let ReplyBody::WhoAmI(caller) = connection.request(RequestBody::WhoAmI).await? else {
        return Err(unexpected().into());
    };
    let last = watched.info().await?.revision;
    watched.follow();
    let config = Config { listen: Some(listen), hosts: Hosts::new([]), ..Config::default() };
    let (server, address) = bind(config, listen)?;
    let who = format!("{} ({})", caller.name, caller.role);
    let (door, code, watching) = MeshDoor::new(connection, caller, watched, last)
        .map_err(|why| CliError::failure("the console cannot start").because(why))?;

    let url = format!("http://{address}/#code={code}");
    line(&url)?;
    say(format!(
        "the console asks as {who}; the address works once, within 5 minutes; Ctrl-C ends it"
    ));
    if !no_open && let Err(why) = open::that_detached(&url) {
        say(format!("no browser can be opened ({why}): open the address above yourself"));
    }
    let (stop, stopping) = watch::channel(false);
    let mut running = std::pin::pin!(server.run(Arc::new(door), stopping));
    let result = tokio::select! {
        result = &mut running => result,
        () = watching => Ok(()),
        _ = interrupts.next() => {
            stop.send_replace(true);
            running.await
        }
    };
    result.map_err(|why| CliError::failure("the console has ended").because(why))?;
    Ok(0)
}

fn bind(config: Config, listen: SocketAddr) -> CliResult<(Server, SocketAddr)> {
    let failed = || CliError::failure(format!("the console cannot listen on {listen}"));
    let server = Server::bind(config)
        .map_err(|why| failed().because(why).hint("leave --listen out to take a free port"))?;
    let address = server.address().ok_or_else(failed)?;
    Ok((server, address))
}
