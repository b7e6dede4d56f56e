//! What an agent is told at its start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::Resources;
use podmesh_wire::locate::Locator;

use crate::policy::NodePolicy;
use crate::supervisor::SupervisorCommand;

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
    /// How the manager is found.
    pub manager: Locator,
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
    /// How the supervisor of processes is started, where there is none yet.
    pub supervisor: SupervisorCommand,
    /// Whether processes are stopped when the agent ends, however it does. Otherwise they go on,
    /// as containers do.
    pub stop_processes: bool,
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
