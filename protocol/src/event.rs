//! The events: every committed change.

use serde::{Deserialize, Serialize};

use crate::access::{Role, TokenId};
use crate::ids::{AttemptId, InstanceId, JobId, Name, Revision};
use crate::report::{JobState, Outcome};
use crate::spec::RuntimeKind;

/// Events that were committed together. Their revisions are `first`, `first + 1`, …
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventChunk {
    /// The revision of the first event.
    pub first: Revision,
    /// Milliseconds since 1970 by the manager's clock, for display.
    pub wall_ms: u64,
    /// The changes, in order; at least one, at most
    /// [`EVENTS_PER_CHUNK_MAX`](crate::limits::EVENTS_PER_CHUNK_MAX).
    pub facts: Vec<EventFact>,
}

impl EventChunk {
    /// Returns the revision of the last event.
    pub fn last(&self) -> Revision {
        Revision(self.first.0 + (self.facts.len() as u64).saturating_sub(1))
    }

    /// Returns the events with their revisions.
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
    /// The job has ended.
    JobEnded(JobId, JobState),
    /// An attempt was assigned to a node.
    AttemptAssigned(AttemptId, Name),
    /// The node reports what it does before the start.
    AttemptPreparing(AttemptId, String),
    /// An attempt started.
    AttemptStarted(AttemptId),
    /// An attempt ended; with the milliseconds until the next attempt, if the task is retried.
    AttemptEnded(AttemptId, Outcome, Option<u64>),
    /// Output of an attempt was lost; with details.
    LogGap(AttemptId, String),
    /// A node connected.
    NodeConnected(Name, InstanceId),
    /// A node's session ended or its heartbeat is late; it gets no new work. With the reason.
    NodeSuspect(Name, String),
    /// A suspect node sends heartbeats again.
    NodeRecovered(Name),
    /// A node's lease ended.
    NodeLost(Name),
    /// A join token was created: its number, the role of its members, and who created it.
    TokenCreated(TokenId, Role, Name),
    /// A join token was revoked; with who did it.
    TokenRevoked(TokenId, Name),
    /// A member joined: its role, its name, and the token.
    Enrolled(Role, Name, TokenId),
    /// A key was revoked: the member's role and name, and who did it.
    KeyRevoked(Role, Name, Name),
    /// A member replaced its key: its role and name.
    KeyRenewed(Role, Name),
    /// The manager's key was replaced: the digest of the new key in hexadecimal, and who did it.
    ManagerKeyRotated(String, Name),
    /// Attempts to join were refused: the reason for the last one, and how many since the last such
    /// event.
    JoinsRefused(String, u32),
    /// Connections were refused or cut off: the reason for the last one, and how many since the
    /// last such event.
    ConnectionsRefused(String, u32),
    /// A node cannot start a runtime's work at present; with the reason.
    RuntimeWithdrawn(Name, RuntimeKind, String),
    /// A node can start a runtime's work again.
    RuntimeOffered(Name, RuntimeKind),
    /// A lost node was removed: the node, and who asked for it.
    NodeForgotten(Name, Name),
    /// Ended jobs were removed at somebody's request: the first and the last of them, how many, and
    /// who asked.
    JobsForgotten(JobId, JobId, u32, Name),
}

impl EventFact {
    /// Returns the job of the event, if it has one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobSubmitted(job, ..)
            | Self::JobCancelRequested(job)
            | Self::JobEnded(job, _)
            | Self::JobsForgotten(job, _, 1, _) => Some(*job),
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
            | Self::RuntimeOffered(..)
            | Self::NodeForgotten(..)
            | Self::JobsForgotten(..) => None,
        }
    }
}

/// Topic of the publications that carry [`Published::Events`].
pub const TOPIC_EVENTS: &str = "events";
/// Topic of the publications that carry [`Published::Manager`].
pub const TOPIC_MANAGER: &str = "manager";

/// A larger chunk is published without its events, only as a hint: the queues of slow subscribers
/// count messages, not bytes.
pub const PUBLISHED_CHUNK_BYTES_MAX: usize = 4096;

/// A message published by PUB, after a frame with the topic. A publication may be lost or late: a
/// subscriber that sees a gap in the revisions requests `events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Published {
    /// The events after `since` up to `last` are committed.
    Events {
        /// The revision before the first of these events.
        since: Revision,
        /// The revision of the last of these events.
        last: Revision,
        /// The events, if they are small.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<EventChunk>,
    },
    /// The manager's instance and latest revision; sent at each heartbeat interval, and when the
    /// manager stops.
    Manager {
        /// A new id at every start.
        instance: InstanceId,
        /// The last committed revision.
        revision: Revision,
        /// Whether it is about to stop.
        stopping: bool,
    },
}
