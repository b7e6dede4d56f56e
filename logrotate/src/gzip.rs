//! The `.gz` files: ordinary gzip with the logical offsets in the header.
//!
//! The header's extra field has one subfield `PM` of 16 bytes: the logical offset of the first byte
//! and the number of bytes, both 64-bit little endian. Every gzip tool ignores it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use flate2::{Compression, GzBuilder};

const SUBFIELD: [u8; 2] = *b"PM";
const SUBFIELD_LEN: u16 = 16;
/// Ten fixed bytes, the length of the extra field, the subfield header and its two numbers.
const HEADER_LEN: usize = 10 + 2 + 4 + SUBFIELD_LEN as usize;
const FLAG_EXTRA: u8 = 4;
/// Fast: compression must not take much CPU time from the running tasks.
const LEVEL: Compression = Compression::fast();

/// Facts about a `.gz`, known without decompressing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Written by us.
    Known { start: u64, len: u64 },
    /// Compressed by another program; the number of bytes comes from the trailer, modulo 2^32.
    Foreign { len: u64 },
    /// Not a gzip file, or one that is still being written.
    Broken,
}

/// Compresses `len` bytes of `source` that begin at the logical offset `start`.
///
/// `on_begun` is called after each block that is written.
pub(crate) fn compress(
    source: &mut impl Read,
    target: &File,
    start: u64,
    len: u64,
    mut on_begun: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let mut extra = Vec::with_capacity(HEADER_LEN);
    extra.extend_from_slice(&SUBFIELD);
    extra.extend_from_slice(&SUBFIELD_LEN.to_le_bytes());
    extra.extend_from_slice(&start.to_le_bytes());
    extra.extend_from_slice(&len.to_le_bytes());
    let mut encoder = GzBuilder::new().extra(extra).write(target, LEVEL);
    let mut buf = vec![0; 128 << 10];
    let mut left = len;
    while left > 0 {
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = match source.read(&mut buf[..want]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        encoder.write_all(&buf[..n])?;
        left -= n as u64;
        on_begun()?;
    }
    encoder.finish().map(|_| ())
}

/// Reads the header, or the trailer of a file that is not ours.
pub(crate) fn inspect(file: &mut File, file_len: u64) -> io::Result<Content> {
    let mut head = [0; HEADER_LEN];
    let mut got = 0;
    while got < head.len() {
        match file.read(&mut head[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if got < 18 || head[..3] != [0x1f, 0x8b, 8] {
        return Ok(Content::Broken);
    }
    let ours = head[3] & FLAG_EXTRA != 0
        && head[10..12] == (4 + SUBFIELD_LEN).to_le_bytes()
        && head[12..14] == SUBFIELD
        && head[14..16] == SUBFIELD_LEN.to_le_bytes();
    if ours && got == HEADER_LEN {
        return Ok(Content::Known { start: u64_at(&head, 16), len: u64_at(&head, 24) });
    }
    let mut trailer = [0; 4];
    file.seek(SeekFrom::Start(file_len.saturating_sub(4)))?;
    match file.read_exact(&mut trailer) {
        Ok(()) => Ok(Content::Foreign { len: u64::from(u32::from_le_bytes(trailer)) }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Content::Broken),
        Err(error) => Err(error),
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
