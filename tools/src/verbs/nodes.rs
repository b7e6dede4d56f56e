//! `podmesh nodes`

use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::Name;

use crate::cli::access::{NodesArgs, NodesVerb};
use crate::connect::{PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::{CliResult, EXIT_FAILURE};
use crate::output::json::NodesOutput;
use crate::output::text::escape;
use crate::output::{screen, table};
use crate::verbs::users::revoke;

/// Lists, revokes or forgets nodes.
pub(crate) async fn nodes(context: &Context, args: NodesArgs) -> CliResult {
    match args.verb {
        Some(NodesVerb::Revoke { names }) => {
            return revoke(context, PrincipalKind::Node, names).await;
        }
        Some(NodesVerb::Forget { names, force }) => return forget(context, names, force).await,
        None => {}
    }
    let nodes = context.connection(PATIENCE_ASK)?.nodes().await?;
    if context.json() {
        screen::json(&NodesOutput { nodes: nodes.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::nodes(context.screen, &nodes))?;
        for view in &nodes {
            for (what, why) in &view.unenforced {
                let (node, what, why) = (&view.node, escape(what), escape(why));
                screen::say(format!("{node} does not enforce --{what} for commands: {why}"));
            }
            for (runtime, why) in &view.withdrawn {
                screen::say(format!("{} takes no work for {runtime}: {}", view.node, escape(why)));
            }
        }
        if nodes.is_empty() {
            screen::say("there are no nodes yet; start `podmesh agent` on a machine");
        }
    }
    Ok(0)
}

/// Forgets nodes. One that cannot be forgotten does not keep the others from it.
async fn forget(context: &Context, names: Vec<Name>, force: bool) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut code = 0;
    for name in names {
        match connection.node_forget(name.clone(), force).await {
            Ok(true) => screen::say(format!(
                "{name} keeps its key, with which its agent can come back; `podmesh nodes revoke {name}` ends that"
            )),
            Ok(false) => {}
            Err(error @ RequestError::Refused(_)) => {
                screen::say_error(&error.into());
                code = EXIT_FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}
