//! What the core decides: plain values, for the shell to carry out.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::access::{PublicKey, Role, TokenId};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{
    AttemptId, ClusterId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, TaskCounts};
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};

use crate::input::Peer;

/// The outcome of one call of [`Core::step`](crate::Core::step): what to commit, and what may
/// leave after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows to write, in this order, in one transaction with the events.
    pub changes: Vec<Change>,
    /// The events of this step; the first has the revision `first_revision`.
    pub events: Vec<EventFact>,
    /// The revision of the first event; meaningless without events.
    pub first_revision: Option<Revision>,
    /// What happens once the changes are on disk, in this order.
    pub effects: Vec<Effect>,
}

impl Step {
    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.events.clear();
        self.first_revision = None;
        self.effects.clear();
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty() && self.effects.is_empty()
    }
}

/// A row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new job; its [`Change::JobUpdated`] follows in the same step.
    JobInserted {
        /// Its number: the next one.
        job: JobId,
        /// The idempotency key; no two jobs have the same.
        submission: SubmissionId,
        /// What was submitted.
        spec: Arc<JobSpec>,
        /// When, for display.
        wall_ms: u64,
    },
    /// Where a job stands now. At most one a job and step, after the changes of its attempts.
    JobUpdated(JobRow),
    /// A new attempt, in state `assigned`.
    AttemptInserted {
        /// Which.
        attempt: AttemptId,
        /// Where.
        node: Name,
        /// When, for display.
        wall_ms: u64,
    },
    /// An attempt came to another state short of its end.
    AttemptAdvanced {
        /// Which.
        attempt: AttemptId,
        /// `preparing` or `running`.
        state: AttemptState,
        /// When it was heard of, for display.
        wall_ms: u64,
    },
    /// An attempt ended. Where no retry follows, the kind of its outcome says where the task
    /// stands: succeeded, cancelled, and failed for all others.
    AttemptEnded {
        /// Which.
        attempt: AttemptId,
        /// How.
        outcome: Outcome,
        /// When it was heard of, for display.
        wall_ms: u64,
        /// When the task is tried again: after so many milliseconds. None: the task is over.
        retry_after_ms: Option<u64>,
    },
    /// A task that waited for a retry will have none: its job was cancelled.
    RetryDropped {
        /// The last attempt of the task.
        attempt: AttemptId,
    },
    /// What is known of a node, as of its last session.
    NodeSaved(NodeRow),
    /// A session was given this epoch; the next one gets a higher one, after a restart too.
    EpochTaken(Epoch),
    /// A join token, new or as it is now.
    TokenSaved(TokenRow),
    /// A join token that could no longer be used is forgotten; its number is not used again.
    TokenRemoved(TokenId),
    /// A key, new or as it is now.
    KeySaved(KeyRow),
}

/// What changes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// Which.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The index of the first task that has had no attempt; those after have had none either.
    pub next_index: u64,
    /// Where its tasks stand.
    pub counts: TaskCounts,
    /// When its first attempt was assigned, for display.
    pub started_wall_ms: Option<u64>,
    /// When it ended, for display.
    pub ended_wall_ms: Option<u64>,
}

/// What is kept of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: Name,
    /// The life of the machine.
    pub boot_id: String,
    /// The life of the agent.
    pub agent_instance: InstanceId,
    /// The version of the agent's program.
    pub program_version: String,
    /// What it offers in all.
    pub capacity: Resources,
    /// Its labels.
    pub labels: BTreeMap<Name, String>,
    /// What it can start.
    pub runtimes: Vec<RuntimeKind>,
    /// Its last session.
    pub epoch: Epoch,
}

/// What is kept of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its number.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// What whoever joins with it may do.
    pub role: Role,
    /// When it expires, by the manager's clock.
    pub expires_wall_ms: u64,
    /// How often it can still be used.
    pub uses_left: u32,
    /// Who asked for it.
    pub created_by: Name,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key.
    pub key: PublicKey,
    /// What its owner may do.
    pub role: Role,
    /// What its owner is called; among the keys of nodes, and among those of users, no two that
    /// count have the same.
    pub name: Name,
    /// The token with which it joined.
    pub token: TokenId,
    /// When, for display.
    pub enrolled_wall_ms: u64,
    /// Whether it was revoked. It stays so.
    pub revoked: bool,
    /// The key of the same owner whose place it takes as soon as it is used.
    pub renews: Option<PublicKey>,
}

/// What happens after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are `Send`, the largest")]
pub enum Effect {
    /// Send a message.
    Send {
        /// To whom.
        peer: Peer,
        /// What.
        message: ToPeer,
    },
    /// Watch the heartbeats of this session; its lease runs from now on.
    SessionOpened {
        /// Which session.
        epoch: Epoch,
        /// Of which node.
        node: Name,
        /// Where its agent is reached.
        peer: Peer,
    },
    /// The answer to [`AccessInput::TokenRequested`](crate::input::AccessInput::TokenRequested).
    TokenCreated {
        /// Who asked.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// The token's number.
        id: TokenId,
        /// When it expires, by the manager's clock.
        expires_wall_ms: u64,
    },
    /// The answer to [`AccessInput::JoinRequested`](crate::input::AccessInput::JoinRequested).
    JoinAnswered {
        /// The shell's number of the question.
        question: u64,
        /// What its owner may do, and is called; or why they may not join.
        result: Result<(Role, Name), ErrorReply>,
    },
    /// A key counts from now on.
    KeyEnrolled {
        /// Which.
        key: PublicKey,
        /// What its owner may do.
        role: Role,
        /// What its owner is called.
        name: Name,
        /// Whether its first use is to be told, by
        /// [`AccessInput::RenewedKeyUsed`](crate::input::AccessInput::RenewedKeyUsed).
        renews: bool,
    },
    /// A key counts no more: its connections are to be cut.
    KeyRevoked {
        /// Which.
        key: PublicKey,
    },
    /// Watch it no more.
    SessionClosed {
        /// Which session.
        epoch: Epoch,
    },
    /// The answer to [`Input::ExplanationRequested`](crate::input::Input::ExplanationRequested).
    Explained {
        /// The shell's number of the question.
        question: u64,
        /// Why the job's queued tasks wait; empty for a job that has none.
        waits_for: Vec<String>,
    },
    /// Answer a request to cancel a job that had ended before, with where it ended: the core
    /// keeps no ended jobs, and the database has it, since this comes after its commit.
    CancelOfEndedJob {
        /// Who asked.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// The job.
        job: JobId,
    },
}

/// What the core is rebuilt from after a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose manager it is.
    pub cluster: ClusterId,
    /// The number of the last job; 0 for none.
    pub last_job: JobId,
    /// The last session's; 0 for none.
    pub last_epoch: Epoch,
    /// The last event's; 0 for none.
    pub last_revision: Revision,
    /// The jobs that have not ended.
    pub jobs: Vec<RestoredJob>,
    /// The attempts that have not ended: attempt, node, state.
    pub attempts: Vec<(AttemptId, Name, AttemptState)>,
    /// The tasks that wait for a retry: the last attempt, and how long it waits.
    pub retries: Vec<(AttemptId, u64)>,
    /// For the tasks of both: how many of their ended attempts were lost or not started. A task
    /// without any need not be there.
    pub losses: Vec<Losses>,
    /// Every node that was ever seen.
    pub nodes: Vec<NodeRow>,
    /// The number of the last join token; 0 for none.
    pub last_token: u64,
    /// The join tokens that are kept.
    pub tokens: Vec<TokenRow>,
    /// Every key that ever joined.
    pub keys: Vec<KeyRow>,
}

/// How many of a task's ended attempts can have used up no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Losses {
    /// Which task.
    pub task: TaskId,
    /// Those that were lost: in jobs with `on_lost = requeue` they use up no retries.
    pub lost: u32,
    /// Those that their nodes could not start: they never use up any.
    pub not_started: u32,
}

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredJob {
    /// The idempotency key.
    pub submission: SubmissionId,
    /// What was submitted.
    pub spec: Arc<JobSpec>,
    /// Where it stands.
    pub row: JobRow,
}
