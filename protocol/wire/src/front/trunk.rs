//! Between the front and the manager's ZeroMQ sockets: one connection to ROUTER and one to PUB,
//! made at the start and kept until the manager ends.
//!
//! ROUTER and PUB have one peer each, however many connections the front has. The reason is not
//! speed: see [`crate::control`].

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use podmesh_protocol::limits::{PUBLICATIONS_UNREAD_BYTES_MAX, TRUNK_BYTES_MAX};
use tokio::net::UnixStream;

use super::OnEnd;
use crate::guard::zmtp::Traffic;
use crate::outbox::Outbox;
use crate::stream::{MessageReader, StreamError, handshake};

/// The front's identity on ROUTER.
pub(crate) const FRONT_IDENTITY: &[u8] = b"front";

/// The identity of a connection.
pub(super) type Identity = [u8; 16];

/// All connections, and the connection to the manager's sockets.
pub(super) struct Trunk {
    to_router: Outbox,
    control: Mutex<HashMap<Identity, Arc<Outbox>>>,
    subscribers: Mutex<HashMap<Identity, Arc<Subscriber>>>,
    closed: AtomicBool,
}

/// A connection that is subscribed to topics.
pub(super) struct Subscriber {
    topics: Mutex<Vec<Bytes>>,
    pub(super) outbox: Outbox,
}

impl Subscriber {
    pub(super) fn new() -> Self {
        Self { topics: Mutex::default(), outbox: Outbox::new(PUBLICATIONS_UNREAD_BYTES_MAX) }
    }

    /// Applies a message of SUB that the guard has accepted: 1 or 0, then the topic.
    pub(super) fn subscribe(&self, message: &Bytes) {
        let mut topics = self.topics.lock();
        let topic = message.slice(1.min(message.len())..);
        match message.first() {
            // Copied: a slice would keep the whole buffer that it was read into.
            Some(1) => topics.push(Bytes::copy_from_slice(&topic)),
            _ => {
                if let Some(at) = topics.iter().position(|known| *known == topic) {
                    topics.swap_remove(at);
                }
            }
        }
    }

    fn wants(&self, topic: &[u8]) -> bool {
        self.topics.lock().iter().any(|prefix| topic.starts_with(prefix))
    }
}

/// A connection's entry in the trunk; removed when it is dropped, for any reason.
pub(super) struct Registration {
    trunk: Arc<Trunk>,
    identity: Identity,
    /// Whether ROUTER has heard of it, and must be informed of its end.
    spoke: AtomicBool,
    ended: Option<OnEnd>,
}

impl Registration {
    pub(super) fn new(trunk: Arc<Trunk>, identity: Identity, ended: OnEnd) -> Self {
        Self { trunk, identity, spoke: AtomicBool::new(false), ended: Some(ended) }
    }

    /// Directs messages for the connection into its outbox from now on.
    pub(super) fn add_control(&self, outbox: Arc<Outbox>) {
        let mut control = self.trunk.control.lock();
        if self.trunk.closed.load(Ordering::Relaxed) {
            outbox.close();
        }
        control.insert(self.identity, outbox);
    }

    /// Sends the connection the publications that it subscribes to from now on.
    pub(super) fn add_subscriber(&self, subscriber: Arc<Subscriber>) {
        let mut subscribers = self.trunk.subscribers.lock();
        if self.trunk.closed.load(Ordering::Relaxed) {
            subscriber.outbox.close();
        }
        subscribers.insert(self.identity, subscriber);
    }

    /// Passes a message of the connection to ROUTER. Waits while ROUTER is busy.
    pub(super) async fn send(&self, message: Vec<Bytes>) {
        let mut frames = vec![Bytes::copy_from_slice(&self.identity)];
        frames.extend(message);
        self.spoke.store(true, Ordering::Relaxed);
        self.trunk.to_router.send(&frames).await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.trunk.control.lock().remove(&self.identity);
        self.trunk.subscribers.lock().remove(&self.identity);
        let spoke = self.spoke.load(Ordering::Relaxed);
        if let Some(ended) = self.ended.take() {
            ended(spoke);
        }
        if spoke {
            // After all that it sent. These few bytes are bounded like its messages: at least one
            // message came before, and had to wait for room.
            self.trunk.to_router.add(&[Bytes::copy_from_slice(&self.identity)]);
        }
    }
}

impl Trunk {
    pub(super) fn new() -> Self {
        Self {
            to_router: Outbox::new(TRUNK_BYTES_MAX),
            control: Mutex::default(),
            subscribers: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Ends all connections, each after its queue has been sent.
    pub(super) fn close(&self) {
        let (control, subscribers) = (self.control.lock(), self.subscribers.lock());
        self.closed.store(true, Ordering::Relaxed);
        control.values().for_each(|outbox| outbox.close());
        subscribers.values().for_each(|subscriber| subscriber.outbox.close());
    }

    /// Carries messages between the connections and ROUTER. Never waits for a connection.
    ///
    /// # Errors
    /// If ROUTER is gone; otherwise it does not return.
    pub(super) async fn run_control(&self, socket: &Path) -> Result<(), StreamError> {
        let mut stream = UnixStream::connect(socket).await?;
        handshake(&mut stream, "DEALER", "ROUTER", FRONT_IDENTITY).await?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        let replies = async {
            while let Some(message) = reader.next().await? {
                let [identity, body] = message.as_slice() else { continue };
                let outbox = Identity::try_from(&**identity)
                    .ok()
                    .and_then(|identity| self.control.lock().get(&identity).cloned());
                // ROUTER is informed when a connection ends.
                if let Some(outbox) = outbox {
                    // Copied: a slice would keep the buffer, which other messages share, and so
                    // more memory than is counted.
                    outbox.push(&[Bytes::copy_from_slice(body)]);
                }
            }
            Err(gone())
        };
        tokio::select! {
            result = replies => result,
            result = self.to_router.write_to(&mut writer) => result.map_err(Into::into),
        }
    }

    /// Carries publications from PUB to the subscribers. A subscriber loses what it has no room
    /// for.
    ///
    /// # Errors
    /// If PUB is gone; otherwise it does not return.
    pub(super) async fn run_publications(&self, socket: &Path) -> Result<(), StreamError> {
        let mut stream = UnixStream::connect(socket).await?;
        handshake(&mut stream, "SUB", "PUB", b"").await?;
        let (reader, mut writer) = stream.into_split();
        let everything = Outbox::new(TRUNK_BYTES_MAX);
        everything.add(&[Bytes::from_static(b"\x01")]);
        let mut reader = MessageReader::new(reader, Traffic::Messages);
        let fan_out = async {
            while let Some(message) = reader.next().await? {
                let Some(topic) = message.first() else { continue };
                let message: Vec<_> =
                    message.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
                for subscriber in self.subscribers.lock().values() {
                    if subscriber.wants(topic) {
                        subscriber.outbox.push(&message);
                    }
                }
            }
            Err(gone())
        };
        tokio::select! {
            result = fan_out => result,
            result = everything.write_to(&mut writer) => result.map_err(Into::into),
        }
    }
}

fn gone() -> StreamError {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the manager's socket has closed").into()
}
