//! `podmesh jobs`

use podmesh_protocol::client::JobView;
use podmesh_protocol::limits::PAGE_ROWS_MAX;

use crate::cli::query::JobsArgs;
use crate::connect::{JobsQuery, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::json::JobsOutput;
use crate::output::{screen, table};

/// Lists the jobs.
pub(crate) async fn jobs(context: &Context, args: JobsArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let by = if args.mine { Some(connection.who_am_i().await?.name) } else { None };
    let wanted = if args.all { usize::MAX } else { args.limit as usize };
    let mut jobs: Vec<JobView> = Vec::new();
    let more = loop {
        // One more than wanted shows whether there are more.
        let limit = (wanted - jobs.len()).saturating_add(1).min(PAGE_ROWS_MAX as usize);
        let before = jobs.last().map(|view| view.job);
        let page = connection
            .jobs(JobsQuery {
                before,
                active: args.active,
                by: by.clone(),
                service: args.service.clone(),
                limit: limit as u32,
                ..JobsQuery::default()
            })
            .await?;
        if by.is_some() && page.iter().any(|view| view.submitted_by != by) {
            let error = CliError::failure(
                "the manager runs an older version of podmesh, which does not keep who submitted a job",
            );
            return Err(error.hint("upgrade the manager, or omit --mine"));
        }
        let last = page.len() < limit;
        jobs.extend(page);
        if jobs.len() > wanted {
            jobs.truncate(wanted);
            break true;
        }
        if last {
            break false;
        }
    };
    if context.json() {
        screen::json(&JobsOutput { jobs: jobs.iter().map(Into::into).collect(), more })?;
    } else {
        screen::print(&table::jobs(context.screen, &jobs))?;
        if more {
            screen::say(table::more(jobs.len(), "job"));
        }
    }
    Ok(0)
}
