//! Dead-letter jobs: what a queue submits for its tasks that have failed for good.
//!
//! The job is part of the step that ends the task. So there is exactly one for each such task, whatever
//! happens to the manager.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, JobId, Name};
use podmesh_protocol::limits::{DEAD_LETTERS_PER_JOB, MESSAGE_BYTES_MAX, NAME_BYTES_MAX};
use podmesh_protocol::queue::DeadLetter;
use podmesh_protocol::report::{Outcome, OutcomeKind, ShownOutcome};
use podmesh_protocol::spec::{JobSpec, SpecError};
use podmesh_protocol::time::Now;

use crate::Core;
use crate::queues::queue_of;
use crate::reports::cut;
use crate::state::{ActiveAttempt, Job, failed};
use crate::step::Step;

/// What there is to do for a task that has failed for good.
pub(crate) struct Failure {
    queue: Name,
    attempt: AttemptId,
    spec: JobSpec,
    by: Name,
    /// How many tasks of its job had failed before.
    earlier: u32,
}

impl Core {
    /// Returns what there is to do after a task fails for good; `None` if its queue has no dead-letter
    /// job, or the task is one of such a job itself.
    pub(crate) fn failure(
        &self,
        job: &Job,
        attempt: AttemptId,
        active: &ActiveAttempt,
        outcome: &Outcome,
    ) -> Option<Failure> {
        let is_own = job.spec.run.replica.is_some() || job.spec.dead_letter.is_some();
        if is_own || !failed(outcome.kind) {
            return None;
        }
        let of = |(queue, _): &(&Name, _)| queue.as_str() == queue_of(&job.spec);
        let (queue, row) = self.state.queues.iter().find(of)?;
        let template = row.dead_letter.as_deref()?;
        let letter = DeadLetter { queue: queue.clone(), attempt };
        Some(Failure {
            queue: queue.clone(),
            attempt,
            spec: spec_of(template, letter, job.spec.name.as_str(), active.node.as_str(), outcome),
            by: job.by.clone().or_else(|| row.by.clone())?,
            earlier: job.counts.failed,
        })
    }

    /// Submits the dead-letter job of a task that has just failed, for the caller of the task. Only the
    /// first failed tasks of a job have one.
    pub(crate) fn submit_dead_letter(&mut self, now: Now, failure: Failure, out: &mut Step) {
        let Failure { queue, attempt, spec, by, earlier } = failure;
        if earlier > DEAD_LETTERS_PER_JOB {
            return; // An event has said so.
        }
        let refused = if earlier == DEAD_LETTERS_PER_JOB {
            let job = attempt.task.job;
            Some(format!(
                "{DEAD_LETTERS_PER_JOB} failed tasks of job {job} have one, and further ones get none (DEAD_LETTERS_PER_JOB): `podmesh tasks {job} --state failed` lists all"
            ))
        } else {
            self.may_insert(&spec).err().map(|error| error.message)
        };
        let event = if let Some(message) = refused {
            EventFact::DeadLetterSkipped { attempt, queue, message }
        } else {
            let dead_letter = self.insert_own_job(now, None, Arc::new(spec), by, out);
            EventFact::DeadLetterSubmitted { attempt, queue, dead_letter }
        };
        out.events.push(event);
    }

    /// Checks that a dead-letter job can be submitted later on.
    pub(crate) fn may_be_dead_letter(
        &self,
        queue: &Name,
        spec: &JobSpec,
    ) -> Result<(), ErrorReply> {
        if spec.rules.queue.as_ref() != Some(queue) {
            self.may_wait_in_queue(spec)?;
        }
        // The longest variables must have room.
        let attempt = AttemptId::new(JobId(u64::MAX), u32::MAX, u32::MAX);
        let letter = DeadLetter { queue: queue.clone(), attempt };
        let longest = "x".repeat(NAME_BYTES_MAX);
        let outcome = Outcome { exit_code: Some(i32::MIN), ..Outcome::new(OutcomeKind::TimedOut) };
        let outcome = outcome.with_message("x".repeat(MESSAGE_BYTES_MAX));
        let made = spec_of(spec, letter, &longest, &longest, &outcome);
        let invalid = |error: SpecError| ErrorReply::new(ErrorCode::InvalidSpec, error.to_string());
        made.run.validate().map_err(invalid)
    }
}

/// Returns the spec of the dead-letter job for a failed task of a job with this name.
fn spec_of(
    template: &JobSpec,
    letter: DeadLetter,
    job: &str,
    node: &str,
    outcome: &Outcome,
) -> JobSpec {
    let mut spec = template.clone();
    let AttemptId { task, number } = letter.attempt;
    let variables = [
        ("QUEUE", letter.queue.to_string()),
        ("JOB", task.job.to_string()),
        ("JOB_NAME", job.into()),
        ("TASK", task.to_string()),
        ("ATTEMPT", number.to_string()),
        ("NODE", node.into()),
        ("REASON", reason(outcome.clone().into())),
    ];
    let exit_code = outcome.exit_code.map(|code| ("EXIT_CODE", code.to_string()));
    for (name, value) in variables.into_iter().chain(exit_code) {
        spec.run.env.insert(format!("PODMESH_FAILED_{name}"), value);
    }
    spec.dead_letter = Some(Box::new(letter));
    spec
}

/// Returns why a task failed, as the value of a variable: `failed, exit code 3: …`.
fn reason(outcome: ShownOutcome) -> String {
    let mut text = outcome.summary();
    if let Some(message) = outcome.message {
        // A variable cannot contain NUL.
        text += &format!(": {}", message.replace('\0', ""));
    }
    cut(text)
}
