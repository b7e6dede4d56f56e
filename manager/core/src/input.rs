//! The inputs of the core: facts that have happened.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::{Epoch, JobId, Name, SubmissionId};
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::report::Report;
use podmesh_protocol::schedule::ScheduleSpec;
use podmesh_protocol::service::ServiceSpec;
use podmesh_protocol::session::Hello;
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::workflow::{Positions, WorkflowSpec};

use crate::ids::{ConnectionId, Ticket};
use crate::state::{EndedTask, Job, UpstreamFact};

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants something to be done. The answer is
    /// [`Effect::Answered`](crate::step::Effect::Answered).
    Command(Ticket, Command),
    /// Time to look for nodes and keys that have been kept long enough, and to save the age clock.
    ///
    /// The age clock decides how long something has been kept. It counts the time that the manager
    /// runs, and at most a day of the time between two runs. It does not follow the wall clock,
    /// which may jump.
    RetentionDue {
        /// The time of the age clock, in milliseconds.
        age_ms: u64,
        /// How long lost nodes and revoked keys are kept, in milliseconds.
        keep_ms: u64,
        /// Whom events name as the one who removed them.
        by: Name,
    },
    /// An agent asked for a session.
    AgentConnected {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The authenticated owner of the connection.
        caller: Caller,
        /// What the agent says about itself.
        hello: Box<Hello>,
    },
    /// An agent sent reports about its attempts.
    AttemptsReported {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The session that the agent believes is open.
        epoch: Epoch,
        /// The reports, in the order of their numbers.
        reports: Vec<Report>,
    },
    /// An agent ended its session.
    AgentLeft {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The session that the agent believes is open.
        epoch: Epoch,
    },
    /// The proxy of a node has applied endpoints.
    EndpointsApplied {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The session that the agent believes is open.
        epoch: Epoch,
        /// The last update that the proxy has applied.
        applied: u64,
        /// The last update whose removed replicas have no connection through the proxy.
        drained: u64,
    },
    /// Published ports are not open on a node. Replaces what was said before in the session.
    PortsClosed {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The session that the agent believes is open.
        epoch: Epoch,
        /// Why, by port.
        closed: BTreeMap<u16, String>,
    },
    /// A node has removed volumes, or could not.
    VolumesRemoved {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The session that the agent believes is open.
        epoch: Epoch,
        /// Those that it no longer has.
        removed: Vec<Name>,
        /// Why it still has others.
        failed: BTreeMap<Name, String>,
    },
    /// A connection has ended, or a message could not be delivered on it.
    ConnectionGone {
        /// The connection.
        connection: ConnectionId,
    },
    /// The heartbeat of a session has changed.
    HeartbeatChanged {
        /// The session.
        epoch: Epoch,
        /// The change.
        change: HeartbeatChange,
    },
    /// A new key that replaces another one was used for the first time.
    RenewedKeyUsed {
        /// The new key.
        key: PublicKey,
    },
    /// An API token was used. Sent at most once a minute for each token.
    ApiTokenUsed {
        /// The token.
        id: TokenId,
    },
    /// The manager's own key was rotated.
    ManagerKeyRotated {
        /// The digest of the current key, in hexadecimal.
        digest: String,
        /// The name of the admin who asked for it.
        by: Name,
    },
    /// Connections were refused or cut. Sent at most once a second.
    ConnectionsRefused {
        /// The reason for the last one.
        why: String,
        /// The number of connections.
        count: u32,
    },
    /// Time has passed. Timers that are due run, as with every other input.
    Tick,
}

/// What somebody wants to be done. `by` is the name of the caller, whose role has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Submit a job. The spec has been validated.
    Submit {
        /// The name of the caller.
        by: Name,
        /// The idempotency key.
        submission: SubmissionId,
        /// The job.
        spec: Arc<JobSpec>,
        /// What the database has of the jobs that it waits for, all of them. As with `Requeue`, what
        /// was read must stay true until the answer.
        upstream: BTreeMap<JobId, UpstreamFact>,
    },
    /// Submit the jobs of a workflow. It has been checked.
    SubmitWorkflow {
        /// The name of the caller.
        by: Name,
        /// The idempotency key.
        submission: SubmissionId,
        /// The workflow.
        workflow: Box<WorkflowSpec>,
        /// The dependencies of its jobs.
        positions: Positions,
    },
    /// Cancel a job.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Cancel the jobs that depend on a job, or on a job that does, and have not ended; not the job
    /// itself.
    CancelDownstream {
        /// The job.
        job: JobId,
        /// How many were cancelled before: 0 from the shell.
        done: u32,
    },
    /// Cancel the jobs of a workflow that have not ended.
    CancelWorkflow {
        /// Its first job.
        workflow: JobId,
        /// How many jobs it has.
        jobs: u32,
        /// How many were cancelled before: 0 from the shell.
        done: u32,
    },
    /// Run ended tasks of a job again.
    ///
    /// The core does not know tasks and jobs that have ended: the shell reads them from the
    /// database. Between that read and the answer it must not send another `Requeue` of the job, or
    /// `RemoveJobs`, so that what it read stays true.
    Requeue {
        /// The name of the caller.
        by: Name,
        /// The job.
        job: JobId,
        /// The job, if it has ended: without active attempts and retries. Its dependencies that are
        /// not met are as their upstream jobs are in the database.
        ended: Option<Box<Job>>,
        /// The tasks that have had an attempt: at most
        /// [`REQUEUE_TASKS_MAX`](podmesh_protocol::limits::REQUEUE_TASKS_MAX).
        tasks: Vec<EndedTask>,
        /// Whether to queue the tasks that have had no attempt, if they are cancelled.
        rest: bool,
    },
    /// Remove jobs. Jobs that have not ended are not removed.
    RemoveJobs {
        /// The jobs: at most [`FORGET_JOBS_MAX`](podmesh_protocol::limits::FORGET_JOBS_MAX).
        jobs: Vec<JobId>,
        /// The name of the caller; `None` if the jobs have been kept long enough.
        by: Option<Name>,
    },
    /// Forget a node.
    ForgetNode {
        /// The name of the caller.
        by: Name,
        /// The node.
        node: Name,
        /// Whether to end the attempts that are still on the node.
        force: bool,
    },
    /// Create a service or change its spec. The spec has been validated.
    ApplyService {
        /// The name of the caller.
        by: Name,
        /// The spec.
        spec: Arc<ServiceSpec>,
        /// The earlier revision whose spec it is; `None` for a new spec.
        back_to: Option<u32>,
    },
    /// Change a service without another spec.
    ChangeService {
        /// The name of the caller.
        by: Name,
        /// The service.
        service: Name,
        /// The change.
        change: ServiceChange,
    },
    /// Add a schedule or change its spec. The spec has been validated, apart from its calendar.
    SaveSchedule {
        /// The name of the caller.
        by: Name,
        /// The spec.
        spec: Arc<ScheduleSpec>,
    },
    /// Change a schedule without another spec.
    ChangeSchedule {
        /// The name of the caller.
        by: Name,
        /// The schedule.
        schedule: Name,
        /// The change.
        change: ScheduleChange,
    },
    /// Add a queue, or change the settings of one. They have been validated.
    SetQueue {
        /// The name of the caller.
        by: Name,
        /// The queue.
        queue: Name,
        /// The settings.
        change: QueueChange,
    },
    /// Pause, resume or remove a queue.
    ChangeQueue {
        /// The name of the caller.
        by: Name,
        /// The queue.
        queue: Name,
        /// What is done.
        action: QueueAction,
    },
    /// Let a node get work or not.
    ScheduleNode {
        /// The name of the caller.
        by: Name,
        /// The node.
        node: Name,
        /// What it may get.
        scheduling: Scheduling,
        /// How it is drained, if it is. It has been validated.
        drain: DrainSpec,
    },
    /// Plan a maintenance of a node, or take back what is planned.
    SetMaintenance {
        /// The name of the caller.
        by: Name,
        /// The node.
        node: Name,
        /// What is planned. It has been validated.
        maintenance: Option<MaintenanceSpec>,
    },
    /// Change the labels that admins have given a node. Their values have been validated.
    LabelNode {
        /// The name of the caller.
        by: Name,
        /// The node.
        node: Name,
        /// The labels to set.
        set: BTreeMap<Name, String>,
        /// The labels to take back.
        remove: BTreeSet<Name>,
    },
    /// Remove a volume.
    RemoveVolume {
        /// The name of the caller.
        by: Name,
        /// The volume.
        volume: Name,
        /// Whether to forget it without its node.
        force: bool,
    },
    /// Create a join token. Only the shell knows the secret.
    CreateToken {
        /// The name of the caller.
        by: Name,
        /// SHA-256 of the token's secret.
        secret_hash: [u8; 32],
        /// The role of those who join with the token.
        role: Role,
        /// How long the token can be used, in milliseconds.
        ttl_ms: u64,
        /// How many times the token can be used.
        uses: u32,
    },
    /// Create an API token. Only the shell knows the secret.
    CreateApiToken {
        /// The name of the caller.
        by: Name,
        /// SHA-256 of the token's secret.
        secret_hash: [u8; 32],
        /// The role of its bearer.
        role: Role,
        /// How long the token can be used, in milliseconds.
        ttl_ms: u64,
    },
    /// Revoke a token.
    RevokeToken {
        /// The name of the caller.
        by: Name,
        /// The token.
        id: TokenId,
    },
    /// Replace a key with a new key.
    RenewKey {
        /// The key to replace, which the request came with.
        old: PublicKey,
        /// The new key.
        new: PublicKey,
    },
    /// Revoke the key of a node or user.
    RevokeKey {
        /// The name of the caller.
        by: Name,
        /// Whether it is a node or a user.
        kind: PrincipalKind,
        /// The name of the node or user.
        name: Name,
    },
    /// Let the owner of a key join.
    Join {
        /// The public key. The connection has proven that its owner has the private key.
        key: PublicKey,
        /// The token's number.
        token: TokenId,
        /// SHA-256 of the secret in the token that the owner has.
        secret_hash: [u8; 32],
        /// The name to join as.
        name: Name,
    },
}

/// A change of a service that needs no other spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceChange {
    /// Set the number of replicas.
    Scale(u32),
    /// Replace all replicas.
    Restart,
    /// Stop all replicas.
    Stop,
    /// Start the replicas of a stopped service.
    Start,
    /// Stop all replicas and remove the service.
    Remove,
}

/// A change of a schedule that needs no other spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleChange {
    /// Start no runs.
    Pause,
    /// Start runs again.
    Resume,
    /// Start a run now.
    Run {
        /// The idempotency key.
        submission: SubmissionId,
    },
    /// Remove the schedule.
    Remove,
}

/// What is done with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// Start none of its tasks.
    Pause,
    /// Start its tasks again.
    Resume,
    /// Remove it.
    Remove,
}

/// A change of a session's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeartbeatChange {
    /// The first beat of the session came: the agent has received the welcome.
    Begun,
    /// The heartbeat stream was closed: the agent has ended, or its connection is gone.
    Closed,
    /// No beat came for some intervals. The lease has not ended yet.
    Late,
    /// A beat came after `Late` or `Closed`, before the lease ended.
    Resumed,
    /// No beat came for a whole lease.
    LeaseExpired,
}
