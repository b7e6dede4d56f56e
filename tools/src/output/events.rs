//! Events, as a line for people and as JSON.

use podmesh_protocol::event::EventFact;
use podmesh_protocol::facts::RawFields;
use podmesh_protocol::ids::{AttemptId, Revision};
use podmesh_protocol::report::{self, OutcomeKind};
use podmesh_protocol::word::MaybeKnown;
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Role;
use super::json::{JobState, OutcomeRow, RuntimeKind, Word};
use super::service::{Health, Scheduling};
use super::text::{count, escape};
use super::time::{coarse, rfc3339};

/// A line of `podmesh events --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EventOutput {
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
    /// A join token was revoked.
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
}

impl EventOutput {
    pub(crate) fn new(revision: Revision, wall_ms: u64, fact: &EventFact) -> Self {
        Self { revision: revision.0, at: rfc3339(wall_ms), event: fact.into() }
    }
}

/// Returns fields as JSON; as text if they have no JSON form.
fn json_of(fields: &RawFields) -> serde_json::Value {
    serde_json::to_value(fields).unwrap_or_else(|_| fields.0.to_string().into())
}

impl From<&EventFact> for EventKind {
    fn from(fact: &EventFact) -> Self {
        let ids = |id: &AttemptId| (id.task.job.0, id.task.to_string(), id.to_string());
        Self::Known(match fact {
            EventFact::Unknown { kind, fields } => {
                return Self::Unknown { event: kind.clone(), fields: json_of(fields) };
            }
            EventFact::JobSubmitted { job, name, tasks } => {
                EventBody::JobSubmitted { job: job.0, name: name.to_string(), tasks: *tasks }
            }
            EventFact::JobCancelRequested { job } => EventBody::JobCancelRequested { job: job.0 },
            EventFact::JobEnded { job, state } => {
                EventBody::JobEnded { job: job.0, state: state.into() }
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
                let health = (*health).into();
                EventBody::ReplicaHealth { job, task, attempt, replica, health, message }
            }
            EventFact::NodeScheduled { node, scheduling, by } => EventBody::NodeScheduled {
                node: node.to_string(),
                scheduling: (*scheduling).into(),
                by: by.to_string(),
            },
            EventFact::VolumesPlaced { volumes, node } => EventBody::VolumesPlaced {
                volumes: volumes.iter().map(ToString::to_string).collect(),
                node: node.to_string(),
            },
            EventFact::VolumeRemoved { volume, node, by } => EventBody::VolumeRemoved {
                volume: volume.to_string(),
                node: node.to_string(),
                by: by.to_string(),
            },
        })
    }
}

/// Formats an event as a line for people: revision, time of day, description.
pub(crate) fn line(revision: Revision, clock: &str, fact: &EventFact) -> String {
    format!("{:>7}  {clock}  {}", revision.0, describe(fact))
}

fn describe(fact: &EventFact) -> String {
    match fact {
        EventFact::JobSubmitted { job, name, tasks } => {
            format!("job {job} ({name}) submitted, {}", count(u64::from(*tasks), "task"))
        }
        EventFact::JobCancelRequested { job } => format!("job {job} is being cancelled"),
        EventFact::Unknown { kind, fields } => {
            format!(
                "{} (not known to this version): {}",
                escape(kind),
                escape(&json_of(fields).to_string())
            )
        }
        EventFact::JobEnded { job, state } => {
            format!("job {job} ended: {}", JobState::from(state).word())
        }
        EventFact::AttemptAssigned { attempt: id, node } => format!("{id} assigned to {node}"),
        EventFact::AttemptPreparing { attempt: id, message } => {
            format!("{id} preparing: {}", escape(message))
        }
        EventFact::AttemptStarted { attempt: id } => format!("{id} started"),
        EventFact::AttemptEnded { attempt: id, outcome, retry_after_ms: retry } => {
            let retry = retry.map(|ms| format!("; retry in {}", coarse(ms)));
            format!("{id} {}{}", outcome_text(outcome), retry.unwrap_or_default())
        }
        EventFact::LogGap { attempt: id, message } => {
            format!("{id} lost output: {}", escape(message))
        }
        EventFact::NodeConnected { node, .. } => format!("node {node} connected"),
        EventFact::NodeSuspect { node, message: why } => {
            format!("node {node} is suspect: {}", escape(why))
        }
        EventFact::NodeRecovered { node } => format!("node {node} recovered"),
        EventFact::NodeLost { node } => format!("node {node} is lost"),
        EventFact::TokenCreated { token: id, role, by } => {
            format!("join token {id} for the role {role} created by {by}")
        }
        EventFact::TokenRevoked { token: id, by } => format!("join token {id} revoked by {by}"),
        EventFact::Enrolled { role, name, token: id } => {
            format!("{role} {name} joined with token {id}")
        }
        EventFact::KeyRevoked { role, name, by } => format!("{role} {name} revoked by {by}"),
        EventFact::KeyRenewed { role, name } => format!("{role} {name} has a new key"),
        EventFact::ManagerKeyRotated { key, by } => {
            format!("the manager's key was rotated by {by}: it is now {}", escape(key))
        }
        EventFact::RuntimeWithdrawn { node, runtime, message: why } => {
            format!("node {node} takes no work for {runtime}: {}", escape(why))
        }
        EventFact::RuntimeOffered { node, runtime } => {
            format!("node {node} takes work for {runtime} again")
        }
        EventFact::NodeForgotten { node, by } => format!("node {node} was forgotten by {by}"),
        EventFact::JobsForgotten { first, last, count: number, by } => match number {
            1 => format!("job {first} was removed by {by}"),
            _ => format!("{number} jobs from {first} to {last} were removed by {by}"),
        },
        EventFact::JoinsRefused { message: why, count: number } => {
            format!("{} refused: {}", count(u64::from(*number), "join"), escape(why))
        }
        EventFact::ConnectionsRefused { message: why, count: number } => {
            let number = count(u64::from(*number), "connection");
            format!("{number} refused or cut off: {}", escape(why))
        }
        EventFact::ServiceApplied { service, revision, replicas, by } => {
            let replicas = count(u64::from(*replicas), "replica");
            format!("service {service} revision {revision} applied by {by}, {replicas}")
        }
        EventFact::ServiceChanged { service, message, by } => {
            format!("service {service} {} by {by}", escape(message))
        }
        EventFact::ServiceRemoved { service } => format!("service {service} was removed"),
        EventFact::ServiceUpdated { service, revision } => {
            format!("service {service} is at revision {revision}")
        }
        EventFact::ServiceUpdateFailed { service, revision, back_to, message } => {
            let back = back_to.map(|to| format!("; going back to revision {to}"));
            let why = escape(message);
            format!(
                "service {service} revision {revision} failed: {why}{}",
                back.unwrap_or_default()
            )
        }
        EventFact::ReplicaListening { replica, attempt: id, ports } => {
            format!("{id} ({}) listens on {ports:?}", escape(replica))
        }
        EventFact::ReplicaHealth { replica, attempt: id, health, message } => {
            let health = Health::from(*health).word();
            format!("{id} ({}) is {health}: {}", escape(replica), escape(message))
        }
        EventFact::NodeScheduled { node, scheduling, by } => {
            format!("node {node} was {} by {by}", Scheduling::from(*scheduling).word())
        }
        EventFact::VolumesPlaced { volumes, node } => {
            let volumes: Vec<String> = volumes.iter().map(ToString::to_string).collect();
            format!("node {node} has the new volumes {}", volumes.join(", "))
        }
        EventFact::VolumeRemoved { volume, node, by } => {
            format!("volume {volume} of node {node} was removed by {by}")
        }
    }
}

/// Describes how an attempt ended, for people: `failed, exit code 3, after 1.2s: …`.
pub(crate) fn outcome_text(outcome: &report::ShownOutcome) -> String {
    let mut text = match &outcome.kind {
        MaybeKnown::Known(kind) => match kind {
            OutcomeKind::Succeeded => "succeeded",
            OutcomeKind::Failed => "failed",
            OutcomeKind::Cancelled => "was cancelled",
            OutcomeKind::TimedOut => "timed out",
            OutcomeKind::Lost => "was lost",
            OutcomeKind::NotStarted => "was not started",
        }
        .to_owned(),
        MaybeKnown::Unknown(kind) => format!("ended ({})", escape(kind)),
    };
    match (outcome.exit_code, outcome.signal) {
        (Some(code), _) if code != 0 => text += &format!(", exit code {code}"),
        (None, Some(signal)) => text += &format!(", signal {signal}"),
        _ => {}
    }
    if outcome.oom_killed {
        text += ", out of memory";
    }
    if outcome.ran_ms > 0 {
        text += &format!(", after {}", coarse(outcome.ran_ms));
    }
    if let Some(message) = &outcome.message {
        text += &format!(": {}", escape(message));
    }
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{EventOutput, Revision, describe, line};
    use podmesh_protocol::access::{Role, TokenId};
    use podmesh_protocol::event::EventFact;
    use podmesh_protocol::facts::RawFields;
    use podmesh_protocol::ids::{AttemptId, JobId, Name};
    use podmesh_protocol::report::Outcome;

    #[test]
    fn an_event_of_a_later_version_is_shown_with_its_fields() {
        let fields = RawFields(rmpv::Value::from(vec![rmpv::Value::from("web\u{1b}"), 7.into()]));
        let fact = EventFact::Unknown { kind: "service_moved".into(), fields };
        assert_eq!(
            describe(&fact),
            r#"service_moved (not known to this version): ["web\u001b",7]"#
        );
        let json = serde_json::to_value(EventOutput::new(Revision(9), 0, &fact)).unwrap();
        assert_eq!(json["event"], "service_moved");
        assert_eq!(json["fields"], serde_json::json!(["web\u{1b}", 7]));
    }

    #[test]
    fn events_about_access_name_who_and_why() {
        let (name, by): (Name, Name) = ("a".parse().unwrap(), "root".parse().unwrap());
        let token = TokenId(3);
        let cases = [
            (
                EventFact::TokenCreated { token, role: Role::Viewer.into(), by: by.clone() },
                "join token 3 for the role viewer created by root",
            ),
            (EventFact::TokenRevoked { token, by: by.clone() }, "join token 3 revoked by root"),
            (
                EventFact::Enrolled { role: Role::Agent.into(), name: name.clone(), token },
                "agent a joined with token 3",
            ),
            (
                EventFact::KeyRevoked { role: Role::Admin.into(), name, by: by.clone() },
                "admin a revoked by root",
            ),
            (
                EventFact::JobsForgotten { first: JobId(1), last: JobId(9), count: 7, by },
                "7 jobs from 1 to 9 were removed by root",
            ),
            (
                EventFact::JoinsRefused { message: "\u{1b}".into(), count: 2 },
                "2 joins refused: \\u{1b}",
            ),
            (
                EventFact::ConnectionsRefused { message: "\u{1b}".into(), count: 1 },
                "1 connection refused or cut off: \\u{1b}",
            ),
        ];
        for (fact, text) in &cases {
            assert_eq!(describe(fact), *text);
        }
        let json = serde_json::to_value(EventOutput::new(Revision(9), 0, &cases[3].0)).unwrap();
        assert_eq!(json["event"], "key_revoked");
        assert_eq!((&json["role"], &json["name"]), (&"admin".into(), &"a".into()));
        assert_eq!(json["by"], "root");
    }

    #[test]
    fn an_ended_attempt_is_described_for_people_and_programs() {
        let mut outcome = Outcome::exited(3).with_message("a\u{1b}[0m");
        outcome.ran_ms = 1_250;
        let fact = EventFact::AttemptEnded {
            attempt: AttemptId::new(JobId(42), 7, 2),
            outcome: outcome.into(),
            retry_after_ms: Some(2_000),
        };
        let text = line(Revision(9), "12:00:00.000", &fact);
        assert!(
            text.contains("42.7#2 failed, exit code 3, after 1.2s: a\\u{1b}[0m; retry in 2.0s"),
            "{text}"
        );

        let json = serde_json::to_value(EventOutput::new(Revision(9), 0, &fact)).unwrap();
        assert_eq!(json["event"], "attempt_ended");
        assert_eq!((&json["revision"], &json["job"]), (&9.into(), &42.into()));
        assert_eq!(json["attempt"], "42.7#2");
        assert_eq!(json["outcome"]["exit_code"], 3);
        assert_eq!(json["at"], "1970-01-01T00:00:00Z");
    }
}
