//! The file with the records of attempts. It is divided into parts of a fixed size, one for each
//! place of `work.rs`, so that a new record replaces the previous one with a single write, and no
//! file is created, truncated or renamed.
//!
//! A part contains one JSON value and a line feed; anything after that is ignored. An empty line
//! means that the place is free. Written records survive a kill of the supervisor, but not always a
//! crash of the machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::limits::MESSAGE_BYTES_MAX;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::OnLost;
use serde::{Deserialize, Serialize};

/// The name of the file.
const FILE: &str = "records";
/// Bytes of a part. Unwritten bytes take no space on the disk.
const PART_BYTES: usize = 16 << 10;
// The message takes the most space, and JSON writes a control character as six bytes.
const _: () = assert!(PART_BYTES > 6 * MESSAGE_BYTES_MAX + 1024);

/// The record of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The attempt.
    pub(super) attempt: AttemptId,
    /// What to do when the lease ends.
    pub(super) on_lost: OnLost,
    /// Its process, once it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<StartedProcess>,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Outcome>,
}

/// The data by which the next supervisor recognises a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartedProcess {
    /// Its process id, which is also the id of its group.
    pub(super) pid: i32,
    /// The range of its start time, in clock ticks since the machine started. No other process with
    /// its process id was started in that time.
    pub(super) start_ticks: (u64, u64),
}

impl StartedProcess {
    /// Returns whether the process that now has this process id, and was started at this time, is
    /// this one.
    pub(super) fn is(self, start_ticks: u64) -> bool {
        (self.start_ticks.0..=self.start_ticks.1).contains(&start_ticks)
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Records(File);

impl Records {
    /// Reads the records from the file in a folder, by place.
    pub(super) fn read(dir: &Path) -> io::Result<BTreeMap<u32, Record>> {
        let file = match File::open(dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            file => file?,
        };
        let parts = file.metadata()?.len().div_ceil(PART_BYTES as u64);
        let mut records = BTreeMap::new();
        let mut part = vec![0; PART_BYTES];
        for number in 0..u32::try_from(parts).unwrap_or(u32::MAX) {
            let length = read_part(&file, number, &mut part)?;
            let line = part[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
            // An incomplete record belongs to an attempt that was lost with its machine.
            if let Ok(record) = serde_json::from_slice(line) {
                records.insert(number, record);
            }
        }
        Ok(records)
    }

    /// Opens the file in a folder for writing, and frees the space after the first `count` parts.
    pub(super) fn open(dir: &Path, count: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(dir.join(FILE))?;
        file.set_len(offset(count))?;
        Ok(Self(file))
    }

    /// Writes a record.
    pub(super) fn write(&self, number: u32, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.0.write_all_at(&line, offset(number))
    }

    /// Marks a place as free.
    pub(super) fn clear(&self, number: u32) -> io::Result<()> {
        self.0.write_all_at(b"\n", offset(number))
    }
}

fn offset(number: u32) -> u64 {
    u64::from(number) * PART_BYTES as u64
}

/// Reads one part, or what exists of it.
fn read_part(file: &File, number: u32, part: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < part.len() {
        match file.read_at(&mut part[length..], offset(number) + length as u64) {
            Ok(0) => break,
            Ok(bytes) => length += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
