//! The folder of a companion's socket and lock: `<agent's data>/run/`. Only the agent's user can
//! access it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmesh_wire::socket_dir::SocketDir;

/// The folder.
const DIR: &str = "run";
/// How long the previous companion may take to end. The supervisor gives processes their grace.
const LOCK_LIMIT: Duration = Duration::from_secs(25);
/// Interval between tries to get the lock, which must be polled.
const LOOK: Duration = Duration::from_millis(5);

/// A process beside the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Holds the node's processes.
    Supervisor,
    /// Passes connections to replicas.
    Proxy,
}

impl Kind {
    fn socket(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor.sock",
            Self::Proxy => "proxy.sock",
        }
    }

    /// The lock is held as long as the companion or anything that it started is running, and
    /// contains its process id.
    fn lock(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor.lock",
            Self::Proxy => "proxy.lock",
        }
    }
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunDirError {
    /// A call to the operating system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What failed.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The previous companion does not end.
    #[error("the previous process still holds {}", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

fn failed(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.into();
    move |source| RunDirError::Io { doing, path, source }
}

/// The open folder.
#[derive(Debug)]
pub(crate) struct RunDir {
    kind: Kind,
    path: PathBuf,
    dir: SocketDir,
}

/// The result of trying to become the companion of a data directory.
#[derive(Debug)]
pub(crate) enum Turn {
    /// This process may be the companion, as long as the file is open.
    Ours(File),
    /// There already is one.
    Served,
}

impl RunDir {
    /// Opens the folder, creating it if it is missing.
    pub(crate) fn open(agent_dir: &Path, kind: Kind) -> Result<Self, RunDirError> {
        let path = agent_dir.join(DIR);
        let dir = SocketDir::create(&path, 0o700).map_err(failed("create the folder", &path))?;
        Ok(Self { kind, path, dir })
    }

    /// Returns the path of the lock, which contains the companion's process id.
    pub(crate) fn lock_path(&self) -> PathBuf {
        self.path.join(self.kind.lock())
    }

    /// Returns the path of the socket, for messages.
    pub(crate) fn socket_path(&self) -> PathBuf {
        self.path.join(self.kind.socket())
    }

    /// Waits to become the companion, because the previous one may be ending. Blocks.
    pub(crate) fn take_turn(&self) -> Result<Turn, RunDirError> {
        let path = self.lock_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(failed("write to", &path))?;
        let until = Instant::now() + LOCK_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    // Remove the previous companion's process id.
                    file.set_len(0).map_err(failed("write to", path))?;
                    return Ok(Turn::Ours(file));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(failed("lock", path)(error));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if self.connect().is_ok() {
                return Ok(Turn::Served);
            }
            if Instant::now() >= until {
                return Err(RunDirError::Locked { path });
            }
            sleep(LOOK);
        }
    }

    /// Writes the companion's process id.
    pub(crate) fn write_number(&self) -> Result<(), RunDirError> {
        let path = self.lock_path();
        std::fs::write(&path, format!("{}\n", std::process::id())).map_err(failed("write to", path))
    }

    /// Binds the socket, replacing a leftover one.
    pub(crate) fn bind(&self) -> Result<UnixListener, RunDirError> {
        let bound = self.dir.bind(self.kind.socket(), 0o600).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        bound.map_err(failed("listen on", self.socket_path()))
    }

    /// Removes the socket, so that nobody can connect any more.
    pub(crate) fn unbind(&self) {
        // If this fails, connections are refused all the same.
        _ = std::fs::remove_file(self.socket_path());
    }

    /// Connects to the running companion.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.dir.path(self.kind.socket()))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}
