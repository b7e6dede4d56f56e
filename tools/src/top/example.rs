//! Rows for tests.
#![expect(clippy::unwrap_used, reason = "tests")]

use podmesh_protocol::client::{AttemptView, JobDetail, JobView, TaskView};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Revision, TaskId};
use podmesh_protocol::node::{NodeState, NodeView, Scheduling};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskCounts, TaskState};
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_protocol::volume::VolumeView;

use super::row::Row;

/// The time at which the rows are drawn.
pub(super) const NOW: u64 = 1_700_000_000_000;

pub(super) fn job_view(job: u64, state: JobState, counts: TaskCounts) -> JobView {
    JobView {
        job: JobId(job),
        name: format!("job-{job}").parse().unwrap(),
        state: state.into(),
        priority: 0,
        counts,
        submitted_by: Some("anna".parse().unwrap()),
        submitted_wall_ms: NOW - 200_000,
        started_wall_ms: (state != JobState::Queued).then_some(NOW - 100_000),
        ended_wall_ms: None,
        unmet: 0,
        blocked: 0,
    }
}

/// A job of one task that runs.
pub(super) fn job(job: u64) -> Row {
    let counts = TaskCounts { active: 1, ..TaskCounts::default() };
    Row::Job(Box::new(job_view(job, JobState::Running, counts)))
}

/// An array with tasks in several states.
pub(super) fn array(job: u64) -> JobView {
    let counts = TaskCounts { queued: 40, active: 4, succeeded: 54, failed: 2, cancelled: 0 };
    job_view(job, JobState::Running, counts)
}

pub(super) fn job_detail(view: JobView, waits_for: &str) -> JobDetail {
    let spec: JobSpec = serde_json::from_value(serde_json::json!({
        "name": view.name,
        "array": {"first": 1, "last": view.counts.total()},
        "run": {"runtime": "process", "command": ["true"]},
    }))
    .unwrap();
    JobDetail {
        view,
        spec,
        revision: Revision(9),
        waits_for: vec![waits_for.to_owned()],
        ended_early: None,
    }
}

pub(super) fn event(revision: u64) -> Row {
    let fact = EventFact::JobCancelRequested { job: JobId(revision) };
    Row::Event { revision: Revision(revision), wall_ms: NOW, fact: Box::new(fact) }
}

pub(super) fn node(name: &str, used_cpus: u32) -> NodeView {
    NodeView {
        admin_labels: [].into(),
        resources: [].into(),
        drain: None,
        maintenance: None,
        node: name.parse().unwrap(),
        state: NodeState::Alive.into(),
        epoch: None,
        program_version: "0.1.0".into(),
        capacity: Resources { cpu_millis: 4_000, memory_bytes: 8 << 30 },
        free: Resources { cpu_millis: 4_000 - 1_000 * used_cpus, memory_bytes: 6 << 30 },
        labels: [("zone".parse().unwrap(), "a".to_owned())].into(),
        runtimes: vec![RuntimeKind::Process.into(), RuntimeKind::Docker.into()],
        withdrawn: [].into(),
        unenforced: [].into(),
        attempts: used_cpus,
        seen_ms_ago: Some(100),
        enrolled: true,
        scheduling: Scheduling::Open.into(),
        address: Some("10.0.0.1".into()),
    }
}

pub(super) fn attempt(number: u32, outcome: Option<Outcome>) -> AttemptView {
    AttemptView {
        number,
        node: "node-1".parse().unwrap(),
        state: if outcome.is_some() { AttemptState::Ended } else { AttemptState::Running }.into(),
        outcome: outcome.map(Into::into),
        assigned_wall_ms: NOW,
        started_wall_ms: Some(NOW),
        ended_wall_ms: None,
    }
}

pub(super) fn task(job: u64, index: u32, exit_code: Option<i32>) -> Row {
    let state = match exit_code {
        None => TaskState::Active,
        Some(0) => TaskState::Succeeded,
        Some(_) => TaskState::Failed,
    };
    Row::Task(Box::new(TaskView {
        task: TaskId { job: JobId(job), index },
        state: state.into(),
        attempts: 1,
        last: Some(attempt(1, exit_code.map(Outcome::exited))),
    }))
}

pub(super) fn volume(name: &str) -> VolumeView {
    VolumeView {
        volume: name.parse().unwrap(),
        node: "node-1".parse().unwrap(),
        created_wall_ms: NOW,
        removing: false,
        failed: None,
        services: ["db".parse().unwrap()].into(),
        jobs: [JobId(7)].into(),
    }
}
