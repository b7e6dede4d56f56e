//! Events, as a line for people.

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Revision;
use podmesh_protocol::report;
pub(crate) use podmesh_views::events::EventOutput;
use podmesh_views::events::fields_json;

use super::json::{JobState, Word};
use super::service::{Health, Scheduling};
use super::text::{count, escape};
use super::time::{coarse, local};

/// Formats an event as a line for people: revision, time of day, description.
pub(crate) fn line(revision: Revision, clock: &str, fact: &EventFact) -> String {
    format!("{:>7}  {clock}  {}", revision.0, describe(fact))
}

pub(crate) fn describe(fact: &EventFact) -> String {
    match fact {
        EventFact::JobSubmitted { job, name, tasks } => {
            format!("job {job} ({name}) submitted, {}", count(u64::from(*tasks), "task"))
        }
        EventFact::WorkflowSubmitted { workflow, name, jobs } => {
            let last = workflow.0 + u64::from(*jobs).saturating_sub(1);
            format!("workflow {workflow} ({name}) submitted, jobs {workflow} to {last}")
        }
        EventFact::JobCancelRequested { job } => format!("job {job} is being cancelled"),
        EventFact::Unknown { kind, fields } => {
            format!(
                "{} (not known to this version): {}",
                escape(kind),
                escape(&fields_json(fields).to_string())
            )
        }
        EventFact::JobEnded { job, state } => {
            format!("job {job} ended: {}", JobState::from(state).word())
        }
        EventFact::JobEndedEarly { job, message } => format!("job {job}: {}", escape(message)),
        EventFact::JobRequeued { job, tasks, by } => {
            format!("job {job}: {} requeued by {by}", count((*tasks).into(), "task"))
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
        EventFact::ApiTokenCreated { token: id, role, by } => {
            format!("API token {id} for the role {role} created by {by}")
        }
        EventFact::TokenRevoked { token: id, by } => format!("token {id} revoked by {by}"),
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
            let health = Health::from(health).word();
            format!("{id} ({}) is {health}: {}", escape(replica), escape(message))
        }
        EventFact::NodeScheduled { node, scheduling, by } => {
            let now = match Scheduling::from(scheduling) {
                Scheduling::Open => "takes work again".into(),
                Scheduling::Cordoned => "takes no more work".into(),
                Scheduling::Draining => "is being drained".into(),
                other @ Scheduling::Unknown(_) => format!("is {}", other.word()),
            };
            format!("node {node} {now}, by {by}")
        }
        EventFact::NodeDrained { node } => format!("node {node} is drained"),
        EventFact::NodeMaintenance { node, message, by } => {
            format!("maintenance of node {node}, planned by {by}: {}", escape(message))
        }
        EventFact::NodeLabelled { node, labels, by } => {
            format!("node {node} was labelled {} by {by}", escape(&labels.join(" ")))
        }
        EventFact::AttemptStopping { attempt, message } => {
            format!("{attempt} is stopped: {}", escape(message))
        }
        EventFact::VolumesPlaced { volumes, node } => {
            let volumes: Vec<String> = volumes.iter().map(ToString::to_string).collect();
            format!("node {node} has the new volumes {}", volumes.join(", "))
        }
        EventFact::VolumeRemoved { volume, node, by } => {
            format!("volume {volume} of node {node} was removed by {by}")
        }
        EventFact::ScheduleAdded { schedule, by } => format!("schedule {schedule} added by {by}"),
        EventFact::ScheduleChanged { schedule, message, by } => {
            format!("schedule {schedule} {} by {by}", escape(message))
        }
        EventFact::ScheduleRemoved { schedule, by } => {
            format!("schedule {schedule} removed by {by}")
        }
        EventFact::QueueChanged { queue, message, by } => {
            format!("queue {queue} changed by {by}: {}", escape(message))
        }
        EventFact::QueueRemoved { queue, by } => format!("queue {queue} removed by {by}"),
        EventFact::DeadLetterSubmitted { attempt, queue, dead_letter } => {
            format!("{attempt} has failed for good: dead-letter job {dead_letter} of queue {queue}")
        }
        EventFact::DeadLetterSkipped { attempt, queue, message } => {
            let why = escape(message);
            format!(
                "{attempt} has failed for good without a dead-letter job of queue {queue}: {why}"
            )
        }
        EventFact::ScheduleRan { schedule, instant_ms, job } => {
            format!("schedule {schedule} ran for {}: job {job}", local(*instant_ms))
        }
        EventFact::ScheduleSkipped { schedule, instant_ms, message } => {
            let at = local(*instant_ms);
            format!("schedule {schedule} skipped its run for {at}: {}", escape(message))
        }
        EventFact::ScheduleMissed { schedule, instant_ms, count: number } => {
            let runs = count(u64::from(*number), "run");
            format!("schedule {schedule} missed {runs}, the last one for {}", local(*instant_ms))
        }
    }
}

/// Describes how an attempt ended, for people: `failed, exit code 3, after 1.2s: …`.
pub(crate) fn outcome_text(outcome: &report::ShownOutcome) -> String {
    let mut text = escape(&outcome.summary());
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
            (EventFact::TokenRevoked { token, by: by.clone() }, "token 3 revoked by root"),
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
