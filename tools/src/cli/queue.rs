//! The arguments of `queue`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::QUEUE_WEIGHT_MAX;

pub(crate) const SET_HELP: &str = "\
Examples: podmesh queue set night --weight 3 --max-active 100
          podmesh queue set night --max-active none
          podmesh queue set night --dead-letter alarm.toml
          podmesh submit --queue night -- ./simulate";

/// `queue`.
#[derive(Args, Debug)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    pub(crate) verb: QueueVerb,
}

/// `queue …`.
#[derive(Subcommand, Debug)]
pub(crate) enum QueueVerb {
    /// List queues
    List,
    /// Show a queue, and what each caller has in it
    Show {
        /// Name of the queue
        name: Name,
    },
    /// Add a queue, or change its settings; what is not given stays as it is
    #[command(after_help = SET_HELP)]
    Set(SetArgs),
    /// Let no more tasks of queues start; those that run go on
    Pause {
        /// Names of the queues
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// End the pause of queues
    Resume {
        /// Names of the queues
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Remove queues without jobs that have not ended
    Remove {
        /// Names of the queues
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
}

/// `queue set`.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// Name of the queue; `default` is the one of jobs that name none
    #[arg(value_name = "NAME")]
    pub(crate) name: Name,
    /// What it gets of the cluster, compared with other queues that have jobs to run: 1 to 1000
    /// [default: 1]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(QUEUE_WEIGHT_MAX)),
        allow_hyphen_values = true
    )]
    pub(crate) weight: Option<u32>,
    /// Run at most so many of its tasks at a time; `none` lifts the limit [default: none]
    #[arg(long, value_name = "NUMBER", value_parser = limit, allow_hyphen_values = true)]
    pub(crate) max_active: Option<u32>,
    /// Run at most so many tasks of each caller at a time; `none` lifts the limit [default: none]
    #[arg(long, value_name = "NUMBER", value_parser = limit, allow_hyphen_values = true)]
    pub(crate) max_active_per_caller: Option<u32>,
    /// Submit the job in this file (as of `submit -f`) when a task of the queue has failed for good;
    /// its variables PODMESH_FAILED_TASK, _NODE, _REASON … say which task, and why
    #[arg(long, value_name = "FILE")]
    pub(crate) dead_letter: Option<PathBuf>,
    /// Submit no job when a task has failed
    #[arg(long, conflicts_with = "dead_letter")]
    pub(crate) no_dead_letter: bool,
}

/// Reads a limit; 0 stands for none.
fn limit(text: &str) -> Result<u32, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(0),
        (_, Ok(0)) => Err("at least 1, or `none`; `podmesh queue pause` lets no task start".into()),
        (_, Ok(limit)) => Ok(limit),
        (_, Err(_)) => Err("a whole number of at least 1, or `none`".into()),
    }
}

impl QueueArgs {
    /// Returns the verb's name if it does not support `--output json`.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match &self.verb {
            QueueVerb::Pause { .. } => Some("queue pause"),
            QueueVerb::Resume { .. } => Some("queue resume"),
            QueueVerb::Remove { .. } => Some("queue remove"),
            QueueVerb::List | QueueVerb::Show { .. } | QueueVerb::Set(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::limit;

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!([limit("none"), limit("1"), limit("200")], [Ok(0), Ok(1), Ok(200)]);
        for text in ["0", "-1", "1.5", "NaN", ""] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
