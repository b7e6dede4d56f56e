//! What the manager committed, one event a change.

use serde::{Deserialize, Serialize};

use crate::access::{Role, TokenId};
use crate::ids::{AttemptId, InstanceId, JobId, Name, Revision};
use crate::report::{JobState, Outcome};
use crate::spec::RuntimeKind;

/// Events that were committed together: their revisions are `first`, `first + 1`, …
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventChunk {
    /// The revision of the first of them.
    pub first: Revision,
    /// Milliseconds since 1970 by the manager's clock, for display.
    pub wall_ms: u64,
    /// The changes, in order; at least one, at most
    /// [`EVENTS_PER_CHUNK_MAX`](crate::limits::EVENTS_PER_CHUNK_MAX).
    pub facts: Vec<EventFact>,
}

impl EventChunk {
    /// The revision of the last event in it.
    pub fn last(&self) -> Revision {
        Revision(self.first.0 + (self.facts.len() as u64).saturating_sub(1))
    }

    /// The events with their revisions.
    pub fn iter(&self) -> impl Iterator<Item = (Revision, &EventFact)> {
        (self.first.0..).map(Revision).zip(&self.facts)
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventFact {
    /// A job was accepted: its number, name, and how many tasks it has.
    JobSubmitted(JobId, Name, u32),
    /// A user asked to cancel it.
    JobCancelRequested(JobId),
    /// Nothing more will happen to the job.
    JobEnded(JobId, JobState),
    /// An attempt was given to a node.
    AttemptAssigned(AttemptId, Name),
    /// The node says what it does before the start.
    AttemptPreparing(AttemptId, String),
    /// An attempt runs.
    AttemptStarted(AttemptId),
    /// An attempt is over; the number of milliseconds after which the task is tried again,
    /// where it is.
    AttemptEnded(AttemptId, Outcome, Option<u64>),
    /// Output of an attempt was lost; what is known of it.
    LogGap(AttemptId, String),
    /// A node has a session.
    NodeConnected(Name, InstanceId),
    /// A node's session ended or its heartbeat is late; nothing new is placed there. Why.
    NodeSuspect(Name, String),
    /// A suspect node's heartbeat is back.
    NodeRecovered(Name),
    /// A node's lease ended.
    NodeLost(Name),
    /// A join token was made: its number, what whoever joins with it may do, and who asked.
    TokenCreated(TokenId, Role, Name),
    /// A join token was revoked, by whom.
    TokenRevoked(TokenId, Name),
    /// A key joined: what its owner may do, what they are called, with which token.
    Enrolled(Role, Name, TokenId),
    /// A key was revoked: its owner's role and name, and by whom.
    KeyRevoked(Role, Name, Name),
    /// A key took the place of another one: its owner's role and name.
    KeyRenewed(Role, Name),
    /// The manager has another key: its digest in hexadecimal, and by whom.
    ManagerKeyRotated(String, Name),
    /// Somebody could not join: why, for the last one, and how many since this was last told.
    JoinsRefused(String, u32),
    /// Connections were not let in, or cut off: why, for the last one, and how many since this
    /// was last told.
    ConnectionsRefused(String, u32),
    /// A node cannot start a runtime's work now, and why.
    RuntimeWithdrawn(Name, RuntimeKind, String),
    /// A node can start a runtime's work again.
    RuntimeOffered(Name, RuntimeKind),
}

impl EventFact {
    /// The job that it concerns, where it concerns one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobSubmitted(job, ..)
            | Self::JobCancelRequested(job)
            | Self::JobEnded(job, _) => Some(*job),
            Self::AttemptAssigned(attempt, _)
            | Self::AttemptPreparing(attempt, _)
            | Self::AttemptStarted(attempt)
            | Self::AttemptEnded(attempt, ..)
            | Self::LogGap(attempt, _) => Some(attempt.task.job),
            Self::NodeConnected(..)
            | Self::NodeSuspect(..)
            | Self::NodeRecovered(..)
            | Self::NodeLost(..)
            | Self::TokenCreated(..)
            | Self::TokenRevoked(..)
            | Self::Enrolled(..)
            | Self::KeyRevoked(..)
            | Self::KeyRenewed(..)
            | Self::ManagerKeyRotated(..)
            | Self::JoinsRefused(..)
            | Self::ConnectionsRefused(..)
            | Self::RuntimeWithdrawn(..)
            | Self::RuntimeOffered(..) => None,
        }
    }
}

/// Topic of the publications that carry [`Published::Events`].
pub const TOPIC_EVENTS: &str = "events";
/// Topic of the publications that carry [`Published::Manager`].
pub const TOPIC_MANAGER: &str = "manager";

/// A chunk larger than this many bytes is published as a hint, without its events: queues of
/// slow subscribers are counted in messages, not in bytes.
pub const PUBLISHED_CHUNK_BYTES_MAX: usize = 4096;

/// What PUB carries, behind a frame with the topic. A publication may be lost or come late: a
/// subscriber that sees a gap in the revisions asks with `events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Published {
    /// The events after `since` up to and with `last` are committed.
    Events {
        /// The revision before the first of them.
        since: Revision,
        /// The revision of the last of them.
        last: Revision,
        /// They themselves, where they are small.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<EventChunk>,
    },
    /// Which life of the manager this is, and how far it has come; sent once a heartbeat
    /// interval, and when it stops.
    Manager {
        /// A new one after every start.
        instance: InstanceId,
        /// The last committed revision.
        revision: Revision,
        /// Whether it is about to stop.
        stopping: bool,
    },
}
