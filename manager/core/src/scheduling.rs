//! Nodes that an admin takes out of placement, and back in, and the labels that an admin gives them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::LABELS_MAX;
use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::time::Now;

use crate::Core;
use crate::ids::NodeIx;
use crate::state::{Drain, NodeRow};
use crate::step::{Answer, Step};

impl Core {
    /// Sets what a node may get. Replicas on a node that is drained are replaced by the services. The
    /// drain of a node that is drained already replaces the first one.
    pub(crate) fn schedule_node(
        &mut self,
        now: Now,
        by: Name,
        name: &Name,
        scheduling: Scheduling,
        spec: DrainSpec,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let ix = self.known_node(name)?;
        let row = &self.nodes.get(ix).row;
        let (before, was) = (row.scheduling, row.drain.clone());
        let mut notes = Vec::new();
        // A drain without a word leaves the one that there is.
        let repeats = before == scheduling && spec.is_default();
        if let Some(was) = was.filter(|_| scheduling == Scheduling::Draining) {
            notes.push(match repeats {
                true => format!("{name} is being drained already, as {} asked", was.by),
                false => format!(
                    "{name} was being drained already, as {} asked: the deadline, --requeue and the reason of this request are valid from now on; what was told to stop before stops",
                    was.by
                ),
            });
        }
        let others = self.nodes.iter().any(|(other, node)| other != ix && node.is_open());
        if scheduling != Scheduling::Open && !others {
            notes.push("no other node takes new work: what is submitted waits".into());
        }
        if !repeats {
            let drains = scheduling == Scheduling::Draining;
            let drain = Drain { by: by.clone(), since_wall_ms: now.wall_ms, spec };
            let drain = drains.then(|| Arc::new(drain));
            // The admin has the node in hand now.
            let planned = row.maintenance.clone();
            let maintenance = planned.clone().filter(|planned| planned.before.is_none());
            if planned != maintenance {
                let message = format!("over: {by} has changed what the node may get");
                self.tell_maintenance(ix, message, by.clone(), out);
            }
            let row = NodeRow::clone(&self.nodes.get(ix).row);
            let row = NodeRow { scheduling, drain, maintenance, ..row };
            self.reschedule(now, ix, row, by, out);
        }
        let attempts = self.nodes.get(ix).attempts.len();
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        Ok(Answer::NodeScheduled { attempts, notes })
    }

    /// Saves the row of a node that may get something else, or is drained otherwise.
    pub(crate) fn reschedule(
        &mut self,
        now: Now,
        ix: NodeIx,
        row: NodeRow,
        by: Name,
        out: &mut Step,
    ) {
        let before = self.nodes.get(ix).row.scheduling;
        let (node, scheduling) = (row.node.clone(), row.scheduling);
        self.save_node(ix, row, out);
        self.set_drain_timer(now, ix);
        self.set_window(ix);
        let is_drained = scheduling == Scheduling::Draining
            && before != scheduling
            && self.nodes.get(ix).attempts.is_empty();
        let drained = is_drained.then(|| EventFact::NodeDrained { node: node.clone() });
        out.events.push(EventFact::NodeScheduled { node, scheduling: scheduling.into(), by });
        out.events.extend(drained);
        self.queue.node_changed(ix, &self.nodes);
        self.nodes.mark_changed(ix);
    }

    /// Changes the labels that admins have given a node. What runs there stays; what waits is placed
    /// by the new labels.
    pub(crate) fn label_node(
        &mut self,
        by: Name,
        name: &Name,
        set: BTreeMap<Name, String>,
        remove: BTreeSet<Name>,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let ix = self.known_node(name)?;
        let row = &self.nodes.get(ix).row;
        let mut admin_labels = row.admin_labels.clone();
        let mut changes = Vec::new();
        for label in remove {
            if admin_labels.remove(&label).is_some() {
                changes.push(format!("{label}-"));
            } else if row.labels.contains_key(&label) {
                let message = format!(
                    "the label `{label}` of node {name} comes from its agent (`labels` in agent.toml): change it there, or set another value over it (`podmesh nodes label {name} {label}=VALUE`)"
                );
                return Err(ErrorReply::new(ErrorCode::Conflict, message));
            } else {
                let message = format!("node {name} has no label `{label}`");
                return Err(ErrorReply::new(ErrorCode::NotFound, message));
            }
        }
        for (label, value) in set {
            if admin_labels.get(&label) != Some(&value) {
                changes.push(format!("{label}={value}"));
                admin_labels.insert(label, value);
            }
        }
        if admin_labels.len() > LABELS_MAX {
            let message = format!(
                "node {name} would have {} labels of admins, which is over the limit of {LABELS_MAX} (LABELS_MAX)",
                admin_labels.len()
            );
            return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
        }
        if !changes.is_empty() {
            let row = NodeRow { admin_labels, ..NodeRow::clone(row) };
            self.save_node(ix, row, out);
            let node = name.clone();
            out.events.push(EventFact::NodeLabelled { node, labels: changes, by });
            self.queue.node_changed(ix, &self.nodes);
            self.nodes.mark_changed(ix);
        }
        let row = &self.nodes.get(ix).row;
        let all = row.labels.iter().chain(&row.admin_labels);
        let labels = all.map(|(label, value)| (label.clone(), value.clone())).collect();
        Ok(Answer::NodeLabelled { labels })
    }

    pub(crate) fn known_node(&self, name: &Name) -> Result<NodeIx, ErrorReply> {
        self.nodes.by_name(name).ok_or_else(|| {
            let message = format!("there is no node `{name}`; `podmesh nodes` shows all");
            ErrorReply::new(ErrorCode::NotFound, message)
        })
    }
}
