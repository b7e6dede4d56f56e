//! Settings of the core.

/// Settings that stay the same for the life of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// How many milliseconds a shutdown waits for the manager's acknowledgements, once every
    /// attempt that has to end has ended.
    pub goodbye_wait_ms: u64,
    /// Whether processes keep running when the daemon ends, as containers do, because they have a
    /// supervisor.
    pub processes_outlive: bool,
}
