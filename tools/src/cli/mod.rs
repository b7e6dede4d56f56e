//! The command line: verbs, options, and what they mean.

pub(crate) mod access;
pub(crate) mod compose;
pub(crate) mod daemon;
pub(crate) mod job;
#[cfg(test)]
mod pages;
pub(crate) mod query;
pub(crate) mod queue;
pub(crate) mod schedule;
pub(crate) mod service;
pub(crate) mod volume;
pub(crate) mod workflow;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use podmesh_protocol::trace::TraceParent;
use podmesh_wire::locate::ManagerPlace;

use access::{
    DoctorArgs, KeyVerb, LoginArgs, NodesArgs, NodesVerb, TokenArgs, TokenVerb, UsersArgs,
};
use compose::ComposeArgs;
use daemon::{AgentArgs, BackupArgs, DemoArgs, DevArgs, ManagerArgs, ProxyArgs, SupervisorArgs};
use job::{CommandArgs, JobOptions};
use query::{
    CancelArgs, ConsoleArgs, EventsArgs, FailedArgs, ForgetArgs, JobArgs, JobsArgs, LogsArgs,
    RequeueArgs, TasksArgs,
};
use queue::QueueArgs;
use schedule::ScheduleArgs;
use service::ServiceArgs;
use volume::VolumeArgs;
use workflow::{AfterArgs, WorkflowArgs};

use crate::values::Span;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Try it:     podmesh demo
Start here: podmesh dev, then in another terminal: podmesh run -- echo hello
Exit codes: `run` exits with the task's own code; 2: invalid command line;
            124: a --timeout is over; 125: podmesh itself failed;
            130: interrupted with Ctrl-C; `logs --grep`: 1 if no line has the text";

const LOGS_HELP: &str = "\
Examples: podmesh logs 42.7            the output of task 7 of job 42
          podmesh logs -f web          all replicas of the service web, until Ctrl-C
          podmesh logs web.3 --tail 50 the end of the output of its replica 3";

/// Run containers, commands and services on the machines of your LAN.
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
    /// Folder for podmesh's state [default: /var/lib/podmesh for root, $XDG_STATE_HOME/podmesh for others]
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "PODMESH_DATA_DIR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// The manager to use: HOST:PORT of the manager you joined, or the data folder of a manager on
    /// this machine [default: the manager you joined, else the one in the data folder]
    #[arg(
        long,
        global = true,
        value_name = "PLACE",
        env = "PODMESH_MANAGER",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) manager: Option<ManagerPlace>,
    /// Output format
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        default_value = "table",
        help_heading = "Global options"
    )]
    pub(crate) output: OutputForm,
    /// When to use colour; with `auto`, the variable NO_COLOR turns it off
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
    /// For programs; tools/schema has the schemas
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
    /// Start a whole mesh on this machine, run a real job on it, and clean up
    Demo(DemoArgs),
    /// Run a manager and agents in the foreground, to try things out
    Dev(DevArgs),
    /// Run the manager; a cluster has one
    Manager(ManagerArgs),
    /// Copy the manager's database to a file, while the manager runs
    ///
    /// Run this on the manager's machine, as the manager's user or as root. The copy is consistent,
    /// checked, and has a checksum. It does not contain the manager's key. To restore
    /// it: stop the manager, move podmesh.db, podmesh.db-wal and podmesh.db-shm in
    /// <data folder>/manager away, copy the file to podmesh.db there, as the manager's user, and
    /// start the manager.
    Backup(BackupArgs),
    /// Check the manager's whole database; exit with 1 if it is damaged
    ///
    /// Run this on the manager's machine. It changes nothing, and the manager may be running.
    Check,
    /// Run the agent; every machine that runs tasks has one
    Agent(AgentArgs),
    /// Hold the processes of an agent; started by the agent
    #[command(hide = true)]
    ProcessSupervisor(SupervisorArgs),
    /// Pass connections to the replicas of services; started by the agent
    #[command(hide = true)]
    NodeProxy(ProxyArgs),
    /// Run a job, print its output, and exit with its exit code
    ///
    /// The output is printed byte for byte. An array prints its tasks in order of their index,
    /// each below a header. Ctrl-C cancels the job and waits until it has ended; a second Ctrl-C
    /// exits at once. The exit code is that of the task; for an array it is 0 if every task
    /// succeeded, else 1.
    Run(RunArgs),
    /// Submit a job and print its number
    Submit(SubmitArgs),
    /// List jobs, newest first
    Jobs(JobsArgs),
    /// Show one job, and why its tasks wait
    Job(JobArgs),
    /// List the tasks of a job
    Tasks(TasksArgs),
    /// Print the output of a job, a task, an attempt, a service or a replica
    ///
    /// The output of a service is that of all its replicas, each line after the name of its
    /// replica. With -f, replicas that start later are shown too.
    #[command(after_help = LOGS_HELP)]
    Logs(LogsArgs),
    /// Cancel jobs: queued tasks never start, running tasks are stopped
    Cancel(CancelArgs),
    /// Run failed, lost or cancelled tasks of a job again, in the same job
    ///
    /// The job may have ended or not. The attempts are numbered on, and retries count anew. Without
    /// --state and TASKS, all tasks that failed run again; with TASKS, all of these that ended
    /// without success.
    Requeue(RequeueArgs),
    /// List failed tasks over all jobs, grouped by job and reason
    Failed(FailedArgs),
    /// Remove ended jobs and their tasks from the manager
    ///
    /// The manager removes them by itself after a time, or when there are too many: see `keep` and
    /// `keep_attempts` in manager.toml. Output stays on the nodes as long as they keep it.
    Forget(ForgetArgs),
    /// Submit jobs that wait for each other, and show how far they are
    Workflow(WorkflowArgs),
    /// Run a job again and again: at the times of a cron pattern, or at an interval
    Schedule(ScheduleArgs),
    /// List or change queues: named shares of the cluster that jobs wait in
    Queue(QueueArgs),
    /// List services
    Services,
    /// Show or change a service: something that keeps running
    ///
    /// `podmesh service NAME` shows one. If a service has the name of a command below, use
    /// `podmesh service show NAME`.
    #[command(subcommand_negates_reqs = true, after_help = service::AFTER_HELP)]
    Service(ServiceArgs),
    /// Run the services of a compose file, with the verbs of `docker compose`
    #[command(after_help = compose::AFTER_HELP)]
    Compose(ComposeArgs),
    /// List named volumes: data that stays on one node
    ///
    /// The first task that uses a volume creates it on its node. From then on, tasks that use the
    /// volume run there.
    Volumes,
    /// Remove named volumes
    Volume(VolumeArgs),
    /// List nodes; cordon, drain, forget or revoke them
    #[command(args_conflicts_with_subcommands = true)]
    Nodes(NodesArgs),
    /// List events: every change, with its revision
    Events(EventsArgs),
    /// Watch nodes, jobs, services, schedules and all else in the terminal
    ///
    /// The keys are those of k9s and lazydocker: / filters, Enter opens, l shows logs, d describes,
    /// x cancels after a question, ? lists all keys, and q quits.
    Top,
    /// Open the console in the browser: a page on this machine alone, until Ctrl-C
    ///
    /// The page asks the manager through the mesh with your key, and may do what your role permits.
    /// The printed address contains a code that signs in once, within five minutes.
    Console(ConsoleArgs),
    /// List, create or revoke join tokens, with which machines and users join
    #[command(args_conflicts_with_subcommands = true)]
    Token(TokenArgs),
    /// Replace keys; nobody has to join again
    #[command(subcommand)]
    Key(KeyVerb),
    /// Join the cluster of a manager on another machine, as a user
    Login(LoginArgs),
    /// Leave that cluster: remove this user's key from this machine
    Logout,
    /// List the users who joined, or revoke them
    #[command(args_conflicts_with_subcommands = true)]
    Users(UsersArgs),
    /// Find out what is wrong between this machine and its manager
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Verb {
    /// Returns the verb's name if it does not support `--output json`.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match self {
            Self::Demo(_) => Some("demo"),
            Self::Dev(_) => Some("dev"),
            Self::Manager(_) => Some("manager"),
            Self::Agent(_) => Some("agent"),
            Self::Backup(_) => Some("backup"),
            Self::Check => Some("check"),
            Self::ProcessSupervisor(_) => Some("process-supervisor"),
            Self::NodeProxy(_) => Some("node-proxy"),
            Self::Run(_) => Some("run"),
            Self::Submit(args) if args.follow => Some("submit --follow"),
            Self::Logs(_) => Some("logs"),
            Self::Completions { .. } => Some("completions"),
            Self::Login(_) => Some("login"),
            Self::Logout => Some("logout"),
            Self::Key(_) => Some("key"),
            Self::Top => Some("top"),
            Self::Console(_) => Some("console"),
            Self::Token(TokenArgs { verb: Some(TokenVerb::Revoke { .. }) }) => Some("token revoke"),
            Self::Nodes(NodesArgs { verb: Some(NodesVerb::Revoke { .. }) }) => Some("nodes revoke"),
            Self::Nodes(NodesArgs { verb: Some(NodesVerb::Forget { .. }) }) => Some("nodes forget"),
            Self::Schedule(args) => args.without_json(),
            Self::Queue(args) => args.without_json(),
            Self::Service(args) => args.without_json(),
            Self::Compose(args) => args.without_json(),
            Self::Volume(_) => Some("volume remove"),
            Self::Users(UsersArgs { verb: Some(_) }) => Some("users revoke"),
            Self::Submit(_)
            | Self::Jobs(_)
            | Self::Job(_)
            | Self::Tasks(_)
            | Self::Cancel(_)
            | Self::Requeue(_)
            | Self::Failed(_)
            | Self::Forget(_)
            | Self::Workflow(_)
            | Self::Services
            | Self::Volumes
            | Self::Nodes(_)
            | Self::Users(UsersArgs { verb: None })
            | Self::Token(_)
            | Self::Doctor(_)
            | Self::Events(_) => None,
        }
    }
}

/// The trace that a job belongs to.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TraceArgs {
    /// Make the job a part of this trace (W3C `traceparent`); its tasks get it as TRACEPARENT
    /// [default: the variable TRACEPARENT]
    #[arg(long, value_name = "ID", help_heading = "What to run")]
    pub(crate) traceparent: Option<TraceParent>,
}

/// `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) options: JobOptions,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
}

/// `submit`.
#[derive(Args, Debug)]
pub(crate) struct SubmitArgs {
    /// Wait until the job has ended. Exit with the code of a single task; for an array with 0 if
    /// every task succeeded, else 1
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print the output and exit as `run` does; Ctrl-C does not cancel the job
    #[arg(long, conflicts_with = "wait")]
    pub(crate) follow: bool,
    /// Start no task before this time, such as 2026-12-01T08:00
    #[arg(long, value_name = "TIME", help_heading = "When to run")]
    pub(crate) at: Option<String>,
    /// Start no task before this time has passed, such as 2h
    #[arg(long = "in", value_name = "TIME", conflicts_with = "at", help_heading = "When to run")]
    pub(crate) pause: Option<Span>,
    /// Time zone of --at [default: that of this machine]
    #[arg(long, value_name = "ZONE", requires = "at", help_heading = "When to run")]
    pub(crate) tz: Option<String>,
    #[command(flatten)]
    pub(crate) upstream: AfterArgs,
    #[command(flatten)]
    pub(crate) options: JobOptions,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
}
