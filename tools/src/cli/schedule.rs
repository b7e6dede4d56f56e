//! The arguments of `schedule`.

use clap::{Args, Subcommand, ValueEnum};
use podmesh_protocol::ids::Name;
use podmesh_protocol::schedule::Overlap;

use super::job::{CommandArgs, JobOptions};
use crate::values::Span;

pub(crate) const ADD_HELP: &str = "\
Examples: podmesh schedule add backup --cron '0 3 * * *' --tz Europe/Berlin -- /usr/local/bin/backup
          podmesh schedule add poll --every 15m --overlap queue -- poll
          podmesh schedule add -f backup.toml      with the keys name, cron and those of a job file";

/// `schedule`.
#[derive(Args, Debug)]
pub(crate) struct ScheduleArgs {
    #[command(subcommand)]
    pub(crate) verb: ScheduleVerb,
}

/// `schedule …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ScheduleVerb {
    /// Add a schedule, or change the one with the name
    ///
    /// A cron pattern has five fields: minute, hour, day of month, month and day of week; a field for
    /// seconds may come first. If both days are given, one of them must match. A wall time that
    /// daylight saving skips runs right after the gap, and one that comes twice runs at the first; a
    /// pattern with `*` or a step in its hours or minutes runs at each moment that matches.
    ///
    /// The task finds the name in PODMESH_SCHEDULE, and the time for which it runs in
    /// PODMESH_SCHEDULE_TIME.
    #[command(after_help = ADD_HELP)]
    Add(Box<AddArgs>),
    /// List schedules
    List,
    /// Show a schedule and its next five times
    Show {
        /// Name of the schedule
        name: Name,
    },
    /// Let schedules start no runs; the times that pass meanwhile are not made up for
    Pause {
        /// Names of the schedules
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// End the pause of schedules
    Resume {
        /// Names of the schedules
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Start a run now, and print the number of its job
    ///
    /// A run that goes on is treated as --overlap says. A paused schedule runs too.
    Run {
        /// Name of the schedule
        name: Name,
    },
    /// Remove schedules with their history; their jobs stay
    Remove {
        /// Names of the schedules
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// List what became of the last times of a schedule, newest first
    History {
        /// Name of the schedule
        name: Name,
        /// Maximum number of rows
        #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

/// `schedule add`.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Name of the schedule [default: the `name` of the file]
    #[arg(value_name = "NAME")]
    pub(crate) schedule: Option<Name>,
    #[command(flatten)]
    pub(crate) rule: RuleArgs,
    #[command(flatten)]
    pub(crate) options: JobOptions,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
}

/// When a schedule runs.
#[derive(Args, Debug, Default)]
pub(crate) struct RuleArgs {
    /// Run at the times that match a cron pattern
    #[arg(long, value_name = "PATTERN", conflicts_with = "every", help_heading = "When to run")]
    pub(crate) cron: Option<String>,
    /// Run at this interval, from now on; at least 1s
    #[arg(long, value_name = "TIME", help_heading = "When to run")]
    pub(crate) every: Option<Span>,
    /// Time zone of the pattern [default: that of this machine]
    #[arg(long, value_name = "ZONE", conflicts_with = "every", help_heading = "When to run")]
    pub(crate) tz: Option<String>,
    /// If the last run has not ended [default: skip]
    #[arg(long, value_name = "WHAT", help_heading = "When to run")]
    pub(crate) overlap: Option<OverlapFlag>,
    /// How late a run may start, if the manager was away; of several such runs only the last one
    /// starts [default: 1m]
    #[arg(long, value_name = "TIME", help_heading = "When to run")]
    pub(crate) catch_up: Option<Span>,
}

/// `--overlap`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OverlapFlag {
    /// Skip the new run
    Skip,
    /// Let the new run wait; at most one waits
    Queue,
    /// Cancel the last run, and start the new one when it has ended
    Replace,
}

impl From<OverlapFlag> for Overlap {
    fn from(flag: OverlapFlag) -> Self {
        match flag {
            OverlapFlag::Skip => Self::Skip,
            OverlapFlag::Queue => Self::Queue,
            OverlapFlag::Replace => Self::Replace,
        }
    }
}

impl ScheduleArgs {
    /// Returns the verb's name if it does not support `--output json`.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match &self.verb {
            ScheduleVerb::Pause { .. } => Some("schedule pause"),
            ScheduleVerb::Resume { .. } => Some("schedule resume"),
            ScheduleVerb::Remove { .. } => Some("schedule remove"),
            ScheduleVerb::Add(_)
            | ScheduleVerb::List
            | ScheduleVerb::Show { .. }
            | ScheduleVerb::Run { .. }
            | ScheduleVerb::History { .. } => None,
        }
    }
}
