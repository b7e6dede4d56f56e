//! The changes of the state.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Name, SubmissionId};
use podmesh_protocol::place::Claims;
use podmesh_protocol::report::{AttemptState, Outcome};
use podmesh_protocol::service::{RevisionState, ServiceSpec};
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use serde::{Deserialize, Serialize};

use super::{
    Closed, EndedTask, Job, JobRow, KeyRow, NodeRow, Progress, QueueRow, ReplicaStatus, Schedule,
    ScheduleProgress, ScheduleRunRow, Service, Stop, TokenRow, VolumeRow,
};

/// One durable change: [`State::apply`](crate::state::State::apply) says what it means, and the store
/// writes it as rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new job. Its [`Change::JobUpdated`] follows in the same step.
    JobInserted {
        /// Its number, which is the next one.
        job: JobId,
        /// The idempotency key. No two jobs have the same one.
        submission: SubmissionId,
        /// The submitted spec.
        spec: Arc<JobSpec>,
        /// Who submitted it.
        by: Name,
        /// The time, for display.
        wall_ms: u64,
    },
    /// The rest of a job was cancelled: its tasks without an attempt get none.
    JobClosed(JobId, Closed),
    /// A job that had ended goes on, because tasks of it are requeued. It has no attempts and no
    /// retries yet.
    JobReopened(Box<Job>),
    /// A task of a job that had ended waits for its next attempt. Its retries count anew.
    TaskRequeued {
        /// The job.
        job: JobId,
        /// The task.
        task: EndedTask,
    },
    /// The tasks of a job that have had no attempt, and were cancelled, wait again.
    RestRequeued {
        /// The job.
        job: JobId,
        /// The time from which on they may expire.
        wall_ms: u64,
    },
    /// A dependency of a job has come further, or waits again because its upstream job goes on.
    DependencyChanged {
        /// The job.
        job: JobId,
        /// The upstream job.
        upstream: JobId,
        /// How far it has come.
        progress: Progress,
        /// The time, if it was the last dependency that was not met: from then on the job's tasks may
        /// expire.
        starts_wall_ms: Option<u64>,
    },
    /// Tasks of an upstream job have succeeded, and those of the job with the same indexes may start.
    TasksReleased {
        /// The job.
        job: JobId,
        /// The upstream job, on which it depends index by index.
        upstream: JobId,
        /// The indexes.
        tasks: ArrayRange,
    },
    /// The row of a job after all other changes of the step to it. A step has at most one for each
    /// job. If its state is an end, the job has ended.
    JobUpdated(JobRow),
    /// A new attempt, in state `assigned`.
    AttemptInserted {
        /// The attempt.
        attempt: AttemptId,
        /// The node that it was assigned to.
        node: Name,
        /// The time, for display.
        wall_ms: u64,
        /// What it has of the node's named resources; `None` if it needs none.
        #[serde(default)]
        claims: Option<Box<Claims>>,
    },
    /// An attempt reached a later state, but has not ended.
    AttemptAdvanced {
        /// The attempt.
        attempt: AttemptId,
        /// `preparing` or `running`.
        state: AttemptState,
        /// The time at which the manager learned of it, for display.
        wall_ms: u64,
    },
    /// An attempt is to end although its job goes on.
    AttemptStopping {
        /// The attempt.
        attempt: AttemptId,
        /// What becomes of its task.
        stop: Stop,
    },
    /// An attempt ended. If no retry follows, the kind of its outcome decides the state of the
    /// task: succeeded, cancelled, or failed for every other kind.
    AttemptEnded {
        /// The attempt.
        attempt: AttemptId,
        /// The outcome.
        outcome: Outcome,
        /// The time at which the manager learned of it, for display.
        wall_ms: u64,
        /// Milliseconds until the task is tried again; `None` if the task has ended.
        retry_after_ms: Option<u64>,
    },
    /// A task that waited for a retry is not tried again because its job was cancelled.
    RetryDropped {
        /// The last attempt of the task.
        attempt: AttemptId,
    },
    /// The ports or the health of a replica's active attempt have changed.
    ReplicaChanged {
        /// The attempt.
        attempt: AttemptId,
        /// What is known now.
        status: ReplicaStatus,
    },
    /// A service, new or changed.
    ServiceSaved {
        /// Its name.
        service: Name,
        /// What is known now.
        saved: Arc<Service>,
    },
    /// A service was removed, with its history. It has no replicas left.
    ServiceRemoved(Name),
    /// A revision of a service, new or changed in a way that its replicas do not notice.
    RevisionSaved {
        /// The service.
        service: Name,
        /// The revision.
        revision: u32,
        /// The spec.
        spec: Arc<ServiceSpec>,
        /// Who asked for it.
        by: Name,
        /// The time, for display.
        wall_ms: u64,
    },
    /// A revision of a service was reached, or has failed.
    RevisionEnded {
        /// The service.
        service: Name,
        /// The revision.
        revision: u32,
        /// `reached` or `failed`.
        state: RevisionState,
        /// Why it failed.
        message: Option<String>,
    },
    /// A schedule, new or with another spec.
    ScheduleSaved {
        /// Its name.
        schedule: Name,
        /// What is known now.
        saved: Schedule,
    },
    /// A schedule has come further, or was paused or resumed. If a run has started, its
    /// [`Change::JobInserted`] is in the same step.
    ScheduleAdvanced {
        /// Its name.
        schedule: Name,
        /// How far it has come.
        progress: ScheduleProgress,
        /// What is added to its history: first the missed instants, then the last one.
        runs: Vec<ScheduleRunRow>,
    },
    /// A schedule was removed, with its history.
    ScheduleRemoved(Name),
    /// A queue, new or changed.
    QueueSaved {
        /// The queue.
        queue: Name,
        /// Its settings now.
        row: QueueRow,
    },
    /// A queue was removed. No job that has not ended is in it.
    QueueRemoved(Name),
    /// A named volume, new or changed.
    VolumeSaved {
        /// The volume.
        volume: Name,
        /// What is known now.
        row: VolumeRow,
    },
    /// A named volume was removed.
    VolumeRemoved(Name),
    /// A node, new or updated, as of its last session.
    NodeSaved(Arc<NodeRow>),
    /// A node was forgotten. It had no attempts left.
    NodeForgotten(Name),
    /// A session was given this epoch. Later sessions get higher ones, also after a restart.
    EpochTaken(Epoch),
    /// A join token, new or updated.
    TokenSaved(TokenRow),
    /// A join token that could no longer be used was removed. Its number is not used again.
    TokenRemoved(TokenId),
    /// A key, new or updated.
    KeySaved(KeyRow),
    /// A key was removed.
    KeyRemoved(PublicKey),
    /// An ended job was removed with its attempts, or had been removed before. Its number is not
    /// used again.
    JobRemoved(JobId),
    /// The time of the [age clock](crate::input::Input::RetentionDue), in milliseconds.
    AgeSaved(u64),
}
