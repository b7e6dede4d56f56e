//! Messages between the manager and its peers: one message is one frame.
//!
//! # Why the manager's ROUTER and PUB have one peer each
//!
//! zeromq 0.7.0 keeps the peers of ROUTER and PUB in maps of the crate `scc`, and takes the locks
//! of their entries both synchronously (when a peer connects, disconnects or subscribes) and
//! asynchronously (when a message is sent). An asynchronous waiter in the queue of such a lock must
//! be polled before the next one in the queue gets the lock. If all threads of the runtime wait
//! synchronously in that queue, nobody polls it, and the manager hangs forever. That needs only two
//! threads, and a peer that connects or disconnects while a message is sent.
//!
//! Here peers neither connect nor disconnect: the front (see [`crate::front`]) makes one connection
//! to each socket before it admits anyone, and keeps it until the manager ends. It carries the
//! messages of all connections, each preceded by the identity of its connection. After that
//! connection is made, the maps are only read, and nobody waits for a lock without writers. If the
//! connection fails, the manager ends.
//!
//! The other end of a connection, an agent or a client, has only one connection and needs no map:
//! it speaks ZMTP on its stream directly.

use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use podmesh_protocol::codec;
use podmesh_protocol::limits::AGENT_UNREAD_BYTES_MAX;
use podmesh_protocol::session::{ToManager, ToPeer};
use tokio::io::ReadHalf;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::{
    RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage,
};

use crate::error::WireError;
use crate::front::FRONT_IDENTITY;
use crate::guard::zmtp::Traffic;
use crate::outbox::Outbox;
use crate::route::{Duplex, Route};
use crate::stream::{MessageReader, handshake};
use crate::tls::Service;

/// How long a send may wait until the manager reads.
pub const SEND_LIMIT: Duration = Duration::from_secs(2);

/// The manager's ROUTER socket.
pub struct ManagerSocket {
    socket: RouterSocket,
}

/// A message that the manager received.
#[derive(Debug)]
pub struct Received {
    /// The identity of the connection, unique to it.
    pub peer: Arc<[u8]>,
    /// The message. [`WireError::PeerGone`]: the connection has ended; this follows all its
    /// messages, once, and only if there were any. Any other error: bytes that are not a message.
    pub message: Result<ToManager, WireError>,
    /// The length of the message in bytes.
    pub bytes: usize,
}

impl ManagerSocket {
    /// Listens on a socket to which only the front ([`crate::front::Front`]) connects.
    ///
    /// # Errors
    /// If the socket cannot be used.
    pub async fn bind(listener: UnixListener) -> Result<Self, WireError> {
        let mut socket = RouterSocket::new();
        socket.bind_listener(listener).await?;
        Ok(Self { socket })
    }

    /// Splits the socket into two halves for two tasks. It closes when both are dropped.
    pub fn split(self) -> (ManagerReceiver, ManagerSender) {
        let (sender, receiver) = self.socket.split();
        (ManagerReceiver { receiver }, ManagerSender { sender })
    }
}

/// The half of [`ManagerSocket`] that receives.
pub struct ManagerReceiver {
    receiver: RouterRecvHalf,
}

impl ManagerReceiver {
    /// Returns the next message of any peer. Cancel-safe.
    ///
    /// # Errors
    /// If the socket itself fails. Bytes that are not a message are not an error here.
    pub async fn recv(&mut self) -> Result<Received, WireError> {
        let frames = self.receiver.recv().await?.into_vec();
        // ROUTER prepends the identity of the front, and the front prepends that of the peer.
        let (peer, parts) = match frames.as_slice() {
            [_front, peer, parts @ ..] => (Arc::from(peer.as_ref()), parts),
            _ => (Arc::from([].as_slice()), [].as_slice()),
        };
        let message = match parts {
            [] => Err(WireError::PeerGone),
            [frame] => {
                codec::decode(frame).map_err(|source| match codec::decode_request_head(frame) {
                    Some(head) => WireError::RequestBody { head, source },
                    None => source.into(),
                })
            }
            _ => Err(WireError::Frames { frames: parts.len(), expected: 1 }),
        };
        let bytes = parts.iter().map(|part| part.len()).sum();
        Ok(Received { peer, message, bytes })
    }
}

/// The half of [`ManagerSocket`] that sends.
#[derive(Clone)]
pub struct ManagerSender {
    sender: RouterSendHalf,
}

impl ManagerSender {
    /// Passes a message to the front, which sends it to the peer if that is still connected. The
    /// front disconnects a peer that does not read, so nobody waits for it.
    ///
    /// # Errors
    /// [`WireError::Encode`] if the message is larger than a frame may be; other errors if the
    /// socket itself fails.
    pub async fn send(&mut self, peer: &[u8], message: &ToPeer) -> Result<(), WireError> {
        let body = codec::encode(message)?;
        let mut frames = ZmqMessage::from(Bytes::from_static(FRONT_IDENTITY));
        frames.push_back(Bytes::copy_from_slice(peer));
        frames.push_back(body.into());
        Ok(self.sender.send(frames).await?)
    }
}

/// The DEALER socket of an agent or a client: one connection.
pub struct PeerSocket {
    receiver: PeerReceiver,
    sender: PeerSender,
    local_address: Option<IpAddr>,
}

impl PeerSocket {
    /// Connects to a manager.
    ///
    /// # Errors
    /// If the manager is not there, refuses, or does not finish the handshake within
    /// [`CONNECT_LIMIT`](crate::route::CONNECT_LIMIT).
    pub async fn connect(route: &Route) -> Result<Self, WireError> {
        let (mut stream, local_address) = route.open(Service::Control).await?;
        handshake(&mut stream, "DEALER", "ROUTER", b"")
            .await
            .map_err(|error| WireError::handshake(route, error))?;
        let (reader, mut writer) = tokio::io::split(stream);
        let outbox = Arc::new(Outbox::new(AGENT_UNREAD_BYTES_MAX));
        let written = Arc::clone(&outbox);
        let writing = tokio::spawn(async move {
            if let Err(error) = written.write_to(&mut writer).await {
                tracing::debug!(%error, "the connection to the manager has failed");
            }
        });
        let reader = MessageReader::new(reader, Traffic::Messages);
        let (receiver, sender) = (PeerReceiver { reader }, PeerSender { outbox, writing });
        Ok(Self { receiver, sender, local_address })
    }

    /// Returns this machine's address of the connection; `None` if the manager is on this machine.
    pub fn local_address(&self) -> Option<IpAddr> {
        self.local_address
    }

    /// Splits the socket into two halves for two tasks. It closes when both are dropped.
    pub fn split(self) -> (PeerReceiver, PeerSender) {
        (self.receiver, self.sender)
    }
}

/// The half of [`PeerSocket`] that receives.
pub struct PeerReceiver {
    reader: MessageReader<ReadHalf<Box<dyn Duplex>>>,
}

impl PeerReceiver {
    /// Returns the next message. Cancel-safe.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] if the connection has ended; other errors for bytes that are not
    /// a message. After any error the socket must be dropped.
    pub async fn recv(&mut self) -> Result<ToPeer, WireError> {
        match self.reader.next().await.map_err(WireError::broken)?.as_deref() {
            Some([frame]) => Ok(codec::decode(frame)?),
            Some(frames) => Err(WireError::Frames { frames: frames.len(), expected: 1 }),
            None => Err(WireError::Disconnected),
        }
    }
}

/// The half of [`PeerSocket`] that sends.
pub struct PeerSender {
    outbox: Arc<Outbox>,
    writing: JoinHandle<()>,
}

impl PeerSender {
    /// Queues a message for the connection. `Ok` only means that it is queued.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] if the connection has ended, or if 64 MiB are queued and the
    /// manager reads none of them within [`SEND_LIMIT`]; [`WireError::Encode`] if the message is
    /// larger than a frame may be.
    pub async fn send(&mut self, message: &ToManager) -> Result<(), WireError> {
        let frame = [Bytes::from(codec::encode(message)?)];
        if self.writing.is_finished() {
            return Err(WireError::Disconnected);
        }
        let sent = timeout(SEND_LIMIT, self.outbox.send(&frame));
        sent.await.map_err(|_| WireError::Disconnected)
    }
}

impl Drop for PeerSender {
    /// Queued messages are still written, unless the manager does not read them.
    fn drop(&mut self) {
        self.outbox.close();
        let writing = self.writing.abort_handle();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(SEND_LIMIT).await;
                writing.abort();
            });
        }
    }
}
