//! Workflows, as tables for people.

use std::collections::BTreeMap;

use comfy_table::Cell;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::report::JobState as WireJobState;
use podmesh_protocol::workflow::{
    Condition, DependencyState, DependencyView, WorkflowJobView, WorkflowView,
};

use super::json::{JobState, Word};
use super::screen::Screen;
use super::table::{render, state_cell};
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

/// A job of a workflow, in words.
#[derive(Clone, Debug)]
pub(crate) struct JobLine {
    pub(crate) job: JobId,
    pub(crate) name: Name,
    /// Its state; of one that waits for others, `waiting` or `blocked`.
    pub(crate) state: String,
    /// What it comes after.
    pub(crate) after: String,
    /// What of that is still to come.
    pub(crate) waits_for: String,
}

impl JobLine {
    /// Returns whether tasks of the job may wait.
    pub(crate) fn may_wait(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "waiting" | "blocked")
    }
}

/// Returns the jobs of a workflow in words.
pub(crate) fn lines(jobs: &[WorkflowJobView]) -> Vec<JobLine> {
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
    let line = |view: &WorkflowJobView| {
        let is_queued = view.state == WireJobState::Queued;
        let has = |wanted| view.after.iter().any(|own| own.state == wanted);
        let state = match () {
            () if is_queued && has(DependencyState::Blocked) => "blocked".into(),
            () if is_queued && has(DependencyState::Waiting) => "waiting".into(),
            () => JobState::from(&view.state).word().into_owned(),
        };
        let goes_on = view.state.known().is_some_and(|state| !state.is_end());
        let unmet = |own: &DependencyView| own.state != DependencyState::Met;
        let waits_for = if goes_on && view.after.iter().any(unmet) {
            list(view, |own| own.state != DependencyState::Met)
        } else {
            String::new()
        };
        let (job, name) = (view.job, view.name.clone());
        JobLine { job, name, state, after: list(view, |_| true), waits_for }
    };
    jobs.iter().map(line).collect()
}

/// `podmesh workflow show`: the jobs, with what they come after, and what of that is still to come.
pub(crate) fn workflow(screen: Screen, jobs: &[WorkflowJobView]) -> String {
    let row = |line: JobLine| {
        vec![
            Cell::new(line.job),
            Cell::new(line.name),
            state_cell(&line.state),
            Cell::new(line.after),
            Cell::new(line.waits_for),
        ]
    };
    let header = ["JOB", "NAME", "STATE", "AFTER", "WAITS FOR"];
    render(screen, &header, lines(jobs).into_iter().map(row).collect())
}
