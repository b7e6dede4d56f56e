//! Writes followed output, byte for byte, to standard output and standard error.

use std::io::{self, Write};

use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::Mutex;

use crate::error::{CliError, CliResult};

/// Writes the output of tasks to this process's own streams.
///
/// Writing happens on a thread of its own: a reader that stops reading blocks the output, not
/// Ctrl-C.
pub(crate) struct Sink {
    /// Whether the output of several tasks is shown, with headers.
    headers: bool,
    shown: Mutex<LastWritten>,
}

/// The attempts whose output was last written to each stream.
#[derive(Default)]
struct LastWritten {
    stdout: Option<AttemptId>,
    stderr: Option<AttemptId>,
}

impl Sink {
    /// Creates a sink without output.
    pub(crate) fn new(headers: bool) -> Self {
        Self { headers, shown: Mutex::default() }
    }

    /// Writes output of an attempt, with a header if the previous output was of another attempt.
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
        let mut shown = self.shown.lock().await;
        let last = match stream {
            LogStream::Stdout => &mut shown.stdout,
            LogStream::Stderr => &mut shown.stderr,
        };
        let header = if self.headers && *last != Some(attempt) {
            header(attempt, stream, last.is_none())
        } else {
            String::new()
        };
        *last = Some(attempt);
        // The lock is held, so the output of two attempts does not mix.
        let written = tokio::task::spawn_blocking(move || match stream {
            LogStream::Stdout => put(&mut io::stdout().lock(), &header, &bytes),
            LogStream::Stderr => put(&mut io::stderr().lock(), &header, &bytes),
        });
        match (written.await, stream) {
            (Ok(result), LogStream::Stdout) => result.map_err(CliError::stdout),
            // Like a program whose standard error is closed: its output is lost, but it continues.
            (Ok(_), LogStream::Stderr) => Ok(()),
            (Err(why), _) => Err(CliError::failure("the output cannot be written").because(why)),
        }
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

fn put(to: &mut impl Write, header: &str, bytes: &[u8]) -> io::Result<()> {
    to.write_all(header.as_bytes())?;
    to.write_all(bytes)?;
    to.flush()
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
}
