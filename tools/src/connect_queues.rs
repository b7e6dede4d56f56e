//! The requests about queues, with the reply of the matching type.

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::queue::{QueueChange, QueueDetail, QueueReply, QueueRequest, QueueView};

use crate::connect::{Connection, RequestError, unexpected};

impl Connection {
    async fn queue_request(&self, request: QueueRequest) -> Result<QueueReply, RequestError> {
        match self.request(RequestBody::Queue(request)).await? {
            ReplyBody::Queue(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// Returns all queues in order of name. Only an empty page is the last.
    pub(crate) async fn queues(&self) -> Result<Vec<QueueView>, RequestError> {
        let mut all: Vec<QueueView> = Vec::new();
        loop {
            let after = all.last().map(|view| view.queue.clone());
            let request = QueueRequest::List { after, limit: PAGE_ROWS_MAX };
            match self.queue_request(request).await? {
                QueueReply::List(page) if page.is_empty() => return Ok(all),
                QueueReply::List(page) => all.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Returns one queue.
    pub(crate) async fn queue(&self, queue: Name) -> Result<QueueDetail, RequestError> {
        match self.queue_request(QueueRequest::Show { queue }).await? {
            QueueReply::Queue(detail) => Ok(*detail),
            _ => Err(unexpected()),
        }
    }

    /// Adds a queue or changes its settings. Returns whether it was added, and whether anything has
    /// changed.
    pub(crate) async fn set_queue(
        &self,
        queue: Name,
        change: QueueChange,
    ) -> Result<(bool, bool), RequestError> {
        match self.queue_request(QueueRequest::Set { queue, change }).await? {
            QueueReply::Saved { added, changed } => Ok((added, changed)),
            _ => Err(unexpected()),
        }
    }

    /// Pauses, resumes or removes a queue. Returns whether anything has changed.
    pub(crate) async fn change_queue(&self, request: QueueRequest) -> Result<bool, RequestError> {
        match self.queue_request(request).await? {
            QueueReply::Changed { changed } => Ok(changed),
            _ => Err(unexpected()),
        }
    }
}
