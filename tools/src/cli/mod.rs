//! The command line: verbs, options, and what they mean.

pub(crate) mod access;
pub(crate) mod daemon;
pub(crate) mod job;
pub(crate) mod query;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use podmesh_wire::locate::ManagerPlace;

use access::{DoctorArgs, KeyVerb, LoginArgs, NodesArgs, TokenVerb, UsersArgs};
use daemon::{AgentArgs, BackupArgs, DemoArgs, DevArgs, ManagerArgs, SupervisorArgs};
use job::{CommandArgs, JobOptions};
use query::{CancelArgs, EventsArgs, JobArgs, JobsArgs, LogsArgs, TasksArgs};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Try it:     podmesh demo
Begin:      podmesh dev, and in another terminal: podmesh run -- echo hello
Exit codes: the task's own for `run`; 2 for a command line that cannot be understood;
            125 for a failure of podmesh itself; 130 when left with Ctrl-C";

/// Run containers and commands on the machines of your LAN.
#[derive(Parser, Debug)]
#[command(name = "podmesh", version, styles = STYLES, after_help = AFTER_HELP)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The options of every verb.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where state lies [default: /var/lib/podmesh for root, $XDG_STATE_HOME/podmesh for others]
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "PODMESH_DATA_DIR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the manager is: HOST:PORT of one that was joined, or the data folder of one on this
    /// machine [default: that which was joined, else that of the data folder]
    #[arg(
        long,
        global = true,
        value_name = "PLACE",
        env = "PODMESH_MANAGER",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) manager: Option<ManagerPlace>,
    /// How to print what is listed
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        default_value = "table",
        help_heading = "Global options"
    )]
    pub(crate) output: OutputForm,
    /// When to use colour; NO_COLOR in the environment turns `auto` off
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Global options"
    )]
    pub(crate) color: Color,
}

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// For people
    #[default]
    Table,
    /// For programs; the schemas are in tools/schema
    Json,
}

/// `--color`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// A whole mesh on this machine, a real job through it, then it cleans up
    Demo(DemoArgs),
    /// A manager and agents in the foreground, for trying things
    Dev(DevArgs),
    /// The manager: one for all machines
    Manager(ManagerArgs),
    /// Copy the database of this machine's manager, which may be running, to a file
    ///
    /// Run it as the user of the manager, or as root. The copy is of one moment, checked, and
    /// has a checksum. The manager's key is not in it. To restore it: stop the manager, move
    /// podmesh.db, podmesh.db-wal and podmesh.db-shm in <data folder>/manager away, copy the
    /// file to podmesh.db there, as the manager's user, and start the manager.
    Backup(BackupArgs),
    /// The agent: one on every machine that runs tasks
    Agent(AgentArgs),
    /// Holds the processes of an agent, which starts it
    #[command(hide = true)]
    ProcessSupervisor(SupervisorArgs),
    /// Run a job, show its output, and end with its exit code
    ///
    /// Output comes out byte for byte, that of an array in order of index with a header a task.
    /// Ctrl-C cancels the job and waits for its end; a second Ctrl-C leaves at once. The exit
    /// code is the task's own; of an array: 0 when every task succeeded, else 1.
    Run(RunArgs),
    /// Submit a job and print its number
    Submit(SubmitArgs),
    /// List the jobs, newest first
    Jobs(JobsArgs),
    /// Show one job, and why it waits
    Job(JobArgs),
    /// List the tasks of a job
    Tasks(TasksArgs),
    /// Print the output of a job, a task, or one attempt
    Logs(LogsArgs),
    /// Cancel jobs: what is queued never starts, what runs is stopped
    Cancel(CancelArgs),
    /// List the nodes, or revoke some
    #[command(args_conflicts_with_subcommands = true)]
    Nodes(NodesArgs),
    /// List what happened, every change with its revision
    Events(EventsArgs),
    /// Make, list or revoke join tokens: with one a machine or user joins
    #[command(subcommand)]
    Token(TokenVerb),
    /// Replace keys, without anybody joining again
    #[command(subcommand)]
    Key(KeyVerb),
    /// Join a cluster as a user of its manager on another machine
    Login(LoginArgs),
    /// List the users that joined, or revoke some
    #[command(args_conflicts_with_subcommands = true)]
    Users(UsersArgs),
    /// Say what is wrong between this machine and its manager
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Verb {
    /// The verb's name where `--output json` means nothing for it.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match self {
            Self::Demo(_) => Some("demo"),
            Self::Dev(_) => Some("dev"),
            Self::Manager(_) => Some("manager"),
            Self::Agent(_) => Some("agent"),
            Self::Backup(_) => Some("backup"),
            Self::ProcessSupervisor(_) => Some("process-supervisor"),
            Self::Run(_) => Some("run"),
            Self::Submit(args) if args.follow => Some("submit --follow"),
            Self::Logs(_) => Some("logs"),
            Self::Completions { .. } => Some("completions"),
            Self::Login(_) => Some("login"),
            Self::Key(_) => Some("key"),
            Self::Token(TokenVerb::Revoke { .. }) => Some("token revoke"),
            Self::Nodes(NodesArgs { verb: Some(_) }) => Some("nodes revoke"),
            Self::Users(UsersArgs { verb: Some(_) }) => Some("users revoke"),
            Self::Submit(_)
            | Self::Jobs(_)
            | Self::Job(_)
            | Self::Tasks(_)
            | Self::Cancel(_)
            | Self::Nodes(NodesArgs { verb: None })
            | Self::Users(UsersArgs { verb: None })
            | Self::Token(TokenVerb::Create(_) | TokenVerb::List)
            | Self::Doctor(_)
            | Self::Events(_) => None,
        }
    }
}

/// `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) options: JobOptions,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
}

/// `submit`.
#[derive(Args, Debug)]
pub(crate) struct SubmitArgs {
    /// Wait for the end: exit 0 when every task succeeded, with the code of a single task, else 1
    #[arg(long)]
    pub(crate) wait: bool,
    /// Show the output as `run` does, and end likewise; Ctrl-C leaves the job alone
    #[arg(long, conflicts_with = "wait")]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) options: JobOptions,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
}
