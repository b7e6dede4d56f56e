//! The engine's attach: one connection that carries what a container prints.
//! <https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach>
//!
//! The client library would decode it too, but it reads in small pieces, and takes what a terminal prints
//! for frames if it begins with a byte below 3.

use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::InspectContainerOptions;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
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
/// Bytes before each piece of framed output: its stream, three zeros, its length.
const HEADER_BYTES: usize = 8;

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
    connection: TokioIo<Upgraded>,
    arrived: BytesMut,
    frames: Option<Frames>,
}

impl Attach {
    /// Attaches to what the container prints from now on.
    pub(super) async fn open(docker: &Docker, engine: &str, id: &str) -> Result<Self, AttachError> {
        let version = docker.client_version();
        let path = format!("/v{version}/containers/{id}/attach?stream=1&stdout=1&stderr=1");
        let tcp = engine.strip_prefix("tcp://").or_else(|| engine.strip_prefix("http://"));
        let upgrade = async {
            match (engine.strip_prefix("unix://"), tcp) {
                (Some(socket), _) => upgrade(UnixStream::connect(socket).await?, &path).await,
                (_, Some(host)) => {
                    upgrade(TcpStream::connect(host.trim_end_matches('/')).await?, &path).await
                }
                _ => Err(AttachError::Address(engine.to_owned())),
            }
        };
        let upgraded = timeout(ANSWER_LIMIT, upgrade).await.map_err(|_| AttachError::Silent)?;
        let (connection, is_framed) = upgraded?;
        // Engines that do not name the media type mean both by the other one.
        let is_framed = is_framed || !has_terminal(docker, id).await?;
        let frames = is_framed.then(Frames::default);
        Ok(Self { connection: TokioIo::new(connection), arrived: BytesMut::new(), frames })
    }

    /// Waits for output, and adds it to `streams`: stdout, stderr. What a container with a terminal
    /// prints is all stdout. Reads at most `limit` bytes, and returns how many; 0 at the end.
    pub(super) async fn read(
        &mut self,
        limit: usize,
        streams: &mut [BytesMut; 2],
    ) -> Result<usize, AttachError> {
        self.arrived.reserve(limit);
        let read = (&mut self.connection).take(limit as u64).read_buf(&mut self.arrived).await?;
        match &mut self.frames {
            Some(frames) => frames.split(&mut self.arrived, streams)?,
            None => {
                streams[0].extend_from_slice(&self.arrived);
                self.arrived.clear();
            }
        }
        Ok(read)
    }
}

/// Asks for an attach, and returns the connection, and whether the engine says that output is framed.
async fn upgrade(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> Result<(Upgraded, bool), AttachError> {
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
    Ok((hyper::upgrade::on(reply).await?, is_framed))
}

async fn has_terminal(docker: &Docker, id: &str) -> Result<bool, AttachError> {
    let found = docker.inspect_container(id, None::<InspectContainerOptions>).await?;
    Ok(found.config.and_then(|config| config.tty) == Some(true))
}

/// Splits framed output.
#[derive(Debug, Default)]
struct Frames {
    /// The stream of the current frame.
    stream: usize,
    /// How much of it has not arrived.
    left: usize,
}

impl Frames {
    /// Moves what has arrived to its streams. Part of a header stays.
    fn split(
        &mut self,
        arrived: &mut BytesMut,
        streams: &mut [BytesMut; 2],
    ) -> Result<(), AttachError> {
        loop {
            let piece = self.left.min(arrived.len());
            streams[self.stream].extend_from_slice(&arrived[..piece]);
            arrived.advance(piece);
            self.left -= piece;
            let Some(&[stream, _, _, _, a, b, c, d]) = arrived.first_chunk::<HEADER_BYTES>() else {
                return Ok(());
            };
            self.stream = match stream {
                // The engine names what it echoes of stdin, which is never attached here, 0.
                0 | 1 => 0,
                2 => 1,
                unknown => return Err(AttachError::UnknownStream(unknown)),
            };
            self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            arrived.advance(HEADER_BYTES);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
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
                let mut arrived = BytesMut::new();
                let mut streams = [BytesMut::new(), BytesMut::new()];
                for piece in [&sent[..first], &sent[first..second], &sent[second..]] {
                    arrived.extend_from_slice(piece);
                    frames.split(&mut arrived, &mut streams).unwrap();
                    assert!(arrived.len() < HEADER_BYTES);
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
        let mut arrived = BytesMut::from(&[1, 0, 0, 0, 255, 255, 255, 255, b'a'][..]);
        frames.split(&mut arrived, &mut streams).unwrap();
        assert_eq!((arrived.len(), &streams[0][..]), (0, &b"a"[..]));
    }

    #[test]
    fn a_frame_of_an_unknown_stream_is_an_error() {
        let mut frames = Frames::default();
        let mut streams = [BytesMut::new(), BytesMut::new()];
        let refused = frames.split(&mut BytesMut::from(&frame(3, "?")[..]), &mut streams);
        assert!(matches!(refused, Err(AttachError::UnknownStream(3))));
    }
}
