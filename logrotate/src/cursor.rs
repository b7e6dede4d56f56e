//! The sidecar `.<name>.cursor`: how far a capture has read its source, saved together with the
//! matching log offset.
//!
//! Layout: `PMCURSOR`, the offset (64-bit little endian), a CRC-32 of the offset and the data
//! (32-bit little endian), the data. Replaced atomically (temporary file, then rename).

use std::fs;
use std::io;

use flate2::Crc;

use crate::error::Error;
use crate::names::{self, Names};

/// The maximum size of the data that [`LogWriter::save_cursor`](crate::LogWriter::save_cursor)
/// accepts, in bytes.
pub const CURSOR_BYTES_MAX: usize = 4096;

const MAGIC: &[u8; 8] = b"PMCURSOR";
const HEAD_LEN: usize = 20;

/// A saved position: see [`LogWriter::save_cursor`](crate::LogWriter::save_cursor).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The logical offset of the stream when the cursor was saved.
    pub offset: u64,
    /// The caller's data.
    pub data: Vec<u8>,
}

pub(crate) fn save(names: &Names, offset: u64, data: &[u8]) -> Result<(), Error> {
    if data.len() > CURSOR_BYTES_MAX {
        return Err(Error::CursorTooBig { len: data.len() });
    }
    let mut bytes = Vec::with_capacity(HEAD_LEN + data.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&crc(offset, data).to_le_bytes());
    bytes.extend_from_slice(data);
    names::replace(&names.cursor(), &bytes)
}

pub(crate) fn load(names: &Names) -> Result<Option<Cursor>, Error> {
    let path = names.cursor();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let damaged = |why| Error::CursorDamaged { path: path.clone(), why };
    let Some((head, data)) = bytes.split_at_checked(HEAD_LEN) else {
        return Err(damaged("it is too short"));
    };
    if !head.starts_with(MAGIC) {
        return Err(damaged("it is not a cursor"));
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&head[8..16]);
    let offset = u64::from_le_bytes(offset);
    if crc(offset, data).to_le_bytes() != head[16..] {
        return Err(damaged("its checksum is wrong"));
    }
    Ok(Some(Cursor { offset, data: data.to_vec() }))
}

fn crc(offset: u64, data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&offset.to_le_bytes());
    crc.update(data);
    crc.sum()
}
