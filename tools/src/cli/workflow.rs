//! The arguments of `workflow`, and of what a job waits for.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use podmesh_protocol::ids::{JobId, Name};

pub(crate) const SUBMIT_HELP: &str = "\
Example of a file:

    name = \"nightly\"

    [[job]]
    name = \"build\"
    command = [\"make\"]

    [[job]]
    name = \"test\"
    array = 20
    command = [\"./test\"]
    after = \"build\"              # or a list; also after_failed, after_any and after_each

Each job has the keys of a job file.";

/// The jobs that a job waits for.
#[derive(Args, Debug, Default)]
pub(crate) struct AfterArgs {
    /// Start no task before these jobs have succeeded
    #[arg(long, value_name = "JOB", value_delimiter = ',', help_heading = "When to run")]
    pub(crate) after: Vec<JobId>,
    /// Start no task before these jobs have failed, or were cancelled
    #[arg(long, value_name = "JOB", value_delimiter = ',', help_heading = "When to run")]
    pub(crate) after_failed: Vec<JobId>,
    /// Start no task before these jobs have ended, in whichever way
    #[arg(long, value_name = "JOB", value_delimiter = ',', help_heading = "When to run")]
    pub(crate) after_any: Vec<JobId>,
    /// Start a task when the tasks with the same index of these jobs have succeeded; all have the same
    /// --array
    #[arg(long, value_name = "JOB", value_delimiter = ',', help_heading = "When to run")]
    pub(crate) after_each: Vec<JobId>,
}

/// `workflow`.
#[derive(Args, Debug)]
pub(crate) struct WorkflowArgs {
    #[command(subcommand)]
    pub(crate) verb: WorkflowVerb,
}

/// `workflow …`.
#[derive(Subcommand, Debug)]
pub(crate) enum WorkflowVerb {
    /// Submit all jobs of a file, or none, and print the number of the workflow
    ///
    /// The number is that of the first job; those of the others follow, in the order of the file.
    #[command(after_help = SUBMIT_HELP)]
    Submit(SubmitWorkflowArgs),
    /// Show a workflow: its jobs, their states, and what they wait for
    Show {
        /// Its name, which means the newest with that name, or its number
        #[arg(value_name = "NAME|NUMBER")]
        workflow: String,
    },
    /// Cancel all jobs of a workflow that have not ended
    Cancel {
        /// Its name, which means the newest with that name, or its number
        #[arg(value_name = "NAME|NUMBER")]
        workflow: String,
    },
    /// List workflows, newest first
    List {
        /// Only workflows with this name
        #[arg(long)]
        name: Option<Name>,
        /// How many to list
        #[arg(long, value_name = "NUMBER", default_value_t = 20)]
        limit: u32,
    },
}

/// `workflow submit`.
#[derive(Args, Debug)]
pub(crate) struct SubmitWorkflowArgs {
    /// The TOML file, or `-` for standard input
    #[arg(short, long, value_name = "WORKFLOW.toml")]
    pub(crate) file: PathBuf,
    /// Name of the workflow, for people; need not be unique [default: that in the file, else of the file]
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Show progress until no job can go on, and exit with 0 if none has failed, otherwise as `run` does
    /// for the first job that has. Ctrl-C ends only the wait
    #[arg(long)]
    pub(crate) wait: bool,
}
