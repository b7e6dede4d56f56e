//! What every verb is given.

use std::time::Duration;

use crate::cli::{Global, OutputForm};
use crate::connect::Connection;
use crate::error::Outcome;
use crate::output::screen::Screen;
use crate::settings::DataDir;

/// The global options, looked up.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The options as given.
    pub(crate) global: Global,
    /// What standard output is.
    pub(crate) screen: Screen,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        let screen = Screen::detect(global.color);
        Self { global, screen }
    }

    /// Whether to print JSON.
    pub(crate) fn json(&self) -> bool {
        self.global.output == OutputForm::Json
    }

    /// The data folder.
    ///
    /// # Errors
    /// As [`DataDir::resolve`].
    pub(crate) fn data_dir(&self) -> Outcome<DataDir> {
        DataDir::resolve(self.global.data_dir.as_deref())
    }

    /// A connection to the manager that the options name.
    ///
    /// # Errors
    /// When there is no data folder to look in.
    pub(crate) fn connection(&self, first_patience: Duration) -> Outcome<Connection> {
        let locator = self.data_dir()?.user_locator(self.global.manager.clone());
        Ok(Connection::new(locator, first_patience))
    }
}
