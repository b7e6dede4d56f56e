//! Reads small text files with a limit on their size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use podmesh_protocol::limits::JOB_FILE_BYTES_MAX;

use crate::error::{CliError, CliResult};

/// Reads a text file of at most [`JOB_FILE_BYTES_MAX`]; `-` is standard input. Reading a larger
/// file stops at the limit.
///
/// # Errors
/// If the file cannot be read, is too large, or is not UTF-8. `what` names its kind.
pub(crate) fn read_bounded(path: &Path, what: &str) -> CliResult<String> {
    if path == Path::new("-") {
        return text(io::stdin().lock(), what, "standard input");
    }
    let name = path.display().to_string();
    let file = File::open(path)
        .map_err(|why| CliError::usage(format!("{what} {name} cannot be read")).because(why))?;
    text(file, what, &name)
}

fn text(reader: impl Read, what: &str, name: &str) -> CliResult<String> {
    let mut bytes = Vec::new();
    reader
        .take(JOB_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|why| CliError::usage(format!("{what} {name} cannot be read")).because(why))?;
    if bytes.len() as u64 > JOB_FILE_BYTES_MAX {
        return Err(CliError::usage(format!("{what} {name} is too large")).because(format!(
            "it is over the limit of {JOB_FILE_BYTES_MAX} bytes (JOB_FILE_BYTES_MAX)"
        )));
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
        let said = text(io::repeat(b'a'), "job file", "x").unwrap_err().to_string();
        assert!(said.contains("JOB_FILE_BYTES_MAX"), "{said}");
        let said = text(&b"ab\xff"[..], "job file", "x").unwrap_err().to_string();
        assert!(said.contains("byte 2 is not UTF-8"), "{said}");
        assert_eq!(text(&b"ab"[..], "job file", "x").unwrap(), "ab");
        let said = read_bounded(Path::new("/no/such"), "job file").unwrap_err();
        assert!(said.to_string().contains("No such file"), "{said}");
    }
}
