//! What only the HTTP API shows.

use std::collections::BTreeMap;

use podmesh_protocol::access::Caller;
use podmesh_protocol::client as wire;
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{Name, Revision};
use podmesh_protocol::service::ServicePlan;
use schemars::JsonSchema;
use serde::Serialize;

use crate::access::Role;
use crate::events::EventOutput;
use crate::filter::EventFilter;
use crate::json::{AttemptRow, TaskState};
use crate::service_spec::ServiceSpecOutput;
use crate::time::rfc3339;

/// Whether the manager works.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HealthView {
    /// `ok`
    pub status: &'static str,
}

/// The manager.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InfoView {
    /// The version of its program.
    pub version: String,
    /// The newest version of the protocol that it speaks with agents and clients.
    pub protocol: u16,
    /// The ID of its cluster.
    pub cluster: String,
    /// A new ID at every start.
    pub instance: String,
    /// The revision of the last event.
    pub revision: u64,
    /// The manager's clock: RFC 3339.
    pub time: String,
    /// The digest of its key, in hexadecimal.
    pub key: String,
}

impl From<&wire::Info> for InfoView {
    fn from(info: &wire::Info) -> Self {
        Self {
            version: info.program_version.clone(),
            protocol: info.version,
            cluster: info.cluster.to_string(),
            instance: info.instance.to_string(),
            revision: info.revision.0,
            time: rfc3339(info.wall_ms),
            key: info.key.to_string(),
        }
    }
}

/// Who asks.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CallerView {
    /// The name, as jobs and events give it.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

impl From<&Caller> for CallerView {
    fn from(caller: &Caller) -> Self {
        Self { name: caller.name.to_string(), role: caller.role.into() }
    }
}

/// A job that was submitted, or why it was not.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum BatchRow {
    /// It was submitted.
    Submitted {
        /// The job's number.
        job: u64,
        /// Whether it was submitted before, with the same idempotency key.
        again: bool,
    },
    /// It was not submitted.
    Refused {
        /// A word for programs, as `code` of a problem.
        code: &'static str,
        /// What happened, why, and what to do.
        detail: String,
    },
}

/// What became of the jobs of a batch.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchOutput {
    /// One for each job, in the order of the request.
    pub jobs: Vec<BatchRow>,
}

/// A task with its attempts.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TaskOutput {
    /// The task, such as `42.7`.
    pub task: String,
    /// Its index in the job's array.
    pub index: u32,
    /// Its state.
    pub state: TaskState,
    /// Its attempts, the oldest first; at most the last 1,000.
    pub attempts: Vec<AttemptRow>,
}

impl From<&wire::TaskDetail> for TaskOutput {
    fn from(detail: &wire::TaskDetail) -> Self {
        let attempts = detail.attempts.iter();
        Self {
            task: detail.task.to_string(),
            index: detail.task.index,
            state: (&detail.state).into(),
            attempts: attempts.map(|attempt| AttemptRow::new(detail.task, attempt)).collect(),
        }
    }
}

/// What a search of an output has come to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchOutput {
    /// The first line with the text; null if there is none before `next`.
    pub found: Option<FoundLine>,
    /// The offset where a further search begins.
    pub next: u64,
    /// Whether all output that there is at present was searched. If not, and nothing was found, ask
    /// again with `next`.
    pub end: bool,
}

/// A line of an output.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FoundLine {
    /// The offset of its first byte. A long line is shown from a place before the text.
    pub offset: u64,
    /// The line, without its break: at most 8192 bytes of it.
    pub text: String,
}

/// A page of events.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EventsOutput {
    /// The wanted events in order, without a gap.
    pub events: Vec<EventOutput>,
    /// The revision up to which the events were looked through: `since` of the next page.
    pub next: u64,
    /// The revision of the last event that there is. If it is later than `next`, there are more.
    pub last: u64,
}

impl EventsOutput {
    /// Returns the view of a page that begins after `since`.
    pub fn new(
        since: Revision,
        chunks: &[EventChunk],
        last: Revision,
        filter: &EventFilter,
    ) -> Self {
        let events = chunks.iter().flat_map(EventOutput::of_chunk);
        Self {
            events: events.filter(|event| filter.takes(event)).collect(),
            next: chunks.last().map_or(since, EventChunk::last).0,
            last: last.0,
        }
    }
}

/// What an `apply` would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlanView {
    /// The service.
    pub service: String,
    /// The current spec; null if the service is new.
    pub before: Option<ServiceSpecOutput>,
    /// Whether all replicas would be replaced, or started for the first time.
    pub replaces: bool,
    /// How many new replicas each node would get, by the room that the nodes have now.
    pub placements: BTreeMap<String, u32>,
    /// How many would have to wait for room.
    pub waiting: u32,
    /// Why they would wait.
    pub waits_for: Vec<String>,
}

impl PlanView {
    /// Returns the view of a plan for a service.
    pub fn new(service: &Name, plan: &ServicePlan) -> Self {
        let placements = plan.placements.iter();
        Self {
            service: service.to_string(),
            before: plan.before.as_deref().map(Into::into),
            replaces: plan.replaces,
            placements: placements.map(|(node, count)| (node.to_string(), *count)).collect(),
            waiting: plan.waiting,
            waits_for: plan.waits_for.clone(),
        }
    }
}

/// A node that was forgotten.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ForgottenNode {
    /// The node.
    pub node: String,
    /// Whether it has a valid key, with which its agent can come back.
    pub enrolled: bool,
}

/// A volume that its node has been asked to remove.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RemovedVolume {
    /// The volume.
    pub volume: String,
    /// Its node.
    pub node: String,
}

/// The manager's keys after a rotation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyView {
    /// The digest of its key, in hexadecimal.
    pub key: String,
    /// The digest of its next key.
    pub next: String,
}

/// Some output of an attempt, as an event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LogEvent {
    /// The offset of the first byte: bytes after the first one ever printed. Higher than expected if
    /// older output was removed by rotation.
    pub offset: u64,
    /// The text. Bytes that are not UTF-8 are shown as U+FFFD.
    pub text: String,
}

/// Some output of one of several attempts, as an event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MergedLogEvent {
    /// The attempt.
    pub attempt: String,
    /// Its task, such as `42.7`, or its replica, such as `web.3`.
    pub label: String,
    /// Whole lines. Bytes that are not UTF-8 are shown as U+FFFD.
    pub text: String,
    /// Why its output cannot be read at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A problem, as RFC 9457 defines it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// A URI for the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What happened, why, and what to do.
    pub detail: String,
    /// A word for programs.
    pub code: &'static str,
}
