//! What an agent is told at its start.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::Resources;
use podmesh_wire::address::{ManagerAddress, PORT_DEFAULT};
use serde::Deserialize;

use crate::policy::NodePolicy;

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where the agent keeps its identity and the work folders of attempts. Made when it is
    /// missing; one agent at a time may use it.
    pub data_dir: PathBuf,
    /// Where the output of attempts goes: `<logs_dir>/<job>/<task>/<attempt>/stdout.log`.
    pub logs_dir: PathBuf,
    /// The node's name; no two live agents of a manager have the same.
    pub name: Name,
    /// Where the manager is.
    pub manager: ManagerLocator,
    /// What the node offers; see [`detect_capacity`](crate::detect_capacity).
    pub capacity: Resources,
    /// What jobs may require of the node.
    pub labels: BTreeMap<Name, String>,
    /// What it can start.
    pub runtimes: RuntimeSwitches,
    /// What jobs may use of the node.
    pub policy: NodePolicy,
    /// How much output of an attempt is kept.
    pub rotation: RotationPolicy,
}

/// Where the manager is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagerLocator {
    /// At this address.
    At(ManagerAddress),
    /// On this machine, with its data below this folder: the file `manager/endpoint.json` there
    /// says where it listens, and is read before every try. Without that file: at 127.0.0.1 and
    /// the default port.
    Local(PathBuf),
}

/// Which runtimes an agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeSwitches {
    /// Whether jobs may run commands of the node itself.
    pub process: bool,
    /// Whether jobs may run containers.
    pub docker: DockerSwitch,
    /// Whether there is the runtime that ends at once; for benchmarks.
    pub noop: bool,
}

impl Default for RuntimeSwitches {
    fn default() -> Self {
        Self { process: true, docker: DockerSwitch::Auto, noop: false }
    }
}

/// Whether jobs may run containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DockerSwitch {
    /// No.
    Off,
    /// When a Docker engine answers at the start.
    #[default]
    Auto,
    /// Yes: an engine that does not answer is asked again until it does.
    On,
}

/// What a manager writes down of where it listens.
#[derive(Deserialize)]
struct Endpoint {
    control: SocketAddr,
}

impl ManagerLocator {
    /// Where the manager is now.
    ///
    /// # Errors
    /// When the file that says so is there and cannot be read.
    pub(crate) fn locate(&self) -> Result<ManagerAddress, LocateError> {
        let dir = match self {
            Self::At(address) => return Ok(address.clone()),
            Self::Local(dir) => dir,
        };
        let path = dir.join("manager").join("endpoint.json");
        let control = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Endpoint>(&text) {
                Ok(endpoint) => endpoint.control,
                Err(error) => return Err(LocateError { path, source: error.into() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Ipv4Addr::LOCALHOST, PORT_DEFAULT).into()
            }
            Err(source) => return Err(LocateError { path, source }),
        };
        Ok(ManagerAddress { host: control.ip().to_string(), port: control.port() })
    }
}

/// The file that says where the manager listens cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read where the manager listens from {}: {source}", path.display())]
pub(crate) struct LocateError {
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_local_manager_is_looked_up_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let locator = ManagerLocator::Local(dir.path().to_owned());
        assert_eq!(locator.locate().unwrap().to_string(), "127.0.0.1:7770");

        fs::create_dir(dir.path().join("manager")).unwrap();
        let file = dir.path().join("manager/endpoint.json");
        fs::write(&file, r#"{"control": "[::1]:1234", "other": 1}"#).unwrap();
        assert_eq!(locator.locate().unwrap().port, 1234);
        assert_eq!(locator.locate().unwrap().to_string(), "[::1]:1234");

        fs::write(&file, "{").unwrap();
        let error = locator.locate().unwrap_err().to_string();
        assert!(error.contains("endpoint.json"), "{error}");
    }
}
