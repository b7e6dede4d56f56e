//! Why the tasks of a job wait, in sentences for people.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use podmesh_protocol::client::NodeState;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::limits::ATTEMPTS_PER_NODE_MAX;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::nodes::{Node, NodeIx};
use crate::placement::{Constraint, Needs, ReservationView};
use crate::state::Job;

/// The most nodes to name one by one. Of the others only the number is given.
const NODES_NAMED: usize = 5;

impl Core {
    /// Returns the reasons, one a line; empty for a job without queued tasks.
    pub(crate) fn explain(&self, now: Now, id: JobId) -> Vec<String> {
        let Some(job) = self.state.jobs.get(&id) else { return Vec::new() };
        let Some(dispatch) = self.dispatch.get(&id) else { return Vec::new() };
        if job.counts.queued == 0 || job.cancelling {
            return Vec::new();
        }
        let mut lines = Vec::new();
        if let Some((due, _)) = dispatch.waiting.first() {
            let tasks = count(dispatch.waiting.len(), "task waits", "tasks wait");
            let next = due.saturating_sub(now.mono_ms).div_ceil(1000);
            lines.push(format!("{tasks} for a retry; the next in {next} s"));
        }
        if dispatch.has_ready(job) {
            self.explain_placement(job, &mut lines);
        }
        lines
    }

    fn explain_placement(&self, job: &Job, lines: &mut Vec<String>) {
        if self.nodes.len() == 0 {
            return lines.push("no node has joined yet".into());
        }
        let needs = Needs::of(&job.spec);
        let suited: Vec<(NodeIx, &Node)> =
            self.nodes.iter().filter(|(_, node)| needs.suit(&node.row)).collect();
        if suited.is_empty() {
            return lines.push(self.explain_unsuited(&needs));
        }
        let gone = suited.iter().filter(|(_, node)| node.state != NodeState::Alive);
        for (_, node) in gone.clone().take(NODES_NAMED) {
            let state = if node.state == NodeState::Lost { "lost" } else { "suspect" };
            lines.push(format!("node `{}` is {state}", node.row.node));
        }
        match gone.count().saturating_sub(NODES_NAMED) {
            0 => {}
            more => lines
                .push(format!("{} suspect or lost", count(more, "more node is", "more nodes are"))),
        }
        let alive: Vec<(NodeIx, &Node)> =
            suited.into_iter().filter(|(_, node)| node.state == NodeState::Alive).collect();
        if alive.is_empty() {
            return;
        }
        let reservation = self.queue.reservation(&self.facts());
        lines.push(self.explain_room(job, &alive, reservation.as_ref()));
        if let Some(kept) = reservation.filter(|kept| kept.key == job.key()) {
            lines.push(self.explain_reservation(&kept));
        }
    }

    /// Returns what is reserved for the first job in line.
    fn explain_reservation(&self, kept: &ReservationView) -> String {
        let left = span(kept.left_ms);
        let Some(ix) = kept.node else {
            return format!(
                "first in line, but no node is reserved for it for another {left}: each node that fits was reserved recently, and is left to other jobs until then"
            );
        };
        let node = &self.nodes.get(ix).row.node;
        if kept.starts {
            return format!(
                "first in line: node `{node}` is reserved for it, and it starts there within {left}"
            );
        }
        format!("first in line: node `{node}` is reserved for it for another {left}")
    }

    /// Returns why no node suits. There is at least one node.
    fn explain_unsuited(&self, needs: &Needs) -> String {
        let total = count(self.nodes.len(), "node", "nodes");
        let Constraint { runtime, labels } = &needs.constraint;
        let fit: Vec<&Node> = self
            .nodes
            .iter()
            .map(|(_, node)| node)
            .filter(|node| node.row.runtimes.contains(runtime))
            .collect();
        if fit.is_empty() {
            return format!("runtime {runtime}: no node offers it ({total})");
        }
        for (label, value) in labels {
            if !fit.iter().any(|node| node.row.labels.get(label) == Some(value)) {
                return format!(
                    "label {label}={value}: no node that offers {runtime} has it ({total})"
                );
            }
        }
        let labelled: Vec<&Node> =
            fit.into_iter().filter(|node| needs.constraint.admits(&node.row)).collect();
        let Some(largest) = labelled.iter().max_by_key(|node| node.row.capacity.cpu_millis) else {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
            return format!("labels {}: no node has all of them ({total})", labels.join(", "));
        };
        let (wanted, capacity) = (&needs.resources, &largest.row.capacity);
        if wanted.cpu_millis > capacity.cpu_millis {
            return format!(
                "needs {}; the largest node that meets the other requirements, `{}`, has {}",
                cpus(wanted.cpu_millis),
                largest.row.node,
                cpus(capacity.cpu_millis)
            );
        }
        match labelled.iter().max_by_key(|node| node.row.capacity.memory_bytes) {
            Some(largest) if wanted.memory_bytes > largest.row.capacity.memory_bytes => format!(
                "needs {} of memory; the largest node that meets the other requirements, `{}`, has {}",
                bytes(wanted.memory_bytes),
                largest.row.node,
                bytes(largest.row.capacity.memory_bytes)
            ),
            _ => format!(
                "needs {} and {} of memory; no node that meets the other requirements has both",
                cpus(wanted.cpu_millis),
                bytes(wanted.memory_bytes)
            ),
        }
    }

    /// Returns why none of the suitable nodes that are alive takes a task. There is at least one.
    fn explain_room(
        &self,
        job: &Job,
        alive: &[(NodeIx, &Node)],
        reservation: Option<&ReservationView>,
    ) -> String {
        let with_room: Vec<&(NodeIx, &Node)> =
            alive.iter().filter(|(_, node)| node.has_room(&job.spec.resources)).collect();
        let reservation = reservation.filter(|kept| kept.key < job.key());
        match (with_room.as_slice(), reservation) {
            ([(ix, node)], Some(kept)) if kept.node == Some(*ix) => {
                let (name, first, left) = (&node.row.node, kept.key.job(), span(kept.left_ms));
                if kept.starts {
                    return format!(
                        "node `{name}` has room, which is reserved for job {first}, the first in line: it starts there within {left}; a task whose timeout ends before that may run there now"
                    );
                }
                format!(
                    "node `{name}` has room, which is reserved for job {first}, the first in line, for another {left}"
                )
            }
            ([], _) => {
                let (fit, all) = match alive.len() {
                    1 => ("1 node fits".to_owned(), "it is busy"),
                    n => (format!("{n} nodes fit"), "all busy"),
                };
                let most = alive.iter().map(|(_, node)| node).max_by_key(|node| {
                    let free = node.free();
                    (free.cpu_millis, free.memory_bytes, core::cmp::Reverse(node.rank))
                });
                let free = most.map(|node| {
                    if node.attempts.len() >= ATTEMPTS_PER_NODE_MAX {
                        return format!(
                            " (`{}` holds {ATTEMPTS_PER_NODE_MAX} attempts, which is the limit)",
                            node.row.node
                        );
                    }
                    let free = node.free();
                    format!(
                        " (most free: `{}` with {}, {})",
                        node.row.node,
                        cpus(free.cpu_millis),
                        bytes(free.memory_bytes)
                    )
                });
                format!("waits for room: {fit}, {all}{}", free.unwrap_or_default())
            }
            _ => "there is room: it is placed next".into(),
        }
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
    use crate::timers::seconds;

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(
            [0, 500, 1000, 1250, 8000].map(cpus),
            ["0 cpus", "0.5 cpus", "1 cpu", "1.25 cpus", "8 cpus"]
        );
        assert_eq!([0, 1023, 1 << 30, 3 << 39].map(bytes), ["0 B", "1023 B", "1.0 GiB", "1.5 TiB"]);
        assert_eq!([15_000, 300].map(seconds), ["15", "0.3"]);
    }
}
