//! The supervisor: a process that holds the processes of a node, their pipes and their logs, and
//! lives on when the agent ends, is killed, or is replaced by another version.
//!
//! There is one of each agent's data directory. The agent starts it (`link.rs`), asks it over a
//! socket in `<data>/run/` (`place.rs`, `messages.rs`, `frames.rs`) to start, stop and remove
//! attempts, and hears how they end. The supervisor (`server.rs`) has the runtime of `process/`,
//! and a table of what it holds (`table.rs`). Its parent, the keeper (`keeper.rs`), kills what it
//! leaves when it dies.
//!
//! What it holds is told to every agent that connects, and ends are also written beside the work
//! folder of the attempt, so that a supervisor that has nothing to do can end, and one that was
//! killed loses no end that it had told.

mod connect;
mod error;
mod frames;
mod keeper;
mod link;
mod messages;
mod place;
mod server;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

pub use self::error::SupervisorError;
pub use self::keeper::keep;
pub(crate) use self::link::{LinkSettings, Processes};
pub use self::server::supervise;

/// What a supervisor prints when it can be connected to. Anything else is why it cannot start.
pub const READY: &str = "ready";

/// How this program is started as a supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisorCommand {
    /// The file.
    pub program: PathBuf,
    /// Its name for itself.
    pub arg0: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl From<&SupervisorCommand> for Command {
    fn from(command: &SupervisorCommand) -> Self {
        let mut made = Self::new(&command.program);
        // It is to hold no folder in use.
        made.arg0(&command.arg0).args(&command.args).current_dir("/");
        made
    }
}
