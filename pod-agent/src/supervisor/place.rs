//! Where a supervisor is found: `<agent's data>/run/`, for the agent's user alone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmesh_wire::socket_dir::SocketDir;

use super::error::SupervisorError;

/// The folder.
const DIR: &str = "run";
/// The socket.
const SOCKET: &str = "supervisor.sock";
/// Held as long as a supervisor or anything of it lives; holds the supervisor's number.
const LOCK: &str = "supervisor.lock";
/// How long the end of the supervisor before may take: it leaves processes their grace.
const LOCK_LIMIT: Duration = Duration::from_secs(25);
/// Between two looks at a lock, which has no event.
const LOOK: Duration = Duration::from_millis(5);

/// The folder, open.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    dir: SocketDir,
}

/// Who may become the supervisor of a data directory.
#[derive(Debug)]
pub(super) enum Turn {
    /// This process; as long as the file is open.
    Ours(File),
    /// Nobody: there is one.
    Served,
}

impl Place {
    /// Opens the folder, and makes it when it is missing.
    pub(super) fn open(agent_dir: &Path) -> Result<Self, SupervisorError> {
        let path = agent_dir.join(DIR);
        let dir = SocketDir::create(&path, 0o700)
            .map_err(SupervisorError::io("make the folder", &path))?;
        Ok(Self { path, dir })
    }

    /// The lock, which has the supervisor's number in it.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.path.join(LOCK)
    }

    /// The socket, as it is called for people.
    pub(super) fn socket_path(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Waits for the turn to be the supervisor: the one before may be ending. Blocks.
    pub(super) fn take_turn(&self) -> Result<Turn, SupervisorError> {
        let path = self.lock_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(SupervisorError::io("write to", &path))?;
        let until = Instant::now() + LOCK_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    // The number of the one before means nothing any more.
                    file.set_len(0).map_err(SupervisorError::io("write to", path))?;
                    return Ok(Turn::Ours(file));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(SupervisorError::io("lock", path)(error));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if self.connect().is_ok() {
                return Ok(Turn::Served);
            }
            if Instant::now() >= until {
                return Err(SupervisorError::Locked { path });
            }
            sleep(LOOK);
        }
    }

    /// Writes down who is the supervisor.
    pub(super) fn write_number(&self) -> Result<(), SupervisorError> {
        let path = self.lock_path();
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(SupervisorError::io("write to", path))
    }

    /// The socket to listen on, in place of one that was left.
    pub(super) fn bind(&self) -> Result<UnixListener, SupervisorError> {
        let bound = self.dir.bind(SOCKET, 0o600).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        bound.map_err(SupervisorError::io("listen on", self.socket_path()))
    }

    /// Nobody is to connect any more.
    pub(super) fn unbind(&self) {
        // Where it stays, a connection is refused all the same.
        _ = std::fs::remove_file(self.socket_path());
    }

    /// A connection to the supervisor there is.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.dir.path(SOCKET))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}
