//! `podmesh compose up`

use std::time::Instant;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{DependsOn, ServicePlan, ServiceRequest, ServiceView};

use super::down;
use crate::cli::compose::UpArgs;
use crate::compose::{Member, Options, Project};
use crate::connect::{Connection, PATIENCE_SUBMIT};
use crate::connect_services::Changed;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::output::text::escape;
use crate::service;
use crate::values::Span;
use crate::verbs::service::apply::{changes_nothing, describe, intent};
use crate::verbs::service::wait::{self, Goal};

/// Creates or changes the services of a project.
pub(super) async fn up(context: &Context, options: &Options, args: &UpArgs) -> CliResult {
    let project = super::read(options)?;
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let existing = connection.services().await?;
    check_names(&project, &existing)?;
    // All are checked before one is changed.
    let mut plans = Vec::new();
    for member in &project.members {
        plans.push(connection.service_plan(member.spec.clone()).await?);
    }
    let orphans = orphans(&project, existing);
    if args.dry_run {
        return dry_run(context, &project, &plans, &orphans, args.remove_orphans);
    }
    let begun = Instant::now();
    let mut changes = Vec::new();
    for (Member { spec, .. }, plan) in project.members.iter().zip(&plans) {
        if !changes_nothing(spec, plan) {
            screen::say(intent(spec, plan));
            for reason in &plan.waits_for {
                screen::say(format!("{}: replicas will wait: {}", spec.name, escape(reason)));
            }
        }
        let request = ServiceRequest::Apply { spec: Box::new(spec.clone()) };
        let changed = connection.change_service(request).await?;
        crate::verbs::service::tell(context, &changed)?;
        changes.push(changed);
    }
    remove_orphans(&connection, &project.name, orphans, args).await?;
    if !args.wait.wait {
        return Ok(0);
    }
    wait_for_all(&connection, &project, &changes, args, begun).await
}

/// Refuses services whose names others have: those of another project, or of none.
fn check_names(project: &Project, existing: &[ServiceView]) -> CliResult<()> {
    for Member { name, spec } in &project.members {
        let same =
            |view: &&ServiceView| view.service.as_str().eq_ignore_ascii_case(spec.name.as_str());
        let Some(view) = existing.iter().find(same) else { continue };
        let whose = match &view.project {
            Some(found) if found.name == project.name && found.member.as_str() == name => continue,
            Some(found) => format!("it is {} of project {}", found.member, found.name),
            None => "it belongs to no project".to_owned(),
        };
        return Err(CliError::usage(format!("there is another service {}", view.service))
            .because(whose)
            .hint("choose another name for the project with -p, or rename the service"));
    }
    Ok(())
}

/// Returns the services of the project that the file does not have.
fn orphans(project: &Project, existing: Vec<ServiceView>) -> Vec<Name> {
    let is_orphan = |view: &ServiceView| {
        view.project.as_ref().is_some_and(|found| found.name == project.name)
            && project.members.iter().all(|member| member.spec.name != view.service)
    };
    existing.into_iter().filter(is_orphan).map(|view| view.service).collect()
}

fn names(orphans: &[Name]) -> String {
    orphans.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn dry_run(
    context: &Context,
    project: &Project,
    plans: &[ServicePlan],
    orphans: &[Name],
    remove: bool,
) -> CliResult {
    for (Member { spec, .. }, plan) in project.members.iter().zip(plans) {
        let diff = service::unified(plan.before.as_deref(), spec)?;
        screen::print(&describe(spec, plan, &diff, context.screen.color))?;
    }
    if !orphans.is_empty() {
        let effect = if remove { "removed" } else { "left; --remove-orphans removes them" };
        screen::line(format!("no longer in the file: {}; {effect}", names(orphans)))?;
    }
    Ok(0)
}

async fn remove_orphans(
    connection: &Connection,
    project: &Name,
    orphans: Vec<Name>,
    args: &UpArgs,
) -> CliResult<()> {
    if orphans.is_empty() {
        return Ok(());
    }
    if !args.remove_orphans {
        screen::say(format!(
            "project {project} also has services that are not in the file: {}; --remove-orphans removes them",
            names(&orphans)
        ));
        return Ok(());
    }
    down::request_removal(connection, &orphans).await?;
    Ok(())
}

/// Waits until all services are healthy, and those whose end others wait for have ended.
async fn wait_for_all(
    connection: &Connection,
    project: &Project,
    changes: &[Changed],
    args: &UpArgs,
    begun: Instant,
) -> CliResult {
    for changed in changes {
        let left = args.wait.timeout.map(|Span(all)| Span(all.saturating_sub(begun.elapsed())));
        let needs = project.members.iter().map(|member| &member.spec.depends_on);
        let mut needs = needs.filter_map(|needs| needs.get(&changed.service));
        let goal = match needs.any(|needs| *needs == DependsOn::Completed) {
            true => Goal::Completed,
            false => Goal::Healthy,
        };
        let code = wait::until(connection, changed, goal, left).await?;
        if code != 0 {
            return Ok(code);
        }
    }
    Ok(0)
}
