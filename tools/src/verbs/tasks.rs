//! `podmesh tasks`

use podmesh_protocol::client::TaskView;
use podmesh_protocol::limits::PAGE_ROWS_MAX;

use crate::cli::query::TasksArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::json::TasksOutput;
use crate::output::{screen, table};

/// Lists the tasks of a job.
pub(crate) async fn tasks(context: &Context, args: TasksArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let wanted = if args.all { usize::MAX } else { args.limit as usize };
    let state = args.state.map(Into::into);
    let mut tasks: Vec<TaskView> = Vec::new();
    let mut from = Some(0);
    let mut more = false;
    while let Some(index) = from {
        if tasks.len() == wanted {
            more = true;
            break;
        }
        let limit = (wanted - tasks.len()).min(PAGE_ROWS_MAX as usize);
        let (page, next) = connection.tasks(args.job, index, state, limit as u32).await?;
        tasks.extend(page);
        from = next;
    }
    if context.json() {
        screen::json(&TasksOutput::new(args.job, &tasks, more))?;
    } else {
        screen::print(&table::tasks(context.screen, &tasks))?;
        if more {
            screen::say(table::more(tasks.len(), "task"));
        }
    }
    Ok(0)
}
