//! `podmesh compose logs`

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::cli::compose::LogsArgs;
use crate::compose::Options;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::follow::ShowOptions;
use crate::turns::Turns;
use crate::verbs::logs::replicas::{Look, keep_on, merged};

/// Prints the output of the services of a project, line by line.
pub(super) async fn logs(context: &Context, options: &Options, args: LogsArgs) -> CliResult {
    let project = super::name(options)?;
    let connection = context.connection(PATIENCE_ASK)?;
    let mut members = super::members(&connection, &project).await?;
    for service in &args.services {
        if members.iter().all(|(member, _)| member.as_str() != service) {
            let shown = crate::output::text::escape(service);
            let error = CliError::failure(format!("project {project} has no service `{shown}`"));
            return Err(error.hint("`podmesh compose ps` lists them"));
        }
    }
    let wanted = |name: &str| args.services.is_empty() || args.services.iter().any(|s| s == name);
    members.retain(|(member, _)| wanted(member.as_str()));
    if members.is_empty() {
        super::say_empty(&project);
        return Ok(0);
    }
    let show = ShowOptions { follow: args.follow, tail: args.tail, stream: None };
    // Each service with its longest number, so that all lines begin at the same column.
    let width = members
        .iter()
        .map(|(member, view)| member.as_str().len() + 1 + view.replicas.max(1).to_string().len());
    let width = width.max().unwrap_or_default();
    let turns = Arc::new(Turns::default());
    let mut shown = FuturesUnordered::new();
    for (color, (member, view)) in members.into_iter().enumerate() {
        let look = Look { label: member, width, color, turns: Arc::clone(&turns) };
        let connection = &connection;
        shown.push(async move {
            let detail = connection.service(view.service, None, Duration::ZERO).await?;
            merged(context, connection, detail, None, show, look).await
        });
    }
    let mut code = 0;
    while let Some(result) = shown.next().await {
        match result {
            Ok(one) => code = code.max(one),
            Err(error) => code = keep_on(Err(error))?.unwrap_or(code),
        }
    }
    Ok(code)
}
