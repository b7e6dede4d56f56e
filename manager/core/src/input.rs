//! The inputs of the core: facts that have happened.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::{Epoch, JobId, Name, SubmissionId};
use podmesh_protocol::report::Report;
use podmesh_protocol::session::Hello;
use podmesh_protocol::spec::JobSpec;

/// The sender of a message: the identity of one connection to ROUTER. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub Arc<[u8]>);

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client submitted a job. The spec has been validated.
    JobSubmitted {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The idempotency key.
        submission: SubmissionId,
        /// The job.
        spec: Arc<JobSpec>,
    },
    /// A client asked to cancel a job.
    CancelRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The job.
        job: JobId,
    },
    /// A client asked why the tasks of a job wait. Answered by
    /// [`Effect::Explained`](crate::step::Effect::Explained).
    ExplanationRequested {
        /// The number that the shell gave the question.
        question: u64,
        /// The job.
        job: JobId,
    },
    /// A request to remove jobs. Jobs that have not ended are not removed. The answer is
    /// [`Effect::JobsRemoved`](crate::step::Effect::JobsRemoved).
    JobRemovalRequested {
        /// The number that the shell gave the question.
        question: u64,
        /// The jobs: at most [`FORGET_JOBS_MAX`](podmesh_protocol::limits::FORGET_JOBS_MAX).
        jobs: Vec<JobId>,
        /// Who asked; `None` if the jobs have been kept long enough.
        by: Option<Name>,
    },
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
    /// A client asked for the nodes.
    NodesRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// Only nodes whose names sort after this one.
        after: Option<Name>,
        /// The most rows to return.
        limit: u32,
    },
    /// An admin asked to forget a node.
    ForgetRequested(ForgetRequest),
    /// An agent asked for a session.
    AgentConnected {
        /// The sender.
        peer: Peer,
        /// The authenticated owner of the connection.
        caller: Caller,
        /// What the agent says about itself.
        hello: Box<Hello>,
    },
    /// An agent sent reports about its attempts.
    AttemptsReported {
        /// The sender.
        peer: Peer,
        /// The session that the agent believes is open.
        epoch: Epoch,
        /// The reports, in the order of their numbers.
        reports: Vec<Report>,
    },
    /// An agent ended its session.
    AgentLeft {
        /// The sender.
        peer: Peer,
        /// The session that the agent believes is open.
        epoch: Epoch,
    },
    /// A message could not be delivered because the peer's connection is gone.
    PeerGone {
        /// The peer.
        peer: Peer,
    },
    /// The heartbeat of a session has changed.
    HeartbeatChanged {
        /// The session.
        epoch: Epoch,
        /// The change.
        change: HeartbeatChange,
    },
    /// A fact about join tokens or keys.
    Access(AccessInput),
    /// Time has passed. Timers that are due run, as with every other input.
    Tick,
}

/// A request to forget a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgetRequest {
    /// The sender.
    pub peer: Peer,
    /// The number that the client gave the request.
    pub request: u64,
    /// The name of the admin.
    pub by: Name,
    /// The node to forget.
    pub node: Name,
    /// Whether to end the attempts that are still on the node.
    pub force: bool,
}

/// Facts about join tokens and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessInput {
    /// An admin asked for a new join token. Answered by
    /// [`Effect::TokenCreated`](crate::step::Effect::TokenCreated); only the shell knows the
    /// secret.
    TokenRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The name of the admin.
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
    /// An admin revoked a join token.
    TokenRevokeRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The name of the admin.
        by: Name,
        /// The token.
        id: TokenId,
    },
    /// An admin asked for the list of tokens.
    TokensRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
    },
    /// An admin asked for the users that have joined.
    UsersRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// Only users whose names sort after this one.
        after: Option<Name>,
        /// The most rows to return.
        limit: u32,
    },
    /// The owner of a key asked to replace it with a new key.
    RenewRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The key to replace, which the request came with.
        old: PublicKey,
        /// The new key.
        new: PublicKey,
    },
    /// A new key that replaces another one was used for the first time.
    RenewedKeyUsed {
        /// The new key.
        key: PublicKey,
    },
    /// The manager's own key was rotated.
    ManagerKeyRotated {
        /// The digest of the current key, in hexadecimal.
        digest: String,
        /// The name of the admin who asked for it.
        by: Name,
    },
    /// An admin revoked the key of a node or user.
    RevokeRequested {
        /// The sender.
        peer: Peer,
        /// The number that the client gave the request.
        request: u64,
        /// The name of the admin.
        by: Name,
        /// Whether it is a node or a user.
        kind: PrincipalKind,
        /// The name of the node or user.
        name: Name,
    },
    /// The owner of a key asked to join. Answered by
    /// [`Effect::JoinAnswered`](crate::step::Effect::JoinAnswered).
    JoinRequested {
        /// The number that the shell gave the question.
        question: u64,
        /// The public key. The connection has proven that its owner has the private key.
        key: PublicKey,
        /// The token's number.
        token: TokenId,
        /// SHA-256 of the secret in the token that the owner has.
        secret_hash: [u8; 32],
        /// The name to join as.
        name: Name,
    },
    /// Connections were refused or cut. Sent at most once a second.
    ConnectionsRefused {
        /// The reason for the last one.
        why: String,
        /// The number of connections.
        count: u32,
    },
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
