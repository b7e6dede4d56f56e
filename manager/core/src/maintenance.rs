//! Planned maintenance of nodes: a node is drained from a time on, and may get again what it could
//! before when the time is over.
//!
//! A task whose timeout is known starts only if it is over when the window begins, unless the drain says
//! that tasks run again elsewhere: see [`leaves_time`](crate::nodes::Node::leaves_time).
//!
//! That a window has begun is durable, so it begins once, whatever the wall clock does. What an admin
//! does with the node meanwhile ends the window.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_calendar::Zone;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::DURATION_MS_MAX;
use podmesh_protocol::node::{MaintenanceSpec, Scheduling};
use podmesh_protocol::time::Now;

use crate::Core;
use crate::faults::planted;
use crate::ids::NodeIx;
use crate::state::{Drain, Maintenance, NodeRow};
use crate::step::{Answer, Step};

/// How far the wall clock may jump before what follows from it is worked out again.
const JUMP_MS: u64 = 1_000;

/// The windows of nodes.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// When they begin or end, the earliest first, by the wall clock.
    due: BTreeSet<(u64, NodeIx)>,
    /// The wall clock minus the monotonic one, when it was last compared.
    offset_ms: u64,
}

impl Windows {
    pub(crate) fn next_wakeup(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }
}

impl Core {
    /// Plans a maintenance of a node, in place of the one that it has. Without a spec, it has none
    /// afterwards; if the old one has begun, it ends now.
    pub(crate) fn set_maintenance(
        &mut self,
        now: Now,
        by: Name,
        name: &Name,
        spec: Option<MaintenanceSpec>,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let ix = self.known_node(name)?;
        let before = self.nodes.get(ix).row.maintenance.clone();
        if before.as_deref().map(|before| &before.spec) == spec.as_ref() {
            return Ok(Answer::MaintenanceSet { changed: false });
        }
        let invalid = |why: &str| Err(ErrorReply::new(ErrorCode::InvalidSpec, why));
        if let Some(spec) = &spec {
            if spec.until_ms() <= now.wall_ms {
                return invalid("the maintenance would be over already, by the manager's clock");
            }
            if spec.from_ms > now.wall_ms.saturating_add(DURATION_MS_MAX) {
                return invalid("the maintenance begins in more than 366 days (DURATION_MS_MAX)");
            }
        }
        if before.is_some() {
            self.end_maintenance(now, ix, by.clone(), "no longer planned".into(), out);
        }
        if let Some(spec) = spec {
            let at = |ms| Zone::utc().format(ms);
            let until = at(spec.until_ms());
            let message = format!("planned from {} until {until}", at(spec.from_ms));
            let maintenance = Maintenance { by: by.clone(), spec, before: None };
            self.tell_maintenance(ix, message, by, out);
            let row = NodeRow::clone(&self.nodes.get(ix).row);
            self.save_node(ix, NodeRow { maintenance: Some(Arc::new(maintenance)), ..row }, out);
            self.set_window(ix);
            self.run_window(now, ix, out);
        }
        Ok(Answer::MaintenanceSet { changed: true })
    }

    /// Begins and ends the windows whose time has come, up to the step's limit. The others stay due.
    pub(crate) fn run_windows(&mut self, now: Now, out: &mut Step) {
        self.follow_clock(now);
        while let Some((at, ix)) = self.windows.due.first().copied()
            && at <= now.wall_ms
            && self.has_room(out)
        {
            self.run_window(now, ix, out);
        }
    }

    /// Works out again when windows begin after the wall clock has jumped.
    fn follow_clock(&mut self, now: Now) {
        let offset_ms = now.wall_ms.wrapping_sub(now.mono_ms);
        let jump_ms = offset_ms.wrapping_sub(self.windows.offset_ms).cast_signed().unsigned_abs();
        if self.windows.due.is_empty() || jump_ms < JUMP_MS {
            return;
        }
        self.windows.offset_ms = offset_ms;
        let all: Vec<NodeIx> = self.windows.due.iter().map(|(_, ix)| *ix).collect();
        for ix in all {
            self.set_window(ix);
        }
    }

    fn run_window(&mut self, now: Now, ix: NodeIx, out: &mut Step) {
        let row = Arc::clone(&self.nodes.get(ix).row);
        let Some(window) = &row.maintenance else { return };
        let Maintenance { by, spec, before } = &**window;
        if now.wall_ms >= spec.until_ms() {
            let message = match before {
                Some(_) => "over".into(),
                None => "missed: the manager was away, or its clock was set ahead".into(),
            };
            return self.end_maintenance(now, ix, by.clone(), message, out);
        }
        if before.is_some() || now.wall_ms < spec.from_ms {
            return;
        }
        if row.scheduling == Scheduling::Draining {
            let message = "not needed: the node is being drained already".into();
            return self.end_maintenance(now, ix, by.clone(), message, out);
        }
        self.tell_maintenance(ix, "begins".into(), by.clone(), out);
        let drain = Drain { by: by.clone(), since_wall_ms: now.wall_ms, spec: spec.drain.clone() };
        let row = NodeRow {
            scheduling: Scheduling::Draining,
            drain: Some(Arc::new(drain)),
            maintenance: Some(Arc::new(Maintenance {
                before: Some(row.scheduling),
                ..Maintenance::clone(window)
            })),
            ..NodeRow::clone(&row)
        };
        self.reschedule(now, ix, row, by.clone(), out);
    }

    /// Ends the window of a node. If it has begun, the node may get again what it could before.
    fn end_maintenance(&mut self, now: Now, ix: NodeIx, by: Name, message: String, out: &mut Step) {
        let row = NodeRow::clone(&self.nodes.get(ix).row);
        let before = row.maintenance.as_ref().and_then(|window| window.before);
        let row = NodeRow { maintenance: None, ..row };
        self.tell_maintenance(ix, message, by.clone(), out);
        match before {
            Some(scheduling) => {
                self.reschedule(now, ix, NodeRow { scheduling, drain: None, ..row }, by, out);
            }
            None => {
                self.save_node(ix, row, out);
                self.set_window(ix);
            }
        }
    }

    pub(crate) fn tell_maintenance(&self, ix: NodeIx, message: String, by: Name, out: &mut Step) {
        let node = self.nodes.get(ix).row.node.clone();
        out.events.push(EventFact::NodeMaintenance { node, message, by });
    }

    /// Sets when the window of a node begins or ends, after its row has changed.
    pub(crate) fn set_window(&mut self, ix: NodeIx) {
        let (now, ignored) = (self.now, planted!(self, MaintenanceIgnored));
        let node = self.nodes.get_mut(ix);
        let planned = node.row.maintenance.as_deref();
        let waits = planned.filter(|window| !window.spec.drain.requeue && !ignored);
        let closes_ms = waits.map(|window| {
            now.mono_ms.saturating_add(window.spec.from_ms.saturating_sub(now.wall_ms))
        });
        let before = core::mem::replace(&mut node.closes_ms, closes_ms);
        let due_ms = node.row.maintenance.as_deref().map(Maintenance::due_ms);
        let old = core::mem::replace(&mut node.window_ms, due_ms);
        if let Some(at) = old {
            self.windows.due.remove(&(at, ix));
        }
        if let Some(at) = due_ms {
            self.windows.due.insert((at, ix));
        }
        if before != closes_ms {
            self.queue.node_changed(ix, &self.nodes);
        }
    }

    /// Forgets the window of a node that is removed.
    pub(crate) fn stop_window(&mut self, ix: NodeIx) {
        if let Some(at) = self.nodes.get_mut(ix).window_ms.take() {
            self.windows.due.remove(&(at, ix));
        }
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_windows(&self) {
        let mut due = BTreeSet::new();
        for (ix, node) in self.nodes.iter() {
            let Some(window) = node.row.maintenance.as_deref() else { continue };
            due.insert((window.due_ms(), ix));
            let is_draining = node.row.scheduling == Scheduling::Draining;
            assert!(window.before.is_none() || is_draining, "{}: its window", node.row.node);
        }
        assert_eq!(self.windows.due, due, "windows");
    }
}
