//! The decisions of the core: plain values that the shell carries out.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::{PublicKey, Role, TokenId};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{
    AgentId, AttemptId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId,
};
use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::place::{Claims, Offer};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskCounts};
use podmesh_protocol::schedule::RunResult;
use podmesh_protocol::service::{RevisionState, ServiceSpec};
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::spec::{ArrayRange, JobSpec, Resources, RuntimeKind};
use serde::{Deserialize, Serialize};

use crate::input::{ConnectionId, Ticket};
use crate::state::{
    Closed, EndedTask, Job, Progress, ReplicaStatus, Schedule, ScheduleProgress, Service, Stop,
};

/// The result of one call of [`Core::step`](crate::Core::step): what to commit, and what to do
/// after the commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows to write, in this order, in one transaction with the events.
    pub changes: Vec<Change>,
    /// The events of this step. The first has the revision `first_revision`.
    pub events: Vec<EventFact>,
    /// The revision of the first event; `None` if there are no events.
    pub first_revision: Option<Revision>,
    /// What to do once the changes are on disk, in this order.
    pub effects: Vec<Effect>,
}

impl Step {
    /// Empties the step, and keeps its memory for the next one.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.events.clear();
        self.first_revision = None;
        self.effects.clear();
    }

    /// Returns whether the step has nothing to commit or do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty() && self.effects.is_empty()
    }
}

/// One durable change: [`State::apply`](crate::state::State::apply) says what it means, and the store
/// writes it as rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new job. Its [`Change::JobUpdated`] follows in the same step.
    JobInserted {
        /// Its number, which is the next one.
        job: JobId,
        /// The idempotency key. No two jobs have the same one.
        submission: SubmissionId,
        /// The submitted spec.
        spec: Arc<JobSpec>,
        /// Who submitted it.
        by: Name,
        /// The time, for display.
        wall_ms: u64,
    },
    /// The rest of a job was cancelled: its tasks without an attempt get none.
    JobClosed(JobId, Closed),
    /// A job that had ended goes on, because tasks of it are requeued. It has no attempts and no
    /// retries yet.
    JobReopened(Box<Job>),
    /// A task of a job that had ended waits for its next attempt. Its retries count anew.
    TaskRequeued {
        /// The job.
        job: JobId,
        /// The task.
        task: EndedTask,
    },
    /// The tasks of a job that have had no attempt, and were cancelled, wait again.
    RestRequeued {
        /// The job.
        job: JobId,
        /// The time from which on they may expire.
        wall_ms: u64,
    },
    /// A dependency of a job has come further, or waits again because its upstream job goes on.
    DependencyChanged {
        /// The job.
        job: JobId,
        /// The upstream job.
        upstream: JobId,
        /// How far it has come.
        progress: Progress,
        /// The time, if it was the last dependency that was not met: from then on the job's tasks may
        /// expire.
        starts_wall_ms: Option<u64>,
    },
    /// Tasks of an upstream job have succeeded, and those of the job with the same indexes may start.
    TasksReleased {
        /// The job.
        job: JobId,
        /// The upstream job, on which it depends index by index.
        upstream: JobId,
        /// The indexes.
        tasks: ArrayRange,
    },
    /// The row of a job after all other changes of the step to it. A step has at most one for each
    /// job. If its state is an end, the job has ended.
    JobUpdated(JobRow),
    /// A new attempt, in state `assigned`.
    AttemptInserted {
        /// The attempt.
        attempt: AttemptId,
        /// The node that it was assigned to.
        node: Name,
        /// The time, for display.
        wall_ms: u64,
        /// What it has of the node's named resources; `None` if it needs none.
        #[serde(default)]
        claims: Option<Box<Claims>>,
    },
    /// An attempt reached a later state, but has not ended.
    AttemptAdvanced {
        /// The attempt.
        attempt: AttemptId,
        /// `preparing` or `running`.
        state: AttemptState,
        /// The time at which the manager learned of it, for display.
        wall_ms: u64,
    },
    /// An attempt is to end although its job goes on.
    AttemptStopping {
        /// The attempt.
        attempt: AttemptId,
        /// What becomes of its task.
        stop: Stop,
    },
    /// An attempt ended. If no retry follows, the kind of its outcome decides the state of the
    /// task: succeeded, cancelled, or failed for every other kind.
    AttemptEnded {
        /// The attempt.
        attempt: AttemptId,
        /// The outcome.
        outcome: Outcome,
        /// The time at which the manager learned of it, for display.
        wall_ms: u64,
        /// Milliseconds until the task is tried again; `None` if the task has ended.
        retry_after_ms: Option<u64>,
    },
    /// A task that waited for a retry is not tried again because its job was cancelled.
    RetryDropped {
        /// The last attempt of the task.
        attempt: AttemptId,
    },
    /// The ports or the health of a replica's active attempt have changed.
    ReplicaChanged {
        /// The attempt.
        attempt: AttemptId,
        /// What is known now.
        status: ReplicaStatus,
    },
    /// A service, new or changed.
    ServiceSaved {
        /// Its name.
        service: Name,
        /// What is known now.
        saved: Arc<Service>,
    },
    /// A service was removed, with its history. It has no replicas left.
    ServiceRemoved(Name),
    /// A revision of a service, new or changed in a way that its replicas do not notice.
    RevisionSaved {
        /// The service.
        service: Name,
        /// The revision.
        revision: u32,
        /// The spec.
        spec: Arc<ServiceSpec>,
        /// Who asked for it.
        by: Name,
        /// The time, for display.
        wall_ms: u64,
    },
    /// A revision of a service was reached, or has failed.
    RevisionEnded {
        /// The service.
        service: Name,
        /// The revision.
        revision: u32,
        /// `reached` or `failed`.
        state: RevisionState,
        /// Why it failed.
        message: Option<String>,
    },
    /// A schedule, new or with another spec.
    ScheduleSaved {
        /// Its name.
        schedule: Name,
        /// What is known now.
        saved: Schedule,
    },
    /// A schedule has come further, or was paused or resumed. If a run has started, its
    /// [`Change::JobInserted`] is in the same step.
    ScheduleAdvanced {
        /// Its name.
        schedule: Name,
        /// How far it has come.
        progress: ScheduleProgress,
        /// What is added to its history: first the missed instants, then the last one.
        runs: Vec<ScheduleRunRow>,
    },
    /// A schedule was removed, with its history.
    ScheduleRemoved(Name),
    /// A named volume, new or changed.
    VolumeSaved {
        /// The volume.
        volume: Name,
        /// What is known now.
        row: VolumeRow,
    },
    /// A named volume was removed.
    VolumeRemoved(Name),
    /// A node, new or updated, as of its last session.
    NodeSaved(Arc<NodeRow>),
    /// A node was forgotten. It had no attempts left.
    NodeForgotten(Name),
    /// A session was given this epoch. Later sessions get higher ones, also after a restart.
    EpochTaken(Epoch),
    /// A join token, new or updated.
    TokenSaved(TokenRow),
    /// A join token that could no longer be used was removed. Its number is not used again.
    TokenRemoved(TokenId),
    /// A key, new or updated.
    KeySaved(KeyRow),
    /// A key was removed.
    KeyRemoved(PublicKey),
    /// An ended job was removed with its attempts, or had been removed before. Its number is not
    /// used again.
    JobRemoved(JobId),
    /// The time of the [age clock](crate::input::Input::RetentionDue), in milliseconds.
    AgeSaved(u64),
}

/// The part of a job that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// The job.
    pub job: JobId,
    /// Its state.
    pub state: JobState,
    /// Why the rest of it was cancelled, if it was.
    pub closed: Option<Closed>,
    /// The index of the first task that has had no attempt. The tasks after it have had none
    /// either.
    pub next_index: u64,
    /// Whether these tasks are cancelled, all of them.
    pub rest_cancelled: bool,
    /// How many of its tasks are in each state.
    pub counts: TaskCounts,
    /// The number of attempts that its tasks have had.
    pub attempts: u64,
    /// The time at which its first attempt was assigned, for display.
    pub started_wall_ms: Option<u64>,
    /// The time at which it ended, for display.
    pub ended_wall_ms: Option<u64>,
}

/// The stored part of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub node: Name,
    /// Identifies the current boot of the machine.
    pub boot_id: String,
    /// Identifies the current run of the agent.
    pub agent_instance: InstanceId,
    /// The version of the agent's program.
    pub program_version: String,
    /// The resources that it offers in total.
    pub capacity: Resources,
    /// The labels of its agent.
    pub labels: BTreeMap<Name, String>,
    /// The runtimes that it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// The epoch of its last session.
    pub epoch: Epoch,
    /// The agent that the name belongs to; `None` if the next agent that gives an ID gets it.
    pub agent_id: Option<AgentId>,
    /// The time of the [age clock](crate::input::Input::RetentionDue) when it was first found lost;
    /// `None` since its last session.
    pub lost_age_ms: Option<u64>,
    /// What an admin lets it get.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// The IP address at which other nodes reach its replicas, as of its last session.
    #[serde(default)]
    pub address: Option<String>,
    /// How it is drained; `None` if it is not, or since an older version of podmesh.
    #[serde(default)]
    pub drain: Option<Arc<Drain>>,
    /// The labels that admins have given it. They are over those of its agent.
    #[serde(default)]
    pub admin_labels: BTreeMap<Name, String>,
    /// The named resources that it offers, as of its last session.
    #[serde(default)]
    pub resources: BTreeMap<Name, Offer>,
}

impl NodeRow {
    /// Returns the value of a label.
    pub fn label(&self, label: &Name) -> Option<&String> {
        self.admin_labels.get(label).or_else(|| self.labels.get(label))
    }
}

/// The drain of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who asked for it.
    pub by: Name,
    /// When, by the wall clock. The deadline counts from then.
    pub since_wall_ms: u64,
    /// How.
    pub spec: DrainSpec,
}

/// A row of the history of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRunRow {
    /// Its number, which is the next one of the schedule.
    pub number: u64,
    /// The instant, or the last of several.
    pub instant_ms: u64,
    /// Whether somebody asked for the run. Other instants are unique in their schedule.
    pub by_hand: bool,
    /// When it was decided, by the wall clock.
    pub wall_ms: u64,
    /// What became of it.
    pub result: RunResult,
    /// The job, if it ran.
    pub job: Option<JobId>,
    /// How many instants it stands for.
    pub count: u32,
    /// Why it did not run.
    pub message: Option<String>,
}

/// A stored named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// The node that has it.
    pub node: Name,
    /// The time at which a task was first given it, for display.
    pub created_wall_ms: u64,
    /// Who asked to remove it; `None` if nobody did.
    pub removed_by: Option<Name>,
}

/// A stored join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its number.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// The role of those who join with it.
    pub role: Role,
    /// The time at which it expires, by the manager's clock.
    pub expires_wall_ms: u64,
    /// How many more times it can be used.
    pub uses_left: u32,
    /// The admin who created it.
    pub created_by: Name,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether it is an API token. Nobody can join with such a token.
    #[serde(default)]
    pub api: bool,
    /// When an API token was last used, by the manager's clock.
    #[serde(default)]
    pub used_wall_ms: Option<u64>,
}

/// A stored key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The key.
    pub key: PublicKey,
    /// The role of its owner.
    pub role: Role,
    /// The name of its owner. No two valid keys of nodes have the same name, and no two of users.
    pub name: Name,
    /// The token that it joined with.
    pub token: TokenId,
    /// The time at which it joined, for display.
    pub enrolled_wall_ms: u64,
    /// Whether it was revoked. A revoked key never becomes valid again.
    pub revoked: bool,
    /// The key of the same owner that it replaces as soon as it is used.
    pub renews: Option<PublicKey>,
    /// The time of the [age clock](crate::input::Input::RetentionDue) when it was first found
    /// revoked.
    pub revoked_age_ms: Option<u64>,
}

/// What to do after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message to an agent.
    Send {
        /// The connection of the agent.
        connection: ConnectionId,
        /// The message.
        message: ToPeer,
    },
    /// Start to watch the heartbeats of this session. Its lease runs from now on.
    SessionOpened {
        /// The session.
        epoch: Epoch,
        /// Its node.
        node: Name,
        /// The connection of its agent.
        connection: ConnectionId,
    },
    /// The answer to a command.
    Answered {
        /// The command.
        ticket: Ticket,
        /// What was done, or why it was not.
        result: Result<Answer, ErrorReply>,
    },
    /// A key is valid from now on.
    KeyEnrolled {
        /// The key.
        key: PublicKey,
        /// The role of its owner.
        role: Role,
        /// The name of its owner.
        name: Name,
        /// Whether the shell must tell the core of its first use, by
        /// [`Input::RenewedKeyUsed`](crate::input::Input::RenewedKeyUsed).
        renews: bool,
    },
    /// A key is no longer valid. The shell must cut its connections.
    KeyRevoked {
        /// The key.
        key: PublicKey,
    },
    /// An API token is valid from now on, until it expires or is revoked.
    ApiTokenCreated {
        /// Its number.
        id: TokenId,
        /// SHA-256 of its secret.
        secret_hash: [u8; 32],
        /// The role of its bearer.
        role: Role,
        /// When it expires, by the manager's clock.
        expires_wall_ms: u64,
    },
    /// An API token is no longer valid.
    ApiTokenRevoked(TokenId),
    /// Stop watching the heartbeats of this session.
    SessionClosed {
        /// The session.
        epoch: Epoch,
    },
    /// A service has changed: what is read of it may differ now.
    ServiceTouched(Name),
}

/// What was done for a [`Command`](crate::input::Command).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A job was submitted.
    Submitted {
        /// Its number.
        job: JobId,
        /// Whether it had been submitted before.
        again: bool,
    },
    /// A job was cancelled.
    Cancelled {
        /// Its state.
        state: JobState,
    },
    /// Jobs that waited for another one were cancelled.
    DownstreamCancelled {
        /// How many.
        jobs: u32,
    },
    /// What was read of upstream jobs is not what they are now: the shell reads again, and sends the
    /// command again.
    ReadAgain,
    /// The job has already ended, or was removed. The shell finds its state in the
    /// database, because the core keeps no ended jobs.
    EndedBefore {
        /// The job.
        job: JobId,
    },
    /// Tasks are queued again.
    Requeued {
        /// How many.
        tasks: u32,
    },
    /// Jobs were removed.
    JobsRemoved {
        /// How many.
        jobs: u32,
    },
    /// A node was forgotten.
    NodeForgotten {
        /// Whether it has a key that is still valid.
        enrolled: bool,
    },
    /// A service was changed, or was as wanted before.
    ServiceChanged {
        /// Its current revision.
        revision: u32,
        /// Whether anything has changed.
        changed: bool,
    },
    /// A schedule was added or changed, or was as wanted before.
    ScheduleSaved {
        /// Whether there was none with the name.
        added: bool,
        /// Whether anything has changed.
        changed: bool,
        /// Its next instants.
        next_ms: Vec<u64>,
    },
    /// A schedule was paused, resumed or removed, or was as wanted before.
    ScheduleChanged {
        /// Whether anything has changed.
        changed: bool,
    },
    /// A run of a schedule was asked for.
    ScheduleRan {
        /// The job; `None` if it starts when the last run has ended.
        job: Option<JobId>,
    },
    /// A node may get what was asked for.
    NodeScheduled {
        /// How many attempts it has.
        attempts: u32,
        /// What the admin should know, in sentences.
        notes: Vec<String>,
    },
    /// A node has these labels now.
    NodeLabelled {
        /// The labels.
        labels: BTreeMap<Name, String>,
    },
    /// A volume is forgotten, or its node is asked to remove it.
    VolumeRemoving {
        /// The node.
        node: Name,
    },
    /// A join token was created.
    TokenCreated {
        /// Its number.
        id: TokenId,
        /// The time at which it expires, by the manager's clock.
        expires_wall_ms: u64,
    },
    /// A join token was revoked.
    TokenRevoked,
    /// A new key was added.
    KeyRenewed,
    /// A key was revoked.
    KeyRevoked,
    /// The owner of a key has joined.
    Joined {
        /// Their role.
        role: Role,
        /// Their name.
        name: Name,
    },
}
