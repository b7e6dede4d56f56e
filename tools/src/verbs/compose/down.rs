//! `podmesh compose down`

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceRequest;

use crate::cli::compose::DownArgs;
use crate::compose::Options;
use crate::connect::{Connection, PATIENCE_SUBMIT};
use crate::connect_services::Changed;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::screen;
use crate::values::Span;
use crate::verbs::service::wait::{self, Goal};
use crate::verbs::volumes;

/// Removes the services of a project, and its volumes if asked to.
pub(super) async fn down(context: &Context, options: &Options, args: &DownArgs) -> CliResult {
    // Only the file says which volumes belong to the project.
    let (project, own_volumes) = if args.volumes {
        let project = super::read(options)?;
        (project.name, project.volumes)
    } else {
        (super::name(options)?, Vec::new())
    };
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let members = super::members(&connection, &project).await?;
    if members.is_empty() {
        screen::say(format!("project {project} has no services"));
    }
    let begun = Instant::now();
    let mut needed = BTreeMap::new();
    for (_, view) in members {
        match connection.service(view.service.clone(), None, Duration::ZERO).await {
            Ok(detail) => {
                needed.insert(view.service, detail.spec.depends_on.into_keys().collect());
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    for services in in_reverse(needed) {
        for changed in request_removal(&connection, &services).await? {
            let left = args.timeout.map(|Span(all)| Span(all.saturating_sub(begun.elapsed())));
            let code = wait::until(&connection, &changed, Goal::Removed, left).await?;
            if code != 0 {
                return Ok(code);
            }
            screen::line(format!("{}: removed", changed.service))?;
        }
    }
    if own_volumes.is_empty() {
        return Ok(0);
    }
    let existing = connection.volumes().await?;
    let existing: BTreeSet<&Name> = existing.iter().map(|view| &view.volume).collect();
    let own: Vec<Name> = own_volumes.into_iter().filter(|name| existing.contains(name)).collect();
    let code = volumes::remove(&connection, own.clone(), false).await?;
    if code == 0 {
        for volume in own {
            screen::line(format!("volume {volume}: removed"))?;
        }
    }
    Ok(code)
}

/// Asks to remove services. One that is gone already is left out.
pub(super) async fn request_removal(
    connection: &Connection,
    services: &[Name],
) -> CliResult<Vec<Changed>> {
    let mut removed = Vec::new();
    for service in services {
        let request = ServiceRequest::Remove { service: service.clone() };
        match connection.change_service(request).await {
            Ok(changed) => removed.push(changed),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}

/// Returns the services in groups: each group before those that it needs.
fn in_reverse(mut needed: BTreeMap<Name, BTreeSet<Name>>) -> Vec<Vec<Name>> {
    let mut groups = Vec::new();
    while !needed.is_empty() {
        let mut group: Vec<Name> = needed
            .keys()
            .filter(|name| needed.values().all(|others| !others.contains(name)))
            .cloned()
            .collect();
        // Services that need each other, which no compose file has: all at once.
        if group.is_empty() {
            group = needed.keys().cloned().collect();
        }
        needed.retain(|name, _| !group.contains(name));
        groups.push(group);
    }
    groups
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn reversed(needed: &[(&str, &[&str])]) -> Vec<Vec<String>> {
        let name = |text: &&str| text.parse::<Name>().unwrap();
        let needed = needed.iter().map(|(of, names)| (name(of), names.iter().map(name).collect()));
        let text = |group: Vec<Name>| group.iter().map(ToString::to_string).collect();
        in_reverse(needed.collect()).into_iter().map(text).collect()
    }

    #[test]
    fn services_go_before_those_that_they_need() {
        let groups =
            reversed(&[("db", &[]), ("web", &["db", "cache"]), ("cache", &[]), ("x", &[])]);
        assert_eq!(groups, [vec!["web", "x"], vec!["cache", "db"]]);
        assert_eq!(reversed(&[("a", &["b"]), ("b", &["a"])]), [["a", "b"]]);
        // What is needed may be gone.
        assert_eq!(reversed(&[("a", &["gone"])]), [["a"]]);
    }
}
