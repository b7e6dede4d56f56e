//! PUB and SUB with typed publications: a frame with the topic, a frame with the publication.

use std::os::unix::net::UnixListener;

use bytes::Bytes;
use futures_util::StreamExt;
use podmesh_protocol::codec;
use podmesh_protocol::event::Published;
use tokio::time::timeout;
use zeromq::{PubSocket, Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::control::{Monitor, options};
use crate::error::WireError;
use crate::guard::relay::Expected;
use crate::guard::zmtp::Traffic;
use crate::route::{CONNECT_LIMIT, Route};
use crate::tls::Service;

/// The manager's PUB socket.
pub struct Publisher {
    socket: PubSocket,
}

impl Publisher {
    /// Listens on a socket to which only the front connects ([`crate::front::Front`]).
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn bind(listener: UnixListener) -> Result<Self, WireError> {
        let mut socket = PubSocket::new();
        socket.bind_listener(listener).await?;
        Ok(Self { socket })
    }

    /// Publishes; never waits for a subscriber. What a slow one has no room for is lost to it.
    ///
    /// # Errors
    /// [`WireError::Encode`] when the publication is over the limit of a frame.
    pub async fn publish(&mut self, topic: &str, publication: &Published) -> Result<(), WireError> {
        let mut message = ZmqMessage::from(Bytes::copy_from_slice(topic.as_bytes()));
        message.push_back(codec::encode(publication)?.into());
        self.socket.send(message).await?;
        Ok(())
    }
}

/// A SUB socket: one connection.
pub struct Subscriber {
    socket: SubSocket,
    monitor: Monitor,
}

impl Subscriber {
    /// Connects to a PUB socket and subscribes to topics.
    ///
    /// # Errors
    /// When the manager is not there, refuses, or does not finish the handshake in time.
    pub async fn connect(route: &Route, topics: &[&str]) -> Result<Self, WireError> {
        let expected = Expected { socket: "PUB", identity: None, traffic: Traffic::Messages };
        let bridge = route.bridge(Service::Publications, expected).await?;
        let mut socket = SubSocket::with_options(options());
        let monitor = socket.monitor().boxed();
        socket
            .connect(&bridge.endpoint())
            .await
            .map_err(|source| WireError::Handshake { route: route.to_string(), source })?;
        for topic in topics {
            match timeout(CONNECT_LIMIT, socket.subscribe(topic)).await {
                Ok(result) => result?,
                Err(_) => {
                    return Err(WireError::Timeout {
                        what: "a subscription",
                        limit: CONNECT_LIMIT,
                    });
                }
            }
        }
        Ok(Self { socket, monitor })
    }

    /// The next publication. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] when the connection has ended; others when what came is no
    /// publication. After any error it is to be dropped.
    pub async fn recv(&mut self) -> Result<Published, WireError> {
        let message = loop {
            tokio::select! {
                biased;
                message = self.socket.recv() => break message?,
                event = self.monitor.next() => {
                    if matches!(event, Some(SocketEvent::Disconnected(_)) | None) {
                        return Err(WireError::Disconnected);
                    }
                }
            }
        };
        let frames = message.into_vec();
        match frames.as_slice() {
            [_topic, frame] => Ok(codec::decode(frame)?),
            _ => Err(WireError::Frames { frames: frames.len(), expected: 2 }),
        }
    }
}
