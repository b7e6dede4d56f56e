//! What a database's write-ahead log holds, read without SQLite: which itself drops whatever
//! follows the first damage in it, acknowledged commits as well.
//!
//! A power cut can spoil the one commit that was being written. Before the next one begins, it
//! is synchronised (`synchronous = FULL`), and the log's header before the first: so two commits
//! behind the damage, or any behind a damaged header, were acknowledged, or followed one that was.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24;
/// The last bit says in which order the words of checksums are.
const MAGIC: u32 = 0x377f_0682;

/// The log of a database.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = path.to_path_buf().into_os_string();
    log.push("-wal");
    log.into()
}

/// What the log holds of the database.
pub(super) struct Log {
    /// Bytes of a page.
    pub(super) page_bytes: u64,
    /// Pages of the database with it.
    pub(super) pages: u64,
    /// The numbers of those that are in it.
    pub(super) holds: HashSet<u64>,
}

/// What was found instead.
pub(super) enum NoLog {
    /// None, or nothing in it that counts.
    Nothing,
    /// Damage in front of what counts.
    Damaged,
}

impl Log {
    /// Reads the log of a database.
    pub(super) fn read(path: &Path) -> io::Result<Result<Self, NoLog>> {
        let file = match File::open(log_of(path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(NoLog::Nothing)),
            Err(e) => return Err(e),
        };
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; HEADER_BYTES];
        if length <= HEADER_BYTES as u64 || !filled(&mut file, &mut header)? {
            return Ok(Err(NoLog::Nothing));
        }
        let mut sum = Sum { big_endian: word(&header, 0) & 1 == 1, first: 0, second: 0 };
        sum.add(&header[..24]);
        let page_bytes = word(&header, 8);
        let sound = word(&header, 0) & !1 == MAGIC
            && page_bytes.is_power_of_two()
            && (512..=65_536).contains(&page_bytes)
            && sum.is(&header[24..]);
        if !sound {
            return Ok(Err(NoLog::Damaged));
        }
        let salt = &header[16..24];
        let (mut pages, mut holds, mut pending) = (None, HashSet::new(), Vec::new());
        let (mut whole, mut commits_behind) = (true, 0);
        let mut frame = vec![0; FRAME_BYTES + page_bytes as usize];
        while filled(&mut file, &mut frame)? {
            let commit = word(&frame, 4);
            let ours = frame[8..16] == *salt;
            if whole {
                sum.add(&frame[..8]);
                sum.add(&frame[FRAME_BYTES..]);
                whole = ours && word(&frame, 0) != 0 && sum.is(&frame[16..24]);
            }
            if !whole {
                // Those of earlier uses of the file have another salt.
                commits_behind += u32::from(ours && commit != 0);
                continue;
            }
            pending.push(u64::from(word(&frame, 0)));
            if commit != 0 {
                pages = Some(u64::from(commit));
                holds.extend(pending.drain(..));
            }
        }
        if commits_behind >= 2 {
            return Ok(Err(NoLog::Damaged));
        }
        let page_bytes = u64::from(page_bytes);
        Ok(pages.map(|pages| Self { page_bytes, pages, holds }).ok_or(NoLog::Nothing))
    }
}

/// Four bytes, big-endian, as all numbers in SQLite's files are.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(four)
}

/// Whether there was enough to read.
fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// The running checksum of a log, over all frames up to one.
struct Sum {
    big_endian: bool,
    first: u32,
    second: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (pairs, _) = bytes.as_chunks::<8>();
        for &[a, b, c, d, e, f, g, h] in pairs {
            let of = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
            self.first = self.first.wrapping_add(of([a, b, c, d])).wrapping_add(self.second);
            self.second = self.second.wrapping_add(of([e, f, g, h])).wrapping_add(self.first);
        }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        (self.first, self.second) == (word(bytes, 0), word(bytes, 4))
    }
}
