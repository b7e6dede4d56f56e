//! `podmesh requeue` and `podmesh failed`

use std::fmt::Write as _;

use podmesh_protocol::again::{EndedAs, FailedGroup, RequeueRequest, Requeued};
use podmesh_protocol::ids::{AttemptId, JobId};

use crate::cli::query::{FailedArgs, RequeueArgs};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::again::{FailedOutput, RequeueOutput};
use crate::output::events::outcome_text;
use crate::output::screen;
use crate::output::text::count;
use crate::output::time::{ago, now_ms};

/// Runs ended tasks of a job again.
pub(crate) async fn requeue(context: &Context, args: RequeueArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let RequeueArgs { job, tasks, state, downstream } = args;
    let request = RequeueRequest { job, tasks, state: state.map(EndedAs::from), downstream };
    let done = connection.requeue(request).await?;
    if context.json() {
        screen::json(&RequeueOutput::new(job, &done))?;
    } else {
        screen::line(said(job, &done))?;
    }
    Ok(0)
}

/// Returns what was done, for people.
fn said(job: JobId, done: &Requeued) -> String {
    let tasks = |tasks: u64| count(tasks, "task");
    let mut text = format!("job {job}: {} requeued", tasks(done.tasks));
    if done.downstream > 0 {
        _ = write!(text, ", also of {} downstream", count(done.downstream.into(), "job"));
    }
    if done.succeeded > 0 {
        _ = write!(text, "; {} succeeded, and not requeued", tasks(done.succeeded));
    }
    if done.active > 0 {
        _ = write!(text, "; {} not requeued, because they wait or run", tasks(done.active));
    }
    if let Some((first, last)) = done.untried {
        _ = write!(
            text,
            "; {first}-{last} have had no attempt, and can be requeued only together: name all of them, or none with --state cancelled"
        );
    }
    text
}

/// Lists failed tasks.
pub(crate) async fn failed(context: &Context, args: FailedArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let failed = connection.failed(args.since.map(crate::values::Span::ms)).await?;
    if context.json() {
        screen::json(&FailedOutput::from(&failed))?;
        return Ok(0);
    }
    for group in &failed.groups {
        screen::line(describe(group))?;
    }
    if failed.groups.is_empty() {
        screen::say("no task has failed");
    }
    if failed.more {
        screen::say("there are more failed tasks: see `podmesh tasks JOB --state failed`");
    }
    Ok(0)
}

/// Describes a group: what failed, where and why, and the commands for more.
fn describe(group: &FailedGroup) -> String {
    let job = group.job;
    let tasks = count(group.tasks, "task");
    let nodes: Vec<&str> = group.nodes.iter().map(|node| node.as_str()).collect();
    let more = match group.more_nodes {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let example = AttemptId { task: group.example, number: group.attempt };
    format!(
        "job {job} ({}): {tasks} on {}{more}, the last {}\n    {}\n    podmesh logs {example}\n    podmesh requeue {job}",
        group.name,
        nodes.join(", "),
        ago(now_ms(), group.last_wall_ms),
        outcome_text(&group.outcome),
    )
}
