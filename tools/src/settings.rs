//! The data folder, and the settings files in it.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use podmesh_wire::locate::{Locator, ManagerPlace, SOCKETS_DIR};
use serde::de::DeserializeOwned;

use crate::bounded::{JOB_FILE, read_bounded};
use crate::error::{CliError, CliResult};
use crate::toml_file;

/// The folder of all of podmesh's state on this machine, with the paths inside it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// Returns the given folder, or the user's default.
    ///
    /// # Errors
    /// If no folder was given and the user has no home folder.
    pub(crate) fn resolve(asked: Option<&Path>) -> CliResult<Self> {
        if let Some(path) = asked {
            let path = std::path::absolute(path).map_err(|why| {
                CliError::usage(format!("the data folder {} is not a valid path", path.display()))
                    .because(why)
            })?;
            return Ok(Self(path));
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self("/var/lib/podmesh".into()));
        }
        let hint = "name a folder with --data-dir or PODMESH_DATA_DIR";
        let base = etcetera::choose_base_strategy().map_err(|why| {
            CliError::failure("there is no folder for podmesh's state").because(why).hint(hint)
        })?;
        let state = base.state_dir().ok_or_else(|| {
            CliError::failure("there is no folder for podmesh's state").hint(hint)
        })?;
        Ok(Self(state.join("podmesh")))
    }

    /// Returns a given data folder.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns a data folder inside this one: `dev` and `demo` have one for each agent.
    pub(crate) fn inner(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Returns the manager's folder.
    pub(crate) fn manager(&self) -> PathBuf {
        self.0.join("manager")
    }

    /// Returns the agent's folder.
    pub(crate) fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    /// Returns the folder of the user's key and of the clusters joined with it.
    pub(crate) fn user(&self) -> PathBuf {
        self.0.join("user")
    }

    /// Returns the folder of the manager's sockets for this machine.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.0.join(SOCKETS_DIR)
    }

    /// Returns the locator with which a user finds the manager.
    pub(crate) fn user_locator(&self, place: Option<ManagerPlace>) -> Locator {
        Locator { place, data_dir: self.0.clone(), enrolment_dir: self.user() }
    }

    /// Returns the locator of this folder's own manager, whatever was joined.
    pub(crate) fn local_locator(&self) -> Locator {
        self.user_locator(Some(ManagerPlace::DataDir(self.0.clone())))
    }

    /// Returns the locator with which the agent finds the manager.
    pub(crate) fn agent_locator(&self, place: Option<ManagerPlace>) -> Locator {
        Locator { place, data_dir: self.0.clone(), enrolment_dir: self.agent() }
    }

    /// Returns the default folder for the output of tasks.
    pub(crate) fn task_logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Returns the folder of the daemons' own logs.
    pub(crate) fn daemon_logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Returns the settings file of the daemon `name`.
    pub(crate) fn settings_file(&self, name: &str) -> PathBuf {
        self.0.join(name).with_extension("toml")
    }
}

/// Reads a daemon's settings from the given file, or from the one in the data folder if it exists.
/// For `tables` see [`toml_file::parse`].
///
/// # Errors
/// If the given file cannot be read, or a file is not valid.
pub(crate) fn load<T: DeserializeOwned + Default>(
    asked: Option<&Path>,
    data_dir: &DataDir,
    daemon: &str,
    tables: &[(&str, &[&str])],
) -> CliResult<T> {
    let usual = data_dir.settings_file(daemon);
    let path = match asked {
        Some(path) => path,
        None if usual.exists() => &usual,
        None => return Ok(T::default()),
    };
    let text = read_bounded(path, "settings file", JOB_FILE)?;
    toml_file::parse(&text, &path.display().to_string(), tables)
}
