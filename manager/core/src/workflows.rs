//! Jobs that are submitted together.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::limits::JOBS_ACTIVE_MAX;
use podmesh_protocol::time::Now;
use podmesh_protocol::workflow::{Dependency, Positions, WorkflowPart, WorkflowSpec};

use crate::Core;
use crate::step::{Answer, Step};

impl Core {
    /// Submits all jobs of a workflow, or none. Their numbers follow each other, and that of the first
    /// is that of the workflow, which its submission leads to.
    pub(crate) fn submit_workflow(
        &mut self,
        now: Now,
        by: Name,
        submission: SubmissionId,
        workflow: WorkflowSpec,
        positions: &Positions,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        if let Some(job) = self.submissions.get(&submission) {
            return Ok(Answer::Submitted { job, again: true });
        }
        let count = workflow.jobs.len();
        let active = self.state.jobs.len();
        if active + count > JOBS_ACTIVE_MAX {
            let message = format!(
                "the workflow has {count} jobs, and {active} have not ended: the limit is {JOBS_ACTIVE_MAX} (JOBS_ACTIVE_MAX); submit again when some of them have ended"
            );
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        for job in &workflow.jobs {
            self.may_wait_in_queue(&job.spec)?;
            self.may_use(job.spec.run.volumes())?;
        }
        let first = self.next_job();
        let jobs = u32::try_from(count).unwrap_or(u32::MAX);
        let part = WorkflowPart { workflow: first, name: workflow.name.clone(), jobs };
        out.events.push(EventFact::WorkflowSubmitted {
            workflow: first,
            name: workflow.name,
            jobs,
        });
        for (job, upstream) in workflow.jobs.into_iter().zip(positions) {
            let id = self.next_job();
            let number = |position: usize| JobId(first.0 + position as u64);
            let mut spec = job.spec;
            spec.after = upstream
                .iter()
                .map(|own| Dependency { job: number(own.job), when: own.when })
                .collect();
            spec.workflow = Some(Box::new(part.clone()));
            let own = if id == first { submission } else { SubmissionId::of_job(id) };
            self.insert_job(now, own, Arc::new(spec), by.clone(), Vec::new(), out);
        }
        Ok(Answer::Submitted { job: first, again: false })
    }
}
