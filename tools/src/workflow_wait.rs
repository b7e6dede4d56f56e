//! Waits for the end of a workflow.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podmesh_protocol::ids::JobId;
use podmesh_protocol::report::JobState;
use podmesh_protocol::workflow::{DependencyState, WorkflowJobView, WorkflowView};
use tokio::time::sleep;

use crate::connect::Connection;
use crate::error::{CliResult, EXIT_FAILURE};
use crate::follow::exit_code;
use crate::output::screen::say;
use crate::output::text::count;
use crate::progress;

/// How long to wait for a change of one job before looking at all again.
const WAIT: Duration = Duration::from_secs(2);
/// How many times as long as a look at all jobs takes is waited before the next one: a large workflow
/// is looked at less often.
const REST: u32 = 5;

/// Shows the progress of a workflow on a terminal until no job can go on. Returns 0 if none has failed,
/// otherwise the exit code of the first one that has.
pub(crate) async fn wait(connection: &Connection, workflow: JobId) -> CliResult {
    let bar = progress::bar(format!("workflow {workflow}"));
    let mut awaited = None;
    loop {
        let asked = Instant::now();
        let (view, jobs) = connection.workflow(workflow).await?;
        let took = asked.elapsed();
        show(&bar, &view, &jobs);
        let stuck = stuck(&jobs);
        let goes_on = |job: &&WorkflowJobView| !is_end(job) && !stuck.contains(&job.job);
        let Some(next) = jobs.iter().find(goes_on).map(|job| job.job) else {
            bar.finish_and_clear();
            return end(connection, workflow, &jobs, stuck.len()).await;
        };
        let since = awaited.filter(|(job, _)| *job == next).map(|(_, since)| since);
        let detail = connection.job(next, since, WAIT).await?;
        awaited = Some((next, detail.revision));
        sleep(took * REST).await;
    }
}

fn show(bar: &indicatif::ProgressBar, view: &WorkflowView, jobs: &[WorkflowJobView]) {
    // Jobs that were removed have ended.
    let going_on = jobs.iter().filter(|job| !is_end(job)).count() as u64;
    let failed = match view.counts.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    bar.set_length(view.jobs.into());
    bar.set_position(u64::from(view.jobs).saturating_sub(going_on));
    bar.set_message(format!("{} running{failed}", view.counts.running));
}

fn is_end(job: &WorkflowJobView) -> bool {
    job.state.known().is_some_and(|state| state.is_end())
}

/// Returns the jobs that never start unless tasks of another one are requeued.
fn stuck(jobs: &[WorkflowJobView]) -> BTreeSet<JobId> {
    let mut stuck = BTreeSet::new();
    loop {
        let before = stuck.len();
        for job in jobs.iter().filter(|job| !is_end(job)) {
            let waits_for_ever = job.after.iter().any(|own| {
                own.state == DependencyState::Blocked
                    || (own.state == DependencyState::Waiting && stuck.contains(&own.job))
            });
            if waits_for_ever {
                stuck.insert(job.job);
            }
        }
        if stuck.len() == before {
            return stuck;
        }
    }
}

async fn end(
    connection: &Connection,
    workflow: JobId,
    jobs: &[WorkflowJobView],
    stuck: usize,
) -> CliResult {
    if stuck > 0 {
        say(format!(
            "{} can never run, because other jobs have not ended as asked: see `podmesh workflow show {workflow}`; `podmesh workflow cancel {workflow}` ends them",
            count(stuck as u64, "job")
        ));
    }
    let failed = |job: &&WorkflowJobView| is_end(job) && job.state != JobState::Succeeded;
    let Some(first) = jobs.iter().find(failed) else { return Ok(0) };
    let detail = connection.job(first.job, None, Duration::ZERO).await?;
    let code = exit_code(connection, &detail).await?;
    say(format!("job {} ({}) has not succeeded", first.job, first.name));
    Ok(if code == 0 { EXIT_FAILURE } else { code })
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use podmesh_protocol::workflow::{Condition, DependencyView};

    use super::*;

    fn job(number: u64, state: JobState, after: &[(u64, DependencyState)]) -> WorkflowJobView {
        let view = |(job, state): &(u64, DependencyState)| DependencyView {
            job: JobId(*job),
            when: Condition::Succeeded.into(),
            state: (*state).into(),
        };
        WorkflowJobView {
            job: JobId(number),
            name: "x".parse().expect("a name"),
            state: state.into(),
            after: after.iter().map(view).collect(),
            more: 0,
        }
    }

    #[test]
    fn what_waits_for_a_job_that_failed_never_runs() {
        use DependencyState::{Blocked, Met, Waiting};
        let jobs = [
            job(1, JobState::Failed, &[]),
            job(2, JobState::Queued, &[(3, Waiting)]),
            job(3, JobState::Queued, &[(1, Blocked)]),
            job(4, JobState::Queued, &[(1, Met), (5, Waiting)]),
            job(5, JobState::Running, &[]),
        ];
        assert_eq!(stuck(&jobs), [JobId(2), JobId(3)].into());
        assert_eq!(stuck(&jobs[4..]), BTreeSet::new());
    }
}
