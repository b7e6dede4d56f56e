//! Removing nodes that are gone for good.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{Name, TaskId};
use podmesh_protocol::node::NodeState;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::time::Now;

use crate::ids::NodeIx;
use crate::ids::Ticket;
use crate::input::{Command, Input};
use crate::state::Change;
use crate::step::{Answer, Step};
use crate::{Core, answer};

/// The most volumes that a refusal names.
const VOLUMES_NAMED: usize = 5;

impl Core {
    /// Forgets a lost node, and ends the attempts that are still on it if the request says so. The
    /// key of the node stays valid: if its agent comes back, it gets a session as a new node and is
    /// told to stop the attempts that it holds.
    pub(crate) fn on_forget_node(
        &mut self,
        now: Now,
        ticket: Ticket,
        by: Name,
        name: Name,
        force: bool,
        out: &mut Step,
    ) {
        let ix = match self.may_be_forgotten(&name, force) {
            Ok(ix) => ix,
            Err(error) => return answer(out, ticket, Err(error)),
        };
        let attempts: Vec<TaskId> = self.nodes.get(ix).attempts.keys().copied().collect();
        for task in attempts {
            if !self.has_room(out) {
                let command = Command::ForgetNode { by, node: name, force };
                return self.backlog.push_front(Input::Command(ticket, command));
            }
            let message =
                format!("node `{name}` was forgotten by {by}; what the attempt did is not known");
            let outcome = Outcome::new(OutcomeKind::Lost).with_message(message);
            self.end_attempt(now, task, outcome, out);
            // One failure too many cancels a job, and its attempts on lost nodes are then looked at.
            self.nodes.set_deadline(&mut self.timers, ix, None);
        }
        for volume in self.volumes_of(&name) {
            if !self.has_room(out) {
                let command = Command::ForgetNode { by, node: name, force };
                return self.backlog.push_front(Input::Command(ticket, command));
            }
            self.volume_gone(volume, by.clone(), out);
        }
        let enrolled = self.access.is_enrolled(&name);
        self.forget_node(ix, &by, out);
        answer(out, ticket, Ok(Answer::NodeForgotten { enrolled }));
    }

    /// Removes a node that is lost, and has no attempts and no deadline.
    pub(crate) fn forget_node(&mut self, ix: NodeIx, by: &Name, out: &mut Step) {
        let name = self.nodes.get(ix).row.node.clone();
        self.state.record(out, Change::NodeForgotten(name.clone()));
        out.events.push(EventFact::NodeForgotten { node: name, by: by.clone() });
        // Without runtimes it suits no job.
        Arc::make_mut(&mut self.nodes.get_mut(ix).row).runtimes.clear();
        self.queue.node_changed(ix, &self.nodes);
        self.stop_drain_timer(ix);
        self.stop_window(ix);
        self.nodes.remove(ix);
    }

    fn may_be_forgotten(&self, name: &Name, force: bool) -> Result<NodeIx, ErrorReply> {
        let Some(ix) = self.nodes.by_name(name) else {
            let message = format!("there is no node `{name}`; `podmesh nodes` shows all");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        let in_use = |message: String| Err(ErrorReply::new(ErrorCode::NodeInUse, message));
        let node = self.nodes.get(ix);
        let attempts = node.attempts.len();
        let volumes = self.volumes_of(name);
        match node.state {
            NodeState::Alive => in_use(format!(
                "node `{name}` is alive: stop its agent, and forget it once it is lost"
            )),
            NodeState::Suspect => in_use(format!(
                "node `{name}` may still come back within its lease: forget it once it is lost"
            )),
            // The margin has not ended yet. After it only attempts that wait for the node are left.
            NodeState::Lost if self.nodes.deadline(ix).is_some() => {
                in_use(format!("node `{name}` was lost a moment ago: forget it in a few seconds"))
            }
            NodeState::Lost if attempts > 0 && !force => in_use(format!(
                "attempts wait for node `{name}` ({attempts} of them) and may still run there: --force ends them as lost, and tasks that have retries left start elsewhere although the older copy may still run"
            )),
            NodeState::Lost if !volumes.is_empty() && !force => {
                let names: Vec<&str> =
                    volumes.iter().take(VOLUMES_NAMED).map(Name::as_str).collect();
                in_use(format!(
                    "node `{name}` has volumes ({}: {}{}): --force forgets them too, and services that use them start elsewhere with empty ones",
                    volumes.len(),
                    names.join(", "),
                    if volumes.len() > VOLUMES_NAMED { ", …" } else { "" }
                ))
            }
            NodeState::Lost => Ok(ix),
        }
    }
}
