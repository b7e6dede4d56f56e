//! `podmesh workflow`

use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::workflow::PackedWorkflow;
use uuid::Uuid;

use crate::cli::workflow::{SubmitWorkflowArgs, WorkflowArgs, WorkflowVerb};
use crate::connect::{Connection, PATIENCE_ASK, PATIENCE_SUBMIT};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::text::{clip, count, escape};
use crate::output::workflow::{
    WorkflowCancelOutput, WorkflowOutput, WorkflowSubmitOutput, WorkflowsOutput,
};
use crate::output::{screen, workflow_table};

/// Submits or shows workflows.
pub(crate) async fn workflow(context: &Context, args: WorkflowArgs) -> CliResult {
    match args.verb {
        WorkflowVerb::Submit(args) => submit(context, args).await,
        WorkflowVerb::Cancel { workflow } => cancel(context, &workflow).await,
        WorkflowVerb::Show { workflow } => show(context, &workflow).await,
        WorkflowVerb::List { name, limit } => list(context, name, limit).await,
    }
}

async fn submit(context: &Context, args: SubmitWorkflowArgs) -> CliResult {
    let waits = args.wait;
    let spec = crate::workflow::read(args, &|name| std::env::var_os(name))?;
    let packed = PackedWorkflow::pack(&spec)
        .map_err(|error| CliError::usage("the workflow is too large").because(error))?;
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let workflow = connection.submit_workflow(SubmissionId(Uuid::now_v7()), packed).await?;
    if context.json() {
        let jobs = u32::try_from(spec.jobs.len()).unwrap_or(u32::MAX);
        let name = spec.name.to_string();
        screen::json(&WorkflowSubmitOutput { workflow: workflow.0, name, jobs })?;
    } else {
        screen::line(workflow)?;
    }
    if !waits {
        return Ok(0);
    }
    connection.follow();
    crate::workflow_wait::wait(&connection, workflow).await
}

async fn cancel(context: &Context, text: &str) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let number = number_of(&connection, text).await?;
    let (workflow, jobs) = connection.cancel_workflow(number).await?;
    if context.json() {
        screen::json(&WorkflowCancelOutput { workflow: workflow.0, jobs })?;
    } else {
        screen::line(match jobs {
            0 => format!("workflow {workflow}: all its jobs had ended"),
            jobs => format!("workflow {workflow}: {} cancelled", count(jobs.into(), "job")),
        })?;
    }
    Ok(0)
}

async fn show(context: &Context, text: &str) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let number = number_of(&connection, text).await?;
    let (view, jobs) = connection.workflow(number).await?;
    if context.json() {
        let graph = jobs.iter().map(Into::into).collect();
        screen::json(&WorkflowOutput { row: (&view).into(), graph, more: false })?;
        return Ok(0);
    }
    screen::print(&workflow_table::workflow(context.screen, &jobs))?;
    let removed = view.jobs as usize - jobs.len().min(view.jobs as usize);
    if removed > 0 {
        screen::say(format!("{removed} of its jobs were removed"));
    }
    Ok(0)
}

/// Returns the number of a workflow that is given by its number or its name.
async fn number_of(connection: &Connection, text: &str) -> CliResult<JobId> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name: Name = text.parse().map_err(|why| {
        CliError::usage(format!("`{}` is no workflow", clip(&escape(text), 80))).because(why)
    })?;
    let (found, _) = connection.workflows(Some(name.clone()), 1).await?;
    found.first().map(|view| view.workflow).ok_or_else(|| {
        CliError::failure(format!("there is no workflow `{name}`"))
            .hint("`podmesh workflow list` shows all workflows")
    })
}

async fn list(context: &Context, name: Option<Name>, limit: u32) -> CliResult {
    let (workflows, more) = context.connection(PATIENCE_ASK)?.workflows(name, limit).await?;
    if context.json() {
        screen::json(&WorkflowsOutput {
            workflows: workflows.iter().map(Into::into).collect(),
            more,
        })?;
        return Ok(0);
    }
    screen::print(&workflow_table::workflows(context.screen, &workflows))?;
    if workflows.is_empty() {
        screen::say("there are no workflows; `podmesh workflow submit -f FILE` submits one");
    } else if more {
        screen::say(format!("showing only {limit}; --limit shows more"));
    }
    Ok(0)
}
