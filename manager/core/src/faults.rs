//! Deliberate faults: they prove that the simulator finds what it is for. Without the feature
//! `planted-faults` nothing of this is there; with it, nothing happens unless one is planted.

/// A mistake that somebody could make here.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reports count whichever attempt of the task and whichever node they are of.
    AttemptsNotFenced,
    /// Reports count whatever their session.
    SessionsNotFenced,
    /// A task of a lost node is tried again without the margin after the lease.
    NoMargin,
    /// A lost node's tasks are tried again though they are to wait for it.
    WaitRequeued,
    /// A submission that comes again makes a job again.
    SubmissionTwice,
    /// An agent is not told to stop what it holds and should not.
    StraysKept,
    /// Starts that a node has not reacted to are not sent again in its next session.
    StartsForgotten,
    /// The epoch of a session is not written down.
    EpochNotSaved,
    /// What a task takes is not booked.
    RoomNotBooked,
    /// A report is acknowledged before it has come.
    AckedTooEarly,
    /// A manager that was stopped does not forgive the beats that it missed.
    StallNotForgiven,
    /// A hello that comes late counts.
    LateHelloCounts,
}

/// Whether a fault is planted; `false` where the feature is off.
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
