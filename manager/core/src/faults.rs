//! Deliberate faults, which prove that the simulator finds such mistakes. They exist only with the
//! feature `planted-faults`, and have no effect until one is planted.

/// A deliberate mistake in the core.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reports are accepted for any attempt of the task, from any node.
    AttemptsNotFenced,
    /// Reports are accepted from any session.
    SessionsNotFenced,
    /// A task of a lost node is tried again without waiting for the margin after the lease.
    NoMargin,
    /// Tasks of a lost node are tried again although they must wait for it.
    WaitRequeued,
    /// A repeated submission creates a second job.
    SubmissionTwice,
    /// An agent is not told to stop attempts that it should not hold.
    StraysKept,
    /// Starts that a node has not reacted to are not repeated in its next session.
    StartsForgotten,
    /// The cores of a task are not subtracted from the free ones of its node.
    RoomNotBooked,
    /// A manager that was paused counts the beats that it could not receive as missing.
    StallNotForgiven,
    /// A delayed hello takes effect.
    LateHelloCounts,
    /// A name is given to any agent that asks for it while its owner is away.
    NamesNotKept,
    /// Jobs that have not ended are removed.
    ActiveJobRemoved,
    /// Tasks that wait or run are requeued.
    ActiveTaskRequeued,
    /// A job goes on although too many of its tasks have failed.
    FailuresNotLimited,
    /// A queue that is paused starts tasks.
    PauseIgnored,
    /// A job gets tasks until there is no room, whatever the limits of its queue and whose turn it is.
    TurnsIgnored,
    /// The end of an attempt is not counted in its queue.
    QueueEndNotCounted,
    /// Attempts are stopped for a job that waits although they are not preemptible.
    PreemptsAny,
    /// A task whose node is drained uses a retry although it should run again.
    StopUsesRetry,
    /// What a task gets of named resources is not taken from its node.
    ClaimsNotBooked,
    /// A replica that has its node for itself starts on a node that runs something.
    ExclusiveIgnored,
    /// A task starts although a maintenance of its node begins before it must be over.
    MaintenanceIgnored,
    /// A job starts although jobs that it waits for have not ended.
    UpstreamIgnored,
    /// A job whose upstream job failed starts as after a success.
    FailureIsSuccess,
    /// All tasks of a job start when the first task of its upstream job has succeeded.
    EachIsAny,
    /// A job does not learn that a job it waits for has ended.
    EndNotPassedOn,
    /// A job does not go on to wait for an upstream job that is requeued.
    NotWaitedAgain,
    /// A replica is stopped while proxies may still pass connections to it.
    ProxiesNotAwaited,
    /// A replica is stopped before its connections have had their time to end.
    DrainNotAwaited,
    /// An update starts all new replicas at once.
    SurgeNotLimited,
    /// An update stops replicas that must stay healthy.
    MinHealthyIgnored,
    /// A replica on a node that does not answer counts as serving.
    LostNodeServes,
}

/// Returns whether a fault is planted; `false` if the feature is off.
macro_rules! planted {
    ($holder:expr, $fault:ident) => {{
        #[cfg(feature = "planted-faults")]
        let planted = $holder.fault == Some($crate::faults::Fault::$fault);
        #[cfg(not(feature = "planted-faults"))]
        let planted = false;
        planted
    }};
}
pub(crate) use planted;
