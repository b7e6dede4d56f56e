//! Jobs that wait for others: their submission, and requests about workflows.

use std::sync::Arc;
use std::time::Instant;

use podmesh_manager_core::input::Command;
use podmesh_manager_core::step::Answer;
use podmesh_protocol::access::Caller;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::workflow::{
    PackedWorkflow, Positions, WorkflowError, WorkflowReply, WorkflowRequest, WorkflowSpec,
};

use super::{Api, Client, unexpected};
use crate::store::History;
use crate::threads::stopping;

impl Api {
    /// Submits a job that waits for others. Continues if the client leaves.
    pub(super) async fn submit_after(
        self,
        caller: Caller,
        submission: SubmissionId,
        spec: Arc<JobSpec>,
    ) -> Result<ReplyBody, ErrorReply> {
        let work = async move {
            let mut counted = false;
            loop {
                // What is read of ended jobs stays true until the core has decided.
                let _ended_jobs = self.0.ended_jobs.lock().await;
                let read = Arc::clone(&spec);
                let known = self.0.reads.run(move |history| {
                    Ok(match history.submission(submission)? {
                        Some(job) => Err(job),
                        None => Ok(history.upstream(&read)?),
                    })
                });
                let upstream = match known.await? {
                    Ok(upstream) => upstream,
                    Err(job) => return Ok(ReplyBody::Submitted { job, again: true }),
                };
                if !std::mem::replace(&mut counted, true) {
                    self.0.submissions.take(&caller, Instant::now())?;
                }
                let (by, spec) = (caller.name.clone(), Arc::clone(&spec));
                let command = Command::Submit { by, submission, spec, upstream };
                let room = self.0.core.room().await;
                match self.0.core.command(command, room).answer().await? {
                    Answer::Submitted { job, again } => {
                        return Ok(ReplyBody::Submitted { job, again });
                    }
                    Answer::ReadAgain => {}
                    _ => return Err(unexpected()),
                }
            }
        };
        tokio::spawn(work).await.map_err(|_| stopping())?
    }

    pub(super) async fn workflow(
        &self,
        client: &Client,
        request: WorkflowRequest,
    ) -> Result<WorkflowReply, ErrorReply> {
        match request {
            WorkflowRequest::Submit { submission, workflow } => {
                self.submit_workflow(client, submission, workflow).await
            }
            WorkflowRequest::List { before, name, limit } => {
                let list = move |history: &History| history.workflows(before, name.as_ref(), limit);
                self.0.reads.run(list).await
            }
            WorkflowRequest::Show { workflow, after, limit } => {
                self.0.reads.run(move |history| history.workflow(workflow, after, limit)).await
            }
            WorkflowRequest::Cancel { workflow } => self.cancel_workflow(workflow).await,
        }
    }

    async fn submit_workflow(
        &self,
        client: &Client,
        submission: SubmissionId,
        packed: PackedWorkflow,
    ) -> Result<WorkflowReply, ErrorReply> {
        // Ten thousand jobs keep a processor busy for a while.
        let unpacked = tokio::task::spawn_blocking(move || unpack(&packed));
        let (workflow, positions) = unpacked
            .await
            .map_err(|_| stopping())?
            .map_err(|error| ErrorReply::new(ErrorCode::InvalidSpec, error.to_string()))?;
        for job in &workflow.jobs {
            self.may_have_priority(client, job.spec.priority)?;
        }
        self.may_write()?;
        let known = self.0.reads.run(move |history| history.submission(submission));
        if let Some(workflow) = known.await? {
            return Ok(WorkflowReply::Submitted { workflow, again: true });
        }
        self.0.submissions.take(&client.caller, Instant::now())?;
        let by = client.caller.name.clone();
        let workflow = Box::new(workflow);
        let command = Command::SubmitWorkflow { by, submission, workflow, positions };
        let room = self.0.core.room().await;
        match self.0.core.command(command, room).answer().await? {
            Answer::Submitted { job, again } => {
                Ok(WorkflowReply::Submitted { workflow: job, again })
            }
            _ => Err(unexpected()),
        }
    }

    async fn cancel_workflow(&self, of: JobId) -> Result<WorkflowReply, ErrorReply> {
        self.may_write()?;
        let found = self.0.reads.run(move |history| history.workflow(of, None, 1)).await?;
        let WorkflowReply::Workflow { view, .. } = found else { return Err(unexpected()) };
        let (workflow, jobs) = (view.workflow, view.jobs);
        let room = self.0.core.room().await;
        let command = Command::CancelWorkflow { workflow, jobs, done: 0 };
        match self.0.core.command(command, room).answer().await? {
            Answer::JobsCancelled { jobs } => Ok(WorkflowReply::Cancelled { workflow, jobs }),
            _ => Err(unexpected()),
        }
    }

    /// Cancels what is downstream of a job, and then the job. Continues if the client leaves.
    pub(super) async fn cancel_downstream(self, job: JobId) -> Result<ReplyBody, ErrorReply> {
        tokio::spawn(self.cancel_all(job)).await.map_err(|_| stopping())?
    }

    async fn cancel_all(self, job: JobId) -> Result<ReplyBody, ErrorReply> {
        let room = self.0.core.room().await;
        let command = Command::CancelDownstream { job, done: 0 };
        let Answer::JobsCancelled { jobs } = self.0.core.command(command, room).answer().await?
        else {
            return Err(unexpected());
        };
        let room = self.0.core.room().await;
        let pending = self.0.core.command(Command::Cancel { job }, room);
        match self.cancelled(pending).await? {
            ReplyBody::Cancelled { state, .. } => {
                Ok(ReplyBody::Cancelled { state, downstream: jobs })
            }
            _ => Err(unexpected()),
        }
    }
}

fn unpack(packed: &PackedWorkflow) -> Result<(WorkflowSpec, Positions), WorkflowError> {
    let workflow = packed.unpack()?;
    let positions = workflow.check()?;
    Ok((workflow, positions))
}
