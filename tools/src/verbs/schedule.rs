//! `podmesh schedule`

use podmesh_protocol::ids::{Name, SubmissionId};
use podmesh_protocol::schedule::ScheduleRequest;
use uuid::Uuid;

use crate::cli::schedule::{AddArgs, ScheduleArgs, ScheduleVerb};
use crate::connect::{PATIENCE_ASK, PATIENCE_SUBMIT};
use crate::context::Context;
use crate::error::CliResult;
use crate::job;
use crate::output::schedule::{
    ScheduleHistoryOutput, ScheduleOutput, ScheduleRanOutput, ScheduleSavedOutput, SchedulesOutput,
    instants,
};
use crate::output::time::local;
use crate::output::{schedule_table, screen};
use crate::verbs::several::Several;

/// Lists or changes schedules.
pub(crate) async fn schedule(context: &Context, args: ScheduleArgs) -> CliResult {
    match args.verb {
        ScheduleVerb::Add(args) => add(context, *args).await,
        ScheduleVerb::List => list(context).await,
        ScheduleVerb::Show { name } => show(context, name).await,
        ScheduleVerb::History { name, limit } => history(context, name, limit).await,
        ScheduleVerb::Run { name } => run(context, name).await,
        ScheduleVerb::Pause { names } => {
            change(context, names, |schedule| ScheduleRequest::Pause { schedule }).await
        }
        ScheduleVerb::Resume { names } => {
            change(context, names, |schedule| ScheduleRequest::Resume { schedule }).await
        }
        ScheduleVerb::Remove { names } => {
            change(context, names, |schedule| ScheduleRequest::Remove { schedule }).await
        }
    }
}

async fn add(context: &Context, args: AddArgs) -> CliResult {
    let AddArgs { schedule, rule, options, command } = args;
    let lookup = |name: &str| std::env::var_os(name);
    let spec = job::schedule(schedule, rule, options, command.command, &lookup)?;
    let name = spec.name.clone();
    let saved = context.connection(PATIENCE_SUBMIT)?.save_schedule(spec).await?;
    if context.json() {
        screen::json(&ScheduleSavedOutput {
            schedule: name.to_string(),
            added: saved.added,
            changed: saved.changed,
            next_instants: instants(&saved.next_ms),
        })?;
        return Ok(0);
    }
    let what = match (saved.added, saved.changed) {
        (true, _) => "added",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    match saved.next_ms.first() {
        Some(ms) => screen::line(format!("{name}: {what}, next at {}", local(*ms)))?,
        None => screen::line(format!("{name}: {what}"))?,
    }
    Ok(0)
}

async fn list(context: &Context) -> CliResult {
    let schedules = context.connection(PATIENCE_ASK)?.schedules().await?;
    if context.json() {
        screen::json(&SchedulesOutput { schedules: schedules.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&schedule_table::schedules(context.screen, &schedules))?;
        if schedules.is_empty() {
            screen::say("there are no schedules yet; `podmesh schedule add` adds one");
        }
    }
    Ok(0)
}

async fn show(context: &Context, name: Name) -> CliResult {
    let detail = context.connection(PATIENCE_ASK)?.schedule(name).await?;
    if context.json() {
        screen::json(&ScheduleOutput::from(&detail))?;
    } else {
        screen::print(&schedule_table::schedule(&detail))?;
    }
    Ok(0)
}

async fn history(context: &Context, name: Name, limit: u32) -> CliResult {
    let rows = context.connection(PATIENCE_ASK)?.schedule_history(name, limit).await?;
    if context.json() {
        screen::json(&ScheduleHistoryOutput { runs: rows.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&schedule_table::history(context.screen, &rows))?;
    }
    Ok(0)
}

async fn run(context: &Context, name: Name) -> CliResult {
    let submission = SubmissionId(Uuid::now_v7());
    let job = context.connection(PATIENCE_SUBMIT)?.run_schedule(name.clone(), submission).await?;
    if context.json() {
        let job = job.map(|job| job.0);
        screen::json(&ScheduleRanOutput { schedule: name.to_string(), job })?;
        return Ok(0);
    }
    match job {
        Some(job) => screen::line(job)?,
        None => screen::say(format!("{name} runs when its last run has ended")),
    }
    Ok(0)
}

/// Changes schedules. One for which that fails does not keep the others from it.
async fn change(
    context: &Context,
    names: Vec<Name>,
    request: fn(Name) -> ScheduleRequest,
) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut several = Several::default();
    for name in names {
        several.note(connection.change_schedule(request(name)).await)?;
    }
    Ok(several.code())
}
