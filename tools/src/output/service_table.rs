//! Services, as tables and lines for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::Cell;
use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{
    ReplicaView, ServiceDetail, ServiceRevision, ServiceState as WireState, ServiceView,
};

use super::json::Word;
use super::screen::Screen;
use super::service::{ReplicaState, RevisionState, ServiceState};
use super::table::{render, state};
use super::text::{count, escape};
use super::time::{ago, coarse, now_ms};

/// How many of the last revisions `service NAME` shows.
const REVISIONS_SHOWN: usize = 5;

/// `podmesh services`.
pub(crate) fn services(screen: Screen, services: &[ServiceView]) -> String {
    let row = |view: &ServiceView| {
        vec![
            Cell::new(&view.service),
            state(&ServiceState::from(&view.state)),
            Cell::new(format!("{}/{}", view.healthy, view.replicas)),
            Cell::new(view.revision),
            Cell::new(published(&view.published)),
            Cell::new(escape(&view.runs)),
        ]
    };
    let header = ["SERVICE", "STATE", "HEALTHY", "REVISION", "PUBLISHED", "RUNS"];
    render(screen, &header, services.iter().map(row).collect())
}

pub(crate) fn published(ports: &BTreeMap<Name, u16>) -> String {
    let ports: Vec<String> = ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
    ports.join(",")
}

/// `podmesh service NAME`.
pub(crate) fn service(
    screen: Screen,
    detail: &ServiceDetail,
    history: &[ServiceRevision],
) -> String {
    let view = &detail.view;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "{name:<13} {value}");
    line("service", view.service.as_str());
    line("state", &ServiceState::from(&view.state).word());
    line("replicas", &summary(view));
    line("revision", &view.revision.to_string());
    line("runs", &escape(&view.runs));
    if !view.published.is_empty() {
        line("published", &published(&view.published));
    }
    for reason in &detail.waits_for {
        line("waits for", &escape(reason));
    }
    if let Some(why) = &detail.failed_update {
        line("update failed", &escape(why));
    }
    for port in &detail.closed_ports {
        line("warning", &escape(port));
    }
    if !detail.replicas.is_empty() {
        text += "\n";
        text += &replicas(screen, &view.service, &detail.replicas);
    }
    if !history.is_empty() {
        text += "\n";
        text += &revisions(screen, &history[..history.len().min(REVISIONS_SHOWN)]);
    }
    text
}

/// Returns `2 of 3 healthy`, with the number of those that exist if that is another one.
pub(crate) fn summary(view: &ServiceView) -> String {
    let text = format!("{} of {} healthy", view.healthy, view.replicas);
    let expected = if view.state == WireState::Stopped { 0 } else { view.replicas };
    if view.existing == expected { text } else { format!("{text}, {} exist", view.existing) }
}

fn replicas(screen: Screen, service: &Name, replicas: &[ReplicaView]) -> String {
    let row = |view: &ReplicaView| {
        let endpoints: Vec<String> = view
            .endpoints
            .iter()
            .map(|(port, endpoint)| format!("{port}={}", escape(endpoint)))
            .collect();
        let mut message = view.message.as_deref().map(escape).unwrap_or_default();
        if let Some(ms) = view.restarts_in_ms {
            let gap = if message.is_empty() { "" } else { "; " };
            message += &format!("{gap}restarts in {}", coarse(ms));
        }
        vec![
            Cell::new(format!("{service}.{}", view.number)),
            Cell::new(view.revision),
            state(&ReplicaState::from(&view.state)),
            Cell::new(view.node.as_ref().map_or("", Name::as_str)),
            Cell::new(view.attempt.map(|attempt| attempt.task.job.to_string()).unwrap_or_default()),
            Cell::new(endpoints.join(",")),
            Cell::new(if view.failures == 0 { String::new() } else { view.failures.to_string() }),
            Cell::new(message),
        ]
    };
    let header =
        ["REPLICA", "REVISION", "STATE", "NODE", "JOB", "ENDPOINTS", "FAILURES", "MESSAGE"];
    render(screen, &header, replicas.iter().map(row).collect())
}

/// `podmesh service history`.
pub(crate) fn revisions(screen: Screen, revisions: &[ServiceRevision]) -> String {
    let now = now_ms();
    let mut rows = Vec::new();
    for revision in revisions {
        rows.push(vec![
            Cell::new(revision.revision),
            state(&RevisionState::from(&revision.state)),
            Cell::new(ago(now, revision.applied_wall_ms)),
            Cell::new(&revision.by),
            Cell::new(count(u64::from(revision.spec.replicas), "replica")),
            Cell::new(revision.message.as_deref().map(escape).unwrap_or_default()),
        ]);
    }
    render(screen, &["REVISION", "STATE", "APPLIED", "BY", "REPLICAS", "MESSAGE"], rows)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::verbs::service::example;

    const SCREEN: Screen = Screen { width: None, color: false };

    #[test]
    fn a_service_shows_its_replicas_and_why_they_wait() {
        let mut detail = example::detail();
        detail.waits_for = vec!["no node has joined yet\u{1b}[31m".into()];
        detail.replicas[1].message = Some("exit code 3\u{1b}]0;x\u{7}".into());
        detail.replicas[1].failures = 4;
        detail.replicas[1].restarts_in_ms = Some(3_000);
        let text = service(SCREEN, &detail, &[]);
        for part in [
            "state         degraded\n",
            "replicas      1 of 2 healthy\n",
            "published     http=8080\n",
            "waits for     no node has joined yet\\u{1b}[31m\n",
            "web.1    4         healthy     node-1  7    http=10.0.0.1:20001",
            "web.2    4         restarting",
            "4         exit code 3\\u{1b}]0;x\\u{7}; restarts in 3.0s\n",
        ] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_list_shows_how_many_replicas_are_healthy() {
        let text = services(SCREEN, &[example::detail().view]);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "web      degraded  1/2      4         http=8080  nginx:1.27"
        );
    }
}
