//! The supervisor: a process that holds the processes of a node, their pipes and their logs. It
//! keeps running when the agent ends, is killed, or is replaced by another version.
//!
//! Each agent's data directory has one supervisor. The agent starts it (`link.rs`), and asks it
//! over a socket in `<data>/run/` (`run_dir.rs`, `messages.rs`, `frames.rs`) to start, stop and
//! remove attempts. The supervisor reports how they end. It (`server.rs`) contains the runtime in
//! `process/` and a table of what it holds (`table.rs`). Its parent, the keeper (`keeper.rs`),
//! kills what it leaves when it dies.
//!
//! It tells every agent that connects what it holds. It also writes ends next to the attempt's work
//! folder, so that an idle supervisor can exit, and a killed one loses no end that it reported.

mod connect;
mod error;
mod frames;
mod keeper;
mod link;
mod messages;
mod run_dir;
mod server;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};

pub use self::error::SupervisorError;
pub use self::keeper::keep;
pub(crate) use self::link::{LinkSettings, ProcessChecks, Processes};
pub use self::server::supervise;

/// The line that a supervisor prints when it accepts connections. Anything else is the reason why
/// it cannot start.
pub const READY: &str = "ready";

/// The command that starts this program as a supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisorCommand {
    /// The path of the program.
    pub program: PathBuf,
    /// The name that the program sees as its own (`argv[0]`).
    pub arg0: OsString,
    /// The arguments.
    pub args: Vec<OsString>,
}

/// Blocks SIGCHLD in this thread and the threads that it starts, so that the ends of children do not
/// wake them: one thread waits for children. Started programs still receive the signal.
pub fn ignore_child_signals() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    // This fails only for an invalid argument.
    _ = signals.thread_block();
}

impl From<&SupervisorCommand> for Command {
    fn from(command: &SupervisorCommand) -> Self {
        let mut made = Self::new(&command.program);
        // Do not keep a folder in use.
        made.arg0(&command.arg0).args(&command.args).current_dir("/");
        made
    }
}
