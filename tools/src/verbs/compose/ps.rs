//! `podmesh compose ps`

use std::time::Duration;

use comfy_table::Cell;
use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceDetail;
use schemars::JsonSchema;
use serde::Serialize;

use crate::compose::Options;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::screen::{self, Screen};
use crate::output::service::{ReplicaRow, ReplicaState, ServiceRow};
use crate::output::table::{render, state};
use crate::output::text::escape;

/// `podmesh compose ps --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ComposePsOutput {
    /// The project.
    project: String,
    /// Its services in order of name.
    services: Vec<ComposeServiceOutput>,
}

/// A service of a project.
#[derive(Debug, Serialize, JsonSchema)]
struct ComposeServiceOutput {
    /// The service as in `services`.
    #[serde(flatten)]
    row: ServiceRow,
    /// Its replicas, by number; the current revision first.
    replica_list: Vec<ReplicaRow>,
    /// Why wanted replicas wait; empty if none does.
    waits_for: Vec<String>,
}

/// Lists the services of a project with their replicas.
pub(super) async fn ps(context: &Context, options: &Options) -> CliResult {
    let project = super::name(options)?;
    let connection = context.connection(PATIENCE_ASK)?;
    let mut details = Vec::new();
    for (member, view) in super::members(&connection, &project).await? {
        match connection.service(view.service, None, Duration::ZERO).await {
            Ok(detail) => details.push((member, detail)),
            // It was removed just now.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if context.json() {
        let output = |(_, detail): &(Name, ServiceDetail)| ComposeServiceOutput {
            row: (&detail.view).into(),
            replica_list: detail.replicas.iter().map(Into::into).collect(),
            waits_for: detail.waits_for.clone(),
        };
        let services = details.iter().map(output).collect();
        screen::json(&ComposePsOutput { project: project.to_string(), services })?;
    } else if details.is_empty() {
        super::say_empty(&project);
    } else {
        screen::print(&table(context.screen, &details))?;
    }
    Ok(0)
}

fn table(screen: Screen, details: &[(Name, ServiceDetail)]) -> String {
    let mut rows = Vec::new();
    for (member, detail) in details {
        let ports = detail.spec.ports.values().map(|port| {
            let container = port.container.unwrap_or_default();
            port.publish
                .map_or_else(|| container.to_string(), |publish| format!("{publish}->{container}"))
        });
        let ports = ports.collect::<Vec<_>>().join(",");
        for replica in &detail.replicas {
            let waits = detail.waits_for.first().filter(|_| replica.attempt.is_none());
            let message = replica.message.as_ref().or(waits);
            rows.push(vec![
                Cell::new(format!("{member}.{}", replica.number)),
                state(&ReplicaState::from(&replica.state)),
                Cell::new(replica.node.as_ref().map_or("", Name::as_str)),
                Cell::new(&ports),
                Cell::new(escape(&detail.view.runs)),
                Cell::new(message.map(|text| escape(text)).unwrap_or_default()),
            ]);
        }
    }
    render(screen, &["REPLICA", "STATE", "NODE", "PORTS", "IMAGE", "MESSAGE"], rows)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::verbs::service::example;

    #[test]
    fn each_replica_has_a_row_with_its_node_and_ports() {
        let mut detail = example::detail();
        detail.replicas[1].message = Some("exit code 3\u{1b}".into());
        let screen = Screen { width: None, color: false };
        let text = table(screen, &[("front".parse().unwrap(), detail)]);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..], ["front.1", "healthy", "node-1", "8080->80", "nginx:1.27"]);
        assert_eq!(lines[2][..2], ["front.2", "restarting"]);
        assert!(text.contains("exit code 3\\u{1b}"), "{text}");
    }
}
