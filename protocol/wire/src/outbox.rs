//! The outgoing queue of a connection, bounded in bytes: a peer that does not read uses only the
//! memory granted to it, and blocks nobody else.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::guard::zmtp::frame_header;

/// The bytes of a frame in addition to its body.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// The number of bytes collected for one write.
const WRITE_BYTES: usize = 64 << 10;
/// The size of the write buffer kept while nothing is written.
const IDLE_BYTES: usize = 4 << 10;

/// The queue of a connection. There are three ways to add a message: [`Outbox::push`] refuses a
/// message that does not fit, [`Outbox::send`] waits until it fits, and [`Outbox::add`] always
/// accepts it.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes_max: u32,
    queue: Mutex<Queue>,
    /// Room for the messages that wait for it, first come first served.
    room: Arc<Semaphore>,
    /// There is something to write, or the queue is closed.
    work: Notify,
    /// Something was written.
    written: Notify,
    /// Something did not fit.
    overflow: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// The bytes of the queued frames, and of those being written.
    bytes: usize,
    /// The number of queued bytes when a message did not fit.
    overflow: Option<usize>,
    closed: bool,
}

/// A queued frame.
#[derive(Debug)]
struct Frame {
    body: Bytes,
    more: bool,
    _room: Option<OwnedSemaphorePermit>,
}

fn size_of(message: &[Bytes]) -> usize {
    message.iter().map(|body| body.len() + FRAME_OVERHEAD_BYTES).sum()
}

impl Outbox {
    pub(crate) fn new(bytes_max: u32) -> Self {
        Self {
            bytes_max,
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(bytes_max as usize)),
            work: Notify::new(),
            written: Notify::new(),
            overflow: Notify::new(),
        }
    }

    /// Adds a message, or returns false if it does not fit. One message always fits into an empty
    /// queue.
    pub(crate) fn push(&self, message: &[Bytes]) -> bool {
        let mut queue = self.queue.lock();
        if queue.bytes > 0 && queue.bytes + size_of(message) > self.bytes_max as usize {
            let bytes = queue.bytes;
            queue.overflow.get_or_insert(bytes);
            drop(queue);
            self.overflow.notify_one();
            return false;
        }
        queue.add(message, None);
        drop(queue);
        self.work.notify_one();
        true
    }

    /// Adds a message even if it does not fit.
    pub(crate) fn add(&self, message: &[Bytes]) {
        self.queue.lock().add(message, None);
        self.work.notify_one();
    }

    /// Adds a message as soon as it fits; waiting senders take turns. Cancel-safe.
    pub(crate) async fn send(&self, message: &[Bytes]) {
        let size = u32::try_from(size_of(message)).unwrap_or(u32::MAX).min(self.bytes_max);
        // The semaphore is never closed.
        let room = Arc::clone(&self.room).acquire_many_owned(size).await.ok();
        self.queue.lock().add(message, room);
        self.work.notify_one();
    }

    /// Returns once at most this number of bytes are queued.
    pub(crate) async fn has_drained_to(&self, bytes: usize) {
        loop {
            let mut written = pin!(self.written.notified());
            // From here on, every write is noticed.
            written.as_mut().enable();
            if self.queue.lock().bytes <= bytes {
                return;
            }
            written.await;
        }
    }

    /// Waits until [`Outbox::push`] has refused a message. Returns how many bytes were queued then.
    pub(crate) async fn has_overflown(&self) -> usize {
        loop {
            let overflow = self.overflow.notified();
            if let Some(bytes) = self.queue.lock().overflow {
                return bytes;
            }
            overflow.await;
        }
    }

    /// Closes the queue: [`Outbox::write_to`] ends when everything is written.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_one();
    }

    /// Writes all messages until the outbox is closed.
    ///
    /// # Errors
    /// If the stream fails.
    pub(crate) async fn write_to(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut gathered = Vec::new();
        loop {
            let mut bytes = 0;
            let mut large = None;
            let closed = {
                let mut queue = self.queue.lock();
                while gathered.len() < WRITE_BYTES
                    && let Some(Frame { body, more, _room }) = queue.frames.pop_front()
                {
                    bytes += body.len() + FRAME_OVERHEAD_BYTES;
                    gathered.extend_from_slice(frame_header(body.len(), more).as_ref());
                    if body.len() > WRITE_BYTES {
                        large = Some(body);
                        break;
                    }
                    gathered.extend_from_slice(&body);
                }
                queue.closed
            };
            if bytes == 0 {
                if closed {
                    return to.shutdown().await;
                }
                self.work.notified().await;
                continue;
            }
            to.write_all(&gathered).await?;
            if let Some(body) = large {
                to.write_all(&body).await?;
            }
            to.flush().await?;
            gathered.clear();
            gathered.shrink_to(IDLE_BYTES);
            self.queue.lock().bytes -= bytes;
            self.written.notify_waiters();
        }
    }
}

impl Queue {
    fn add(&mut self, message: &[Bytes], room: Option<OwnedSemaphorePermit>) {
        self.bytes += size_of(message);
        let last = message.len().saturating_sub(1);
        let mut room = room;
        for (n, body) in message.iter().enumerate() {
            let _room = if n == last { room.take() } else { None };
            self.frames.push_back(Frame { body: body.clone(), more: n < last, _room });
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::guard::zmtp::Traffic;
    use crate::stream::MessageReader;

    #[tokio::test]
    async fn a_message_that_does_not_fit_is_refused_until_others_are_read() {
        let outbox = Arc::new(Outbox::new(1000));
        let body = [Bytes::from(vec![1; 400])];
        assert!(outbox.push(&body));
        assert!(outbox.push(&body));
        assert!(!outbox.push(&body));
        assert!(outbox.has_overflown().await >= 800);
        let (mut writer, reader) = duplex(16);
        let writing = Arc::clone(&outbox);
        let written = tokio::spawn(async move { writing.write_to(&mut writer).await });
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        for _ in 0..2 {
            assert_eq!(reader.next().await.unwrap().unwrap(), body);
        }
        // Larger than the limit, but it passes, alone.
        let large = Bytes::from(vec![2; 200_000]);
        let message = [large.clone(), body[0].clone()];
        for _ in 0..3 {
            tokio::join!(outbox.send(&message), async {
                assert_eq!(reader.next().await.unwrap().unwrap(), message);
            });
        }
        outbox.has_drained_to(0).await;
        outbox.close();
        assert!(reader.next().await.unwrap().is_none());
        written.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn waiting_senders_take_turns() {
        let outbox = Arc::new(Outbox::new(100));
        let sender = |byte: u8| {
            let outbox = Arc::clone(&outbox);
            async move {
                for _ in 0..3 {
                    outbox.send(&[Bytes::from(vec![byte; 30])]).await;
                }
            }
        };
        let (one, two) = (tokio::spawn(sender(1)), tokio::spawn(sender(2)));
        let (mut writer, reader) = duplex(16);
        let writing = Arc::clone(&outbox);
        tokio::spawn(async move { writing.write_to(&mut writer).await });
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(reader.next().await.unwrap().unwrap()[0][0]);
        }
        // The first sender found room, and queued again before the second one came.
        assert_eq!(order, [1, 1, 2, 1, 2, 2]);
        one.await.unwrap();
        two.await.unwrap();
    }
}
