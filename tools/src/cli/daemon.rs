//! The arguments of the daemons and of the verbs that start daemons.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podmesh_agent::policy::IngressAddress;
use podmesh_manager::{Collector, SubmissionRate};
use podmesh_protocol::access::JoinToken;
use podmesh_protocol::ids::Name;
use podmesh_wire::address::ManagerAddress;

use crate::values::{Cpus, HttpAddress, Label, MetricsAddress, Size, Span};

/// The options of both daemons.
#[derive(Args, Debug)]
pub(crate) struct DaemonOptions {
    /// Read settings from this file [default: the one in the data folder, if there is one]
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "PODMESH_LOG", hide_env_values = true)]
    pub(crate) log_level: Option<String>,
    /// Stop when standard input ends, for programs that start a daemon temporarily
    #[arg(long, hide = true)]
    pub(crate) stop_at_eof: bool,
}

/// `manager`.
#[derive(Args, Debug)]
pub(crate) struct ManagerArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonOptions,
    /// Address to listen on; port 0 takes a free port [default: [::]:7770]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PODMESH_LISTEN", hide_env_values = true)]
    pub(crate) listen: Option<SocketAddr>,
    /// Addresses at which other machines reach this one, for join tokens [default: all its addresses]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "PODMESH_ADVERTISE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) advertise: Vec<ManagerAddress>,
    /// Let members of this local group use the manager, as operators
    #[arg(long, value_name = "GROUP", env = "PODMESH_GROUP", hide_env_values = true)]
    pub(crate) group: Option<String>,
    /// Address of the HTTP API, or `off` for only its unix socket [default: 127.0.0.1:7771]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PODMESH_HTTP", hide_env_values = true)]
    pub(crate) http: Option<HttpAddress>,
    /// Certificate chain for HTTPS, PEM; needed for an address that other machines reach
    #[arg(long, value_name = "FILE", env = "PODMESH_HTTP_CERT", hide_env_values = true)]
    pub(crate) http_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "PODMESH_HTTP_KEY", hide_env_values = true)]
    pub(crate) http_key: Option<PathBuf>,
    /// Send traces of jobs to this collector, by OTLP: such as http://127.0.0.1:4318, or https:// with a certificate that this machine trusts [default: off]
    #[arg(long, value_name = "URL", env = "PODMESH_OTLP", hide_env_values = true)]
    pub(crate) otlp: Option<Collector>,
    /// How long a node counts as alive without a heartbeat [default: 15s]
    #[arg(long, value_name = "TIME", env = "PODMESH_LEASE", hide_env_values = true)]
    pub(crate) lease: Option<Span>,
    /// Time between two heartbeats [default: 1s]
    #[arg(long, value_name = "TIME", env = "PODMESH_HEARTBEAT", hide_env_values = true)]
    pub(crate) heartbeat: Option<Span>,
    /// Highest priority that operators may give their jobs; admins have no such limit [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = crate::values::priority,
        env = "PODMESH_PRIORITY_MAX",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub(crate) priority_max: Option<i32>,
    /// How many submissions each caller has in a time, such as 100/s, 30/m or 500/h; admins have no such limit [default: no limit]
    #[arg(
        long,
        value_name = "RATE",
        env = "PODMESH_SUBMISSIONS_PER_CALLER",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub(crate) submissions_per_caller: Option<SubmissionRate>,
    /// How long ended jobs are kept [default: 90days]
    #[arg(long, value_name = "TIME", env = "PODMESH_KEEP", hide_env_values = true)]
    pub(crate) keep: Option<Span>,
    /// How many attempts of ended jobs are kept; beyond that, the jobs that ended first are removed [default: 10000000]
    #[arg(long, value_name = "NUMBER", env = "PODMESH_KEEP_ATTEMPTS", hide_env_values = true)]
    pub(crate) keep_attempts: Option<u64>,
    /// How long lost nodes and revoked keys are kept; a node that was removed must join again [default: 90days]
    #[arg(long, value_name = "TIME", env = "PODMESH_KEEP_NODES", hide_env_values = true)]
    pub(crate) keep_nodes: Option<Span>,
}

/// `backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// The file to create; an existing file is not overwritten
    pub(crate) file: PathBuf,
}

/// `agent`.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonOptions,
    /// Join the cluster of this token, unless this machine has joined it already
    #[arg(long, value_name = "TOKEN", env = "PODMESH_JOIN", hide_env_values = true)]
    pub(crate) join: Option<JoinToken>,
    /// Name of the node [default: the name it joined with, else the host name]
    #[arg(long, env = "PODMESH_NODE_NAME", hide_env_values = true, help_heading = "The node")]
    pub(crate) name: Option<Name>,
    /// Address of this machine at which other nodes reach the replicas of services here [default: the one from which it reaches the manager]
    #[arg(
        long,
        value_name = "IP",
        env = "PODMESH_ADDRESS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) address: Option<IpAddr>,
    /// Address at which Prometheus reads the metrics of this node, without a token; a port alone is on loopback [default: off]
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "PODMESH_METRICS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) metrics: Option<MetricsAddress>,
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
    /// Label that jobs can require
    #[arg(
        long = "label",
        value_name = "NAME=VALUE",
        env = "PODMESH_LABELS",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "The node"
    )]
    pub(crate) labels: Vec<Label>,
    /// Run containers [default: auto]
    #[arg(
        long,
        value_name = "WHEN",
        env = "PODMESH_DOCKER",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) docker: Option<DockerFlag>,
    /// Run commands as processes [default: on]
    #[arg(
        long,
        value_name = "WHETHER",
        env = "PODMESH_PROCESS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) process: Option<Switch>,
    /// Stop processes when the agent stops; otherwise they keep running, as containers do
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
    /// Address on which this node opens the ports of services: one of its IP addresses, several with commas, all, or off [default: all]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "PODMESH_INGRESS_ADDRESS",
        hide_env_values = true,
        help_heading = "The node"
    )]
    pub(crate) ingress_address: Option<IngressAddress>,
    /// Also offer the `noop` runtime, for benchmarks
    #[arg(long, hide = true)]
    pub(crate) enable_noop: bool,

    /// Folder for the output of tasks [default: logs in the data folder]
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
    /// How many rotated files to keep of each stream [default: 5]
    #[arg(
        long,
        value_name = "NUMBER",
        env = "PODMESH_LOG_FILES",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_files: Option<u32>,
    /// How much output to keep of each stream [default: 64MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "PODMESH_LOG_TOTAL_SIZE",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_total_size: Option<Size>,
    /// Limit for all output on this node; beyond it, output of the attempts that ended first is removed [default: a tenth of the disk]
    #[arg(
        long,
        value_name = "SIZE",
        env = "PODMESH_LOG_NODE_SIZE",
        hide_env_values = true,
        help_heading = "Output of tasks"
    )]
    pub(crate) log_node_size: Option<Size>,
    /// Remove output that is older [default: 30days]
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
    /// If a Docker engine answers
    Auto,
    /// Always; warn while no engine answers
    On,
    /// Never
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
    /// Number of agents
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) agents: u32,
    /// Address that the manager listens on; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Log level: error, warn, info, debug or trace
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
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Run as the supervisor; otherwise start a supervisor, and kill what it leaves when it dies
    #[arg(long)]
    pub(crate) kept: bool,
}

/// `node-proxy`.
#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

/// `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Folder to process
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,
}
