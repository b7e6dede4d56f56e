//! ROUTER and DEALER with typed messages: one message is one frame.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use podmesh_protocol::codec;
use podmesh_protocol::session::{ToManager, ToPeer};
use tokio::time::timeout;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, RouterRecvHalf, RouterSendHalf, RouterSocket,
    Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend, ZmqMessage,
};

use crate::error::WireError;
use crate::guard::relay::Expected;
use crate::guard::zmtp::Traffic;
use crate::route::{CONNECT_LIMIT, Route};
use crate::tls::Service;

/// How long a send may wait for room in the queue of a peer that does not read.
pub const SEND_LIMIT: Duration = Duration::from_secs(2);

pub(crate) type Monitor = futures_util::stream::BoxStream<'static, SocketEvent>;

/// The manager's ROUTER socket.
pub struct ManagerSocket {
    socket: RouterSocket,
    monitor: Monitor,
}

/// One message that came to the manager.
#[derive(Debug)]
pub struct Received {
    /// The identity of the connection; a new one for each.
    pub peer: Arc<[u8]>,
    /// What it sent. [`WireError::PeerGone`]: the connection ended; told once, and only as a
    /// hint: under a flood of connections it can be missing. Any other error: bytes that are no
    /// message.
    pub message: Result<ToManager, WireError>,
}

impl ManagerSocket {
    /// Listens on a socket to which only the front connects ([`crate::front::Front`]).
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn bind(listener: UnixListener) -> Result<Self, WireError> {
        let mut socket = RouterSocket::new();
        let monitor = socket.monitor().boxed();
        socket.bind_listener(listener).await?;
        Ok(Self { socket, monitor })
    }

    /// Its two halves, for two tasks. It closes when both are dropped.
    pub fn split(self) -> (ManagerReceiver, ManagerSender) {
        let (sender, receiver) = self.socket.split();
        (ManagerReceiver { receiver, monitor: self.monitor }, ManagerSender { sender })
    }
}

/// The half of [`ManagerSocket`] that receives.
pub struct ManagerReceiver {
    receiver: RouterRecvHalf,
    monitor: Monitor,
}

impl ManagerReceiver {
    /// The next message of any peer. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// When the socket itself fails; bytes that are no message are no error of it.
    pub async fn recv(&mut self) -> Result<Received, WireError> {
        loop {
            tokio::select! {
                biased;
                message = self.receiver.recv() => return Ok(received(message?)),
                Some(event) = self.monitor.next() => {
                    if let SocketEvent::Disconnected(identity) = event {
                        let peer = Arc::from(identity.as_ref());
                        return Ok(Received { peer, message: Err(WireError::PeerGone) });
                    }
                }
            }
        }
    }
}

fn received(message: ZmqMessage) -> Received {
    let frames = message.into_vec();
    // ROUTER puts the identity in front of what came.
    let (peer, parts) = match frames.split_first() {
        Some((identity, parts)) => (Arc::from(identity.as_ref()), parts),
        None => (Arc::from([].as_slice()), [].as_slice()),
    };
    let message = match parts {
        [frame] => codec::decode(frame).map_err(WireError::from),
        _ => Err(WireError::Frames { frames: parts.len(), expected: 1 }),
    };
    Received { peer, message }
}

/// The half of [`ManagerSocket`] that sends.
#[derive(Clone)]
pub struct ManagerSender {
    sender: RouterSendHalf,
}

impl ManagerSender {
    /// Puts a message into the queue of a peer. `Ok` means queued, nothing more.
    ///
    /// # Errors
    /// [`WireError::PeerGone`] when there is no such connection any more or its queue stays full;
    /// [`WireError::Encode`] when the message is over the limit of a frame.
    pub async fn send(&mut self, peer: &[u8], message: &ToPeer) -> Result<(), WireError> {
        let mut frames = ZmqMessage::from(Bytes::copy_from_slice(peer));
        frames.push_back(codec::encode(message)?.into());
        match timeout(SEND_LIMIT, self.sender.send(frames)).await {
            Ok(Ok(())) => Ok(()),
            // An unknown identity, a broken queue, or one that stays full.
            Ok(Err(error)) => {
                tracing::debug!(%error, "a message found no connection");
                Err(WireError::PeerGone)
            }
            Err(_) => Err(WireError::PeerGone),
        }
    }
}

/// The DEALER socket of an agent or a client: one connection, with an identity of its own.
pub struct PeerSocket {
    socket: DealerSocket,
    monitor: Monitor,
}

impl PeerSocket {
    /// Connects to a manager.
    ///
    /// # Errors
    /// When it is not there, refuses, or does not finish the handshake within [`CONNECT_LIMIT`].
    pub async fn connect(route: &Route) -> Result<Self, WireError> {
        let expected = Expected { socket: "ROUTER", identity: None, traffic: Traffic::Messages };
        let bridge = route.bridge(Service::Control, expected).await?;
        let mut socket = DealerSocket::with_options(options());
        let monitor = socket.monitor().boxed();
        socket
            .connect(&bridge.endpoint())
            .await
            .map_err(|source| WireError::Handshake { route: route.to_string(), source })?;
        Ok(Self { socket, monitor })
    }

    /// Its two halves, for two tasks. It closes when both are dropped.
    pub fn split(self) -> (PeerReceiver, PeerSender) {
        let (sender, receiver) = self.socket.split();
        (PeerReceiver { receiver, monitor: self.monitor }, PeerSender { sender })
    }
}

pub(crate) fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_LIMIT);
    options
}

/// The half of [`PeerSocket`] that receives.
pub struct PeerReceiver {
    receiver: DealerRecvHalf,
    monitor: Monitor,
}

impl PeerReceiver {
    /// The next message. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] when the connection has ended; other errors for bytes that are
    /// no message. After any error the socket is to be dropped.
    pub async fn recv(&mut self) -> Result<ToPeer, WireError> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.receiver.recv() => message?,
                event = self.monitor.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => return Err(WireError::Disconnected),
                    Some(_) => continue,
                },
            };
            let frames = message.into_vec();
            return match frames.as_slice() {
                [frame] => Ok(codec::decode(frame)?),
                _ => Err(WireError::Frames { frames: frames.len(), expected: 1 }),
            };
        }
    }
}

/// The half of [`PeerSocket`] that sends.
pub struct PeerSender {
    sender: DealerSendHalf,
}

impl PeerSender {
    /// Puts a message into the queue of the connection. `Ok` means queued, nothing more.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] when the connection has ended or its queue stays full;
    /// [`WireError::Encode`] when the message is over the limit of a frame.
    pub async fn send(&mut self, message: &ToManager) -> Result<(), WireError> {
        let frame = codec::encode(message)?;
        match timeout(SEND_LIMIT, self.sender.send(Bytes::from(frame).into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(WireError::Disconnected),
        }
    }
}
