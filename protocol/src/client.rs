//! The messages between clients, such as the CLI, and the manager.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::access::{Caller, KeyDigest, PublicKey, Role, TokenId};
use crate::again::{FailedTasks, RequeueRequest, Requeued};
use crate::error::ErrorReply;
use crate::event::EventChunk;
use crate::ids::{AttemptId, ClusterId, InstanceId, JobId, Name, Revision, SubmissionId, TaskId};
use crate::node::{DrainSpec, MaintenanceSpec, NodeView, Scheduling};
use crate::queue::{QueueReply, QueueRequest};
use crate::report::{AttemptState, JobState, ShownOutcome, TaskCounts, TaskState};
use crate::schedule::{ScheduleReply, ScheduleRequest};
use crate::service::{ServiceReply, ServiceRequest};
use crate::spec::JobSpec;
use crate::volume::{VolumeReply, VolumeRequest};
use crate::word::MaybeKnown;
use crate::workflow::{WorkflowReply, WorkflowRequest};

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The protocol version of the request and of its reply. A client begins with the newest that it
    /// speaks; a refusal says which ones the manager speaks.
    pub version: u16,
    /// The client's number of the request; the reply has the same.
    pub id: u64,
    /// The request itself.
    pub body: RequestBody,
}

/// The part of a request that is the same in all versions. A manager reads it even if it cannot read
/// the body, so that the peer learns which request it was, and which versions the manager speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// See [`Request::version`].
    pub version: u16,
    /// See [`Request::id`].
    pub id: u64,
}

/// The kinds of request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestBody {
    /// Returns information about the manager. → [`ReplyBody::Info`]
    Info,
    /// Submits a job. → [`ReplyBody::Submitted`], sent when the job is on disk. The same submission
    /// again returns the same job.
    Submit {
        /// The idempotency key.
        submission: SubmissionId,
        /// The job.
        spec: Box<JobSpec>,
    },
    /// Cancels a job: queued tasks never start, running tasks are stopped. →
    /// [`ReplyBody::Cancelled`]
    Cancel {
        /// The job.
        job: JobId,
        /// Whether to cancel as well what waits for it or has waited for it, and what does for these
        /// jobs, as long as they have not ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        downstream: bool,
    },
    /// Runs ended tasks of a job again, in the same job. → [`ReplyBody::Requeued`]
    Requeue(RequeueRequest),
    /// The failed tasks of all jobs, by job and reason. → [`ReplyBody::Failed`]
    Failed {
        /// Only those that failed in the last so many milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
    },
    /// Remove ended jobs and their tasks. → [`ReplyBody::Forgotten`]
    Forget {
        /// The first of them.
        first: JobId,
        /// The last of them.
        last: JobId,
    },
    /// The jobs, newest first. → [`ReplyBody::Jobs`]
    Jobs {
        /// Only jobs before this one, for the next page.
        #[serde(default)]
        before: Option<JobId>,
        /// Only jobs that have not ended.
        #[serde(default)]
        active: bool,
        /// Only jobs that were submitted by this node or user.
        #[serde(default)]
        by: Option<Name>,
        /// Only the replicas of this service. Without it, the list has no replicas.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Name>,
        /// Only replicas with this number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replica: Option<u32>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// One job. → [`ReplyBody::Job`]
    Job {
        /// The job.
        job: JobId,
        /// When given, the reply waits until the job has changed since this revision
        /// ([`JobDetail::revision`] of an earlier reply), or `wait_ms` have passed.
        #[serde(default)]
        since: Option<Revision>,
        /// Milliseconds to wait, at most [`WAIT_MS_MAX`](crate::limits::WAIT_MS_MAX).
        #[serde(default)]
        wait_ms: u32,
    },
    /// Tasks of a job in order of index. → [`ReplyBody::Tasks`]
    Tasks {
        /// The job.
        job: JobId,
        /// Only tasks with an index of at least this.
        #[serde(default)]
        from: u32,
        /// Only tasks in this state.
        #[serde(default)]
        state: Option<TaskState>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// One task with all its attempts. → [`ReplyBody::Task`]
    Task {
        /// The task.
        task: TaskId,
        /// When given, the reply waits while the task still has this many attempts, its last one
        /// is in this state, and `wait_ms` have not passed.
        #[serde(default)]
        unless: Option<(u32, AttemptState)>,
        /// Milliseconds to wait, at most [`WAIT_MS_MAX`](crate::limits::WAIT_MS_MAX).
        #[serde(default)]
        wait_ms: u32,
    },
    /// The nodes. → [`ReplyBody::Nodes`]
    Nodes {
        /// Only nodes whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Forget a node that is lost. Its key stays valid. → [`ReplyBody::NodeForgotten`]
    NodeForget {
        /// The node.
        node: Name,
        /// End the attempts that wait for it, as lost, though they may still run there. Without
        /// this a node that has any is not forgotten.
        #[serde(default)]
        force: bool,
    },
    /// The events after a revision. → [`ReplyBody::Events`]
    Events {
        /// The last revision that the client has; 0 for none.
        since: Revision,
    },
    /// Output of an attempt. → [`ReplyBody::Log`]
    Log(LogRead),
    /// Returns the client as the manager sees it. → [`ReplyBody::WhoAmI`]
    WhoAmI,
    /// Creates a join token. → [`ReplyBody::TokenCreated`]
    TokenCreate {
        /// The role of members that join with it.
        role: Role,
        /// Milliseconds until it expires, at most
        /// [`DURATION_MS_MAX`](crate::limits::DURATION_MS_MAX).
        ttl_ms: u64,
        /// How many times it can be used, at most
        /// [`TOKEN_USES_MAX`](crate::limits::TOKEN_USES_MAX).
        uses: u32,
    },
    /// Creates an API token: the bearer of it asks over HTTP. → [`ReplyBody::TokenCreated`]
    ApiTokenCreate {
        /// The role of its bearer; not `agent`.
        role: Role,
        /// Milliseconds until it expires, at most
        /// [`DURATION_MS_MAX`](crate::limits::DURATION_MS_MAX).
        ttl_ms: u64,
    },
    /// The join tokens and API tokens. → [`ReplyBody::Tokens`]
    Tokens,
    /// Revokes a join token, whose members keep access, or an API token. →
    /// [`ReplyBody::TokenRevoked`]
    TokenRevoke {
        /// The token's number.
        id: TokenId,
    },
    /// The users who joined, by name. → [`ReplyBody::Users`]
    Users {
        /// Only users whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Revokes the key of a node or user. → [`ReplyBody::Revoked`]
    Revoke {
        /// A node or a user.
        kind: PrincipalKind,
        /// The name of the node or user.
        name: Name,
    },
    /// Replaces the client's key by another key of its own, from the first use of the new key on. →
    /// [`ReplyBody::KeyRenewed`]
    KeyRenew {
        /// The new key.
        key: PublicKey,
    },
    /// Replaces the manager's key by its next one. All other connections are closed, so that peers
    /// reconnect. → [`ReplyBody::KeyRotated`]
    KeyRotate {
        /// The digest of the key to replace, as in [`Info`]. If the manager has another one by now,
        /// nothing happens: the request may have arrived twice.
        key: KeyDigest,
    },
    /// A request about services. → [`ReplyBody::Service`]
    Service(ServiceRequest),
    /// A request about named volumes. → [`ReplyBody::Volume`]
    Volume(VolumeRequest),
    /// A request about schedules. → [`ReplyBody::Schedule`]
    Schedule(ScheduleRequest),
    /// A request about queues. → [`ReplyBody::Queue`]
    Queue(QueueRequest),
    /// A request about workflows. → [`ReplyBody::Workflow`]
    Workflow(WorkflowRequest),
    /// Takes a node out of placement, or back in. → [`ReplyBody::NodeScheduling`]
    NodeScheduling {
        /// The node.
        node: Name,
        /// What it may get.
        scheduling: Scheduling,
        /// How it is drained; only with [`Scheduling::Draining`].
        #[serde(default, skip_serializing_if = "DrainSpec::is_default")]
        drain: DrainSpec,
    },
    /// Changes the labels that admins have given a node. They are over those of its agent. →
    /// [`ReplyBody::NodeLabels`]
    NodeLabels {
        /// The node.
        node: Name,
        /// The labels to set: at most [`LABELS_MAX`](crate::limits::LABELS_MAX) in the end.
        #[serde(default)]
        set: BTreeMap<Name, String>,
        /// The labels to take back. Those of the agent cannot be.
        #[serde(default)]
        remove: BTreeSet<Name>,
    },
    /// Plans a maintenance of a node, in place of the one that it has. →
    /// [`ReplyBody::NodeMaintenance`]
    NodeMaintenance {
        /// The node.
        node: Name,
        /// What is planned; `None`: nothing any more. What has begun ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        maintenance: Option<MaintenanceSpec>,
    },
}

impl RequestBody {
    /// Returns the required role; `None` if everyone who can connect may ask.
    pub fn needs(&self) -> Option<Role> {
        match self {
            Self::Info | Self::WhoAmI | Self::KeyRenew { .. } => None,
            Self::Jobs { .. }
            | Self::Job { .. }
            | Self::Tasks { .. }
            | Self::Task { .. }
            | Self::Nodes { .. }
            | Self::Events { .. }
            | Self::Log(_)
            | Self::Failed { .. } => Some(Role::Viewer),
            Self::Service(request) => Some(request.needs()),
            Self::Volume(request) => Some(request.needs()),
            Self::Schedule(request) => Some(request.needs()),
            Self::Queue(request) => Some(request.needs()),
            Self::Workflow(request) => Some(request.needs()),
            Self::Submit { .. } | Self::Cancel { .. } | Self::Requeue(_) => Some(Role::Operator),
            Self::Forget { .. }
            | Self::TokenCreate { .. }
            | Self::ApiTokenCreate { .. }
            | Self::Tokens
            | Self::TokenRevoke { .. }
            | Self::Users { .. }
            | Self::Revoke { .. }
            | Self::NodeForget { .. }
            | Self::NodeScheduling { .. }
            | Self::NodeLabels { .. }
            | Self::NodeMaintenance { .. }
            | Self::KeyRotate { .. } => Some(Role::Admin),
        }
    }
}

/// The kinds of key owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A machine with an agent: role `agent`.
    Node,
    /// A person or program: all other roles.
    User,
}

/// A read of an attempt's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRead {
    /// The attempt.
    pub attempt: AttemptId,
    /// The stream.
    pub stream: LogStream,
    /// The start position.
    pub from: LogPosition,
    /// The maximum number of bytes, up to
    /// [`LOG_READ_BYTES_MAX`](crate::limits::LOG_READ_BYTES_MAX).
    pub bytes_max: u32,
    /// Milliseconds that the reply may wait for a first byte while the attempt runs, at most
    /// [`WAIT_MS_MAX`](crate::limits::WAIT_MS_MAX).
    #[serde(default)]
    pub wait_ms: u32,
    /// Skip output up to the first line with this text, byte for byte: at most
    /// [`LOG_FIND_BYTES_MAX`](crate::limits::LOG_FIND_BYTES_MAX) bytes, without a line break. The
    /// slice begins at that line, or a little before the text if the line is long. An empty slice
    /// says where the search stopped: after
    /// [`LOG_SEARCH_BYTES_MAX`](crate::limits::LOG_SEARCH_BYTES_MAX), or at the end of what there
    /// is. An agent of an older version skips nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub find: Option<String>,
}

/// A stream of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output; `stdout.log`.
    Stdout,
    /// Standard error; `stderr.log`.
    Stderr,
}

impl LogStream {
    /// Returns the name of the stream's file without `.log`.
    pub fn file_stem(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The start position of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogPosition {
    /// This number of bytes after the first byte ever printed.
    Offset(u64),
    /// The start of this number of lines at the end.
    TailLines(u64),
}

/// A part of an attempt's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSlice {
    /// The offset of the first byte of `bytes`. Higher than requested if older output has been
    /// removed by rotation.
    pub offset: u64,
    /// The bytes as the program printed them.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Whether the output is complete: the attempt has ended, and everything has been read.
    pub end: bool,
    /// Whether the node has no output of the attempt, and has removed output of attempts as old as
    /// this one. The attempt's output may have been removed, or there was none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The client's number of the request.
    pub id: u64,
    /// `{"Ok": …}` or `{"Err": …}`.
    pub result: Result<ReplyBody, ErrorReply>,
}

/// The kinds of reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyBody {
    /// To [`RequestBody::Info`].
    Info(Info),
    /// To [`RequestBody::Submit`].
    Submitted {
        /// The job's number.
        job: JobId,
        /// Whether the submission was accepted before.
        again: bool,
    },
    /// To [`RequestBody::Cancel`].
    Cancelled {
        /// The job's state now: `cancelling`, or the state in which it ended before.
        state: MaybeKnown<JobState>,
        /// How many other jobs were cancelled, with `downstream`.
        #[serde(default, skip_serializing_if = "is_zero")]
        downstream: u32,
    },
    /// To [`RequestBody::Requeue`].
    Requeued(Requeued),
    /// To [`RequestBody::Failed`].
    Failed(FailedTasks),
    /// To [`RequestBody::Forget`].
    Forgotten {
        /// How many jobs were removed.
        removed: u32,
        /// The jobs that have not ended and stay.
        active: Vec<JobId>,
        /// The `first` of the next request, if this one did not cover the whole range: one request
        /// covers at most [`FORGET_JOBS_MAX`](crate::limits::FORGET_JOBS_MAX) jobs.
        next: Option<JobId>,
    },
    /// To [`RequestBody::Jobs`].
    Jobs(Vec<JobView>),
    /// To [`RequestBody::Job`].
    Job(Box<JobDetail>),
    /// To [`RequestBody::Tasks`]; `next` is the `from` of the next page, if there is one.
    Tasks {
        /// The rows.
        tasks: Vec<TaskView>,
        /// The index with which the next page begins.
        next: Option<u32>,
    },
    /// To [`RequestBody::Task`].
    Task(TaskDetail),
    /// To [`RequestBody::Nodes`].
    Nodes(Vec<NodeView>),
    /// To [`RequestBody::NodeForget`].
    NodeForgotten {
        /// Whether it has a key that counts: its agent can come back with it.
        enrolled: bool,
    },
    /// To [`RequestBody::Events`].
    Events {
        /// The events after `since`, in order, without a gap; as many as fit into one message.
        chunks: Vec<EventChunk>,
        /// The last committed revision.
        last: Revision,
    },
    /// To [`RequestBody::Log`].
    Log(LogSlice),
    /// To [`RequestBody::WhoAmI`].
    WhoAmI(Caller),
    /// To [`RequestBody::TokenCreate`] and [`RequestBody::ApiTokenCreate`].
    TokenCreated {
        /// The token's number.
        id: TokenId,
        /// The token itself as text: a [`JoinToken`](crate::access::JoinToken) or an
        /// [`ApiToken`](crate::access::ApiToken). It is shown only once.
        token: String,
        /// When it expires: milliseconds since 1970 by the manager's clock.
        expires_wall_ms: u64,
    },
    /// To [`RequestBody::Tokens`].
    Tokens(Vec<TokenView>),
    /// To [`RequestBody::TokenRevoke`].
    TokenRevoked,
    /// To [`RequestBody::Users`].
    Users(Vec<UserView>),
    /// To [`RequestBody::Revoke`].
    Revoked,
    /// To [`RequestBody::KeyRenew`].
    KeyRenewed,
    /// To [`RequestBody::KeyRotate`].
    KeyRotated {
        /// The digest of the manager's new key.
        key: KeyDigest,
        /// The digest of its next key.
        next: KeyDigest,
    },
    /// To [`RequestBody::Service`].
    Service(ServiceReply),
    /// To [`RequestBody::Volume`].
    Volume(VolumeReply),
    /// To [`RequestBody::Schedule`].
    Schedule(ScheduleReply),
    /// To [`RequestBody::Queue`].
    Queue(QueueReply),
    /// To [`RequestBody::Workflow`].
    Workflow(WorkflowReply),
    /// To [`RequestBody::NodeScheduling`].
    NodeScheduling {
        /// What the node may get now.
        scheduling: Scheduling,
        /// How many attempts it has.
        attempts: u32,
        /// What the admin should know, in sentences.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    /// To [`RequestBody::NodeLabels`]: all labels of the node now.
    NodeLabels {
        /// The labels.
        labels: BTreeMap<Name, String>,
    },
    /// To [`RequestBody::NodeMaintenance`].
    NodeMaintenance {
        /// Whether anything has changed.
        changed: bool,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// The token's number.
    pub id: TokenId,
    /// Whether it can be used.
    pub state: MaybeKnown<TokenState>,
    /// The role of members that join with it, or of its bearer.
    pub role: MaybeKnown<Role>,
    /// How many more times it can be used; 1 for an API token, which can be used any number of times.
    pub uses_left: u32,
    /// When it expires: milliseconds since 1970 by the manager's clock.
    pub expires_wall_ms: u64,
    /// Who created it.
    pub created_by: Name,
    /// Whether it is an API token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub api: bool,
    /// When an API token was last used, to the minute; likewise in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_wall_ms: Option<u64>,
}

/// Whether a token can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It can be used.
    Usable,
    /// All its uses are used up.
    UsedUp,
    /// It has expired.
    Expired,
    /// An admin revoked it.
    Revoked,
}

/// A user who joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// The user's name.
    pub name: Name,
    /// The user's role.
    pub role: MaybeKnown<Role>,
    /// The user's key.
    pub key: PublicKey,
    /// The token used to join.
    pub token: TokenId,
    /// When the user joined: milliseconds since 1970 by the manager's clock.
    pub enrolled_wall_ms: u64,
}

/// Information about the manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The newest protocol version that the manager speaks.
    pub version: u16,
    /// The version of its program, for display.
    pub program_version: String,
    /// The manager's cluster.
    pub cluster: ClusterId,
    /// A new id at every start.
    pub instance: InstanceId,
    /// The last committed revision.
    pub revision: Revision,
    /// The manager's clock: milliseconds since 1970.
    #[serde(default)]
    pub wall_ms: u64,
    /// The digest of its key.
    pub key: KeyDigest,
}

/// A row of `jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: MaybeKnown<JobState>,
    /// Its priority.
    pub priority: i32,
    /// How many of its tasks are in each state.
    pub counts: TaskCounts,
    /// Who submitted it; `None` if an older version of podmesh accepted it.
    #[serde(default)]
    pub submitted_by: Option<Name>,
    /// Milliseconds since 1970 by the manager's clock, for display.
    pub submitted_wall_ms: u64,
    /// When its first attempt was assigned; likewise.
    pub started_wall_ms: Option<u64>,
    /// When it ended; likewise.
    pub ended_wall_ms: Option<u64>,
    /// How many of the jobs that it waits for have not ended as asked yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unmet: u32,
    /// How many of these have ended in another way, so that it can only start after a requeue.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocked: u32,
}

impl JobView {
    /// Returns whether the job has ended. Also true for an end of a later version.
    pub fn is_end(&self) -> bool {
        self.state.known().map_or(self.ended_wall_ms.is_some(), |state| state.is_end())
    }
}

/// Everything about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDetail {
    /// Its row.
    pub view: JobView,
    /// The submitted spec.
    pub spec: JobSpec,
    /// The revision of this state; for `since` of the next request.
    pub revision: Revision,
    /// Why its queued tasks wait: one reason per entry, empty if none is queued.
    pub waits_for: Vec<String>,
    /// Why the rest of it was cancelled, if one of its rules did that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<String>,
}

/// A row of `tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// The task.
    pub task: TaskId,
    /// Its state.
    pub state: MaybeKnown<TaskState>,
    /// The number of its attempts.
    pub attempts: u32,
    /// The last attempt.
    pub last: Option<AttemptView>,
}

/// A task with all its attempts, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDetail {
    /// The task.
    pub task: TaskId,
    /// Its state.
    pub state: MaybeKnown<TaskState>,
    /// Its attempts; at most the last [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
    pub attempts: Vec<AttemptView>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptView {
    /// The attempt's number.
    pub number: u32,
    /// The node that runs or ran it.
    pub node: Name,
    /// Its state.
    pub state: MaybeKnown<AttemptState>,
    /// How it ended, if it has ended.
    pub outcome: Option<ShownOutcome>,
    /// When it was assigned to the node, in milliseconds since 1970, for display.
    pub assigned_wall_ms: u64,
    /// When its start was reported to the manager; likewise.
    pub started_wall_ms: Option<u64>,
    /// When its end was reported to the manager; likewise.
    pub ended_wall_ms: Option<u64>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// The role of every request as one table: columns are agent, viewer, operator, admin.
    #[test]
    fn every_request_has_its_role() {
        let cases = [
            (r#""info""#, [true, true, true, true]),
            (r#""who_am_i""#, [true, true, true, true]),
            (r#"{"jobs": {"limit": 1}}"#, [false, true, true, true]),
            (r#"{"job": {"job": 1}}"#, [false, true, true, true]),
            (r#"{"tasks": {"job": 1, "limit": 1}}"#, [false, true, true, true]),
            (r#"{"task": {"task": [1, 1]}}"#, [false, true, true, true]),
            (r#"{"nodes": {"limit": 1}}"#, [false, true, true, true]),
            (r#"{"events": {"since": 0}}"#, [false, true, true, true]),
            (
                r#"{"log": {"attempt": [1, 1, 1], "stream": "stdout", "from": {"offset": 0},
                    "bytes_max": 1}}"#,
                [false, true, true, true],
            ),
            (
                r#"{"submit": {"submission": "00000000-0000-0000-0000-000000000001", "spec":
                    {"name": "a", "run": {"runtime": "process", "command": ["true"]}}}}"#,
                [false, false, true, true],
            ),
            (r#"{"cancel": {"job": 1}}"#, [false, false, true, true]),
            (r#"{"requeue": {"job": 1, "tasks": "1-3"}}"#, [false, false, true, true]),
            (r#"{"failed": {}}"#, [false, true, true, true]),
            (
                r#"{"token_create": {"role": "agent", "ttl_ms": 1, "uses": 1}}"#,
                [false, false, false, true],
            ),
            (
                r#"{"api_token_create": {"role": "viewer", "ttl_ms": 1}}"#,
                [false, false, false, true],
            ),
            (r#"{"forget": {"first": 1, "last": 2}}"#, [false, false, false, true]),
            (r#""tokens""#, [false, false, false, true]),
            (r#"{"token_revoke": {"id": 1}}"#, [false, false, false, true]),
            (r#"{"users": {"limit": 1}}"#, [false, false, false, true]),
            (r#"{"revoke": {"kind": "user", "name": "a"}}"#, [false, false, false, true]),
            (
                r#"{"node_scheduling": {"node": "a", "scheduling": "cordoned"}}"#,
                [false, false, false, true],
            ),
            (
                r#"{"node_labels": {"node": "a", "set": {"zone": "b"}}}"#,
                [false, false, false, true],
            ),
            (r#"{"node_maintenance": {"node": "a"}}"#, [false, false, false, true]),
            (r#"{"service": {"show": {"service": "a"}}}"#, [false, true, true, true]),
            (r#"{"schedule": {"show": {"schedule": "a"}}}"#, [false, true, true, true]),
            (r#"{"workflow": {"show": {"workflow": 1, "limit": 1}}}"#, [false, true, true, true]),
            (r#"{"workflow": {"list": {"limit": 1}}}"#, [false, true, true, true]),
            (r#"{"schedule": {"pause": {"schedule": "a"}}}"#, [false, false, true, true]),
            (r#"{"service": {"stop": {"service": "a"}}}"#, [false, false, true, true]),
        ];
        for (text, may) in cases {
            let body: RequestBody = serde_json::from_str(text).unwrap();
            let found =
                Role::ALL.map(|role| body.needs().is_none_or(|needed| role.includes(needed)));
            assert_eq!(found, may, "{text}");
        }
    }
}
