//! A client of the HTTP API. It blocks, reads streams as they come, and can send what is not HTTP.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// How long a reply, or the next part of a stream, may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where the API is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A unix socket.
    Socket(PathBuf),
    /// A network address.
    Address(SocketAddr),
}

/// A client with its headers.
#[derive(Clone, Debug)]
pub struct Api {
    place: Place,
    headers: Vec<(String, String)>,
}

/// A connection of either kind.
pub trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

/// A reply whose headers have come.
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    stream: BufReader<Box<dyn Connection>>,
    rest: Rest,
}

/// What is left of a body.
enum Rest {
    /// This many bytes.
    Bytes(u64),
    /// Chunks; this many bytes are left of the current one.
    Chunks(u64),
    /// Nothing.
    None,
}

/// An event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `event`
    pub kind: Option<String>,
    /// `id`
    pub id: Option<u64>,
    /// `data`, which is JSON.
    pub data: Value,
}

impl Api {
    /// Returns a client without headers.
    pub fn new(place: Place) -> Self {
        Self { place, headers: vec![] }
    }

    /// Returns a client that also sends this header with each request.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut api = self.clone();
        api.headers.push((name.to_owned(), value.to_owned()));
        api
    }

    /// Returns a client that bears a token.
    #[must_use]
    pub fn bearing(&self, token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {}", token.trim()))
    }

    /// Returns where the API is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// If that fails.
    pub fn connect(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match &self.place {
            Place::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                Box::new(stream)
            }
            Place::Address(address) => {
                let stream = TcpStream::connect_timeout(address, LIMIT)?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// Returns a request as text.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> String {
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text += "Host: localhost\r\n";
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        match body {
            None => text + "\r\n",
            Some(body) => {
                let body = body.to_string();
                let length = body.len();
                text + &format!(
                    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )
            }
        }
    }

    /// Sends a request, and returns the reply once its headers have come.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Reply> {
        let mut connection = self.connect()?;
        connection.write_all(self.request(method, path, body).as_bytes())?;
        Reply::read(connection)
    }

    /// Sends a GET request.
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, None).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Sends a POST request with JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, Some(body)).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Opens a stream of events.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn events(&self, path: &str) -> io::Result<Reply> {
        self.with("Accept", "text/event-stream").send("GET", path, None)
    }
}

fn bad(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Reply {
    /// Reads the headers of a reply.
    ///
    /// # Errors
    /// If the connection ends before, or the reply is not HTTP.
    pub fn read(connection: Box<dyn Connection>) -> io::Result<Self> {
        Self::read_from(BufReader::new(connection))
    }

    /// Reads the headers of the next reply, to another request of those that were sent at once.
    ///
    /// # Errors
    /// If the connection ends before, or the reply is not HTTP.
    pub fn next(mut self) -> io::Result<Self> {
        self.body()?;
        Self::read_from(self.stream)
    }

    fn read_from(mut stream: BufReader<Box<dyn Connection>>) -> io::Result<Self> {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| bad(first))?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Self { status, headers, stream, rest: Rest::None };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.rest = Rest::Chunks(0);
        } else if let Some(length) = reply.header("content-length") {
            reply.rest = Rest::Bytes(length.parse().map_err(|_| bad(length.to_owned()))?);
        }
        Ok(reply)
    }

    /// Returns a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the whole body.
    ///
    /// # Errors
    /// If the connection ends before the body.
    pub fn body(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Returns the body as text.
    pub fn text(mut self) -> String {
        String::from_utf8(self.body().unwrap()).unwrap()
    }

    /// Returns the body as JSON.
    pub fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Returns the connection, for the next request.
    pub fn into_connection(self) -> Box<dyn Connection> {
        assert!(self.stream.buffer().is_empty(), "a reply has more than its body");
        self.stream.into_inner()
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            if self.read(&mut byte)? == 0 {
                return Ok(None);
            }
            if byte == [b'\n'] {
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            line.push(byte[0]);
        }
    }

    /// Returns the next event of a stream that has data or a kind; `None` at the end of the stream.
    /// Comments, and what only sets an ID, are passed over.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn event(&mut self) -> io::Result<Option<Event>> {
        let mut event = Event::default();
        let mut has_data = false;
        while let Some(line) = self.line()? {
            match line.split_once(": ") {
                Some(("event", kind)) => event.kind = Some(kind.to_owned()),
                Some(("id", id)) => event.id = id.parse().ok(),
                Some(("data", data)) => {
                    has_data = true;
                    event.data = serde_json::from_str(data)?;
                }
                _ if line.is_empty() => {
                    if has_data {
                        return Ok(Some(event));
                    }
                    event = Event::default();
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Read for Reply {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.rest {
            Rest::None => Ok(0),
            Rest::Bytes(0) => Ok(0),
            Rest::Bytes(left) => {
                let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let read = self.stream.read(&mut into[..most])?;
                if read == 0 && most > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= read as u64;
                Ok(read)
            }
            Rest::Chunks(left) => {
                if *left == 0 {
                    let mut line = String::new();
                    if self.stream.read_line(&mut line)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *left = u64::from_str_radix(line.trim(), 16).map_err(|_| bad(line))?;
                    if *left == 0 {
                        self.stream.read_line(&mut String::new())?;
                        self.rest = Rest::None;
                        return Ok(0);
                    }
                }
                let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let read = self.stream.read(&mut into[..most])?;
                if read == 0 && most > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= read as u64;
                if *left == 0 {
                    self.stream.read_line(&mut String::new())?;
                }
                Ok(read)
            }
        }
    }
}
