//! Jobs that wait for other jobs, and workflows: jobs that are submitted together.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{JobId, Name, SubmissionId};
use crate::limits::{
    FRAME_BYTES_MAX, UPSTREAM_MAX, WORKFLOW_BYTES_MAX, WORKFLOW_DEPENDENCIES_MAX, WORKFLOW_JOBS_MAX,
};
use crate::report::JobState;
use crate::spec::JobSpec;
use crate::word::MaybeKnown;

/// What a job waits for. `J` is how the upstream job is named: by its number, in a workflow by its
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency<J = JobId> {
    /// The upstream job.
    pub job: J,
    /// How it must end.
    pub when: Condition,
}

/// How an upstream job must end, so that a job that waits for it may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// All its tasks have succeeded.
    Succeeded,
    /// It has ended otherwise: failed, cancelled or expired.
    Failed,
    /// It has ended.
    Ended,
    /// Index by index: a task may start when the task of the upstream job with the same index has
    /// succeeded. Both jobs have the same indexes.
    Each,
}

impl Condition {
    /// Returns whether a job that ended as `end` meets the condition.
    pub fn is_met_by(self, end: JobState) -> bool {
        match self {
            Self::Succeeded | Self::Each => end == JobState::Succeeded,
            Self::Failed => end != JobState::Succeeded,
            Self::Ended => true,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Each => "each",
        })
    }
}

/// How far a dependency has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyState {
    /// The upstream job has not ended.
    #[default]
    Waiting,
    /// The condition was met. That stays so, also if tasks of the upstream job are requeued.
    Met,
    /// The upstream job has ended in another way: the condition can only be met after a requeue.
    Blocked,
}

/// A dependency of a job, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyView {
    /// The upstream job.
    pub job: JobId,
    /// How it must end.
    pub when: MaybeKnown<Condition>,
    /// How far that has come.
    pub state: MaybeKnown<DependencyState>,
}

/// The workflow that a job is part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowPart {
    /// The number of the workflow, which is that of its first job. The numbers of the others follow.
    pub workflow: JobId,
    /// The name of the workflow.
    pub name: Name,
    /// How many jobs the workflow has.
    pub jobs: u32,
}

/// Jobs to submit together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowSpec {
    /// A name for people; need not be unique.
    pub name: Name,
    /// The jobs, in the order of their numbers. Their names differ.
    pub jobs: Vec<WorkflowJob>,
}

/// A job of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowJob {
    /// The job, without dependencies of its own.
    pub spec: JobSpec,
    /// The jobs of the workflow that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency<Name>>,
}

/// Why a workflow is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", .job.as_ref().map(|(_, name)| format!("job `{name}`: ")).unwrap_or_default())]
pub struct WorkflowError {
    /// The job with the mistake: its position, counted from 0, and its name.
    pub job: Option<(usize, Name)>,
    /// The job that `job` waits for, if that is the mistake.
    pub upstream: Option<Name>,
    /// What is wrong.
    pub why: String,
}

impl WorkflowError {
    fn whole(why: String) -> Self {
        Self { job: None, upstream: None, why }
    }
}

/// The dependencies of the jobs of a workflow, by position.
pub type Positions = Vec<Vec<Dependency<usize>>>;

impl WorkflowSpec {
    /// Checks every rule and limit, and returns the dependencies of each job by position.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn check(&self) -> Result<Positions, WorkflowError> {
        let all = self.jobs.len();
        if all == 0 {
            return Err(WorkflowError::whole("the workflow has no jobs".into()));
        }
        if all > WORKFLOW_JOBS_MAX {
            let why =
                format!("{all} jobs are over the limit of {WORKFLOW_JOBS_MAX} (WORKFLOW_JOBS_MAX)");
            return Err(WorkflowError::whole(why));
        }
        let mut by_name = BTreeMap::new();
        for (at, job) in self.jobs.iter().enumerate() {
            if by_name.insert(&job.spec.name, at).is_some() {
                return Err(self.wrong(at, "another job of the workflow has the same name".into()));
            }
        }
        let mut positions = Vec::with_capacity(all);
        let mut edges = 0;
        for (at, job) in self.jobs.iter().enumerate() {
            job.spec.validate().map_err(|error| self.wrong(at, error.to_string()))?;
            if !job.spec.after.is_empty() {
                let why = "in a workflow, jobs wait only for each other, by name".into();
                return Err(self.wrong(at, why));
            }
            let mut upstream = BTreeMap::new();
            for dependency in &job.after {
                let on = |why: String| WorkflowError {
                    upstream: Some(dependency.job.clone()),
                    ..self.wrong(at, why)
                };
                let name = &dependency.job;
                let Some(of) = by_name.get(name).copied() else {
                    return Err(on(format!("waits for `{name}`, and no job has that name")));
                };
                if of == at {
                    return Err(on("waits for itself".into()));
                }
                if upstream.insert(of, dependency.when).is_some() {
                    return Err(on(format!("waits for `{name}` twice")));
                }
                let (own, array) = (job.spec.array, self.jobs[of].spec.array);
                if dependency.when == Condition::Each && own != array {
                    return Err(on(format!(
                        "waits for each task of `{name}`, which has the tasks {} to {}, and has the tasks {} to {} itself",
                        array.first, array.last, own.first, own.last
                    )));
                }
            }
            edges += upstream.len();
            if edges > WORKFLOW_DEPENDENCIES_MAX {
                let why = format!(
                    "the dependencies up to here are over the limit of {WORKFLOW_DEPENDENCIES_MAX} (WORKFLOW_DEPENDENCIES_MAX)"
                );
                return Err(self.wrong(at, why));
            }
            let upstream = upstream.into_iter().map(|(job, when)| Dependency { job, when });
            positions.push(upstream.collect::<Vec<_>>());
        }
        self.find_cycle(&positions).map_or(Ok(positions), Err)
    }

    fn wrong(&self, at: usize, why: String) -> WorkflowError {
        let job = Some((at, self.jobs[at].spec.name.clone()));
        WorkflowError { job, upstream: None, why }
    }

    /// Returns a cycle, if there is one.
    fn find_cycle(&self, positions: &Positions) -> Option<WorkflowError> {
        let mut downstream = vec![Vec::new(); positions.len()];
        let mut unmet: Vec<usize> = positions.iter().map(Vec::len).collect();
        for (at, upstream) in positions.iter().enumerate() {
            for dependency in upstream {
                downstream[dependency.job].push(at);
            }
        }
        let mut free: Vec<usize> = (0..unmet.len()).filter(|at| unmet[*at] == 0).collect();
        while let Some(at) = free.pop() {
            for next in &downstream[at] {
                unmet[*next] -= 1;
                if unmet[*next] == 0 {
                    free.push(*next);
                }
            }
        }
        // Each job that is left waits for another one that is left.
        let mut at = unmet.iter().position(|left| *left > 0)?;
        let mut path = Vec::new();
        let mut seen = BTreeMap::new();
        let begins = loop {
            if let Some(before) = seen.insert(at, path.len()) {
                break before;
            }
            path.push(at);
            at = positions[at].iter().map(|of| of.job).find(|of| unmet[*of] > 0)?;
        };
        let cycle = &path[begins..];
        let name = |at: usize| &self.jobs[at].spec.name;
        const SHOWN: usize = 6;
        let shown = cycle.iter().skip(1).take(SHOWN).map(|at| format!("`{}`", name(*at)));
        let mut shown: Vec<String> = shown.collect();
        if cycle.len() > SHOWN + 1 {
            shown.push(format!("{} others", cycle.len() - SHOWN - 1));
        }
        shown.push("itself".into());
        let first = cycle[0];
        let upstream = cycle.get(1).map(|at| name(*at).clone());
        let why = format!("waits in a circle: for {}", shown.join(", which waits for "));
        Some(WorkflowError { upstream, ..self.wrong(first, why) })
    }
}

/// A workflow on the wire: the deflated MessagePack of a [`WorkflowSpec`], so that ten thousand jobs
/// fit into one message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackedWorkflow(#[serde(with = "serde_bytes")] Vec<u8>);

impl fmt::Debug for PackedWorkflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedWorkflow({} bytes)", self.0.len())
    }
}

/// The bytes of a request beside the packed workflow.
const REQUEST_BYTES: usize = 1024;

impl PackedWorkflow {
    /// Packs a workflow.
    ///
    /// # Errors
    /// If it is over [`WORKFLOW_BYTES_MAX`], or does not fit into one message.
    pub fn pack(workflow: &WorkflowSpec) -> Result<Self, WorkflowError> {
        let bytes = rmp_serde::to_vec_named(workflow)
            .map_err(|error| WorkflowError::whole(error.to_string()))?;
        if bytes.len() > WORKFLOW_BYTES_MAX {
            return Err(too_large());
        }
        let mut packed = Vec::new();
        DeflateEncoder::new(bytes.as_slice(), Compression::fast())
            .read_to_end(&mut packed)
            .map_err(|error| WorkflowError::whole(error.to_string()))?;
        if packed.len() > FRAME_BYTES_MAX - REQUEST_BYTES {
            let why = format!(
                "the workflow takes {} bytes, compressed, and one message has {FRAME_BYTES_MAX} (FRAME_BYTES_MAX): submit it in parts, or put long scripts into files on the nodes",
                packed.len()
            );
            return Err(WorkflowError::whole(why));
        }
        Ok(Self(packed))
    }

    /// Unpacks the workflow. It is not [checked](WorkflowSpec::check).
    ///
    /// # Errors
    /// If the bytes are not those of a workflow, or of one that is over [`WORKFLOW_BYTES_MAX`].
    pub fn unpack(&self) -> Result<WorkflowSpec, WorkflowError> {
        let not_one = |error: String| WorkflowError::whole(format!("not a workflow: {error}"));
        let mut bytes = Vec::new();
        DeflateDecoder::new(self.0.as_slice())
            .take(WORKFLOW_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| not_one(error.to_string()))?;
        if bytes.len() > WORKFLOW_BYTES_MAX {
            return Err(too_large());
        }
        rmp_serde::from_slice(&bytes).map_err(|error| not_one(error.to_string()))
    }
}

fn too_large() -> WorkflowError {
    WorkflowError::whole(format!(
        "the workflow is over the limit of {WORKFLOW_BYTES_MAX} bytes (WORKFLOW_BYTES_MAX)"
    ))
}

/// Checks the dependencies of a single job.
pub(crate) fn check_after(after: &[Dependency]) -> Result<(), String> {
    if after.len() > UPSTREAM_MAX {
        return Err(format!(
            "{} jobs are over the limit of {UPSTREAM_MAX} (UPSTREAM_MAX)",
            after.len()
        ));
    }
    let mut jobs: Vec<JobId> = after.iter().map(|dependency| dependency.job).collect();
    jobs.sort_unstable();
    match jobs.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("job {} is named twice", pair[0])),
        None => Ok(()),
    }
}

/// A request of a client about workflows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowRequest {
    /// Submits all jobs of a workflow, or none. → [`WorkflowReply::Submitted`], sent when the jobs
    /// are on disk. The same submission again returns the same workflow.
    Submit {
        /// The idempotency key.
        submission: SubmissionId,
        /// The workflow.
        workflow: PackedWorkflow,
    },
    /// The workflows, newest first. → [`WorkflowReply::List`]
    List {
        /// Only workflows before this one, for the next page.
        #[serde(default)]
        before: Option<JobId>,
        /// Only workflows with this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX). There can be
        /// fewer, and more on the next page, if the workflows are large.
        limit: u32,
    },
    /// One workflow, with its jobs and what they wait for. → [`WorkflowReply::Workflow`]
    Show {
        /// Its number, or that of one of its jobs.
        workflow: JobId,
        /// Only jobs after this one, for the next page.
        #[serde(default)]
        after: Option<JobId>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Cancels the jobs of a workflow that have not ended. → [`WorkflowReply::Cancelled`]
    Cancel {
        /// Its number, or that of one of its jobs.
        workflow: JobId,
    },
}

impl WorkflowRequest {
    /// Returns the required role.
    pub fn needs(&self) -> Role {
        match self {
            Self::List { .. } | Self::Show { .. } => Role::Viewer,
            Self::Submit { .. } | Self::Cancel { .. } => Role::Operator,
        }
    }
}

/// The reply to a [`WorkflowRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowReply {
    /// To [`WorkflowRequest::Submit`].
    Submitted {
        /// The number of the workflow, which is that of its first job.
        workflow: JobId,
        /// Whether the submission was accepted before.
        again: bool,
    },
    /// To [`WorkflowRequest::List`].
    List {
        /// The rows.
        workflows: Vec<WorkflowView>,
        /// The `before` of the next page, if there is one.
        next: Option<JobId>,
    },
    /// To [`WorkflowRequest::Show`].
    Workflow {
        /// Its row.
        view: WorkflowView,
        /// Its jobs, in the order of their numbers.
        jobs: Vec<WorkflowJobView>,
        /// The `after` of the next page, if there is one.
        next: Option<JobId>,
    },
    /// To [`WorkflowRequest::Cancel`].
    Cancelled {
        /// The number of the workflow.
        workflow: JobId,
        /// How many of its jobs were cancelled.
        jobs: u32,
    },
}

/// A row of the list of workflows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowView {
    /// Its number, which is that of its first job.
    pub workflow: JobId,
    /// Its name.
    pub name: Name,
    /// How many jobs it has. Some may have been removed.
    pub jobs: u32,
    /// How many of its jobs are in each state.
    pub counts: WorkflowCounts,
    /// Who submitted it.
    pub submitted_by: Name,
    /// When it was submitted: milliseconds since 1970 by the manager's clock.
    pub submitted_wall_ms: u64,
}

/// How many jobs of a workflow are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowCounts {
    /// They wait for other jobs, or for room.
    pub queued: u32,
    /// Tasks of them have started, and the jobs have not ended.
    pub running: u32,
    /// They have succeeded.
    pub succeeded: u32,
    /// They have failed, or expired.
    pub failed: u32,
    /// They were cancelled, or are being cancelled.
    pub cancelled: u32,
}

/// A job of a workflow, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowJobView {
    /// Its number.
    pub job: JobId,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: MaybeKnown<JobState>,
    /// What it waits for or has waited for; at most
    /// [`DEPENDENCIES_SHOWN`](crate::limits::DEPENDENCIES_SHOWN).
    pub after: Vec<DependencyView>,
    /// How many more jobs it waits for or has waited for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
