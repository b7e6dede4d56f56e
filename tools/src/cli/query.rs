//! The arguments of the verbs that ask the manager.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use podmesh_protocol::again::EndedAs;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::{AttemptId, JobId, Name, TaskId};
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::report::TaskState;

use crate::values::Span;

/// `jobs`.
#[derive(Args, Debug)]
pub(crate) struct JobsArgs {
    /// Only jobs that have not ended
    #[arg(long)]
    pub(crate) active: bool,
    /// Only jobs that you submitted
    #[arg(long)]
    pub(crate) mine: bool,
    /// List the replicas of this service; each is a job of one task
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<Name>,
    /// Show at most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Show all jobs
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
}

/// `job`.
#[derive(Args, Debug)]
pub(crate) struct JobArgs {
    /// The job's number
    pub(crate) job: JobId,
    /// Print only why it waits, in which queue, and what comes first
    #[arg(long)]
    pub(crate) why: bool,
}

/// `tasks`.
#[derive(Args, Debug)]
pub(crate) struct TasksArgs {
    /// The job's number
    pub(crate) job: JobId,
    /// Only tasks in this state
    #[arg(long)]
    pub(crate) state: Option<TaskStateFlag>,
    /// Show at most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Show all tasks
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
}

/// `--state`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TaskStateFlag {
    /// Waiting for free resources, or for a retry
    Queued,
    /// Assigned to a node
    Active,
    /// Its last attempt succeeded
    Succeeded,
    /// Its last attempt failed, and there are no retries left
    Failed,
    /// Cancelled
    Cancelled,
}

impl From<TaskStateFlag> for TaskState {
    fn from(flag: TaskStateFlag) -> Self {
        match flag {
            TaskStateFlag::Queued => Self::Queued,
            TaskStateFlag::Active => Self::Active,
            TaskStateFlag::Succeeded => Self::Succeeded,
            TaskStateFlag::Failed => Self::Failed,
            TaskStateFlag::Cancelled => Self::Cancelled,
        }
    }
}

/// `logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// A job such as 42, a task such as 42.7, an attempt such as 42.7#2, a service such as web, or
    /// a replica such as web.3
    #[arg(value_name = "JOB|TASK|ATTEMPT|SERVICE|REPLICA")]
    pub(crate) of: LogsOf,
    /// Follow the output until the end; a service has none, so until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only the last lines of each stream, of the last attempt of each task or replica
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Print only this stream [default: stdout to stdout, stderr to stderr]
    #[arg(long)]
    pub(crate) stream: Option<StreamFlag>,
    /// Print only lines that contain this text; its node looks for them, so little is sent. Exits with
    /// 1 if there is none, and with more after an error
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["follow", "tail"])]
    pub(crate) grep: Option<String>,
}

/// The argument of `logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogsOf {
    /// All tasks of a job.
    Job(JobId),
    /// All attempts of a task.
    Task(TaskId),
    /// One attempt.
    Attempt(AttemptId),
    /// A service, or a replica `web.3`: only the manager knows whether `web.3` is a service.
    Service(Name),
}

/// Error for a text that is none of them.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "not a job such as 42, a task such as 42.7, an attempt such as 42.7#2, a service such as web, or a replica such as web.3"
)]
pub(crate) struct LogsOfError;

impl FromStr for LogsOf {
    type Err = LogsOfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let job = || text.parse().map(Self::Job).ok();
        let task = || text.parse().map(Self::Task).ok();
        let attempt = || text.parse().map(Self::Attempt).ok();
        // What begins like a task is a typing error, not a service.
        let head = text.split('.').next().unwrap_or_default();
        let numeric = head.bytes().all(|b| b.is_ascii_digit());
        let service = || if numeric { None } else { text.parse().map(Self::Service).ok() };
        job().or_else(task).or_else(attempt).or_else(service).ok_or(LogsOfError)
    }
}

impl fmt::Display for LogsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(job) => job.fmt(f),
            Self::Task(task) => task.fmt(f),
            Self::Attempt(attempt) => attempt.fmt(f),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// `--stream`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StreamFlag {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

impl From<StreamFlag> for LogStream {
    fn from(flag: StreamFlag) -> Self {
        match flag {
            StreamFlag::Stdout => Self::Stdout,
            StreamFlag::Stderr => Self::Stderr,
        }
    }
}

/// `cancel`.
#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    /// Numbers of the jobs
    #[arg(required = true)]
    pub(crate) jobs: Vec<JobId>,
    /// Also cancel the jobs that depend on them, or on a job that does, as long as they have not ended
    #[arg(long)]
    pub(crate) downstream: bool,
}

/// `requeue`.
#[derive(Args, Debug)]
pub(crate) struct RequeueArgs {
    /// Number of the job
    pub(crate) job: JobId,
    /// Only these tasks, such as 3,7,10-20
    #[arg(value_name = "TASKS", allow_hyphen_values = true)]
    pub(crate) tasks: Option<Ranges>,
    /// Only tasks that ended like this
    #[arg(long)]
    pub(crate) state: Option<EndedAsFlag>,
    /// Also requeue what ended without success of the jobs that depend on it, or on a job that does
    #[arg(long)]
    pub(crate) downstream: bool,
}

/// `--state` of `requeue`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EndedAsFlag {
    /// Failed in any way, also lost or timed out
    Failed,
    /// Cancelled, or expired
    Cancelled,
    /// Failed because the last attempt was lost
    Lost,
    /// Failed because the last attempt timed out
    TimedOut,
}

impl From<EndedAsFlag> for EndedAs {
    fn from(flag: EndedAsFlag) -> Self {
        match flag {
            EndedAsFlag::Failed => Self::Failed,
            EndedAsFlag::Cancelled => Self::Cancelled,
            EndedAsFlag::Lost => Self::Lost,
            EndedAsFlag::TimedOut => Self::TimedOut,
        }
    }
}

/// `failed`.
#[derive(Args, Debug)]
pub(crate) struct FailedArgs {
    /// Show only tasks that failed in this time until now, such as 24h [default: all]
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Span>,
}

/// `forget`.
#[derive(Args, Debug)]
pub(crate) struct ForgetArgs {
    /// Numbers of the jobs, such as 42, or ranges of them, such as 1-1000
    #[arg(required = true, value_name = "JOB|FIRST-LAST")]
    pub(crate) jobs: Vec<JobRange>,
}

/// A range of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobRange {
    /// The first job.
    pub(crate) first: JobId,
    /// The last job.
    pub(crate) last: JobId,
}

/// Error for a text that is neither a job nor a range of jobs.
#[derive(Clone, Debug, thiserror::Error)]
#[error("expected a job such as 42, or a range such as 1-1000")]
pub(crate) struct JobRangeError;

impl FromStr for JobRange {
    type Err = JobRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let job = |text: &str| text.parse::<JobId>().map_err(|_| JobRangeError);
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (job(first)?, job(last)?),
            None => (job(text)?, job(text)?),
        };
        if first > last { Err(JobRangeError) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for JobRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "job {first}") } else { write!(f, "jobs {first} to {last}") }
    }
}

/// `events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Follow new events as they happen
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show only events after this revision [default: all that are kept; with -f only new ones]
    #[arg(long, value_name = "REVISION")]
    pub(crate) since: Option<u64>,
    /// Show only events of this job
    #[arg(long)]
    pub(crate) job: Option<JobId>,
    /// Show only events of this kind, such as job_ended: as --output json names it
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Show only events that name this node
    #[arg(long)]
    pub(crate) node: Option<Name>,
    /// Show only events of this service and its replicas
    #[arg(long)]
    pub(crate) service: Option<Name>,
    /// Show only what this user did
    #[arg(long)]
    pub(crate) user: Option<Name>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn forget_takes_jobs_and_ranges() {
        let range = |first, last| JobRange { first: JobId(first), last: JobId(last) };
        assert_eq!("42".parse::<JobRange>().unwrap(), range(42, 42));
        assert_eq!("1-1000".parse::<JobRange>().unwrap(), range(1, 1000));
        for text in ["", "x", "-", "1-", "-1", "2-1", "1-2-3", "1.2"] {
            assert!(text.parse::<JobRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn logs_takes_jobs_tasks_attempts_services_and_replicas() {
        assert_eq!("42".parse::<LogsOf>().unwrap(), LogsOf::Job(JobId(42)));
        let task = TaskId { job: JobId(42), index: 7 };
        assert_eq!("42.7".parse::<LogsOf>().unwrap(), LogsOf::Task(task));
        let attempt = LogsOf::Attempt(AttemptId { task, number: 2 });
        assert_eq!("42.7#2".parse::<LogsOf>().unwrap(), attempt);
        for text in ["web", "web.3", "3scale"] {
            let service = LogsOf::Service(text.parse().unwrap());
            assert_eq!(text.parse::<LogsOf>().unwrap(), service);
        }
        for text in ["", "a b", "web#3", "42.", "42#1", "42.7#0", "1.x"] {
            assert!(text.parse::<LogsOf>().is_err(), "{text}");
        }
    }
}

/// `console`.
#[derive(Args, Debug)]
pub(crate) struct ConsoleArgs {
    /// Address of the page, on this machine; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Only print the address; do not open the browser
    #[arg(long)]
    pub(crate) no_open: bool,
}
