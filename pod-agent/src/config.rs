//! The configuration of an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::Name;
use podmesh_protocol::place::Offer;
use podmesh_protocol::spec::Resources;
use podmesh_protocol::version::VersionRange;
use podmesh_wire::locate::Locator;

use crate::companion::CompanionCommand;
use crate::policy::{IngressAddress, NodePolicy, PortRanges};

/// The configuration of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The folder with the agent's identity and the work folders of attempts. It is created if it
    /// is missing. Only one agent at a time may use it.
    pub data_dir: PathBuf,
    /// The folder for output: `<logs_dir>/<job>/<task>/<attempt>/stdout.log`.
    pub logs_dir: PathBuf,
    /// The node's name. No two live agents of a manager have the same name.
    pub name: Name,
    /// How to find the manager.
    pub manager: Locator,
    /// The address at which other nodes reach the replicas on this node. `None`: the address from
    /// which it reaches the manager, or the first IPv4 address of the manager's machine.
    pub address: Option<IpAddr>,
    /// The resources that the node offers; see [`detect_capacity`](crate::detect_capacity).
    pub capacity: Resources,
    /// The labels that jobs can require.
    pub labels: BTreeMap<Name, String>,
    /// The named resources that the node offers.
    pub resources: BTreeMap<Name, Offer>,
    /// Which runtimes are enabled.
    pub runtimes: RuntimeSwitches,
    /// The user that commands run as. `None`: an agent that runs as root uses [`PROCESS_USER`],
    /// which it creates; any other agent uses its own user.
    ///
    /// [`PROCESS_USER`]: crate::PROCESS_USER
    pub process_user: Option<String>,
    /// What jobs may use on the node.
    pub policy: NodePolicy,
    /// How much output of an attempt is kept.
    pub rotation: RotationPolicy,
    /// Maximum number of bytes on disk for the output of all attempts together. Beyond it, the output
    /// of the attempts that ended first is removed. `None`: a tenth of the disk.
    pub logs_bytes_max: Option<u64>,
    /// The command that starts the supervisor if none is running.
    pub supervisor: CompanionCommand,
    /// The command that starts the node's proxy if none is running and a service publishes a port.
    pub proxy: CompanionCommand,
    /// Where the node's proxy listens.
    pub ingress: IngressConfig,
    /// Where Prometheus reads the metrics of the agent, without a token. `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether processes are stopped when the agent ends for any reason. Otherwise they keep
    /// running, as containers do. The node's proxy ends together with the processes.
    pub stop_processes: bool,
    /// The protocol versions that the agent speaks: [`VersionRange::SPOKEN`] except in tests.
    pub versions: VersionRange,
}

/// Where the node's proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressConfig {
    /// The address.
    pub address: IngressAddress,
    /// The ports that it may listen on.
    pub ports: PortRanges,
}

impl Default for IngressConfig {
    fn default() -> Self {
        Self { address: IngressAddress::All, ports: PortRanges::default() }
    }
}

/// Which runtimes of an agent are enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeSwitches {
    /// Whether jobs may run commands directly on the node.
    pub process: bool,
    /// Whether jobs may run containers.
    pub docker: DockerSwitch,
    /// Whether the no-op runtime, whose attempts end at once, is enabled. For benchmarks.
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
    /// When a Docker engine answers. Without one, the agent keeps looking for it.
    #[default]
    Auto,
    /// Yes. Without an engine, the agent logs an error and keeps looking for it.
    On,
}
