//! The requests about workflows, with the reply of the matching type.

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::workflow::{
    PackedWorkflow, WorkflowJobView, WorkflowReply, WorkflowRequest, WorkflowView,
};

use crate::connect::{Connection, RequestError, unexpected};

impl Connection {
    async fn workflow_request(
        &self,
        request: WorkflowRequest,
    ) -> Result<WorkflowReply, RequestError> {
        match self.request(RequestBody::Workflow(request)).await? {
            ReplyBody::Workflow(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// Submits a workflow; safe to repeat. Returns its number.
    pub(crate) async fn submit_workflow(
        &self,
        submission: SubmissionId,
        workflow: PackedWorkflow,
    ) -> Result<JobId, RequestError> {
        match self.workflow_request(WorkflowRequest::Submit { submission, workflow }).await? {
            WorkflowReply::Submitted { workflow, .. } => Ok(workflow),
            _ => Err(unexpected()),
        }
    }

    /// Cancels the jobs of a workflow that have not ended. Returns its number, and how many there were.
    pub(crate) async fn cancel_workflow(
        &self,
        workflow: JobId,
    ) -> Result<(JobId, u32), RequestError> {
        match self.workflow_request(WorkflowRequest::Cancel { workflow }).await? {
            WorkflowReply::Cancelled { workflow, jobs } => Ok((workflow, jobs)),
            _ => Err(unexpected()),
        }
    }

    /// Returns a page of the workflows before one, newest first, and the `before` of the next page.
    pub(crate) async fn workflows_before(
        &self,
        before: Option<JobId>,
        name: Option<Name>,
        limit: u32,
    ) -> Result<(Vec<WorkflowView>, Option<JobId>), RequestError> {
        match self.workflow_request(WorkflowRequest::List { before, name, limit }).await? {
            WorkflowReply::List { workflows, next } => Ok((workflows, next)),
            _ => Err(unexpected()),
        }
    }

    /// Returns up to `limit` workflows, newest first, and whether there are more.
    pub(crate) async fn workflows(
        &self,
        name: Option<Name>,
        limit: u32,
    ) -> Result<(Vec<WorkflowView>, bool), RequestError> {
        let mut all: Vec<WorkflowView> = Vec::new();
        let mut before = None;
        loop {
            let left = limit.saturating_sub(u32::try_from(all.len()).unwrap_or(u32::MAX));
            let (page, next) = self.workflows_before(before, name.clone(), left).await?;
            all.extend(page);
            if next.is_none() || all.len() >= limit as usize {
                return Ok((all, next.is_some()));
            }
            before = next;
        }
    }

    /// Returns a workflow with all its jobs.
    pub(crate) async fn workflow(
        &self,
        workflow: JobId,
    ) -> Result<(WorkflowView, Vec<WorkflowJobView>), RequestError> {
        let mut all: Vec<WorkflowJobView> = Vec::new();
        let mut after = None;
        loop {
            let request = WorkflowRequest::Show { workflow, after, limit: PAGE_ROWS_MAX };
            match self.workflow_request(request).await? {
                WorkflowReply::Workflow { view, jobs, next } => {
                    all.extend(jobs);
                    if next.is_none() {
                        return Ok((view, all));
                    }
                    after = next;
                }
                _ => return Err(unexpected()),
            }
        }
    }
}
