//! The arguments of the daemons, and of the verbs that start daemons.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podmesh_protocol::access::JoinToken;
use podmesh_protocol::ids::Name;
use podmesh_wire::address::ManagerAddress;

use crate::values::{Cpus, Label, Size, Span};

/// What both daemons have.
#[derive(Args, Debug)]
pub(crate) struct DaemonOptions {
    /// Read settings from this file [default: that of the data folder, where there is one]
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// What to log: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "PODMESH_LOG", hide_env_values = true)]
    pub(crate) log_level: Option<String>,
    /// End when standard input does: for whoever starts a daemon for a while
    #[arg(long, hide = true)]
    pub(crate) stop_at_eof: bool,
}

/// `manager`.
#[derive(Args, Debug)]
pub(crate) struct ManagerArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonOptions,
    /// Start nothing: check the whole database, say what is found, and end, with 1 when it is
    /// damaged. The manager may be running
    #[arg(long)]
    pub(crate) check: bool,
    /// Where to listen; port 0 takes a free one [default: [::]:7770]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PODMESH_LISTEN", hide_env_values = true)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where other machines reach this one, for join tokens [default: its addresses]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "PODMESH_ADVERTISE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) advertise: Vec<ManagerAddress>,
    /// Let the members of this group of this machine use the manager as operators
    #[arg(long, value_name = "GROUP", env = "PODMESH_GROUP", hide_env_values = true)]
    pub(crate) group: Option<String>,
    /// How long a node counts as alive without a heartbeat [default: 15s]
    #[arg(long, value_name = "TIME", env = "PODMESH_LEASE", hide_env_values = true)]
    pub(crate) lease: Option<Span>,
    /// Between two heartbeats [default: 1s]
    #[arg(long, value_name = "TIME", env = "PODMESH_HEARTBEAT", hide_env_values = true)]
    pub(crate) heartbeat: Option<Span>,
}

/// `backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// The file to make; one that is there is not overwritten
    pub(crate) file: PathBuf,
}

/// `agent`.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonOptions,
    /// Join the cluster of this token, unless that was done before
    #[arg(long, value_name = "TOKEN", env = "PODMESH_JOIN", hide_env_values = true)]
    pub(crate) join: Option<JoinToken>,
    /// The node's name [default: that with which it joined, else the host's]
    #[arg(long, env = "PODMESH_NODE_NAME", hide_env_values = true, help_heading = "The node")]
    pub(crate) name: Option<Name>,
    /// Cores to offer, such as 4 or 1.5 [default: all]
    #[arg(
        long,
        value_name = "CORES",
        allow_hyphen_values = true,
        env = "PODMESH_CPUS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) cpus: Option<Cpus>,
    /// Memory to offer, such as 8GiB [default: all]
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        env = "PODMESH_MEMORY",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) memory: Option<Size>,
    /// A label that jobs can require
    #[arg(
        long = "label",
        value_name = "NAME=VALUE",
        env = "PODMESH_LABELS",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "The node"
    )]
    pub(crate) labels: Vec<Label>,
    /// Whether to run containers [default: auto]
    #[arg(
        long,
        value_name = "WHEN",
        env = "PODMESH_DOCKER",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) docker: Option<DockerFlag>,
    /// Whether to run commands [default: on]
    #[arg(
        long,
        value_name = "WHETHER",
        env = "PODMESH_PROCESS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) process: Option<Switch>,
    /// Stop commands when the agent stops; without it they go on, as containers do
    #[arg(
        long,
        value_name = "WHETHER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on",
        env = "PODMESH_STOP_PROCESSES",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) stop_processes: Option<Switch>,
    /// Run the `noop` runtime of benchmarks, too
    #[arg(long, hide = true)]
    pub(crate) enable_noop: bool,

    /// Where the output of tasks lies [default: logs in the data folder]
    #[arg(
        long,
        value_name = "FOLDER",
        env = "PODMESH_LOGS_DIR",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) logs_dir: Option<PathBuf>,
    /// Rotate a file at this size [default: 10MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "PODMESH_LOG_FILE_SIZE",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_file_size: Option<Size>,
    /// Keep so many rotated files of a stream [default: 5]
    #[arg(
        long,
        value_name = "NUMBER",
        env = "PODMESH_LOG_FILES",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_files: Option<u32>,
    /// Keep at most so much of a stream [default: 64MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "PODMESH_LOG_TOTAL_SIZE",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_total_size: Option<Size>,
    /// Remove what is older [default: 30days]
    #[arg(
        long,
        value_name = "TIME",
        env = "PODMESH_LOG_AGE",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_age: Option<Span>,
}

/// `--docker`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DockerFlag {
    /// When an engine answers
    Auto,
    /// Yes; a missing engine is an error
    On,
    /// No
    Off,
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// `dev`.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// How many agents
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) agents: u32,
    /// Where the manager listens; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// What to log: error, warn, info, debug or trace
    #[arg(
        long,
        value_name = "LEVEL",
        env = "PODMESH_LOG",
        hide_env_values = true,
        default_value = "warn"
    )]
    pub(crate) log_level: String,
}

/// `process-supervisor`.
#[derive(Args, Debug)]
pub(crate) struct SupervisorArgs {
    /// What to log: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Be the supervisor; without it, start one and see to it that nothing survives it
    #[arg(long)]
    pub(crate) kept: bool,
}

/// `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Whose files to work on
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,
}
