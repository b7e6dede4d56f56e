//! Jobs that are submitted together.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::limits::JOBS_ACTIVE_MAX;
use podmesh_protocol::time::Now;
use podmesh_protocol::workflow::{Dependency, Positions, WorkflowPart, WorkflowSpec};

use crate::ids::Ticket;
use crate::input::{Command, Input};
use crate::step::{Answer, Step};
use crate::{Core, answer};

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

    /// Cancels the jobs of a workflow, as many as fit into this step; the others follow.
    pub(crate) fn on_cancel_workflow(
        &mut self,
        ticket: Ticket,
        workflow: JobId,
        jobs: u32,
        mut done: u32,
        out: &mut Step,
    ) {
        let order = self.downstream_first(workflow, jobs);
        if !self.cancel_jobs(order.into_iter(), &mut done, out) {
            let command = Command::CancelWorkflow { workflow, jobs, done };
            return self.backlog.push_front(Input::Command(ticket, command));
        }
        answer(out, ticket, Ok(Answer::JobsCancelled { jobs: done }));
    }

    /// Returns the jobs of a workflow that go on, each before those that it waits for: so none starts
    /// because another one was cancelled.
    fn downstream_first(&self, workflow: JobId, jobs: u32) -> Vec<JobId> {
        let all = workflow..JobId(workflow.0.saturating_add(jobs.into()));
        let mut waiting: BTreeMap<JobId, usize> =
            self.state.jobs.range(all).map(|(id, _)| (*id, 0)).collect();
        let upstream = |id: &JobId| {
            let job = self.state.jobs.get(id);
            job.into_iter().flat_map(|job| job.spec.after.iter().map(|own| own.job))
        };
        for id in waiting.keys().copied().collect::<Vec<_>>() {
            for of in upstream(&id) {
                if let Some(count) = waiting.get_mut(&of) {
                    *count += 1;
                }
            }
        }
        let free = waiting.iter().filter(|(_, count)| **count == 0);
        let mut order: Vec<JobId> = free.map(|(id, _)| *id).collect();
        let mut at = 0;
        while let Some(id) = order.get(at).copied() {
            at += 1;
            for of in upstream(&id) {
                let Some(count) = waiting.get_mut(&of) else { continue };
                *count -= 1;
                if *count == 0 {
                    order.push(of);
                }
            }
        }
        order
    }
}
