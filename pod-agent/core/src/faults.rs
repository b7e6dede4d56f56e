//! Deliberate faults, which prove that the simulator finds real ones. They are compiled only with
//! the feature `planted-faults`, and have no effect unless one is planted.

/// A plausible mistake in this code.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A fenced attempt is forgotten and keeps running.
    FencedRunsOn,
    /// An attempt starts while the older one of its task is being killed.
    OlderNotAwaited,
    /// Attempts that still run when the agent starts are not adopted.
    NotAdopted,
}

/// Returns whether a fault is planted; `false` without the feature.
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
