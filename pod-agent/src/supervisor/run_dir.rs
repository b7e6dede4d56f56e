//! The folder of a supervisor's socket and lock: `<agent's data>/run/`. Only the agent's user can
//! access it.

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
/// The lock. It is held as long as a supervisor or anything that it started is running, and
/// contains the supervisor's process id.
const LOCK: &str = "supervisor.lock";
/// How long the previous supervisor may take to end. It gives processes their grace.
const LOCK_LIMIT: Duration = Duration::from_secs(25);
/// Interval between tries to get the lock, which must be polled.
const LOOK: Duration = Duration::from_millis(5);

/// The open folder.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    dir: SocketDir,
}

/// The result of trying to become the supervisor of a data directory.
#[derive(Debug)]
pub(super) enum Turn {
    /// This process may be the supervisor, as long as the file is open.
    Ours(File),
    /// There already is a supervisor.
    Served,
}

impl RunDir {
    /// Opens the folder, creating it if it is missing.
    pub(super) fn open(agent_dir: &Path) -> Result<Self, SupervisorError> {
        let path = agent_dir.join(DIR);
        let dir = SocketDir::create(&path, 0o700)
            .map_err(SupervisorError::io("create the folder", &path))?;
        Ok(Self { path, dir })
    }

    /// Returns the path of the lock, which contains the supervisor's process id.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.path.join(LOCK)
    }

    /// Returns the path of the socket, for messages.
    pub(super) fn socket_path(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Waits to become the supervisor, because the previous one may be ending. Blocks.
    pub(super) fn take_turn(&self) -> Result<Turn, SupervisorError> {
        let path = self.lock_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(SupervisorError::io("write to", &path))?;
        let until = Instant::now() + LOCK_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    // Remove the previous supervisor's process id.
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

    /// Writes the supervisor's process id.
    pub(super) fn write_number(&self) -> Result<(), SupervisorError> {
        let path = self.lock_path();
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(SupervisorError::io("write to", path))
    }

    /// Binds the socket, replacing a leftover one.
    pub(super) fn bind(&self) -> Result<UnixListener, SupervisorError> {
        let bound = self.dir.bind(SOCKET, 0o600).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        bound.map_err(SupervisorError::io("listen on", self.socket_path()))
    }

    /// Removes the socket, so that nobody can connect any more.
    pub(super) fn unbind(&self) {
        // If this fails, connections are refused all the same.
        _ = std::fs::remove_file(self.socket_path());
    }

    /// Connects to the running supervisor.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.dir.path(SOCKET))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}
