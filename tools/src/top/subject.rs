//! What a page shows, and what is asked for it.

use podmesh_protocol::client::JobDetail;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, JobId, Name, TaskId};
use podmesh_protocol::report::TaskState;
use podmesh_protocol::schedule::{ScheduleDetail, ScheduleRunView};
use podmesh_protocol::service::ServiceDetail;

use super::row::Row;

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Nodes,
    Jobs,
    Services,
    Events,
    Volumes,
    Schedules,
    Workflows,
    Queues,
    /// The tasks of a job.
    Tasks(JobId),
    /// The attempts of a task.
    Attempts(TaskId),
    /// The replicas of a service.
    Replicas(Name),
    /// The runs of a schedule.
    Runs(Name),
    /// The jobs of a workflow.
    WorkflowJobs(JobId),
    /// One thing in detail.
    About(About),
    Log(Source),
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum About {
    Node(Name),
    Job(JobId),
    Task(TaskId),
    Service(Name),
    Volume(Name),
    Schedule(Name),
    Workflow(JobId),
    Queue(Name),
}

/// Whose output is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A job of one task.
    Job(JobId),
    Task(TaskId),
    /// An attempt, and its node.
    Attempt(AttemptId, Name),
    Service(Name),
    Replica(Name, u32),
}

impl Source {
    /// Returns the argument of `podmesh logs`.
    pub(super) fn argument(&self) -> String {
        match self {
            Self::Job(job) => job.to_string(),
            Self::Task(task) => task.to_string(),
            Self::Attempt(attempt, _) => format!("'{attempt}'"),
            Self::Service(service) => service.to_string(),
            Self::Replica(service, number) => format!("{service}.{number}"),
        }
    }
}

/// Which part of a long list is asked for. A position is the number of a job or workflow, or a
/// task's index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum At {
    /// The begin of the list.
    #[default]
    Start,
    /// The rows from this one on.
    From(u64),
    /// The rows before this one.
    Before(u64),
    /// The end of the list.
    End,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Nodes,
    /// A part of the list of jobs.
    Jobs {
        at: At,
        active: bool,
        filter: String,
    },
    Services,
    Volumes,
    Schedules,
    /// A part of the list of workflows.
    Workflows {
        at: At,
        filter: String,
    },
    Queues,
    /// A part of the list of a job's tasks.
    Tasks {
        job: JobId,
        at: At,
        state: Option<TaskState>,
        filter: String,
    },
    Attempts(TaskId),
    Service(Name),
    /// A schedule, and its last runs.
    Runs(Name),
    WorkflowJobs(JobId),
    Job(JobId),
    About(About),
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A whole list.
    Rows(Vec<Row>),
    /// A part of a list.
    Part(Part),
    Service(Box<ServiceDetail>),
    Runs(Box<ScheduleDetail>, Vec<ScheduleRunView>),
    Job(Box<JobDetail>),
    Text(String),
}

/// A part of a long list.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) rows: Vec<Row>,
    /// Where the part begins, for the next time that it is asked for.
    pub(super) at: At,
    /// Where the list goes on.
    pub(super) next: Option<u64>,
}

impl Query {
    /// Returns whether an event may change the answer.
    pub(super) fn is_changed_by(&self, fact: &EventFact) -> bool {
        let of_node = matches!(
            fact,
            EventFact::NodeConnected { .. }
                | EventFact::NodeSuspect { .. }
                | EventFact::NodeRecovered { .. }
                | EventFact::NodeLost { .. }
                | EventFact::NodeForgotten { .. }
                | EventFact::NodeScheduled { .. }
                | EventFact::NodeDrained { .. }
                | EventFact::NodeLabelled { .. }
                | EventFact::NodeMaintenance { .. }
                | EventFact::RuntimeWithdrawn { .. }
                | EventFact::RuntimeOffered { .. }
                | EventFact::KeyRevoked { .. }
        );
        let of_attempt = matches!(
            fact,
            EventFact::AttemptAssigned { .. }
                | EventFact::AttemptPreparing { .. }
                | EventFact::AttemptStarted { .. }
                | EventFact::AttemptEnded { .. }
                | EventFact::ReplicaListening { .. }
                | EventFact::ReplicaHealth { .. }
        );
        let of_job = matches!(
            fact,
            EventFact::JobSubmitted { .. }
                | EventFact::WorkflowSubmitted { .. }
                | EventFact::JobCancelRequested { .. }
                | EventFact::JobEnded { .. }
                | EventFact::JobEndedEarly { .. }
                | EventFact::JobRequeued { .. }
                | EventFact::JobsForgotten { .. }
        );
        let of_service = matches!(
            fact,
            EventFact::ServiceApplied { .. }
                | EventFact::ServiceChanged { .. }
                | EventFact::ServiceRemoved { .. }
                | EventFact::ServiceUpdated { .. }
                | EventFact::ServiceUpdateFailed { .. }
        );
        let of_volume =
            matches!(fact, EventFact::VolumesPlaced { .. } | EventFact::VolumeRemoved { .. });
        let of_schedule = matches!(
            fact,
            EventFact::ScheduleAdded { .. }
                | EventFact::ScheduleChanged { .. }
                | EventFact::ScheduleRemoved { .. }
                | EventFact::ScheduleRan { .. }
                | EventFact::ScheduleSkipped { .. }
                | EventFact::ScheduleMissed { .. }
        );
        let of_queue =
            matches!(fact, EventFact::QueueChanged { .. } | EventFact::QueueRemoved { .. });
        // What a later version reports may concern anything.
        if matches!(fact, EventFact::Unknown { .. }) {
            return true;
        }
        match self {
            Self::Nodes | Self::About(About::Node(_)) => of_node || of_attempt,
            Self::Jobs { .. } => of_job || of_attempt,
            Self::Tasks { job, .. } => fact.job() == Some(*job),
            Self::Attempts(task) | Self::About(About::Task(task)) => fact.job() == Some(task.job),
            // Why a job waits depends on the nodes, the queues and all other jobs.
            Self::Job(_) | Self::About(About::Job(_)) => {
                of_node || of_job || of_attempt || of_queue
            }
            Self::Services | Self::Service(_) | Self::About(About::Service(_)) => {
                of_service || of_attempt || of_node
            }
            Self::Volumes | Self::About(About::Volume(_)) => of_volume || of_job || of_service,
            Self::Schedules | Self::Runs(_) | Self::About(About::Schedule(_)) => {
                of_schedule || of_job
            }
            Self::Workflows { .. } | Self::WorkflowJobs(_) | Self::About(About::Workflow(_)) => {
                of_job || of_attempt
            }
            Self::Queues | Self::About(About::Queue(_)) => of_queue || of_job || of_attempt,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::report::JobState;

    use super::*;

    #[test]
    fn an_event_changes_the_answers_about_its_subject() {
        let node: Name = "a".parse().unwrap();
        let attempt = AttemptId::new(JobId(7), 1, 1);
        let jobs = Query::Jobs { at: At::Start, active: false, filter: String::new() };
        let tasks = |job| Query::Tasks {
            job: JobId(job),
            at: At::Start,
            state: None,
            filter: String::new(),
        };
        let workflows = Query::Workflows { at: At::Start, filter: String::new() };
        let queries = [
            Query::Nodes,
            jobs,
            tasks(7),
            tasks(8),
            Query::Services,
            Query::Volumes,
            Query::Schedules,
            workflows,
            Query::Queues,
        ];
        let cases = [
            (EventFact::JobEnded { job: JobId(7), state: JobState::Failed.into() }, "jt7vcwq"),
            (EventFact::AttemptAssigned { attempt, node: node.clone() }, "njt7swq"),
            (EventFact::NodeLost { node: node.clone() }, "ns"),
            (EventFact::ServiceRemoved { service: node.clone() }, "sv"),
            (EventFact::ScheduleRemoved { schedule: node.clone(), by: node.clone() }, "c"),
            (EventFact::QueueRemoved { queue: node.clone(), by: node.clone() }, "q"),
            (EventFact::VolumesPlaced { volumes: vec![node.clone()], node: node.clone() }, "v"),
            (EventFact::TokenRevoked { token: podmesh_protocol::access::TokenId(1), by: node }, ""),
        ];
        for (fact, expected) in cases {
            let changed = queries.iter().zip(["n", "j", "t7", "t8", "s", "v", "c", "w", "q"]);
            let changed: String = changed
                .filter(|(query, _)| query.is_changed_by(&fact))
                .map(|(_, letters)| letters)
                .collect();
            assert_eq!(changed, expected, "{fact:?}");
        }
    }
}
