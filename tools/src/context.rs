//! What every verb is given.

use std::time::Duration;

use crate::cli::{Global, OutputForm};
use crate::connect::{Connection, Place};
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
    /// When none is named and there is no data folder to look in.
    pub(crate) fn connection(&self, first_patience: Duration) -> Outcome<Connection> {
        let place = match &self.global.manager {
            Some(address) => Place::Named(address.clone()),
            None => {
                Place::Local { data_dir: self.data_dir()?, named: self.global.data_dir.is_some() }
            }
        };
        Ok(Connection::new(place, first_patience))
    }
}
