//! PUB and SUB with typed publications: a frame with the topic, a frame with the publication.

use std::net::SocketAddr;

use bytes::Bytes;
use podmesh_protocol::codec;
use podmesh_protocol::event::Published;
use tokio::time::timeout;
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::address::ManagerAddress;
use crate::control::{CONNECT_LIMIT, listen, options, probe};
use crate::error::WireError;

/// The manager's PUB socket.
pub struct Publisher {
    socket: PubSocket,
    local_address: SocketAddr,
}

impl Publisher {
    /// Listens on an address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<Self, WireError> {
        let listener = listen(address)?;
        let local_address = listener.local_addr()?;
        let mut socket = PubSocket::new();
        socket.bind_listener(listener).await?;
        Ok(Self { socket, local_address })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
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

/// A SUB socket. It reconnects by itself; what was published meanwhile is lost to it.
pub struct Subscriber {
    socket: SubSocket,
}

impl Subscriber {
    /// Connects to a PUB socket and subscribes to topics.
    ///
    /// # Errors
    /// When nobody listens there, or does not finish the handshake in time.
    pub async fn connect(address: &ManagerAddress, topics: &[&str]) -> Result<Self, WireError> {
        probe(address).await?;
        let mut socket = SubSocket::with_options(options());
        socket
            .connect(&address.endpoint())
            .await
            .map_err(|source| WireError::Handshake { address: address.clone(), source })?;
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
        Ok(Self { socket })
    }

    /// The next publication. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// When the socket fails, or what came is no publication.
    pub async fn recv(&mut self) -> Result<Published, WireError> {
        let frames = self.socket.recv().await?.into_vec();
        match frames.as_slice() {
            [_topic, frame] => Ok(codec::decode(frame)?),
            _ => Err(WireError::Frames { frames: frames.len(), expected: 2 }),
        }
    }
}
