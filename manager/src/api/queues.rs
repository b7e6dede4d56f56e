//! Requests about queues.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_manager_core::Core;
use podmesh_manager_core::input::{Command, QueueAction};
use podmesh_manager_core::step::Answer;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::queue::{QueueReply, QueueRequest};

use super::{Api, unexpected};
use crate::callers::Client;
use crate::core::Room;

/// Returns whether a request is a command: the core decides it, in the order of arrival.
pub(super) fn is_command(request: &QueueRequest) -> bool {
    match request {
        QueueRequest::Set { .. }
        | QueueRequest::Pause { .. }
        | QueueRequest::Resume { .. }
        | QueueRequest::Remove { .. } => true,
        QueueRequest::List { .. } | QueueRequest::Show { .. } => false,
    }
}

impl Api {
    /// Answers a request that changes nothing.
    pub(super) async fn queue(&self, request: QueueRequest) -> Result<QueueReply, ErrorReply> {
        match request {
            QueueRequest::List { after, limit } => {
                let list = move |core: &Core, _| core.list_queues(after.as_ref(), limit);
                Ok(QueueReply::List(self.0.core.read(list).await?))
            }
            QueueRequest::Show { queue } => {
                let show = move |core: &Core, _| core.show_queue(&queue);
                Ok(QueueReply::Queue(Box::new(self.0.core.read(show).await??)))
            }
            _ => Err(unexpected()),
        }
    }

    /// Passes a command about a queue to the core.
    pub(super) fn begin_queue(
        &self,
        client: &Client,
        request: QueueRequest,
        room: Option<Room>,
    ) -> Result<BoxFuture<'static, Result<ReplyBody, ErrorReply>>, ErrorReply> {
        let by = client.caller.name.clone();
        let command = match request {
            QueueRequest::Set { queue, change } => {
                change
                    .validate()
                    .map_err(|error| ErrorReply::new(ErrorCode::InvalidSpec, error.to_string()))?;
                Command::SetQueue { by, queue, change }
            }
            QueueRequest::Pause { queue } => {
                Command::ChangeQueue { by, queue, action: QueueAction::Pause }
            }
            QueueRequest::Resume { queue } => {
                Command::ChangeQueue { by, queue, action: QueueAction::Resume }
            }
            QueueRequest::Remove { queue } => {
                Command::ChangeQueue { by, queue, action: QueueAction::Remove }
            }
            QueueRequest::List { .. } | QueueRequest::Show { .. } => return Err(unexpected()),
        };
        let pending = self.0.core.command(command, room);
        let answer = async move {
            let reply = match pending.answer().await? {
                Answer::QueueSaved { added, changed } => QueueReply::Saved { added, changed },
                Answer::QueueChanged { changed } => QueueReply::Changed { changed },
                _ => return Err(unexpected()),
            };
            Ok(ReplyBody::Queue(reply))
        };
        Ok(answer.boxed())
    }
}
