//! Reads of output, which the agent that has it answers.

use std::time::Duration;

use podmesh_protocol::client::{LogRead, LogSlice};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::{LOG_FIND_BYTES_MAX, LOG_READ_BYTES_MAX, WAIT_MS_MAX};
use podmesh_protocol::session::ToPeer;
use tokio::time::timeout;

use super::Api;
use crate::log_reads::unavailable;
use crate::threads::stopping;

/// How long an agent may take to answer beyond what it was asked to wait.
const AGENT_LIMIT: Duration = Duration::from_secs(10);

impl Api {
    /// Asks the agent that runs or ran the attempt.
    pub(super) async fn log(&self, mut read: LogRead) -> Result<LogSlice, ErrorReply> {
        let attempt = read.attempt;
        if let Some(text) = &read.find
            && (text.is_empty() || text.len() > LOG_FIND_BYTES_MAX || text.contains('\n'))
        {
            let message = format!(
                "the text to find in a log must have 1 to {LOG_FIND_BYTES_MAX} bytes and no line break"
            );
            return Err(ErrorReply::new(ErrorCode::BadMessage, message));
        }
        read.bytes_max = read.bytes_max.min(LOG_READ_BYTES_MAX);
        read.wait_ms = read.wait_ms.min(WAIT_MS_MAX);
        let bytes_max = read.bytes_max as usize;
        let limit = AGENT_LIMIT + Duration::from_millis(read.wait_ms.into());
        let node = self.0.reads.run(move |history| history.node_of(attempt)).await?;
        let mut question = self.0.log_reads.ask(&node, attempt)?;
        let message = ToPeer::LogRead(question.number, read);
        if !self.0.messages.clone().send(question.connection, &message).await {
            return Err(unavailable(&node, attempt));
        }
        let mut stop = self.0.stopping.clone();
        let answer = tokio::select! {
            answer = timeout(limit, &mut question.answer) => answer,
            _ = stop.wait_for(|stopping| *stopping) => return Err(stopping()),
        };
        match answer {
            Ok(Ok(Ok(slice))) if slice.bytes.len() > bytes_max => {
                let message = format!("node `{node}` sent more of the log than it was asked for");
                Err(ErrorReply::new(ErrorCode::BadMessage, message))
            }
            Ok(Ok(result)) => result,
            // The session ended.
            Ok(Err(_)) => Err(unavailable(&node, attempt)),
            Err(_) => {
                let message = format!(
                    "node `{node}` did not answer within {} s: try again later",
                    limit.as_secs()
                );
                Err(ErrorReply::new(ErrorCode::NodeUnavailable, message))
            }
        }
    }
}
