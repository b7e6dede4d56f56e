//! The live sessions, and the reads of logs that wait for an agent's answer.

use std::collections::HashMap;

use parking_lot::Mutex;
use podmesh_manager_core::ids::ConnectionId;
use podmesh_protocol::client::LogSlice;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{AttemptId, Epoch, Name};
use podmesh_protocol::limits::LOG_READS_MAX;
use tokio::sync::oneshot;

/// An agent's answer to a read of a log.
pub(crate) type LogResult = Result<LogSlice, ErrorReply>;

/// The nodes that can be asked for logs, and the open questions.
#[derive(Default)]
pub(crate) struct LogReads {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Epoch, (Name, ConnectionId)>,
    /// The live session of a node.
    nodes: HashMap<Name, Epoch>,
    /// The live session of a connection.
    connections: HashMap<ConnectionId, Epoch>,
    last_number: u64,
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    epoch: Epoch,
    answer: oneshot::Sender<LogResult>,
}

/// A question to an agent to read a log. Dropping it discards the question.
pub(crate) struct LogQuestion<'a> {
    reads: &'a LogReads,
    /// The number that the agent repeats in its answer.
    pub(crate) number: u64,
    /// The connection of the agent to ask.
    pub(crate) connection: ConnectionId,
    /// The answer. The channel is closed without an answer if the session ends.
    pub(crate) answer: oneshot::Receiver<LogResult>,
}

impl LogReads {
    pub(crate) fn session_opened(&self, epoch: Epoch, node: Name, connection: ConnectionId) {
        let mut state = self.state.lock();
        state.nodes.insert(node.clone(), epoch);
        state.connections.insert(connection, epoch);
        state.sessions.insert(epoch, (node, connection));
    }

    /// Removes a session, and ends the questions that wait for its answer.
    pub(crate) fn session_closed(&self, epoch: Epoch) {
        let mut state = self.state.lock();
        if let Some((node, connection)) = state.sessions.remove(&epoch) {
            // A newer session may have replaced it.
            if state.nodes.get(&node) == Some(&epoch) {
                state.nodes.remove(&node);
            }
            if state.connections.get(&connection) == Some(&epoch) {
                state.connections.remove(&connection);
            }
        }
        state.waiting.retain(|_, waiting| waiting.epoch != epoch);
    }

    /// Ends the questions on a connection that has ended.
    pub(crate) fn connection_gone(&self, connection: ConnectionId) {
        let mut state = self.state.lock();
        if let Some(epoch) = state.connections.get(&connection).copied() {
            state.waiting.retain(|_, waiting| waiting.epoch != epoch);
        }
    }

    /// Prepares a question to the agent of a node.
    pub(crate) fn ask(
        &self,
        node: &Name,
        attempt: AttemptId,
    ) -> Result<LogQuestion<'_>, ErrorReply> {
        let mut state = self.state.lock();
        let Some(&epoch) = state.nodes.get(node) else { return Err(unavailable(node, attempt)) };
        let Some((_, connection)) = state.sessions.get(&epoch) else {
            return Err(unavailable(node, attempt));
        };
        let connection = *connection;
        if state.waiting.len() >= LOG_READS_MAX {
            let message = format!(
                "{LOG_READS_MAX} reads of logs are open, which is the limit (LOG_READS_MAX): try again later"
            );
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        state.last_number += 1;
        let number = state.last_number;
        let (sender, answer) = oneshot::channel();
        state.waiting.insert(number, Waiting { epoch, answer: sender });
        Ok(LogQuestion { reads: self, number, connection, answer })
    }

    /// Passes on an agent's answer. Returns whether the agent was asked this question.
    pub(crate) fn answered(
        &self,
        connection: ConnectionId,
        number: u64,
        result: LogResult,
    ) -> bool {
        let mut state = self.state.lock();
        let asked = state.connections.get(&connection).copied();
        if asked.is_none() || state.waiting.get(&number).map(|waiting| waiting.epoch) != asked {
            return false;
        }
        if let Some(waiting) = state.waiting.remove(&number) {
            // The client may be gone.
            _ = waiting.answer.send(result);
        }
        true
    }
}

impl Drop for LogQuestion<'_> {
    fn drop(&mut self) {
        self.reads.state.lock().waiting.remove(&self.number);
    }
}

/// Returns the error for a node that is not connected, which says where its output is.
pub(crate) fn unavailable(node: &Name, attempt: AttemptId) -> ErrorReply {
    let AttemptId { task, number } = attempt;
    let message = format!(
        "node `{node}`, which has the output of {attempt}, is not connected: try again when it is back, or look at that machine under {}/{}/{number} in the agent's log folder",
        task.job, task.index
    );
    ErrorReply::new(ErrorCode::NodeUnavailable, message)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::JobId;

    use super::*;

    const ATTEMPT: AttemptId = AttemptId::new(JobId(1), 2, 3);

    fn slice() -> LogResult {
        Ok(LogSlice { offset: 0, bytes: b"x".to_vec(), end: true, removed: false })
    }

    #[test]
    fn only_the_asked_agent_may_answer_and_only_once() {
        let reads = LogReads::default();
        let node: Name = "a".parse().unwrap();
        let said = reads.ask(&node, ATTEMPT).err().unwrap();
        assert_eq!(said.code, ErrorCode::NodeUnavailable);
        assert!(said.message.contains("`a`") && said.message.contains("1/2/3"), "{said}");

        reads.session_opened(Epoch(1), node.clone(), ConnectionId(112));
        reads.session_opened(Epoch(2), "b".parse().unwrap(), ConnectionId(113));
        let mut question = reads.ask(&node, ATTEMPT).unwrap();
        assert_eq!(question.connection, ConnectionId(112));
        assert!(!reads.answered(ConnectionId(113), question.number, slice()));
        assert!(!reads.answered(ConnectionId(115), question.number, slice()));
        assert!(reads.answered(ConnectionId(112), question.number, slice()));
        assert!(!reads.answered(ConnectionId(112), question.number, slice()));
        assert_eq!(question.answer.try_recv().unwrap(), slice());
    }

    #[test]
    fn the_end_of_a_session_ends_its_questions_and_no_others() {
        let reads = LogReads::default();
        let node: Name = "a".parse().unwrap();
        reads.session_opened(Epoch(1), node.clone(), ConnectionId(112));
        let mut old = reads.ask(&node, ATTEMPT).unwrap();
        // The node's new session begins before the end of the old one is reported.
        reads.session_opened(Epoch(2), node.clone(), ConnectionId(113));
        let mut new = reads.ask(&node, ATTEMPT).unwrap();
        reads.session_closed(Epoch(1));
        assert_eq!(old.answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(new.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        reads.connection_gone(ConnectionId(112));
        reads.connection_gone(ConnectionId(113));
        assert_eq!(new.answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        reads.ask(&node, ATTEMPT).unwrap();
        reads.session_closed(Epoch(2));
        reads.ask(&node, ATTEMPT).err().unwrap();
    }

    #[test]
    fn a_dropped_question_is_discarded_and_too_many_questions_are_refused() {
        let reads = LogReads::default();
        let node: Name = "a".parse().unwrap();
        reads.session_opened(Epoch(1), node.clone(), ConnectionId(112));
        let questions: Vec<_> =
            (0..LOG_READS_MAX).map(|_| reads.ask(&node, ATTEMPT).unwrap()).collect();
        let said = reads.ask(&node, ATTEMPT).err().unwrap();
        assert_eq!(said.code, ErrorCode::Overloaded);
        drop(questions);
        assert!(reads.state.lock().waiting.is_empty());
        reads.ask(&node, ATTEMPT).unwrap();
    }
}
