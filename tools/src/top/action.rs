//! What a user can change, each after a question.

use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::node::Scheduling;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Cancel(JobId),
    Scale(Name, u32),
    Restart(Name),
    Rollback(Name),
    Schedule(Name, Scheduling),
    /// Cancels all jobs of a workflow.
    CancelWorkflow(JobId),
    /// Pauses a schedule, or resumes it.
    PauseSchedule(Name, bool),
    /// Pauses a queue, or resumes it.
    PauseQueue(Name, bool),
}

impl Action {
    /// Returns the question to the user.
    pub(super) fn question(&self) -> String {
        match self {
            Self::Cancel(job) => {
                format!("Cancel job {job}? Queued tasks never start, running tasks are stopped.")
            }
            Self::Scale(service, replicas) => format!("Set {service} to {replicas} replicas?"),
            Self::Restart(service) => {
                format!("Restart {service}? New replicas replace all present ones.")
            }
            Self::Rollback(service) => format!("Set {service} back to the revision before?"),
            Self::Schedule(node, Scheduling::Open) => format!("Let {node} get new work again?"),
            Self::Schedule(node, Scheduling::Cordoned) => {
                format!("Cordon {node}? It gets no new work, and keeps what it has.")
            }
            Self::Schedule(node, Scheduling::Draining) => {
                format!("Drain {node}? It gets no new work, and its replicas move to other nodes.")
            }
            Self::CancelWorkflow(workflow) => {
                format!(
                    "Cancel workflow {workflow}? All its jobs that have not ended are cancelled."
                )
            }
            Self::PauseSchedule(name, true) => {
                format!("Pause schedule {name}? It starts no more runs. Those that run go on.")
            }
            Self::PauseSchedule(name, false) => {
                format!("Resume schedule {name}? It runs again at its next time.")
            }
            Self::PauseQueue(name, true) => {
                format!("Pause queue {name}? Its tasks no longer start. Those that run go on.")
            }
            Self::PauseQueue(name, false) => format!("Resume queue {name}? Its tasks start again."),
        }
    }

    /// Returns the command that does the same.
    pub(super) fn command(&self) -> String {
        match self {
            Self::Cancel(job) => format!("podmesh cancel {job}"),
            Self::Scale(service, replicas) => {
                format!("podmesh service scale {service} {replicas}")
            }
            Self::Restart(service) => format!("podmesh service restart {service}"),
            Self::Rollback(service) => format!("podmesh service rollback {service}"),
            Self::Schedule(node, scheduling) => {
                let verb = match scheduling {
                    Scheduling::Open => "uncordon",
                    Scheduling::Cordoned => "cordon",
                    Scheduling::Draining => "drain",
                };
                format!("podmesh nodes {verb} {node}")
            }
            Self::CancelWorkflow(workflow) => format!("podmesh workflow cancel {workflow}"),
            Self::PauseSchedule(name, pause) => format!("podmesh schedule {} {name}", verb(*pause)),
            Self::PauseQueue(name, pause) => format!("podmesh queue {} {name}", verb(*pause)),
        }
    }
}

fn verb(pause: bool) -> &'static str {
    if pause { "pause" } else { "resume" }
}
