//! Finds the route to the manager.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::address::{ManagerAddress, ParseAddressError};
use crate::enrolment::{Enrolment, EnrolmentError};
use crate::route::Route;

/// The folder with the manager's sockets, in the data folder of its machine.
pub const SOCKETS_DIR: &str = "run";

/// The manager, as users name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagerPlace {
    /// On the network: `manager.lan`, `10.0.0.1:7770`.
    Network(ManagerAddress),
    /// On this machine, with this data folder; a path contains a `/`.
    DataDir(PathBuf),
}

impl FromStr for ManagerPlace {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            return Ok(Self::DataDir(text.into()));
        }
        text.parse().map(Self::Network)
    }
}

impl fmt::Display for ManagerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::DataDir(path) => path.display().fmt(f),
        }
    }
}

/// Finds the route to the manager, again for each connection: a manager may be set up, and a
/// cluster joined, at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The manager, if the user named it.
    pub place: Option<ManagerPlace>,
    /// The data folder of this machine, or of this user.
    pub data_dir: PathBuf,
    /// The folder with the key and the enrolment file.
    pub enrolment_dir: PathBuf,
}

impl Locator {
    /// Returns the route to the cluster that was joined, or else to the manager of the data folder.
    ///
    /// # Errors
    /// If the enrolment cannot be used, or an address was given without having joined.
    pub fn find(&self) -> Result<Route, EnrolmentError> {
        let address = match &self.place {
            Some(ManagerPlace::DataDir(dir)) => return Ok(local(dir)),
            Some(ManagerPlace::Network(address)) => Some(address),
            None => None,
        };
        match Enrolment::load(&self.enrolment_dir) {
            Ok(enrolment) => enrolment.route(&self.enrolment_dir, address),
            Err(EnrolmentError::None { .. }) if address.is_none() => Ok(local(&self.data_dir)),
            Err(error) => Err(error),
        }
    }
}

fn local(data_dir: &Path) -> Route {
    Route::Local(data_dir.join(SOCKETS_DIR))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_folder_and_any_other_text_an_address() {
        for (text, folder) in
            [("./x", true), ("/var/lib/podmesh", true), ("x", false), ("10.0.0.1:1", false)]
        {
            let place: ManagerPlace = text.parse().unwrap();
            assert_eq!(matches!(place, ManagerPlace::DataDir(_)), folder, "{text}");
        }
        assert!("a b".parse::<ManagerPlace>().is_err());
    }

    #[test]
    fn an_address_without_a_key_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut locator = Locator {
            place: None,
            data_dir: dir.path().into(),
            enrolment_dir: dir.path().join("agent"),
        };
        let said = locator.find().unwrap().to_string();
        assert_eq!(said, dir.path().join("run").display().to_string());
        locator.place = Some("manager.lan".parse().unwrap());
        let said = locator.find().unwrap_err().to_string();
        assert!(said.contains("has not joined a cluster"), "{said}");
    }
}
