//! The context of every verb.

use std::time::Duration;

use crate::cli::{Global, OutputForm};
use crate::connect::Connection;
use crate::error::CliResult;
use crate::output::screen::Screen;
use crate::settings::DataDir;

/// The global options, and what follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The options as given.
    pub(crate) global: Global,
    /// The properties of standard output.
    pub(crate) screen: Screen,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        let screen = Screen::detect(global.color);
        Self { global, screen }
    }

    /// Returns whether to print JSON.
    pub(crate) fn json(&self) -> bool {
        self.global.output == OutputForm::Json
    }

    /// Returns the data folder.
    ///
    /// # Errors
    /// See [`DataDir::resolve`].
    pub(crate) fn data_dir(&self) -> CliResult<DataDir> {
        DataDir::resolve(self.global.data_dir.as_deref())
    }

    /// Returns a connection to the manager that the options name.
    ///
    /// # Errors
    /// If there is no data folder to look in.
    pub(crate) fn connection(&self, first_patience: Duration) -> CliResult<Connection> {
        let locator = self.data_dir()?.user_locator(self.global.manager.clone());
        Ok(Connection::new(locator, first_patience))
    }
}
