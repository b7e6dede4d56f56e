//! Writes followed output to standard output and standard error, or to a view of the terminal: byte
//! for byte, or line by line with a prefix if the output of several tasks is merged.

use std::collections::HashMap;
use std::io::{self, Write};

use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::{Mutex, mpsc};

use crate::error::{CliError, CliResult};

/// The longest line that is kept until its end arrives; a longer one is written in parts.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Writes the output of tasks.
pub(crate) struct Sink {
    form: Form,
    out: Out,
}

/// Where output goes.
#[derive(Clone)]
pub(crate) enum Out {
    /// To this process's own streams. Writing happens on a thread of its own: a reader that stops
    /// reading blocks the output, not Ctrl-C.
    Own,
    /// To a part of this program. While it does not read, no more output is asked for.
    Channel(mpsc::Sender<(LogStream, Vec<u8>)>),
}

enum Form {
    /// Byte for byte.
    Bytes {
        /// Whether the output of several tasks is shown, with headers.
        headers: bool,
        shown: Mutex<LastWritten>,
    },
    /// Whole lines, each after a prefix.
    Lines { prefix: Prefix, partial: Mutex<HashMap<(AttemptId, LogStream), Lines>> },
}

/// What stands before each line, for each stream: the two may differ in colour.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The attempts whose output was last written to each stream.
#[derive(Default)]
struct LastWritten {
    stdout: Option<AttemptId>,
    stderr: Option<AttemptId>,
}

impl Sink {
    /// Creates a sink without output that writes byte for byte.
    pub(crate) fn new(headers: bool) -> Self {
        Self { form: Form::Bytes { headers, shown: Mutex::default() }, out: Out::Own }
    }

    /// Creates a sink that writes whole lines, each after the prefix. Lines of several such sinks
    /// never mix.
    pub(crate) fn lines(prefix: Prefix, out: Out) -> Self {
        Self { form: Form::Lines { prefix, partial: Mutex::default() }, out }
    }

    /// Returns whether the output is one of several that are shown together.
    pub(crate) fn merges(&self) -> bool {
        matches!(self.form, Form::Lines { .. })
    }

    /// Writes output of an attempt.
    ///
    /// # Errors
    /// [`CliError::StdoutClosed`] if standard output is closed.
    pub(crate) async fn write(
        &self,
        attempt: AttemptId,
        stream: LogStream,
        bytes: Vec<u8>,
    ) -> CliResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match &self.form {
            Form::Bytes { headers, shown } => {
                let mut shown = shown.lock().await;
                let last = match stream {
                    LogStream::Stdout => &mut shown.stdout,
                    LogStream::Stderr => &mut shown.stderr,
                };
                let header = if *headers && *last != Some(attempt) {
                    header(attempt, stream, last.is_none())
                } else {
                    String::new()
                };
                *last = Some(attempt);
                // The lock is held, so the output of two attempts does not mix.
                self.out.put(stream, [header.into_bytes(), bytes].concat()).await
            }
            Form::Lines { prefix, partial } => {
                let mut partial = partial.lock().await;
                let lines = partial.entry((attempt, stream)).or_default();
                let whole = lines.add(prefix.of(stream), &bytes);
                self.out.put(stream, whole).await
            }
        }
    }

    /// Writes the last line of a stream, if its end is missing. The stream has ended.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub(crate) async fn end(&self, attempt: AttemptId, stream: LogStream) -> CliResult<()> {
        match &self.form {
            Form::Bytes { .. } => Ok(()),
            Form::Lines { prefix, partial } => {
                let lines = partial.lock().await.remove(&(attempt, stream));
                let rest = lines.map(|lines| lines.end(prefix.of(stream)));
                self.out.put(stream, rest.unwrap_or_default()).await
            }
        }
    }
}

impl Prefix {
    fn of(&self, stream: LogStream) -> &str {
        match stream {
            LogStream::Stdout => &self.stdout,
            LogStream::Stderr => &self.stderr,
        }
    }
}

/// Cuts output into lines.
#[derive(Default)]
struct Lines {
    /// The begin of a line whose end has not arrived.
    rest: Vec<u8>,
}

impl Lines {
    /// Adds output, and returns the whole lines, each after the prefix.
    fn add(&mut self, prefix: &str, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.rest.extend_from_slice(piece);
            let ends = piece.ends_with(b"\n");
            if ends || self.rest.len() >= LINE_BYTES_MAX {
                whole.extend_from_slice(prefix.as_bytes());
                whole.append(&mut self.rest);
                if !ends {
                    whole.push(b'\n');
                }
            }
        }
        whole
    }

    /// Returns the last line, if its end is missing.
    fn end(self, prefix: &str) -> Vec<u8> {
        if self.rest.is_empty() {
            return Vec::new();
        }
        [prefix.as_bytes(), &self.rest, b"\n"].concat()
    }
}

impl Out {
    /// Writes bytes at once: what other sinks write comes before or after them.
    async fn put(&self, stream: LogStream, bytes: Vec<u8>) -> CliResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self {
            Self::Own => put(stream, bytes).await,
            Self::Channel(sender) => {
                sender.send((stream, bytes)).await.map_err(|_| CliError::StdoutClosed)
            }
        }
    }
}

async fn put(stream: LogStream, bytes: Vec<u8>) -> CliResult<()> {
    fn all(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        to.write_all(bytes)?;
        to.flush()
    }

    let written = tokio::task::spawn_blocking(move || match stream {
        LogStream::Stdout => all(&mut io::stdout().lock(), &bytes),
        LogStream::Stderr => all(&mut io::stderr().lock(), &bytes),
    });
    match (written.await, stream) {
        (Ok(result), LogStream::Stdout) => result.map_err(CliError::stdout),
        // Like a program whose standard error is closed: its output is lost, but it continues.
        (Ok(_), LogStream::Stderr) => Ok(()),
        (Err(why), _) => Err(CliError::failure("the output cannot be written").because(why)),
    }
}

/// Returns a header in the style of `tail`, with the attempt's number unless it is the first.
fn header(attempt: AttemptId, stream: LogStream, first: bool) -> String {
    let gap = if first { "" } else { "\n" };
    let stream = stream.file_stem();
    match attempt.number {
        1 => format!("{gap}==> {} {stream} <==\n", attempt.task),
        _ => format!("{gap}==> {attempt} {stream} <==\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podmesh_protocol::ids::JobId;

    #[test]
    fn headers_name_the_task_and_a_later_attempt() {
        let attempt = |number| AttemptId::new(JobId(42), 7, number);
        assert_eq!(header(attempt(1), LogStream::Stdout, true), "==> 42.7 stdout <==\n");
        assert_eq!(header(attempt(2), LogStream::Stderr, false), "\n==> 42.7#2 stderr <==\n");
    }

    #[test]
    fn only_whole_lines_are_written_each_after_the_prefix() {
        let mut lines = Lines::default();
        assert_eq!(lines.add("web.1 | ", b"a\n\nb"), b"web.1 | a\nweb.1 | \n");
        assert_eq!(lines.add("web.1 | ", b"c"), b"");
        assert_eq!(lines.add("web.1 | ", b"\r\n\xff"), b"web.1 | bc\r\n");
        assert_eq!(lines.end("web.1 | "), b"web.1 | \xff\n");
        assert_eq!(Lines::default().end("web.1 | "), b"");
    }

    #[test]
    fn a_line_without_an_end_is_written_in_parts() {
        let mut lines = Lines::default();
        let mut written = Vec::new();
        for _ in 0..20 {
            written.extend(lines.add("p ", &[b'x'; 10_000]));
            assert!(lines.rest.len() < LINE_BYTES_MAX);
        }
        written.extend(lines.end("p "));
        assert_eq!(written.iter().filter(|b| **b == b'x').count(), 200_000);
        assert!(written.split(|b| *b == b'\n').all(|line| line.len() < LINE_BYTES_MAX + 10_002));
    }
}
