//! Where state lies, and the settings files there.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use podmesh_wire::locate::{Locator, ManagerPlace, SOCKETS_DIR};
use serde::de::DeserializeOwned;

use crate::bounded::read_bounded;
use crate::error::{CliError, Outcome};
use crate::toml_file;

/// The folder of all of podmesh's state on this machine, and what lies where in it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// The folder that was asked for, or the user's own.
    ///
    /// # Errors
    /// When none was asked for and the user has no home folder.
    pub(crate) fn resolve(asked: Option<&Path>) -> Outcome<Self> {
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

    /// This folder.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A data folder inside of this one: `dev` and `demo` have one for each agent.
    pub(crate) fn inner(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// The manager's folder.
    pub(crate) fn manager(&self) -> PathBuf {
        self.0.join("manager")
    }

    /// The agent's folder.
    pub(crate) fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    /// The key of the user, and what they joined with it.
    pub(crate) fn user(&self) -> PathBuf {
        self.0.join("user")
    }

    /// The sockets of the manager for this machine.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.0.join(SOCKETS_DIR)
    }

    /// How a user finds the manager.
    pub(crate) fn user_locator(&self, place: Option<ManagerPlace>) -> Locator {
        Locator { place, data_dir: self.0.clone(), enrolment_dir: self.user() }
    }

    /// How the manager of this folder is found, whatever was joined.
    pub(crate) fn local_locator(&self) -> Locator {
        self.user_locator(Some(ManagerPlace::DataDir(self.0.clone())))
    }

    /// How the agent finds the manager.
    pub(crate) fn agent_locator(&self, place: Option<ManagerPlace>) -> Locator {
        Locator { place, data_dir: self.0.clone(), enrolment_dir: self.agent() }
    }

    /// Output of tasks, unless the agent is told otherwise.
    pub(crate) fn task_logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// What the daemons themselves log.
    pub(crate) fn daemon_logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Settings of the daemon `name`.
    pub(crate) fn settings_file(&self, name: &str) -> PathBuf {
        self.0.join(name).with_extension("toml")
    }
}

/// Reads a daemon's settings: the file that was asked for, or that of the data folder where there
/// is one. `tables` as for [`toml_file::parse`].
///
/// # Errors
/// A file that was asked for and cannot be read; one that is not of the form.
pub(crate) fn load<T: DeserializeOwned + Default>(
    asked: Option<&Path>,
    data_dir: &DataDir,
    daemon: &str,
    tables: &[(&str, &[&str])],
) -> Outcome<T> {
    let usual = data_dir.settings_file(daemon);
    let path = match asked {
        Some(path) => path,
        None if usual.exists() => &usual,
        None => return Ok(T::default()),
    };
    let text = read_bounded(path, "settings file")?;
    toml_file::parse(&text, &path.display().to_string(), tables)
}
