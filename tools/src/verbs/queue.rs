//! `podmesh queue`

use podmesh_protocol::ids::Name;
use podmesh_protocol::queue::{QueueChange, QueueRequest};

use crate::cli::queue::{QueueArgs, QueueVerb, SetArgs};
use crate::connect::{PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::{CliResult, EXIT_FAILURE};
use crate::output::queue::{QueueOutput, QueueSavedOutput, QueuesOutput};
use crate::output::{queue_table, screen};

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
    let SetArgs { name, weight, max_active, max_active_per_caller } = args;
    let settings = QueueChange { weight, max_active, max_active_per_caller };
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
    let mut code = 0;
    for name in names {
        match connection.change_queue(request(name)).await {
            Ok(_) => {}
            Err(error @ RequestError::Refused(_)) => {
                screen::say_error(&error.into());
                code = EXIT_FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}
