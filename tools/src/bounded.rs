//! Reads small text files with a limit on their size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use podmesh_protocol::limits::JOB_FILE_BYTES_MAX;

use crate::error::{CliError, CliResult};

/// A limit in bytes, and its name.
pub(crate) type Limit = (u64, &'static str);

/// The limit of most files.
pub(crate) const JOB_FILE: Limit = (JOB_FILE_BYTES_MAX, "JOB_FILE_BYTES_MAX");

/// Reads a text file of at most so many bytes; `-` is standard input. Reading a larger file stops at
/// the limit.
///
/// # Errors
/// If the file cannot be read, is too large, or is not UTF-8. `what` names its kind.
pub(crate) fn read_bounded(path: &Path, what: &str, limit: Limit) -> CliResult<String> {
    if path == Path::new("-") {
        return text(io::stdin().lock(), what, "standard input", limit);
    }
    let name = path.display().to_string();
    let file = File::open(path)
        .map_err(|why| CliError::usage(format!("{what} {name} cannot be read")).because(why))?;
    text(file, what, &name, limit)
}

fn text(reader: impl Read, what: &str, name: &str, (max, limit): Limit) -> CliResult<String> {
    let mut bytes = Vec::new();
    reader
        .take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|why| CliError::usage(format!("{what} {name} cannot be read")).because(why))?;
    if bytes.len() as u64 > max {
        return Err(CliError::usage(format!("{what} {name} is too large"))
            .because(format!("it is over the limit of {max} bytes ({limit})")));
    }
    String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        CliError::usage(format!("{what} {name} is not text"))
            .because(format!("byte {at} is not UTF-8"))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_large_or_not_text_is_an_error() {
        // An endless reader: only a bounded read returns.
        let said = text(io::repeat(b'a'), "job file", "x", JOB_FILE).unwrap_err().to_string();
        assert!(said.contains("JOB_FILE_BYTES_MAX"), "{said}");
        let said = text(&b"ab\xff"[..], "job file", "x", JOB_FILE).unwrap_err().to_string();
        assert!(said.contains("byte 2 is not UTF-8"), "{said}");
        assert_eq!(text(&b"ab"[..], "job file", "x", JOB_FILE).unwrap(), "ab");
        let said = read_bounded(Path::new("/no/such"), "job file", JOB_FILE).unwrap_err();
        assert!(said.to_string().contains("No such file"), "{said}");
    }
}
