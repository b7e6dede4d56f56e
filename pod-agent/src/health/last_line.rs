//! The last line that a command prints.

use super::{Said, brief};

/// Maximum bytes that are kept of a line.
const LINE_BYTES_MAX: usize = 1024;

/// Keeps the beginning of the last line that is not empty, however much is printed.
#[derive(Debug, Default)]
pub(crate) struct LastLine {
    line: Vec<u8>,
    /// Whether the line is complete, so that the next byte begins another one.
    is_complete: bool,
}

impl LastLine {
    /// Adds output.
    pub(crate) fn push(&mut self, mut output: &[u8]) {
        while !output.is_empty() {
            let end = output.iter().position(|byte| *byte == b'\n');
            let line = &output[..end.unwrap_or(output.len())];
            if !line.iter().all(u8::is_ascii_whitespace) {
                if std::mem::take(&mut self.is_complete) {
                    self.line.clear();
                }
                let room = LINE_BYTES_MAX - self.line.len();
                self.line.extend_from_slice(&line[..line.len().min(room)]);
            }
            let Some(end) = end else { return };
            self.is_complete = true;
            output = &output[end + 1..];
        }
    }

    /// Returns the line as text; `None` if nothing was printed.
    pub(crate) fn text(&self) -> Option<String> {
        Some(brief(&self.line)).filter(|text| !text.is_empty())
    }

    /// Returns what a command said that has exited with this code.
    pub(crate) fn result(&self, code: i64) -> Said {
        match (code, self.text()) {
            (0, text) => Ok(text.unwrap_or_else(|| "exit code 0".into())),
            (code, Some(text)) => Err(format!("exit code {code}: {text}")),
            (code, None) => Err(format!("exit code {code}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(pieces: &[&str]) -> Option<String> {
        let mut last = LastLine::default();
        pieces.iter().for_each(|piece| last.push(piece.as_bytes()));
        last.text()
    }

    #[test]
    fn the_last_line_that_is_not_empty_is_kept() {
        assert_eq!(last(&[]), None);
        assert_eq!(last(&["\n", " \n"]), None);
        assert_eq!(last(&["a\nb"]).as_deref(), Some("b"));
        assert_eq!(last(&["a\nb\n\n \n"]).as_deref(), Some("b"));
        assert_eq!(last(&["a\nb", "c", "\n"]).as_deref(), Some("bc"));
        assert_eq!(last(&["a\nb\n", "c"]).as_deref(), Some("c"));
        assert_eq!(last(&["a\n", "\n", "  c\r\n"]).as_deref(), Some("c"));
    }

    #[test]
    fn a_line_without_an_end_takes_little_room() {
        let mut last = LastLine::default();
        for _ in 0..1000 {
            last.push(&[b'x'; 4096]);
        }
        assert_eq!(last.line.len(), LINE_BYTES_MAX);
        last.push(b"\nend\n");
        assert_eq!(last.text().as_deref(), Some("end"));
    }

    #[test]
    fn a_result_has_the_code_and_the_line() {
        let mut last = LastLine::default();
        assert_eq!(last.result(0), Ok("exit code 0".into()));
        assert_eq!(last.result(3), Err("exit code 3".into()));
        last.push(b"no disk\n");
        assert_eq!(last.result(0), Ok("no disk".into()));
        assert_eq!(last.result(3), Err("exit code 3: no disk".into()));
    }
}
