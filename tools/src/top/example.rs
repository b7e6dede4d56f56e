//! Rows for tests.
#![expect(clippy::unwrap_used, reason = "tests")]

use podmesh_protocol::client::{AttemptView, JobDetail, JobView, TaskView};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Revision, TaskId};
use podmesh_protocol::node::{NodeState, NodeView, Scheduling};
use podmesh_protocol::queue::QueueView;
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskCounts, TaskState};
use podmesh_protocol::schedule::{
    Overlap, RunResult, ScheduleDetail, ScheduleRunView, ScheduleView,
};
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_protocol::volume::VolumeView;
use podmesh_protocol::workflow::{
    Condition, DependencyState, DependencyView, WorkflowCounts, WorkflowJobView, WorkflowView,
};

use super::row::Row;
use crate::output::workflow_table::lines;

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
        low_disks: [].into(),
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

pub(super) fn schedule(name: &str, paused: bool) -> ScheduleView {
    ScheduleView {
        schedule: name.parse().unwrap(),
        cron: Some("0 3 * * *".into()),
        zone: Some("UTC".into()),
        every_ms: None,
        by: "anna".parse().unwrap(),
        paused,
        next_wall_ms: (!paused).then_some(NOW + 60_000),
        last_wall_ms: Some(NOW),
        last_job: Some(JobId(7)),
        active: 0,
        waiting: false,
        ran: 5,
        skipped: 1,
        missed: 2,
    }
}

pub(super) fn schedule_detail(view: ScheduleView) -> ScheduleDetail {
    let counts = TaskCounts { active: 1, ..TaskCounts::default() };
    ScheduleDetail {
        overlap: Overlap::Skip.into(),
        catch_up_ms: 60_000,
        job: job_detail(job_view(7, JobState::Running, counts), "").spec,
        next_ms: view.next_wall_ms.into_iter().collect(),
        view,
    }
}

/// A run, and one before it that was missed.
pub(super) fn runs() -> Vec<ScheduleRunView> {
    let ran = ScheduleRunView {
        number: 2,
        instant_ms: NOW,
        wall_ms: NOW,
        result: RunResult::Ran.into(),
        job: Some(JobId(7)),
        count: 1,
        message: None,
    };
    let missed = ScheduleRunView {
        number: 1,
        instant_ms: NOW - 60_000,
        result: RunResult::Missed.into(),
        job: None,
        count: 2,
        message: Some("the manager was away".into()),
        ..ran
    };
    vec![ran, missed]
}

pub(super) fn workflow(number: u64) -> WorkflowView {
    WorkflowView {
        workflow: JobId(number),
        name: "nightly".parse().unwrap(),
        jobs: 3,
        counts: WorkflowCounts { queued: 1, succeeded: 1, failed: 1, ..WorkflowCounts::default() },
        submitted_by: "anna".parse().unwrap(),
        submitted_wall_ms: NOW - 200_000,
    }
}

/// The rows of a workflow whose second job has failed.
pub(super) fn workflow_jobs() -> Vec<Row> {
    let after = |job, state: DependencyState| DependencyView {
        job: JobId(job),
        when: Condition::Succeeded.into(),
        state: state.into(),
    };
    let job = |job, name: &str, state: JobState, after| WorkflowJobView {
        job: JobId(job),
        name: name.parse().unwrap(),
        state: state.into(),
        after,
        more: 0,
    };
    let (met, blocked) = (DependencyState::Met, DependencyState::Blocked);
    let jobs = [
        job(40, "build", JobState::Succeeded, vec![]),
        job(41, "test", JobState::Failed, vec![after(40, met)]),
        job(42, "ship", JobState::Queued, vec![after(40, met), after(41, blocked)]),
    ];
    lines(&jobs).into_iter().map(|line| Row::WorkflowJob(Box::new(line))).collect()
}

pub(super) fn queue(name: &str, paused: bool) -> QueueView {
    QueueView {
        queue: name.parse().unwrap(),
        weight: 3,
        max_active: Some(100),
        max_active_per_caller: Some(20),
        paused,
        dead_letter: None,
        by: Some("anna".parse().unwrap()),
        jobs: 4,
        queued: 12,
        active: 2,
        active_cpu_millis: 1_500,
    }
}
