//! Why queued tasks wait: values, and the words for them.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{JobId, Name};
use crate::limits::{ATTEMPTS_PER_NODE_MAX, AVOID_MS_MAX};
use crate::report::JobState;
use crate::spec::{Resources, RuntimeKind};
use crate::workflow::Condition;

/// A reason why the queued tasks of a job wait. [`Display`](fmt::Display) says it for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// The job must not start before a time.
    NotBefore {
        /// The time, for people.
        at: String,
        /// Milliseconds until then.
        left_ms: u64,
    },
    /// The job waits for other jobs.
    Upstream {
        /// The first of them.
        jobs: Vec<JobId>,
        /// How many more there are.
        more: usize,
        /// How they must end.
        when: Condition,
    },
    /// A job that it waits for has ended in another way than asked.
    Blocked {
        /// The job.
        job: JobId,
        /// How it has ended.
        ended: JobState,
        /// How it must end.
        when: Condition,
    },
    /// More jobs that it waits for have ended in another way than asked.
    MoreBlocked {
        /// How many.
        jobs: usize,
    },
    /// Tasks wait for a retry.
    Retry {
        /// How many.
        tasks: usize,
        /// Milliseconds until the next of them is due.
        next_ms: u64,
    },
    /// So many tasks of the job are active as may be at a time.
    MaxActive {
        /// How many.
        tasks: u32,
    },
    /// The queue of the job is paused.
    QueuePaused {
        /// The queue.
        queue: String,
    },
    /// So many tasks of the queue are active as may be at a time.
    QueueFull {
        /// The queue.
        queue: String,
        /// How many.
        tasks: u32,
    },
    /// So many tasks of the caller are active in the queue as may be at a time.
    CallerFull {
        /// The queue.
        queue: String,
        /// How many.
        tasks: u32,
    },
    /// Others wait for room too, and take turns.
    Turn(Box<TurnView>),
    /// Tasks wait for another node than those where they failed.
    Elsewhere {
        /// How many.
        tasks: usize,
    },
    /// The manager knows no node.
    NoNodes,
    /// No node offers the runtime.
    NoNodeWithRuntime {
        /// The runtime.
        runtime: RuntimeKind,
        /// The number of all nodes.
        nodes: usize,
    },
    /// No node that offers the runtime has the label.
    NoNodeWithLabel {
        /// The label.
        label: Name,
        /// The value that it must have.
        value: String,
        /// The runtime.
        runtime: RuntimeKind,
        /// The number of all nodes.
        nodes: usize,
    },
    /// Nodes have each of the labels, but none has all of them.
    NoNodeWithLabels {
        /// The labels.
        labels: BTreeMap<Name, String>,
        /// The number of all nodes.
        nodes: usize,
    },
    /// No node that meets the other requirements has enough cores.
    TooManyCpus {
        /// What a task needs, in thousandths of a core.
        wanted_millis: u32,
        /// The node with the most cores.
        largest: Name,
        /// What that node has.
        largest_millis: u32,
    },
    /// No node that meets the other requirements has enough memory.
    TooMuchMemory {
        /// What a task needs.
        wanted_bytes: u64,
        /// The node with the most memory.
        largest: Name,
        /// What that node has.
        largest_bytes: u64,
    },
    /// No node that meets the other requirements has enough of both.
    TooLarge {
        /// What a task needs.
        wanted: Resources,
    },
    /// No node that meets the other requirements has enough of a named resource.
    TooFew {
        /// The resource.
        resource: Name,
        /// What a task needs, in thousandths.
        wanted_millis: u32,
        /// The most that a node has.
        most_millis: u64,
    },
    /// The nodes with enough room have a named resource in use.
    InUse {
        /// The resource.
        resource: Name,
        /// What a task needs, in thousandths.
        wanted_millis: u32,
        /// How many nodes suit.
        nodes: usize,
    },
    /// The task needs a node for itself, and all that suit run something.
    NotEmpty {
        /// How many nodes suit.
        nodes: usize,
    },
    /// The task must run on one node. The reasons after this one are of that node.
    Bound {
        /// The node.
        node: Name,
        /// Why.
        to: Bond,
    },
    /// A node that suits is suspect or lost.
    NodeAway {
        /// The node.
        node: Name,
        /// Whether it is lost.
        lost: bool,
    },
    /// More nodes that suit are suspect or lost.
    MoreNodesAway {
        /// How many.
        nodes: usize,
    },
    /// Nodes that suit were taken out of placement by an admin.
    NodesClosed {
        /// How many are cordoned.
        cordoned: usize,
        /// How many are being drained.
        draining: usize,
    },
    /// On nodes that suit, a task could not be over before their planned maintenance.
    Maintenance {
        /// How many.
        nodes: usize,
        /// The one whose maintenance begins first.
        node: Name,
        /// Milliseconds until then.
        left_ms: u64,
    },
    /// All nodes that suit are busy.
    Busy {
        /// How many suit.
        nodes: usize,
        /// The one with the most free.
        freest: Option<FreestNode>,
    },
    /// The only node with room is reserved for an earlier job.
    Reserved {
        /// The node.
        node: Name,
        /// The job that it is reserved for.
        first: JobId,
        /// Milliseconds until the reservation ends or the task of that job starts.
        left_ms: u64,
        /// Whether the task of that job is certain to start by then.
        starts: bool,
    },
    /// The job is the first in line.
    FirstInLine {
        /// The node that is reserved for it, if any.
        reserved: Option<Name>,
        /// Milliseconds until the reservation, or the time without one, ends or the task starts.
        left_ms: u64,
        /// Whether the task is certain to start there by then.
        starts: bool,
    },
    /// The job is the first in line, and preemptible tasks are stopped to make room for it.
    MakingRoom {
        /// The node.
        node: Name,
        /// How many tasks.
        tasks: usize,
    },
    /// The job is preemptible, and others that are not wait for room.
    Preemptible,
    /// There is room.
    PlacedNext,
}

/// What binds a task to a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bond {
    /// The node has this volume.
    Volume(Name),
    /// The services of this project run on the node.
    Project(Name),
}

/// The node with the most free of those that suit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreestNode {
    /// The node.
    pub node: Name,
    /// What is free there.
    pub free: Resources,
    /// Whether it holds as many attempts as a node may.
    pub full: bool,
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = |nodes: &usize| count(*nodes, "node", "nodes");
        match self {
            Self::NotBefore { at, left_ms } => {
                write!(f, "not before {at}, which is in {}", span(*left_ms))
            }
            Self::Upstream { jobs, more, when } => {
                let one = jobs.len() + more == 1;
                let names: Vec<String> = jobs.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                let noun = if one { "job" } else { "jobs" };
                match more {
                    0 => write!(f, "waits for {noun} {names}")?,
                    more => write!(f, "waits for {noun} {names} and {more} more")?,
                }
                f.write_str(match when {
                    Condition::Succeeded => " to succeed",
                    Condition::Failed => " to fail",
                    Condition::Ended => " to end",
                    Condition::Each => ", index by index",
                })
            }
            Self::Blocked { job, ended, when } => match (ended, when) {
                (JobState::Succeeded, _) => write!(
                    f,
                    "upstream {job} succeeded, and this one runs only after a failure: cancel it if it is not needed"
                ),
                (_, Condition::Each) => write!(
                    f,
                    "upstream {job} {}: tasks wait for those of it that did not succeed; `podmesh requeue {job}` runs them again",
                    ended_as(*ended)
                ),
                _ => write!(
                    f,
                    "upstream {job} {}: `podmesh requeue {job}` runs it again, and this one follows when it succeeds",
                    ended_as(*ended)
                ),
            },
            Self::MoreBlocked { jobs } => {
                write!(f, "{}", count(*jobs, "more upstream job", "more upstream jobs"))?;
                f.write_str(" ended in another way than asked")
            }
            Self::Retry { tasks, next_ms } => {
                let tasks = count(*tasks, "task waits", "tasks wait");
                write!(f, "{tasks} for a retry; the next in {} s", next_ms.div_ceil(1000))
            }
            Self::QueuePaused { queue } => {
                write!(
                    f,
                    "the queue `{queue}` is paused: an admin resumes it (`podmesh queue resume {queue}`)"
                )
            }
            Self::QueueFull { queue, tasks } => write!(
                f,
                "{tasks} of {tasks} tasks of the queue `{queue}` are active (--max-active): the next one starts when one of them has ended"
            ),
            Self::CallerFull { queue, tasks } => write!(
                f,
                "{tasks} of {tasks} tasks of its caller are active in the queue `{queue}` (--max-active-per-caller): the next one starts when one of them has ended"
            ),
            Self::Turn(turn) => turn.fmt(f),
            Self::MaxActive { tasks } => {
                write!(f, "{tasks} of {tasks} tasks are active (--max-active)")
            }
            Self::Elsewhere { tasks } => {
                let tasks = count(*tasks, "task waits", "tasks wait");
                let most = AVOID_MS_MAX / 1000;
                write!(f, "{tasks} for room on another node than where it failed, up to {most} s")
            }
            Self::NoNodes => f.write_str("no node has joined yet"),
            Self::NoNodeWithRuntime { runtime, nodes } => {
                write!(f, "runtime {runtime}: no node offers it ({})", total(nodes))
            }
            Self::NoNodeWithLabel { label, value, runtime, nodes } => write!(
                f,
                "label {label}={value}: no node that offers {runtime} has it ({})",
                total(nodes)
            ),
            Self::NoNodeWithLabels { labels, nodes } => {
                let labels: Vec<String> =
                    labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
                let labels = labels.join(", ");
                write!(f, "labels {labels}: no node has all of them ({})", total(nodes))
            }
            Self::TooManyCpus { wanted_millis, largest, largest_millis } => write!(
                f,
                "needs {}; the largest node that meets the other requirements, `{largest}`, has {}",
                cpus(*wanted_millis),
                cpus(*largest_millis)
            ),
            Self::TooMuchMemory { wanted_bytes, largest, largest_bytes } => write!(
                f,
                "needs {} of memory; the largest node that meets the other requirements, `{largest}`, has {}",
                bytes(*wanted_bytes),
                bytes(*largest_bytes)
            ),
            Self::TooLarge { wanted } => write!(
                f,
                "needs {} and {} of memory; no node that meets the other requirements has both",
                cpus(wanted.cpu_millis),
                bytes(wanted.memory_bytes)
            ),
            Self::TooFew { resource, wanted_millis, most_millis: 0 } => write!(
                f,
                "no node that fits offers `{resource}`, of which it needs {} (`resources` in agent.toml)",
                amount((*wanted_millis).into())
            ),
            Self::TooFew { resource, wanted_millis, most_millis } => write!(
                f,
                "needs {} of `{resource}`; the most that a node has is {}{}",
                amount((*wanted_millis).into()),
                amount(*most_millis),
                if wanted_millis.is_multiple_of(1_000) {
                    ""
                } else {
                    ", and parts can only be had of resources with ids"
                }
            ),
            Self::InUse { resource, wanted_millis, nodes } => write!(
                f,
                "waits for {} of `{resource}`: {} enough, in use",
                amount((*wanted_millis).into()),
                count(*nodes, "node has", "nodes have")
            ),
            Self::NotEmpty { nodes } => write!(
                f,
                "waits for a node for itself: {} something",
                count(*nodes, "node fits and runs", "nodes fit and run")
            ),
            Self::Bound { node, to: Bond::Volume(volume) } => {
                write!(f, "it must run on node `{node}`, which has its volume `{volume}`")
            }
            Self::Bound { node, to: Bond::Project(project) } => {
                write!(f, "it must run on node `{node}`, where project `{project}` runs")
            }
            Self::NodeAway { node, lost } => {
                write!(f, "node `{node}` is {}", if *lost { "lost" } else { "suspect" })
            }
            Self::MoreNodesAway { nodes } => {
                let more = count(*nodes, "more node is", "more nodes are");
                write!(f, "{more} suspect or lost")
            }
            Self::NodesClosed { cordoned, draining } => {
                let nodes = |n: &usize| count(*n, "node that suits is", "nodes that suit are");
                match (cordoned, draining) {
                    (n, 0) => write!(f, "{} cordoned", nodes(n)),
                    (0, n) => write!(f, "{} being drained", nodes(n)),
                    (n, m) => write!(f, "{} cordoned or being drained", nodes(&(n + m))),
                }
            }
            Self::Maintenance { nodes, node, left_ms } => {
                let left = span(*left_ms);
                f.write_str(
                    "a task might not be over (--timeout, --stop-grace) when the maintenance of ",
                )?;
                match nodes {
                    1 => write!(f, "node `{node}` begins in {left}"),
                    n => write!(f, "{n} nodes begins, the first of `{node}` in {left}"),
                }?;
                f.write_str("; it can start there afterwards")
            }
            Self::Busy { nodes, freest } => {
                match nodes {
                    1 => f.write_str("waits for room: 1 node fits, it is busy")?,
                    n => write!(f, "waits for room: {n} nodes fit, all busy")?,
                }
                match freest {
                    Some(FreestNode { node, full: true, .. }) => write!(
                        f,
                        " (`{node}` holds {ATTEMPTS_PER_NODE_MAX} attempts, which is the limit)"
                    ),
                    Some(FreestNode { node, free, full: false }) => write!(
                        f,
                        " (most free: `{node}` with {}, {})",
                        cpus(free.cpu_millis),
                        bytes(free.memory_bytes)
                    ),
                    None => Ok(()),
                }
            }
            Self::Reserved { node, first, left_ms, starts: true } => write!(
                f,
                "node `{node}` has room, which is reserved for job {first}, the first in line: it starts there within {}; a task whose timeout ends before that may run there now",
                span(*left_ms)
            ),
            Self::Reserved { node, first, left_ms, starts: false } => write!(
                f,
                "node `{node}` has room, which is reserved for job {first}, the first in line, for another {}",
                span(*left_ms)
            ),
            Self::FirstInLine { reserved: None, left_ms, .. } => write!(
                f,
                "first in line, but no node is reserved for it for another {}: each node that fits was reserved recently, and is left to other jobs until then",
                span(*left_ms)
            ),
            Self::FirstInLine { reserved: Some(node), left_ms, starts: true } => write!(
                f,
                "first in line: node `{node}` is reserved for it, and it starts there within {}",
                span(*left_ms)
            ),
            Self::FirstInLine { reserved: Some(node), left_ms, starts: false } => write!(
                f,
                "first in line: node `{node}` is reserved for it for another {}",
                span(*left_ms)
            ),
            Self::MakingRoom { node, tasks } => write!(
                f,
                "{} on node `{node}` {} to make room for it",
                count(*tasks, "preemptible task", "preemptible tasks"),
                if *tasks == 1 { "is stopped" } else { "are stopped" }
            ),
            Self::Preemptible => f.write_str(
                "preemptible: tasks of jobs that are not preemptible come first, and some wait",
            ),
            Self::PlacedNext => f.write_str("there is room: it is placed next"),
        }
    }
}

/// `2`, `0.5`.
fn amount(millis: u64) -> String {
    match millis % 1_000 {
        0 => (millis / 1_000).to_string(),
        part => format!("{}.{}", millis / 1_000, format!("{part:03}").trim_end_matches('0')),
    }
}

fn ended_as(state: JobState) -> &'static str {
    match state {
        JobState::Cancelled => "was cancelled",
        JobState::Expired => "expired",
        JobState::Succeeded => "succeeded",
        JobState::Failed | JobState::Queued | JobState::Running | JobState::Cancelling => "failed",
    }
}

/// `1 node`, `2 nodes`.
fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// `45 s`, `3 min`, `5 h`; rounded up.
fn span(ms: u64) -> String {
    match ms.div_ceil(1000) {
        s @ 0..=120 => format!("{s} s"),
        s @ 121..=7200 => format!("{} min", s.div_ceil(60)),
        s => format!("{} h", s.div_ceil(3600)),
    }
}

/// Whose turn it is among those who wait for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnView {
    /// The queue of the job.
    pub queue: String,
    /// Its weight.
    pub weight: u32,
    /// The weights of all queues with tasks that wait for room.
    pub weights: u64,
    /// The cores of the active tasks of the queue, in thousandths.
    pub queue_cpu_millis: u64,
    /// Those of all these queues.
    pub queues_cpu_millis: u64,
    /// The caller of the job.
    pub caller: String,
    /// The cores of the active tasks of the caller in the queue.
    pub caller_cpu_millis: u64,
    /// How many callers in the queue have tasks that wait for room.
    pub callers: usize,
    /// How many callers of all queues come before this one.
    pub before: usize,
    /// How many jobs of the same caller in the queue come before this one.
    pub jobs_before: usize,
}

impl fmt::Display for TurnView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64, whole: u64| (part * 100 + whole / 2) / whole.max(1);
        let cpus = |millis: u64| cpus(u32::try_from(millis).unwrap_or(u32::MAX));
        let Self { queue, weight, weights, caller, callers, before, jobs_before, .. } = self;
        write!(
            f,
            "share: the queue `{queue}` has {} of the cpus of the queues that wait ({}), and {} by its weight ({weight} of {weights})",
            format_args!("{} %", percent(self.queue_cpu_millis, self.queues_cpu_millis)),
            cpus(self.queue_cpu_millis),
            format_args!("{} %", percent(u64::from(*weight), *weights)),
        )?;
        if *callers > 1 {
            write!(
                f,
                "; `{caller}` has {} of them, and {callers} callers wait in the queue",
                cpus(self.caller_cpu_millis)
            )?;
        }
        match before {
            0 => write!(f, "; the next room is theirs")?,
            1 => write!(f, "; 1 other caller comes first")?,
            _ => write!(f, "; {before} other callers come first")?,
        }
        match jobs_before {
            0 => Ok(()),
            1 => write!(f, "; then 1 earlier job of `{caller}`"),
            _ => write!(f, "; then {jobs_before} earlier jobs of `{caller}`"),
        }
    }
}

/// `8 cpus`, `0.5 cpus`, `1 cpu`.
fn cpus(millis: u32) -> String {
    let unit = if millis == 1000 { "cpu" } else { "cpus" };
    let (whole, part) = (millis / 1000, millis % 1000);
    if part == 0 {
        return format!("{whole} {unit}");
    }
    let part = format!("{part:03}");
    format!("{whole}.{} {unit}", part.trim_end_matches('0'))
}

/// `1.0 GiB`, `0 B`.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(
            [0, 500, 1000, 1250, 8000].map(cpus),
            ["0 cpus", "0.5 cpus", "1 cpu", "1.25 cpus", "8 cpus"]
        );
        assert_eq!([0, 1023, 1 << 30, 3 << 39].map(bytes), ["0 B", "1023 B", "1.0 GiB", "1.5 TiB"]);
    }
}
