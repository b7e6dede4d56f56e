//! `podmesh nodes`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::Name;
use podmesh_protocol::node::{
    DrainSpec, DrainView, MaintenanceSpec, MaintenanceView, NodeView, Scheduling,
};
use tokio::time::{sleep, timeout};

use crate::cli::access::{NodesArgs, NodesVerb};
use crate::connect::{Connection, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_TIMED_OUT};
use crate::output::node::{LabelledNode, NodeMaintenanceOutput, NodeSchedulingOutput, NodesOutput};
use crate::output::text::{count, escape};
use crate::output::time::{coarse, local};
use crate::output::{screen, table};
use crate::values::{LabelChange, Span};
use crate::verbs::several::Several;
use crate::verbs::submit::moment_of;
use crate::verbs::users::revoke;

/// The time between two looks at nodes that are being drained.
const PAUSE: Duration = Duration::from_secs(1);

/// `--wait`, for at most `timeout`.
struct Wait {
    timeout: Option<Span>,
}

/// Lists, cordons, drains, revokes or forgets nodes.
pub(crate) async fn nodes(context: &Context, args: NodesArgs) -> CliResult {
    match args.verb {
        Some(NodesVerb::Revoke { names }) => {
            return revoke(context, PrincipalKind::Node, names).await;
        }
        Some(NodesVerb::Forget { names, force }) => return forget(context, names, force).await,
        Some(NodesVerb::Cordon { names }) => {
            return schedule(context, names, Scheduling::Cordoned, DrainSpec::default(), None)
                .await;
        }
        Some(NodesVerb::Uncordon { names }) => {
            return schedule(context, names, Scheduling::Open, DrainSpec::default(), None).await;
        }
        Some(NodesVerb::Drain { names, deadline, requeue, reason, wait, timeout }) => {
            let drain = DrainSpec { deadline_ms: deadline.map(Span::ms), requeue, reason };
            drain.validate().map_err(|error| CliError::usage(error.to_string()))?;
            let wait = wait.then_some(Wait { timeout });
            return schedule(context, names, Scheduling::Draining, drain, wait).await;
        }
        Some(NodesVerb::Maintenance {
            name,
            from,
            length,
            tz,
            deadline,
            requeue,
            reason,
            remove: _,
        }) => {
            let drain = DrainSpec { deadline_ms: deadline.map(Span::ms), requeue, reason };
            let spec = match (from, length) {
                (Some(from), Some(length)) => {
                    let from_ms = moment_of(&from, tz)?;
                    Some(MaintenanceSpec { from_ms, for_ms: length.ms(), drain })
                }
                _ => None,
            };
            return plan(context, name, spec).await;
        }
        Some(NodesVerb::Label { name, changes }) => return label(context, name, changes).await,
        None => {}
    }
    let nodes = context.connection(PATIENCE_ASK)?.nodes().await?;
    if context.json() {
        screen::json(&NodesOutput { nodes: nodes.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::nodes(context.screen, &nodes))?;
        for view in &nodes {
            if let Some(drain) = &view.drain {
                screen::say(about_drain(view, drain));
            }
            if let Some(planned) = &view.maintenance {
                screen::say(about_maintenance(view, planned));
            }
            for (name, of) in view.resources.iter().filter(|(_, of)| !of.gone.is_empty()) {
                let gone: Vec<String> = of.gone.iter().map(|id| escape(id)).collect();
                screen::say(format!(
                    "{} offers {name} {} no more; attempts still have it",
                    view.node,
                    gone.join(", ")
                ));
            }
            for why in view.low_disks.values() {
                screen::say(format!(
                    "{} has a disk that is nearly full: {}",
                    view.node,
                    escape(why)
                ));
            }
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

/// Returns what is known of the drain of a node, and what it waits for.
fn about_drain(view: &NodeView, drain: &DrainView) -> String {
    let since = local(drain.since_wall_ms);
    let mut text = format!("{} is drained by {} since {since}", view.node, drain.by);
    if let Some(reason) = &drain.spec.reason {
        text += &format!(" ({})", escape(reason));
    }
    if view.attempts == 0 {
        return text + ": nothing runs there any more";
    }
    let jobs: Vec<String> = drain.waits_for.iter().map(ToString::to_string).collect();
    let attempts = count(u64::from(view.attempts), "attempt");
    text += &format!(": it waits for {attempts} of the jobs {}", jobs.join(", "));
    match drain.stops_in_ms {
        None => {}
        Some(0) => text += "; they were told to stop",
        Some(left) => text += &format!("; what runs then is stopped in {}", coarse(left)),
    }
    match (drain.stops_in_ms.is_some(), drain.spec.requeue) {
        (true, true) => text + ", and runs again elsewhere",
        _ => text,
    }
}

/// Returns what is known of the planned maintenance of a node.
fn about_maintenance(view: &NodeView, planned: &MaintenanceView) -> String {
    let MaintenanceView { by, spec, active } = planned;
    let (from, until) = (local(spec.from_ms), local(spec.until_ms()));
    let when =
        if *active { format!("until {until}") } else { format!("from {from} until {until}") };
    let mut text = format!("{} has maintenance {when}, planned by {by}", view.node);
    if let Some(reason) = &spec.drain.reason {
        text += &format!(" ({})", escape(reason));
    }
    text
}

/// Plans a maintenance of a node, or takes it back.
async fn plan(context: &Context, name: Name, spec: Option<MaintenanceSpec>) -> CliResult {
    let planned = spec.as_ref().map(|spec| (local(spec.from_ms), local(spec.until_ms())));
    if let Some(spec) = &spec {
        spec.validate().map_err(|error| CliError::usage(error.to_string()))?;
    }
    let connection = context.connection(PATIENCE_ASK)?;
    let changed = connection.node_maintenance(name.clone(), spec).await?;
    if context.json() {
        screen::json(&NodeMaintenanceOutput { node: name.to_string(), changed })?;
        return Ok(0);
    }
    screen::line(match (planned, changed) {
        (Some((from, until)), true) => format!("{name}: maintenance from {from} until {until}"),
        (None, true) => format!("{name}: no maintenance any more"),
        (_, false) => format!("{name}: unchanged"),
    })?;
    Ok(0)
}

/// Changes labels of a node.
async fn label(context: &Context, name: Name, changes: Vec<LabelChange>) -> CliResult {
    let (mut set, mut remove) = (BTreeMap::new(), BTreeSet::new());
    for change in changes {
        let is_new = match change.clone() {
            LabelChange::Set(label, value) => {
                !remove.contains(&label) && set.insert(label, value).is_none()
            }
            LabelChange::Remove(label) => !set.contains_key(&label) && remove.insert(label),
        };
        if !is_new {
            return Err(CliError::usage("a label is given twice").because(change));
        }
    }
    let labels = context.connection(PATIENCE_ASK)?.node_labels(name.clone(), set, remove).await?;
    if context.json() {
        screen::json(&LabelledNode::new(&name, &labels))?;
    } else {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}={}", escape(value))).collect();
        screen::line(format!("{name}: {}", labels.join(",")))?;
    }
    Ok(0)
}

/// Forgets nodes. One that cannot be forgotten does not keep the others from it.
async fn forget(context: &Context, names: Vec<Name>, force: bool) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut several = Several::default();
    for name in names {
        let enrolled = several.note(connection.node_forget(name.clone(), force).await)?;
        if enrolled == Some(true) {
            screen::say(format!(
                "{name} keeps its key, with which its agent can come back; `podmesh nodes revoke {name}` ends that"
            ));
        }
    }
    Ok(several.code())
}

/// Sets what nodes may get. A node for which that fails does not keep the others from it.
async fn schedule(
    context: &Context,
    names: Vec<Name>,
    scheduling: Scheduling,
    drain: DrainSpec,
    wait: Option<Wait>,
) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut output = NodeSchedulingOutput { nodes: Vec::new() };
    let mut set: Vec<Name> = Vec::new();
    let mut several = Several::default();
    for name in names {
        let done = connection.node_scheduling(name.clone(), scheduling, drain.clone()).await;
        let Some(scheduled) = several.note(done)? else { continue };
        if !context.json() {
            screen::line(scheduled.line())?;
        }
        for note in &scheduled.notes {
            screen::say(escape(note));
        }
        output.nodes.push(scheduled);
        set.push(name);
    }
    if context.json() {
        screen::json(&output)?;
    }
    let Some(wait) = wait else { return Ok(several.code()) };
    connection.follow();
    let emptied = empty(&connection, &set);
    match wait.timeout {
        None => emptied.await?,
        Some(Span(limit)) => match timeout(limit, emptied).await {
            Ok(result) => result?,
            Err(_) => {
                let what = format!("the nodes are not empty after {}", Span(limit));
                return Err(CliError::failure(what)
                    .code(EXIT_TIMED_OUT)
                    .hint("they are still being drained; see `podmesh nodes`"));
            }
        },
    }
    Ok(several.code())
}

/// Waits until no node of these has an attempt.
async fn empty(connection: &Connection, names: &[Name]) -> CliResult<()> {
    let mut told = None;
    loop {
        let nodes = connection.nodes().await?;
        let mut left = 0;
        // A node that is gone has no attempts.
        for view in nodes.iter().filter(|view| names.contains(&view.node)) {
            if view.scheduling != Scheduling::Draining {
                let what = format!("node {} is no longer being drained", view.node);
                return Err(CliError::failure(what).because("somebody has changed it"));
            }
            left += u64::from(view.attempts);
        }
        if left == 0 {
            return Ok(());
        }
        if told != Some(left) {
            screen::say_to_watcher(format!("waiting for {}", count(left, "attempt")));
            told = Some(left);
        }
        sleep(PAUSE).await;
    }
}
