//! Events, as a line for people and as JSON.

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Revision};
use podmesh_protocol::report::{self, OutcomeKind};
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Role;
use super::json::{JobState, OutcomeRow, RuntimeKind, Word};
use super::text::{count, escape};
use super::time::{coarse, local_clock, rfc3339};

/// A line of `podmesh events --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EventOutput {
    /// The event's number: 1, 2, 3 … without a gap, in the order of commit.
    revision: u64,
    /// When it was committed, by the manager's clock: RFC 3339.
    at: String,
    /// What happened; readers skip an `event` that they do not know.
    #[serde(flatten)]
    event: EventBody,
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
        /// How many tasks it has.
        tasks: u32,
    },
    /// A user asked to cancel a job.
    JobCancelRequested {
        /// The job's number.
        job: u64,
    },
    /// Nothing more will happen to a job.
    JobEnded {
        /// The job's number.
        job: u64,
        /// How it ended.
        state: JobState,
    },
    /// An attempt was given to a node.
    AttemptAssigned {
        /// Of which job.
        job: u64,
        /// Of which task, such as `42.7`.
        task: String,
        /// The attempt, such as `42.7#2`.
        attempt: String,
        /// To which node.
        node: String,
    },
    /// The node says what it does before the start.
    AttemptPreparing {
        /// Of which job.
        job: u64,
        /// Of which task.
        task: String,
        /// The attempt.
        attempt: String,
        /// What it does.
        message: String,
    },
    /// An attempt runs.
    AttemptStarted {
        /// Of which job.
        job: u64,
        /// Of which task.
        task: String,
        /// The attempt.
        attempt: String,
    },
    /// An attempt is over.
    AttemptEnded {
        /// Of which job.
        job: u64,
        /// Of which task.
        task: String,
        /// The attempt.
        attempt: String,
        /// How it ended.
        outcome: OutcomeRow,
        /// After how long the task is tried again, where it is.
        retry_in_ms: Option<u64>,
    },
    /// Output of an attempt was lost.
    LogGap {
        /// Of which job.
        job: u64,
        /// Of which task.
        task: String,
        /// The attempt.
        attempt: String,
        /// What is known of it.
        message: String,
    },
    /// A node has a session.
    NodeConnected {
        /// Its name.
        node: String,
        /// The life of its agent process.
        instance: String,
    },
    /// A node's session ended or its heartbeat is late.
    NodeSuspect {
        /// Its name.
        node: String,
        /// Why.
        message: String,
    },
    /// A suspect node's heartbeat is back.
    NodeRecovered {
        /// Its name.
        node: String,
    },
    /// A node's lease ended.
    NodeLost {
        /// Its name.
        node: String,
    },
    /// A join token was made.
    TokenCreated {
        /// Its number.
        token: u64,
        /// What whoever joins with it may do.
        role: Role,
        /// Who asked for it.
        by: String,
    },
    /// A join token was revoked.
    TokenRevoked {
        /// Its number.
        token: u64,
        /// By whom.
        by: String,
    },
    /// A machine or user joined.
    Enrolled {
        /// What they may do.
        role: Role,
        /// What they are called.
        name: String,
        /// The number of the token.
        token: u64,
    },
    /// The key of a machine or user was revoked.
    KeyRevoked {
        /// What they could do.
        role: Role,
        /// What they are called.
        name: String,
        /// By whom.
        by: String,
    },
    /// A key took the place of another one of the same owner.
    KeyRenewed {
        /// What its owner may do.
        role: Role,
        /// What they are called.
        name: String,
    },
    /// The manager has another key.
    ManagerKeyRotated {
        /// Its digest.
        key: String,
        /// Who asked for it.
        by: String,
    },
    /// Somebody could not join.
    JoinsRefused {
        /// Why, for the last one.
        message: String,
        /// How many, since this was last told.
        count: u32,
    },
    /// Connections were not let in, or cut off.
    ConnectionsRefused {
        /// Why, for the last one.
        message: String,
        /// How many, since this was last told.
        count: u32,
    },
    /// A node cannot start a runtime's work now.
    RuntimeWithdrawn {
        /// Which node.
        node: String,
        /// What it cannot start.
        runtime: RuntimeKind,
        /// Why.
        message: String,
    },
    /// A node can start a runtime's work again.
    RuntimeOffered {
        /// Which node.
        node: String,
        /// What it can start.
        runtime: RuntimeKind,
    },
}

impl EventOutput {
    pub(crate) fn new(revision: Revision, wall_ms: u64, fact: &EventFact) -> Self {
        Self { revision: revision.0, at: rfc3339(wall_ms), event: fact.into() }
    }
}

impl From<&EventFact> for EventBody {
    fn from(fact: &EventFact) -> Self {
        let ids = |id: &AttemptId| (id.task.job.0, id.task.to_string(), id.to_string());
        match fact {
            EventFact::JobSubmitted(job, name, tasks) => {
                Self::JobSubmitted { job: job.0, name: name.to_string(), tasks: *tasks }
            }
            EventFact::JobCancelRequested(job) => Self::JobCancelRequested { job: job.0 },
            EventFact::JobEnded(job, state) => {
                Self::JobEnded { job: job.0, state: (*state).into() }
            }
            EventFact::AttemptAssigned(id, node) => {
                let (job, task, attempt) = ids(id);
                Self::AttemptAssigned { job, task, attempt, node: node.to_string() }
            }
            EventFact::AttemptPreparing(id, message) => {
                let (job, task, attempt) = ids(id);
                Self::AttemptPreparing { job, task, attempt, message: message.clone() }
            }
            EventFact::AttemptStarted(id) => {
                let (job, task, attempt) = ids(id);
                Self::AttemptStarted { job, task, attempt }
            }
            EventFact::AttemptEnded(id, outcome, retry_in_ms) => {
                let (job, task, attempt) = ids(id);
                let retry_in_ms = *retry_in_ms;
                Self::AttemptEnded { job, task, attempt, outcome: outcome.into(), retry_in_ms }
            }
            EventFact::LogGap(id, message) => {
                let (job, task, attempt) = ids(id);
                Self::LogGap { job, task, attempt, message: message.clone() }
            }
            EventFact::NodeConnected(node, instance) => {
                Self::NodeConnected { node: node.to_string(), instance: instance.to_string() }
            }
            EventFact::NodeSuspect(node, message) => {
                Self::NodeSuspect { node: node.to_string(), message: message.clone() }
            }
            EventFact::NodeRecovered(node) => Self::NodeRecovered { node: node.to_string() },
            EventFact::NodeLost(node) => Self::NodeLost { node: node.to_string() },
            EventFact::RuntimeWithdrawn(node, runtime, message) => Self::RuntimeWithdrawn {
                node: node.to_string(),
                runtime: (*runtime).into(),
                message: message.clone(),
            },
            EventFact::RuntimeOffered(node, runtime) => {
                Self::RuntimeOffered { node: node.to_string(), runtime: (*runtime).into() }
            }
            EventFact::TokenCreated(id, role, by) => {
                Self::TokenCreated { token: id.0, role: (*role).into(), by: by.to_string() }
            }
            EventFact::TokenRevoked(id, by) => {
                Self::TokenRevoked { token: id.0, by: by.to_string() }
            }
            EventFact::Enrolled(role, name, id) => {
                Self::Enrolled { role: (*role).into(), name: name.to_string(), token: id.0 }
            }
            EventFact::KeyRevoked(role, name, by) => {
                let (name, by) = (name.to_string(), by.to_string());
                Self::KeyRevoked { role: (*role).into(), name, by }
            }
            EventFact::KeyRenewed(role, name) => {
                Self::KeyRenewed { role: (*role).into(), name: name.to_string() }
            }
            EventFact::ManagerKeyRotated(key, by) => {
                Self::ManagerKeyRotated { key: key.clone(), by: by.to_string() }
            }
            EventFact::JoinsRefused(message, count) => {
                Self::JoinsRefused { message: message.clone(), count: *count }
            }
            EventFact::ConnectionsRefused(message, count) => {
                Self::ConnectionsRefused { message: message.clone(), count: *count }
            }
        }
    }
}

/// The event as a line for people: revision, time, what happened.
pub(crate) fn line(revision: Revision, wall_ms: u64, fact: &EventFact) -> String {
    format!("{:>7}  {}  {}", revision.0, local_clock(wall_ms), describe(fact))
}

fn describe(fact: &EventFact) -> String {
    match fact {
        EventFact::JobSubmitted(job, name, tasks) => {
            format!("job {job} ({name}) submitted, {}", count(u64::from(*tasks), "task"))
        }
        EventFact::JobCancelRequested(job) => format!("job {job} is being cancelled"),
        EventFact::JobEnded(job, state) => {
            format!("job {job} ended: {}", JobState::from(*state).word())
        }
        EventFact::AttemptAssigned(id, node) => format!("{id} assigned to {node}"),
        EventFact::AttemptPreparing(id, message) => format!("{id} prepares: {}", escape(message)),
        EventFact::AttemptStarted(id) => format!("{id} started"),
        EventFact::AttemptEnded(id, outcome, retry) => {
            let retry = retry.map(|ms| format!("; retry in {}", coarse(ms)));
            format!("{id} {}{}", outcome_text(outcome), retry.unwrap_or_default())
        }
        EventFact::LogGap(id, message) => format!("{id} lost output: {}", escape(message)),
        EventFact::NodeConnected(node, _) => format!("node {node} connected"),
        EventFact::NodeSuspect(node, why) => format!("node {node} is suspect: {}", escape(why)),
        EventFact::NodeRecovered(node) => format!("node {node} recovered"),
        EventFact::NodeLost(node) => format!("node {node} is lost"),
        EventFact::TokenCreated(id, role, by) => {
            format!("join token {id} for the role {role} created by {by}")
        }
        EventFact::TokenRevoked(id, by) => format!("join token {id} revoked by {by}"),
        EventFact::Enrolled(role, name, id) => format!("{role} {name} joined with token {id}"),
        EventFact::KeyRevoked(role, name, by) => format!("{role} {name} revoked by {by}"),
        EventFact::KeyRenewed(role, name) => format!("{role} {name} has a new key"),
        EventFact::ManagerKeyRotated(key, by) => {
            format!("the manager's key was rotated by {by}: it is {} now", escape(key))
        }
        EventFact::RuntimeWithdrawn(node, runtime, why) => {
            format!("node {node} takes no work for {runtime}: {}", escape(why))
        }
        EventFact::RuntimeOffered(node, runtime) => {
            format!("node {node} takes work for {runtime} again")
        }
        EventFact::JoinsRefused(why, number) => {
            format!("{} refused: {}", count(u64::from(*number), "join"), escape(why))
        }
        EventFact::ConnectionsRefused(why, number) => {
            let number = count(u64::from(*number), "connection");
            format!("{number} refused or cut off: {}", escape(why))
        }
    }
}

/// How an attempt ended, for people: `failed, exit code 3, after 1.2s: …`.
pub(crate) fn outcome_text(outcome: &report::Outcome) -> String {
    let mut text = match outcome.kind {
        OutcomeKind::Succeeded => "succeeded",
        OutcomeKind::Failed => "failed",
        OutcomeKind::Cancelled => "was cancelled",
        OutcomeKind::TimedOut => "timed out",
        OutcomeKind::Lost => "was lost",
        OutcomeKind::NotStarted => "was not started",
    }
    .to_owned();
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
    use podmesh_protocol::ids::{AttemptId, JobId, Name};
    use podmesh_protocol::report::Outcome;

    #[test]
    fn who_came_in_and_who_was_shut_out_is_told() {
        let (name, by): (Name, Name) = ("a".parse().unwrap(), "root".parse().unwrap());
        let token = TokenId(3);
        let cases = [
            (
                EventFact::TokenCreated(token, Role::Viewer, by.clone()),
                "join token 3 for the role viewer created by root",
            ),
            (EventFact::TokenRevoked(token, by.clone()), "join token 3 revoked by root"),
            (EventFact::Enrolled(Role::Agent, name.clone(), token), "agent a joined with token 3"),
            (EventFact::KeyRevoked(Role::Admin, name, by), "admin a revoked by root"),
            (EventFact::JoinsRefused("\u{1b}".into(), 2), "2 joins refused: \\u{1b}"),
            (
                EventFact::ConnectionsRefused("\u{1b}".into(), 1),
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
    fn an_ended_attempt_says_how_for_people_and_programs() {
        let mut outcome = Outcome::exited(3).with_message("a\u{1b}[0m");
        outcome.ran_ms = 1_250;
        let fact = EventFact::AttemptEnded(AttemptId::new(JobId(42), 7, 2), outcome, Some(2_000));
        let text = line(Revision(9), 0, &fact);
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
