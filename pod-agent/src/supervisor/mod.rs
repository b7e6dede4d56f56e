//! The supervisor: a process that holds the processes of a node, their pipes and their logs. It
//! keeps running when the agent ends, is killed, or is replaced by another version.
//!
//! Each agent's data directory has one supervisor. The agent starts it (`link.rs`), and asks it
//! over a socket in `<data>/run/` (`messages.rs`; `companion/` has the rest) to start, stop and
//! remove attempts. The supervisor reports how they end. It (`server.rs`) contains the runtime in
//! `process/` and a table of what it holds (`table.rs`). Its parent, the keeper (`keeper.rs`),
//! kills what it leaves when it dies.
//!
//! It tells every agent that connects what it holds. It also writes ends next to the attempt's work
//! folder, so that an idle supervisor can exit, and a killed one loses no end that it reported.

mod connect;
mod error;
mod keeper;
mod link;
mod messages;
mod server;
mod table;
#[cfg(test)]
mod tests;

use nix::sys::signal::{SigSet, Signal};

pub use self::error::SupervisorError;
pub use self::keeper::keep;
pub(crate) use self::link::{LinkSettings, ProcessChecks, Processes};
pub use self::server::supervise;

/// Blocks SIGCHLD in this thread and the threads that it starts, so that the ends of children do not
/// wake them: one thread waits for children. Started programs still receive the signal.
pub fn ignore_child_signals() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    // This fails only for an invalid argument.
    _ = signals.thread_block();
}
