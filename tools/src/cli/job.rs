//! The options of `run` and `submit`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podmesh_protocol::ids::Name;
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::spec::{NetworkMode, OnLost, PullPolicy};

use crate::values::{
    self, Array, ContainerLabel, Cpus, Label, MountText, NamedUlimit, ResourceText, Size, Span,
    TmpfsText, VolumeText,
};

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
    /// What each task needs of a named resource of its node, such as gpu=2, gpu=0.5 or license=1
    #[arg(long = "resource", value_name = "NAME=AMOUNT", help_heading = "Where to run")]
    pub(crate) resources: Vec<ResourceText>,
    /// Try nodes that have this label with this value first
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Where to run")]
    pub(crate) prefer: Vec<Label>,
    /// Spread the tasks over the values of this label of their nodes
    #[arg(long, value_name = "LABEL", help_heading = "Where to run")]
    pub(crate) spread: Option<Name>,
    /// Give each task a node for itself
    #[arg(long, help_heading = "Where to run")]
    pub(crate) exclusive: bool,
    /// Jobs with a higher priority start first; equal ones in order of arrival [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = values::priority,
        allow_hyphen_values = true,
        help_heading = "Where to run"
    )]
    pub(crate) priority: Option<i32>,
    /// Run at most so many tasks of the job at a time
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..),
        allow_hyphen_values = true,
        help_heading = "Where to run"
    )]
    pub(crate) max_active: Option<u32>,
    /// Wait in this queue [default: `default`]
    #[arg(long, value_name = "NAME", help_heading = "Where to run")]
    pub(crate) queue: Option<Name>,
    /// Let podmesh stop the tasks to make room for jobs without this option; they run again later
    #[arg(long, help_heading = "Where to run")]
    pub(crate) preemptible: bool,

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
    /// Retry only after these exit codes, such as 1,75 or 1-10; 128 + N after signal N, 124 after the
    /// timeout [default: all]
    #[arg(
        long,
        value_name = "CODES",
        conflicts_with = "no_retry_on",
        help_heading = "When things go wrong"
    )]
    pub(crate) retry_on: Option<Ranges>,
    /// Do not retry after these exit codes
    #[arg(long, value_name = "CODES", help_heading = "When things go wrong")]
    pub(crate) no_retry_on: Option<Ranges>,
    /// Cancel the rest when so many tasks have failed for good
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..),
        allow_hyphen_values = true,
        help_heading = "When things go wrong"
    )]
    pub(crate) max_failures: Option<u32>,
    /// Cancel tasks that have had no attempt after this time, such as 1h
    #[arg(long, value_name = "TIME", help_heading = "When things go wrong")]
    pub(crate) expires: Option<Span>,
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
    /// Mount a named volume of the node, which is created if it is missing, and kept
    #[arg(long = "volume", value_name = "NAME:TARGET[:ro]", help_heading = "Containers")]
    pub(crate) volumes: Vec<VolumeText>,
    /// Mount an empty folder in memory; options such as size=64m
    #[arg(long, value_name = "PATH[:OPTIONS]", help_heading = "Containers")]
    pub(crate) tmpfs: Vec<TmpfsText>,
    /// Make the container's own file system read-only
    #[arg(long, help_heading = "Containers")]
    pub(crate) read_only: bool,
    /// The container's network [default: bridge]
    #[arg(long, value_name = "MODE", help_heading = "Containers")]
    pub(crate) network: Option<NetworkFlag>,
    /// Host name inside the container [default: made by Docker]
    #[arg(long, value_name = "NAME", help_heading = "Containers")]
    pub(crate) hostname: Option<String>,
    /// Add a line to /etc/hosts; `host-gateway` as the address means the node
    #[arg(long = "extra-host", value_name = "NAME:IP", help_heading = "Containers")]
    pub(crate) extra_hosts: Vec<String>,
    /// Add a capability, such as NET_RAW, to those that the node gives by default; the node must allow it
    #[arg(
        long = "cap-add",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Containers"
    )]
    pub(crate) cap_add: Vec<String>,
    /// Remove one of the node's default capabilities, or ALL
    #[arg(
        long = "cap-drop",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Containers"
    )]
    pub(crate) cap_drop: Vec<String>,
    /// Set a security option, such as seccomp=unconfined; the node must allow it
    #[arg(long, value_name = "OPTION", help_heading = "Containers")]
    pub(crate) security_opt: Vec<String>,
    /// Give the container a device of the node; the node must allow it
    #[arg(long = "device", value_name = "SOURCE[:TARGET[:rwm]]", help_heading = "Containers")]
    pub(crate) devices: Vec<String>,
    /// Limit of processes and threads in the container [default: that of the node]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Containers")]
    pub(crate) pids: Option<u32>,
    /// Set a limit of the container's processes, such as nofile=1024:4096
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = "Containers")]
    pub(crate) ulimits: Vec<NamedUlimit>,
    /// Size of /dev/shm [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Containers")]
    pub(crate) shm_size: Option<Size>,
    /// Run a small init as process 1, which passes on signals and reaps orphans
    #[arg(long, help_heading = "Containers")]
    pub(crate) init: bool,
    /// Give the program a terminal; all its output is then in stdout
    #[arg(long, help_heading = "Containers")]
    pub(crate) tty: bool,
    /// Signal that asks the program to end, such as SIGINT [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL", help_heading = "Containers")]
    pub(crate) stop_signal: Option<String>,
    /// Set a label of the container, for other programs
    #[arg(long = "label", value_name = "NAME=VALUE", help_heading = "Containers")]
    pub(crate) labels: Vec<ContainerLabel>,
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
