//! Workflows, as tables for people.

use std::collections::BTreeMap;

use comfy_table::{Cell, Color};
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::report::JobState as WireJobState;
use podmesh_protocol::workflow::{
    Condition, DependencyState, DependencyView, WorkflowJobView, WorkflowView,
};

use super::json::JobState;
use super::screen::Screen;
use super::table::{render, state};
use super::time::{ago, now_ms};

/// `podmesh workflow list`.
pub(crate) fn workflows(screen: Screen, workflows: &[WorkflowView]) -> String {
    let now = now_ms();
    let row = |view: &WorkflowView| {
        let counts = &view.counts;
        let some = |n: u32| if n == 0 { String::new() } else { n.to_string() };
        vec![
            Cell::new(view.workflow),
            Cell::new(&view.name),
            Cell::new(view.jobs),
            Cell::new(some(counts.queued)),
            Cell::new(some(counts.running)),
            Cell::new(some(counts.succeeded)),
            Cell::new(some(counts.failed)),
            Cell::new(some(counts.cancelled)),
            Cell::new(ago(now, view.submitted_wall_ms)),
            Cell::new(&view.submitted_by),
        ]
    };
    let header = [
        "WORKFLOW",
        "NAME",
        "JOBS",
        "QUEUED",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
        "SUBMITTED",
        "SUBMITTED BY",
    ];
    render(screen, &header, workflows.iter().map(row).collect())
}

/// `podmesh workflow show`: the jobs, with what they come after, and what of that is still to come.
pub(crate) fn workflow(screen: Screen, jobs: &[WorkflowJobView]) -> String {
    let names: BTreeMap<JobId, &Name> = jobs.iter().map(|view| (view.job, &view.name)).collect();
    let upstream = |own: &DependencyView| {
        let name = names.get(&own.job).map_or_else(|| own.job.to_string(), ToString::to_string);
        match own.when.known() {
            Some(Condition::Succeeded) => name,
            Some(Condition::Ended) => format!("{name} (any)"),
            _ => format!("{name} ({})", own.when),
        }
    };
    let list = |view: &WorkflowJobView, filter: fn(&DependencyView) -> bool| {
        let mut texts: Vec<String> =
            view.after.iter().filter(|own| filter(own)).map(upstream).collect();
        if view.more > 0 {
            texts.push(format!("{} more", view.more));
        }
        texts.join(", ")
    };
    let row = |view: &WorkflowJobView| {
        let is_queued = view.state == WireJobState::Queued;
        let has = |wanted| view.after.iter().any(|own| own.state == wanted);
        let shown = match () {
            () if is_queued && has(DependencyState::Blocked) => Cell::new("blocked").fg(Color::Red),
            () if is_queued && has(DependencyState::Waiting) => Cell::new("waiting"),
            () => state(&JobState::from(&view.state)),
        };
        let goes_on = view.state.known().is_some_and(|state| !state.is_end());
        let unmet = |own: &DependencyView| own.state != DependencyState::Met;
        let waits = if goes_on && view.after.iter().any(unmet) {
            list(view, |own| own.state != DependencyState::Met)
        } else {
            String::new()
        };
        vec![
            Cell::new(view.job),
            Cell::new(&view.name),
            shown,
            Cell::new(list(view, |_| true)),
            Cell::new(waits),
        ]
    };
    let header = ["JOB", "NAME", "STATE", "AFTER", "WAITS FOR"];
    render(screen, &header, jobs.iter().map(row).collect())
}
