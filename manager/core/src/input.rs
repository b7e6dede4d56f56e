//! What the core is told: facts of the past.

use std::sync::Arc;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::PrincipalKind;
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
        /// Who.
        peer: Peer,
        /// Who that is.
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
    /// Something that concerns who may come in.
    Access(AccessInput),
    /// Time passed; due timers run. Every other input runs them too.
    Tick,
}

/// Facts that concern who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessInput {
    /// An admin asked for a join token. Answered by
    /// [`Effect::TokenCreated`](crate::step::Effect::TokenCreated): only the shell has the secret.
    TokenRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Their name.
        by: Name,
        /// SHA-256 of the token's secret.
        secret_hash: [u8; 32],
        /// What whoever joins with it may do.
        role: Role,
        /// For how long it can be used.
        ttl_ms: u64,
        /// How often.
        uses: u32,
    },
    /// An admin asked that a token be of no more use.
    TokenRevokeRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Their name.
        by: Name,
        /// The token.
        id: TokenId,
    },
    /// An admin asked for the tokens.
    TokensRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
    },
    /// An admin asked for the users that joined.
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
    /// The owner of a key asked that another one take its place.
    RenewRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// The key that asked.
        old: PublicKey,
        /// The other one.
        new: PublicKey,
    },
    /// A key was used for the first time since it was to take the place of another one.
    RenewedKeyUsed {
        /// Which.
        key: PublicKey,
    },
    /// The manager's own key was rotated.
    ManagerKeyRotated {
        /// The digest of the one of now, in hexadecimal.
        digest: String,
        /// Who asked for it.
        by: Name,
    },
    /// An admin asked that the key of a node or user count no more.
    RevokeRequested {
        /// Who.
        peer: Peer,
        /// The client's number of the request.
        request: u64,
        /// Their name.
        by: Name,
        /// Whether it is a node or a user.
        kind: PrincipalKind,
        /// Its name.
        name: Name,
    },
    /// The owner of a key wants to join. Answered by
    /// [`Effect::JoinAnswered`](crate::step::Effect::JoinAnswered).
    JoinRequested {
        /// The shell's number of the question.
        question: u64,
        /// The key; that its owner has the private one is proven.
        key: PublicKey,
        /// The token's number.
        token: TokenId,
        /// SHA-256 of the secret that they know.
        secret_hash: [u8; 32],
        /// What they want to be called.
        name: Name,
    },
    /// Connections were not let in, or cut off. Told at most once a second.
    ConnectionsRefused {
        /// Why the last of them was.
        why: String,
        /// How many.
        count: u32,
    },
}

/// What can become of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeartbeatChange {
    /// The first beat of the session came: whoever said hello has got the welcome, and lives.
    Begun,
    /// Its stream was closed: the agent has ended, or its host's kernel says that it is gone.
    Closed,
    /// Nothing came for some intervals, and the lease goes on.
    Late,
    /// Beats come again after `Late` or `Closed`, before the lease ended.
    Resumed,
    /// Nothing came for a whole lease.
    LeaseExpired,
}
