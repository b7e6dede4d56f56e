//! Events, as JSON.

use podmesh_protocol::event::{EventChunk, EventFact};
use podmesh_protocol::facts::RawFields;
use podmesh_protocol::ids::{AttemptId, Revision};
use schemars::JsonSchema;
use serde::Serialize;

use crate::access::Role;
use crate::json::{JobState, OutcomeRow, RuntimeKind};
use crate::service::{Health, Scheduling};
use crate::time::rfc3339;

/// A line of `podmesh events --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct EventOutput {
    /// The event's number: 1, 2, 3 … without a gap, in the order of commit.
    revision: u64,
    /// When it was committed, by the manager's clock: RFC 3339.
    at: String,
    /// What happened. Readers skip an `event` that they do not know.
    #[serde(flatten)]
    event: EventKind,
}

/// What happened.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum EventKind {
    Known(EventBody),
    /// A kind of event that this version of podmesh does not know.
    Unknown {
        /// The kind.
        event: String,
        /// What it contains.
        fields: serde_json::Value,
    },
}

/// What happened.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventBody {
    /// A job was accepted.
    JobSubmitted {
        /// The job's number.
        job: u64,
        /// Its name.
        name: String,
        /// The number of its tasks.
        tasks: u32,
    },
    /// The jobs of a workflow were accepted, together. They have no events of their own for that.
    WorkflowSubmitted {
        /// The number of the workflow, which is that of its first job.
        workflow: u64,
        /// Its name.
        name: String,
        /// The number of its jobs.
        jobs: u32,
    },
    /// A user asked to cancel a job.
    JobCancelRequested {
        /// The job's number.
        job: u64,
    },
    /// A job has ended.
    JobEnded {
        /// The job's number.
        job: u64,
        /// The job's final state.
        state: JobState,
    },
    /// The rest of a job was cancelled by one of its rules.
    JobEndedEarly {
        /// The job's number.
        job: u64,
        /// Which rule, and why.
        message: String,
    },
    /// Tasks of a job that had ended are queued again.
    JobRequeued {
        /// The job's number.
        job: u64,
        /// How many tasks.
        tasks: u32,
        /// Who asked.
        by: String,
    },
    /// An attempt was assigned to a node.
    AttemptAssigned {
        /// The attempt's job.
        job: u64,
        /// The attempt's task, such as `42.7`.
        task: String,
        /// The attempt, such as `42.7#2`.
        attempt: String,
        /// The node.
        node: String,
    },
    /// The node reports what it does before the start.
    AttemptPreparing {
        /// The attempt's job.
        job: u64,
        /// The attempt's task.
        task: String,
        /// The attempt.
        attempt: String,
        /// What the node does.
        message: String,
    },
    /// An attempt started.
    AttemptStarted {
        /// The attempt's job.
        job: u64,
        /// The attempt's task.
        task: String,
        /// The attempt.
        attempt: String,
    },
    /// An attempt ended.
    AttemptEnded {
        /// The attempt's job.
        job: u64,
        /// The attempt's task.
        task: String,
        /// The attempt.
        attempt: String,
        /// How it ended.
        outcome: OutcomeRow,
        /// The time until the next attempt, if the task is retried.
        retry_in_ms: Option<u64>,
    },
    /// Output of an attempt was lost.
    LogGap {
        /// The attempt's job.
        job: u64,
        /// The attempt's task.
        task: String,
        /// The attempt.
        attempt: String,
        /// What was lost, and why.
        message: String,
    },
    /// A node connected.
    NodeConnected {
        /// The node's name.
        node: String,
        /// The run of its agent process.
        instance: String,
    },
    /// A node's session ended or its heartbeat is late.
    NodeSuspect {
        /// The node's name.
        node: String,
        /// The reason.
        message: String,
    },
    /// A suspect node sends heartbeats again.
    NodeRecovered {
        /// The node's name.
        node: String,
    },
    /// A node's lease ended.
    NodeLost {
        /// The node's name.
        node: String,
    },
    /// A join token was created.
    TokenCreated {
        /// The token's number.
        token: u64,
        /// The role of members that join with it.
        role: Role,
        /// Who created it.
        by: String,
    },
    /// A token was revoked.
    TokenRevoked {
        /// The token's number.
        token: u64,
        /// Who revoked it.
        by: String,
    },
    /// A machine or user joined.
    Enrolled {
        /// The member's role.
        role: Role,
        /// The member's name.
        name: String,
        /// The number of the token.
        token: u64,
    },
    /// The key of a machine or user was revoked.
    KeyRevoked {
        /// The member's role.
        role: Role,
        /// The member's name.
        name: String,
        /// Who revoked it.
        by: String,
    },
    /// A member replaced its key.
    KeyRenewed {
        /// The member's role.
        role: Role,
        /// The member's name.
        name: String,
    },
    /// The manager's key was replaced.
    ManagerKeyRotated {
        /// The digest of the new key.
        key: String,
        /// Who replaced it.
        by: String,
    },
    /// Attempts to join were refused.
    JoinsRefused {
        /// The reason for the last one.
        message: String,
        /// How many, since the previous event of this kind.
        count: u32,
    },
    /// Connections were refused or cut off.
    ConnectionsRefused {
        /// The reason for the last one.
        message: String,
        /// How many, since the previous event of this kind.
        count: u32,
    },
    /// A node cannot start a runtime's work at present.
    RuntimeWithdrawn {
        /// The node.
        node: String,
        /// The runtime.
        runtime: RuntimeKind,
        /// The reason.
        message: String,
    },
    /// A node can start a runtime's work again.
    RuntimeOffered {
        /// The node.
        node: String,
        /// The runtime.
        runtime: RuntimeKind,
    },
    /// A lost node was removed from the list of nodes.
    NodeForgotten {
        /// The node.
        node: String,
        /// Who removed it.
        by: String,
    },
    /// A user had ended jobs removed.
    JobsForgotten {
        /// The lowest job number.
        first: u64,
        /// The highest job number.
        last: u64,
        /// The number of removed jobs.
        count: u32,
        /// Who removed them.
        by: String,
    },
    /// A service has a new revision, which its replicas are brought to.
    ServiceApplied {
        /// The service.
        service: String,
        /// The revision.
        revision: u32,
        /// How many replicas are wanted.
        replicas: u32,
        /// Who asked for it.
        by: String,
    },
    /// A service was changed without a new revision.
    ServiceChanged {
        /// The service.
        service: String,
        /// What was changed.
        message: String,
        /// Who asked for it.
        by: String,
    },
    /// A service was removed.
    ServiceRemoved {
        /// The service.
        service: String,
    },
    /// All replicas of a revision are healthy, and none of an older one is left.
    ServiceUpdated {
        /// The service.
        service: String,
        /// The revision.
        revision: u32,
    },
    /// A revision did not become healthy in time.
    ServiceUpdateFailed {
        /// The service.
        service: String,
        /// The revision.
        revision: u32,
        /// The revision that the service goes back to, if it does.
        back_to: Option<u32>,
        /// The reason.
        message: String,
    },
    /// A replica listens on ports of its node.
    ReplicaListening {
        /// The number of its job.
        job: u64,
        /// Its task, as `job.index`.
        task: String,
        /// Its attempt, as `job.index#number`.
        attempt: String,
        /// Its service and number, as `web.3`.
        replica: String,
        /// The ports, in the order of their names in the spec.
        ports: Vec<u16>,
    },
    /// The health of a replica has changed.
    ReplicaHealth {
        /// The number of its job.
        job: u64,
        /// Its task, as `job.index`.
        task: String,
        /// Its attempt, as `job.index#number`.
        attempt: String,
        /// Its service and number, as `web.3`.
        replica: String,
        /// Its health.
        health: Health,
        /// What the last check said.
        message: String,
    },
    /// An admin changed what a node may get.
    NodeScheduled {
        /// The node.
        node: String,
        /// What it may get now.
        scheduling: Scheduling,
        /// Who asked for it.
        by: String,
    },
    /// A node that is drained has no attempts any more.
    NodeDrained {
        /// The node.
        node: String,
    },
    /// Something about the planned maintenance of a node.
    NodeMaintenance {
        /// The node.
        node: String,
        /// What there is to say: it is planned, begins, or is over.
        message: String,
        /// Who planned it, or has changed it.
        by: String,
    },
    /// An admin has changed labels of a node.
    NodeLabelled {
        /// The node.
        node: String,
        /// The labels that were set or taken back, written `zone=b` and `old-`.
        labels: Vec<String>,
        /// Who asked for it.
        by: String,
    },
    /// An attempt is stopped although its job was not cancelled.
    AttemptStopping {
        /// The number of its job.
        job: u64,
        /// Its task, as `job.index`.
        task: String,
        /// The attempt, as `job.index#number`.
        attempt: String,
        /// Why.
        message: String,
    },
    /// A task was given volumes that no node had.
    VolumesPlaced {
        /// The volumes.
        volumes: Vec<String>,
        /// The node that has them from now on.
        node: String,
    },
    /// A volume was removed.
    VolumeRemoved {
        /// The volume.
        volume: String,
        /// The node that had it.
        node: String,
        /// Who asked for it.
        by: String,
    },
    /// An API token was created.
    ApiTokenCreated {
        /// The token's number.
        token: u64,
        /// The role of its bearer.
        role: Role,
        /// Who created it.
        by: String,
    },
    /// A schedule was added.
    ScheduleAdded {
        /// The schedule.
        schedule: String,
        /// Who added it.
        by: String,
    },
    /// Somebody changed, paused or resumed a schedule.
    ScheduleChanged {
        /// The schedule.
        schedule: String,
        /// What was changed, in words.
        message: String,
        /// Who asked for it.
        by: String,
    },
    /// A schedule was removed.
    ScheduleRemoved {
        /// The schedule.
        schedule: String,
        /// Who asked for it.
        by: String,
    },
    /// A queue was added, or its settings were changed.
    QueueChanged {
        /// The queue.
        queue: String,
        /// What it is now, in words.
        message: String,
        /// Who asked for it.
        by: String,
    },
    /// A queue was removed.
    QueueRemoved {
        /// The queue.
        queue: String,
        /// Who asked for it.
        by: String,
    },
    /// A task has failed for good, and the dead-letter job of its queue was submitted.
    DeadLetterSubmitted {
        /// The job of the task.
        job: u64,
        /// The task.
        task: String,
        /// Its last attempt.
        attempt: String,
        /// The queue.
        queue: String,
        /// The dead-letter job.
        dead_letter: u64,
    },
    /// A task has failed for good, and its queue has a dead-letter job that was not submitted.
    DeadLetterSkipped {
        /// The job of the task.
        job: u64,
        /// The task.
        task: String,
        /// Its last attempt.
        attempt: String,
        /// The queue.
        queue: String,
        /// Why.
        message: String,
    },
    /// A run of a schedule has started: its job was submitted.
    ScheduleRan {
        /// The schedule.
        schedule: String,
        /// The instant of the run: RFC 3339.
        instant: String,
        /// The job's number.
        job: u64,
    },
    /// A run of a schedule was skipped.
    ScheduleSkipped {
        /// The schedule.
        schedule: String,
        /// The instant of the run: RFC 3339.
        instant: String,
        /// Why.
        message: String,
    },
    /// Runs of a schedule were too late, and do not start.
    ScheduleMissed {
        /// The schedule.
        schedule: String,
        /// The instant of the last of them: RFC 3339.
        instant: String,
        /// How many; 1000 of a cron pattern may be more.
        count: u32,
    },
}

impl EventOutput {
    /// Returns the view of an event.
    pub fn new(revision: Revision, wall_ms: u64, fact: &EventFact) -> Self {
        Self { revision: revision.0, at: rfc3339(wall_ms), event: fact.into() }
    }
}

impl EventOutput {
    /// Returns the views of the events of a chunk.
    pub fn of_chunk(chunk: &EventChunk) -> impl Iterator<Item = Self> {
        let revisions = (chunk.first.0..).map(Revision);
        revisions.zip(&chunk.facts).map(|(revision, fact)| Self::new(revision, chunk.wall_ms, fact))
    }
}

/// Returns fields as JSON; as text if they have no JSON form.
pub fn fields_json(fields: &RawFields) -> serde_json::Value {
    serde_json::to_value(fields).unwrap_or_else(|_| fields.0.to_string().into())
}

impl From<&EventFact> for EventKind {
    fn from(fact: &EventFact) -> Self {
        let ids = |id: &AttemptId| (id.task.job.0, id.task.to_string(), id.to_string());
        Self::Known(match fact {
            EventFact::Unknown { kind, fields } => {
                return Self::Unknown { event: kind.clone(), fields: fields_json(fields) };
            }
            EventFact::JobSubmitted { job, name, tasks } => {
                EventBody::JobSubmitted { job: job.0, name: name.to_string(), tasks: *tasks }
            }
            EventFact::WorkflowSubmitted { workflow, name, jobs } => EventBody::WorkflowSubmitted {
                workflow: workflow.0,
                name: name.to_string(),
                jobs: *jobs,
            },
            EventFact::JobCancelRequested { job } => EventBody::JobCancelRequested { job: job.0 },
            EventFact::JobEnded { job, state } => {
                EventBody::JobEnded { job: job.0, state: state.into() }
            }
            EventFact::JobEndedEarly { job, message } => {
                EventBody::JobEndedEarly { job: job.0, message: message.clone() }
            }
            EventFact::JobRequeued { job, tasks, by } => {
                EventBody::JobRequeued { job: job.0, tasks: *tasks, by: by.to_string() }
            }
            EventFact::AttemptAssigned { attempt: id, node } => {
                let (job, task, attempt) = ids(id);
                EventBody::AttemptAssigned { job, task, attempt, node: node.to_string() }
            }
            EventFact::AttemptPreparing { attempt: id, message } => {
                let (job, task, attempt) = ids(id);
                EventBody::AttemptPreparing { job, task, attempt, message: message.clone() }
            }
            EventFact::AttemptStarted { attempt: id } => {
                let (job, task, attempt) = ids(id);
                EventBody::AttemptStarted { job, task, attempt }
            }
            EventFact::AttemptEnded { attempt: id, outcome, retry_after_ms: retry_in_ms } => {
                let (job, task, attempt) = ids(id);
                let retry_in_ms = *retry_in_ms;
                EventBody::AttemptEnded { job, task, attempt, outcome: outcome.into(), retry_in_ms }
            }
            EventFact::LogGap { attempt: id, message } => {
                let (job, task, attempt) = ids(id);
                EventBody::LogGap { job, task, attempt, message: message.clone() }
            }
            EventFact::DeadLetterSubmitted { attempt: id, queue, dead_letter } => {
                let ((job, task, attempt), queue) = (ids(id), queue.to_string());
                let dead_letter = dead_letter.0;
                EventBody::DeadLetterSubmitted { job, task, attempt, queue, dead_letter }
            }
            EventFact::DeadLetterSkipped { attempt: id, queue, message } => {
                let ((job, task, attempt), queue) = (ids(id), queue.to_string());
                let message = message.clone();
                EventBody::DeadLetterSkipped { job, task, attempt, queue, message }
            }
            EventFact::NodeConnected { node, instance } => {
                EventBody::NodeConnected { node: node.to_string(), instance: instance.to_string() }
            }
            EventFact::NodeSuspect { node, message } => {
                EventBody::NodeSuspect { node: node.to_string(), message: message.clone() }
            }
            EventFact::NodeRecovered { node } => {
                EventBody::NodeRecovered { node: node.to_string() }
            }
            EventFact::NodeLost { node } => EventBody::NodeLost { node: node.to_string() },
            EventFact::RuntimeWithdrawn { node, runtime, message } => EventBody::RuntimeWithdrawn {
                node: node.to_string(),
                runtime: runtime.into(),
                message: message.clone(),
            },
            EventFact::RuntimeOffered { node, runtime } => {
                EventBody::RuntimeOffered { node: node.to_string(), runtime: runtime.into() }
            }
            EventFact::NodeForgotten { node, by } => {
                EventBody::NodeForgotten { node: node.to_string(), by: by.to_string() }
            }
            EventFact::JobsForgotten { first, last, count, by } => EventBody::JobsForgotten {
                first: first.0,
                last: last.0,
                count: *count,
                by: by.to_string(),
            },
            EventFact::TokenCreated { token: id, role, by } => {
                EventBody::TokenCreated { token: id.0, role: role.into(), by: by.to_string() }
            }
            EventFact::ApiTokenCreated { token: id, role, by } => {
                EventBody::ApiTokenCreated { token: id.0, role: role.into(), by: by.to_string() }
            }
            EventFact::TokenRevoked { token: id, by } => {
                EventBody::TokenRevoked { token: id.0, by: by.to_string() }
            }
            EventFact::Enrolled { role, name, token: id } => {
                EventBody::Enrolled { role: role.into(), name: name.to_string(), token: id.0 }
            }
            EventFact::KeyRevoked { role, name, by } => {
                let (name, by) = (name.to_string(), by.to_string());
                EventBody::KeyRevoked { role: role.into(), name, by }
            }
            EventFact::KeyRenewed { role, name } => {
                EventBody::KeyRenewed { role: role.into(), name: name.to_string() }
            }
            EventFact::ManagerKeyRotated { key, by } => {
                EventBody::ManagerKeyRotated { key: key.clone(), by: by.to_string() }
            }
            EventFact::JoinsRefused { message, count } => {
                EventBody::JoinsRefused { message: message.clone(), count: *count }
            }
            EventFact::ConnectionsRefused { message, count } => {
                EventBody::ConnectionsRefused { message: message.clone(), count: *count }
            }
            EventFact::ServiceApplied { service, revision, replicas, by } => {
                EventBody::ServiceApplied {
                    service: service.to_string(),
                    revision: *revision,
                    replicas: *replicas,
                    by: by.to_string(),
                }
            }
            EventFact::ServiceChanged { service, message, by } => {
                let (service, by) = (service.to_string(), by.to_string());
                EventBody::ServiceChanged { service, message: message.clone(), by }
            }
            EventFact::ServiceRemoved { service } => {
                EventBody::ServiceRemoved { service: service.to_string() }
            }
            EventFact::ServiceUpdated { service, revision } => {
                EventBody::ServiceUpdated { service: service.to_string(), revision: *revision }
            }
            EventFact::ServiceUpdateFailed { service, revision, back_to, message } => {
                EventBody::ServiceUpdateFailed {
                    service: service.to_string(),
                    revision: *revision,
                    back_to: *back_to,
                    message: message.clone(),
                }
            }
            EventFact::ReplicaListening { replica, attempt: id, ports } => {
                let (job, task, attempt) = ids(id);
                let (replica, ports) = (replica.clone(), ports.clone());
                EventBody::ReplicaListening { job, task, attempt, replica, ports }
            }
            EventFact::ReplicaHealth { replica, attempt: id, health, message } => {
                let (job, task, attempt) = ids(id);
                let (replica, message) = (replica.clone(), message.clone());
                let health = health.into();
                EventBody::ReplicaHealth { job, task, attempt, replica, health, message }
            }
            EventFact::NodeScheduled { node, scheduling, by } => EventBody::NodeScheduled {
                node: node.to_string(),
                scheduling: scheduling.into(),
                by: by.to_string(),
            },
            EventFact::NodeDrained { node } => EventBody::NodeDrained { node: node.to_string() },
            EventFact::NodeMaintenance { node, message, by } => EventBody::NodeMaintenance {
                node: node.to_string(),
                message: message.clone(),
                by: by.to_string(),
            },
            EventFact::NodeLabelled { node, labels, by } => EventBody::NodeLabelled {
                node: node.to_string(),
                labels: labels.clone(),
                by: by.to_string(),
            },
            EventFact::AttemptStopping { attempt: id, message } => {
                let (job, task, attempt) = ids(id);
                EventBody::AttemptStopping { job, task, attempt, message: message.clone() }
            }
            EventFact::VolumesPlaced { volumes, node } => EventBody::VolumesPlaced {
                volumes: volumes.iter().map(ToString::to_string).collect(),
                node: node.to_string(),
            },
            EventFact::ScheduleAdded { schedule, by } => {
                EventBody::ScheduleAdded { schedule: schedule.to_string(), by: by.to_string() }
            }
            EventFact::ScheduleChanged { schedule, message, by } => EventBody::ScheduleChanged {
                schedule: schedule.to_string(),
                message: message.clone(),
                by: by.to_string(),
            },
            EventFact::ScheduleRemoved { schedule, by } => {
                EventBody::ScheduleRemoved { schedule: schedule.to_string(), by: by.to_string() }
            }
            EventFact::QueueChanged { queue, message, by } => EventBody::QueueChanged {
                queue: queue.to_string(),
                message: message.clone(),
                by: by.to_string(),
            },
            EventFact::QueueRemoved { queue, by } => {
                EventBody::QueueRemoved { queue: queue.to_string(), by: by.to_string() }
            }
            EventFact::ScheduleRan { schedule, instant_ms, job } => EventBody::ScheduleRan {
                schedule: schedule.to_string(),
                instant: rfc3339(*instant_ms),
                job: job.0,
            },
            EventFact::ScheduleSkipped { schedule, instant_ms, message } => {
                EventBody::ScheduleSkipped {
                    schedule: schedule.to_string(),
                    instant: rfc3339(*instant_ms),
                    message: message.clone(),
                }
            }
            EventFact::ScheduleMissed { schedule, instant_ms, count } => {
                EventBody::ScheduleMissed {
                    schedule: schedule.to_string(),
                    instant: rfc3339(*instant_ms),
                    count: *count,
                }
            }
            EventFact::VolumeRemoved { volume, node, by } => EventBody::VolumeRemoved {
                volume: volume.to_string(),
                node: node.to_string(),
                by: by.to_string(),
            },
        })
    }
}
