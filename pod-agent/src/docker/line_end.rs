//! Puts back line ends that Docker 20.10 loses.
//!
//! Its `local` log driver keeps a line of more than [`PIECE_BYTES`] in pieces, and gives the last one
//! back without its line break (put right in Docker 23). A short piece that another entry follows
//! had one. Whether the very last had one, the engine does not tell; its file does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The engine cuts longer lines into pieces of just this size, and a last one that is smaller.
pub(super) const PIECE_BYTES: usize = 16 << 10;
/// No record of the engine's file is larger.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// How an entry ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EntryEnd {
    /// With a line break, or there is no entry.
    #[default]
    Line,
    /// It is a full piece: its line goes on.
    Piece,
    /// Without a line break, though its line does not go on.
    Open,
    /// The same, and it is the last piece of a long line.
    OpenPiece,
    /// The same, and empty: only a line break can have been there.
    OpenEmpty,
}

impl EntryEnd {
    /// The end of an entry with these bytes, behind one that ended like `before`.
    pub(super) fn of(bytes: &[u8], before: Self) -> Self {
        match bytes {
            [.., b'\n'] => Self::Line,
            _ if bytes.len() >= PIECE_BYTES => Self::Piece,
            [] => Self::OpenEmpty,
            _ if before == Self::Piece => Self::OpenPiece,
            _ => Self::Open,
        }
    }

    /// Whether a line break is missing, given that another entry follows.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::OpenPiece | Self::OpenEmpty)
    }
}

/// Whether the last entry of `stream` ended with a line break, by the engine's own file.
///
/// # Errors
/// When the file cannot be read, or has no entry of the stream.
pub(super) fn in_engine_file(
    docker_root: &Path,
    container: &str,
    stream: &str,
) -> io::Result<bool> {
    let path = docker_root.join("containers").join(container).join("local-logs/container.log");
    let file = File::open(path)?;
    // Records, each between its length and its length again.
    let mut end = file.metadata()?.len();
    let mut record = Vec::new();
    while end > 8 {
        let mut length = [0; 4];
        file.read_exact_at(&mut length, end - 4)?;
        let length = u64::from(u32::from_be_bytes(length));
        let begin = end.checked_sub(length + 8).filter(|_| length <= RECORD_BYTES_MAX);
        let begin = begin.ok_or(io::ErrorKind::InvalidData)?;
        record.resize(usize::try_from(length).unwrap_or(0), 0);
        file.read_exact_at(&mut record, begin + 4)?;
        if bytes_of(&record, SOURCE) == Some(stream.as_bytes()) {
            // Only pieces have this part, and of a line only the last has the mark.
            let piece = bytes_of(&record, PIECE);
            return Ok(piece.is_none_or(|piece| number_of(piece, PIECE_IS_LAST) == Some(1)));
        }
        end = begin;
    }
    Err(io::ErrorKind::NotFound.into())
}

// Numbers of fields in the engine's protobuf records.
const SOURCE: u64 = 1;
const PIECE: u64 = 5;
const PIECE_IS_LAST: u64 = 1;

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn bytes_of(message: &[u8], field: u64) -> Option<&[u8]> {
    match value_of(message, field)? {
        Value::Bytes(bytes) => Some(bytes),
        Value::Number(_) => None,
    }
}

fn number_of(message: &[u8], field: u64) -> Option<u64> {
    match value_of(message, field)? {
        Value::Number(number) => Some(number),
        Value::Bytes(_) => None,
    }
}

fn value_of(mut message: &[u8], field: u64) -> Option<Value<'_>> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        if key >> 3 == field {
            return Some(value);
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A record as the engine writes it; `piece` is whether it is the last, where it is a piece.
    fn record(stream: &str, piece: Option<bool>) -> Vec<u8> {
        let mut record = vec![0x0a, stream.len() as u8];
        record.extend(stream.as_bytes());
        record.extend([0x10, 0x8e, 0xec, 0x92, 0x01, 0x1a, 3, b'a', b'b', b'c']);
        match piece {
            None => {}
            Some(false) => record.extend([0x20, 1, 0x2a, 5, 0x12, 1, b'x', 0x18, 2]),
            Some(true) => record.extend([0x20, 1, 0x2a, 7, 0x08, 1, 0x12, 1, b'x', 0x18, 2]),
        }
        let length = (record.len() as u32).to_be_bytes();
        [length.as_slice(), &record, &length].concat()
    }

    #[test]
    fn the_engines_file_tells() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("containers/c/local-logs");
        std::fs::create_dir_all(&logs).unwrap();
        let tell = |records: &[Vec<u8>]| {
            std::fs::write(logs.join("container.log"), records.concat()).unwrap();
            in_engine_file(dir.path(), "c", "stdout").ok()
        };
        assert_eq!(tell(&[]), None);
        assert_eq!(tell(&[record("stderr", None)]), None);
        assert_eq!(tell(&[record("stdout", None)]), Some(true));
        assert_eq!(tell(&[record("stdout", None), record("stdout", Some(false))]), Some(false));
        let last = [record("stdout", Some(true)), record("stderr", Some(false))];
        assert_eq!(tell(&last), Some(true));
        assert_eq!(tell(&[vec![0xff; 40]]), None);
        assert_eq!(in_engine_file(dir.path(), "d", "stdout").ok(), None);
    }

    #[test]
    fn an_entry_without_a_line_break_is_a_piece_or_open() {
        let full = [b'x'; PIECE_BYTES];
        for (bytes, before, end) in [
            (b"a\n".as_slice(), EntryEnd::Piece, EntryEnd::Line),
            (&full, EntryEnd::Line, EntryEnd::Piece),
            (&full, EntryEnd::Piece, EntryEnd::Piece),
            (b"a", EntryEnd::Piece, EntryEnd::OpenPiece),
            (b"", EntryEnd::Piece, EntryEnd::OpenEmpty),
            (b"a", EntryEnd::Line, EntryEnd::Open),
        ] {
            assert_eq!(EntryEnd::of(bytes, before), end);
        }
    }
}
