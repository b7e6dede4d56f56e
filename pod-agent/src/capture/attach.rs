//! The engine's attach: one connection that carries what a container prints.
//! <https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach>
//!
//! The client library would decode it too, but it reads in small pieces, and takes what a terminal prints
//! for frames if it begins with a byte below 3.

use std::io;
use std::mem;
use std::net::TcpStream as StdTcpStream;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::InspectContainerOptions;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Deadline for the engine's answer. It answers from memory, but may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How much of an engine's reason is read.
const REASON_BYTES_MAX: usize = 64 << 10;
/// The media type of framed output, in engines since API 1.42.
const FRAMED: &str = "application/vnd.docker.multiplexed-stream";

/// Why a container cannot be attached, or no longer is.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    /// The client library has failed.
    #[error(transparent)]
    Engine(#[from] bollard::errors::Error),
    /// The address of the engine is of a kind that cannot be used.
    #[error("{0} is not the address of an engine: it begins with unix://, tcp:// or http://")]
    Address(String),
    /// The connection failed.
    #[error("the connection to the Docker engine failed: {0}")]
    Io(#[from] io::Error),
    /// The engine does not speak HTTP.
    #[error("the Docker engine's answer cannot be read: {0}")]
    Http(#[from] hyper::Error),
    /// The engine does not answer.
    #[error("the Docker engine did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    /// The engine refuses.
    #[error("the Docker engine answered {status}: {reason}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// The body of its answer.
        reason: String,
    },
    /// The output has a frame of a stream that does not exist.
    #[error("the Docker engine sent output of an unknown stream: {0}")]
    UnknownStream(u8),
}

/// An attached container.
pub(super) struct Attach {
    socket: Option<Socket>,
    /// What has arrived and is not split yet.
    arrived: Vec<u8>,
    /// Whether that came with the engine's answer.
    is_new: bool,
    frames: Option<Frames>,
}

impl Attach {
    /// Attaches to what the container prints from now on.
    pub(super) async fn open(docker: &Docker, engine: &str, id: &str) -> Result<Self, AttachError> {
        let version = docker.client_version();
        let request = format!("/v{version}/containers/{id}/attach?stream=1&stdout=1&stderr=1");
        let tcp = engine.strip_prefix("tcp://").or_else(|| engine.strip_prefix("http://"));
        let upgrade = async {
            match (engine.strip_prefix("unix://"), tcp) {
                (Some(path), _) => {
                    let unix = UnixStream::connect(path).await?;
                    upgrade(unix, &request, |unix: UnixStream| Ok(Socket::Unix(unix.into_std()?)))
                        .await
                }
                (_, Some(host)) => {
                    let tcp = TcpStream::connect(host.trim_end_matches('/')).await?;
                    upgrade(tcp, &request, |tcp: TcpStream| Ok(Socket::Tcp(tcp.into_std()?))).await
                }
                _ => Err(AttachError::Address(engine.to_owned())),
            }
        };
        let upgraded = timeout(ANSWER_LIMIT, upgrade).await.map_err(|_| AttachError::Silent)?;
        let (mut attach, is_framed) = upgraded?;
        // Engines that do not name the media type mean both by the other one.
        if !is_framed && has_terminal(docker, id).await? {
            attach.frames = None;
        }
        Ok(attach)
    }

    /// Waits for output, and adds it to `streams`: stdout, stderr. What a container with a terminal
    /// prints is all stdout. Reads at most `limit` bytes, and returns how many; 0 at the end.
    pub(super) async fn read(
        &mut self,
        limit: usize,
        streams: &mut [BytesMut; 2],
    ) -> Result<usize, AttachError> {
        if !mem::take(&mut self.is_new) && self.receive(limit).await? == 0 {
            return Ok(0);
        }
        let arrived = self.arrived.len();
        match &mut self.frames {
            Some(frames) => {
                let done = frames.split(&self.arrived, streams)?;
                self.arrived.drain(..done);
            }
            None => {
                streams[0].extend_from_slice(&self.arrived);
                self.arrived.clear();
            }
        }
        if arrived < limit / 4 {
            // A container that prints little needs no buffer while it does not.
            self.arrived.shrink_to_fit();
        }
        Ok(arrived)
    }

    async fn receive(&mut self, limit: usize) -> Result<usize, AttachError> {
        self.arrived.reserve_exact(limit);
        // A read that was given up has dropped it.
        let socket =
            self.socket.take().ok_or(io::ErrorKind::NotConnected).map_err(io::Error::from)?;
        let (socket, read) = socket.read(&mut self.arrived).await?;
        self.socket = Some(socket);
        Ok(read)
    }
}

/// A connection to an engine. It is watched only while somebody waits for output: what arrives between
/// two reads wakes nobody.
enum Socket {
    Unix(StdUnixStream),
    Tcp(StdTcpStream),
}

impl Socket {
    async fn read(self, arrived: &mut Vec<u8>) -> io::Result<(Self, usize)> {
        match self {
            Self::Unix(unix) => {
                let mut unix = UnixStream::from_std(unix)?;
                let read = unix.read_buf(arrived).await?;
                Ok((Self::Unix(unix.into_std()?), read))
            }
            Self::Tcp(tcp) => {
                let mut tcp = TcpStream::from_std(tcp)?;
                let read = tcp.read_buf(arrived).await?;
                Ok((Self::Tcp(tcp.into_std()?), read))
            }
        }
    }
}

/// Asks for an attach. Returns it, and whether the engine says that output is framed.
async fn upgrade<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    path: &str,
    into_socket: fn(S) -> io::Result<Socket>,
) -> Result<(Attach, bool), AttachError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the upgrade or the connection; errors come through the sender.
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(path)
        .header(HOST, "docker")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "tcp")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(reply.into_body(), REASON_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let reason = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(AttachError::Refused { status, reason });
    }
    let is_framed = reply.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == FRAMED);
    let upgraded = hyper::upgrade::on(reply).await?.downcast::<TokioIo<S>>();
    let parts = upgraded.map_err(|_| io::Error::other("another connection was upgraded"))?;
    let attach = Attach {
        socket: Some(into_socket(parts.io.into_inner())?),
        is_new: !parts.read_buf.is_empty(),
        arrived: parts.read_buf.into(),
        frames: Some(Frames::default()),
    };
    Ok((attach, is_framed))
}

async fn has_terminal(docker: &Docker, id: &str) -> Result<bool, AttachError> {
    let found = docker.inspect_container(id, None::<InspectContainerOptions>).await?;
    Ok(found.config.and_then(|config| config.tty) == Some(true))
}

/// Splits framed output. Before each frame are 8 bytes: its stream, three zeros, its length.
#[derive(Debug, Default)]
struct Frames {
    /// The stream of the current frame.
    stream: usize,
    /// How much of it has not arrived.
    left: usize,
}

impl Frames {
    /// Adds what has arrived to its streams. Returns how much of it is done: not part of a header.
    fn split(&mut self, arrived: &[u8], streams: &mut [BytesMut; 2]) -> Result<usize, AttachError> {
        let mut rest = arrived;
        loop {
            let piece;
            (piece, rest) = rest.split_at(self.left.min(rest.len()));
            streams[self.stream].extend_from_slice(piece);
            self.left -= piece.len();
            let Some((&[stream, _, _, _, a, b, c, d], after)) = rest.split_first_chunk() else {
                return Ok(arrived.len() - rest.len());
            };
            self.stream = match stream {
                // The engine names what it echoes of stdin, which is never attached here, 0.
                0 | 1 => 0,
                2 => 1,
                unknown => return Err(AttachError::UnknownStream(unknown)),
            };
            self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            rest = after;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use bollard::API_DEFAULT_VERSION;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend(text.as_bytes());
        frame
    }

    #[test]
    fn frames_are_split_wherever_their_pieces_end() {
        let sent = [frame(1, "out\n"), frame(2, "err\n"), frame(1, ""), frame(1, "more")].concat();
        for first in 0..sent.len() {
            for second in first..sent.len() {
                let mut frames = Frames::default();
                let mut arrived = Vec::new();
                let mut streams = [BytesMut::new(), BytesMut::new()];
                for piece in [&sent[..first], &sent[first..second], &sent[second..]] {
                    arrived.extend_from_slice(piece);
                    let done = frames.split(&arrived, &mut streams).unwrap();
                    arrived.drain(..done);
                    assert!(arrived.len() < 8, "only part of a header waits");
                }
                assert_eq!(streams, [&b"out\nmore"[..], b"err\n"]);
                assert!(arrived.is_empty());
            }
        }
    }

    #[test]
    fn a_frame_of_any_length_needs_no_more_memory_than_what_has_arrived() {
        let mut frames = Frames::default();
        let mut streams = [BytesMut::new(), BytesMut::new()];
        let arrived = [1, 0, 0, 0, 255, 255, 255, 255, b'a'];
        assert_eq!(frames.split(&arrived, &mut streams).unwrap(), arrived.len());
        assert_eq!(streams, [&b"a"[..], b""]);
    }

    #[test]
    fn a_frame_of_an_unknown_stream_is_an_error() {
        let mut frames = Frames::default();
        let mut streams = [BytesMut::new(), BytesMut::new()];
        let refused = frames.split(&frame(3, "?"), &mut streams);
        assert!(matches!(refused, Err(AttachError::UnknownStream(3))));
    }

    /// An engine that answers one request with this. Returns its address.
    async fn engine(pieces: &'static [&'static [u8]]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            for piece in pieces {
                stream.write_all(piece).await.unwrap();
            }
        });
        address
    }

    async fn open(engine: &str) -> Result<Attach, AttachError> {
        // Only its version is asked for.
        let docker =
            Docker::connect_with_http("tcp://127.0.0.1:1", 1, API_DEFAULT_VERSION).unwrap();
        Attach::open(&docker, engine, "abc").await
    }

    #[tokio::test]
    async fn output_that_comes_with_the_answer_and_after_it_is_read_to_the_end() {
        const ANSWER: &[u8] = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
            Content-Type: application/vnd.docker.multiplexed-stream\r\n\r\n\x01\0\0\0\0\0\0\x03one\x02\0\0";
        let engine = engine(&[ANSWER, b"\0\0\0\0\x03", b"two"]).await;
        let mut attach = open(&engine).await.unwrap();
        let mut streams = [BytesMut::new(), BytesMut::new()];
        while attach.read(1 << 10, &mut streams).await.unwrap() > 0 {}
        assert_eq!(streams, [&b"one"[..], b"two"]);
    }

    #[tokio::test]
    async fn a_refusal_has_the_reason_of_the_engine() {
        let engine =
            engine(&[b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n", b"where"]).await;
        let why = open(&engine).await.err().unwrap().to_string();
        assert_eq!(why, "the Docker engine answered 404 Not Found: where");
        let why = open("ssh://host").await.err().unwrap().to_string();
        assert!(why.starts_with("ssh://host is not the address of an engine"), "{why}");
    }
}
