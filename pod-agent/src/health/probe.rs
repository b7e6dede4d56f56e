//! Checks over the network.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use podmesh_protocol::ids::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Said, Target, brief};

/// Maximum bytes of the head of an answer: the status line and the headers.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Maximum number of headers of an answer.
const HEADERS_MAX: usize = 256;
/// Bytes read at once.
const BLOCK: usize = 4 << 10;
/// Bytes in which an answer that is not HTTP is recognised, without the end of a line.
const FIRST_BYTES: usize = 64;
/// How long a forwarder may take to notice that the program does not listen.
const FORWARD_LIMIT: Duration = Duration::from_millis(200);
/// How long the end of a small body is awaited, so that the server does not see a reset.
const BODY_LIMIT: Duration = Duration::from_millis(20);

/// Checks that a connection is accepted.
pub(super) async fn tcp(port: &Name, target: Target) -> Said {
    let failed = |error: io::Error| format!("port {port}: {}", plain(&error));
    let mut stream = TcpStream::connect(target.at).await.map_err(failed)?;
    if target.is_forwarded {
        // A forwarder accepts every connection, and closes it if the program does not listen.
        match timeout(FORWARD_LIMIT, stream.read(&mut [0])).await {
            Ok(Ok(0)) => return Err(format!("port {port}: the connection was closed at once")),
            Ok(Err(error)) => return Err(failed(error)),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(format!("port {port} accepts connections"))
}

/// Returns an error without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An HTTP/1.1 request, and the expected status.
#[derive(Debug)]
pub(super) struct HttpRequest {
    at: SocketAddr,
    bytes: Vec<u8>,
    /// `None`: 200 to 399.
    status: Option<u16>,
}

impl HttpRequest {
    /// Creates a GET request. `host` is the address and port that others use.
    pub(super) fn new(
        at: SocketAddr,
        host: SocketAddr,
        path: &str,
        status: Option<u16>,
        headers: &BTreeMap<String, String>,
    ) -> Self {
        let host = host.to_string();
        let usual = [
            ("Host", host.as_str()),
            ("User-Agent", "podmesh"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ];
        let is_given = |name: &str| headers.keys().any(|given| given.eq_ignore_ascii_case(name));
        let usual = usual.into_iter().filter(|(name, _)| !is_given(name));
        let given = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut text = format!("GET {path} HTTP/1.1\r\n");
        for (name, value) in usual.chain(given) {
            // Writing to a string does not fail.
            _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        Self { at, bytes: text.into_bytes(), status }
    }

    /// Sends it and checks the status of the answer. The body is not needed.
    pub(super) async fn send(&self) -> Said {
        let mut stream = TcpStream::connect(self.at).await.map_err(|error| plain(&error))?;
        // A server may answer and close before it has read the request.
        let sent = stream.write_all(&self.bytes).await;
        let status = match read_status(&mut stream).await {
            Err(why) => return Err(sent.map_or_else(|error| plain(&error), |()| why)),
            Ok(status) => status,
        };
        let mut rest = [0; BLOCK];
        _ = timeout(BODY_LIMIT, stream.read(&mut rest)).await;
        let is_good = match self.status {
            Some(wanted) => status == wanted,
            None => (200..400).contains(&status),
        };
        if is_good { Ok(format!("status {status}")) } else { Err(format!("status {status}")) }
    }
}

/// Reads the head of an answer, and returns its status.
async fn read_status(stream: &mut TcpStream) -> Result<u16, String> {
    let mut head = Vec::new();
    let mut bytes = 0;
    loop {
        if bytes >= HEAD_BYTES_MAX {
            return Err(format!("the headers are larger than {HEAD_BYTES_MAX} bytes"));
        }
        head.reserve(BLOCK);
        let mut block = stream.take((HEAD_BYTES_MAX - bytes).min(BLOCK) as u64);
        let read = block.read_buf(&mut head).await.map_err(|error| plain(&error))?;
        if read == 0 {
            let begun =
                if bytes == 0 { "without an answer" } else { "in the middle of the answer" };
            return Err(format!("the connection was closed {begun}"));
        }
        bytes += read;
        // Only a line feed completes something, but the first bytes show what is not HTTP at all.
        let is_news = bytes <= FIRST_BYTES || head[head.len() - read..].contains(&b'\n');
        if is_news && let Some(status) = take_status(&mut head)? {
            return Ok(status);
        }
    }
}

/// Returns the status in a complete head; `None` if more must be read. Removes informational answers
/// (1xx), which another answer follows.
fn take_status(head: &mut Vec<u8>) -> Result<Option<u16>, String> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        match answer.parse(head) {
            Ok(httparse::Status::Complete(bytes)) => match answer.code {
                Some(code @ 100..200) if code != 101 => _ = head.drain(..bytes),
                code => return Ok(code),
            },
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(format!("there are more than {HEADERS_MAX} headers"));
            }
            Err(error) => {
                let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
                return Err(format!("the answer is not HTTP ({error}): {}", brief(line)));
            }
        }
    }
}
