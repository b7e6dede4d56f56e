//! Descriptions of one thing, as text.

use std::fmt::Write as _;
use std::time::Duration;

use podmesh_protocol::client::{AttemptView, TaskDetail};
use podmesh_protocol::node::NodeView;
use podmesh_protocol::volume::VolumeView;
use podmesh_protocol::workflow::WorkflowView;

use crate::connect::{Connection, RequestError};
use crate::error::CliError;
use crate::output::events::outcome_text;
use crate::output::json::{AttemptState, NodeState, TaskState, Word};
use crate::output::screen::Screen;
use crate::output::service::Scheduling;
use crate::output::table::{cores, resources, size};
use crate::output::text::{count, escape};
use crate::output::time::{coarse, local};
use crate::output::{queue_table, schedule_table, service_table, workflow_table};
use crate::top::model::page::node_remarks;
use crate::top::row::labels;
use crate::top::subject::About;
use crate::verbs::job;

/// Describes a thing; the text is safe for a terminal.
pub(super) async fn describe(
    connection: &Connection,
    about: &About,
) -> Result<String, RequestError> {
    let screen = Screen { width: None, color: false };
    let gone = |what: String| RequestError::Failed(CliError::failure(what));
    match about {
        About::Job(number) => {
            Ok(job::describe(&connection.job(*number, None, Duration::ZERO).await?))
        }
        About::Service(service) => {
            let detail = connection.service(service.clone(), None, Duration::ZERO).await?;
            let history = connection.service_history(service.clone()).await?;
            Ok(service_table::service(screen, &detail, &history))
        }
        About::Task(number) => Ok(task(&connection.task(*number, None, Duration::ZERO).await?)),
        About::Node(name) => {
            let nodes = connection.nodes().await?;
            let view = nodes.iter().find(|view| view.node == *name);
            view.map(node).ok_or_else(|| gone(format!("there is no node {name} any more")))
        }
        About::Volume(name) => {
            let volumes = connection.volumes().await?;
            let view = volumes.iter().find(|view| view.volume == *name);
            view.map(volume).ok_or_else(|| gone(format!("there is no volume {name} any more")))
        }
        About::Schedule(name) => {
            Ok(schedule_table::schedule(&connection.schedule(name.clone()).await?))
        }
        About::Workflow(number) => {
            let (view, jobs) = connection.workflow(*number).await?;
            Ok(format!("{}\n{}", workflow(&view), workflow_table::workflow(screen, &jobs)))
        }
        About::Queue(name) => {
            Ok(queue_table::queue(screen, &connection.queue(name.clone()).await?))
        }
    }
}

/// `name  value` lines.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        _ = writeln!(self.0, "{name:<12} {value}");
    }
}

fn node(view: &NodeView) -> String {
    let mut lines = Lines::default();
    lines.add("node", &view.node);
    lines.add("state", NodeState::from(&view.state).word());
    lines.add("scheduling", Scheduling::from(&view.scheduling).word());
    let (free, all) = (&view.free, &view.capacity);
    lines.add("cpus", format!("{} of {} free", cores(free.cpu_millis), cores(all.cpu_millis)));
    let memory = format!("{} of {} free", size(free.memory_bytes), size(all.memory_bytes));
    lines.add("memory", memory);
    if !view.resources.is_empty() {
        lines.add("resources", format!("{} free", resources(view)));
    }
    lines.add("attempts", view.attempts);
    let runtimes: Vec<String> = view.runtimes.iter().map(ToString::to_string).collect();
    lines.add("runtimes", runtimes.join(","));
    for remark in node_remarks(view) {
        lines.add("warning", remark);
    }
    if !view.labels.is_empty() {
        lines.add("labels", labels(view));
    }
    if let Some(address) = &view.address {
        lines.add("address", escape(address));
    }
    let seen = match view.seen_ms_ago {
        Some(ms) => format!("{} ago", coarse(ms)),
        None => "not since the manager started".into(),
    };
    lines.add("seen", seen);
    lines.add("version", escape(&view.program_version));
    lines.add("joined", if view.enrolled { "with a key" } else { "on the manager's machine" });
    lines.0
}

fn task(detail: &TaskDetail) -> String {
    let mut lines = Lines::default();
    lines.add("task", detail.task);
    lines.add("state", TaskState::from(&detail.state).word());
    lines.add("attempts", detail.attempts.len());
    for view in &detail.attempts {
        lines.0.push('\n');
        attempt(&mut lines, view);
    }
    lines.0
}

fn attempt(lines: &mut Lines, view: &AttemptView) {
    lines.add("attempt", view.number);
    lines.add("node", &view.node);
    lines.add("state", AttemptState::from(&view.state).word());
    if let Some(outcome) = &view.outcome {
        lines.add("outcome", outcome_text(outcome));
    }
    lines.add("assigned", local(view.assigned_wall_ms));
    for (name, at) in [("started", view.started_wall_ms), ("ended", view.ended_wall_ms)] {
        if let Some(at) = at {
            lines.add(name, local(at));
        }
    }
}

fn volume(view: &VolumeView) -> String {
    let mut lines = Lines::default();
    lines.add("volume", &view.volume);
    lines.add("node", &view.node);
    lines.add("created", local(view.created_wall_ms));
    if view.removing {
        lines.add("state", "is being removed");
    }
    if let Some(why) = &view.failed {
        lines.add("failed", escape(why));
    }
    for service in &view.services {
        lines.add("service", service);
    }
    for job in &view.jobs {
        lines.add("job", job);
    }
    lines.0
}

fn workflow(view: &WorkflowView) -> String {
    let mut lines = Lines::default();
    lines.add("workflow", view.workflow);
    lines.add("name", &view.name);
    lines.add("submitted", local(view.submitted_wall_ms));
    lines.add("by", &view.submitted_by);
    let counts = &view.counts;
    for (number, state) in [
        (counts.queued, "queued"),
        (counts.running, "running"),
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ] {
        if number > 0 {
            lines.add(state, count(number.into(), "job"));
        }
    }
    lines.0
}
