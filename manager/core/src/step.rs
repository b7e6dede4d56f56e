//! The decisions of the core: plain values that the shell carries out.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::access::{PublicKey, Role, TokenId};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{Epoch, JobId, Name, Revision};
use podmesh_protocol::report::JobState;
use podmesh_protocol::session::ToPeer;

use crate::ids::{ConnectionId, Ticket};
use crate::state::{Change, State};

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

    /// Applies the changes and the events to a state that was equal to the core's before the step.
    pub fn apply_to(&self, state: &mut State) {
        for change in &self.changes {
            state.apply(change);
        }
        state.last_revision.0 += self.events.len() as u64;
    }

    /// Returns whether the step has nothing to commit or do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty() && self.effects.is_empty()
    }
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
    /// Several jobs were cancelled.
    JobsCancelled {
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
    /// A queue was added or changed, or was as wanted before.
    QueueSaved {
        /// Whether there was none with the name.
        added: bool,
        /// Whether anything has changed.
        changed: bool,
    },
    /// A queue was paused, resumed or removed, or was as wanted before.
    QueueChanged {
        /// Whether anything has changed.
        changed: bool,
    },
    /// A node may get what was asked for.
    NodeScheduled {
        /// How many attempts it has.
        attempts: u32,
        /// What the admin should know, in sentences.
        notes: Vec<String>,
    },
    /// The maintenance of a node is planned as asked for.
    MaintenanceSet {
        /// Whether anything has changed.
        changed: bool,
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
