//! Reads a database's write-ahead log without SQLite, because SQLite silently drops everything
//! after the first damage in it, including acknowledged commits.
//!
//! A power cut can damage only the commit that was being written: every commit is synced before the
//! next one begins (`synchronous = FULL`), and the log's header before the first. So if two commits
//! follow the damage, or any commit follows a damaged header, acknowledged commits would be lost.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24;
/// The last bit gives the byte order of the words in checksums.
const MAGIC: u32 = 0x377f_0682;

/// Returns the path of a database's log.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = path.to_path_buf().into_os_string();
    log.push("-wal");
    log.into()
}

/// The pages in a log.
pub(super) struct Log {
    /// The size of a page in bytes.
    pub(super) page_bytes: u64,
    /// The number of pages in the database after the log is applied.
    pub(super) pages: u64,
    /// The numbers of the pages in the log.
    pub(super) holds: HashSet<u64>,
}

/// Why there is no log to use.
pub(super) enum NoLog {
    /// There is no log, or it holds no commit.
    Nothing,
    /// The log is damaged in front of acknowledged commits.
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
                // Frames left from earlier uses of the file have another salt.
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

/// Reads a big-endian number of four bytes, the format of all numbers in SQLite's files.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(four)
}

/// Fills the buffer. Returns false if the file ends before.
fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// The running checksum of a log, over all frames so far.
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
