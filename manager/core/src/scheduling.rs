//! Nodes that an admin takes out of placement, and back in.

use alloc::format;

use podmesh_protocol::client::Scheduling;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;

use crate::Core;
use crate::step::{Answer, NodeRow, Step};

impl Core {
    /// Sets what a node may get. Replicas on a node that is drained are replaced by the services.
    pub(crate) fn schedule_node(
        &mut self,
        by: &Name,
        name: &Name,
        scheduling: Scheduling,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let Some(ix) = self.nodes.by_name(name) else {
            let message = format!("there is no node `{name}`; `podmesh nodes` shows all");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        let node = self.nodes.get(ix);
        let attempts = u32::try_from(node.attempts.len()).unwrap_or(u32::MAX);
        if node.row.scheduling != scheduling {
            let row = NodeRow { scheduling, ..NodeRow::clone(&node.row) };
            self.save_node(ix, row, out);
            let (node, by) = (name.clone(), by.clone());
            out.events.push(EventFact::NodeScheduled { node, scheduling: scheduling.into(), by });
            self.queue.node_changed(ix, &self.nodes);
            self.nodes.mark_changed(ix);
        }
        Ok(Answer::NodeScheduled { attempts })
    }
}
