//! PUB and SUB with typed publications: a frame with the topic, a frame with the publication.

use std::os::unix::net::UnixListener;

use bytes::Bytes;
use podmesh_protocol::codec;
use podmesh_protocol::event::Published;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::error::WireError;
use crate::guard::zmtp::{Traffic, frame_header};
use crate::route::{Duplex, Route};
use crate::stream::{MessageReader, StreamError, handshake};
use crate::tls::Service;

/// The manager's PUB socket.
pub struct Publisher {
    socket: PubSocket,
}

impl Publisher {
    /// Listens on a socket to which only the front ([`crate::front::Front`]) connects.
    ///
    /// # Errors
    /// If the socket cannot be used.
    pub async fn bind(listener: UnixListener) -> Result<Self, WireError> {
        let mut socket = PubSocket::new();
        socket.bind_listener(listener).await?;
        Ok(Self { socket })
    }

    /// Publishes a message; never waits for a subscriber. A slow subscriber loses what it has no
    /// room for.
    ///
    /// # Errors
    /// [`WireError::Encode`] if the publication is larger than a frame may be.
    pub async fn publish(&mut self, topic: &str, publication: &Published) -> Result<(), WireError> {
        let mut message = ZmqMessage::from(Bytes::copy_from_slice(topic.as_bytes()));
        message.push_back(codec::encode(publication)?.into());
        self.socket.send(message).await?;
        Ok(())
    }
}

/// A SUB socket: one connection.
pub struct Subscriber {
    reader: MessageReader<ReadHalf<Box<dyn Duplex>>>,
    /// The connection exists as long as both halves do.
    _writer: WriteHalf<Box<dyn Duplex>>,
}

impl Subscriber {
    /// Connects to a PUB socket and subscribes to topics.
    ///
    /// # Errors
    /// If the manager is not there, refuses, or does not finish the handshake in time.
    pub async fn connect(route: &Route, topics: &[&str]) -> Result<Self, WireError> {
        let (mut stream, _) = route.open(Service::Publications).await?;
        let subscribe = async {
            handshake(&mut stream, "SUB", "PUB", b"").await?;
            for topic in topics {
                let body = [b"\x01", topic.as_bytes()].concat();
                stream.write_all(frame_header(body.len(), false).as_ref()).await?;
                stream.write_all(&body).await?;
            }
            stream.flush().await?;
            Ok::<_, StreamError>(())
        };
        subscribe.await.map_err(|error| WireError::handshake(route, error))?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self { reader: MessageReader::new(reader, Traffic::Messages), _writer: writer })
    }

    /// Returns the next publication. Cancel-safe.
    ///
    /// # Errors
    /// [`WireError::Disconnected`] if the connection has ended; other errors if the input is not a
    /// publication. After any error the subscriber must be dropped.
    pub async fn recv(&mut self) -> Result<Published, WireError> {
        match self.reader.next().await.map_err(WireError::broken)?.as_deref() {
            Some([_topic, frame]) => Ok(codec::decode(frame)?),
            Some(frames) => Err(WireError::Frames { frames: frames.len(), expected: 2 }),
            None => Err(WireError::Disconnected),
        }
    }
}
