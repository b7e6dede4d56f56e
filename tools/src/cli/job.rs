//! The options of `run` and `submit`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::{NetworkMode, OnLost, PullPolicy};

use crate::values::{self, Array, Cpus, Label, MountText, Size, Span};

/// The description of a job, as flags.
#[derive(Args, Debug, Default)]
pub(crate) struct JobOptions {
    /// Read the job from a TOML file, or from standard input with `-`; flags override the file
    #[arg(short, long, value_name = "JOB.toml", help_heading = "What to run")]
    pub(crate) file: Option<PathBuf>,
    /// Name of the job, for people; need not be unique [default: the name of the program]
    #[arg(long, help_heading = "What to run")]
    pub(crate) name: Option<Name>,
    /// Run in a container from this image
    #[arg(long, value_name = "IMAGE", help_heading = "What to run")]
    pub(crate) image: Option<String>,
    /// Run one task for each index; PODMESH_TASK_INDEX is the index of a task
    #[arg(long, value_name = "N|A-B", allow_hyphen_values = true, help_heading = "What to run")]
    pub(crate) array: Option<Array>,
    /// Set an environment variable; without `=`, pass on its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "What to run")]
    pub(crate) env: Vec<String>,
    /// Set the environment variables in a file: lines of NAME=VALUE; `#` starts a comment
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working folder, an absolute path [default: an empty folder; in a container that of the image]
    #[arg(short, long, value_name = "FOLDER", help_heading = "What to run")]
    pub(crate) workdir: Option<String>,
    /// `noop` runs nothing; for benchmarks
    #[arg(long, hide = true)]
    pub(crate) runtime: Option<RuntimeFlag>,

    /// Cores for each task, such as 2 or 0.5 [default: 1]
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, help_heading = "Where to run")]
    pub(crate) cpus: Option<Cpus>,
    /// Memory for each task, such as 512MiB [default: no limit, and none is reserved]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Where to run")]
    pub(crate) memory: Option<Size>,
    /// Run only on nodes that have this label with exactly this value
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Where to run")]
    pub(crate) require: Vec<Label>,
    /// Jobs with a higher priority start first; equal ones in order of arrival [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = values::priority,
        allow_hyphen_values = true,
        help_heading = "Where to run"
    )]
    pub(crate) priority: Option<i32>,

    /// Stop an attempt after this time, such as 90s
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) timeout: Option<Span>,
    /// How often to retry a failed task [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = values::retries,
        allow_hyphen_values = true,
        help_heading = "When things go wrong"
    )]
    pub(crate) retries: Option<u32>,
    /// Wait before the first retry; doubled for each further one [default: 1s]
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) retry_backoff: Option<Span>,
    /// If the node of a running task is lost: wait for it, or requeue the task [default: wait]
    #[arg(long, value_name = "WHAT", help_heading = "When things go wrong")]
    pub(crate) on_lost: Option<OnLostFlag>,
    /// Time between TERM and KILL when a task is stopped [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) stop_grace: Option<Span>,

    /// The user in the container: USER[:GROUP], by name or number
    #[arg(long, value_name = "USER", help_heading = "Containers")]
    pub(crate) user: Option<String>,
    /// Replace the entrypoint of the image; an empty text removes it
    #[arg(long, value_name = "PROGRAM", help_heading = "Containers")]
    pub(crate) entrypoint: Option<String>,
    /// Mount a folder or file of the node into the container; the node must allow it
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
    /// Add a capability, such as NET_RAW; the node must allow it. Containers have none by default
    #[arg(
        long = "cap-add",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Containers"
    )]
    pub(crate) cap_add: Vec<String>,
    /// Limit of processes and threads in the container [default: that of the node]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Containers")]
    pub(crate) pids: Option<u32>,
    /// Platform of the image, such as linux/arm64 [default: that of the node's engine]
    #[arg(long, value_name = "OS/ARCH", help_heading = "Containers")]
    pub(crate) platform: Option<String>,
    /// When to pull the image [default: missing]
    #[arg(long, value_name = "WHEN", help_heading = "Containers")]
    pub(crate) pull: Option<PullFlag>,
}

/// The command after `--`.
#[derive(Args, Debug)]
pub(crate) struct CommandArgs {
    /// The command and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// A runtime that only benchmarks choose by name. The others follow from `--image`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RuntimeFlag {
    /// Succeeds at once, and runs nothing.
    Noop,
}

/// `--on-lost`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnLostFlag {
    /// Wait until the node is back; two copies never run at a time
    Wait,
    /// Run it on another node when the lease has ended; it runs at least once
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
    /// The network of the node; the node must allow it
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
    /// If the node does not have the image
    Missing,
    /// Before every start
    Always,
    /// Never; the attempt fails if the node does not have the image
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
