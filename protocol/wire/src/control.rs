//! Messages between the manager and its peers: one message is one frame.
//!
//! # Why the manager's ROUTER and PUB have one peer each
//!
//! zeromq 0.7.0 keeps the peers of ROUTER and PUB in maps of the crate `scc`, and takes the locks of
//! their entries both synchronously (when a peer comes, goes or subscribes) and asynchronously
//! (when a message is sent). An asynchronous waiter that holds its place in the line of such a lock
//! has to be polled before the next in line gets it; when all threads of the runtime wait
//! synchronously in that line, nobody polls it, and the manager stops for ever. It takes two
//! threads, and a peer that comes or goes while a message is sent.
//!
//! Here no peer comes or goes: the front (see [`crate::front`]) makes one connection to each socket
//! before it lets anybody in, and keeps it until the manager ends. It carries the messages of all
//! connections, each with the identity of its connection before it. After that connection is made,
//! the maps are only read, and a lock that nobody writes under makes nobody wait. When the
//! connection fails, the manager ends.
//!
//! The other end of a connection, an agent's or a client's, has one connection and needs no map: it
//! speaks ZMTP on its stream directly.

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

/// One message that came to the manager.
#[derive(Debug)]
pub struct Received {
    /// The identity of the connection; a new one for each.
    pub peer: Arc<[u8]>,
    /// What it sent. [`WireError::PeerGone`]: the connection has ended; this comes once, after all
    /// its messages, and only if there were any. Any other error: bytes that are no message.
    pub message: Result<ToManager, WireError>,
}

impl ManagerSocket {
    /// Listens on a socket to which only the front connects ([`crate::front::Front`]).
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn bind(listener: UnixListener) -> Result<Self, WireError> {
        let mut socket = RouterSocket::new();
        socket.bind_listener(listener).await?;
        Ok(Self { socket })
    }

    /// Its two halves, for two tasks. It closes when both are dropped.
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
    /// The next message of any peer. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// When the socket itself fails; bytes that are no message are no error of it.
    pub async fn recv(&mut self) -> Result<Received, WireError> {
        let frames = self.receiver.recv().await?.into_vec();
        // ROUTER puts the identity of the front before what came, and the front that of the peer.
        let (peer, parts) = match frames.as_slice() {
            [_front, peer, parts @ ..] => (Arc::from(peer.as_ref()), parts),
            _ => (Arc::from([].as_slice()), [].as_slice()),
        };
        let message = match parts {
            [] => Err(WireError::PeerGone),
            [frame] => codec::decode(frame).map_err(WireError::from),
            _ => Err(WireError::Frames { frames: parts.len(), expected: 1 }),
        };
        Ok(Received { peer, message })
    }
}

/// The half of [`ManagerSocket`] that sends.
#[derive(Clone)]
pub struct ManagerSender {
    sender: RouterSendHalf,
}

impl ManagerSender {
    /// Hands a message to the front, which sends it to the peer if that is still connected. A peer
    /// that does not read is cut off by the front and makes nobody wait.
    ///
    /// # Errors
    /// [`WireError::Encode`] when the message is over the limit of a frame; others when the socket
    /// itself fails.
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
}

impl PeerSocket {
    /// Connects to a manager.
    ///
    /// # Errors
    /// When it is not there, refuses, or does not finish the handshake within
    /// [`CONNECT_LIMIT`](crate::route::CONNECT_LIMIT).
    pub async fn connect(route: &Route) -> Result<Self, WireError> {
        let mut stream = route.open(Service::Control).await?;
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
        Ok(Self { receiver: PeerReceiver { reader }, sender: PeerSender { outbox, writing } })
    }

    /// Its two halves, for two tasks. It closes when both are dropped.
    pub fn split(self) -> (PeerReceiver, PeerSender) {
        (self.receiver, self.sender)
    }
}

/// The half of [`PeerSocket`] that receives.
pub struct PeerReceiver {
    reader: MessageReader<ReadHalf<Box<dyn Duplex>>>,
}

impl PeerReceiver {
    /// The next message. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] when the connection has ended; other errors for bytes that are
    /// no message. After any error the socket is to be dropped.
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
    /// Queues a message for the connection. `Ok` means queued, nothing more.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] when the connection has ended, or 64 MiB wait to be read and
    /// none of them is within [`SEND_LIMIT`]; [`WireError::Encode`] when the message is over the
    /// limit of a frame.
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
    /// What is queued is still written, unless the manager does not read it.
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
