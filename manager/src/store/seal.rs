//! The seal: a checksum of the whole database after its last page, while no manager has it open.
//!
//! SQLite has no checksums, so it cannot notice a flipped bit in a value. An orderly close therefore
//! appends 32 bytes: magic, length, CRC-32 of the database, CRC-32 of the previous 28 bytes. A start
//! verifies and removes them. SQLite uses the number of pages in its header and never reads beyond
//! them. If another program writes to the database, its checkpoint truncates the file to its pages,
//! which removes the seal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::log::{Log, NoLog, log_of, word};

const MAGIC: &[u8; 16] = b"podmesh sealed 1";
const SEAL_BYTES: usize = 32;
/// The first bytes of a database.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
const READ_BYTES: usize = 1 << 20;

/// The state of a database's file, before SQLite reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileState {
    /// It has the exact bytes of an orderly stop.
    Sealed,
    /// No page is missing. There is no checksum to verify.
    Complete,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum FileError {
    /// It cannot be read.
    Io(io::Error),
    /// It is damaged, for this reason.
    Damaged(String),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, FileError> {
    Err(FileError::Damaged(why.into()))
}

/// Checks the bytes of a database. This process must not have it open: closing any file handle
/// releases all locks that the process has on the file.
pub(super) fn look(path: &Path) -> Result<FileState, FileError> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if let Some(seal) = Seal::read(&mut file, length)? {
        let seal = seal.map_err(FileError::Damaged)?;
        if seal.length != length - SEAL_BYTES as u64 {
            return damaged(format!(
                "it had {} bytes when it was closed, and has {} now",
                seal.length,
                length - SEAL_BYTES as u64
            ));
        }
        if checksum(&mut file, seal.length)? != seal.checksum {
            return damaged("its bytes have changed since it was closed: the checksum differs");
        }
        return Ok(FileState::Sealed);
    }
    complete(path, &mut file, length)?;
    Ok(FileState::Complete)
}

/// Seals a database that nobody has open. Returns false if a part of it is still in its log, or its
/// length is wrong.
pub(super) fn seal(path: &Path) -> io::Result<bool> {
    if length_of(&log_of(path))? > 0 {
        return Ok(false);
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if Header::read(&mut file)?.is_none_or(|header| header.bytes() != length) {
        return Ok(false);
    }
    let mut bytes = Vec::with_capacity(SEAL_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(length.to_be_bytes());
    bytes.extend(checksum(&mut file, length)?.to_be_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    file.seek(SeekFrom::Start(length))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(true)
}

/// Removes the seal of a database that is about to be opened for writing. The removal is synced
/// before the first page changes, so that a power cut cannot leave a seal after a changed page.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length - SEAL_BYTES as u64)?;
    file.sync_all()
}

/// Returns the length of a file; 0 if there is no file.
pub(super) fn length_of(path: &Path) -> io::Result<u64> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(file.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

struct Seal {
    length: u64,
    checksum: u32,
}

impl Seal {
    /// Reads the seal of a file: `None` if it has no seal, or what is wrong with the seal.
    fn read(file: &mut File, length: u64) -> io::Result<Option<Result<Self, String>>> {
        if length < SEAL_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; SEAL_BYTES];
        file.seek(SeekFrom::End(-(SEAL_BYTES as i64)))?;
        file.read_exact(&mut bytes)?;
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        if crc32fast::hash(&bytes[..28]) != word(&bytes, 28) {
            return Ok(Some(Err("the checksum at its end is damaged".into())));
        }
        let length = u64::from(word(&bytes, 16)) << 32 | u64::from(word(&bytes, 20));
        Ok(Some(Ok(Self { length, checksum: word(&bytes, 24) })))
    }
}

fn checksum(file: &mut File, length: u64) -> io::Result<u32> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut left = length;
    while left > 0 {
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(hasher.finalize())
}

/// The length of a database by its own header.
struct Header {
    page_bytes: u64,
    pages: u64,
}

impl Header {
    /// Reads the header; `None` if the file does not begin like a database.
    fn read(file: &mut File) -> io::Result<Option<Self>> {
        let mut bytes = [0; 100];
        file.seek(SeekFrom::Start(0))?;
        match file.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let page_bytes = match word(&bytes, 16) >> 16 {
            1 => 65_536,
            bytes => u64::from(bytes),
        };
        let sound = bytes.starts_with(SQLITE_MAGIC)
            && page_bytes.is_power_of_two()
            && page_bytes >= 512
            // Every version of SQLite since 3.7.0 writes the same number in both places.
            && word(&bytes, 24) == word(&bytes, 92);
        Ok(sound.then(|| Self { page_bytes, pages: word(&bytes, 28).into() }))
    }

    fn bytes(&self) -> u64 {
        self.page_bytes * self.pages
    }
}

/// Checks that no page is missing. SQLite would read a missing page as zeroes, and write it so at its
/// next checkpoint. Pages in the log need not be in the file yet.
fn complete(path: &Path, file: &mut File, length: u64) -> Result<(), FileError> {
    let log = match Log::read(path)? {
        Ok(log) => Some(log),
        Err(NoLog::Nothing) => None,
        Err(NoLog::Damaged) => {
            return damaged(format!(
                "its log {} is damaged, and the commits after the damage would be lost",
                log_of(path).display()
            ));
        }
    };
    let (page_bytes, pages) = match &log {
        Some(log) => (log.page_bytes, log.pages),
        None => match Header::read(file)? {
            Some(header) => (header.page_bytes, header.pages),
            None if length < 100 => return damaged(format!("it has only {length} bytes")),
            None => return damaged("it is not a database: its first page is wrong"),
        },
    };
    let in_log = |page: u64| log.as_ref().is_some_and(|log| log.holds.contains(&page));
    if (length / page_bytes + 1..=pages).any(|page| !in_log(page)) {
        return damaged(format!(
            "it is truncated: it should have {} bytes, but has {length}",
            pages * page_bytes
        ));
    }
    if !in_log(1) && Header::read(file)?.is_none() {
        return damaged("it is not a database: its first page is wrong");
    }
    Ok(())
}
