//! What the processes beside the agent have in common. The supervisor and the proxy outlive the
//! agent, and the next agent finds them.
//!
//! Each has a lock and a socket in `<agent's data>/run/` (`run_dir.rs`). The agent starts it, waits
//! for the line [`READY`] (`start.rs`), and exchanges messages with it (`frames.rs`).

mod frames;
mod run_dir;
mod start;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use tokio::net::UnixStream;

pub(crate) use self::frames::{Frames, put};
pub(crate) use self::run_dir::{Kind, RunDir, RunDirError, Turn};
pub(crate) use self::start::start;

/// The line that a companion prints when it accepts connections. Anything else is the reason why
/// it cannot start.
pub const READY: &str = "ready";

/// The command that starts this program as a companion of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompanionCommand {
    /// The path of the program.
    pub program: PathBuf,
    /// The name that the program sees as its own (`argv[0]`).
    pub arg0: OsString,
    /// The arguments.
    pub args: Vec<OsString>,
}

impl From<&CompanionCommand> for Command {
    fn from(command: &CompanionCommand) -> Self {
        let mut made = Self::new(&command.program);
        // Do not keep a folder in use.
        made.arg0(&command.arg0).args(&command.args).current_dir("/");
        made
    }
}

/// Returns whether a connection is of this process's user or of root.
///
/// The folder's mode already keeps other users out. This check matters if somebody has changed it.
pub(crate) fn is_own(stream: &UnixStream) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let own = nix::unistd::geteuid().as_raw();
    let is_own = peer.is_ok_and(|uid| uid == own || uid == 0);
    if !is_own {
        tracing::warn!("refused a connection of another user's process");
    }
    is_own
}
