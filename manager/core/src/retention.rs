//! Removing jobs, nodes and keys: those that have been kept long enough, and jobs that a user wants
//! removed.
//!
//! The core keeps no ended jobs. The shell finds in the database which of them are due, and the core
//! makes sure that no active job is removed, and none that another one waits for.

use alloc::vec::Vec;
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::node::NodeState;

use crate::Core;
use crate::faults::planted;
use crate::ids::NodeIx;
use crate::state::{Change, KeyRow, NodeRow};
use crate::step::{Answer, Step};

/// Changes up to which a step takes more nodes and keys.
const CHANGES_MAX: usize = 2_000;

impl Core {
    pub(crate) fn remove_jobs(
        &mut self,
        mut jobs: Vec<JobId>,
        by: Option<Name>,
        out: &mut Step,
    ) -> Answer {
        let all = planted!(self, ActiveJobRemoved);
        jobs.retain(|job| {
            let known = (JobId(1)..=self.state.last_job).contains(job);
            known && (all || !(self.state.jobs.contains_key(job) || self.is_awaited(*job)))
        });
        let count = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        if let Some(by) = by
            && let (Some(first), Some(last)) = (jobs.iter().min(), jobs.iter().max())
        {
            out.events.push(EventFact::JobsForgotten { first: *first, last: *last, count, by });
        }
        for job in jobs {
            self.state.record(out, Change::JobRemoved(job));
        }
        Answer::JobsRemoved { jobs: count }
    }

    /// Saves the age clock, and removes nodes that have been lost and keys that have been revoked
    /// for `keep_ms`. What does not fit into this step is left to the next call.
    pub(crate) fn on_retention_due(
        &mut self,
        age_ms: u64,
        keep_ms: u64,
        by: &Name,
        out: &mut Step,
    ) {
        self.state.record(out, Change::AgeSaved(age_ms));
        self.remove_lost_nodes(age_ms, keep_ms, by, out);
        self.remove_revoked_keys(age_ms, keep_ms, out);
    }

    /// Removes nodes together with their keys: a key of a node that is gone for good must not stay
    /// valid. Nodes that attempts wait for, or that have volumes, are kept.
    fn remove_lost_nodes(&mut self, age_ms: u64, keep_ms: u64, by: &Name, out: &mut Step) {
        let lost = self.nodes.iter().filter(|(_, node)| node.state == NodeState::Lost);
        let lost: Vec<NodeIx> = lost.map(|(ix, _)| ix).collect();
        for ix in lost {
            if !self.has_room(out) || out.changes.len() >= CHANGES_MAX {
                return;
            }
            let row = &self.nodes.get(ix).row;
            let Some(since) = row.lost_age_ms else {
                let row = NodeRow { lost_age_ms: Some(age_ms), ..NodeRow::clone(row) };
                self.save_node(ix, row, out);
                continue;
            };
            let name = row.node.clone();
            let is_used =
                !self.nodes.get(ix).attempts.is_empty() || !self.volumes_of(&name).is_empty();
            let margin_runs = self.nodes.deadline(ix).is_some();
            if !is_used && !margin_runs && age_ms.saturating_sub(since) >= keep_ms {
                self.revoke_key_of(by, PrincipalKind::Node, &name, out);
                self.forget_node(ix, by, out);
            }
        }
    }

    fn remove_revoked_keys(&mut self, age_ms: u64, keep_ms: u64, out: &mut Step) {
        let revoked = self.state.keys.values().filter(|row| row.revoked);
        let due = revoked.filter_map(|row| match row.revoked_age_ms {
            None => Some(Change::KeySaved(KeyRow { revoked_age_ms: Some(age_ms), ..row.clone() })),
            Some(since) if age_ms.saturating_sub(since) >= keep_ms => {
                Some(Change::KeyRemoved(row.key))
            }
            Some(_) => None,
        });
        let room = CHANGES_MAX.saturating_sub(out.changes.len());
        let due: Vec<Change> = due.take(room).collect();
        for change in due {
            self.state.record(out, change);
        }
    }
}
