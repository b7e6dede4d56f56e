//! A manager and agents as real processes of this program, in a temporary folder. They end when the
//! process that started them ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_manager::Endpoint;
use podmesh_wire::locate::Locator;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::error::{CliError, CliResult};
use crate::settings::DataDir;
use crate::verbs::dev::loopback;

/// How long a process may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a process may take to stop; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The interval of polling for changes without an event.
const LOOK: Duration = Duration::from_millis(20);

/// The processes, and the folder of all their files. Dropping it kills them and removes the folder.
/// If this process is killed, their standard input ends, and they stop.
pub(crate) struct Mesh {
    manager: Daemon,
    agents: Vec<Daemon>,
    folder: TempDir,
}

/// One process.
struct Daemon {
    name: String,
    child: Child,
    stderr: PathBuf,
}

impl Mesh {
    /// Starts a manager and agents with these names.
    ///
    /// # Errors
    /// If a process cannot be started, or the manager does not start in time.
    pub(crate) async fn start(names: &[&str]) -> CliResult<Self> {
        let folder = tempfile::Builder::new()
            .prefix("podmesh-demo-")
            .tempdir()
            .map_err(|why| CliError::failure("cannot create a temporary folder").because(why))?;
        let data_dir = DataDir::at(folder.path());
        let mut manager = Daemon::start("manager", &data_dir, folder.path(), |command| {
            command.args(["manager", "--listen", "127.0.0.1:0", "--http", "off"]);
        })?;
        let began = Instant::now();
        while Endpoint::read(&data_dir.manager()).is_err() {
            manager.still_runs()?;
            if began.elapsed() > START_LIMIT {
                return Err(manager.failed("did not start in time"));
            }
            sleep(LOOK).await;
        }
        let mut agents = Vec::new();
        for (number, name) in (1..).zip(names) {
            // Each agent stands for a machine, so each has an address of its own.
            let address = loopback(number).to_string();
            agents.push(Daemon::start(name, &data_dir.inner(name), folder.path(), |command| {
                command.args(["agent", "--name", name, "--address", &address]);
                command.args(["--ingress-address", &address]);
                command.args(["--stop-processes", "--manager"]);
                command.arg(folder.path());
            })?);
        }
        Ok(Self { manager, agents, folder })
    }

    /// Returns how to find the manager.
    pub(crate) fn locator(&self) -> Locator {
        DataDir::at(self.folder.path()).user_locator(None)
    }

    /// Returns the folder of all their files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the data folder of an agent.
    pub(crate) fn agent(&self, name: &str) -> DataDir {
        DataDir::at(self.folder.path()).inner(name)
    }

    /// Checks that all processes still run.
    ///
    /// # Errors
    /// The error output of the first process that does not.
    pub(crate) fn still_runs(&mut self) -> CliResult<()> {
        self.manager.still_runs()?;
        self.agents.iter_mut().try_for_each(Daemon::still_runs)
    }

    /// Stops the agents, then the manager, and removes the folder.
    ///
    /// # Errors
    /// If a process had to be killed or ended with an error, or the folder cannot be removed.
    pub(crate) async fn stop(self) -> CliResult<()> {
        let mut result = Ok(());
        for daemon in self.agents {
            result = result.and(daemon.stop().await);
        }
        result = result.and(self.manager.stop().await);
        let path = self.folder.path().to_owned();
        result.and(self.folder.close().map_err(|why| {
            CliError::failure(format!("{} cannot be removed", path.display())).because(why)
        }))
    }
}

impl Daemon {
    fn start(
        name: &str,
        data_dir: &DataDir,
        folder: &Path,
        arguments: impl FnOnce(&mut Command),
    ) -> CliResult<Self> {
        let cannot =
            |why: io::Error| CliError::failure(format!("{name} cannot be started")).because(why);
        let stderr = folder.join(format!("{name}.stderr"));
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        // Settings for the user's own mesh must not apply to this one.
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"PODMESH_") {
                command.env_remove(variable);
            }
        }
        arguments(&mut command);
        command
            .arg("--data-dir")
            .arg(data_dir.path())
            .arg("--stop-at-eof")
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).map_err(cannot)?)
            // In a process group of their own: Ctrl-C reaches only the demo, which then stops them.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(cannot)?;
        Ok(Self { name: name.to_owned(), child, stderr })
    }

    fn still_runs(&mut self) -> CliResult<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(&format!("ended ({status})"))),
            Err(why) => {
                Err(CliError::failure(format!("{} cannot be watched", self.name)).because(why))
            }
        }
    }

    async fn stop(mut self) -> CliResult<()> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failed(&format!("ended with an error ({status})"))),
            Ok(Err(why)) => {
                Err(CliError::failure(format!("{} cannot be watched", self.name)).because(why))
            }
            Err(_) => {
                // Waits for the end of the killed process, so that it no longer writes to the
                // folder.
                _ = self.child.kill().await;
                Err(self.failed("did not stop and was killed"))
            }
        }
    }

    /// Returns an error with the last line of the process's error output.
    fn failed(&self, what: &str) -> CliError {
        let error = CliError::failure(format!("{} {what}", self.name));
        let said = fs::read(&self.stderr).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        match said.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => error.because(crate::output::text::escape(line)),
            None => error,
        }
    }
}
