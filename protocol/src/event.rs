//! The events: every committed change.

use serde::{Deserialize, Serialize};

use crate::access::{Role, TokenId};
use crate::facts::facts;
use crate::ids::{AttemptId, InstanceId, JobId, Name, Revision};
use crate::node::Scheduling;
use crate::report::{JobState, ShownOutcome};
use crate::service::Health;
use crate::spec::RuntimeKind;
use crate::word::MaybeKnown;

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

facts! {
    /// One change.
    ///
    /// On the wire and on disk: `{kind: fields}`. The fields are an array in the order given here,
    /// or the field itself where there is only one. See [`facts`](mod@crate::facts) for how kinds
    /// grow.
    pub enum EventFact {
        /// A job was accepted.
        JobSubmitted = "job_submitted" {
            /// Its number.
            job: JobId,
            /// Its name.
            name: Name,
            /// How many tasks it has.
            tasks: u32,
        }
        /// The jobs of a workflow were accepted, together. They have no `job_submitted`.
        WorkflowSubmitted = "workflow_submitted" {
            /// Its number, which is that of its first job.
            workflow: JobId,
            /// Its name.
            name: Name,
            /// How many jobs it has.
            jobs: u32,
        }
        /// A user asked to cancel it.
        JobCancelRequested = "job_cancel_requested" {
            /// The job.
            job: JobId,
        }
        /// The job has ended.
        JobEnded = "job_ended" {
            /// The job.
            job: JobId,
            /// Its final state.
            state: MaybeKnown<JobState>,
        }
        /// The rest of a job was cancelled by one of its rules.
        JobEndedEarly = "job_ended_early" {
            /// The job.
            job: JobId,
            /// Which rule, and why.
            message: String,
        }
        /// Tasks of a job that had ended are queued again.
        JobRequeued = "job_requeued" {
            /// The job.
            job: JobId,
            /// How many tasks.
            tasks: u32,
            /// Who asked.
            by: Name,
        }
        /// An attempt was assigned to a node.
        AttemptAssigned = "attempt_assigned" {
            /// The attempt.
            attempt: AttemptId,
            /// The node.
            node: Name,
        }
        /// The node reports what it does before the start.
        AttemptPreparing = "attempt_preparing" {
            /// The attempt.
            attempt: AttemptId,
            /// What it does.
            message: String,
        }
        /// An attempt started.
        AttemptStarted = "attempt_started" {
            /// The attempt.
            attempt: AttemptId,
        }
        /// An attempt ended.
        AttemptEnded = "attempt_ended" {
            /// The attempt.
            attempt: AttemptId,
            /// How it ended.
            outcome: ShownOutcome,
            /// Milliseconds until the next attempt, if the task is tried again.
            retry_after_ms: Option<u64>,
        }
        /// Output of an attempt was lost.
        LogGap = "log_gap" {
            /// The attempt.
            attempt: AttemptId,
            /// Details.
            message: String,
        }
        /// A node connected.
        NodeConnected = "node_connected" {
            /// The node.
            node: Name,
            /// This run of its agent.
            instance: InstanceId,
        }
        /// A node's session ended or its heartbeat is late; it gets no new work.
        NodeSuspect = "node_suspect" {
            /// The node.
            node: Name,
            /// The reason.
            message: String,
        }
        /// A suspect node sends heartbeats again.
        NodeRecovered = "node_recovered" {
            /// The node.
            node: Name,
        }
        /// A node's lease ended.
        NodeLost = "node_lost" {
            /// The node.
            node: Name,
        }
        /// A join token was created.
        TokenCreated = "token_created" {
            /// Its number.
            token: TokenId,
            /// The role of its members.
            role: MaybeKnown<Role>,
            /// Who created it.
            by: Name,
        }
        /// A token was revoked.
        TokenRevoked = "token_revoked" {
            /// Its number.
            token: TokenId,
            /// Who revoked it.
            by: Name,
        }
        /// A member joined.
        Enrolled = "enrolled" {
            /// Its role.
            role: MaybeKnown<Role>,
            /// Its name.
            name: Name,
            /// The token that it joined with.
            token: TokenId,
        }
        /// A key was revoked.
        KeyRevoked = "key_revoked" {
            /// The role of its owner.
            role: MaybeKnown<Role>,
            /// The name of its owner.
            name: Name,
            /// Who revoked it.
            by: Name,
        }
        /// A member replaced its key.
        KeyRenewed = "key_renewed" {
            /// Its role.
            role: MaybeKnown<Role>,
            /// Its name.
            name: Name,
        }
        /// The manager's key was replaced.
        ManagerKeyRotated = "manager_key_rotated" {
            /// The digest of the new key in hexadecimal.
            key: String,
            /// Who asked for it.
            by: Name,
        }
        /// Attempts to join were refused.
        JoinsRefused = "joins_refused" {
            /// The reason for the last one.
            message: String,
            /// How many since the last such event.
            count: u32,
        }
        /// Connections were refused or cut off.
        ConnectionsRefused = "connections_refused" {
            /// The reason for the last one.
            message: String,
            /// How many since the last such event.
            count: u32,
        }
        /// A node cannot start a runtime's work at present.
        RuntimeWithdrawn = "runtime_withdrawn" {
            /// The node.
            node: Name,
            /// The runtime.
            runtime: MaybeKnown<RuntimeKind>,
            /// The reason.
            message: String,
        }
        /// A node can start a runtime's work again.
        RuntimeOffered = "runtime_offered" {
            /// The node.
            node: Name,
            /// The runtime.
            runtime: MaybeKnown<RuntimeKind>,
        }
        /// A lost node was removed.
        NodeForgotten = "node_forgotten" {
            /// The node.
            node: Name,
            /// Who asked for it.
            by: Name,
        }
        /// Ended jobs were removed at somebody's request.
        JobsForgotten = "jobs_forgotten" {
            /// The first of them.
            first: JobId,
            /// The last of them.
            last: JobId,
            /// How many.
            count: u32,
            /// Who asked.
            by: Name,
        }
        /// A service has a new revision, which its replicas are brought to.
        ServiceApplied = "service_applied" {
            /// The service.
            service: Name,
            /// The revision.
            revision: u32,
            /// How many replicas are wanted.
            replicas: u32,
            /// Who asked.
            by: Name,
        }
        /// Somebody changed a service without a new revision.
        ServiceChanged = "service_changed" {
            /// The service.
            service: Name,
            /// What was changed, in words.
            message: String,
            /// Who asked.
            by: Name,
        }
        /// A service was removed, after the end of its last replica.
        ServiceRemoved = "service_removed" {
            /// The service.
            service: Name,
        }
        /// All replicas of a revision are healthy, and none of an older one is left.
        ServiceUpdated = "service_updated" {
            /// The service.
            service: Name,
            /// The revision.
            revision: u32,
        }
        /// A revision did not become healthy in time.
        ServiceUpdateFailed = "service_update_failed" {
            /// The service.
            service: Name,
            /// The revision.
            revision: u32,
            /// The revision that the service goes back to, if it does.
            back_to: Option<u32>,
            /// Why.
            message: String,
        }
        /// A replica listens on ports of its node.
        ReplicaListening = "replica_listening" {
            /// Its service and number, written `web.3`.
            replica: String,
            /// Its attempt.
            attempt: AttemptId,
            /// The ports, in the order of their names in the spec.
            ports: Vec<u16>,
        }
        /// The health of a replica has changed.
        ReplicaHealth = "replica_health" {
            /// Its service and number, written `web.3`.
            replica: String,
            /// Its attempt.
            attempt: AttemptId,
            /// Its health.
            health: MaybeKnown<Health>,
            /// What the last check said.
            message: String,
        }
        /// An admin changed what a node may get.
        NodeScheduled = "node_scheduled" {
            /// The node.
            node: Name,
            /// What it may get now.
            scheduling: MaybeKnown<Scheduling>,
            /// Who asked.
            by: Name,
        }
        /// A node that is drained has no attempts any more.
        NodeDrained = "node_drained" {
            /// The node.
            node: Name,
        }
        /// Something about the planned maintenance of a node.
        NodeMaintenance = "node_maintenance" {
            /// The node.
            node: Name,
            /// What there is to say: it is planned, begins, or is over.
            message: String,
            /// Who planned it, or has changed it.
            by: Name,
        }
        /// An admin has changed labels of a node.
        NodeLabelled = "node_labelled" {
            /// The node.
            node: Name,
            /// The labels that were set or taken back, written `zone=b` and `old-`.
            labels: Vec<String>,
            /// Who asked.
            by: Name,
        }
        /// An attempt is stopped although its job was not cancelled.
        AttemptStopping = "attempt_stopping" {
            /// The attempt.
            attempt: AttemptId,
            /// Why.
            message: String,
        }
        /// A task was given volumes that no node had.
        VolumesPlaced = "volumes_placed" {
            /// The volumes.
            volumes: Vec<Name>,
            /// The node that has them from now on.
            node: Name,
        }
        /// A volume was removed.
        VolumeRemoved = "volume_removed" {
            /// The volume.
            volume: Name,
            /// The node that had it.
            node: Name,
            /// Who asked.
            by: Name,
        }
        /// An API token was created.
        ApiTokenCreated = "api_token_created" {
            /// Its number.
            token: TokenId,
            /// The role of its bearer.
            role: MaybeKnown<Role>,
            /// Who created it.
            by: Name,
        }
        /// A schedule was added.
        ScheduleAdded = "schedule_added" {
            /// The schedule.
            schedule: Name,
            /// Who added it.
            by: Name,
        }
        /// Somebody changed, paused or resumed a schedule.
        ScheduleChanged = "schedule_changed" {
            /// The schedule.
            schedule: Name,
            /// What was changed, in words.
            message: String,
            /// Who asked.
            by: Name,
        }
        /// A schedule was removed.
        ScheduleRemoved = "schedule_removed" {
            /// The schedule.
            schedule: Name,
            /// Who asked.
            by: Name,
        }
        /// A queue was added, or its settings were changed.
        QueueChanged = "queue_changed" {
            /// The queue.
            queue: Name,
            /// What it is now, in words.
            message: String,
            /// Who asked.
            by: Name,
        }
        /// A queue was removed.
        QueueRemoved = "queue_removed" {
            /// The queue.
            queue: Name,
            /// Who asked.
            by: Name,
        }
        /// A task has failed for good, and the dead-letter job of its queue was submitted.
        DeadLetterSubmitted = "dead_letter_submitted" {
            /// The last attempt of the task.
            attempt: AttemptId,
            /// The queue.
            queue: Name,
            /// The dead-letter job.
            dead_letter: JobId,
        }
        /// A task has failed for good, and its queue has a dead-letter job that was not submitted.
        DeadLetterSkipped = "dead_letter_skipped" {
            /// The last attempt of the task.
            attempt: AttemptId,
            /// The queue.
            queue: Name,
            /// Why.
            message: String,
        }
        /// A run of a schedule has started: its job was submitted.
        ScheduleRan = "schedule_ran" {
            /// The schedule.
            schedule: Name,
            /// The instant of the run: milliseconds since 1970 by the manager's clock.
            instant_ms: u64,
            /// The job.
            job: JobId,
        }
        /// A run of a schedule was skipped.
        ScheduleSkipped = "schedule_skipped" {
            /// The schedule.
            schedule: Name,
            /// The instant of the run; likewise.
            instant_ms: u64,
            /// Why.
            message: String,
        }
        /// Runs of a schedule were too late, and do not start.
        ScheduleMissed = "schedule_missed" {
            /// The schedule.
            schedule: Name,
            /// The instant of the last of them; likewise.
            instant_ms: u64,
            /// How many; at most
            /// [`SCHEDULE_MISSED_COUNTED`](crate::limits::SCHEDULE_MISSED_COUNTED) are counted.
            count: u32,
        }
    }
}

impl EventFact {
    /// Returns the job of the event, if it has one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobSubmitted { job, .. }
            | Self::JobCancelRequested { job }
            | Self::JobEnded { job, .. }
            | Self::JobEndedEarly { job, .. }
            | Self::JobRequeued { job, .. }
            | Self::ScheduleRan { job, .. }
            | Self::JobsForgotten { first: job, count: 1, .. } => Some(*job),
            Self::AttemptAssigned { attempt, .. }
            | Self::AttemptPreparing { attempt, .. }
            | Self::AttemptStarted { attempt }
            | Self::AttemptStopping { attempt, .. }
            | Self::AttemptEnded { attempt, .. }
            | Self::LogGap { attempt, .. }
            | Self::DeadLetterSubmitted { attempt, .. }
            | Self::DeadLetterSkipped { attempt, .. }
            | Self::ReplicaListening { attempt, .. }
            | Self::ReplicaHealth { attempt, .. } => Some(attempt.task.job),
            Self::NodeConnected { .. }
            | Self::NodeSuspect { .. }
            | Self::NodeRecovered { .. }
            | Self::NodeLost { .. }
            | Self::TokenCreated { .. }
            | Self::TokenRevoked { .. }
            | Self::Enrolled { .. }
            | Self::KeyRevoked { .. }
            | Self::KeyRenewed { .. }
            | Self::ManagerKeyRotated { .. }
            | Self::JoinsRefused { .. }
            | Self::ConnectionsRefused { .. }
            | Self::RuntimeWithdrawn { .. }
            | Self::RuntimeOffered { .. }
            | Self::NodeForgotten { .. }
            | Self::JobsForgotten { .. }
            | Self::WorkflowSubmitted { .. }
            | Self::ServiceApplied { .. }
            | Self::ServiceChanged { .. }
            | Self::ServiceRemoved { .. }
            | Self::ServiceUpdated { .. }
            | Self::ServiceUpdateFailed { .. }
            | Self::NodeScheduled { .. }
            | Self::NodeDrained { .. }
            | Self::NodeLabelled { .. }
            | Self::NodeMaintenance { .. }
            | Self::VolumesPlaced { .. }
            | Self::VolumeRemoved { .. }
            | Self::ApiTokenCreated { .. }
            | Self::ScheduleAdded { .. }
            | Self::ScheduleChanged { .. }
            | Self::ScheduleRemoved { .. }
            | Self::QueueChanged { .. }
            | Self::QueueRemoved { .. }
            | Self::ScheduleSkipped { .. }
            | Self::ScheduleMissed { .. }
            | Self::Unknown { .. } => None,
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
