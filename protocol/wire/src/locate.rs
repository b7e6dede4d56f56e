//! How the way to the manager is found.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::address::{ManagerAddress, ParseAddressError};
use crate::enrolment::{Enrolment, EnrolmentError};
use crate::route::Route;

/// The folder with the manager's sockets, in the data folder of its machine.
pub const SOCKETS_DIR: &str = "run";

/// Where a manager is, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagerPlace {
    /// On the network: `manager.lan`, `10.0.0.1:7770`.
    Network(ManagerAddress),
    /// On this machine, with this data folder; a path has a `/` in it.
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

/// Finds the way to the manager, anew for each connection: a manager may be set up, and a
/// cluster joined, at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// Where it is, where that was said.
    pub place: Option<ManagerPlace>,
    /// The data folder of this machine, or this user.
    pub data_dir: PathBuf,
    /// The folder with the key and the enrolment.
    pub enrolment_dir: PathBuf,
}

impl Locator {
    /// The way: that to the cluster that was joined; where none was, that to the manager of the
    /// data folder.
    ///
    /// # Errors
    /// When what was joined cannot be used, or an address was named and nothing was joined.
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
    fn a_path_is_a_folder_and_all_else_an_address() {
        for (text, folder) in
            [("./x", true), ("/var/lib/podmesh", true), ("x", false), ("10.0.0.1:1", false)]
        {
            let place: ManagerPlace = text.parse().unwrap();
            assert_eq!(matches!(place, ManagerPlace::DataDir(_)), folder, "{text}");
        }
        assert!("a b".parse::<ManagerPlace>().is_err());
    }

    #[test]
    fn an_address_alone_is_not_enough() {
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
        assert!(said.contains("joined no cluster"), "{said}");
    }
}
