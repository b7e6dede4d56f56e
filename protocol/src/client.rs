//! The messages between clients, such as the CLI, and the manager.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::access::{Caller, KeyDigest, PublicKey, Role, TokenId};
use crate::error::ErrorReply;
use crate::event::EventChunk;
use crate::ids::{
    AttemptId, ClusterId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use crate::report::{AttemptState, JobState, Outcome, TaskCounts, TaskState};
use crate::spec::{JobSpec, Resources, RuntimeKind};

/// A client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The protocol that it speaks: [`PROTOCOL_VERSION`](crate::limits::PROTOCOL_VERSION).
    pub version: u16,
    /// The client's number of the request; the reply carries it.
    pub id: u64,
    /// What it asks.
    pub body: RequestBody,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestBody {
    /// Who is the manager? → [`ReplyBody::Info`]
    Info,
    /// Run a job. → [`ReplyBody::Submitted`], sent when it is on disk. The same submission again
    /// gives the same job.
    Submit {
        /// The idempotency key.
        submission: SubmissionId,
        /// The job.
        spec: Box<JobSpec>,
    },
    /// Cancel a job: what is queued never starts, what runs is stopped. → [`ReplyBody::Cancelled`]
    Cancel {
        /// The job.
        job: JobId,
    },
    /// The jobs, newest first. → [`ReplyBody::Jobs`]
    Jobs {
        /// Only jobs before this one, for the next page.
        #[serde(default)]
        before: Option<JobId>,
        /// Only jobs that have not ended.
        #[serde(default)]
        active: bool,
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
    /// The events after a revision. → [`ReplyBody::Events`]
    Events {
        /// The last revision that the client has; 0 for none.
        since: Revision,
    },
    /// Output of an attempt. → [`ReplyBody::Log`]
    Log(LogRead),
    /// Who am I to the manager? → [`ReplyBody::WhoAmI`]
    WhoAmI,
    /// Make a join token. → [`ReplyBody::TokenCreated`]
    TokenCreate {
        /// What whoever joins with it may do.
        role: Role,
        /// Milliseconds for which it can be used, at most
        /// [`DURATION_MS_MAX`](crate::limits::DURATION_MS_MAX).
        ttl_ms: u64,
        /// How often it can be used, at most [`TOKEN_USES_MAX`](crate::limits::TOKEN_USES_MAX).
        uses: u32,
    },
    /// The join tokens. → [`ReplyBody::Tokens`]
    Tokens,
    /// Let a token be of no more use. → [`ReplyBody::TokenRevoked`]
    TokenRevoke {
        /// Its number.
        id: TokenId,
    },
    /// The users that joined, by name. → [`ReplyBody::Users`]
    Users {
        /// Only users whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Let the key of a node or user count no more. → [`ReplyBody::Revoked`]
    Revoke {
        /// Which of them.
        kind: PrincipalKind,
        /// Its name.
        name: Name,
    },
    /// Let another key of one's own take the place of the one that asks: from the first time on
    /// that it is used. → [`ReplyBody::KeyRenewed`]
    KeyRenew {
        /// The new one.
        key: PublicKey,
    },
    /// Let the manager's next key take the place of its key. All connections but the one that asks
    /// are made anew. → [`ReplyBody::KeyRotated`]
    KeyRotate {
        /// The digest of the key that is to be replaced, as [`Info`] has it. Where the manager has
        /// another one by now, nothing happens: the request may have come twice.
        key: KeyDigest,
    },
}

impl RequestBody {
    /// The role that it takes; none: anybody who may connect.
    pub fn needs(&self) -> Option<Role> {
        match self {
            Self::Info | Self::WhoAmI | Self::KeyRenew { .. } => None,
            Self::Jobs { .. }
            | Self::Job { .. }
            | Self::Tasks { .. }
            | Self::Task { .. }
            | Self::Nodes { .. }
            | Self::Events { .. }
            | Self::Log(_) => Some(Role::Viewer),
            Self::Submit { .. } | Self::Cancel { .. } => Some(Role::Operator),
            Self::TokenCreate { .. }
            | Self::Tokens
            | Self::TokenRevoke { .. }
            | Self::Users { .. }
            | Self::Revoke { .. }
            | Self::KeyRotate { .. } => Some(Role::Admin),
        }
    }
}

/// What a key can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A machine with an agent: role agent.
    Node,
    /// A person or program: all other roles.
    User,
}

/// Which part of an attempt's output to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRead {
    /// The attempt.
    pub attempt: AttemptId,
    /// Which of its streams.
    pub stream: LogStream,
    /// Where to begin.
    pub from: LogPosition,
    /// Bytes at the most, up to [`LOG_READ_BYTES_MAX`](crate::limits::LOG_READ_BYTES_MAX).
    pub bytes_max: u32,
    /// Milliseconds that the reply may wait for a first byte while the attempt goes on, at most
    /// [`WAIT_MS_MAX`](crate::limits::WAIT_MS_MAX).
    #[serde(default)]
    pub wait_ms: u32,
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
    /// The name of the stream's file without `.log`.
    pub fn file_stem(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where to begin to read a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogPosition {
    /// At this many bytes after the first one ever printed.
    Offset(u64),
    /// Where the last so many lines begin.
    TailLines(u64),
}

/// A part of an attempt's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSlice {
    /// The offset of the first byte of `bytes`. Higher than asked for where older output has
    /// been removed by rotation.
    pub offset: u64,
    /// The bytes as the program printed them.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Whether this is the last there will be: the attempt is over, and all has been read.
    pub end: bool,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The client's number of the request.
    pub id: u64,
    /// `{"Ok": …}` or `{"Err": …}`.
    pub result: Result<ReplyBody, ErrorReply>,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyBody {
    /// To [`RequestBody::Info`].
    Info(Info),
    /// To [`RequestBody::Submit`].
    Submitted {
        /// The job's number.
        job: JobId,
        /// Whether the submission had been accepted before.
        again: bool,
    },
    /// To [`RequestBody::Cancel`].
    Cancelled {
        /// Where the job stands now: `cancelling`, or where it had ended before.
        state: JobState,
    },
    /// To [`RequestBody::Jobs`].
    Jobs(Vec<JobView>),
    /// To [`RequestBody::Job`].
    Job(Box<JobDetail>),
    /// To [`RequestBody::Tasks`]; `next` is the `from` of the next page, where there is one.
    Tasks {
        /// The rows.
        tasks: Vec<TaskView>,
        /// The index to go on from.
        next: Option<u32>,
    },
    /// To [`RequestBody::Task`].
    Task(TaskDetail),
    /// To [`RequestBody::Nodes`].
    Nodes(Vec<NodeView>),
    /// To [`RequestBody::Events`].
    Events {
        /// The events after `since`, in order, without a gap; as many as fit one message.
        chunks: Vec<EventChunk>,
        /// The last committed revision.
        last: Revision,
    },
    /// To [`RequestBody::Log`].
    Log(LogSlice),
    /// To [`RequestBody::WhoAmI`].
    WhoAmI(Caller),
    /// To [`RequestBody::TokenCreate`].
    TokenCreated {
        /// Its number.
        id: TokenId,
        /// The token itself ([`JoinToken`](crate::access::JoinToken) as text). It is told once.
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
        /// The digest of the key that the manager has now.
        key: KeyDigest,
        /// The digest of the one that is to follow.
        next: KeyDigest,
    },
}

/// A join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its number.
    pub id: TokenId,
    /// Whether it can be used.
    pub state: TokenState,
    /// What whoever joins with it may do.
    pub role: Role,
    /// How often it can still be used.
    pub uses_left: u32,
    /// When it expires: milliseconds since 1970 by the manager's clock.
    pub expires_wall_ms: u64,
    /// Who asked for it.
    pub created_by: Name,
}

/// Whether a join token can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It can.
    Usable,
    /// It was used as often as it could be.
    UsedUp,
    /// Its time is over.
    Expired,
    /// An admin revoked it.
    Revoked,
}

/// A user that joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// Their name.
    pub name: Name,
    /// What they may do.
    pub role: Role,
    /// Their key.
    pub key: PublicKey,
    /// The token with which they joined.
    pub token: TokenId,
    /// When: milliseconds since 1970 by the manager's clock.
    pub enrolled_wall_ms: u64,
}

/// Who the manager is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The protocol that it speaks.
    pub version: u16,
    /// The version of its program, for display.
    pub program_version: String,
    /// Whose manager it is.
    pub cluster: ClusterId,
    /// A new one after every start.
    pub instance: InstanceId,
    /// The last committed revision.
    pub revision: Revision,
    /// What its clock says: milliseconds since 1970.
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
    /// Where it stands.
    pub state: JobState,
    /// Its priority.
    pub priority: i32,
    /// Where its tasks stand.
    pub counts: TaskCounts,
    /// Milliseconds since 1970 by the manager's clock, for display.
    pub submitted_wall_ms: u64,
    /// When its first attempt was assigned; likewise.
    pub started_wall_ms: Option<u64>,
    /// When nothing more was to happen to it; likewise.
    pub ended_wall_ms: Option<u64>,
}

/// All about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDetail {
    /// Its row.
    pub view: JobView,
    /// What was submitted.
    pub spec: JobSpec,
    /// The revision up to which this is true; for `since` of the next request.
    pub revision: Revision,
    /// Why its queued tasks wait; one reason a line, none when none are queued.
    pub waits_for: Vec<String>,
}

/// A row of `tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// The task.
    pub task: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// How many attempts there have been.
    pub attempts: u32,
    /// The last of them.
    pub last: Option<AttemptView>,
}

/// A task with all its attempts, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDetail {
    /// The task.
    pub task: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Its attempts; at most the last [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
    pub attempts: Vec<AttemptView>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptView {
    /// Its number.
    pub number: u32,
    /// Where it runs or ran.
    pub node: Name,
    /// Where it stands.
    pub state: AttemptState,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
    /// When it was given to the node, in milliseconds since 1970, for display.
    pub assigned_wall_ms: u64,
    /// When the manager heard of its start; likewise.
    pub started_wall_ms: Option<u64>,
    /// When the manager heard of its end; likewise.
    pub ended_wall_ms: Option<u64>,
}

/// Whether a node can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has a session, and its heartbeat comes.
    Alive,
    /// Its session ended or its heartbeat is late, and its lease has not ended. Nothing new is
    /// placed there.
    Suspect,
    /// Its lease ended.
    Lost,
}

/// A row of `nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: Name,
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Its live session.
    pub epoch: Option<Epoch>,
    /// The version of its agent's program, for display.
    pub program_version: String,
    /// What it offers in all.
    pub capacity: Resources,
    /// What of that is not taken.
    pub free: Resources,
    /// Its labels.
    pub labels: BTreeMap<Name, String>,
    /// What it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// What it cannot start now though it is set up to, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub withdrawn: BTreeMap<RuntimeKind, String>,
    /// Attempts that are with it.
    pub attempts: u32,
    /// Milliseconds since it was last known to be alive, by the manager's monotonic clock.
    /// None for a node that has not been heard of since the manager started.
    pub seen_ms_ago: Option<u64>,
    /// Whether it joined with a key; else its agent is on the manager's machine.
    #[serde(default)]
    pub enrolled: bool,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Who may ask what, as one table: columns are agent, viewer, operator, admin.
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
            (
                r#"{"token_create": {"role": "agent", "ttl_ms": 1, "uses": 1}}"#,
                [false, false, false, true],
            ),
            (r#""tokens""#, [false, false, false, true]),
            (r#"{"token_revoke": {"id": 1}}"#, [false, false, false, true]),
            (r#"{"users": {"limit": 1}}"#, [false, false, false, true]),
            (r#"{"revoke": {"kind": "user", "name": "a"}}"#, [false, false, false, true]),
        ];
        for (text, may) in cases {
            let body: RequestBody = serde_json::from_str(text).unwrap();
            let found =
                Role::ALL.map(|role| body.needs().is_none_or(|needed| role.includes(needed)));
            assert_eq!(found, may, "{text}");
        }
    }
}
