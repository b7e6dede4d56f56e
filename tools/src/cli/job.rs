//! The options of `run` and `submit`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::{NetworkMode, OnLost, PullPolicy};

use crate::values::{self, Array, Cpus, Label, MountText, Size, Span};

/// What a job is, from flags.
#[derive(Args, Debug, Default)]
pub(crate) struct JobOptions {
    /// Read the job from a TOML file, `-` for standard input; flags win over it
    #[arg(short, long, value_name = "JOB.toml", help_heading = "What to run")]
    pub(crate) file: Option<PathBuf>,
    /// A name for people; need not be unique [default: the program's]
    #[arg(long, help_heading = "What to run")]
    pub(crate) name: Option<Name>,
    /// Run in a container of this image
    #[arg(long, value_name = "IMAGE", help_heading = "What to run")]
    pub(crate) image: Option<String>,
    /// One task for each index; the command finds its own in PODMESH_TASK_INDEX
    #[arg(long, value_name = "N|A-B", allow_hyphen_values = true, help_heading = "What to run")]
    pub(crate) array: Option<Array>,
    /// Set a variable; without `=`, to the value that it has here
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "What to run")]
    pub(crate) env: Vec<String>,
    /// Set the variables of a file: NAME=VALUE lines, `#` begins a comment
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working folder, absolute [default: an empty one for a command, the image's for a container]
    #[arg(short, long, value_name = "FOLDER", help_heading = "What to run")]
    pub(crate) workdir: Option<String>,
    /// Only `noop`, for benchmarks
    #[arg(long, hide = true)]
    pub(crate) runtime: Option<RuntimeFlag>,

    /// Cores for each task, such as 2 or 0.5 [default: 1]
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, help_heading = "Where to run")]
    pub(crate) cpus: Option<Cpus>,
    /// Memory for each task, such as 512MiB [default: not taken into account]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Where to run")]
    pub(crate) memory: Option<Size>,
    /// Only on nodes that have this label with just this value
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Where to run")]
    pub(crate) require: Vec<Label>,
    /// Higher goes first, equal ones in order of arrival [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = values::priority,
        allow_hyphen_values = true,
        help_heading = "Where to run"
    )]
    pub(crate) priority: Option<i32>,

    /// Stop an attempt that has run for so long, such as 90s
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) timeout: Option<Span>,
    /// Try a failed task again so many times [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = values::retries,
        allow_hyphen_values = true,
        help_heading = "When things go wrong"
    )]
    pub(crate) retries: Option<u32>,
    /// Wait so long before the first retry, then twice as long each time [default: 1s]
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) retry_backoff: Option<Span>,
    /// When the node of a running task is lost: wait for it, or try elsewhere [default: wait]
    #[arg(long, value_name = "WHAT", help_heading = "When things go wrong")]
    pub(crate) on_lost: Option<OnLostFlag>,
    /// Between TERM and KILL when a task is stopped [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) stop_grace: Option<Span>,

    /// The user in the container: USER[:GROUP], by name or number
    #[arg(long, value_name = "USER", help_heading = "Containers")]
    pub(crate) user: Option<String>,
    /// Replace the image's entrypoint; an empty text removes it
    #[arg(long, value_name = "PROGRAM", help_heading = "Containers")]
    pub(crate) entrypoint: Option<String>,
    /// Show a folder or file of the node to the container; the node must allow it
    #[arg(
        short = 'v',
        long = "mount",
        value_name = "SOURCE:TARGET[:ro]",
        help_heading = "Containers"
    )]
    pub(crate) mounts: Vec<MountText>,
    /// The container's network [default: bridge]
    #[arg(long, value_name = "MODE", help_heading = "Containers")]
    pub(crate) network: Option<NetworkFlag>,
    /// Give the container a capability, such as NET_RAW; it has none else, and the node must allow it
    #[arg(
        long = "cap-add",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Containers"
    )]
    pub(crate) cap_add: Vec<String>,
    /// Processes and threads in the container at a time [default: the node's limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Containers")]
    pub(crate) pids: Option<u32>,
    /// When to pull the image [default: missing]
    #[arg(long, value_name = "WHEN", help_heading = "Containers")]
    pub(crate) pull: Option<PullFlag>,
}

/// The command behind `--`.
#[derive(Args, Debug)]
pub(crate) struct CommandArgs {
    /// The command and its arguments, behind `--`
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What only benchmarks choose by name; the others follow from `--image`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RuntimeFlag {
    /// Ends at once with success, and runs nothing.
    Noop,
}

/// `--on-lost`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnLostFlag {
    /// Wait until the node is back: never two copies at a time
    Wait,
    /// Try it elsewhere after the lease: at least once
    Requeue,
}

impl From<OnLostFlag> for OnLost {
    fn from(flag: OnLostFlag) -> Self {
        match flag {
            OnLostFlag::Wait => Self::Wait,
            OnLostFlag::Requeue => Self::Requeue,
        }
    }
}

/// `--network`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum NetworkFlag {
    /// Docker's default bridge
    Bridge,
    /// Loopback only
    None,
    /// The node's own; the node must allow it
    Host,
}

impl From<NetworkFlag> for NetworkMode {
    fn from(flag: NetworkFlag) -> Self {
        match flag {
            NetworkFlag::Bridge => Self::Bridge,
            NetworkFlag::None => Self::None,
            NetworkFlag::Host => Self::Host,
        }
    }
}

/// `--pull`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PullFlag {
    /// When the node does not have the image
    Missing,
    /// Before every start
    Always,
    /// Never: without the image, the attempt fails
    Never,
}

impl From<PullFlag> for PullPolicy {
    fn from(flag: PullFlag) -> Self {
        match flag {
            PullFlag::Missing => Self::Missing,
            PullFlag::Always => Self::Always,
            PullFlag::Never => Self::Never,
        }
    }
}
