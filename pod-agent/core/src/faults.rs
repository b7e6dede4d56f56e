//! Deliberate faults: they prove that the simulator finds what it is for. Without the feature
//! `planted-faults` nothing of this is there; with it, nothing happens unless one is planted.

/// A mistake that somebody could make here.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was sent and is not acknowledged is lost with the session.
    OutboxLost,
    /// What runs goes on when the lease has ended.
    LeaseIgnored,
    /// What no longer counts is forgotten, and runs on.
    FencedRunsOn,
    /// An attempt starts while the older one of its task is being killed.
    OlderNotAwaited,
    /// What goes on from an earlier life is not taken up.
    NotAdopted,
    /// The end of an attempt is forgotten when it is sent, not when it is acknowledged.
    ForgottenWhenSent,
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
