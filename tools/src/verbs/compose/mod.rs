//! `podmesh compose`

mod down;
mod logs;
pub(crate) mod ps;
mod up;

use std::env;
use std::path::PathBuf;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceView;

use crate::cli::compose::{ComposeArgs, ComposeVerb};
use crate::compose::{self, Options, Project};
use crate::connect::Connection;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;

/// Does something with a project.
pub(crate) async fn compose(context: &Context, args: ComposeArgs) -> CliResult {
    let options = args.options();
    match args.verb {
        ComposeVerb::Up(args) => up::up(context, &options, &args).await,
        ComposeVerb::Down(args) => down::down(context, &options, &args).await,
        ComposeVerb::Ps { .. } => ps::ps(context, &options).await,
        ComposeVerb::Logs(args) => logs::logs(context, &options, args).await,
        ComposeVerb::Config { .. } => config(context, &options),
    }
}

fn config(context: &Context, options: &Options) -> CliResult {
    let project = read(options)?;
    if context.json() {
        screen::json(project.merged())?;
    } else {
        screen::print(&project.yaml()?)?;
    }
    Ok(0)
}

fn here() -> CliResult<PathBuf> {
    env::current_dir()
        .map_err(|why| CliError::failure("the current folder cannot be read").because(why))
}

/// Reads the project, and says what of its files has no effect.
fn read(options: &Options) -> CliResult<Project> {
    let project = compose::read(options, &here()?, &|name| env::var_os(name))?;
    for note in &project.notes {
        screen::say(format!("ignored: {}", crate::output::text::escape(note)));
    }
    Ok(project)
}

/// Returns the name of the project.
fn name(options: &Options) -> CliResult<Name> {
    compose::name(options, &here()?, &|name| env::var_os(name))
}

/// Returns the services of a project, each with what it is called there.
async fn members(connection: &Connection, project: &Name) -> CliResult<Vec<(Name, ServiceView)>> {
    let services = connection.services().await?;
    let member = |view: ServiceView| {
        let found = view.project.as_ref().filter(|found| found.name == *project)?;
        Some((found.member.clone(), view))
    };
    Ok(services.into_iter().filter_map(member).collect())
}

fn say_empty(project: &Name) {
    screen::say(format!("project {project} has no services; start it with `podmesh compose up`"));
}
