//! `podmesh nodes`

use podmesh_protocol::client::PrincipalKind;

use crate::cli::access::{NodesArgs, NodesVerb};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json::NodesOutput;
use crate::output::text::escape;
use crate::output::{screen, table};
use crate::verbs::users::revoke;

/// Lists or revokes nodes.
pub(crate) async fn nodes(context: &Context, args: NodesArgs) -> Outcome {
    if let Some(NodesVerb::Revoke { names }) = args.verb {
        return revoke(context, PrincipalKind::Node, names).await;
    }
    let nodes = context.connection(PATIENCE_ASK)?.nodes().await?;
    if context.json() {
        screen::json(&NodesOutput { nodes: nodes.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::nodes(context.screen, &nodes))?;
        for view in &nodes {
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
