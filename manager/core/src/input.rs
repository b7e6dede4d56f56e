//! What the core is told: facts of the past.

use std::sync::Arc;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::Principal;
use podmesh_protocol::ids::{Epoch, JobId, Name, SubmissionId};
use podmesh_protocol::report::Report;
use podmesh_protocol::session::Hello;
use podmesh_protocol::spec::JobSpec;

/// Who sent a message: the identity of one connection to ROUTER. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub Arc<[u8]>);

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client submitted a job. The spec has been validated.
    JobSubmitted {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// The idempotency key.
        submission: SubmissionId,
        /// The job.
        spec: Arc<JobSpec>,
    },
    /// A client asked to cancel a job.
    CancelRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// The job.
        job: JobId,
    },
    /// A client asked why a job's tasks wait; answered by
    /// [`Effect::Explained`](crate::step::Effect::Explained).
    ExplanationRequested {
        /// The shell's number of the question.
        question: u64,
        /// The job.
        job: JobId,
    },
    /// A client asked for the nodes.
    NodesRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Only nodes whose names sort after this one.
        after: Option<Name>,
        /// Rows at the most.
        limit: u32,
    },
    /// An agent asked for a session.
    AgentConnected {
        /// Which connection.
        peer: Peer,
        /// Who is at its other end, as the shell has made sure: an agent, or an admin.
        caller: Caller,
        /// How it introduces itself.
        hello: Box<Hello>,
    },
    /// An agent reported.
    AttemptsReported {
        /// Who.
        peer: Peer,
        /// The session that it believes to have.
        epoch: Epoch,
        /// The reports, in order.
        reports: Vec<Report>,
    },
    /// An agent ended its session.
    AgentLeft {
        /// Who.
        peer: Peer,
        /// The session that it believes to have.
        epoch: Epoch,
    },
    /// A message could not be delivered: the peer's connection is gone.
    PeerGone {
        /// Who.
        peer: Peer,
    },
    /// The heartbeat of a session has changed.
    HeartbeatChanged {
        /// Which session.
        epoch: Epoch,
        /// How.
        change: HeartbeatChange,
    },
    /// An admin asked for a join token; answered by
    /// [`Effect::TokenAnswered`](crate::step::Effect::TokenAnswered).
    TokenRequested {
        /// The shell's number of the question. The shell made the secret, and keeps it until the
        /// answer.
        question: u64,
        /// Who asked.
        by: Name,
        /// The SHA-256 of the secret, which is all that the manager keeps of it.
        secret_hash: [u8; 32],
        /// What those that join with it may do.
        role: Role,
        /// Milliseconds for which it can be used.
        ttl_ms: u64,
        /// How many may join with it.
        uses: u32,
    },
    /// An admin asked for the join tokens.
    TokensListRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Only tokens before this one.
        before: Option<TokenId>,
        /// Rows at the most.
        limit: u32,
    },
    /// An admin asked to revoke a join token.
    TokenRevokeRequested {
        /// Which connection.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Who asked.
        by: Name,
        /// The token.
        id: TokenId,
    },
    /// Somebody wants to join; answered by
    /// [`Effect::JoinAnswered`](crate::step::Effect::JoinAnswered).
    JoinRequested {
        /// The shell's number of the question.
        question: u64,
        /// Their key, which they have shown to be theirs.
        key: PublicKey,
        /// The number of the token that they have.
        token: TokenId,
        /// The SHA-256 of its secret.
        secret_hash: [u8; 32],
        /// What they want to be called.
        name: Name,
    },
    /// An admin asked for the users.
    UsersRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Only users whose names sort after this one.
        after: Option<Name>,
        /// Rows at the most.
        limit: u32,
    },
    /// An admin asked to shut out a key.
    RevokeRequested {
        /// Which connection.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Who asked.
        by: Name,
        /// Whether a node or a user is meant.
        kind: Principal,
        /// Its name.
        name: Name,
    },
    /// Connections were refused, or cut off for what they sent.
    ConnectionsRefused {
        /// Why; the same words for the same reason, and nothing in them that a peer has chosen.
        why: String,
        /// How many.
        count: u32,
    },
    /// Time passed; due timers run. Every other input runs them too.
    Tick,
}

/// What can become of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeartbeatChange {
    /// Its stream was closed: the agent has ended, or its host's kernel says that it is gone.
    Closed,
    /// Nothing came for some intervals, and the lease goes on.
    Late,
    /// Beats come again after `Late` or `Closed`, before the lease ended.
    Resumed,
    /// Nothing came for a whole lease.
    LeaseExpired,
}
