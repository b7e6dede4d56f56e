//! `podmesh nodes`

use podmesh_protocol::client::PrincipalKind;

use crate::cli::access::{NodesArgs, NodesVerb};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json::NodesOutput;
use crate::output::{screen, table};

/// Lists the nodes, or shuts one out.
pub(crate) async fn nodes(context: &Context, args: NodesArgs) -> Outcome {
    let connection = context.connection(PATIENCE_ASK)?;
    if let Some(NodesVerb::Revoke { name }) = args.what {
        connection.revoke(PrincipalKind::Node, name.clone()).await?;
        screen::say(format!("node {name} is shut out"));
        return Ok(0);
    }
    let nodes = connection.nodes().await?;
    if context.json() {
        screen::json(&NodesOutput { nodes: nodes.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::nodes(context.screen, &nodes))?;
        if nodes.is_empty() {
            screen::say("no node has come yet; start `podmesh agent` on one");
        }
    }
    Ok(0)
}
