//! What waits to leave on a connection, bounded in bytes: a peer that does not read costs the
//! memory that it was granted, and holds up nobody else.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::guard::zmtp::frame_header;

/// What a frame takes besides its body.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 64 << 10;
/// What the buffer for them keeps while nothing is written.
const IDLE_BYTES: usize = 4 << 10;

/// The queue of a connection. Messages enter it in one of three ways: [`Outbox::push`] refuses
/// what does not fit, [`Outbox::send`] waits until it fits, and [`Outbox::add`] takes it always.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes_max: u32,
    queue: Mutex<Queue>,
    /// Room for messages that wait for it, first come first served.
    room: Arc<Semaphore>,
    /// There is something to write, or it is closed.
    work: Notify,
    /// Something was written.
    written: Notify,
    /// Something did not fit.
    overflow: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Of the frames, and of those that are being written.
    bytes: usize,
    /// How many bytes waited when a message did not fit.
    overflow: Option<usize>,
    closed: bool,
}

/// A frame to be sent.
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

    /// Adds a message. False when it does not fit: then it is not added. One message always fits
    /// an empty queue.
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

    /// Adds a message even where it does not fit.
    pub(crate) fn add(&self, message: &[Bytes]) {
        self.queue.lock().add(message, None);
        self.work.notify_one();
    }

    /// Adds a message as soon as it fits; those who wait take turns. Can be dropped while it waits.
    pub(crate) async fn send(&self, message: &[Bytes]) {
        let size = u32::try_from(size_of(message)).unwrap_or(u32::MAX).min(self.bytes_max);
        // The semaphore is never closed.
        let room = Arc::clone(&self.room).acquire_many_owned(size).await.ok();
        self.queue.lock().add(message, room);
        self.work.notify_one();
    }

    /// Returns once no more than so many bytes wait.
    pub(crate) async fn has_drained_to(&self, bytes: usize) {
        loop {
            let mut written = pin!(self.written.notified());
            // From here on, what is written is noticed.
            written.as_mut().enable();
            if self.queue.lock().bytes <= bytes {
                return;
            }
            written.await;
        }
    }

    /// Returns once a message was refused by [`Outbox::push`]: how many bytes waited then.
    pub(crate) async fn has_overflown(&self) -> usize {
        loop {
            let overflow = self.overflow.notified();
            if let Some(bytes) = self.queue.lock().overflow {
                return bytes;
            }
            overflow.await;
        }
    }

    /// Nothing more is added: [`Outbox::write_to`] ends when all is written.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_one();
    }

    /// Writes what is added until the outbox is closed.
    ///
    /// # Errors
    /// When the stream fails.
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
    async fn what_fits_is_kept_and_what_does_not_is_refused_until_it_is_read() {
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
        // Larger than the bound, and yet it goes through: alone.
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
    async fn senders_that_wait_take_turns() {
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
        // The first found room, and stood in line again before the other one came.
        assert_eq!(order, [1, 1, 2, 1, 2, 2]);
        one.await.unwrap();
        two.await.unwrap();
    }
}
