//! `podmesh queue`

use podmesh_protocol::ids::Name;
use podmesh_protocol::queue::{QueueChange, QueueRequest};

use crate::cli::job::JobOptions;
use crate::cli::queue::{QueueArgs, QueueVerb, SetArgs};
use crate::cli::workflow::AfterArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::job;
use crate::output::queue::{QueueOutput, QueueSavedOutput, QueuesOutput};
use crate::output::{queue_table, screen};
use crate::verbs::several::Several;

/// Lists or changes queues.
pub(crate) async fn queue(context: &Context, args: QueueArgs) -> CliResult {
    match args.verb {
        QueueVerb::List => list(context).await,
        QueueVerb::Show { name } => show(context, name).await,
        QueueVerb::Set(args) => set(context, args).await,
        QueueVerb::Pause { names } => {
            change(context, names, |queue| QueueRequest::Pause { queue }).await
        }
        QueueVerb::Resume { names } => {
            change(context, names, |queue| QueueRequest::Resume { queue }).await
        }
        QueueVerb::Remove { names } => {
            change(context, names, |queue| QueueRequest::Remove { queue }).await
        }
    }
}

async fn list(context: &Context) -> CliResult {
    let queues = context.connection(PATIENCE_ASK)?.queues().await?;
    if context.json() {
        screen::json(&QueuesOutput { queues: queues.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&queue_table::queues(context.screen, &queues))?;
    }
    Ok(0)
}

async fn show(context: &Context, name: Name) -> CliResult {
    let detail = context.connection(PATIENCE_ASK)?.queue(name).await?;
    if context.json() {
        screen::json(&QueueOutput::from(&detail))?;
    } else {
        screen::print(&queue_table::queue(context.screen, &detail))?;
    }
    Ok(0)
}

async fn set(context: &Context, args: SetArgs) -> CliResult {
    let SetArgs { name, weight, max_active, max_active_per_caller, dead_letter, no_dead_letter } =
        args;
    let lookup = |name: &str| std::env::var_os(name);
    let job = |file| {
        let options = JobOptions { file: Some(file), ..JobOptions::default() };
        job::build(options, Vec::new(), AfterArgs::default(), &lookup)
    };
    let dead_letter = dead_letter.map(job).transpose()?.map(Box::new);
    let settings =
        QueueChange { weight, max_active, max_active_per_caller, dead_letter, no_dead_letter };
    settings
        .validate()
        .map_err(|why| CliError::usage("the settings are not valid").because(why))?;
    let connection = context.connection(PATIENCE_ASK)?;
    let (added, changed) = connection.set_queue(name.clone(), settings).await?;
    if context.json() {
        screen::json(&QueueSavedOutput { queue: name.to_string(), added, changed })?;
        return Ok(0);
    }
    let what = match (added, changed) {
        (true, _) => "added",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    screen::line(format!("{name}: {what}"))?;
    Ok(0)
}

/// Changes queues. One for which that fails does not keep the others from it.
async fn change(
    context: &Context,
    names: Vec<Name>,
    request: fn(Name) -> QueueRequest,
) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut several = Several::default();
    for name in names {
        several.note(connection.change_queue(request(name)).await)?;
    }
    Ok(several.code())
}
